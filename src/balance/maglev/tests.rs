use super::super::Candidate;
use super::super::testing::{candidates, clients, pool};
use super::*;
use crate::balance::hash_text;

/// The id that each entry leads to.
fn owners(set: &[Candidate]) -> Vec<u16> {
    let pool = Pool::new(set, false);
    let table = build(&pool);
    table
        .iter()
        .map(|position| pool.servers()[usize::from(*position)].id.0)
        .collect()
}

fn counts(owners: &[u16], servers: usize) -> Vec<u32> {
    let mut counts = vec![0; servers];
    owners.iter().for_each(|id| counts[usize::from(*id)] += 1);
    counts
}

#[test]
fn equal_weights_have_the_same_entries_but_one() {
    for servers in [1, 2, 3, 10, 50, 200, 1_000] {
        for weight in [1, 64, 256] {
            let counts = counts(&owners(&candidates(&vec![weight; servers])), servers);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{servers} servers: {least} to {most}");
        }
    }
}

#[test]
fn entries_are_in_proportion_to_the_weights() {
    for weights in [
        &[100, 100, 100][..],
        &[1, 2, 5, 12],
        &[256, 1, 1, 1, 1, 1, 1, 1],
        &[256, 255, 3, 77, 128, 1],
    ] {
        let counts = counts(&owners(&candidates(weights)), weights.len());
        let total: u32 = weights.iter().copied().map(u32::from).sum();
        for (count, weight) in counts.iter().zip(weights) {
            let ideal = f64::from(u32::from(*weight)) * ENTRIES as f64 / f64::from(total);
            let error = (f64::from(*count) - ideal).abs();
            // One round's worth of entries at the most, of which a light server has one.
            let round = f64::from(*weight) * weights.len() as f64 * 2.0 / f64::from(total);
            assert!(error <= round.max(1.0) + 1.0, "{counts:?} for {weights:?}");
        }
    }
}

#[test]
fn the_lightest_of_many_has_an_entry() {
    let mut weights = vec![256; 500];
    weights[77] = 1;
    assert!(counts(&owners(&candidates(&weights)), 500)[77] >= 1);
}

/// What the module's documentation promises.
const MOVED_IN_VAIN_MAX: f64 = 0.01;

/// Part of all clients that move although their server stays.
fn moved_in_vain(before: &[u16], after: &[u16], changed: u16) -> f64 {
    let pairs = before.iter().zip(after);
    let moved = pairs.filter(|(was, is)| was != is && **was != changed && **is != changed);
    moved.count() as f64 / ENTRIES as f64
}

#[test]
fn a_removal_or_an_addition_moves_few_clients_in_vain() {
    for servers in [3u16, 10, 50, 200, 600] {
        let all = candidates(&vec![1; usize::from(servers)]);
        let with = owners(&all);
        for gone in [0, servers / 2, servers - 1] {
            let mut rest = all.clone();
            rest.remove(usize::from(gone));
            let moved = moved_in_vain(&with, &owners(&rest), gone);
            assert!(moved < MOVED_IN_VAIN_MAX, "{gone} of {servers}: {moved}");
        }
    }
}

/// Also where the mean of the weights passes a power of two, and with it the length of a turn.
#[test]
fn with_weights_too_a_change_moves_few_clients_in_vain() {
    let mut sets: Vec<Vec<u16>> = (1..=6)
        .map(|seed| {
            clients(30)
                .map(|bits| (bits.rotate_left(seed * 8) % 256) as u16 + 1)
                .collect()
        })
        .collect();
    for (others, count, last) in [
        (64, 9, 64),
        (64, 50, 256),
        (1, 29, 256),
        (1, 29, 32),
        (256, 2, 1),
    ] {
        sets.push([vec![others; count], vec![last]].concat());
    }
    for weights in sets {
        let all = candidates(&weights);
        let with = owners(&all);
        for at in [0, weights.len() / 2, weights.len() - 1] {
            for weight in [0, weights[at] / 2, weights[at] - 1] {
                let mut changed = all.clone();
                changed[at].weight = weight;
                let moved = moved_in_vain(&with, &owners(&changed), changed[at].id.0);
                assert!(
                    moved < MOVED_IN_VAIN_MAX,
                    "{weights:?}, {at} to {weight}: {moved}"
                );
            }
        }
    }
}

#[test]
fn the_order_of_the_servers_does_not_matter() {
    let set = candidates(&[3, 1, 4, 1, 5, 9, 2, 6]);
    let reversed: Vec<Candidate> = set.iter().rev().cloned().collect();
    assert!(owners(&set) == owners(&reversed));
}

/// If this changes, a new release moves most clients to another server.
#[test]
fn the_table_is_pinned() {
    let owners = owners(&candidates(&[1, 2, 3, 4, 5]));
    let digest: String = owners
        .iter()
        .map(|id| char::from(b'0' + *id as u8))
        .collect();
    assert_eq!(&digest[..32], "24203414331233220320332423112324");
    assert_eq!(hash_text(&digest), 0xb457_d8ab_54db_e153);
}

#[test]
fn a_retry_walks_on_to_the_next_entry_of_another_server() {
    let pool = pool(&[1, 2, 3]);
    let mut maglev = Maglev::default();
    for hash in clients(200) {
        let mut tried = Vec::new();
        let first = maglev.pick(&pool, hash, &tried).expect("a server");
        let start = scale(hash, ENTRIES as u64) as usize;
        assert_eq!(usize::from(maglev.table[start]), first);
        tried.push(pool.servers()[first].id);
        let second = maglev.pick(&pool, hash, &tried).expect("another");
        let mut walk = (start..ENTRIES)
            .chain(0..start)
            .map(|at| usize::from(maglev.table[at]));
        assert_eq!(walk.find(|position| *position != first), Some(second));
        tried.push(pool.servers()[second].id);
        assert_eq!(maglev.pick(&pool, hash, &tried), Some(3 - first - second));
    }
}

#[test]
fn the_walk_goes_round_the_end_of_the_table() {
    let pool = pool(&[256, 1]);
    let mut maglev = Maglev::default();
    let heavy = [pool.servers()[0].id];
    assert_eq!(maglev.pick(&pool, u64::MAX, &heavy), Some(1));
    assert_eq!(
        maglev.table.last(),
        Some(&0),
        "else the walk did not go round"
    );
}
