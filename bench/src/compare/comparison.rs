//! The course of a comparison: start all, check integrity, run the scenarios, keep what came of it.

#![allow(clippy::print_stdout, reason = "its tables are its result")]

use anyhow::{Context, Result};

use super::peers::{CORELAY, Installed};
use super::results::{Results, Sample};
use super::rounds::{self, Contestant, Effort, Place};
use super::run_directory::PeerRecord;
use super::scenarios::{self, CORELAY_ALL_CPUS, Contest, Scenario};
use super::{integrity, table};

/// The open loop runs at this part of what the slowest proxy can do.
const OPEN_PART: f64 = 0.5;
/// Rounds that find the rate of the open loop, if `rr-64` did not run anyway.
const CAPACITY_ROUNDS: usize = 1;
/// What each proxy must be able to carry at a time: far more than any load but `idle` opens.
const CONNECTIONS: usize = 1000;

/// What is known while it goes on.
pub(super) struct Comparison<'a> {
    installed: &'a [Installed],
    place: Place<'a>,
    all_cpus: &'a [usize],
    /// With the rate of the open loop, once it is known.
    pub(super) effort: Effort,
    pub(super) results: Results,
    pub(super) peers: Vec<PeerRecord>,
    /// Of all scenarios so far.
    pub(super) tables: String,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(
        installed: &'a [Installed],
        effort: Effort,
        place: Place<'a>,
        all_cpus: &'a [usize],
    ) -> Self {
        Self {
            installed,
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
        let mut contestants = Vec::new();
        for one in self.installed {
            let contestant = Contestant::start(one.peer.name, one, CONNECTIONS, &place)?;
            self.remember(one, &contestant);
            contestants.push(contestant);
        }
        integrity::check(&contestants, &place)?;
        for scenario in of(Contest::SideBySide) {
            if scenario.name == scenarios::OPEN {
                self.find_open_rate(&mut contestants)?;
            }
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
            rounds::idle(scenario, self.installed, self.effort, &place, results)?;
            self.show(scenario);
        }
        Ok(())
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

    fn remember(&mut self, installed: &Installed, contestant: &Contestant) {
        let peer = installed.peer;
        self.peers.push(PeerRecord::new(
            &contestant.name,
            peer.what,
            &installed.version,
            &contestant.plan,
            self.place.folder,
        ));
    }

    /// Half of what the slowest proxy does on as many connections, at the median.
    fn find_open_rate(&mut self, contestants: &mut [Contestant]) -> Result<()> {
        if self.effort.rate.is_some() {
            return Ok(());
        }
        let mut found = Results::default();
        if self.results.peers(scenarios::CAPACITY).is_empty() {
            let scenario = scenarios::by_name(scenarios::CAPACITY).context("no such scenario")?;
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
            let summary = results.summary(scenarios::CAPACITY, one.peer.name, Sample::rate)?;
            Some(summary.median)
        });
        let slowest = rates
            .min_by(f64::total_cmp)
            .context("no proxy has a rate")?;
        self.effort.rate = Some(slowest * OPEN_PART);
        Ok(())
    }

    /// Corelay on one CPU and on all; the load shares one with it.
    fn start_workers(&mut self) -> Result<Vec<Contestant>> {
        let corelay = self.installed.iter().find(|one| one.peer.name == CORELAY);
        let corelay = corelay.context("corelay does not take part")?;
        let everywhere = Place {
            proxy_cpus: self.all_cpus,
            ..self.place
        };
        let one = Contestant::start(CORELAY, corelay, CONNECTIONS, &self.place)?;
        // Its configuration is written to the same file: the first has read it by now.
        let all = Contestant::start(CORELAY_ALL_CPUS, corelay, CONNECTIONS, &everywhere)?;
        self.remember(corelay, &all);
        Ok(vec![one, all])
    }
}
