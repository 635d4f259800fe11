use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::sync::atomic::AtomicU32;
use std::thread;

fn options(connections_max: u32, rate: Option<(u64, u64)>, entries_max: usize) -> Options {
    let number = |number| NonZeroU64::new(number).expect("not 0");
    Options {
        v4_prefix_bits: 32,
        v6_prefix_bits: 64,
        connections_max: NonZeroU32::new(connections_max),
        rate: rate.map(|(per_second, burst)| Rate::new(number(per_second), number(burst))),
        entries_max: NonZeroUsize::new(entries_max).expect("not 0"),
        seed: 7,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn host(number: u32) -> IpAddr {
    Ipv4Addr::from(number).into()
}

#[test]
fn counts_connections_by_network() {
    let sources = Sources::new(options(2, None, 1_000));
    let first = sources.admit(ip("2001:db8::1"), 0).expect("the first");
    let second = sources
        .admit(ip("2001:db8::ffff:2"), 0)
        .expect("the second");
    let refused = sources.admit(ip("2001:db8::3"), 0);
    assert_eq!(refused, Err(Refused::Connections));
    let other = sources
        .admit(ip("2001:db8:0:1::1"), 0)
        .expect("another /64");

    sources.release(first, 1);
    let third = sources
        .admit(ip("2001:db8::3"), 1)
        .expect("a place came back");
    assert_eq!(sources.connections(ip("2001:db8::")), 2);
    for ticket in [second, third, other] {
        sources.release(ticket, 2);
    }
    assert_eq!(sources.connections(ip("2001:db8::")), 0);
    assert_eq!((sources.entries(), sources.table_full_total()), (2, 0));
}

#[test]
fn a_mapped_address_is_its_ipv4_address() {
    let mut options = options(1, None, 1_000);
    // With these, the first address of the one and a whole address of the other could be mixed up.
    (options.v4_prefix_bits, options.v6_prefix_bits) = (24, 128);
    let sources = Sources::new(options);
    let _mapped = sources.admit(ip("::ffff:10.0.0.1"), 0).expect("the first");
    assert_eq!(sources.admit(ip("10.0.0.2"), 0), Err(Refused::Connections));
    let _six = sources.admit(ip("::a00:0"), 0).expect("the first of IPv6");
    let _ten = sources.admit(ip("10.0.1.1"), 0).expect("another /24");
    assert_eq!(sources.entries(), 3);
}

#[test]
fn limits_the_rate_by_network_and_refusals_cost_nothing() {
    let sources = Sources::new(options(0, Some((10, 2)), 1_000));
    let tickets = [sources.admit(host(1), 0), sources.admit(host(1), 0)];
    for _ in 0..100 {
        assert_eq!(sources.admit(host(1), 99_999), Err(Refused::Rate));
    }
    let _other = sources.admit(host(2), 0).expect("another network");
    // That its connections ended does not bring tokens.
    for ticket in tickets {
        sources.release(ticket.expect("within the burst"), 99_999);
    }
    assert_eq!(sources.admit(host(1), 99_999), Err(Refused::Rate));
    let _third = sources.admit(host(1), 100_000).expect("a token came");

    let sources = Sources::new(options(1, Some((10, 2)), 1_000));
    let first = sources.admit(host(1), 0).expect("the first");
    assert_eq!(sources.admit(host(1), 0), Err(Refused::Connections));
    sources.release(first, 0);
    let _second = sources
        .admit(host(1), 0)
        .expect("the refused one took no token");
}

/// Networks that all fall into the shard of `host(0)`.
fn of_one_shard(sources: &Sources) -> impl Iterator<Item = IpAddr> + '_ {
    let shard = move |ip| sources.shard_of(sources.key(ip));
    (0..)
        .map(host)
        .filter(move |ip| shard(*ip) == shard(host(0)))
}

#[test]
fn a_full_shard_gives_away_idle_entries_only() {
    let sources = Sources::new(options(0, Some((10, 2)), 3 * SHARDS));
    let ips: Vec<_> = of_one_shard(&sources).take(6).collect();
    let admit = |index: usize, now_us| sources.admit(ips[index], now_us);
    let keeps = admit(0, 0).expect("an entry");
    let ends = admit(1, 0).expect("an entry");
    let comes_back = admit(2, 0).expect("an entry");
    assert_eq!(admit(3, 0), Err(Refused::TableFull));

    // Without connections, but a bucket that is not full before 100,000 would be forgotten.
    sources.release(ends, 0);
    sources.release(comes_back, 0);
    assert_eq!(admit(3, 99_999), Err(Refused::TableFull));
    let comes_back = admit(2, 99_999).expect("known");
    sources.release(comes_back, 99_999);
    let fourth = admit(3, 100_000).expect("the entry of the second");
    // The third took a token at 99,999 when one was missing: full again at 200,000.
    assert_eq!(admit(4, 199_999), Err(Refused::TableFull));
    let fifth = admit(4, 200_000).expect("the entry of the third");
    assert_eq!(admit(5, u64::MAX >> 16), Err(Refused::TableFull));
    assert_eq!((sources.entries(), sources.table_full_total()), (3, 4));

    assert_eq!(sources.connections(ips[1]), 0);
    for (index, ticket) in [(0, keeps), (3, fourth), (4, fifth)] {
        assert_eq!(sources.connections(ips[index]), 1, "entry of {index}");
        sources.release(ticket, 300_000);
        assert_eq!(sources.connections(ips[index]), 0, "entry of {index}");
    }
}

#[test]
fn without_a_rate_an_entry_is_idle_with_its_last_connection() {
    let sources = Sources::new(options(1, None, SHARDS));
    let ips: Vec<_> = of_one_shard(&sources).take(1_000).collect();
    for (last, ip) in ips[..999].iter().zip(&ips[1..]) {
        let ticket = sources.admit(*last, 5).expect("an idle place");
        assert_eq!(sources.admit(*ip, 5), Err(Refused::TableFull));
        sources.release(ticket, 5);
    }
    assert_eq!(sources.entries(), 1);
}

#[test]
fn the_seed_and_nothing_else_chooses_the_places() {
    let places = |seed| {
        let sources = Sources::new(Options {
            seed,
            ..options(1, None, 1)
        });
        (0..640)
            .map(|n| sources.shard_of(sources.key(host(n))))
            .collect::<Vec<_>>()
    };
    assert_eq!(places(1), places(1));
    assert_ne!(places(1), places(2));
    let places = places(1);
    for shard in 0..SHARDS {
        let hits = places.iter().filter(|place| **place == shard).count();
        assert!(
            (1..40).contains(&hits),
            "{hits} of 640 networks in shard {shard}"
        );
    }
}

#[test]
fn an_entry_takes_no_more_than_it_says() {
    // A map of std doubles when 7/8 full, so that just after it there are 16/7 places an entry.
    let map_bytes = (size_of::<(Key, u32)>() + 1) * 16 / 7;
    let heap_bytes = size_of::<Reverse<(u64, u32)>>();
    // Vectors double, too.
    let most_bytes = size_of::<Slot>() * 2 + heap_bytes * 2 + map_bytes;
    assert!(most_bytes <= 180, "{most_bytes}");
    assert_eq!(size_of::<Ticket>(), 8);
}

/// Threads admit and release few networks at random; each network's count is kept beside the table.
#[test]
fn threads_never_exceed_a_limit_and_leave_nothing_behind() {
    const THREADS: u64 = 4;
    const NETWORKS: u32 = 200;
    const LIMIT: u32 = 3;
    // Fewer entries than networks, so that places change hands all the time.
    let sources = Sources::new(options(LIMIT, Some((1_000_000, 16)), SHARDS));
    let held: Vec<AtomicU32> = (0..NETWORKS).map(|_| AtomicU32::new(0)).collect();
    let clock_us = AtomicU64::new(0);
    let answers = [const { AtomicU64::new(0) }; 4];
    let work = |thread: u64| {
        let mut random = SeededHash(thread);
        let mut mine = Vec::new();
        for _ in 0..30_000 {
            random = SeededHash(random.hash_one(1));
            let now_us = clock_us.fetch_add(1, Ordering::Relaxed);
            if mine.len() > 20 || (random.0.is_multiple_of(2) && !mine.is_empty()) {
                let (network, ticket) = mine.swap_remove(random.0 as usize / 2 % mine.len());
                let held: &AtomicU32 = &held[network as usize];
                held.fetch_sub(1, Ordering::SeqCst);
                sources.release(ticket, now_us);
                continue;
            }
            // Half of them from few networks, so that these are at their limit.
            let networks = if random.0 & 0x80 == 0 { 4 } else { NETWORKS };
            let network = (random.0 >> 8) as u32 % networks;
            let answer = match sources.admit(host(network), now_us) {
                Ok(ticket) => {
                    let before = held[network as usize].fetch_add(1, Ordering::SeqCst);
                    assert!(before < LIMIT, "{} held by network {network}", before + 1);
                    mine.push((network, ticket));
                    0
                }
                Err(Refused::Connections) => 1,
                Err(Refused::Rate) => 2,
                Err(Refused::TableFull) => 3,
            };
            answers[answer].fetch_add(1, Ordering::Relaxed);
        }
        for (network, ticket) in mine {
            held[network as usize].fetch_sub(1, Ordering::SeqCst);
            sources.release(ticket, clock_us.load(Ordering::Relaxed));
        }
    };
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || work(thread));
        }
    });
    let answers = answers.map(AtomicU64::into_inner);
    assert!(
        answers[0] > 0 && answers[1] > 0 && answers[3] > 0,
        "{answers:?}"
    );
    assert_eq!(sources.table_full_total(), answers[3]);
    assert!(sources.entries() <= SHARDS);
    for network in 0..NETWORKS {
        assert_eq!(sources.connections(host(network)), 0, "network {network}");
    }
}

