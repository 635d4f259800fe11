//! A listener's connections split over upstreams by weight, as for a canary release.

use super::hash::mix;
use super::{Random, WEIGHT_MAX, rendezvous};
use crate::units::UpstreamId;

/// Keeps the split's choice apart from that of a server by the same hash: else the clients of an
/// upstream would not be a fair sample to its servers.
const SPLIT_DOMAIN: u64 = 0x7370_6c69_7420_6279;

/// One of the upstreams of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What a pick returns.
    pub upstream: UpstreamId,
    /// Its share of the connections, 0 to [`WEIGHT_MAX`]; 0 means none.
    pub weight: u16,
    /// A stable hash of its name ([`hash_text`](super::hash_text)): clients stay when the upstreams
    /// in the configuration change their order.
    pub key: u64,
}

/// What decides on a connection's upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitBy {
    /// Each connection is drawn by itself.
    Random,
    /// The client's hash: a client always lands on the same upstream while the weights stay. An
    /// upstream that gains weight only takes clients, one that loses weight only gives some away.
    Source,
}

/// Chooses an upstream per connection.
#[derive(Clone, Debug)]
pub struct Split {
    by: SplitBy,
    parts: Vec<Part>,
    total: u64,
    random: Random,
}

impl Split {
    /// `None` if no part has a weight. The seed is for [`SplitBy::Random`]; cores, which differ in
    /// `offset`, draw different numbers from one.
    pub fn new(by: SplitBy, parts: &[Part], seed: u64, offset: usize) -> Option<Self> {
        let parts: Vec<Part> = parts
            .iter()
            .copied()
            .filter(|part| part.weight > 0)
            .collect();
        assert!(
            parts.iter().all(|part| part.weight <= WEIGHT_MAX),
            "checked by the configuration"
        );
        let total = parts.iter().map(|part| u64::from(part.weight)).sum();
        (total > 0).then(|| Self {
            by,
            parts,
            total,
            random: Random::stream(seed, offset),
        })
    }

    /// The upstream of the next connection; `hash` is of the client, and not used by
    /// [`SplitBy::Random`].
    pub fn pick(&mut self, hash: u64) -> UpstreamId {
        match self.by {
            SplitBy::Random => self.drawn(),
            SplitBy::Source => {
                let parts = self.parts.iter();
                let keyed = parts.map(|part| (part.upstream, part.key, part.weight));
                rendezvous::first(mix(hash ^ SPLIT_DOMAIN), keyed).expect("there is a part")
            }
        }
    }

    fn drawn(&mut self) -> UpstreamId {
        let mut number = self.random.below(self.total);
        for part in &self.parts {
            let weight = u64::from(part.weight);
            if number < weight {
                return part.upstream;
            }
            number -= weight;
        }
        unreachable!("drawn below the sum of the weights")
    }
}

#[cfg(test)]
mod tests;
