//! Pseudo-random numbers for spreading load, from a seed. Not for secrets: who sees one output
//! knows the rest.

use super::hash::{mix, scale};

/// SplitMix64 (Steele, Lea and Flood, 2014): eight bytes of state and a few instructions a draw.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A generator for one of several users of a seed, so that cores with one seed do not all
    /// choose the same servers.
    pub(super) fn stream(seed: u64, index: usize) -> Self {
        Self::new(mix(seed ^ mix(index as u64)))
    }

    /// Uniform over all of `u64`.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// Uniform below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        debug_assert!(bound > 0, "no number is below 0");
        scale(self.next_u64(), bound)
    }
}

/// An interval that is up to so many percent shorter or longer, so that what recurs in several places does not
/// recur in step; at least 1. The mean stays what it is. `draw` is any 64 random bits.
pub fn varied_us(interval_us: u64, percent: u8, draw: u64) -> u64 {
    let percent = u128::from(percent.min(100));
    let swing_us = (u128::from(interval_us) * percent / 100) as u64;
    // 0 ..= 2 × swing, each as likely as the other, but for what a division of 2^64 leaves.
    let offset_us = (u128::from(draw) % (2 * u128::from(swing_us) + 1)) as u64;
    (interval_us - swing_us).saturating_add(offset_us).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_gives_its_published_values() {
        let mut random = Random::new(1_234_567);
        let drawn: Vec<u64> = (0..5).map(|_| random.next_u64()).collect();
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(drawn, published);
    }

    #[test]
    fn streams_of_one_seed_differ() {
        let firsts: std::collections::BTreeSet<u64> = (0..64)
            .map(|index| Random::stream(7, index).next_u64())
            .collect();
        assert_eq!(firsts.len(), 64);
    }
}
