//! What holds for every algorithm, and the tests of the small ones.

use super::testing::{assert_fits, candidate, candidates, clients};
use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeSet;

const ALL: [Algorithm; 6] = [
    Algorithm::RoundRobin,
    Algorithm::LeastConnections,
    Algorithm::RandomTwoChoices,
    Algorithm::SourceHash,
    Algorithm::Maglev,
    Algorithm::FirstAvailable,
];

fn options(algorithm: Algorithm) -> Options {
    Options {
        algorithm,
        offset: 0,
        seed: 1,
        sample: false,
    }
}

fn balancer(algorithm: Algorithm, candidates: &[Candidate]) -> Balancer {
    Balancer::new(options(algorithm), candidates)
}

fn idle(_: ServerId) -> u32 {
    0
}

/// The servers that one session is given until none is left.
fn session(balancer: &mut Balancer, now_us: u64, hash: u64) -> Vec<ServerId> {
    let mut tried = Vec::new();
    while let Some(id) = balancer.pick(now_us, hash, &tried, |id| u32::from(id.0) % 3) {
        assert!(!tried.contains(&id), "{id:?} twice");
        tried.push(id);
    }
    tried
}

/// How often each server is the first choice.
fn first_choices(balancer: &mut Balancer, now_us: u64, servers: usize, picks: u64) -> Vec<u32> {
    let mut counts = vec![0; servers];
    for hash in clients(picks) {
        let id = balancer.pick(now_us, hash, &[], idle).expect("a server");
        counts[usize::from(id.0)] += 1;
    }
    counts
}

