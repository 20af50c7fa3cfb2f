//! News for those who watch.

use std::sync::Arc;

use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};

use crate::api::{DriftNews, Lines};

/// Most clients that watch at a time.
const MAX_WATCHERS: usize = 16;
/// Batches of news that may wait for a client; one that is slower is dropped.
const MAX_WAITING: usize = 64;
/// Most differences of a batch that are told one by one.
const MAX_BATCH: usize = 200;

/// A client's end. It ends when the client was too slow.
pub(crate) type Subscription = Receiver<Lines>;

/// Clients that watch drift.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    watchers: Vec<Sender<Lines>>,
}

impl Feed {
    /// A new client's end, unless there are too many.
    pub(crate) fn subscribe(&mut self) -> Option<Subscription> {
        self.watchers.retain(|watcher| !watcher.is_closed());
        if self.watchers.len() >= MAX_WATCHERS {
            return None;
        }
        let (sender, lines) = channel(MAX_WAITING);
        self.watchers.push(sender);
        Some(lines)
    }

    /// How many listen.
    pub(crate) fn watchers(&self) -> usize {
        self.watchers.iter().filter(|watcher| !watcher.is_closed()).count()
    }

    /// Whether nobody would listen.
    pub(super) fn is_idle(&self) -> bool {
        self.watchers.is_empty()
    }

    pub(super) fn publish(&mut self, mut news: Vec<DriftNews>, unlisted: usize) {
        let unlisted = unlisted + news.len().saturating_sub(MAX_BATCH);
        news.truncate(MAX_BATCH);
        if unlisted > 0 {
            news.push(DriftNews::Unlisted { unlisted: unlisted as u64 });
        }
        let lines = news.iter().filter_map(|news| serde_json::to_string(news).ok());
        let lines: Lines = lines.map(String::into_boxed_str).collect();
        if lines.is_empty() {
            return;
        }
        self.watchers.retain(|watcher| match watcher.try_send(Arc::clone(&lines)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                tracing::warn!("a client of `lb drift --watch` reads too slowly and is disconnected");
                false
            }
            Err(TrySendError::Closed(_)) => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::error::TryRecvError;

    use super::*;

    fn news(n: usize) -> Vec<DriftNews> {
        vec![DriftNews::Unlisted { unlisted: 7 }; n]
    }

    #[test]
    fn a_batch_is_bounded_and_says_what_it_left_out() {
        let mut feed = Feed::default();
        let mut client = feed.subscribe().unwrap();
        feed.publish(news(MAX_BATCH + 2), 3);
        let lines = client.try_recv().unwrap();
        assert_eq!((lines.len(), &*lines[MAX_BATCH]), (MAX_BATCH + 1, r#"{"unlisted":5}"#));
    }

    #[test]
    fn a_slow_client_is_dropped_and_the_others_are_not() {
        let mut feed = Feed::default();
        let (mut slow, mut quick) = (feed.subscribe().unwrap(), feed.subscribe().unwrap());
        let mut read = 0;
        for _ in 0..=MAX_WAITING {
            feed.publish(news(1), 0);
            read += quick.try_recv().unwrap().len();
        }
        assert_eq!((feed.watchers.len(), read), (1, MAX_WAITING + 1));
        let waiting = std::iter::from_fn(|| slow.try_recv().ok());
        assert_eq!(waiting.count(), MAX_WAITING);
        assert_eq!(slow.try_recv(), Err(TryRecvError::Disconnected), "then it ends");
    }

    #[test]
    fn there_are_only_so_many_clients_and_those_that_went_make_room() {
        let mut feed = Feed::default();
        let mut clients: Vec<_> = (0..MAX_WATCHERS).map(|_| feed.subscribe().unwrap()).collect();
        assert!(feed.subscribe().is_none());
        clients.pop();
        assert!(feed.subscribe().is_some());
        drop(clients);
        assert!(!feed.is_idle());
    }
}
