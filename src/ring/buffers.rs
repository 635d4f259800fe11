//! The per-core slab and its two buffer rings.
//!
//! One mapping is cut into equal buffers. The first three quarters belong to the *fast* group, the
//! rest to the *slow* group, from which a direction takes while its peer does not keep up, so that
//! slow readers never starve the others. A buffer is always in exactly one of these places:
//!
//! ```text
//!   FREE (LIFO stack) ──offer──> IN_RING (kernel may write) ──completion──> HELD (ours) ──┐
//!     ▲                              ▲                                       │ ▲          │
//!     │                              │                                   lend│ │returned  │
//!     │                              │                                       ▼ │          │
//!     │                              │      LENT (kernel may read) <──release── SHARED    │
//!     │                              │            │returned                               │
//!     └──── window is full ──────────┴────────────┴──────── release ──────────────────────┘
//! ```
//!
//! Only a zero-copy send lends: there the kernel reads on after the send's completion, and whoever
//! releases the buffer meanwhile need not know.
//!
//! Bytes that wait for a peer's room do not keep a fast buffer: they are *set aside* on the heap, as many
//! bytes as the slab has, and the buffer goes back. Without that, more slow readers than the fast group has
//! buffers would keep all of them, and starve whoever keeps up. From then on such a direction takes from the
//! slow group.
//!
//! A buffer ring is FIFO, so that small messages cycle through all of it; only a window of each
//! group is therefore offered to the kernel, doubled when the kernel runs out and halved when it
//! stays quiet. Not here: which direction holds what.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use super::RingError;
use crate::sys::pages::Pages;

/// Which share of the slab a receive takes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Group {
    /// Directions whose peer keeps up.
    Fast = 0,
    /// Directions with a send that had to wait.
    Slow = 1,
}

impl Group {
    /// Both groups.
    pub const ALL: [Group; 2] = [Group::Fast, Group::Slow];
}

/// A buffer that holds received bytes: its owner must hand it back with [`BufferPool::release`].
/// Numbers from `ASIDE_FIRST` on are not of the slab.
#[derive(Debug, PartialEq, Eq)]
pub struct Buffer(u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    InRing,
    Held,
    /// Held, and the kernel reads it.
    Shared,
    /// Released by its holder, and the kernel still reads it.
    Lent,
}

#[cfg(test)]
impl Buffer {
    /// The same buffer once more, as the kernel knows it while it sends from it.
    pub fn alias(&self) -> Buffer {
        Buffer(self.0)
    }
}

/// What may be set aside beside a small slab, too.
const ASIDE_MIN_BYTES: usize = 16 * 1024 * 1024;
/// The slab has no more buffers than this; higher numbers are bytes that were set aside.
const ASIDE_FIRST: u16 = 32_768;
/// Buffers that a group offers to the kernel at first.
const WINDOW_FIRST: [u16; 2] = [64, 16];
/// A window is halved after this many releases during which the kernel never used half of it.
const SHRINK_AFTER_RELEASES: u32 = 65_536;
/// The kernel lets one fixed buffer be 1 GiB at most (io_uring_register(2)).
const FIXED_MAX_BYTES: usize = 1 << 30;
/// The kernel may hold one in so many buffers for zero-copy sends: half of what slow readers have.
const LENT_SHARE: usize = 8;
/// What debug builds write into released buffers.
const POISON: u8 = 0xDB;

struct Share {
    first: u16,
    capacity: u16,
    free: Vec<u16>,
    window: u16,
    in_ring: u16,
    /// Fewest buffers left in the ring since the last look.
    in_ring_low: u16,
    releases: u32,
    entries: Pages,
    mask: u16,
    tail: u16,
    /// What the kernel would have consumed.
    #[cfg(test)]
    head: u16,
}

/// The slab, its buffer rings, and who holds what.
pub struct BufferPool {
    slab: Pages,
    size_bytes: u32,
    places: Vec<Place>,
    shares: [Share; 2],
    /// Buffers that the kernel reads for a zero-copy send.
    lent: usize,
    /// Bytes on the heap, by number from [`ASIDE_FIRST`] on.
    aside: Vec<Option<Box<[u8]>>>,
    aside_free: Vec<u16>,
    /// Bounded by the size of the slab, or [`ASIDE_MIN_BYTES`].
    aside_bytes: usize,
    aside_refused_total: u64,
    exhausted_total: u64,
}