/// A table without bounds, hashes or evictions.
#[derive(Default)]
struct Model {
    /// Connections and `used` of each network.
    networks: HashMap<u32, (u32, u64)>,
}

proptest! {
    /// An eviction must not be seen but by `TableFull`, and that only when every entry is needed.
    #[test]
    fn answers_as_a_table_that_forgets_nothing(
        limit in 0..4_u32,
        rate in prop::option::of((1..2_000_000_u64, 1..4_u64)),
        entries in 1..5_usize,
        steps in prop::collection::vec((0..8_usize, 0..40_u64, any::<bool>()), 1..200),
    ) {
        let options = options(limit, rate, entries * SHARDS);
        let sources = Sources::new(options);
        let ips: Vec<_> = of_one_shard(&sources).take(8).collect();
        let mut model = Model::default();
        let mut tickets: Vec<(usize, Ticket)> = Vec::new();
        let mut now_us = 0;
        let full = |used, now_us| options.rate.is_none_or(|rate| rate.full_in_us(used, now_us) == 0);
        for (network, step_us, release) in steps {
            now_us += step_us;
            if release && !tickets.is_empty() {
                let (network, ticket) = tickets.swap_remove(network % tickets.len());
                sources.release(ticket, now_us);
                model.networks.get_mut(&(network as u32)).expect("admitted").0 -= 1;
                continue;
            }
            let key = network as u32;
            let fresh = (0, options.rate.map_or(0, |rate| rate.full(now_us)));
            let known = model.networks.entry(key).or_insert(fresh);
            let expected = if limit > 0 && known.0 >= limit {
                Err(Refused::Connections)
            } else {
                match options.rate.map_or(Ok(0), |rate| rate.take(known.1, now_us, 1)) {
                    Ok(used) => Ok(used),
                    Err(_) => Err(Refused::Rate),
                }
            };
            match sources.admit(ips[network], now_us) {
                Ok(ticket) => {
                    prop_assert!(expected.is_ok(), "{:?} expected", expected);
                    known.0 += 1;
                    known.1 = expected.expect("just seen");
                    tickets.push((network, ticket));
                }
                Err(Refused::TableFull) => {
                    let needed = model.networks.values().filter(|(connections, used)| {
                        *connections > 0 || !full(*used, now_us)
                    });
                    prop_assert_eq!(needed.count(), entries, "full though an entry was idle");
                }
                Err(refused) => prop_assert_eq!(expected, Err(refused)),
            }
        }
        for shard in &sources.shards {
            let shard = shard.lock().expect("no thread panicked");
            let rest = shard.slots.iter().filter(|slot| slot.rests).count();
            prop_assert_eq!(shard.resting.len(), rest, "a slot rests twice, or never again");
        }
        for (network, ip) in ips.iter().enumerate() {
            let expected = model.networks.get(&(network as u32)).map_or(0, |known| known.0);
            prop_assert_eq!(sources.connections(*ip), expected);
        }
    }
}
