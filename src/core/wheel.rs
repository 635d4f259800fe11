//! A hierarchical timer wheel with a tick of one millisecond. Pure: the caller brings the time.
//!
//! ```text
//!   level 0: 64 slots of 1 ms      level 3: 64 slots of 4.4 min
//!   level 1: 64 slots of 64 ms     level 4: 64 slots of 4.7 h
//!   level 2: 64 slots of 4.1 s     (12.4 days; a later deadline waits at the end and moves on)
//! ```
//!
//! Setting and cancelling are O(1): the entries of a slot are a doubly linked list in one vector.
//! An entry moves to a finer level when its slot comes up, at most four times in its life. A timer
//! never fires early; it fires in the first [`Wheel::expire`] at or after its deadline.
//! After Varghese and Lauck, "Hashed and hierarchical timing wheels" (1987).

const LEVELS: usize = 5;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const NONE: u32 = u32::MAX;

/// A running timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId {
    index: u32,
    generation: u32,
}

#[derive(Clone, Copy)]
struct Entry<T> {
    deadline_ms: u64,
    value: Option<T>,
    previous: u32,
    next: u32,
    /// Level × 64 + slot, to unlink the head of a list.
    place: u16,
    generation: u32,
}

/// Timers that carry a value each.
pub struct Wheel<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    heads: [[u32; SLOTS]; LEVELS],
    /// One bit per slot that is not empty.
    occupied: [u64; LEVELS],
    now_ms: u64,
    len: usize,
}

impl<T: Copy> Wheel<T> {
    /// An empty wheel.
    pub fn new(now_ms: u64) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            heads: [[NONE; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
            now_ms,
            len: 0,
        }
    }

