use super::super::testing::{candidate, candidates, pool};
use super::super::{Candidate, SlowStart};
use super::*;
use proptest::prelude::*;

const LATER_US: u64 = 1_000_000;

/// The next `count` first choices, by id.
fn firsts(turns: &mut WeightedRoundRobin, pool: &Pool, count: usize) -> Vec<u16> {
    let picks = (0..count).map(|_| turns.pick(pool, LATER_US, &[]).expect("a server"));
    picks.map(|at| pool.servers()[at].id.0).collect()
}

fn counts(ids: &[u16], servers: usize) -> Vec<u32> {
    let mut counts = vec![0; servers];
    ids.iter().for_each(|id| counts[usize::from(*id)] += 1);
    counts
}

fn total(weights: &[u16]) -> usize {
    weights.iter().copied().map(usize::from).sum()
}

#[test]
fn the_turns_are_those_of_nginx() {
    let pool = pool(&[5, 1, 1]);
    let mut turns = WeightedRoundRobin::new(&pool, 0);
    assert_eq!(firsts(&mut turns, &pool, 7), [0, 0, 1, 0, 2, 0, 0]);
}

/// Why the cursor may stand in for the accounts.
#[test]
fn the_cursor_gives_the_turns_that_accounts_would() {
    for servers in 1..9 {
        let pool = pool(&vec![3; servers]);
        for offset in 0..servers {
            let mut cursor = WeightedRoundRobin::new(&pool, offset);
            let mut accounts = accounts_of(offset, &pool);
            assert_eq!(accounts.iter().sum::<i64>(), 0);
            for _ in 0..3 * servers {
                let smooth = smooth_pick(&mut accounts, &pool, LATER_US, &[]);
                assert_eq!(cursor.pick(&pool, LATER_US, &[]), smooth);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_cycle_is_exact(
        weights in prop::collection::vec(1u16..=256, 1..8), offset in 0usize..64, picks in 0usize..300,
    ) {
        let pool = pool(&weights);
        let mut turns = WeightedRoundRobin::new(&pool, offset);
        firsts(&mut turns, &pool, picks);
        let cycle = counts(&firsts(&mut turns, &pool, total(&weights)), weights.len());
        let exact: Vec<u32> = weights.iter().copied().map(u32::from).collect();
        prop_assert_eq!(cycle, exact);
    }

    #[test]
    fn equal_weights_take_turns_from_each_cores_own_start(
        servers in 1usize..10, weight in 1u16..=256, offset in 0usize..64,
    ) {
        let pool = pool(&vec![weight; servers]);
        let mut turns = WeightedRoundRobin::new(&pool, offset);
        let expected: Vec<u16> = (0..50).map(|turn| ((offset + turn) % servers) as u16).collect();
        prop_assert_eq!(firsts(&mut turns, &pool, 50), expected);
        prop_assert!(matches!(turns.first, Turns::Cursor(_)), "the plain path");
    }

    /// Each core may have had any number of sessions; the deviations do not add up beyond one per
    /// core with equal weights, two with others.
    #[test]
    fn the_process_is_even_whatever_its_cores_did(
        weights in prop::collection::vec(1u16..=20, 1..8), equal in any::<bool>(),
        sessions in prop::collection::vec(0usize..200, 1..9),
    ) {
        let weights = if equal { vec![weights[0]; weights.len()] } else { weights };
        let pool = pool(&weights);
        let mut sums = vec![0.0; weights.len()];
        for (core, sessions) in sessions.iter().enumerate() {
            let mut turns = WeightedRoundRobin::new(&pool, core);
            let counts = counts(&firsts(&mut turns, &pool, *sessions), weights.len());
            for (at, count) in counts.into_iter().enumerate() {
                let ideal = (*sessions * usize::from(weights[at])) as f64 / total(&weights) as f64;
                sums[at] += f64::from(count) - ideal;
            }
        }
        let bound = sessions.len() as f64 * if equal { 1.0 } else { 2.0 };
        prop_assert!(sums.iter().all(|sum: &f64| sum.abs() < bound), "{sums:?}");
    }

    #[test]
    fn retries_do_not_change_the_first_choices(
        weights in prop::collection::vec(1u16..=9, 2..8), failing in prop::collection::vec(any::<bool>(), 40),
    ) {
        let pool = pool(&weights);
        let mut calm = WeightedRoundRobin::new(&pool, 1);
        let mut troubled = calm.clone();
        for fails in failing {
            let first = calm.pick(&pool, LATER_US, &[]).expect("a server");
            prop_assert_eq!(troubled.pick(&pool, LATER_US, &[]), Some(first));
            if fails {
                let tried = [pool.servers()[first].id];
                prop_assert!(troubled.pick(&pool, LATER_US, &tried).is_some());
            }
        }
    }

    #[test]
    fn the_sessions_of_a_failing_server_are_shared_out_by_weight(
        weights in prop::collection::vec(1u16..=9, 2..8), cycles in 1usize..4,
    ) {
        let pool = pool(&weights);
        let mut turns = WeightedRoundRobin::new(&pool, 0);
        let tried = [pool.servers()[0].id];
        let others = total(&weights[1..]);
        let mut counts = vec![0; weights.len()];
        for _ in 0..cycles * others {
            counts[turns.pick(&pool, LATER_US, &tried).expect("another")] += 1;
        }
        let exact: Vec<usize> = weights.iter().map(|weight| cycles * usize::from(*weight)).collect();
        prop_assert_eq!(&counts[1..], &exact[1..]);
    }

    #[test]
    fn the_same_set_again_changes_nothing(
        weights in prop::collection::vec(1u16..=9, 1..8), equal in any::<bool>(),
        offset in 0usize..9, picks in 0usize..60,
    ) {
        let weights = if equal { vec![weights[0]; weights.len()] } else { weights };
        let pool = pool(&weights);
        let mut turns = WeightedRoundRobin::new(&pool, offset);
        firsts(&mut turns, &pool, picks);
        let mut replaced = turns.clone();
        replaced.replace(&pool, &pool, offset);
        prop_assert_eq!(firsts(&mut replaced, &pool, 100), firsts(&mut turns, &pool, 100));
    }

    /// What servers were owed before a change makes a difference of one connection at the most.
    #[test]
    fn a_change_keeps_the_turns_smooth(
        before in prop::collection::vec(0u16..=6, 2..8), after in prop::collection::vec(0u16..=6, 2..8),
        picks in 0usize..50, cycles in 1usize..4,
    ) {
        let (old, new) = (pool(&before), pool(&after));
        prop_assume!(!old.is_empty() && !new.is_empty());
        let mut turns = WeightedRoundRobin::new(&old, 0);
        firsts(&mut turns, &old, picks);
        turns.replace(&old, &new, 0);
        if let Turns::Smooth(accounts) = &turns.first {
            prop_assert_eq!(accounts.iter().sum::<i64>(), 0);
        }
        let counts = counts(&firsts(&mut turns, &new, cycles * total(&after)), after.len());
        for (count, weight) in counts.iter().zip(&after) {
            let due = cycles as f64 * f64::from(*weight);
            prop_assert!((f64::from(*count) - due).abs() <= 1.0, "{counts:?} for {after:?}");
        }
    }
}

#[test]
fn the_next_server_keeps_its_turn_when_another_leaves_or_comes() {
    let all = candidates(&[1, 1, 1, 1]);
    let without = |gone: usize| -> Pool {
        let mut rest = all.clone();
        rest.remove(gone);
        Pool::new(&rest, false)
    };
    let full = Pool::new(&all, false);
    let mut turns = WeightedRoundRobin::new(&full, 0);
    assert_eq!(firsts(&mut turns, &full, 2), [0, 1]);
    // One that had its turn leaves, then the next one does, then all are back.
    turns.replace(&full, &without(0), 0);
    assert_eq!(firsts(&mut turns, &without(0), 1), [2]);
    turns.replace(&without(0), &without(3), 0);
    assert_eq!(firsts(&mut turns, &without(3), 2), [1, 2]);
    turns.replace(&without(3), &full, 0);
    assert_eq!(firsts(&mut turns, &full, 2), [0, 1]);
}

#[test]
fn who_has_just_had_a_turn_waits_when_weights_change() {
    let (old, new) = (pool(&[1, 1, 1]), pool(&[2, 2, 1]));
    let mut turns = WeightedRoundRobin::new(&old, 0);
    assert_eq!(firsts(&mut turns, &old, 1), [0]);
    turns.replace(&old, &new, 0);
    assert_eq!(firsts(&mut turns, &new, 1), [1]);
}

#[test]
fn a_slow_start_ends_in_the_plain_turns() {
    let mut set: Vec<Candidate> = candidates(&[1, 1, 1]);
    set[2].slow_start = Some(SlowStart {
        since_us: 0,
        duration_us: 1_000,
    });
    let pool = Pool::new(&set, false);
    let mut turns = WeightedRoundRobin::new(&pool, 0);
    let mut slow = 0;
    for now_us in 0..1_000 {
        slow += u32::from(turns.pick(&pool, now_us, &[]) == Some(2));
    }
    // The mean of its share: the integral of s / (2 + s) for s from 0.1 to 1, over 0.9: 0.2075.
    assert!((206..=209).contains(&slow), "{slow}");
    let after = firsts(&mut turns, &pool, 6);
    assert!(matches!(turns.first, Turns::Cursor(_)));
    assert_eq!(counts(&after, 3), [2, 2, 2]);
}

#[test]
fn a_set_that_was_empty_begins_at_the_offset() {
    let (none, three) = (pool(&[]), pool(&[1, 1, 1]));
    let mut turns = WeightedRoundRobin::new(&none, 2);
    turns.replace(&none, &three, 2);
    assert_eq!(firsts(&mut turns, &three, 1), [2]);
    turns.replace(&three, &none, 2);
    turns.replace(&none, &three, 1);
    assert_eq!(firsts(&mut turns, &three, 1), [1]);
}

#[test]
fn a_newcomer_is_owed_nothing() {
    let old = pool(&[4, 2]);
    let mut turns = WeightedRoundRobin::new(&old, 0);
    firsts(&mut turns, &old, 600);
    let mut set = candidates(&[4, 2]);
    set.push(candidate(2, 1));
    let new = Pool::new(&set, false);
    turns.replace(&old, &new, 0);
    assert_eq!(counts(&firsts(&mut turns, &new, 7), 3), [4, 2, 1]);
}
