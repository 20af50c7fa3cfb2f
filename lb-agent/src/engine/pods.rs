//! Pods whose sockets are left alone.

use std::time::Duration;

use super::Engine;

/// Condition: sockets of pods are sent to backends that should not be.
const SOCKETS_NOT_LEFT_ALONE: &str = "SocketsNotLeftAlone";

/// How long until pods are looked for again. A pod has its addresses and its first process some time after its device,
/// and nothing says when.
const AGAIN: Duration = Duration::from_secs(1);

impl Engine {
    /// Has the datapath look for pods whose sockets are left alone, and forget those that an earlier agent left alone.
    pub(crate) fn follow_pods(&mut self) {
        let problem = self.datapath.follow_pods().err();
        match &problem {
            Some(problem) if self.not_left_alone.as_ref() != Some(problem) => {
                tracing::warn!(
                    problem,
                    "sockets of some pods may be sent to backends, though --socket-lb-except has them"
                );
            }
            None if self.not_left_alone.is_some() => tracing::info!("sockets of pods are left alone as they should be"),
            _ => {}
        }
        self.shared.set_problem(SOCKETS_NOT_LEFT_ALONE, problem.clone());
        self.not_left_alone = problem;
        self.pods_due = self.datapath.follows_pods().then(|| self.shared.now() + AGAIN);
    }

    pub(super) fn follow_pods_when_due(&mut self) {
        if self.pods_due.is_some_and(|due| due <= self.shared.now()) {
            self.follow_pods();
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_core::{datapath::Datapath, memory::MemoryDatapath};

    use super::*;
    use crate::{
        driver::OpenDatapath,
        testing::{self, conditions, config},
    };

    /// Fails once.
    struct Pods(MemoryDatapath, bool);

    impl OpenDatapath for Pods {
        fn datapath(&self) -> &dyn Datapath {
            &self.0
        }

        fn datapath_mut(&mut self) -> &mut dyn Datapath {
            &mut self.0
        }

        fn follow_pods(&mut self) -> Result<(), String> {
            if std::mem::take(&mut self.1) { Err("namespaces cannot be entered".into()) } else { Ok(()) }
        }

        fn follows_pods(&self) -> bool {
            true
        }
    }

    #[test]
    fn pods_are_looked_for_again_and_again() {
        let mut agent = testing::agent(&config(), MemoryDatapath::default());
        agent.follow_pods();
        assert_eq!(agent.pods_due, None, "there is nothing to look for");
        agent.datapath = Box::new(Pods(MemoryDatapath::default(), true));
        agent.follow_pods();
        assert_eq!(conditions(&agent), [SOCKETS_NOT_LEFT_ALONE]);
        assert!(agent.patience().unwrap() <= AGAIN);
        agent.pods_due = Some(agent.shared.now());
        agent.follow_pods_when_due();
        assert_eq!(conditions(&agent), [""; 0]);
        assert!(agent.pods_due.is_some());
    }
}
