//! When one direction counts as a bulk stream: pure policy, no socket, no clock of its own.
//!
//! ```text
//!             256 KiB within 20 ms, in large receives
//!      COPY ──────────────────────────────────────────> SPLICE
//!        ^      8 weak fills in a row, no pipe, or          │ steady for long enough
//!        └────  the source cannot be spliced  <─────────────┤
//!                                                           v
//!                          guard: 1 ms without <── low-water mark raised
//!                          reaching the mark
//! ```
//!
//! The low-water mark (SO_RCVLOWAT) lets the kernel collect a mebibyte before it wakes us, which
//! is most of what splicing gains. It must never hold back a tail, so that whenever it is raised a
//! guard of 1 ms runs. That a stream pauses is no reason to give the mark up; that its peer answers
//! what the mark had held back is: then these were messages, whose ends somebody waited for. Each time
//! the stream has to be steady for twice as long before the mark is raised again.

use crate::outcome::MoverKind;

/// Which movers a configuration allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoverChoice {
    /// Copy, and splice while a direction is a bulk stream.
    Auto,
    /// Copy always.
    Copy,
    /// Splice from the first byte, wherever it works.
    Splice,
}

/// Thresholds. Measured ones are in [`Thresholds::DEFAULT`]; the simulation has smaller ones.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// A direction is promoted after so many bytes …
    pub promote_bytes: u32,
    /// … received within this time …
    pub promote_within_ms: u64,
    /// … in receives of so many bytes on average. A fill of fewer is weak.
    pub large_bytes: u32,
    /// A fill so long after the one before is weak, too.
    pub rare_ms: u64,
    /// A pause so long ends a steady stream.
    pub pause_ms: u64,
    /// Weak fills in a row after which a direction is copied again.
    pub weak_fills: u8,
    /// Most that one fill moves. A direction may exceed its pass's budget by it.
    pub chunk_bytes: u32,
    /// Bytes that one direction may deliver in one pass before its neighbours get their turn.
    pub budget_bytes: u64,
    /// The low-water mark, when raised.
    pub mark_bytes: u32,
    /// Bytes of steady stream before the mark is raised for the first time.
    pub patience_bytes: u64,
    /// How long bytes may wait below the mark.
    pub guard_us: u64,
}

impl Thresholds {
    /// What the measurements in `docs/design.md` gave.
    pub const DEFAULT: Self = Self {
        promote_bytes: 256 * 1024,
        promote_within_ms: 20,
        large_bytes: 8 * 1024,
        rare_ms: 200,
        pause_ms: 5,
        weak_fills: 8,
        chunk_bytes: 1024 * 1024,
        budget_bytes: 256 * 1024,
        mark_bytes: 1024 * 1024,
        patience_bytes: 1024 * 1024,
        guard_us: 1_000,
    };
}

/// Doublings of the patience, at most.
const CAUTION_MAX: u8 = 4;
/// Marks reached in a row after which a doubling is taken back.
const FORGIVE_AFTER: u16 = 256;
/// Readiness in a row that turned out to be none, after which the source is not spliced any more.
const EMPTY_WAKES: u8 = 2;

/// How long a direction that got no pipe is copied before it may ask again.
const NO_PIPE_PAUSE_MS: u64 = 1_000;

/// What a fill leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing changes.
    GoOn,
    /// Raise the low-water mark.
    RaiseMark,
    /// Copy from now on.
    Demote,
}

/// Bytes that waited below the mark until the guard fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    None,
    /// The guard fired; they were not received yet, if there are any.
    Guarded,
    /// They were received, and nothing since.
    Freed,
}

/// The state of the policy for one direction.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    choice: MoverChoice,
    mover: MoverKind,
    /// The source cannot be spliced.
    refused: bool,
    /// The low-water mark is raised.
    marked: bool,
    tail: Tail,
    weak_fills: u8,
    empty_wakes: u8,
    caution: u8,
    marks_reached: u16,
    window_receives: u32,
    window_bytes: u32,
    /// No promotion until then.
    not_before_ms: u64,
    /// Copying: start of the window. Splicing: the fill before.
    since_ms: u64,
    steady_bytes: u64,
}

