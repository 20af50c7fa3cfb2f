//! What is going on, on standard error.

use std::{cell::Cell, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// A bar on a terminal, plain lines elsewhere.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    done: Cell<u64>,
    steps: u64,
}

impl Progress {
    pub(super) fn new(steps: u64) -> Self {
        let bar = output::is_terminal().then(|| {
            let bar = ProgressBar::new(steps);
            let style = ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {percent:>3}% {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, done: Cell::new(0), steps }
    }

    /// Says what begins now; what was before is done.
    pub(super) fn step(&self, what: &str) {
        let done = self.done.replace(self.done.get() + 1);
        match &self.bar {
            Some(bar) => {
                bar.set_position(done.min(self.steps));
                bar.set_message(what.to_owned());
            }
            None => output::say(format_args!("lb: [{}/{}] {what}", done + 1, self.steps)),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
