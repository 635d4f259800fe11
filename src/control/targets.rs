//! From the configuration to where the sessions of a listener go.

use crate::balance::{Part, SplitBy, hash_text};
use crate::config::Config;
use crate::config::model;
use crate::units::UpstreamId;
use crate::worker::way::Target;

/// Where a listener's sessions go. Upstreams are known by their names, so that another order of them
/// moves nobody.
pub(super) fn target(config: &Config, target: &model::Target, seed: u64) -> Target {
    let part = |&(upstream, weight): &(UpstreamId, u16)| Part {
        upstream,
        weight,
        key: hash_text(&config.upstreams[usize::from(upstream.0)].name),
    };
    match target {
        model::Target::One(upstream) => Target::One(*upstream),
        model::Target::Split { by, parts } => Target::Split {
            by: match by {
                model::SplitBy::Random => SplitBy::Random,
                model::SplitBy::Source => SplitBy::Source,
            },
            parts: parts.iter().map(part).collect(),
            seed,
        },
    }
}

/// Each upstream that a listener's sessions may go to, fallbacks aside.
pub(super) fn upstreams_of(listener: &model::Listener) -> Vec<UpstreamId> {
    let mut upstreams = match &listener.target {
        model::Target::One(upstream) => vec![*upstream],
        model::Target::Split { parts, .. } => parts.iter().map(|(upstream, _)| *upstream).collect(),
    };
    if let Some(route) = &listener.route {
        upstreams.extend(route.alpn.iter().map(|(_, upstream)| *upstream));
        upstreams.extend(route.names.iter().map(|(_, upstream)| *upstream));
        upstreams.extend(route.no_name.iter().chain(&route.other_protocol));
    }
    upstreams.sort_unstable();
    upstreams.dedup();
    upstreams
}
