//! The measuring: contestants that run side by side, loaded in turn, round after round.
//!
//! A B C … A B C …: whatever drifts on the machine hits all alike, and figures of the same round
//! belong together. The first round warms up and is thrown away.

use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::configure::{Route, Setup};
use super::peers::Installed;
use super::process::{self, Plan, Proxy};
use super::results::{Latency, Results, Sample, Unit};
use super::scenarios::{Drive, Scenario, Targets};
use super::usage::{Footprint, SystemTime, Usage, UserMemory};
use crate::endpoint::Endpoint;
use crate::load::{Control, Report, histogram, idle};
use crate::pattern::Random;
use crate::servers::{Handle, Server};

/// Between two looks at threads and memory under load: rare, for the look costs CPU of the load.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// After a load: what a proxy does late is its own cost, and the kernel's account of a running
/// thread is exact only once it sleeps.
const SETTLE: Duration = Duration::from_millis(20);
/// After connections were opened: what is freed with a delay is freed.
const IDLE_SETTLE: Duration = Duration::from_millis(500);
/// What a proxy must carry beyond the idle connections: those that look whether it listens.
const SPARE_CONNECTIONS: usize = 100;
/// Rounds of idle connections; they hardly differ.
const IDLE_ROUNDS: usize = 3;
/// Seed of the patterns, known to whoever verifies them.
pub(super) const PATTERN_SEED: u64 = 1;

/// Where everything happens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// For configurations and output of the proxies.
    pub(super) folder: &'a Path,
    /// Of the proxies.
    pub(super) proxy_cpus: &'a [usize],
    /// Of the load; the servers run there too.
    pub(super) load_cpus: &'a [usize],
    /// Length of one stream of the servers that send a pattern.
    pub(super) pattern_bytes: u64,
    pub(super) control: &'a Control,
}

/// A proxy with its own servers: nobody meets ports in TIME_WAIT that another has left.
#[derive(Debug)]
pub(super) struct Contestant {
    pub(super) name: String,
    pub(super) targets: Targets,
    /// As it was started.
    pub(super) plan: Plan,
    proxy: Option<Proxy>,
    _servers: Vec<Handle>,
}

impl Contestant {
    /// Starts servers and proxy; `connections` is what the proxy must be able to carry at a time.
    pub(super) fn start(
        name: &str,
        installed: &Installed,
        connections: usize,
        place: &Place<'_>,
    ) -> Result<Self> {
        let servers = [
            ("echo", Server::echo()),
            ("source", Server::blast()),
            ("sink", Server::discard()),
            ("pattern", Server::source(place.pattern_bytes, PATTERN_SEED)),
            ("digest", Server::digest()),
            ("answers", Server::answers()),
        ];
        let mut handles = Vec::new();
        let mut routes = Vec::new();
        for (name, server) in servers {
            let server = server.start().context("starting a test server")?;
            routes.push(Route {
                name,
                listen: process::free_address()?,
                server: server.address(),
            });
            handles.push(server);
        }
        let plan = installed.plan(&Setup {
            routes: &routes,
            cpus: place.proxy_cpus,
            connections,
            folder: place.folder,
        });
        let proxy = if plan.commands.is_empty() {
            None
        } else {
            Some(Proxy::start(name, &plan, place.proxy_cpus, place.folder)?)
        };
        let target = |index: usize| {
            let route: &Route = &routes[index];
            Endpoint::Tcp(if proxy.is_some() {
                route.listen
            } else {
                route.server
            })
        };
        Ok(Self {
            name: name.to_owned(),
            targets: Targets {
                echo: target(0),
                source: target(1),
                sink: target(2),
                pattern: target(3),
                digest: target(4),
                answers: target(5),
            },
            plan,
            proxy,
            _servers: handles,
        })
    }

    fn processes(&self) -> Vec<u32> {
        self.proxy.as_ref().map_or(Vec::new(), Proxy::processes)
    }

    fn check_alive(&mut self) -> Result<()> {
        self.proxy.as_mut().map_or(Ok(()), Proxy::check_alive)
    }
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    pub(super) rounds: usize,
    pub(super) duration: Duration,
    /// Requests per second of the open loop.
    pub(super) rate: Option<f64>,
    /// What the paced streams move together.
    pub(super) bulk_bytes_per_second: Option<f64>,
    /// Connections of the scenario that holds them.
    pub(super) idle_connections: usize,
    /// The limit of descriptors of this process, which the proxies inherit.
    pub(super) descriptors: u64,
}