impl Bulk {
    /// Of a direction that has moved nothing yet.
    pub fn new(choice: MoverChoice) -> Self {
        let mover = match choice {
            MoverChoice::Splice => MoverKind::Splice,
            MoverChoice::Auto | MoverChoice::Copy => MoverKind::Copy,
        };
        Self {
            choice,
            mover,
            refused: false,
            marked: false,
            tail: Tail::None,
            weak_fills: 0,
            empty_wakes: 0,
            caution: 0,
            marks_reached: 0,
            window_receives: 0,
            window_bytes: 0,
            not_before_ms: 0,
            since_ms: 0,
            steady_bytes: 0,
        }
    }

    /// Which mover is in use.
    pub fn mover(&self) -> MoverKind {
        self.mover
    }

    /// Whether the low-water mark is raised.
    pub fn is_marked(&self) -> bool {
        self.marked
    }

    /// A receive into a buffer brought `len` bytes. Returns whether splicing begins.
    pub fn on_received(&mut self, now_ms: u64, len: u32, limits: &Thresholds) -> bool {
        let may_splice =
            self.choice != MoverChoice::Copy && !self.refused && now_ms >= self.not_before_ms;
        if !may_splice || self.mover == MoverKind::Splice {
            return false;
        }
        if now_ms > self.since_ms + limits.promote_within_ms {
            self.since_ms = now_ms;
            self.window_bytes = 0;
            self.window_receives = 0;
        }
        self.window_receives += 1;
        self.window_bytes += len;
        let promote = self.window_bytes >= limits.promote_bytes
            && self.window_bytes / self.window_receives >= limits.large_bytes;
        if promote {
            self.mover = MoverKind::Splice;
            self.since_ms = now_ms;
            self.weak_fills = 0;
            self.steady_bytes = 0;
        }
        promote
    }

    /// A fill brought `len` bytes.
    pub fn on_filled(&mut self, now_ms: u64, len: u32, limits: &Thresholds) -> Verdict {
        self.empty_wakes = 0;
        let pause_ms = now_ms.saturating_sub(self.since_ms);
        self.since_ms = now_ms;
        self.tail = match self.tail {
            Tail::Guarded if len < limits.mark_bytes => Tail::Freed,
            _ => Tail::None,
        };
        if pause_ms > limits.pause_ms {
            self.steady_bytes = 0;
        }
        self.steady_bytes += u64::from(len);
        if pause_ms > limits.rare_ms || len < limits.large_bytes {
            self.weak_fills = self.weak_fills.saturating_add(1);
            if self.choice == MoverChoice::Auto && self.weak_fills >= limits.weak_fills {
                self.demote();
                return Verdict::Demote;
            }
        } else {
            self.weak_fills = 0;
        }
        if self.marked {
            self.marks_reached += 1;
            if self.marks_reached == FORGIVE_AFTER {
                self.marks_reached = 0;
                self.caution = self.caution.saturating_sub(1);
            }
        } else if self.tail == Tail::None
            && self.steady_bytes >= limits.patience_bytes << self.caution
        {
            self.marked = true;
            self.marks_reached = 0;
            return Verdict::RaiseMark;
        }
        Verdict::GoOn
    }

    /// The source was called readable, and gave nothing. Urgent data looks like this, for splice(2)
    /// does not go past it: after the second time the source is copied for good.
    pub fn on_empty(&mut self) -> Verdict {
        self.empty_wakes += 1;
        if self.empty_wakes < EMPTY_WAKES {
            return Verdict::GoOn;
        }
        self.refuse();
        Verdict::Demote
    }

    /// The source cannot be spliced.
    pub fn refuse(&mut self) {
        self.refused = true;
        self.demote();
    }

    /// No pipe was left: copy, and ask for none for a while.
    pub fn on_no_pipe(&mut self, now_ms: u64) {
        self.not_before_ms = now_ms + NO_PIPE_PAUSE_MS;
        self.demote();
    }

    /// Copy from now on.
    pub fn demote(&mut self) {
        self.mover = MoverKind::Copy;
        self.window_bytes = 0;
        self.window_receives = 0;
        self.weak_fills = 0;
    }

    /// The low-water mark is 1 again.
    pub fn on_mark_lowered(&mut self) {
        self.marked = false;
        self.steady_bytes = 0;
    }

    /// It is, because its guard fired.
    pub fn on_guard_fired(&mut self) {
        self.marked = false;
        self.tail = Tail::Guarded;
    }

