//! Weighted rendezvous hashing (Thaler and Ravishankar, 1996): every entry scores a client by
//! itself, the best score wins.
//!
//! As no score depends on another entry, an entry that leaves moves only its own clients, and one
//! that comes or gains weight only takes clients, in proportion to the weights. The price is that
//! each pick looks at every entry.
//!
//! The scores are arrival times of independent exponential processes, -ln(u) / weight: the chance to
//! be first is the weight over the sum of weights. The logarithm is made of additions,
//! multiplications and divisions alone, which IEEE 754 defines to the last bit, because a math
//! library's differs from host to host.

use super::hash::mix;
use std::f64::consts::{LN_2, SQRT_2};

/// Bits of an `f64`'s significand, and of the numbers scored.
const UNIT_BITS: u32 = 53;

/// Of entries with a key and a weight (not 0), the one that comes first for `hash`.
pub(super) fn first<T>(hash: u64, entries: impl Iterator<Item = (T, u64, u16)>) -> Option<T> {
    let mut best: Option<(T, f64)> = None;
    for (entry, key, weight) in entries {
        let score = arrival(hash, key) / f64::from(weight);
        if best.as_ref().is_none_or(|(_, least)| score < *least) {
            best = Some((entry, score));
        }
    }
    best.map(|(entry, _)| entry)
}

/// When `key` would come to `hash` with weight 1: exponentially distributed, mean 1.
fn arrival(hash: u64, key: u64) -> f64 {
    // The key is mixed first, so that keys which differ in a few bits do not pair clients up.
    let bits = mix(hash ^ mix(key));
    minus_ln((bits >> (u64::BITS - UNIT_BITS)) + 1)
}

/// -ln(`parts` / 2^53) for `parts` from 1 to 2^53.
fn minus_ln(parts: u64) -> f64 {
    /// The series' coefficients 1/3, 1/5, ... from the last. With |s| at most 0.172 what is left
    /// out is below 1e-14.
    const ODD: [f64; 7] = [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0];
    let exponent = parts.ilog2();
    // Both exact: `parts` fits the significand, and the divisor is a power of two.
    let mut significand = parts as f64 / (1u64 << exponent) as f64;
    let mut halvings = UNIT_BITS - exponent;
    // Into [1/√2, √2], where the series is short.
    if significand > SQRT_2 {
        significand /= 2.0;
        halvings -= 1;
    }
    // ln(m) = 2 (s + s³/3 + s⁵/5 + ...) with s = (m - 1) / (m + 1).
    let s = (significand - 1.0) / (significand + 1.0);
    let square = s * s;
    let tail = ODD.iter().fold(0.0, |sum, odd| (sum + 1.0 / odd) * square);
    f64::from(halvings) * LN_2 - 2.0 * s * (1.0 + tail)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_fits, clients};
    use super::*;
    use proptest::prelude::*;

    fn key(index: usize) -> u64 {
        super::super::hash_text(&format!("192.0.2.{index}:80"))
    }

    fn winner(hash: u64, weights: &[u16]) -> usize {
        let entries = weights
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight > 0);
        let keyed = entries.map(|(index, weight)| (index, key(index), *weight));
        first(hash, keyed).expect("an entry")
    }

    fn counts(weights: &[u16]) -> Vec<u32> {
        let mut counts = vec![0; weights.len()];
        clients(20_000).for_each(|hash| counts[winner(hash, weights)] += 1);
        counts
    }

    #[test]
    fn the_logarithm_is_one_to_ten_digits() {
        let edges = [1, 2, 3, (1 << 53) - 1, (1 << 53) / 3, 6_369_051_672_525_773];
        for parts in edges
            .into_iter()
            .chain(clients(10_000).map(|bits| (bits >> 11) + 1))
        {
            let expected = -(parts as f64 / (1u64 << 53) as f64).ln();
            let error = (minus_ln(parts) - expected).abs();
            assert!(error <= 1e-10 * expected, "{parts}: off by {error:e}");
        }
        assert_eq!(minus_ln(1 << 53), 0.0);
    }

    /// To the last bit, as on every other host.
    #[test]
    fn the_scores_are_pinned() {
        let scores = [(0, 0), (1, 2), (u64::MAX, 1 << 63)].map(|(h, k)| arrival(h, k).to_bits());
        let pinned = [
            4_630_367_062_351_886_330,
            4_609_010_172_208_616_392,
            4_602_606_269_753_231_878,
        ];
        assert_eq!(scores, pinned);
        let winners: Vec<usize> = clients(16)
            .map(|hash| winner(hash, &[1, 2, 3, 4]))
            .collect();
        assert_eq!(winners, [2, 0, 1, 3, 3, 1, 3, 1, 2, 1, 3, 2, 2, 3, 2, 0]);
    }

    #[test]
    fn clients_are_shared_out_by_weight() {
        for weights in [&[1u16; 5][..], &[1, 2, 5, 12], &[256, 1, 40, 40, 100, 3]] {
            assert_fits(&counts(weights), weights);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Also removal and addition, which are a weight from or to 0.
        #[test]
        fn a_change_of_one_weight_moves_clients_only_from_or_to_that_entry(
            weights in prop::collection::vec(1u16..=256, 2..10),
            index in any::<prop::sample::Index>(), changed_to in 0u16..=256,
        ) {
            let changed_at = index.index(weights.len());
            let mut changed = weights.clone();
            changed[changed_at] = changed_to;
            for hash in clients(500) {
                let (before, after) = (winner(hash, &weights), winner(hash, &changed));
                if before != after {
                    let gains = changed_to > weights[changed_at];
                    prop_assert_eq!(if gains { after } else { before }, changed_at);
                }
            }
        }

        #[test]
        fn the_order_of_the_entries_does_not_matter(
            weights in prop::collection::vec(1u16..=256, 1..10), hash: u64,
        ) {
            let entries = || weights.iter().enumerate().map(|(at, weight)| (at, key(at), *weight));
            let reversed: Vec<_> = entries().collect();
            prop_assert_eq!(first(hash, entries()), first(hash, reversed.into_iter().rev()));
        }
    }

    /// Clients of a removed entry go to all others by weight, not to a neighbour.
    #[test]
    fn those_who_move_are_shared_out_by_weight() {
        let mut moved = [0; 3];
        for hash in clients(40_000) {
            if winner(hash, &[2, 3, 4, 9]) == 3 {
                moved[winner(hash, &[2, 3, 4, 0])] += 1;
            }
        }
        assert_fits(&moved, &[2, 3, 4]);
    }
}