impl BufferPool {
    /// Maps the slab; nothing of it is resident yet.
    pub fn new(size_bytes: u32, count: u32) -> io::Result<Self> {
        assert!(
            (2..=32_768).contains(&count) && size_bytes >= 64,
            "checked by the configuration"
        );
        let slab = Pages::map(size_bytes as usize * count as usize)?;
        let slow = (count / 4).max(1) as u16;
        let fast = count as u16 - slow;
        Ok(Self {
            slab,
            size_bytes,
            places: vec![Place::Free; count as usize],
            shares: [
                Share::new(0, fast, WINDOW_FIRST[0])?,
                Share::new(fast, slow, WINDOW_FIRST[1])?,
            ],
            lent: 0,
            aside: Vec::new(),
            aside_free: Vec::new(),
            aside_bytes: 0,
            aside_refused_total: 0,
            exhausted_total: 0,
        })
    }

    /// Registers both buffer rings and offers the first windows.
    pub(super) fn register(&mut self, submitter: &Submitter<'_>) -> Result<(), RingError> {
        for group in Group::ALL {
            let share = &self.shares[group as usize];
            let address = share.entries.base().as_ptr() as u64;
            // SAFETY: the entries are a page-aligned mapping of mask + 1 entries that this pool
            // owns, and the pool is dropped after the ring (see `RelayRing`'s field order).
            unsafe {
                submitter.register_buf_ring_with_flags(address, share.mask + 1, group as u16, 0)
            }
            .map_err(RingError::BufferRing)?;
            self.fill(group);
        }
        Ok(())
    }

    /// Registers the slab as fixed buffers, which pins all of it in memory.
    pub(super) fn register_fixed(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let chunk_bytes = self.chunk_buffers() * self.size_bytes as usize;
        let base = self.slab.base().as_ptr();
        let chunks: Vec<libc::iovec> = (0..self.slab.len())
            .step_by(chunk_bytes)
            .map(|offset| libc::iovec {
                iov_base: base.wrapping_add(offset).cast(),
                iov_len: chunk_bytes.min(self.slab.len() - offset),
            })
            .collect();
        // SAFETY: every chunk lies inside the slab, which this pool owns; the pool is dropped after the
        // ring (see `RelayRing`'s field order), and pinned pages outlive even their mapping.
        unsafe { submitter.register_buffers(&chunks) }
    }

    /// The fixed buffer that a buffer lies in, as registered by `register_fixed`.
    pub(super) fn fixed_index(&self, id: u16) -> u16 {
        (usize::from(id) / self.chunk_buffers()) as u16
    }

    /// Whole buffers in one fixed buffer.
    fn chunk_buffers(&self) -> usize {
        FIXED_MAX_BYTES / self.size_bytes as usize
    }

    /// Size of one buffer, in bytes.
    pub fn size_bytes(&self) -> u32 {
        self.size_bytes
    }

    /// Buffers in the slab.
    pub fn total(&self) -> usize {
        self.places.len()
    }

    /// Buffers offered to the kernel.
    pub fn in_ring(&self) -> usize {
        self.shares
            .iter()
            .map(|share| usize::from(share.in_ring))
            .sum()
    }

    /// Buffers that hold bytes.
    pub fn held(&self) -> usize {
        let free: usize = self.shares.iter().map(|share| share.free.len()).sum();
        self.places.len() - free - self.in_ring()
    }

    /// Buffers' worth of bytes that were set aside.
    pub fn set_aside_now(&self) -> usize {
        self.aside.len() - self.aside_free.len()
    }

    /// How often a buffer was kept by bytes that wait, because as much as may be was set aside.
    pub fn aside_refused_total(&self) -> u64 {
        self.aside_refused_total
    }

