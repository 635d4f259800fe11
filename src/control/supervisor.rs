//! The main thread once everything runs: signals, the watchdog, the drain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::Running;
use super::notify::{Environment, Notifier};
use crate::core::mailbox::Sender;
use crate::units::ListenerId;
use crate::worker::{Event, Message};

/// After the reset of the last sessions, how long their cores may take to report it.
const ABORT_WITHIN: Duration = Duration::from_millis(700);
/// How long the access log may take to write what is queued.
const LOG_WITHIN: Duration = Duration::from_secs(2);
/// The cores are asked this many times per watchdog interval.
const ECHOES_PER_INTERVAL: u32 = 4;

/// What wakes the main thread.
#[derive(Debug)]
pub enum Notice {
    /// A core reports.
    Core(Event),
    /// A signal came.
    Signal(i32),
    /// A listener should listen from now on, or stop for want of servers.
    Listen(ListenerId, bool),
}

/// A channel end for cores, whose events arrive among the notices.
pub(super) fn core_events(notices: &mpsc::Sender<Notice>) -> crate::worker::Events {
    let notices = notices.clone();
    crate::worker::Events::new(move |event| {
        // The main thread is gone only when the process is ending.
        let _ = notices.send(Notice::Core(event));
    })
}

impl Running {
    /// Serves until told to stop; returns when all is over.
    pub fn supervise(mut self) -> Result<(), super::RunError> {
        let notifier = Notifier::new(&Environment::read(), std::process::id())
            .map_err(|error| super::RunError::Failed(error.to_string()))?;
        notifier.ready(&format!("serving on {} cores", self.cores.len()));
        self.serve(&notifier);
        self.drain(&notifier);
        self.end();
        Ok(())
    }

    /// Stops at once, as if told to.
    pub fn stop(mut self) -> Result<(), super::RunError> {
        let notifier = Notifier::new(&Environment::read(), std::process::id())
            .map_err(|error| super::RunError::Failed(error.to_string()))?;
        self.drain(&notifier);
        self.end();
        Ok(())
    }

    /// Until the first stop signal.
    fn serve(&mut self, notifier: &Notifier) {
        let interval = notifier
            .watchdog()
            .map(|interval| interval / ECHOES_PER_INTERVAL);
        let mut watchdog = Watchdog::new(Arc::clone(&self.cores), self.echoes.clone());
        let mut next_echo = interval.map(|interval| Instant::now() + interval);
        loop {
            let deadline = next_echo.into_iter().chain(self.listeners.next_at()).min();
            match self.next_notice(deadline) {
                Some(Notice::Signal(SIGUSR1)) => {
                    tracing::info!("SIGUSR1: the access log is opened anew");
                    self.access_log.reopen();
                }
                Some(Notice::Signal(signal)) => {
                    let signal = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
                    tracing::info!(signal, "stopping: no new connections, sessions may finish");
                    return;
                }
                Some(Notice::Core(event)) => {
                    report(&event);
                    self.listeners.heard(event);
                }
                Some(Notice::Listen(listener, listens)) => self.listeners.want(listener, listens),
                None => self.listeners.retry(),
            }
            if next_echo.is_some_and(|at| at <= Instant::now()) {
                watchdog.ask(notifier);
                next_echo = interval.map(|interval| Instant::now() + interval);
            }
        }
    }

    /// `None` at the deadline.
    fn next_notice(&self, deadline: Option<Instant>) -> Option<Notice> {
        let Some(deadline) = deadline else {
            // The signal thread holds a sender for as long as the process lives.
            return self.notices.recv().ok();
        };
        let left = deadline.saturating_duration_since(Instant::now());
        self.notices.recv_timeout(left).ok()
    }

