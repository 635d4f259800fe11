//! How many connections a source network has, and how fast new ones come.
//!
//! ```text
//!                     ┌── shard ── Mutex { slots, index by network, idle soonest first }
//!  ip ── network ── hash ── shard
//!                     └── shard                         an entry:   new ──> connected <──> resting
//!                                                                    ^                        │ full bucket,
//!                                                                    └── evicted when needed ─┘ table full
//! ```
//!
//! Exact and shared by all cores: an address of a network may be accepted by any of them. It is on
//! the accept path only; a lock is held for one look-up, by those who hit the same shard at the same
//! time.
//!
//! The table is bounded, whoever connects. An entry is needed while the network has connections or
//! its bucket is not full, and is as good as none after that; a new network takes its place, but not
//! before the shard is full. If none can be taken, the answer is [`Refused::TableFull`], and it is for
//! the caller to say whether such a connection is allowed.
//!
//! Memory: at most 180 bytes an entry, taken as networks come and kept.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, DefaultHasher, Hasher};
use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::bucket::Rate;
use crate::units::network::Network;

/// Locks in a table. Far more than the cores that could wait for one of them.
const SHARDS: usize = 64;
/// Which bits of a hash choose the shard: not the lowest nor the highest ones, which choose the
/// place in the shard's map.
const SHARD_SHIFT_BITS: u32 = 40;

/// What a table of sources enforces.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Leading bits of an IPv4 address that make up its network; more than 32 count as 32.
    pub v4_prefix_bits: u8,
    /// The same for IPv6; more than 128 count as 128. One subscriber commonly has a whole /64.
    pub v6_prefix_bits: u8,
    /// Most connections of one network at a time; `None`: any number.
    pub connections_max: Option<NonZeroU32>,
    /// New connections of one network; `None`: as fast as they come.
    pub rate: Option<Rate>,
    /// Most networks known at a time, rounded up to a multiple of 64. Each of the 64 parts of the
    /// table is full for itself, so that the first [`Refused::TableFull`] may come a little sooner.
    pub entries_max: NonZeroUsize,
    /// Secret and random, or else clients can choose addresses that all fall into the same place.
    pub seed: u64,
}

/// Why a connection is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// Its network has as many as it may have.
    Connections,
    /// Its network opened too many lately.
    Rate,
    /// Its network is not known and there is no room for one more. Counted in
    /// [`Sources::table_full_total`].
    TableFull,
}

/// One admitted connection: to be given to [`Sources::release`] of the table it came from when the
/// connection ends. Eight bytes without a destructor, so that it can wait in a session's record.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "without a release the network keeps a connection for good"]
pub struct Ticket {
    shard: u32,
    slot: u32,
}

/// The table.
#[derive(Debug)]
pub struct Sources {
    options: Options,
    hash: SeededHash,
    entries_per_shard: usize,
    shards: Box<[Mutex<Shard>]>,
    table_full_total: AtomicU64,
}

