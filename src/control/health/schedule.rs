//! Which check is due when. Pure: the time is passed in.
//!
//! First checks begin at most one per [`FIRST_SPACING_US`], and all within the interval; later ones
//! follow the pace and its jitter. So thousands of servers never are checked at the same moment,
//! and a few are known almost at once. A server has at most one check at a time: one that takes
//! longer than the interval is followed by the next at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::spec::{CheckSpec, Target};
use crate::balance::Random;
use crate::units::{Address, ServerId};
use crate::wire::proxy::Version;

/// Between the first checks of two servers.
const FIRST_SPACING_US: u64 = 10_000;

/// A check to make now.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) server: ServerId,
    pub(super) address: Address,
    pub(super) header: Option<Version>,
    pub(super) check: Arc<CheckSpec>,
}

#[derive(Debug)]
struct Entry {
    target: Target,
    is_fast: bool,
    /// Start of the last check.
    began_us: Option<u64>,
    /// `None` while a check runs.
    due_us: Option<u64>,
}

/// All servers and when each is due.
#[derive(Debug)]
pub(super) struct Schedule {
    entries: HashMap<ServerId, Entry>,
    /// The `due_us` of every entry that has one.
    queue: BTreeSet<(u64, ServerId)>,
    random: Random,
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            entries: HashMap::new(),
            queue: BTreeSet::new(),
            random: Random::new(seed),
        }
    }

    /// Replaces the list. What is in both lists unchanged goes on as it was; the rest begins anew.
    /// Returns the servers that are gone or changed, whose running checks mean nothing any more.
    pub(super) fn set(&mut self, targets: Vec<Target>, now_us: u64) -> Vec<ServerId> {
        let mut old = std::mem::take(&mut self.entries);
        self.queue.clear();
        let mut is_new = 0;
        for target in targets {
            let entry = match old.remove(&target.server) {
                Some(entry) if entry.target == target => entry,
                other => {
                    // Handed back, so that it is among those that changed.
                    if let Some(changed) = other {
                        old.insert(target.server, changed);
                    }
                    let wait_us = is_new * FIRST_SPACING_US % target.check.pace.interval_us.max(1);
                    is_new += 1;
                    Entry {
                        target,
                        is_fast: false,
                        began_us: None,
                        due_us: Some(now_us + wait_us),
                    }
                }
            };
            let server = entry.target.server;
            self.queue
                .extend(entry.due_us.map(|due_us| (due_us, server)));
            let twice = self.entries.insert(server, entry);
            assert!(twice.is_none(), "server {} is listed twice", server.0);
        }
        old.into_keys().collect()
    }

    /// The check that is due, if one is. It counts as running until [`Schedule::finished`].
    pub(super) fn take_due(&mut self, now_us: u64) -> Option<Due> {
        let &(due_us, server) = self.queue.first()?;
        if due_us > now_us {
            return None;
        }
        self.queue.pop_first();
        let entry = self
            .entries
            .get_mut(&server)
            .expect("queued servers are known");
        entry.due_us = None;
        entry.began_us = Some(now_us);
        Some(Due {
            server,
            address: entry.target.at.resolve(&entry.target.address),
            header: entry.target.header,
            check: Arc::clone(&entry.target.check),
        })
    }

    /// When the next one is due.
    pub(super) fn next_due_us(&self) -> Option<u64> {
        self.queue.first().map(|&(due_us, _)| due_us)
    }

    /// A server's check is over: its next is put down.
    pub(super) fn finished(&mut self, server: ServerId, now_us: u64) {
        let Some(entry) = self.entries.get_mut(&server) else {
            return;
        };
        let pace = entry.target.check.pace;
        let delay_us = pace.delay_us(entry.is_fast, self.random.next_u64());
        let began_us = entry.began_us.expect("it ran");
        let due_us = (began_us + delay_us).max(now_us);
        let before = entry.due_us.replace(due_us);
        assert!(before.is_none(), "a check ended twice");
        self.queue.insert((due_us, server));
    }

    /// Switches a server to the fast interval, or back. A next check that is further off than that
    /// is brought forward.
    pub(super) fn fast(&mut self, server: ServerId, is_fast: bool, now_us: u64) {
        let Some(entry) = self.entries.get_mut(&server) else {
            return;
        };
        if std::mem::replace(&mut entry.is_fast, is_fast) == is_fast || !is_fast {
            return;
        }
        let (Some(began_us), Some(due_us)) = (entry.began_us, entry.due_us) else {
            return;
        };
        let delay_us = entry
            .target
            .check
            .pace
            .delay_us(true, self.random.next_u64());
        let sooner_us = (began_us + delay_us).max(now_us);
        if sooner_us < due_us {
            entry.due_us = Some(sooner_us);
            self.queue.remove(&(due_us, server));
            self.queue.insert((sooner_us, server));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::{CheckAt, CheckKind};
    use super::*;
    use crate::balance::health::Pace;

    const INTERVAL_US: u64 = 2_000_000;

    fn targets(ids: std::ops::Range<u16>, port: u16) -> Vec<Target> {
        let check = Arc::new(CheckSpec {
            kind: CheckKind::Tcp,
            pace: Pace {
                interval_us: INTERVAL_US,
                fast_interval_us: 100_000,
                jitter_percent: 25,
            },
            timeout_us: 1_000_000,
            source: None,
        });
        ids.map(|id| Target {
            server: ServerId(id),
            address: Address::Tcp(([127, 0, 0, 1], port).into()),
            at: CheckAt::Server,
            header: None,
            check: Arc::clone(&check),
        })
        .collect()
    }

    /// Runs checks of no length for a while; when each began, by server.
    fn run(schedule: &mut Schedule, until_us: u64) -> HashMap<ServerId, Vec<u64>> {
        let mut began: HashMap<_, Vec<u64>> = HashMap::new();
        while let Some(now_us) = schedule.next_due_us().filter(|&due| due < until_us) {
            let due = schedule.take_due(now_us).expect("due");
            began.entry(due.server).or_default().push(now_us);
            schedule.finished(due.server, now_us);
        }
        began
    }

    #[test]
    fn thousands_of_checks_are_spread_and_each_keeps_its_pace() {
        let mut schedule = Schedule::new(1);
        schedule.set(targets(0..2_000, 1), 0);
        let began = run(&mut schedule, 20 * INTERVAL_US);
        assert_eq!(began.len(), 2_000);
        for times in began.values() {
            assert!(times[0] < INTERVAL_US, "the first one within the interval");
            for pair in times.windows(2) {
                let gap_us = pair[1] - pair[0];
                let within = INTERVAL_US * 3 / 4..=INTERVAL_US * 5 / 4;
                assert!(within.contains(&gap_us), "{gap_us}");
            }
        }
        // In any tenth of the interval about a tenth of them, at the start as later.
        let mut tenths = vec![0usize; 200];
        for &time in began.values().flatten() {
            tenths[(time / (INTERVAL_US / 10)) as usize] += 1;
        }
        let (least, most) = (tenths.iter().min().unwrap(), tenths.iter().max().unwrap());
        assert!(*least >= 120 && *most <= 280, "{least} to {most}");
    }

    #[test]
    fn a_few_servers_are_known_almost_at_once() {
        let mut schedule = Schedule::new(1);
        schedule.set(targets(0..3, 1), 50);
        let first: Vec<_> = schedule.queue.iter().map(|&(due_us, _)| due_us).collect();
        assert_eq!(first, [50, 10_050, 20_050]);
    }

    #[test]
    fn a_new_list_leaves_alone_what_did_not_change() {
        let mut schedule = Schedule::new(1);
        schedule.set(targets(0..3, 1), 0);
        let running = schedule.take_due(0).unwrap().server;
        assert_eq!(running, ServerId(0));
        let mut next = targets(0..2, 1);
        next.extend(targets(5..6, 1));
        assert_eq!(schedule.set(next, 5_000), [ServerId(2)]);
        assert_eq!(schedule.entries[&ServerId(0)].due_us, None, "still runs");
        assert_eq!(schedule.entries[&ServerId(1)].due_us, Some(10_000));
        assert_eq!(schedule.entries[&ServerId(5)].due_us, Some(5_000));
        // Another address is another server, whose running check is void.
        assert_eq!(schedule.set(targets(0..1, 2), 6_000).len(), 3);
        assert_eq!(schedule.entries[&ServerId(0)].due_us, Some(6_000));
        assert_eq!(schedule.queue.len(), 1);
        // The void check's end, and that of a server that is gone, are nothing.
        schedule.finished(ServerId(5), 7_000);
        assert_eq!(schedule.queue.len(), 1);
    }

    #[test]
    fn fast_brings_the_next_check_forward_and_a_long_check_delays_it() {
        let mut schedule = Schedule::new(1);
        schedule.set(targets(0..1, 1), 0);
        schedule.take_due(0).unwrap();
        schedule.finished(ServerId(0), 10);
        assert!(schedule.next_due_us().unwrap() >= INTERVAL_US * 3 / 4);
        schedule.fast(ServerId(0), true, 20);
        let due_us = schedule.next_due_us().unwrap();
        assert!((75_000..=125_000).contains(&due_us), "{due_us}");
        schedule.take_due(due_us).unwrap();
        schedule.finished(ServerId(0), due_us + 500_000);
        assert_eq!(schedule.next_due_us(), Some(due_us + 500_000));
        assert_eq!(schedule.queue.len(), 1);
        schedule.take_due(due_us + 500_000).unwrap();
        // While it runs there is nothing to bring forward.
        schedule.fast(ServerId(0), false, due_us);
        schedule.fast(ServerId(0), true, due_us);
        assert_eq!(schedule.next_due_us(), None);
    }
}