/// Each is loaded for this part of a round's time before it is measured.
const WARM_UP_PART: u32 = 4;

/// Loads the contestants in turn, in another order each round, and adds what was measured to the results.
pub(super) fn run(
    scenario: &Scenario,
    contestants: &mut [Contestant],
    effort: Effort,
    place: &Place<'_>,
    results: &mut Results,
) -> Result<()> {
    let mut random = Random::new(1);
    for round in 0..=effort.rounds {
        for index in shuffled(contestants.len(), &mut random) {
            let contestant = &mut contestants[index];
            progress(scenario.name, round, effort.rounds, &contestant.name);
            let targets = contestant.targets.clone();
            let drive = |duration| Drive {
                targets: &targets,
                cpus: place.load_cpus,
                duration,
                rate: effort.rate,
                bulk_bytes_per_second: effort.bulk_bytes_per_second,
                control: place.control,
            };
            // The proxies' CPU may have been idle until now: a host takes such a CPU away.
            let _ = scenario.drive(&drive(effort.duration / WARM_UP_PART));
            let (sample, report) = measure(scenario, contestant, round, &drive(effort.duration));
            check_stop(place.control)?;
            if round == 0 {
                continue;
            }
            results.samples.push(sample);
            if let Some(report) = report {
                let key = (scenario.name, contestant.name.clone());
                if let Some(tail_ns) = &report.tail_ns {
                    let sum = results.tail_ns.entry(key.clone());
                    let sum = sum.or_insert_with(histogram);
                    sum.add(tail_ns).context("adding waits for the tail")?;
                }
                let sum = results.latency_ns.entry(key).or_insert_with(histogram);
                sum.add(latency_of(&report)).context("adding latencies")?;
            }
        }
    }
    progress_end();
    Ok(())
}

/// Each round has an order of its own: always after the same neighbour, one would always inherit what that one
/// made of the machine.
fn shuffled(count: usize, random: &mut Random) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    // Fisher and Yates.
    for last in (1..count).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    order
}

/// One contestant, once. What fails is an error of the sample: one bad peer must not end the rest.
fn measure(
    scenario: &Scenario,
    contestant: &mut Contestant,
    round: usize,
    drive: &Drive<'_>,
) -> (Sample, Option<Report>) {
    let mut sample = Sample::new(scenario.name, scenario.unit, &contestant.name, round);
    if let Err(error) = contestant.check_alive() {
        sample.errors.insert(format!("{error:#}"), 1);
        return (sample, None);
    }
    let processes = contestant.processes();
    let done = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&processes, &done));
        let before = Account::of(&processes);
        let outcome = scenario.drive(drive);
        thread::sleep(SETTLE);
        sample.account(Account::of(&processes), before);
        done.store(true, Ordering::Release);
        watcher.thread().unpark();
        sample.occupy(watcher.join().unwrap_or_default());
        outcome
    });
    match outcome {
        Ok(report) => {
            sample.report(&report);
            (sample, Some(report))
        }
        Err(error) => {
            sample.errors.insert(format!("{error:#}"), 1);
            (sample, None)
        }
    }
}

fn watch(processes: &[u32], done: &AtomicBool) -> Footprint {
    let mut most = Footprint::default();
    while !done.load(Ordering::Acquire) {
        thread::park_timeout(WATCH_INTERVAL);
        most = most.max(Footprint::of(processes));
    }
    most
}

/// All counters at one moment.
struct Account {
    at: Instant,
    proxy: Usage,
    /// Load, servers and all proxies: this process and its children.
    ours: Usage,
    system: SystemTime,
}

impl Account {
    fn of(proxy: &[u32]) -> Self {
        Self {
            at: Instant::now(),
            proxy: Usage::of(proxy),
            ours: Usage::of(&[std::process::id()]),
            system: SystemTime::now(),
        }
    }
}

