//! Which listeners should stop, because there is nobody to serve their clients.
//!
//! An upstream that says `on_no_server: stop_listening` is out when neither it nor its fallback has had a
//! server for a while. A listener stops when every upstream that it leads to is out, and listens again when
//! one of them is back. One that leads to an upstream that says something else never stops: sessions of
//! that one are to be reset, closed or held. What stopping takes is for `control::listeners`.
//!
//! Pure: the time is passed in.

use super::hysteresis::Hysteresis;
use crate::config::Config;
use crate::config::model::{OnNoServer, Upstream};
use crate::control::targets::leads_to;
use crate::sys::clock::micros;
use crate::units::{ListenerId, UpstreamId};
use crate::worker::servers::Pool;

/// See the head of this file.
pub(super) struct Halts {
    /// By [`UpstreamId`].
    supplies: Vec<Supply>,
    /// Those that may stop.
    listeners: Vec<Halting>,
}

struct Supply {
    has_server: bool,
    fallback: Option<usize>,
    /// `None`: it says something else than to stop.
    supplied: Option<Hysteresis>,
}

struct Halting {
    id: ListenerId,
    upstreams: Vec<usize>,
    is_stopped: bool,
}

/// Whether a listener should listen from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) listener: ListenerId,
    pub(super) listens: bool,
}

impl Halts {
    /// At the start of the process: every server is trusted.
    pub(super) fn new(config: &Config) -> Self {
        let supplies: Vec<Supply> = config.upstreams.iter().map(Supply::new).collect();
        let mut listeners = Vec::new();
        for (index, listener) in config.listeners.iter().enumerate() {
            let upstreams = leads_to(listener);
            let upstreams: Vec<usize> = upstreams.iter().map(|it| usize::from(it.0)).collect();
            if upstreams.iter().all(|&it| supplies[it].supplied.is_some()) {
                listeners.push(Halting {
                    id: ListenerId(index as u16),
                    upstreams,
                    is_stopped: false,
                });
            }
        }
        Self {
            supplies,
            listeners,
        }
    }

    /// An upstream has a server that takes sessions, or none.
    pub(super) fn note(&mut self, upstream: UpstreamId, has_server: bool, now_us: u64) {
        let changed = usize::from(upstream.0);
        self.supplies[changed].has_server = has_server;
        for index in 0..self.supplies.len() {
            let supply = &self.supplies[index];
            if index != changed && supply.fallback != Some(changed) {
                continue;
            }
            let fallback = supply.fallback.map(|it| self.supplies[it].has_server);
            let is_supplied = supply.has_server || fallback == Some(true);
            if let Some(supplied) = &mut self.supplies[index].supplied {
                supplied.note(is_supplied, now_us);
            }
        }
    }

    /// The listeners that should stop or listen again.
    pub(super) fn settle(&mut self, now_us: u64) -> Vec<Turn> {
        for supplied in self
            .supplies
            .iter_mut()
            .filter_map(|it| it.supplied.as_mut())
        {
            supplied.settle(now_us);
        }
        let supplies = &self.supplies;
        let is_out = |&upstream: &usize| {
            let supplied = supplies[upstream].supplied.as_ref();
            supplied.is_some_and(|it| !it.is_there())
        };
        let mut turns = Vec::new();
        for listener in &mut self.listeners {
            let stops = listener.upstreams.iter().all(is_out);
            if std::mem::replace(&mut listener.is_stopped, stops) != stops {
                turns.push(Turn {
                    listener: listener.id,
                    listens: !stops,
                });
            }
        }
        turns
    }

    /// When [`Halts::settle`] has something to do next.
    pub(super) fn next_us(&self) -> Option<u64> {
        let supplied = self.supplies.iter().filter_map(|it| it.supplied.as_ref());
        supplied.filter_map(Hysteresis::next_us).min()
    }
}

impl Supply {
    fn new(upstream: &Upstream) -> Self {
        let policy = &upstream.policy;
        let times = policy.stop_listening;
        let stops = policy.on_no_server == OnNoServer::StopListening;
        Self {
            has_server: true,
            fallback: policy.fallback.map(|it| usize::from(it.0)),
            supplied: stops
                .then(|| Hysteresis::new(micros(times.after), micros(times.resume_after))),
        }
    }
}

