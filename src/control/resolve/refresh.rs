//! Looks the names of servers up again and again, and tells when an upstream has others.
//!
//! Few threads, each with some of the upstreams: a name server that does not answer delays those of its
//! thread alone. What a name led to last stays until there is a better answer.

use std::io;
use std::time::{Duration, Instant};

use super::{Answers, Member, Resolver, named};
use crate::balance::Random;
use crate::config::Config;
use crate::config::model::{Server, ServerAddress};
use crate::metrics::Lookups;
use crate::units::UpstreamId;

/// More upstreams with names share these.
const THREADS_MAX: usize = 4;
/// How far an interval varies, in percent: the hosts of a cluster are not to ask in step.
const JITTER_PERCENT: u64 = 10;

/// One upstream whose servers have names.
struct Names {
    id: UpstreamId,
    upstream: String,
    servers: Vec<Server>,
    /// What they led to last.
    last: Answers,
    /// By server: whether it has no answer at present.
    failed: Vec<bool>,
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
            random: Random::new(u64::from(std::process::id()) << 8 | index as u64),
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
        let range = 2 * JITTER_PERCENT + 1;
        let percent = 100 - JITTER_PERCENT + self.random.next_u64() % range;
        self.interval * percent as u32 / 100
    }

    fn look(&mut self, index: usize) {
        let names = &mut self.names[index];
        let before = names.last.members();
        let mut counted = Lookups::default();
        let state = names.last.0.iter_mut().zip(&mut names.failed);
        for (server, (last, failed)) in names.servers.iter().zip(state) {
            if matches!(server.address, ServerAddress::Known(_)) {
                continue;
            }
            let result = self.resolver.look_up(server);
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
            if let Ok(places) = result {
                *last = places;
            }
        }
        self.watcher.looked(names.id, counted);
        let members = names.last.members();
        if members != before {
            self.watcher.changed(names.id, members);
        }
    }
}