    /// The other direction moved bytes. If the last thing that came this way was a tail that the
    /// mark had held back, somebody waited for it.
    pub fn on_answer(&mut self) {
        if self.tail == Tail::Freed {
            self.tail = Tail::None;
            self.caution = (self.caution + 1).min(CAUTION_MAX);
            self.steady_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Thresholds = Thresholds {
        promote_bytes: 1_000,
        promote_within_ms: 10,
        large_bytes: 50,
        rare_ms: 100,
        pause_ms: 5,
        weak_fills: 3,
        chunk_bytes: 1_000,
        budget_bytes: 1_000,
        mark_bytes: 400,
        patience_bytes: 2_000,
        guard_us: 1_000,
    };

    fn promoted() -> Bulk {
        let mut bulk = Bulk::new(MoverChoice::Auto);
        for _ in 0..9 {
            assert!(!bulk.on_received(5, 100, &LIMITS));
        }
        assert!(bulk.on_received(5, 100, &LIMITS));
        bulk
    }

    #[test]
    fn a_fast_stream_of_large_receives_is_promoted_once() {
        let mut bulk = promoted();
        assert_eq!(bulk.mover(), MoverKind::Splice);
        assert!(!bulk.on_received(6, 10_000, &LIMITS));
    }

    #[test]
    fn small_messages_and_slow_streams_are_not() {
        let mut small = Bulk::new(MoverChoice::Auto);
        let mut slow = Bulk::new(MoverChoice::Auto);
        for step in 0..1_000 {
            assert!(!small.on_received(5, 10, &LIMITS));
            assert!(!slow.on_received(5 + step * 11, 900, &LIMITS));
        }
        let mut never = Bulk::new(MoverChoice::Copy);
        assert!(!never.on_received(5, 1_000_000, &LIMITS));
    }

    #[test]
    fn weak_fills_in_a_row_demote_and_a_strong_one_forgives() {
        let mut bulk = promoted();
        for now_ms in [6, 7] {
            assert_eq!(bulk.on_filled(now_ms, 10, &LIMITS), Verdict::GoOn);
        }
        assert_eq!(bulk.on_filled(8, 500, &LIMITS), Verdict::GoOn);
        assert_eq!(bulk.on_filled(9, 10, &LIMITS), Verdict::GoOn);
        // Large, but rare.
        assert_eq!(bulk.on_filled(300, 500, &LIMITS), Verdict::GoOn);
        assert_eq!(bulk.on_filled(600, 500, &LIMITS), Verdict::Demote);
        assert_eq!(bulk.mover(), MoverKind::Copy);
    }

    #[test]
    fn an_answer_to_a_tail_that_was_held_back_doubles_the_patience() {
        let mut bulk = promoted();
        let fills_until_marked = |bulk: &mut Bulk| {
            (1..100).find(|_| bulk.on_filled(6, 500, &LIMITS) == Verdict::RaiseMark)
        };
        assert_eq!(fills_until_marked(&mut bulk), Some(4));
        bulk.on_guard_fired();
        assert_eq!(bulk.on_filled(7, 60, &LIMITS), Verdict::GoOn);
        bulk.on_answer();
        assert_eq!(fills_until_marked(&mut bulk), Some(8));
        // A pause in the stream, which goes on before the other side says anything.
        bulk.on_guard_fired();
        assert_eq!(bulk.on_filled(7, 60, &LIMITS), Verdict::GoOn);
        assert_eq!(bulk.on_filled(7, 60, &LIMITS), Verdict::RaiseMark);
        // A pause without a tail.
        bulk.on_guard_fired();
        bulk.on_answer();
        assert_eq!(bulk.on_filled(7, 500, &LIMITS), Verdict::RaiseMark);
    }

    #[test]
    fn a_direction_without_a_pipe_asks_again_only_after_a_while() {
        let mut bulk = promoted();
        bulk.on_no_pipe(10);
        assert_eq!(bulk.mover(), MoverKind::Copy);
        assert!(!bulk.on_received(10 + NO_PIPE_PAUSE_MS - 1, 1_000, &LIMITS));
        assert!(bulk.on_received(10 + NO_PIPE_PAUSE_MS, 1_000, &LIMITS));
    }

    #[test]
    fn readiness_without_bytes_ends_splicing_for_good() {
        let mut bulk = promoted();
        assert_eq!(bulk.on_empty(), Verdict::GoOn);
        assert_eq!(bulk.on_filled(6, 500, &LIMITS), Verdict::GoOn);
        assert_eq!(bulk.on_empty(), Verdict::GoOn);
        assert_eq!(bulk.on_empty(), Verdict::Demote);
        for _ in 0..100 {
            assert!(!bulk.on_received(7, 1_000, &LIMITS));
        }
    }
}