impl Sources {
    /// An empty table.
    pub fn new(options: Options) -> Self {
        let hash = SeededHash(options.seed);
        Self {
            options,
            hash,
            entries_per_shard: options.entries_max.get().div_ceil(SHARDS),
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::new(hash))).collect(),
            table_full_total: AtomicU64::new(0),
        }
    }

    /// Counts one more connection from `ip`, if its network may have it. A refused one costs no
    /// token of the rate.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, ip: IpAddr, now_us: u64) -> Result<Ticket, Refused> {
        let key = self.key(ip);
        let index = self.shard_of(key);
        let mut shard = self.lock(index);
        let slot = match shard.find(key) {
            Some(slot) => slot,
            None => match shard.enter(key, self.entries_per_shard, &self.options, now_us) {
                Some(slot) => slot,
                None => {
                    drop(shard);
                    self.table_full_total.fetch_add(1, Ordering::Relaxed);
                    return Err(Refused::TableFull);
                }
            },
        };
        shard.connect(slot, &self.options, now_us)?;
        let narrow = |number| u32::try_from(number).expect("bounded by Shard::enter");
        Ok(Ticket {
            shard: narrow(index),
            slot: narrow(slot),
        })
    }

    /// Takes back what [`Self::admit`] counted.
    ///
    /// # Panics
    /// With a ticket of another table, if this one has no such connection.
    pub fn release(&self, ticket: Ticket, now_us: u64) {
        let mut shard = self.lock(ticket.shard as usize);
        shard.disconnect(ticket.slot as usize, &self.options, now_us);
    }

    /// Connections of the network of `ip` now.
    pub fn connections(&self, ip: IpAddr) -> u32 {
        let key = self.key(ip);
        let shard = self.lock(self.shard_of(key));
        let slot = shard.find(key).map(|slot| &shard.slots[slot]);
        slot.map_or(0, |slot| slot.connections)
    }

    /// Networks in the table, those included whose place a new one may take.
    pub fn entries(&self) -> usize {
        let shards = 0..self.shards.len();
        shards.map(|index| self.lock(index).slots.len()).sum()
    }

    /// How often the answer was [`Refused::TableFull`].
    pub fn table_full_total(&self) -> u64 {
        self.table_full_total.load(Ordering::Relaxed)
    }

    fn key(&self, ip: IpAddr) -> Key {
        let ip = ip.to_canonical();
        let bits = match ip {
            IpAddr::V4(_) => self.options.v4_prefix_bits.min(32),
            IpAddr::V6(_) => self.options.v6_prefix_bits.min(128),
        };
        let network = Network::around(ip, bits).expect("no more bits than it has");
        match network.first() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            // None of these is an IPv4-mapped one: `ip` was not.
            IpAddr::V6(ip) => ip.to_bits(),
        }
    }

    fn shard_of(&self, key: Key) -> usize {
        let hash = self.hash.hash_one(key) >> SHARD_SHIFT_BITS;
        usize::try_from(hash).expect("24 bits are left") % SHARDS
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Shard> {
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// First address of a network, as IPv6.
type Key = u128;

/// The hash of the standard library with a seed of ours: the same places for the same seed, which
/// its `RandomState` would not give.
#[derive(Clone, Copy, Debug)]
struct SeededHash(u64);

impl BuildHasher for SeededHash {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

/// One network.
#[derive(Debug)]
struct Slot {
    key: Key,
    /// State of its bucket: see [`Rate`].
    used: u64,
    connections: u32,
    /// It is in [`Shard::resting`].
    rests: bool,
}

#[derive(Debug)]
struct Shard {
    index: HashMap<Key, u32, SeededHash>,
    slots: Vec<Slot>,
    /// Slots without connections by the time at which their bucket is full, soonest first. A slot is
    /// in it once at most. It may have got connections since, and the time may be later by now, but
    /// never sooner: what is not there yet by this time is not idle.
    resting: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Shard {
    fn new(hash: SeededHash) -> Self {
        Self {
            index: HashMap::with_hasher(hash),
            slots: Vec::new(),
            resting: BinaryHeap::new(),
        }
    }

    fn find(&self, key: Key) -> Option<usize> {
        self.index.get(&key).map(|slot| *slot as usize)
    }

    /// A slot for a new network; `None` if all are needed.
    fn enter(&mut self, key: Key, max: usize, options: &Options, now_us: u64) -> Option<usize> {
        let fresh = Slot {
            key,
            used: options.rate.map_or(0, |rate| rate.full(now_us)),
            connections: 0,
            rests: false,
        };
        let slot = if self.slots.len() < max.min(u32::MAX as usize) {
            self.slots.push(fresh);
            self.slots.len() - 1
        } else {
            let slot = self.take_idle(options, now_us)?;
            self.index.remove(&self.slots[slot].key);
            self.slots[slot] = fresh;
            slot
        };
        let narrow = u32::try_from(slot).expect("bounded above");
        self.index.insert(key, narrow);
        Some(slot)
    }

    /// A slot that is as good as none, out of `resting`. Each turn of the loop ends a rest that a
    /// release began, or puts off one whose bucket was taken from since: no flood makes it long.
    fn take_idle(&mut self, options: &Options, now_us: u64) -> Option<usize> {
        while let Some(Reverse((full_at_us, number))) = self.resting.peek().copied() {
            if full_at_us > now_us {
                return None;
            }
            self.resting.pop();
            let slot = &mut self.slots[number as usize];
            slot.rests = false;
            if slot.connections > 0 {
                continue;
            }
            let full_at_us = slot.full_at_us(options, now_us);
            if full_at_us <= now_us {
                return Some(number as usize);
            }
            slot.rests = true;
            self.resting.push(Reverse((full_at_us, number)));
        }
        None
    }

    fn connect(&mut self, slot: usize, options: &Options, now_us: u64) -> Result<(), Refused> {
        let slot = &mut self.slots[slot];
        // Without a limit of its own it is the counter's.
        let max = options.connections_max.map_or(u32::MAX, NonZeroU32::get);
        if slot.connections >= max {
            return Err(Refused::Connections);
        }
        if let Some(rate) = options.rate {
            slot.used = rate.take(slot.used, now_us, 1).map_err(|_| Refused::Rate)?;
        }
        slot.connections += 1;
        Ok(())
    }

    fn disconnect(&mut self, number: usize, options: &Options, now_us: u64) {
        let slot = &mut self.slots[number];
        assert!(slot.connections > 0, "a ticket of another table");
        slot.connections -= 1;
        if slot.connections == 0 && !slot.rests {
            slot.rests = true;
            let full_at_us = slot.full_at_us(options, now_us);
            let number = u32::try_from(number).expect("it came out of a ticket");
            self.resting.push(Reverse((full_at_us, number)));
        }
    }
}

impl Slot {
    fn full_at_us(&self, options: &Options, now_us: u64) -> u64 {
        match options.rate {
            Some(rate) => now_us.saturating_add(rate.full_in_us(self.used, now_us)),
            None => now_us,
        }
    }
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