    /// Copies the first `len` bytes of a fast buffer, which are going to wait, to the heap and gives the
    /// buffer back. A slow one stays what it is.
    pub fn set_aside(&mut self, buffer: &mut Buffer, len: u32) {
        if buffer.0 >= ASIDE_FIRST || self.group_of(buffer.0) == Group::Slow {
            return;
        }
        let slab_bytes = self.places.len() * self.size_bytes as usize;
        if self.aside_bytes + len as usize > slab_bytes.max(ASIDE_MIN_BYTES) {
            self.aside_refused_total += 1;
            return;
        }
        let bytes = Some(Box::from(self.bytes(buffer, len)));
        let id = match self.aside_free.pop() {
            Some(id) => {
                self.aside[usize::from(id - ASIDE_FIRST)] = bytes;
                id
            }
            None => {
                let Ok(id) = u16::try_from(usize::from(ASIDE_FIRST) + self.aside.len()) else {
                    // As many as there are numbers: the buffer waits.
                    self.aside_refused_total += 1;
                    return;
                };
                self.aside.push(bytes);
                id
            }
        };
        self.aside_bytes += len as usize;
        let freed = std::mem::replace(buffer, Buffer(id));
        self.release(freed);
    }

    /// Receives that found their group empty.
    pub fn exhausted_total(&self) -> u64 {
        self.exhausted_total
    }

    /// The kernel filled this buffer: it is ours now.
    pub(super) fn take(&mut self, id: u16) -> Buffer {
        let place = &mut self.places[usize::from(id)];
        assert_eq!(
            *place,
            Place::InRing,
            "the kernel filled buffer {id} that it was not offered"
        );
        *place = Place::Held;
        let share = &mut self.shares[self.group_of(id) as usize];
        share.in_ring -= 1;
        share.in_ring_low = share.in_ring_low.min(share.in_ring);
        Buffer(id)
    }

    /// The first `len` bytes of a held buffer.
    pub fn bytes(&self, buffer: &Buffer, len: u32) -> &[u8] {
        if buffer.0 >= ASIDE_FIRST {
            let aside = self.aside[usize::from(buffer.0 - ASIDE_FIRST)].as_ref();
            return &aside.expect("released only by its holder")[..len as usize];
        }
        let place = self.places[usize::from(buffer.0)];
        assert!(len <= self.size_bytes && matches!(place, Place::Held | Place::Shared));
        // SAFETY: a held buffer lies inside the slab, is initialised (mapped zeroed), and the kernel
        // does not write to it: it is neither in a buffer ring nor the target of any operation.
        unsafe { std::slice::from_raw_parts(self.address(buffer.0), len as usize) }
    }

    /// Buffers of the group that the kernel may fill.
    pub fn offered(&self, group: Group) -> usize {
        usize::from(self.shares[group as usize].in_ring)
    }

    /// Lets the kernel read a held buffer until [`BufferPool::returned`]. `None` if it reads this one
    /// already, or if it has its share: slow readers must not keep all buffers from the others.
    pub(crate) fn lend(&mut self, buffer: &Buffer) -> Option<u16> {
        let lent_max = self.places.len() / LENT_SHARE;
        if buffer.0 >= ASIDE_FIRST {
            return None;
        }
        let place = &mut self.places[usize::from(buffer.0)];
        if *place != Place::Held || self.lent >= lent_max {
            return None;
        }
        *place = Place::Shared;
        self.lent += 1;
        Some(buffer.0)
    }

    /// The kernel does not read a lent buffer any more.
    pub(crate) fn returned(&mut self, id: u16) {
        self.lent -= 1;
        match self.places[usize::from(id)] {
            Place::Shared => self.places[usize::from(id)] = Place::Held,
            Place::Lent => self.free(id),
            other => panic!("buffer {id} was not lent: {other:?}"),
        }
    }

    /// Gives a buffer back. One that the kernel still reads is free when it does not any more.
    pub fn release(&mut self, buffer: Buffer) {
        let id = buffer.0;
        if id >= ASIDE_FIRST {
            let bytes = self.aside[usize::from(id - ASIDE_FIRST)].take();
            self.aside_bytes -= bytes.expect("released twice").len();
            return self.aside_free.push(id);
        }
        match self.places[usize::from(id)] {
            Place::Held => self.free(id),
            Place::Shared => self.places[usize::from(id)] = Place::Lent,
            _ => panic!("buffer {id} released twice"),
        }
    }

    fn free(&mut self, id: u16) {
        if cfg!(debug_assertions) {
            // SAFETY: the buffer was held or lent and is not any more: nobody reads or writes it.
            unsafe {
                self.address(id)
                    .write_bytes(POISON, self.size_bytes as usize)
            };
        }
        let group = self.group_of(id);
        self.places[usize::from(id)] = Place::Free;
        let share = &mut self.shares[group as usize];
        share.free.push(id);
        share.note_release();
        if share.in_ring < share.window {
            self.offer(group);
        }
    }

