use super::super::testing::{assert_fits, clients};
use super::*;
use proptest::prelude::*;

fn parts(weights: &[u16]) -> Vec<Part> {
    let numbered = (0..).zip(weights);
    numbered
        .map(|(id, weight)| Part {
            upstream: UpstreamId(id),
            weight: *weight,
            key: super::super::hash_text(&format!("upstream-{id}")),
        })
        .collect()
}

fn split(by: SplitBy, weights: &[u16]) -> Split {
    Split::new(by, &parts(weights), 42, 0).expect("a weight")
}

#[test]
fn without_a_weight_there_is_no_split() {
    assert!(Split::new(SplitBy::Random, &parts(&[0, 0]), 1, 0).is_none());
    assert!(Split::new(SplitBy::Source, &[], 1, 0).is_none());
}

#[test]
fn both_split_by_weight_and_weight_0_gets_nothing() {
    for by in [SplitBy::Random, SplitBy::Source] {
        for weights in [&[95, 5][..], &[1, 1, 1], &[256, 30, 4, 90]] {
            let with_zero: Vec<u16> = weights.iter().copied().chain([0]).collect();
            let mut split = split(by, &with_zero);
            let mut counts = vec![0; with_zero.len()];
            for hash in clients(20_000) {
                counts[usize::from(split.pick(hash).0)] += 1;
            }
            assert_eq!(counts.pop(), Some(0));
            assert_fits(&counts, weights);
        }
    }
}

#[test]
fn random_ignores_the_hash_and_follows_the_seed() {
    let drawn = |hash: u64, seed: u64| -> Vec<u16> {
        let mut split = Split::new(SplitBy::Random, &parts(&[1, 1]), seed, 0).expect("weights");
        (0..64).map(|_| split.pick(hash).0).collect()
    };
    assert_eq!(drawn(1, 7), drawn(2, 7));
    assert_ne!(drawn(1, 7), drawn(1, 8));
}

/// To the servers behind a split, its clients are like any others.
#[test]
fn the_split_does_not_skew_the_choice_of_a_server_with_the_same_keys() {
    let mut split = split(SplitBy::Source, &[1, 1]);
    let keys: Vec<u64> = parts(&[1, 1]).iter().map(|part| part.key).collect();
    let mut counts = [0; 2];
    for hash in clients(20_000).filter(|hash| split.pick(*hash) == UpstreamId(0)) {
        let entries = keys.iter().enumerate().map(|(at, key)| (at, *key, 1));
        counts[rendezvous::first(hash, entries).expect("a server")] += 1;
    }
    assert_fits(&counts, &[1, 1]);
}

/// If these change, a new release moves clients between a release and its canary.
#[test]
fn the_clients_upstreams_are_pinned() {
    let mut split = split(SplitBy::Source, &[3, 2, 1]);
    let picked: Vec<u16> = clients(16).map(|hash| split.pick(hash).0).collect();
    assert_eq!(picked, [0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 2, 0, 1, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_canary_that_grows_only_takes_clients(
        others in prop::collection::vec(1u16..=256, 1..5), small in 0u16..256, grown_by in 1u16..256,
    ) {
        let canary = UpstreamId(others.len() as u16);
        let grown = (small + grown_by).min(WEIGHT_MAX);
        let with = |weight: u16| -> Vec<u16> { others.iter().copied().chain([weight]).collect() };
        let mut before = split(SplitBy::Source, &with(small));
        let mut after = split(SplitBy::Source, &with(grown));
        for hash in clients(500) {
            let (was, is) = (before.pick(hash), after.pick(hash));
            prop_assert!(was == is || is == canary, "{was:?} to {is:?}");
            prop_assert_eq!(before.pick(hash), was, "not sticky");
        }
    }

    /// As a rollout is written: what the canary gains, the other loses.
    #[test]
    fn of_two_the_canary_only_takes_clients_when_the_other_shrinks(from in 0u16..100, by in 1u16..100) {
        let to = (from + by).min(100);
        let mut before = split(SplitBy::Source, &[100 - from, from]);
        let mut after = split(SplitBy::Source, &[100 - to, to]);
        for hash in clients(500) {
            let (was, is) = (before.pick(hash), after.pick(hash));
            prop_assert!(was == is || is == UpstreamId(1), "{was:?} to {is:?}");
        }
    }
}
