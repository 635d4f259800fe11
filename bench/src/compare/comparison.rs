//! The course of a comparison: start all, check integrity, run the scenarios, keep what came of it.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its tables are its result, and what is absent must be seen at once"
)]

use anyhow::{Context, Result};

use super::peers::{CORELAY, Installed};
use super::results::{BYTES_PER_GB, Results, Sample};
use super::rounds::{self, Contestant, Effort, Place};
use super::run_directory::PeerRecord;
use super::scenarios::{self, CORELAY_ALL_CPUS, Contest, Scenario};
use super::{integrity, table};

/// What runs at a rate, the open loop and paced streams, runs at this part of what the slowest proxy
/// can do.
const CAPACITY_PART: f64 = 0.5;
/// Rounds that find that rate, if the scenario that finds it did not run anyway.
const CAPACITY_ROUNDS: usize = 1;
/// What each proxy must be able to carry at a time: far more than any load but `idle` opens.
const CONNECTIONS: usize = 1000;

/// What is known while it goes on.
pub(super) struct Comparison<'a> {
    /// Those that run here; a peer that does not start is taken out.
    installed: Vec<Installed>,
    /// Peers that do not take part, and why.
    pub(super) absent: Vec<String>,
    place: Place<'a>,
    all_cpus: &'a [usize],
    /// With the rates of the open loop and of the paced streams, once they are known.
    pub(super) effort: Effort,
    pub(super) results: Results,
    pub(super) peers: Vec<PeerRecord>,
    /// Of all scenarios so far.
    pub(super) tables: String,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(
        (installed, absent): (Vec<Installed>, Vec<String>),
        effort: Effort,
        place: Place<'a>,
        all_cpus: &'a [usize],
    ) -> Self {
        Self {
            installed,
            absent,
            place,
            all_cpus,
            effort,
            results: Results::default(),
            peers: Vec::new(),
            tables: String::new(),
        }
    }

    /// Checks that every proxy carries bytes unharmed, then runs the scenarios and prints each one's
    /// table as it is done.
    pub(super) fn run(&mut self, scenarios: &[&'static Scenario]) -> Result<()> {
        let of = |contest| {
            scenarios
                .iter()
                .copied()
                .filter(move |one| one.contest == contest)
        };
        let place = self.place;
        let mut contestants = self.start_all()?;
        integrity::check(&contestants, &place)?;
        for scenario in of(Contest::SideBySide) {
            self.find_rate(scenario, &mut contestants)?;
            self.rounds(scenario, &mut contestants)?;
        }
        // One at a time means that the others are gone.
        drop(contestants);
        if of(Contest::Workers).next().is_some() {
            let mut contestants = self.start_workers()?;
            for scenario in of(Contest::Workers) {
                self.rounds(scenario, &mut contestants)?;
            }
        }
        for scenario in of(Contest::OneAtATime) {
            let results = &mut self.results;
            rounds::idle(scenario, &self.installed, self.effort, &place, results)?;
            self.show(scenario);
        }
        Ok(())
    }

    /// Starts all side by side. A peer that fails is left out: it must not cost the others their run.
    fn start_all(&mut self) -> Result<Vec<Contestant>> {
        let mut contestants = Vec::new();
        for one in std::mem::take(&mut self.installed) {
            let name = one.peer.name;
            match Contestant::start(name, &one, CONNECTIONS, &self.place) {
                Ok(contestant) => {
                    self.remember(&one, &contestant, one.peer.what);
                    contestants.push(contestant);
                    self.installed.push(one);
                }
                Err(error) if name == CORELAY => return Err(error),
                Err(error) => {
                    let line = format!("{name}: it does not start: {error:#}");
                    eprintln!("absent: {line}");
                    self.absent.push(line);
                }
            }
        }
        Ok(contestants)
    }

    fn rounds(&mut self, scenario: &Scenario, contestants: &mut [Contestant]) -> Result<()> {
        let results = &mut self.results;
        rounds::run(scenario, contestants, self.effort, &self.place, results)?;
        self.show(scenario);
        Ok(())
    }

    fn show(&mut self, scenario: &Scenario) {
        let text = table::scenario(&self.results, scenario);
        println!("{text}");
        self.tables.push_str(&text);
        self.tables.push('\n');
    }

    fn remember(&mut self, installed: &Installed, contestant: &Contestant, what: &str) {
        self.peers.push(PeerRecord::new(
            &contestant.name,
            what,
            &installed.version,
            &contestant.plan,
            self.place.folder,
        ));
    }

    /// For a scenario that runs at a rate: finds it, unless it was given.
    fn find_rate(&mut self, scenario: &Scenario, contestants: &mut [Contestant]) -> Result<()> {
        match scenario.name {
            scenarios::OPEN if self.effort.rate.is_none() => {
                let rate = self.part_of_the_slowest(scenarios::OPEN_CAPACITY, contestants)?;
                self.effort.rate = Some(rate);
            }
            scenarios::MIXED_PACED if self.effort.bulk_bytes_per_second.is_none() => {
                let rate = self.part_of_the_slowest(scenarios::MIXED_CAPACITY, contestants)?;
                self.effort.bulk_bytes_per_second = Some(rate * BYTES_PER_GB);
            }
            _ => {}
        }
        Ok(())
    }

    /// Half of what the slowest proxy does in a scenario, at the median, in its unit per second.
    fn part_of_the_slowest(&self, capacity: &str, contestants: &mut [Contestant]) -> Result<f64> {
        let mut found = Results::default();
        if self.results.peers(capacity).is_empty() {
            let scenario = scenarios::by_name(capacity).context("no such scenario")?;
            let effort = Effort {
                rounds: CAPACITY_ROUNDS,
                ..self.effort
            };
            rounds::run(scenario, contestants, effort, &self.place, &mut found)?;
        }
        let results = if found.samples.is_empty() {
            &self.results
        } else {
            &found
        };
        let proxies = self.installed.iter().filter(|one| !one.is_direct());
        let rates = proxies.filter_map(|one| {
            let summary = results.summary(capacity, one.peer.name, Sample::rate)?;
            Some(summary.median)
        });
        let slowest = rates
            .min_by(f64::total_cmp)
            .context("no proxy has a rate")?;
        Ok(slowest * CAPACITY_PART)
    }

    /// Corelay on one CPU and on all; the load shares one with it.
    fn start_workers(&mut self) -> Result<Vec<Contestant>> {
        let corelay = self.installed.iter().find(|one| one.peer.name == CORELAY);
        let corelay = corelay.context("corelay does not take part")?.clone();
        let everywhere = Place {
            proxy_cpus: self.all_cpus,
            ..self.place
        };
        let one = Contestant::start(CORELAY, &corelay, CONNECTIONS, &self.place)?;
        // Its configuration is written to the same file: the first has read it by now.
        let all = Contestant::start(CORELAY_ALL_CPUS, &corelay, CONNECTIONS, &everywhere)?;
        self.remember(&corelay, &all, "Corelay with a worker on every CPU");
        Ok(vec![one, all])
    }
}