    /// A receive found its group empty: widens the window. True if the kernel has buffers again.
    pub fn widen(&mut self, group: Group) -> bool {
        self.exhausted_total += 1;
        let share = &mut self.shares[group as usize];
        share.window = share.window.saturating_mul(2).min(share.capacity);
        share.releases = 0;
        self.fill(group);
        self.shares[group as usize].in_ring > 0
    }

    fn fill(&mut self, group: Group) {
        while self.shares[group as usize].in_ring < self.shares[group as usize].window {
            if !self.offer(group) {
                break;
            }
        }
    }

    /// Moves the most recently used free buffer into the group's ring.
    fn offer(&mut self, group: Group) -> bool {
        let Some(id) = self.shares[group as usize].free.pop() else {
            return false;
        };
        let address = self.address(id) as u64;
        self.places[usize::from(id)] = Place::InRing;
        let size_bytes = self.size_bytes;
        self.shares[group as usize].push(id, address, size_bytes);
        true
    }

    fn group_of(&self, id: u16) -> Group {
        if id < self.shares[Group::Slow as usize].first {
            Group::Fast
        } else {
            Group::Slow
        }
    }

    fn address(&self, id: u16) -> *mut u8 {
        let offset = usize::from(id) * self.size_bytes as usize;
        assert!(offset + self.size_bytes as usize <= self.slab.len());
        // SAFETY: the offset was checked to lie inside the mapping.
        unsafe { self.slab.base().as_ptr().add(offset) }
    }
}

/// The kernel's part, for tests without a kernel.
#[cfg(test)]
impl BufferPool {
    /// Offers the first windows, as registering does.
    pub fn offer_first_windows(&mut self) {
        for group in Group::ALL {
            self.fill(group);
        }
    }

    /// What the kernel reads of a lent buffer, whether its holder has released it or not.
    pub fn kernel_reads(&self, id: u16) -> &[u8] {
        let place = self.places[usize::from(id)];
        assert!(matches!(place, Place::Shared | Place::Lent), "{place:?}");
        // SAFETY: a lent buffer lies inside the slab, is initialised, and nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.address(id), self.size_bytes as usize) }
    }

    /// Takes the oldest buffer of the group's ring and fills it, as a receive does.
    pub fn kernel_fills(&mut self, group: Group, bytes: &[u8]) -> Option<Buffer> {
        assert!(bytes.len() <= self.size_bytes as usize);
        let share = &mut self.shares[group as usize];
        if share.head == share.tail {
            return None;
        }
        let base = share.entries.base().as_ptr().cast::<BufRingEntry>();
        // SAFETY: the index is masked to the ring's entries, all inside the mapping.
        let slot = unsafe { base.add(usize::from(share.head & share.mask)) };
        // SAFETY: the entry lies before the tail: it was written by `push`.
        let entry = unsafe { &*slot };
        let (id, address) = (entry.bid(), entry.addr() as *mut u8);
        share.head = share.head.wrapping_add(1);
        assert_eq!(address, self.address(id));
        // SAFETY: the buffer is in the ring: nobody but this stand-in for the kernel uses it.
        unsafe { address.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Some(self.take(id))
    }
}

impl Share {
    fn new(first: u16, capacity: u16, window: u16) -> io::Result<Self> {
        let entries = capacity.next_power_of_two();
        Ok(Self {
            first,
            capacity,
            // Popped from the end: the lowest buffers are touched first.
            free: (first..first + capacity).rev().collect(),
            window: window.min(capacity),
            in_ring: 0,
            in_ring_low: 0,
            releases: 0,
            entries: Pages::map(usize::from(entries) * size_of::<BufRingEntry>())?,
            mask: entries - 1,
            tail: 0,
            #[cfg(test)]
            head: 0,
        })
    }

