//! Looks the names of servers up again and again, and tells when an upstream has others.
//!
//! Few threads, each with some of the upstreams: a name server that does not answer delays those of its
//! thread alone. What a name led to last stays until there is a better answer.

use std::io;
use std::time::{Duration, Instant};

use super::{Answers, MEMBERS_MAX, Member, Resolver, named};
use crate::balance::{Random, varied_us};
use crate::config::Config;
use crate::config::model::{Server, ServerAddress};
use crate::control::{seed, source};
use crate::metrics::Lookups;
use crate::sys::clock::micros;
use crate::units::{Address, UpstreamId};

/// More upstreams with names share these.
pub(super) const THREADS_MAX: usize = 4;
/// How far an interval varies, in percent: the hosts of a cluster are not to ask in step.
const JITTER_PERCENT: u8 = 10;

/// One upstream whose servers have names.
struct Names {
    id: UpstreamId,
    upstream: String,
    servers: Vec<Server>,
    /// What they led to last.
    last: Answers,
    /// By server: whether it has no answer at present.
    failed: Vec<bool>,
    /// By family, IPv6 first: why servers of it cannot be reached.
    misfits: [Option<(String, String)>; 2],
    /// What was left out of the last answers.
    left_out: usize,
    due: Instant,
}

/// Who is told, on the threads that look.
pub(in crate::control) trait Watcher {
    /// An upstream's names were looked up, with these results.
    fn looked(&self, upstream: UpstreamId, results: Lookups);
    /// And it has other servers.
    fn changed(&self, upstream: UpstreamId, servers: Vec<Member>);
}

/// Starts to look. The threads live as long as the process.
///
/// # Errors
/// No thread is to be had.
pub(in crate::control) fn start(
    config: &Config,
    resolved: &[Answers],
    watcher: impl Watcher + Clone + Send + 'static,
) -> io::Result<()> {
    let Some(interval) = config.dns.interval else {
        return Ok(());
    };
    let mut threads: Vec<Vec<Names>> = Vec::new();
    for (count, (id, upstream)) in named(config).enumerate() {
        let names = Names {
            id,
            upstream: upstream.name.clone(),
            servers: upstream.servers.clone(),
            last: resolved[usize::from(id.0)].clone(),
            failed: vec![false; upstream.servers.len()],
            misfits: [false, true].map(|is_ipv4| source::misfit(config, id, is_ipv4)),
            left_out: 0,
            due: Instant::now(),
        };
        if count < THREADS_MAX {
            threads.push(Vec::new());
        }
        threads[count % THREADS_MAX].push(names);
    }
    for (index, names) in threads.into_iter().enumerate() {
        let refresher = Refresher {
            resolver: Resolver::new(&config.dns),
            names,
            interval,
            random: Random::new(seed()),
            watcher: watcher.clone(),
        };
        std::thread::Builder::new()
            .name(format!("resolver-{index}"))
            .spawn(move || refresher.run())?;
    }
    Ok(())
}

struct Refresher<W> {
    resolver: Resolver,
    names: Vec<Names>,
    interval: Duration,
    random: Random,
    watcher: W,
}

impl<W: Watcher> Refresher<W> {
    fn run(mut self) {
        for index in 0..self.names.len() {
            self.names[index].due = Instant::now() + self.next_interval();
        }
        loop {
            let next = (0..self.names.len()).min_by_key(|&index| self.names[index].due);
            let Some(index) = next else { return };
            let left = self.names[index]
                .due
                .saturating_duration_since(Instant::now());
            std::thread::sleep(left);
            self.look(index);
            self.names[index].due = Instant::now() + self.next_interval();
        }
    }

    fn next_interval(&mut self) -> Duration {
        let draw = self.random.next_u64();
        let interval_us = varied_us(micros(self.interval), JITTER_PERCENT, draw);
        Duration::from_micros(interval_us)
    }

    fn look(&mut self, index: usize) {
        let names = &mut self.names[index];
        let before = names.last.clone();
        let mut counted = Lookups::default();
        let state = names.last.0.iter_mut().zip(&mut names.failed);
        for (entry, (server, (last, failed))) in names.servers.iter().zip(state).enumerate() {
            if matches!(server.address, ServerAddress::Known(_)) {
                continue;
            }
            let result = self.resolver.look_up(entry, server);
            let (upstream, name) = (&names.upstream, &server.address);
            match &result {
                Ok(_) if *failed => tracing::info!(upstream, %name, "a name has an answer again"),
                Err(error) if !*failed => tracing::warn!(
                    upstream, %name, %error,
                    "a name has no answer; its last servers stay, and it is asked for again"
                ),
                _ => {}
            }
            *failed = result.is_err();
            counted.count(result.is_ok());
            if let Ok(members) = result {
                *last = members;
            }
        }
        self.watcher.looked(names.id, counted);
        names.leave_out_misfits();
        let members = names.last.members();
        if members.len() > MEMBERS_MAX {
            let upstream = &names.upstream;
            tracing::warn!(
                upstream,
                "its names have more than {MEMBERS_MAX} addresses: its servers stay as they are"
            );
            names.last = before;
        } else if members != before.members() {
            self.watcher.changed(names.id, members);
        }
    }
}

impl Names {
    /// Addresses that the upstream's source cannot reach are no servers. At the start they are an error.
    fn leave_out_misfits(&mut self) {
        let misfit = |address: &Address| match address {
            Address::Tcp(address) => self.misfits[usize::from(address.is_ipv4())].as_ref(),
            Address::Unix(_) => None,
        };
        let mut left_out = 0;
        let mut why = None;
        for members in &mut self.last.0 {
            members.retain(|member| {
                let misfit = misfit(&member.address);
                left_out += usize::from(misfit.is_some());
                why = misfit.or(why);
                misfit.is_none()
            });
        }
        if let Some((problem, remedy)) = why
            && left_out != self.left_out
        {
            let upstream = &self.upstream;
            tracing::warn!(
                upstream,
                left_out,
                "source.{problem}: it is left out; {remedy}"
            );
        }
        self.left_out = left_out;
    }
}
