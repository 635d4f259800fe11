//! One core's clockwork: tasks, timers, and who sleeps where. It does not know what a connection is.
//!
//! monoio runs the tasks; the thread sleeps in the relay ring ([`pump`]). A core may only sleep
//! when monoio's ring holds nothing that was not submitted, so every task is spawned through
//! [`spawn`], which counts polls: if no task was polled since the last submission, nothing can have
//! been pushed since. `monoio::spawn` itself is for the pump alone.

pub mod busy_poll;
pub mod mailbox;
pub mod pump;
pub mod readiness;
pub mod wheel;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::sys::clock;
use wheel::{TimerId, Wheel};

thread_local! {
    static SESSION_IN_HAND: Cell<Option<u64>> = const { Cell::new(None) };
    static CLOCKWORK: Clockwork = Clockwork {
        polls: Cell::new(0),
        turn_wanted: Cell::new(false),
        timers: RefCell::new(Wheel::new(clock::now_us() / 1_000)),
        sleepers: RefCell::new(Vec::new()),
        sleepers_free: RefCell::new(Vec::new()),
    };
}

struct Clockwork {
    /// Polls of counted tasks so far.
    polls: Cell<u64>,
    /// A task was woken from outside monoio's own reaping: monoio must get a turn.
    turn_wanted: Cell<bool>,
    timers: RefCell<Wheel<u32>>,
    /// Wakers of the sleeping tasks; a timer's value is an index into it.
    sleepers: RefCell<Vec<Sleeper>>,
    sleepers_free: RefCell<Vec<u32>>,
}

enum Sleeper {
    Free,
    Waiting(Waker),
    Fired,
}

/// Notes which session this thread works for, in case it panics.
pub fn take_in_hand(session: u64) {
    SESSION_IN_HAND.set(Some(session));
}

/// The session that the calling thread worked for last.
pub fn session_in_hand() -> Option<u64> {
    SESSION_IN_HAND.get()
}

/// Spawns a task on this core.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    monoio::spawn(Counted {
        future: Box::pin(future),
    });
    want_turn();
}

/// Runs a task at once as far as it comes without waiting, and spawns the rest, if any is left:
/// most connections reach their server without a wait and then need no task at all.
///
/// The caller must be a task itself, whose poll counts for what the future pushes here.
pub fn run_or_spawn(future: impl Future<Output = ()> + 'static) {
    let mut future = Box::pin(future);
    // Whatever it waits for is told the right waker by the task's first poll, which comes before
    // anything is submitted or reaped.
    let mut context = Context::from_waker(Waker::noop());
    if future.as_mut().poll(&mut context).is_pending() {
        monoio::spawn(Counted { future });
        want_turn();
    }
}

/// A task whose polls are counted.
struct Counted<F> {
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        CLOCKWORK.with(|core| core.polls.set(core.polls.get() + 1));
        self.future.as_mut().poll(cx)
    }
}

fn polls() -> u64 {
    CLOCKWORK.with(|core| core.polls.get())
}

/// Something was made ready for monoio outside its ring: whoever wakes a task calls this first.
pub fn want_turn() {
    CLOCKWORK.with(|core| core.turn_wanted.set(true));
}

fn turn_wanted() -> bool {
    CLOCKWORK.with(|core| core.turn_wanted.get())
}

fn take_turn_wanted() -> bool {
    CLOCKWORK.with(|core| core.turn_wanted.replace(false))
}

/// Wakes the tasks whose timers are due. Returns how many.
fn expire_timers(now_us: u64) -> usize {
    CLOCKWORK.with(|core| {
        let mut due = Vec::new();
        core.timers.borrow_mut().expire(now_us / 1_000, &mut due);
        for &index in &due {
            let sleeper = std::mem::replace(
                &mut core.sleepers.borrow_mut()[index as usize],
                Sleeper::Fired,
            );
            if let Sleeper::Waiting(waker) = sleeper {
                core.turn_wanted.set(true);
                waker.wake();
            }
        }
        due.len()
    })
}

fn next_timer_ms() -> Option<u64> {
    CLOCKWORK.with(|core| core.timers.borrow().next_ms())
}

/// Completes after `duration` on the core's own clock, never early, at most one tick late.
pub fn sleep(duration: Duration) -> Sleep {
    Sleep {
        deadline_us: clock::now_us().saturating_add(clock::micros(duration)),
        timer: None,
    }
}

/// See [`sleep`].
pub struct Sleep {
    deadline_us: u64,
    timer: Option<(TimerId, u32)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        CLOCKWORK.with(|core| {
            let mut sleepers = core.sleepers.borrow_mut();
            if let Some((_, index)) = self.timer {
                if matches!(sleepers[index as usize], Sleeper::Fired) {
                    sleepers[index as usize] = Sleeper::Free;
                    core.sleepers_free.borrow_mut().push(index);
                    self.timer = None;
                    return Poll::Ready(());
                }
                sleepers[index as usize] = Sleeper::Waiting(cx.waker().clone());
                return Poll::Pending;
            }
            if clock::now_us() >= self.deadline_us {
                return Poll::Ready(());
            }
            let waiting = Sleeper::Waiting(cx.waker().clone());
            let index = match core.sleepers_free.borrow_mut().pop() {
                Some(index) => {
                    sleepers[index as usize] = waiting;
                    index
                }
                None => {
                    sleepers.push(waiting);
                    (sleepers.len() - 1) as u32
                }
            };
            let id = core
                .timers
                .borrow_mut()
                .set(self.deadline_us.div_ceil(1_000), index);
            self.timer = Some((id, index));
            Poll::Pending
        })
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((id, index)) = self.timer.take() {
            CLOCKWORK.with(|core| {
                core.timers.borrow_mut().cancel(id);
                core.sleepers.borrow_mut()[index as usize] = Sleeper::Free;
                core.sleepers_free.borrow_mut().push(index);
            });
        }
    }
}

/// A one-way switch that tasks of one core wait for.
#[derive(Clone, Default)]
pub struct Signal {
    inner: Rc<SignalInner>,
}

#[derive(Default)]
struct SignalInner {
    set: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Sets it for good and wakes everyone.
    pub fn set(&self) {
        self.inner.set.set(true);
        for waker in self.inner.waiting.borrow_mut().drain(..) {
            want_turn();
            waker.wake();
        }
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.inner.set.get()
    }

    /// Completes once it is set.
    pub async fn wait(&self) {
        std::future::poll_fn(|cx| {
            if self.is_set() {
                return Poll::Ready(());
            }
            let mut waiting = self.inner.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// Which of two futures was ready first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first.
    First(A),
    /// The second.
    Second(B),
}

/// Waits for the first of two; the first one wins a tie. The loser is not dropped: both are
/// borrowed, because a dropped monoio readiness future would close its descriptor behind our back
/// (see [`readiness`]).
pub async fn first<A: Future, B: Future>(
    mut a: Pin<&mut A>,
    mut b: Pin<&mut B>,
) -> Either<A::Output, B::Output> {
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::First(value));
        }
        if let Poll::Ready(value) = b.as_mut().poll(cx) {
            return Poll::Ready(Either::Second(value));
        }
        Poll::Pending
    })
    .await
}
