//! The pump: the one monoio task that owns the relay ring, and in which the core sleeps.
//!
//! ```text
//!        ┌────────────────────── loop ───────────────────────┐
//!        │  turns for monoio ──> relay pass: submit, sleep,   │
//!        │  (until quiescent,    reap, engine, timers         │
//!        │   4 or 500 us)                                     │
//!        └────────────────────────────────────────────────────┘
//! ```
//!
//! monoio's ring is polled by the relay ring, so that one sleep covers both. While only established
//! sessions move bytes, monoio gets no turn at all.
//!
//! A *turn* awaits an always-readable eventfd: monoio runs every ready task, submits, parks (which
//! returns at once) and reaps. The *hop* after it lets everything run that the reaping woke, before
//! the pump goes on; a task that wakes itself would be put to the front of monoio's queue instead.
//! If no counted task was polled between the start of the await and the end of the hop, then the
//! eventfd's poll was the last entry pushed, and its completion proves that all before it was
//! submitted: monoio is quiescent, and the core may sleep.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::busy_poll::BusyPoll;
use super::readiness::Readiness;
use crate::ring::{Completion, RelayRing, Shots, Token, Wait};
use crate::sys::{clock, event, fd};

/// The pump's own token: monoio's ring has completions.
pub const TOKEN_MONOIO: Token = Token::MAX - 1;
/// Turns in a row before established traffic gets a pass again: an accept storm must not starve it.
const TURNS_MAX: u32 = 4;
/// And the time that they may take.
const TURNS_MAX_US: u64 = 500;

/// What the pump drives.
pub trait Engine {
    /// The core's relay ring.
    fn ring(&mut self) -> &mut RelayRing;
    /// A pass begins in which so many receives are handled.
    fn begin_pass(&mut self, receives: usize);
    /// One of the engine's operations completed.
    fn complete(&mut self, now_us: u64, completion: Completion);
    /// The pass is over: fire timers, go on with what was put off.
    fn end_of_pass(&mut self, now_us: u64);
    /// There is work that no completion will announce.
    fn is_busy(&self) -> bool;
    /// When [`Engine::end_of_pass`] must run at the latest, in microseconds of the monotonic clock.
    fn next_deadline_us(&self) -> Option<u64>;
}

/// The pump's counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct PumpStats {
    /// Turns given to monoio.
    pub turns_total: u64,
    /// Longest time that established traffic had to wait for monoio's turns, in microseconds.
    pub longest_gap_us: u64,
    /// Timers of tasks that fired.
    pub timers_fired_total: u64,
    /// Looks for work before a sleep that found some, and that found none.
    pub busy_polls_total: [u64; 2],
}

/// The pump of one core.
pub struct Pump<E> {
    engine: Rc<RefCell<E>>,
    monoio_ring: RawFd,
    /// An eventfd that is never read after it was signalled.
    always_ready: Readiness,
    hop: Rc<Hop>,
    busy_poll: Cell<BusyPoll>,
    stats: Rc<Cell<PumpStats>>,
}

