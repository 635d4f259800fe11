//! To which upstream a listener's next session goes: always the same, or a split by weight.

use std::cell::RefCell;
use std::net::SocketAddr;

use crate::balance::{Part, Split, SplitBy, hash_address};
use crate::units::{CoreId, UpstreamId};

/// Where a listener's sessions go; the same for all cores.
#[derive(Debug)]
pub enum Target {
    /// To one upstream.
    One(UpstreamId),
    /// To several by weight; at least one has one.
    Split {
        /// What decides.
        by: SplitBy,
        /// Among which.
        parts: Vec<Part>,
        /// Where random draws begin; each core goes on from it in its own way.
        seed: u64,
    },
}

/// The same on one core.
pub(super) enum Way {
    One(UpstreamId),
    Split(RefCell<Split>),
}

impl Way {
    pub(super) fn new(target: &Target, core: CoreId) -> Self {
        match target {
            Target::One(upstream) => Way::One(*upstream),
            Target::Split { by, parts, seed } => {
                let split = Split::new(*by, parts, *seed, usize::from(core.0));
                let split = split.expect("checked by the configuration");
                Way::Split(RefCell::new(split))
            }
        }
    }

    pub(super) fn next(&self, client: Option<SocketAddr>) -> UpstreamId {
        match self {
            Way::One(upstream) => *upstream,
            // A split by source has clients with addresses: checked by the configuration.
            Way::Split(split) => split.borrow_mut().pick(client.map_or(0, hash_address)),
        }
    }
}