    fn push(&mut self, id: u16, address: u64, size_bytes: u32) {
        let base = self.entries.base().as_ptr().cast::<BufRingEntry>();
        // SAFETY: the index is masked to the ring's entries, all inside the mapping.
        let slot = unsafe { base.add(usize::from(self.tail & self.mask)) };
        // SAFETY: the kernel reads only entries before the published tail; this one is after it.
        let entry = unsafe { &mut *slot };
        entry.set_addr(address);
        entry.set_len(size_bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        self.in_ring += 1;
        // SAFETY: `base` is the first entry of a registered ring, whose `resv` field is the tail.
        let tail = unsafe { BufRingEntry::tail(base) };
        // SAFETY: the tail is an aligned u16 that only this thread writes.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Release: the kernel must see the entry before the tail that covers it.
        tail.store(self.tail, Ordering::Release);
    }

    fn note_release(&mut self) {
        self.releases += 1;
        if self.releases < SHRINK_AFTER_RELEASES {
            return;
        }
        if self.in_ring_low > self.window / 2 {
            self.window = (self.window / 2).max(WINDOW_FIRST[1].min(self.capacity));
        }
        self.releases = 0;
        self.in_ring_low = self.in_ring;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(count: u32) -> BufferPool {
        let mut pool = BufferPool::new(64, count).unwrap();
        pool.offer_first_windows();
        pool
    }

    #[test]
    fn no_more_is_set_aside_than_the_bound_and_it_counts_back() {
        const BUFFER_BYTES: u32 = 1024 * 1024;
        const BUFFERS: u32 = 64;
        let mut pool = BufferPool::new(BUFFER_BYTES, BUFFERS).unwrap();
        pool.offer_first_windows();
        let mut aside = Vec::new();
        // Each is set aside as often as asked for, until the slab's worth is reached.
        for _ in 0..BUFFERS + 1 {
            let mut buffer = pool.kernel_fills(Group::Fast, &[1; 16]).unwrap();
            pool.set_aside(&mut buffer, BUFFER_BYTES);
            if buffer.0 < ASIDE_FIRST {
                pool.release(buffer);
                break;
            }
            aside.push(buffer);
            pool.widen(Group::Fast);
        }
        assert_eq!(aside.len(), BUFFERS as usize);
        assert_eq!(pool.aside_refused_total(), 1);
        for buffer in aside {
            pool.release(buffer);
        }
        assert_eq!((pool.set_aside_now(), pool.aside_bytes), (0, 0));
    }

    #[test]
    fn every_buffer_is_in_one_place_and_comes_back() {
        let mut pool = pool(1_024);
        assert_eq!(pool.in_ring(), 64 + 16);
        let mut held = Vec::new();
        for round in 0u8..100 {
            if let Some(buffer) = pool.kernel_fills(Group::Fast, &[round; 8]) {
                assert_eq!(pool.bytes(&buffer, 8), [round; 8]);
                held.push(buffer);
            } else {
                assert!(
                    pool.widen(Group::Fast),
                    "only 64 of 768 were offered so far"
                );
            }
        }
        assert_eq!(pool.held(), held.len());
        for buffer in held {
            pool.release(buffer);
        }
        assert_eq!(pool.held(), 0);
    }

    #[test]
    fn a_group_that_is_all_held_cannot_be_widened_and_the_other_is_untouched() {
        let mut pool = pool(64);
        let mut held = Vec::new();
        loop {
            match pool.kernel_fills(Group::Slow, b"x") {
                Some(buffer) => held.push(buffer),
                None if pool.widen(Group::Slow) => {}
                None => break,
            }
        }
        assert_eq!(held.len(), 16, "a quarter of the slab");
        assert!(pool.kernel_fills(Group::Fast, b"x").is_some());
        pool.release(held.pop().unwrap());
        assert!(pool.kernel_fills(Group::Slow, b"x").is_some());
    }

    #[test]
    fn a_quiet_window_shrinks() {
        let mut pool = pool(4_096);
        while pool.shares[0].window < 3_072 {
            pool.widen(Group::Fast);
        }
        for _ in 0..20 * SHRINK_AFTER_RELEASES {
            let buffer = pool.kernel_fills(Group::Fast, b"x").unwrap();
            pool.release(buffer);
        }
        assert!(
            pool.shares[0].window <= 64,
            "still {}",
            pool.shares[0].window
        );
        assert!(pool.in_ring() <= 64 + 16, "still {}", pool.in_ring());
    }

    #[test]
    #[should_panic(expected = "not offered")]
    fn a_buffer_that_was_not_offered_is_refused() {
        let mut pool = pool(64);
        pool.take(47);
        pool.take(47);
    }
}
