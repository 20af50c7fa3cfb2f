//! Whether observed counts fit expected shares.

/// Pearson's statistic for counts and weights of the same length.
pub(super) fn statistic(counts: &[u64], weights: &[u32]) -> f64 {
    let (total, weight): (u64, u32) = (counts.iter().sum(), weights.iter().sum());
    let expected = |weight_of: u32| total as f64 * f64::from(weight_of) / f64::from(weight);
    counts.iter().zip(weights).map(|(&count, &w)| (count as f64 - expected(w)).powi(2) / expected(w)).sum()
}

/// The value that the statistic exceeds once in a million by chance (Wilson and Hilferty's approximation).
pub(super) fn limit(classes: usize) -> f64 {
    /// Standard normal quantile of 1 - 1e-6.
    const Z: f64 = 4.753;
    let freedom = classes.saturating_sub(1).max(1) as f64;
    let spread = 2.0 / (9.0 * freedom);
    freedom * (1.0 - spread + Z * spread.sqrt()).powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistic_is_pearsons() {
        assert!((statistic(&[10, 20, 30], &[1, 1, 1]) - 10.0).abs() < 1e-9);
        assert!(statistic(&[10, 20, 30], &[1, 2, 3]).abs() < 1e-9);
    }

    #[test]
    fn the_limit_is_at_or_a_little_above_the_tables() {
        for (classes, table) in [(2, 23.93), (3, 27.63), (5, 33.38)] {
            let excess = limit(classes) / table;
            assert!((0.99..1.16).contains(&excess), "{classes} classes: {}", limit(classes));
        }
    }
}