    /// Lets sessions finish, then resets the rest.
    fn drain(&mut self, notifier: &Notifier) {
        self.stats.stopping();
        notifier.stopping(&format!("draining for up to {} s", self.drain.as_secs()));
        self.listeners.leave();
        for core in self.cores.iter() {
            core.send(Message::Drain);
        }
        let mut waiting: Vec<bool> = vec![true; self.cores.len()];
        match self.await_drained(&mut waiting, self.drain) {
            Drained::All => return tracing::info!("every session finished"),
            Drained::Late => {
                tracing::warn!("timeouts.drain is over: the remaining sessions are reset");
            }
            Drained::Signal => tracing::warn!("second signal: the remaining sessions are reset"),
        }
        for core in self.cores.iter() {
            core.send(Message::Abort);
        }
        if self.await_drained(&mut waiting, ABORT_WITHIN) != Drained::All {
            let late = waiting.iter().filter(|&&late| late).count();
            tracing::warn!(
                cores = late,
                "cores did not report the end of their sessions in time"
            );
        }
    }

    /// Waits until no core is left in `waiting`.
    fn await_drained(&self, waiting: &mut [bool], within: Duration) -> Drained {
        let deadline = Instant::now() + within;
        while waiting.contains(&true) {
            match self.next_notice(Some(deadline)) {
                Some(Notice::Core(Event::Drained(core))) => waiting[usize::from(core.0)] = false,
                Some(Notice::Core(Event::Resumed(core))) => waiting[usize::from(core.0)] = true,
                Some(Notice::Core(event)) => report(&event),
                Some(Notice::Signal(SIGUSR1)) => self.access_log.reopen(),
                Some(Notice::Signal(_)) => return Drained::Signal,
                // Nobody listens any more.
                Some(Notice::Listen(..)) => {}
                None => return Drained::Late,
            }
        }
        Drained::All
    }

    fn end(self) {
        let report = self.access_log.close(LOG_WITHIN);
        if report.lines_abandoned != Some(0) {
            tracing::warn!(
                lines = report.lines_abandoned,
                "access-log lines were lost at the end"
            );
        }
        tracing::info!("stopped");
    }
}

/// From now on SIGUSR1 ends nobody: before the access log is open there is nothing to open anew.
pub(super) fn ignore_reopen() -> std::io::Result<()> {
    signal_hook::flag::register(SIGUSR1, Arc::default()).map(drop)
}

/// Sends SIGTERM, SIGINT and SIGUSR1 among the notices, from before anything is bound: a stop that
/// comes during the start is obeyed right after it.
pub(super) fn forward_signals(notices: mpsc::Sender<Notice>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if notices.send(Notice::Signal(signal)).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}

/// How a wait for the cores ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drained {
    /// Every core reported.
    All,
    /// The time is over.
    Late,
    /// Another stop signal came.
    Signal,
}

fn report(event: &Event) {
    match event {
        Event::Exhausted {
            core,
            listener,
            error,
            times,
        } => tracing::warn!(
            core = core.0,
            listener = listener.0,
            times,
            %error,
            "accepting pauses: out of file descriptors or memory; raise LimitNOFILE (ulimit -n)"
        ),
        Event::Failed(core, error) => tracing::error!(core = core.0, %error, "a core failed"),
        Event::Started(_)
        | Event::Listening(_)
        | Event::Closed(..)
        | Event::Opened(..)
        | Event::NotOpened(..)
        | Event::Drained(_)
        | Event::Resumed(_) => {}
    }
}

/// Asks every core for a sign of life, and passes it on only if all gave one.
struct Watchdog {
    cores: Arc<[Sender<Message>]>,
    /// By core.
    echoes: Vec<Arc<AtomicU64>>,
    asked: u64,
}

impl Watchdog {
    fn new(cores: Arc<[Sender<Message>]>, echoes: Vec<Arc<AtomicU64>>) -> Self {
        Self {
            cores,
            echoes,
            asked: 0,
        }
    }

    fn ask(&mut self, notifier: &Notifier) {
        let echoes = &self.echoes;
        let silent: Vec<usize> = (0..echoes.len())
            .filter(|&core| echoes[core].load(Ordering::Acquire) != self.asked)
            .collect();
        if silent.is_empty() {
            notifier.alive();
        } else {
            tracing::error!(cores = ?silent, "a core does not answer: the watchdog is not fed");
        }
        self.asked += 1;
        for (core, echo) in self.cores.iter().zip(echoes) {
            core.send(Message::Echo(self.asked, Arc::clone(echo)));
        }
    }
}
