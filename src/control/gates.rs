//! From the configuration to the gates of the listeners; reads the list files.

use std::fs::File;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;

use super::seed;
use crate::config::Config;
use crate::config::model::{
    self, AccessSource, ConnectionRate, Listener, OnRefuse, PerSource, Verdict,
};
use crate::policy::access::{Access, Action, Rule};
use crate::policy::bucket::{Rate, SharedBucket};
use crate::policy::limit::SharedLimit;
use crate::policy::list::{self, ListError};
use crate::policy::sources::{Options, Sources};
use crate::sys::clock;
use crate::units::network::Network;
use crate::worker::gate::Gate;

/// A list file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("listeners.{listener}.access: {file}: {problem}")]
pub struct ListFileError {
    listener: String,
    file: String,
    /// Problem and remedy.
    problem: String,
}

/// Reads every list file for its errors alone.
///
/// # Errors
/// The first file that cannot be used.
pub fn check_lists(config: &Config) -> Result<(), ListFileError> {
    for listener in &config.listeners {
        let access = listener.access.as_ref();
        access.map(|list| access_of(listener, list)).transpose()?;
    }
    Ok(())
}

/// The gates, by listener; `None` for one that lets everybody in.
pub(super) fn gates(config: &Config) -> Result<Vec<Option<Arc<Gate>>>, ListFileError> {
    config.listeners.iter().map(gate).collect()
}

fn gate(listener: &Listener) -> Result<Option<Arc<Gate>>, ListFileError> {
    let access = listener.access.as_ref();
    let access = access.map(|list| access_of(listener, list)).transpose()?;
    let limits = &listener.limits;
    let bucket = |it| SharedBucket::new(rate(it), clock::now_us());
    let gate = Gate {
        access,
        connections: limits.connections.map(SharedLimit::new),
        rate: limits.rate.map(bucket),
        sources: sources(&limits.per_source),
        on_table_full: action(limits.per_source.on_full),
        resets: listener.on_refuse == OnRefuse::Reset,
    };
    let is_open = gate.access.is_none()
        && gate.connections.is_none()
        && gate.rate.is_none()
        && gate.sources.is_none();
    Ok((!is_open).then(|| Arc::new(gate)))
}

fn access_of(listener: &Listener, list: &model::Access) -> Result<Access, ListFileError> {
    let mut rules = Vec::new();
    for it in &list.rules {
        let action = action(it.verdict);
        for source in &it.sources {
            match source {
                AccessSource::Network(network) => rules.push(Rule {
                    action,
                    network: *network,
                }),
                AccessSource::File(path) => {
                    let networks = read(&listener.name, path)?;
                    let rule = |network| Rule { action, network };
                    rules.extend(networks.into_iter().map(rule));
                }
            }
        }
    }
    Ok(Access::new(rules, action(list.otherwise)))
}

fn read(listener: &str, path: &Path) -> Result<Vec<Network>, ListFileError> {
    let networks = File::open(path)
        .map_err(ListError::Read)
        .and_then(list::read);
    networks.map_err(|error| ListFileError {
        listener: listener.to_owned(),
        file: path.display().to_string(),
        problem: in_words(&error),
    })
}

/// One line: of many bad lines the first, whose remedy is that of most of them.
fn in_words(error: &ListError) -> String {
    match error {
        ListError::Lines(lines) => {
            let first = &lines.shown[0];
            format!("{error}, first {first}; {}", first.remedy())
        }
        ListError::Read(_) | ListError::TooLarge | ListError::TooMany => {
            format!("{error}; {}", error.remedy())
        }
    }
}

fn sources(limits: &PerSource) -> Option<Sources> {
    if limits.connections.is_none() && limits.rate.is_none() {
        return None;
    }
    Some(Sources::new(Options {
        v4_prefix_bits: limits.v4_prefix_bits,
        v6_prefix_bits: limits.v6_prefix_bits,
        connections_max: limits.connections.and_then(NonZeroU32::new),
        rate: limits.rate.map(rate),
        entries_max: NonZeroUsize::new(limits.table as usize).unwrap_or(NonZeroUsize::MIN),
        seed: seed(),
    }))
}

fn rate(rate: ConnectionRate) -> Rate {
    let at_least_one = |number: u32| NonZeroU64::new(number.into()).unwrap_or(NonZeroU64::MIN);
    Rate::new(at_least_one(rate.per_second), at_least_one(rate.burst))
}

fn action(verdict: Verdict) -> Action {
    match verdict {
        Verdict::Allow => Action::Allow,
        Verdict::Deny => Action::Deny,
    }
}
