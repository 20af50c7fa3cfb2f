//! News for those who watch.

use std::{
    sync::{
        Arc, Weak,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use crate::api::{self, DriftNews};

/// Most clients that watch at a time.
const MAX_WATCHERS: usize = 16;
/// Batches of news that may wait for a client; one that is slower is dropped.
const MAX_WAITING: usize = 64;
/// Most differences of a batch that are told one by one.
const MAX_BATCH: usize = 200;

/// Lines of JSON, the same for every client.
type Lines = Arc<[Box<str>]>;

/// Clients that watch.
#[derive(Debug, Default)]
pub(super) struct Feed {
    watchers: Vec<Watcher>,
}

#[derive(Debug)]
struct Watcher {
    lines: SyncSender<Lines>,
    alive: Weak<()>,
}

/// A client's end.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// What it is told; ends when it was too slow.
    lines: Receiver<Lines>,
    _alive: Arc<()>,
}

impl api::Lines for Subscription {
    fn next(&mut self, patience: Duration) -> Option<Lines> {
        match self.lines.recv_timeout(patience) {
            Ok(lines) => Some(lines),
            Err(RecvTimeoutError::Timeout) => Some(Arc::from([])),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

impl Feed {
    /// A new client's end, unless there are too many.
    pub(super) fn subscribe(&mut self) -> Option<Subscription> {
        self.watchers.retain(|watcher| watcher.alive.strong_count() > 0);
        if self.watchers.len() >= MAX_WATCHERS {
            return None;
        }
        let (sender, lines) = sync_channel(MAX_WAITING);
        let alive = Arc::new(());
        self.watchers.push(Watcher { lines: sender, alive: Arc::downgrade(&alive) });
        Some(Subscription { lines, _alive: alive })
    }

    /// How many listen.
    pub(super) fn watchers(&self) -> usize {
        self.watchers.iter().filter(|watcher| watcher.alive.strong_count() > 0).count()
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
        self.watchers.retain(|watcher| match watcher.lines.try_send(Arc::clone(&lines)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                tracing::warn!("a client that watches drift does not read fast enough: it is dropped");
                false
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(n: usize) -> Vec<DriftNews> {
        vec![DriftNews::Unlisted { unlisted: 7 }; n]
    }

    #[test]
    fn a_batch_is_bounded_and_says_what_it_left_out() {
        let mut feed = Feed::default();
        let client = feed.subscribe().unwrap();
        feed.publish(news(MAX_BATCH + 2), 3);
        let lines = client.lines.recv().unwrap();
        assert_eq!((lines.len(), &*lines[MAX_BATCH]), (MAX_BATCH + 1, r#"{"unlisted":5}"#));
    }

    #[test]
    fn a_slow_client_is_dropped_and_the_others_are_not() {
        let mut feed = Feed::default();
        let (slow, quick) = (feed.subscribe().unwrap(), feed.subscribe().unwrap());
        let mut read = 0;
        for _ in 0..=MAX_WAITING {
            feed.publish(news(1), 0);
            read += quick.lines.try_iter().map(|lines| lines.len()).sum::<usize>();
        }
        assert_eq!((feed.watchers.len(), read), (1, MAX_WAITING + 1));
        assert_eq!(slow.lines.iter().count(), MAX_WAITING, "then it ends");
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
