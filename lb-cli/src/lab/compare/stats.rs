//! Statistics over rounds.

/// The middle value; the mean of the two middle ones of an even number. `None` of nothing.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => Some(values[middle]),
        _ => Some((values.get(middle.checked_sub(1)?)? + values[middle]) / 2.0),
    }
}

/// The smallest value that at least `percent` per cent of all are not above. `None` of nothing.
pub(super) fn percentile(mut values: Vec<f64>, percent: usize) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get((values.len() * percent).div_ceil(100).checked_sub(1)?).copied()
}

/// The median over rounds of what each round has to say against its own baseline. What slows the machine down for a
/// while slows both, so it leaves the ratio alone.
pub(super) fn median_ratio(values: &[f64], baselines: &[f64]) -> Option<f64> {
    median(
        values.iter().zip(baselines).filter(|(_, baseline)| **baseline > 0.0).map(|(value, baseline)| value / baseline),
    )
}

/// Rounds to `digits` decimals: more would only claim a precision that nothing here has.
pub(super) fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// The numbers 0..`count` in an order that depends on `seed` and `round` alone; every second round is the one before
/// it backwards, so that a drift within a round hits both ends alike.
pub(super) fn order(count: usize, seed: u64, round: u32) -> Vec<usize> {
    let mut state = seed ^ u64::from(round / 2);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        let pick = splitmix(&mut state) % (last as u64 + 1);
        order.swap(last, usize::try_from(pick).unwrap_or(0));
    }
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Steele, Lea and Flood's generator: one multiplication chain, good enough to shuffle six things.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0]), Some(3.0));
        assert_eq!(median([9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 100.0]), Some(3.0));
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        assert_eq!(percentile(Vec::new(), 99), None);
        assert_eq!(percentile(vec![3.0, 1.0, 2.0], 99), Some(3.0));
        assert_eq!(percentile((1..=200).map(f64::from).collect(), 99), Some(198.0));
    }

    #[test]
    fn a_slow_round_leaves_the_ratio_alone() {
        assert_eq!(median_ratio(&[20.0, 200.0, 20.0], &[10.0, 100.0, 10.0]), Some(2.0));
    }

    #[test]
    fn a_round_without_a_baseline_does_not_count() {
        assert_eq!(median_ratio(&[20.0, 30.0], &[0.0, 10.0]), Some(3.0));
        assert_eq!(median_ratio(&[20.0], &[0.0]), None);
    }

    #[test]
    fn every_second_round_runs_backwards_and_every_round_has_everything() {
        let (first, second) = (order(6, 7, 0), order(6, 7, 1));
        assert_eq!(first.iter().rev().copied().collect::<Vec<_>>(), second);
        let mut sorted = order(6, 7, 2);
        assert_ne!(sorted, first);
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn rounding_keeps_the_asked_decimals() {
        assert_eq!(round(1.23456, 3), 1.235);
        assert_eq!(round(1234.5, 0), 1235.0);
    }
}
