//! Before anything is measured: every proxy must carry every byte unharmed, both ways.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::rounds::{Contestant, PATTERN_SEED, Place, check_stop};
use crate::load::bulk::{self, Direction};

/// Time for one direction; only a proxy that hangs needs it.
const DEADLINE: Duration = Duration::from_secs(60);
/// Streams at a time, so that bytes of one could turn up in another.
pub(super) const STREAMS: u64 = 2;

/// Sends [`Place::pattern_bytes`] on each of [`STREAMS`] streams through each contestant, first up
/// (compared by SHA-256), then down (compared byte by byte).
/// Any difference, error or missing byte fails the run.
pub(super) fn check(contestants: &[Contestant], place: &Place<'_>) -> Result<()> {
    for contestant in contestants {
        for direction in [Direction::Up, Direction::Down] {
            let to = match direction {
                Direction::Up => &contestant.targets.digest,
                _ => &contestant.targets.pattern,
            };
            let options = bulk::Options {
                to: to.clone(),
                connections: STREAMS as usize,
                cpus: place.load_cpus.to_vec(),
                duration: DEADLINE,
                direction,
                bytes: Some(place.pattern_bytes),
                verify: true,
                seed: PATTERN_SEED,
                ..bulk::Options::default()
            };
            let name = &contestant.name;
            let what = || format!("integrity of {name}, {}", direction.name());
            let report = bulk::run(&options, place.control).with_context(what)?;
            check_stop(place.control)?;
            ensure!(
                report.errors.is_empty() && report.operations == STREAMS,
                "{}: {} of {STREAMS} streams came through; errors: {:?}",
                what(),
                report.operations,
                report.errors
            );
        }
    }
    Ok(())
}