impl Sample {
    fn account(&mut self, after: Account, before: Account) {
        let usage = after.proxy - before.proxy;
        let system = after.system - before.system;
        let ours = after.ours - before.ours;
        let measured = after.at.duration_since(before.at);
        self.measured_ns = u64::try_from(measured.as_nanos()).unwrap_or(u64::MAX);
        self.foreign_ns = system.busy_ns.saturating_sub(ours.cpu_ns);
        self.cpu_ns = usage.cpu_ns;
        self.user_ns = usage.user_ns;
        self.system_ns = usage.system_ns;
        self.switches_voluntary = usage.switches_voluntary;
        self.switches_involuntary = usage.switches_involuntary;
        self.machine_busy_ns = system.busy_ns;
        self.machine_steal_ns = system.steal_ns;
    }

    fn occupy(&mut self, footprint: Footprint) {
        self.threads = footprint.threads;
        self.io_workers = footprint.io_workers;
        self.resident_bytes = footprint.resident_bytes;
    }

    fn report(&mut self, report: &Report) {
        self.operations = report.operations;
        self.bytes = report.bytes_sent + report.bytes_received;
        let bytes_per_second = report.rates.bytes_sent + report.rates.bytes_received;
        self.elapsed_seconds = match self.unit {
            Unit::Gigabyte if bytes_per_second > 0.0 => self.bytes as f64 / bytes_per_second,
            _ => report.elapsed.as_secs_f64(),
        };
        self.latency = Latency::of(latency_of(report));
        self.tail = report.tail_ns.as_ref().and_then(Latency::of);
        self.errors = report.errors.clone();
    }
}

/// What a user would wait: from the intended start where there is one.
fn latency_of(report: &Report) -> &hdrhistogram::Histogram<u64> {
    report.intended_ns.as_ref().unwrap_or(&report.service_ns)
}

/// Memory of idle connections: each proxy afresh and alone, so that nothing that an earlier load
/// left behind is reused.
pub(super) fn idle(
    scenario: &Scenario,
    installed: &[Installed],
    effort: Effort,
    place: &Place<'_>,
    results: &mut Results,
) -> Result<()> {
    let rounds = effort.rounds.min(IDLE_ROUNDS);
    for round in 1..=rounds {
        for one in installed.iter().filter(|one| !one.is_direct()) {
            let name = one.peer.name;
            progress(scenario.name, round, rounds, name);
            let wanted = effort.idle_connections;
            let connections = one.peer.fitting(wanted, effort.descriptors);
            let capacity = connections + SPARE_CONNECTIONS;
            let mut sample = Sample::new(scenario.name, scenario.unit, name, round);
            let held = Contestant::start(name, one, capacity, place)
                .and_then(|contestant| hold(&contestant, connections, &mut sample));
            if let Err(error) = held {
                sample.errors.insert(format!("{error:#}"), 1);
            }
            check_stop(place.control)?;
            results.samples.push(sample);
        }
    }
    progress_end();
    Ok(())
}

fn hold(contestant: &Contestant, connections: usize, sample: &mut Sample) -> Result<()> {
    let processes = contestant.processes();
    let before = UserMemory::of(&processes);
    let held = idle::hold(&contestant.targets.echo, connections)?;
    thread::sleep(IDLE_SETTLE);
    let after = UserMemory::of(&processes);
    sample.occupy(Footprint::of(&processes));
    sample.hold(before, after, held.len());
    Ok(())
}

impl Sample {
    fn hold(&mut self, before: UserMemory, after: UserMemory, connections: usize) {
        self.operations = connections as u64;
        let each = |after: u64, before: u64| {
            Some((after as f64 - before as f64) / connections.max(1) as f64)
        };
        self.idle_anonymous_bytes = each(after.anonymous_bytes, before.anonymous_bytes);
        self.idle_private_bytes = each(after.private_bytes, before.private_bytes);
    }
}

pub(super) fn check_stop(control: &Control) -> Result<()> {
    if control.is_stopped() {
        bail!("interrupted; nothing was written");
    }
    Ok(())
}

/// One line that is written over, on a terminal only: a log of it would help nobody.
fn progress(scenario: &str, round: usize, rounds: usize, peer: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{scenario}: round {round} of {rounds}: {peer}");
        let _ = std::io::stderr().flush();
    }
}

fn progress_end() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_all_of_them_in_an_order_of_its_own() {
        let mut random = Random::new(1);
        let first = shuffled(9, &mut random);
        let second = shuffled(9, &mut random);
        assert_ne!(first, second);
        for mut order in [first, second] {
            order.sort_unstable();
            assert_eq!(order, (0..9).collect::<Vec<_>>());
        }
    }
}
