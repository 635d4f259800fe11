//! What the admin endpoints show: copies of the cores' numbers, asked for one core at a time.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::admin::AdminSource;
use super::upstreams::Board;
use crate::core::mailbox::Sender;
use crate::log::Monitor;
use crate::metrics::{CoreMetrics, Names, ProcessMetrics, Scrape, exposition, stats};
use crate::sys::{clock, process};
use crate::units::{CoreId, ListenerId};
use crate::worker::Message;

/// A core that has not answered by then is shown with its last numbers and marked stale.
const ANSWER_WITHIN: Duration = Duration::from_millis(100);

const STARTING: u8 = 0;
const RUNNING: u8 = 1;
const STOPPING: u8 = 2;

/// See the head of this file.
pub struct CoreStats {
    mailboxes: Arc<[Sender<Message>]>,
    /// Those of the servers are on the board.
    names: Names,
    ring_features: Vec<(&'static str, bool)>,
    started: Instant,
    /// [`STARTING`], [`RUNNING`] or [`STOPPING`].
    life: AtomicU8,
    /// By [`ListenerId`].
    listening: Vec<AtomicBool>,
    /// The last answer of each core, and whether it came this time.
    last: Mutex<Vec<(CoreMetrics, bool)>>,
    access_log: Monitor,
    board: Board,
}

impl CoreStats {
    /// For cores that are not ready yet.
    pub(super) fn new(
        mailboxes: Arc<[Sender<Message>]>,
        names: Names,
        ring_features: Vec<(&'static str, bool)>,
        access_log: Monitor,
        board: Board,
    ) -> Self {
        let last = (0..mailboxes.len())
            .map(|core| {
                let id = CoreId(core as u16);
                let shape = (names.listeners.len(), names.upstreams.len(), 0);
                (CoreMetrics::new(id, shape.0, shape.1, shape.2), true)
            })
            .collect();
        let listening = names.listeners.iter().map(|_| AtomicBool::new(false));
        let listening = listening.collect();
        Self {
            mailboxes,
            names,
            ring_features,
            started: Instant::now(),
            life: AtomicU8::new(STARTING),
            listening,
            last: Mutex::new(last),
            access_log,
            board,
        }
    }

    /// Every core listens.
    pub fn started(&self) {
        self.life.store(RUNNING, Ordering::Release);
    }

    /// The process stops.
    pub fn stopping(&self) {
        self.life.store(STOPPING, Ordering::Release);
    }

    /// Whether a listener accepts.
    pub(super) fn set_listening(&self, listener: ListenerId, listening: bool) {
        self.listening[usize::from(listener.0)].store(listening, Ordering::Release);
    }

    /// By [`ListenerId`].
    fn listening(&self) -> Vec<bool> {
        let listening = self.listening.iter();
        listening.map(|it| it.load(Ordering::Acquire)).collect()
    }

    /// Asks every core. One scrape at a time: two would only make each other wait.
    fn scrape<T>(&self, show: impl FnOnce(&Scrape<'_>) -> T) -> T {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        for (mailbox, (metrics, stale)) in self.mailboxes.iter().zip(last.iter_mut()) {
            let (reply, answer) = mpsc::sync_channel(1);
            mailbox.send(Message::Snapshot(reply));
            *stale = match answer.recv_timeout(ANSWER_WITHIN) {
                Ok(fresh) => {
                    *metrics = *fresh;
                    false
                }
                Err(_) => true,
            };
        }
        let (cores, stale): (Vec<_>, Vec<_>) = last.iter().cloned().unzip();
        let shown = self.board.lock().clone();
        let checker = shown.checker();
        let names = Names {
            servers: shown.servers,
            ..self.names.clone()
        };
        show(&Scrape {
            names: &names,
            cores: &cores,
            stale: &stale,
            process: self.process(),
            standings: &shown.standings,
            lookups: &shown.lookups,
            ejections_denied_total: &shown.ejections_denied_total,
            checker,
            listening: &self.listening(),
            now_us: clock::now_us(),
            version: env!("CARGO_PKG_VERSION"),
            ring_features: &self.ring_features,
        })
    }

    fn process(&self) -> ProcessMetrics {
        let log = self.access_log.stats();
        let usage = process::usage();
        ProcessMetrics {
            uptime: self.started.elapsed(),
            open_fds: usage.open_fds,
            max_fds: usage.max_fds,
            resident_memory_bytes: usage.resident_bytes,
            threads: usage.threads,
            cpu: usage.cpu,
            listen_overflows_total: usage.listen_overflows,
            access_log_lines_written_total: log.lines_written_total,
            access_log_stalled: log.stalled,
        }
    }
}

impl AdminSource for CoreStats {
    fn metrics_text(&self) -> String {
        self.scrape(exposition::render)
    }

    fn stats_json(&self) -> String {
        self.scrape(stats::render)
    }

    fn upstreams_json(&self) -> String {
        self.scrape(stats::render_upstreams)
    }

    fn ready(&self) -> Result<(), String> {
        match self.life.load(Ordering::Acquire) {
            RUNNING => {}
            STOPPING => return Err("stopping".to_owned()),
            _ => return Err("starting: not every core listens yet".to_owned()),
        }
        let listeners = self.names.listeners.iter().zip(self.listening());
        let stopped = listeners.filter(|(_, listening)| !listening);
        let stopped: Vec<&str> = stopped.map(|(it, _)| it.name.as_str()).collect();
        if stopped.is_empty() {
            return Ok(());
        }
        Err(format!(
            "not listening, for want of servers or, since, of the address (see the process log): {}",
            stopped.join(", ")
        ))
    }

    fn healthy(&self) -> Result<(), String> {
        self.scrape(|scrape| {
            let late: Vec<String> = (0..scrape.cores.len())
                .filter(|&index| scrape.is_stale(index))
                .map(|index| scrape.cores[index].core.to_string())
                .collect();
            if late.is_empty() {
                Ok(())
            } else {
                Err(format!(
                    "no answer within {} ms from core {}",
                    ANSWER_WITHIN.as_millis(),
                    late.join(", ")
                ))
            }
        })
    }
}
