//! What the tests of the algorithms share.

use super::hash::mix;
use super::pool::Pool;
use super::{Candidate, hash_text};
use crate::units::ServerId;

/// A healthy ordinary server, keyed by an address made of its id.
pub(super) fn candidate(id: u16, weight: u16) -> Candidate {
    Candidate {
        id: ServerId(id),
        weight,
        backup: false,
        available: true,
        slow_start: None,
        key: hash_text(&format!("10.0.{}.{}:9000", id >> 8, id & 0xff)),
    }
}

/// Healthy ordinary servers with ids 0, 1, ...
pub(super) fn candidates(weights: &[u16]) -> Vec<Candidate> {
    let numbered = (0..).zip(weights);
    numbered
        .map(|(id, weight)| candidate(id, *weight))
        .collect()
}

pub(super) fn pool(weights: &[u16]) -> Pool {
    Pool::new(&candidates(weights), false)
}

/// Hashes of so many clients.
pub(super) fn clients(count: u64) -> impl Iterator<Item = u64> {
    (1..=count).map(mix)
}

/// Pearson's test that `counts` were drawn in proportion to `weights`, at a significance of 0.001:
/// one seed in a thousand fails by chance, and the seeds are fixed.
pub(super) fn assert_fits(counts: &[u32], weights: &[u16]) {
    let (chi_square, critical) = goodness_of_fit(counts, weights);
    assert!(
        chi_square < critical,
        "{counts:?} for {weights:?}: {chi_square:.1}, critical {critical:.1}"
    );
}

/// Chi-square and its critical value.
fn goodness_of_fit(counts: &[u32], weights: &[u16]) -> (f64, f64) {
    /// The normal distribution's quantile at 0.999.
    const QUANTILE: f64 = 3.0902;
    assert_eq!(counts.len(), weights.len());
    let total: f64 = counts.iter().copied().map(f64::from).sum();
    let weight_total: f64 = weights.iter().copied().map(f64::from).sum();
    let terms = counts.iter().zip(weights).map(|(count, weight)| {
        let expected = total * f64::from(*weight) / weight_total;
        assert!(expected >= 5.0, "too few draws for the test");
        (f64::from(*count) - expected).powi(2) / expected
    });
    let chi_square: f64 = terms.sum();
    // Wilson and Hilferty's approximation of the critical value, up to 3 % too large.
    let freedom = (counts.len() - 1) as f64;
    let spread = 2.0 / (9.0 * freedom);
    let critical = freedom * (1.0 - spread + QUANTILE * spread.sqrt()).powi(3);
    (chi_square, critical)
}

#[test]
fn the_goodness_of_fit_test_tells_good_from_bad() {
    let (good, critical) = goodness_of_fit(&[1_020, 980, 2_000], &[1, 1, 2]);
    // From a table of the distribution: two degrees of freedom, 0.001.
    assert!((13.82..13.82 * 1.03).contains(&critical), "{critical}");
    assert!((good - 0.8).abs() < 1e-9, "{good}");
    let (bad, _) = goodness_of_fit(&[1_100, 900, 2_000], &[1, 1, 2]);
    assert!((bad - 20.0).abs() < 1e-9 && bad > critical, "{bad}");
}