    /// Timers running.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer runs.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Starts a timer. A deadline in the past fires at the next tick.
    pub fn set(&mut self, deadline_ms: u64, value: T) -> TimerId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry {
                deadline_ms: 0,
                value: None,
                previous: NONE,
                next: NONE,
                place: 0,
                generation: 0,
            });
            (self.entries.len() - 1) as u32
        });
        let entry = &mut self.entries[index as usize];
        entry.deadline_ms = deadline_ms;
        entry.value = Some(value);
        let generation = entry.generation;
        self.link(index);
        self.len += 1;
        TimerId { index, generation }
    }

    /// Stops a timer; one that fired already is left alone. Returns whether it was running.
    pub fn cancel(&mut self, id: TimerId) -> bool {
        let entry = &self.entries[id.index as usize];
        if entry.generation != id.generation || entry.value.is_none() {
            return false;
        }
        self.unlink(id.index);
        self.retire(id.index);
        true
    }

    /// The earliest moment at which [`Wheel::expire`] may have something to do: exact for the
    /// coming 64 ms, else the moment when a coarser slot is due to be looked into.
    pub fn next_ms(&self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let mut earliest = u64::MAX;
        for level in 0..LEVELS {
            if self.occupied[level] == 0 {
                continue;
            }
            let shift = SLOT_BITS * level as u32;
            let position = self.now_ms >> shift;
            let current = (position % SLOTS as u64) as u32;
            // Level 0 may hold the current slot's own timers; of a coarser level the current slot
            // has been emptied, so that an entry there is a full turn away.
            let first = if level == 0 {
                current
            } else {
                (current + 1) % SLOTS as u32
            };
            let ahead = u64::from(self.occupied[level].rotate_right(first).trailing_zeros());
            let steps = if level == 0 { ahead } else { ahead + 1 };
            earliest = earliest.min((position + steps) << shift);
        }
        Some(earliest)
    }

    /// Moves the time on and appends the values of the timers that are due, earliest tick first.
    pub fn expire(&mut self, now_ms: u64, due: &mut Vec<T>) {
        while let Some(next) = self.next_ms().filter(|&next| next <= now_ms) {
            self.now_ms = self.now_ms.max(next);
            self.cascade();
            self.fire(due);
        }
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// Empties the coarse slots that the current time has just entered into finer ones.
    fn cascade(&mut self) {
        for level in (1..LEVELS).rev() {
            let shift = SLOT_BITS * level as u32;
            let slot = ((self.now_ms >> shift) % SLOTS as u64) as usize;
            let mut index = std::mem::replace(&mut self.heads[level][slot], NONE);
            self.occupied[level] &= !(1 << slot);
            while index != NONE {
                let next = self.entries[index as usize].next;
                self.link(index);
                index = next;
            }
        }
    }

    fn fire(&mut self, due: &mut Vec<T>) {
        let slot = (self.now_ms % SLOTS as u64) as usize;
        let mut index = std::mem::replace(&mut self.heads[0][slot], NONE);
        self.occupied[0] &= !(1 << slot);
        while index != NONE {
            let next = self.entries[index as usize].next;
            due.extend(self.entries[index as usize].value);
            self.retire(index);
            index = next;
        }
    }

    fn link(&mut self, index: u32) {
        let deadline = self.entries[index as usize].deadline_ms.max(self.now_ms);
        let (level, slot) = self.place(deadline);
        let head = self.heads[level][slot];
        let entry = &mut self.entries[index as usize];
        entry.previous = NONE;
        entry.next = head;
        entry.place = (level * SLOTS + slot) as u16;
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        self.heads[level][slot] = index;
        self.occupied[level] |= 1 << slot;
    }

    /// The finest level whose turn reaches the deadline. A slot equal to a coarse level's current
    /// one would be taken for due, so a level reaches 63 slots ahead of its own position.
    fn place(&self, deadline_ms: u64) -> (usize, usize) {
        for level in 0..LEVELS {
            let shift = SLOT_BITS * level as u32;
            let ahead = (deadline_ms >> shift) - (self.now_ms >> shift);
            if ahead < SLOTS as u64 {
                return (level, ((deadline_ms >> shift) % SLOTS as u64) as usize);
            }
        }
        let shift = SLOT_BITS * (LEVELS as u32 - 1);
        let last = (self.now_ms >> shift) + SLOTS as u64 - 1;
        (LEVELS - 1, (last % SLOTS as u64) as usize)
    }

    fn unlink(&mut self, index: u32) {
        let Entry {
            previous,
            next,
            place,
            ..
        } = self.entries[index as usize];
        let (level, slot) = (usize::from(place) / SLOTS, usize::from(place) % SLOTS);
        if previous == NONE {
            debug_assert_eq!(self.heads[level][slot], index);
            self.heads[level][slot] = next;
            if next == NONE {
                self.occupied[level] &= !(1 << slot);
            }
        } else {
            self.entries[previous as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
    }

    fn retire(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.value = None;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(index);
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u64),
        Cancel(usize),
        Advance(u64),
        /// Sleep exactly as long as the wheel asks for, as a core does.
        Sleep,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop_oneof![0u64..200, 0u64..300_000, 0u64..3_000_000_000].prop_map(Step::Set),
            (0usize..64).prop_map(Step::Cancel),
            prop_oneof![0u64..100, 0u64..10_000, 0u64..2_000_000_000].prop_map(Step::Advance),
            Just(Step::Sleep),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn agrees_with_a_plain_map(start in 0u64..1_000_000, steps in prop::collection::vec(step(), 1..80)) {
            let mut now = start;
            let mut wheel = Wheel::new(now);
            let mut model: HashMap<u32, (u64, TimerId)> = HashMap::new();
            let mut serial = 0u32;
            for step in steps {
                match step {
                    Step::Set(after) => {
                        let id = wheel.set(now + after, serial);
                        model.insert(serial, (now + after, id));
                        serial += 1;
                    }
                    Step::Cancel(nth) => {
                        let key = model.keys().copied().nth(nth);
                        if let Some(key) = key {
                            let (_, id) = model.remove(&key).unwrap();
                            prop_assert!(wheel.cancel(id));
                            prop_assert!(!wheel.cancel(id));
                        }
                    }
                    Step::Advance(by) => now += by,
                    Step::Sleep => {
                        if let Some(next) = wheel.next_ms() {
                            let earliest = model.values().map(|&(deadline, _)| deadline).min().unwrap();
                            prop_assert!(next <= earliest.max(now), "would oversleep");
                            now = now.max(next);
                        }
                    }
                }
                let mut due = Vec::new();
                wheel.expire(now, &mut due);
                for value in due {
                    let (deadline, _) = model.remove(&value).expect("fired once, and was set");
                    prop_assert!(deadline <= now, "fired early");
                }
                prop_assert!(model.values().all(|&(deadline, _)| deadline > now), "fired late");
                prop_assert_eq!(wheel.len(), model.len());
            }
        }
    }

    #[test]
    fn sleeping_as_told_reaches_a_far_deadline_in_a_few_steps() {
        let mut wheel = Wheel::new(12_345);
        wheel.set(12_345 + 600_000, ());
        let mut due = Vec::new();
        let mut wakeups = 0;
        while due.is_empty() {
            let next = wheel.next_ms().unwrap();
            wheel.expire(next, &mut due);
            wakeups += 1;
        }
        assert!(wakeups <= LEVELS, "{wakeups} wake-ups for one timer");
    }
}
