//! A bare cursor over a fixed list of servers: no health, no weights, no backups.
//!
//! What a core uses while every server of an upstream is equal and always there. The rest of
//! [`balance`](super) chooses among servers that differ or come and go.

/// Each core takes its turn through a list of servers.
///
/// Exact per core; cores start at different offsets, so that the whole process stays within ±1 per
/// core per server.
#[derive(Clone, Debug)]
pub struct RoundRobin {
    next: usize,
    servers: usize,
}

impl RoundRobin {
    /// For `servers` servers (at least 1), starting at `offset`.
    pub fn new(servers: usize, offset: usize) -> Self {
        assert!(servers > 0, "checked by the configuration");
        Self {
            next: offset % servers,
            servers,
        }
    }

    /// The order in which one session tries the servers: each once, beginning with its turn.
    pub fn pick(&mut self) -> impl Iterator<Item = usize> + use<> {
        let (first, servers) = (self.next, self.servers);
        self.next = (first + 1) % servers;
        (0..servers).map(move |attempt| (first + attempt) % servers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn first_choices_are_even_and_every_session_tries_each_server_once(
            servers in 1usize..20, offset in 0usize..64, sessions in 1usize..200,
        ) {
            let mut balance = RoundRobin::new(servers, offset);
            let mut counts = vec![0usize; servers];
            for _ in 0..sessions {
                let order: Vec<_> = balance.pick().collect();
                counts[order[0]] += 1;
                let mut sorted = order;
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..servers).collect::<Vec<_>>());
            }
            let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            prop_assert!(max - min <= 1, "{counts:?}");
        }
    }
}