impl<E: Engine + 'static> Pump<E> {
    /// Must be called inside the runtime whose ring is `monoio_ring`.
    pub fn new(
        engine: Rc<RefCell<E>>,
        monoio_ring: RawFd,
        busy_poll: BusyPoll,
    ) -> io::Result<Self> {
        let always_ready = Readiness::new(event::eventfd(1)?)?;
        Ok(Self {
            engine,
            monoio_ring,
            always_ready,
            hop: Rc::new(Hop::default()),
            busy_poll: Cell::new(busy_poll),
            stats: Rc::new(Cell::new(PumpStats::default())),
        })
    }

    /// Counters, shared with whoever reports them.
    pub fn stats(&self) -> Rc<Cell<PumpStats>> {
        Rc::clone(&self.stats)
    }

    /// Starts it. The two tasks are not counted: neither pushes anything but the eventfd's poll.
    pub fn start(self) {
        monoio::spawn(Rc::clone(&self.hop).help());
        monoio::spawn(self.run());
    }

    async fn run(self) {
        let mut poll_armed = false;
        let mut monoio_ready = true;
        let mut quiescent = false;
        let mut completions = Vec::with_capacity(256);
        loop {
            if monoio_ready || super::turn_wanted() || !quiescent {
                monoio_ready = false;
                quiescent = self.turns().await;
            }
            let may_sleep = quiescent && !super::turn_wanted();
            let mut engine = self.engine.borrow_mut();
            if may_sleep && !poll_armed {
                engine.ring().poll(
                    self.monoio_ring,
                    libc::POLLIN as u32,
                    Shots::Single,
                    TOKEN_MONOIO,
                );
                poll_armed = true;
            }
            let wait = if may_sleep && !engine.is_busy() {
                if cfg!(debug_assertions) {
                    self.assert_nothing_unsubmitted();
                }
                until(engine.next_deadline_us())
            } else {
                Wait::No
            };
            if let Err(error) = self.enter(engine.ring(), wait) {
                panic!("the relay ring is unusable: {error}");
            }
            engine.ring().reap(&mut completions);
            let now_us = clock::now_us();
            engine.begin_pass(completions.iter().filter(|c| c.buffer.is_some()).count());
            for completion in completions.drain(..) {
                if completion.token == TOKEN_MONOIO {
                    poll_armed = false;
                    monoio_ready = true;
                } else {
                    engine.complete(now_us, completion);
                }
            }
            engine.end_of_pass(now_us);
            drop(engine);
            let fired = super::expire_timers(now_us);
            if fired > 0 {
                self.update(|stats| stats.timers_fired_total += fired as u64);
            }
        }
    }

    /// Submits, and sleeps unless a look before that finds something.
    fn enter(&self, ring: &mut RelayRing, wait: Wait) -> io::Result<()> {
        let Some(look) = self.next_look(wait) else {
            return ring.enter(wait);
        };
        ring.enter(Wait::No)?;
        if ring.has_completions() {
            // What was just submitted is done already: there was nothing to wait for.
            return Ok(());
        }
        let start = Instant::now();
        let mut found = ring.has_work();
        while !found && start.elapsed() < look {
            std::hint::spin_loop();
            found = ring.has_work();
        }
        let mut policy = self.busy_poll.get();
        policy.on_looked(found);
        self.busy_poll.set(policy);
        self.update(|stats| stats.busy_polls_total[usize::from(!found)] += 1);
        ring.enter(if found {
            Wait::No
        } else {
            wait.less(start.elapsed())
        })
    }

    /// How long to look for work before this wait, if at all; no longer than it lasts.
    fn next_look(&self, wait: Wait) -> Option<Duration> {
        let longest = match wait {
            Wait::No => return None,
            Wait::For(duration) => duration,
            Wait::Forever => Duration::MAX,
        };
        let mut policy = self.busy_poll.get();
        let look = policy.next_look();
        self.busy_poll.set(policy);
        look.map(|look| look.min(longest))
    }

    /// Gives monoio turns until it is quiescent or the bound is reached. Returns whether it is.
    async fn turns(&self) -> bool {
        let start_us = clock::now_us();
        let mut quiescent = false;
        for turn in 1..=TURNS_MAX {
            // Whatever was woken until now runs in this turn. The count is taken before the
            // await: see the head of this file.
            super::take_turn_wanted();
            let before = super::polls();
            self.always_ready.readable().await;
            self.hop.jump().await;
            quiescent = super::polls() == before && !super::turn_wanted();
            let elapsed_us = clock::now_us() - start_us;
            self.update(|stats| {
                stats.turns_total += 1;
                stats.longest_gap_us = stats.longest_gap_us.max(elapsed_us);
            });
            if quiescent || elapsed_us > TURNS_MAX_US || turn == TURNS_MAX {
                break;
            }
        }
        quiescent
    }

    fn update(&self, change: impl FnOnce(&mut PumpStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    fn assert_nothing_unsubmitted(&self) {
        if let Some(backlog) = fd::ring_backlog(self.monoio_ring) {
            assert_eq!(
                backlog, 0,
                "the core would sleep with {backlog} entries unsubmitted"
            );
        }
    }
}

/// How long to sleep for the earlier of the engine's and the tasks' deadlines.
fn until(engine_us: Option<u64>) -> Wait {
    let timer_us = super::next_timer_ms().map(|ms| ms.saturating_mul(1_000));
    let Some(deadline_us) = [engine_us, timer_us].into_iter().flatten().min() else {
        return Wait::Forever;
    };
    match deadline_us.checked_sub(clock::now_us()) {
        Some(remaining @ 1..) => Wait::For(Duration::from_micros(remaining)),
        _ => Wait::No,
    }
}

/// The helper that wakes the pump from behind everything else in monoio's queue.
#[derive(Default)]
struct Hop {
    helper: RefCell<Option<Waker>>,
    pump: RefCell<Option<Waker>>,
}

impl Hop {
    async fn help(self: Rc<Self>) {
        poll_fn::<(), _>(|cx| {
            *self.helper.borrow_mut() = Some(cx.waker().clone());
            if let Some(pump) = self.pump.borrow_mut().take() {
                pump.wake();
            }
            Poll::Pending
        })
        .await;
    }

    async fn jump(&self) {
        let mut jumped = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut jumped, true) {
                return Poll::Ready(());
            }
            *self.pump.borrow_mut() = Some(cx.waker().clone());
            if let Some(helper) = self.helper.borrow_mut().take() {
                helper.wake();
            }
            Poll::Pending
        })
        .await;
    }
}