/// Whether a session could find a server, full ones included.
pub(super) fn has_server(pool: &Pool) -> bool {
    let mut servers = pool.servers.iter();
    servers.any(|(candidate, _)| candidate.available && candidate.weight > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: UpstreamId = UpstreamId(0);
    const B: UpstreamId = UpstreamId(1);
    const C: UpstreamId = UpstreamId(2);

    /// `a` is out after 3 s and back after 10 s, `b` after 1 s and 2 s; `c` says reset.
    fn halts(listener: &str, fallback: &str) -> Halts {
        let text = format!(
            "listeners: {{ edge: {{ bind: 127.0.0.1:1, {listener} }}, all: {{ bind: 127.0.0.1:2, upstreams: {{ a: 1, b: 1, c: 1 }} }}, a: {{ bind: 127.0.0.1:3, upstream: a }}, b: {{ bind: 127.0.0.1:4, upstream: b }} }}\n\
             upstreams:\n\
             \x20 a: {{ servers: [127.0.0.1:5], check: tcp, on_no_server: stop_listening {fallback} }}\n\
             \x20 b: {{ servers: [127.0.0.1:6], check: tcp, on_no_server: stop_listening, stop_listening: {{ after: 1s, resume_after: 2s }} }}\n\
             \x20 c: {{ check: tcp, servers: [127.0.0.1:7] }}\n"
        );
        let config = crate::config::from_str(&text, "test", &|_| None);
        Halts::new(&config.expect("valid"))
    }

    /// What becomes of `edge`.
    fn edge(turns: &[Turn]) -> Option<bool> {
        let mut turns = turns.iter().filter(|it| it.listener == ListenerId(0));
        turns.next().map(|it| it.listens)
    }

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_listener_stops_and_returns_with_its_upstream() {
        let mut halts = halts("upstream: a", "");
        assert_eq!(halts.settle(0), []);
        halts.note(A, false, SECOND);
        assert_eq!(halts.next_us(), Some(4 * SECOND));
        assert_eq!(halts.settle(4 * SECOND - 1), []);
        assert_eq!(edge(&halts.settle(4 * SECOND)), Some(false));
        assert_eq!(halts.settle(9 * SECOND), [], "told once");
        halts.note(A, true, 10 * SECOND);
        assert_eq!(halts.settle(20 * SECOND - 1), []);
        assert_eq!(edge(&halts.settle(20 * SECOND)), Some(true));
    }

    #[test]
    fn of_several_upstreams_the_last_one_stops_it_and_the_first_brings_it_back() {
        for listener in [
            "upstreams: { a: 1, b: 1, c: 0 }",
            "upstream: a, route: { by: sni, names: { x.example: b } }",
        ] {
            let mut halts = halts(listener, "");
            halts.note(A, false, 0);
            halts.note(B, false, SECOND);
            assert_eq!(edge(&halts.settle(3 * SECOND - 1)), None, "{listener}");
            assert_eq!(edge(&halts.settle(3 * SECOND)), Some(false), "{listener}");
            halts.note(B, true, 4 * SECOND);
            assert_eq!(edge(&halts.settle(6 * SECOND)), Some(true), "{listener}");
        }
    }

    #[test]
    fn one_that_leads_to_an_upstream_that_says_something_else_never_stops() {
        for listener in [
            "upstreams: { a: 1, c: 1 }",
            "upstream: a, route: { by: sni, names: { x.example: c } }",
        ] {
            let mut halts = halts(listener, "");
            for upstream in [A, B, C] {
                halts.note(upstream, false, 0);
            }
            let turns = halts.settle(100 * SECOND);
            let stopped: Vec<u16> = turns.iter().map(|it| it.listener.0).collect();
            assert_eq!(stopped, [2, 3], "{listener}: those of a and b alone");
        }
    }

    #[test]
    fn a_fallback_with_a_server_keeps_it_listening() {
        let mut halts = halts("upstream: a", ", fallback: c");
        halts.note(A, false, 0);
        assert_eq!(halts.next_us(), None);
        assert_eq!(halts.settle(100 * SECOND), []);
        // From the moment at which neither has one.
        halts.note(C, false, 100 * SECOND);
        assert_eq!(halts.settle(103 * SECOND - 1), []);
        assert_eq!(edge(&halts.settle(103 * SECOND)), Some(false));
        halts.note(C, true, 104 * SECOND);
        assert_eq!(edge(&halts.settle(114 * SECOND)), Some(true));
    }
}