prop_compose! {
    fn any_candidates(max: usize)(
        states in prop::collection::vec(
            (0u16..4, any::<bool>(), any::<bool>(), prop::option::of(0u64..200)), 0..max)
    ) -> Vec<Candidate> {
        let numbered = (0..).zip(states);
        numbered.map(|(id, (weight, backup, available, since))| Candidate {
            backup,
            available,
            slow_start: since.map(|since_us| SlowStart { since_us, duration_us: 100 }),
            ..candidate(id, weight)
        }).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Weight 0 and unavailable never, no server twice, every other once, backups last, then none:
    /// before and after the set changes.
    #[test]
    fn a_session_is_given_every_usable_server_once_and_backups_last(
        before in any_candidates(24), after in any_candidates(24),
        sample in any::<bool>(), offset in 0usize..9, now_us in 0u64..300, hash: u64,
    ) {
        for algorithm in ALL {
            let mut balancer =
                Balancer::new(Options { offset, sample, ..options(algorithm) }, &before);
            for set in [&before, &before, &after, &before] {
                balancer.replace(set);
                for hash in [hash, hash.rotate_left(9)] {
                    let given = session(&mut balancer, now_us, hash);
                    let rank = |backup: bool| -> BTreeSet<ServerId> {
                        let of_rank = set.iter().filter(|c| c.backup == backup);
                        of_rank.filter(|c| c.available && c.weight > 0).map(|c| c.id).collect()
                    };
                    let (ordinary, backups) = (rank(false), rank(true));
                    prop_assert_eq!(given.len(), ordinary.len() + backups.len());
                    let (first, last) = given.split_at(ordinary.len());
                    prop_assert_eq!(first.iter().copied().collect::<BTreeSet<_>>(), ordinary);
                    prop_assert_eq!(last.iter().copied().collect::<BTreeSet<_>>(), backups);
                }
            }
        }
    }

    #[test]
    fn the_hashing_algorithms_know_nothing_of_core_seed_load_or_time(
        weights in prop::collection::vec(1u16..=WEIGHT_MAX, 1..9), hash: u64,
        offset in 0usize..64, seed: u64, load: u32, now_us: u64,
    ) {
        let set = candidates(&weights);
        let mut slow = set.clone();
        slow[0].slow_start = Some(SlowStart { since_us: now_us, duration_us: 1_000 });
        for algorithm in [Algorithm::SourceHash, Algorithm::Maglev] {
            let mut here = balancer(algorithm, &set);
            let mut there = Balancer::new(
                Options { algorithm, offset, seed, sample: true }, &slow);
            there.pick(0, !hash, &[], idle);
            prop_assert_eq!(
                here.pick(0, hash, &[], idle),
                there.pick(now_us, hash, &[], |id| load.rotate_left(u32::from(id.0)))
            );
        }
    }

    /// A host that was restarted agrees with one that has seen every change.
    #[test]
    fn the_hashing_algorithms_have_no_past(
        before in any_candidates(9), after in any_candidates(9), hash: u64,
    ) {
        for algorithm in [Algorithm::SourceHash, Algorithm::Maglev] {
            let mut changed = balancer(algorithm, &before);
            changed.pick(0, hash, &[], idle);
            changed.replace(&after);
            let mut new = balancer(algorithm, &after);
            for hash in clients(16).map(|bits| bits ^ hash) {
                prop_assert_eq!(changed.pick(0, hash, &[], idle), new.pick(0, hash, &[], idle));
            }
        }
    }

    #[test]
    fn least_connections_is_the_least_for_the_share(
        servers in prop::collection::vec((1u16..=WEIGHT_MAX, 0u32..50), 1..=16), offset in 0usize..64,
    ) {
        let weights: Vec<u16> = servers.iter().map(|(weight, _)| *weight).collect();
        let algorithm = Algorithm::LeastConnections;
        let mut balancer =
            Balancer::new(Options { offset, ..options(algorithm) }, &candidates(&weights));
        let load = |id: ServerId| servers[usize::from(id.0)].1;
        let picked = balancer.pick(0, 0, &[], load).expect("a server");
        let filling = |(weight, load): (u16, u32)| f64::from(load + 1) / f64::from(weight);
        let least = servers.iter().copied().map(filling).fold(f64::INFINITY, f64::min);
        prop_assert!(filling(servers[usize::from(picked.0)]) <= least * (1.0 + 1e-9));
    }
}

#[test]
fn without_servers_there_is_none() {
    for algorithm in ALL {
        let mut balancer = balancer(algorithm, &[]);
        assert_eq!(balancer.pick(0, 0, &[], idle), None);
        balancer.replace(&candidates(&[1]));
        assert_eq!(balancer.pick(0, 0, &[], idle), Some(ServerId(0)));
        assert_eq!(balancer.pick(0, 0, &[ServerId(0)], idle), None);
        balancer.replace(&[]);
        assert_eq!(balancer.pick(0, 0, &[], idle), None);
    }
}

/// A session that found the ordinary servers full still makes a first choice among the backups.
#[test]
fn backups_take_turns_when_ordinary_servers_are_full() {
    let mut set = candidates(&[1, 1, 1]);
    set[1].backup = true;
    set[2].backup = true;
    let mut balancer = balancer(Algorithm::RoundRobin, &set);
    let full = [ServerId(0)];
    let given: Vec<u16> = (0..4)
        .map(|_| balancer.pick(0, 0, &full, idle).expect("a backup").0)
        .collect();
    assert_eq!(given, [1, 2, 1, 2]);
    assert_eq!(balancer.pick(0, 0, &[], idle), Some(ServerId(0)));
    // A retry in between does not take part in these turns.
    let mut pick = |tried: &[u16]| {
        let tried: Vec<ServerId> = tried.iter().copied().map(ServerId).collect();
        balancer.pick(0, 0, &tried, idle).expect("a backup").0
    };
    assert_eq!([pick(&[0]), pick(&[0, 1]), pick(&[0])], [1, 2, 2]);
}

#[test]
fn first_available_goes_by_configuration_order() {
    let mut set = candidates(&[1, 256, 1]);
    let mut balancer = balancer(Algorithm::FirstAvailable, &set);
    let ids = [0, 1, 2].map(ServerId);
    assert_eq!(session(&mut balancer, 0, 0), ids);
    set[0].available = false;
    balancer.replace(&set);
    assert_eq!(session(&mut balancer, 0, 0), &ids[1..]);
}

#[test]
fn equally_loaded_servers_take_turns_which_cores_begin_elsewhere() {
    for offset in 0..5 {
        let algorithm = Algorithm::LeastConnections;
        let mut balancer = Balancer::new(
            Options {
                offset,
                ..options(algorithm)
            },
            &candidates(&[3, 3, 3]),
        );
        for turn in 0..7 {
            let expected = ServerId((offset + turn) as u16 % 3);
            assert_eq!(balancer.pick(0, 0, &[], |_| 7), Some(expected));
        }
    }
}

#[test]
fn least_connections_counts_the_connection_to_come() {
    let mut balancer = balancer(Algorithm::LeastConnections, &candidates(&[1, 2]));
    let mut pick = |loads: [u32; 2]| {
        let load = |id: ServerId| loads[usize::from(id.0)];
        balancer.pick(0, 0, &[], load).expect("a server").0
    };
    assert_eq!(pick([0, 0]), 1);
    assert_eq!(pick([0, 2]), 0);
    assert_eq!(pick([u32::MAX, u32::MAX]), 1);
    assert_eq!(pick([u32::MAX / 3, u32::MAX]), 0);
}

#[test]
fn many_servers_or_many_cores_are_sampled() {
    let asked = |servers: usize, sample: bool| {
        let algorithm = Algorithm::LeastConnections;
        let mut balancer = Balancer::new(
            Options {
                sample,
                ..options(algorithm)
            },
            &candidates(&vec![1; servers]),
        );
        let asked = RefCell::new(BTreeSet::new());
        balancer.pick(0, 0, &[], |id| {
            asked.borrow_mut().insert(id);
            0
        });
        asked.into_inner().len()
    };
    assert_eq!(asked(16, false), 16);
    assert_eq!(asked(17, false), 2);
    assert_eq!(asked(16, true), 2);
}

#[test]
fn two_choices_are_distinct_and_the_less_loaded_wins() {
    let set = candidates(&[1, 200, 7, 1]);
    let mut balancer = balancer(Algorithm::RandomTwoChoices, &set);
    for _ in 0..2_000 {
        // Server 1 is drawn nearly always, but never alone.
        let load = |id: ServerId| if id.0 == 1 { 1_000 } else { 0 };
        let picked = balancer.pick(0, 0, &[], load);
        assert_ne!(picked, Some(ServerId(1)));
    }
}

#[test]
fn two_choices_compare_connections_for_the_weight() {
    let mut balancer = balancer(Algorithm::RandomTwoChoices, &candidates(&[1, 4]));
    for _ in 0..100 {
        let picked = balancer.pick(0, 0, &[], |id| if id.0 == 0 { 2 } else { 7 });
        assert_eq!(picked, Some(ServerId(1)));
        let picked = balancer.pick(0, 0, &[], |id| if id.0 == 0 { 2 } else { 9 });
        assert_eq!(picked, Some(ServerId(0)));
    }
}

#[test]
fn idle_servers_are_drawn_by_weight() {
    for weights in [&[1u16; 5][..], &[1, 2, 5, 12], &[256, 1, 40, 40, 100, 3]] {
        let mut balancer = balancer(Algorithm::RandomTwoChoices, &candidates(weights));
        let counts = first_choices(&mut balancer, 0, weights.len(), 20_000);
        assert_fits(&counts, weights);
    }
}

/// The second draw: with the heaviest busy, the others by their weights.
#[test]
fn the_second_choice_is_drawn_by_weight_too() {
    let weights = [200, 10, 20, 30];
    let mut balancer = balancer(Algorithm::RandomTwoChoices, &candidates(&weights));
    let mut counts = [0; 3];
    for _ in 0..20_000 {
        let tried = [ServerId(0)];
        let id = balancer.pick(0, 0, &tried, idle).expect("a server");
        counts[usize::from(id.0) - 1] += 1;
    }
    assert_fits(&counts, &weights[1..]);

    let mut both = balancer.clone();
    let mut seconds = [0; 2];
    both.replace(&candidates(&[256, 3, 9]));
    for _ in 0..20_000 {
        let asked = RefCell::new(Vec::new());
        both.pick(0, 0, &[], |id| {
            asked.borrow_mut().push(id.0);
            0
        });
        match asked.into_inner()[..] {
            [0, second] => seconds[usize::from(second) - 1] += 1,
            _ => continue,
        }
    }
    assert_fits(&seconds, &[3, 9]);
}

#[test]
fn cores_with_one_seed_draw_different_servers_and_the_same_core_the_same() {
    let drawn = |offset: usize| -> Vec<u16> {
        let algorithm = Algorithm::RandomTwoChoices;
        let mut balancer = Balancer::new(
            Options {
                offset,
                ..options(algorithm)
            },
            &candidates(&[1; 10]),
        );
        (0..20)
            .map(|_| balancer.pick(0, 0, &[], idle).expect("a server").0)
            .collect()
    };
    assert_eq!(drawn(0), drawn(0));
    assert_ne!(drawn(0), drawn(1));
}

#[test]
fn a_slow_start_lowers_the_share_of_whatever_has_weights() {
    let mut set = candidates(&[10, 10]);
    set[1].slow_start = Some(SlowStart {
        since_us: 1_000,
        duration_us: 9_000,
    });
    // A tenth, then 10 % + 90 % × 4/9 = a half, then the whole.
    for (now_us, weights) in [(1_000, [10, 1]), (5_000, [2, 1]), (10_000, [1, 1])] {
        let mut turns = balancer(Algorithm::RoundRobin, &set);
        let counts = first_choices(&mut turns, now_us, 2, 660);
        let expected = 660 * u32::from(weights[1]) / u32::from(weights[0] + weights[1]);
        assert_eq!(counts[1], expected, "at {now_us}");
        let mut random = balancer(Algorithm::RandomTwoChoices, &set);
        assert_fits(&first_choices(&mut random, now_us, 2, 10_000), &weights);
    }
    let mut least = balancer(Algorithm::LeastConnections, &set);
    let mut pick = |now_us, busy| least.pick(now_us, 0, &[], |id| if id.0 == 0 { busy } else { 0 });
    assert_eq!(pick(1_000, 8), Some(ServerId(0)));
    assert_eq!(pick(1_000, 10), Some(ServerId(1)));
    assert_eq!(pick(10_000, 8), Some(ServerId(1)));
}
