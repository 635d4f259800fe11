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
                fail_fast: true,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::machine;
    use crate::compare::peers::{self, Places};
    use crate::load::Control;
    use crate::servers::Server;

    #[test]
    fn a_wrong_byte_and_a_missing_digest_fail_and_the_control_passes() {
        let work = tempfile::tempdir().unwrap();
        let nowhere = Places {
            corelay: work.path(),
            beside: work.path(),
            work: work.path(),
        };
        let direct = peers::by_name("direct").unwrap().find(&nowhere).unwrap();
        let cpus = machine::allowed_cpus();
        let place = Place {
            folder: work.path(),
            proxy_cpus: &cpus,
            load_cpus: &cpus,
            pattern_bytes: 100_000,
            control: &Control::new(),
        };
        let start = || Contestant::start("direct", &direct, 10, &place).unwrap();
        check(&[start()], &place).unwrap();

        let wrong_seed = Server::source(place.pattern_bytes, PATTERN_SEED + 1);
        let wrong_seed = wrong_seed.start().unwrap();
        let mut harmed = start();
        harmed.targets.pattern = wrong_seed.endpoint().clone();
        let error = format!("{:#}", check(&[harmed], &place).unwrap_err());
        assert!(error.contains("direct, down"), "{error}");

        let cut = Server::source(place.pattern_bytes - 1, PATTERN_SEED);
        let cut = cut.start().unwrap();
        let mut short = start();
        short.targets.pattern = cut.endpoint().clone();
        check(&[short], &place).unwrap_err();

        let silent = Server::discard().start().unwrap();
        let mut silenced = start();
        silenced.targets.digest = silent.endpoint().clone();
        let error = format!("{:#}", check(&[silenced], &place).unwrap_err());
        assert!(error.contains("direct, up"), "{error}");
    }
}
