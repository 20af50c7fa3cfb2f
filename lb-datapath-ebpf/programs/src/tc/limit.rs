//! How often a program answers by itself: a token bucket, as a virtual scheduling algorithm (ITU-T I.371, annex A.1)
//! that needs one number.

/// Nanoseconds between two answers of one kind that a processor gives in the long run: 1,000 each second.
const INTERVAL_NS: u64 = 1_000_000;
/// Answers that a processor may give at once, after it has given none for a second.
const BURST: u64 = 1_000;

/// What is answered. Each has a limit of its own, so that a flood of one leaves the others alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A reset, or port unreachable.
    Refusal,
    /// "Fragmentation needed", or "packet too big".
    TooBig,
}

/// When the next answer of each kind would come if answers came evenly, on the monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Limits {
    refusal: u64,
    too_big: u64,
}

impl Limits {
    /// Whether there may be an answer now.
    #[inline(always)]
    pub fn allow(&mut self, answer: Answer, now: u64) -> bool {
        let due = match answer {
            Answer::Refusal => &mut self.refusal,
            Answer::TooBig => &mut self.too_big,
        };
        let next = if *due > now { *due } else { now };
        if next - now > (BURST - 1) * INTERVAL_NS {
            return false;
        }
        *due = next + INTERVAL_NS;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_followed_by_a_thousand_answers_each_second() {
        let (mut limits, start) = (Limits::default(), 5_000_000_000);
        let mut at = |now, tries| (0..tries).filter(|_| limits.allow(Answer::Refusal, now)).count();
        assert_eq!(at(start, 5_000), 1_000);
        assert_eq!(at(start + 999_999, 10), 0);
        assert_eq!(at(start + 1_000_000, 10), 1);
        assert_eq!(at(start + 500_000_000, 5_000), 499);
        assert_eq!(at(start + 10_000_000_000, 5_000), 1_000);
    }

    #[test]
    fn one_kind_of_answer_leaves_the_other_its_own() {
        let mut limits = Limits::default();
        while limits.allow(Answer::Refusal, 1) {}
        assert!(limits.allow(Answer::TooBig, 1));
    }

    #[test]
    fn a_clock_that_goes_back_gives_no_more_than_a_burst() {
        let mut limits = Limits::default();
        let given = (0..3_000).filter(|i| limits.allow(Answer::Refusal, 3_000 - i)).count();
        assert!((999..=1_000).contains(&given), "{given}");
    }
}
