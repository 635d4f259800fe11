//! Listeners that stop while there is nobody to serve, and listen again.
//!
//! Part of the main thread, which alone decides what the cores listen on, so that a stop of the process
//! cannot cross with the return of a listener. When to stop is for `upstreams::halts`; how, without a
//! reset for anyone in the queue, for `worker::accept`.
//!
//! ```text
//!                  unwanted                every core has closed
//!   Open ─────────────────────────> Closing ──────────────────────> Closed
//!    ^                                 ^                              │ wanted: bound anew; where that
//!    │ the last core listens           │ a core cannot listen         │ fails, again in a second
//!    └────────────────────────────── Opening <────────────────────────┘
//!                                      └─> one core after the other: `accept.steer: cpu` goes by the order
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::listen::{Again, UnixPaths};
use crate::config::Config;
use crate::config::model;
use crate::core::mailbox::Sender;
use crate::sys::socket::Options;
use crate::units::{Address, CoreId, ListenerId};
use crate::worker::{Event, Message};

/// Between two attempts to take an address again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// See the head of this file.
pub(super) struct Listeners {
    /// By [`ListenerId`].
    all: Vec<One>,
    options: Options,
    /// By [`CoreId`].
    cpus: Vec<usize>,
    cores: Arc<[Sender<Message>]>,
    show: Show,
    /// Removed when their listener stops, or the process.
    unix_paths: UnixPaths,
}

/// Shows whether a listener listens.
pub(super) type Show = Box<dyn Fn(ListenerId, bool)>;

/// What the listeners are made of.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    /// With the ports that the kernel chose.
    pub(super) addresses: &'a [Address],
    pub(super) options: Options,
    pub(super) cpus: Vec<usize>,
    pub(super) cores: Arc<[Sender<Message>]>,
    pub(super) show: Show,
    pub(super) unix_paths: UnixPaths,
}

struct One {
    config: model::Listener,
    /// Its upstreams' names, for the log.
    upstreams: String,
    address: Address,
    is_wanted: bool,
    phase: Phase,
    /// Of the last attempt to take the address again: the same is not logged twice.
    error: Option<String>,
}

enum Phase {
    Open,
    /// By [`CoreId`]: whether it has not closed yet.
    Closing(Vec<bool>),
    /// Not to be taken again before this time.
    Closed(Option<Instant>),
    /// The core that was told last, and the sockets of those after it.
    Opening(CoreId, std::vec::IntoIter<OwnedFd>),
}

impl Listeners {
    /// They all listen.
    pub(super) fn new(parts: Parts<'_>) -> Self {
        let config = parts.config;
        let one = |(listener, address): (&model::Listener, &Address)| {
            let upstreams = super::targets::leads_to(listener);
            let names = upstreams
                .iter()
                .map(|it| config.upstreams[usize::from(it.0)].name.as_str());
            One {
                upstreams: names.collect::<Vec<_>>().join(" "),
                config: listener.clone(),
                address: address.clone(),
                is_wanted: true,
                phase: Phase::Open,
                error: None,
            }
        };
        let all = config.listeners.iter().zip(parts.addresses).map(one);
        let all: Vec<One> = all.collect();
        for index in 0..all.len() {
            (parts.show)(ListenerId(index as u16), true);
        }
        Self {
            all,
            options: parts.options,
            cpus: parts.cpus,
            cores: parts.cores,
            show: parts.show,
            unix_paths: parts.unix_paths,
        }
    }

    /// A listener should listen from now on, or stop.
    pub(super) fn want(&mut self, id: ListenerId, is_wanted: bool) {
        self.all[usize::from(id.0)].is_wanted = is_wanted;
        self.advance(id);
    }

    /// What a core says of a listener.
    pub(super) fn heard(&mut self, event: Event) {
        let id = match event {
            Event::Closed(core, id) => {
                if let Phase::Closing(missing) = &mut self.all[usize::from(id.0)].phase {
                    missing[usize::from(core.0)] = false;
                }
                id
            }
            Event::Opened(core, id) => {
                self.opened(core, id);
                id
            }
            Event::NotOpened(_, id, error) => {
                self.fail(id, &error.to_string());
                // Also those cores that listen already: nobody knows who took the address.
                self.close(id);
                id
            }
            _ => return,
        };
        self.advance(id);
    }

    /// Tries again what is due.
    pub(super) fn retry(&mut self) {
        for index in 0..self.all.len() {
            self.advance(ListenerId(index as u16));
        }
    }

    /// When [`Listeners::retry`] has something to do.
    pub(super) fn next_at(&self) -> Option<Instant> {
        let times = self.all.iter().map(|one| match &one.phase {
            Phase::Closed(at) if one.is_wanted => *at,
            _ => None,
        });
        times.flatten().min()
    }

    /// The process stops: the cores are told by the drain, and nobody new is to find a unix path.
    pub(super) fn leave(&mut self) {
        self.unix_paths = UnixPaths::default();
        for (index, one) in self.all.iter_mut().enumerate() {
            // Sockets that no core has yet are closed.
            one.phase = Phase::Closed(None);
            one.is_wanted = false;
            (self.show)(ListenerId(index as u16), false);
        }
    }

    /// Takes the next step, if there is one to take now.
    fn advance(&mut self, id: ListenerId) {
        let one = &mut self.all[usize::from(id.0)];
        match &one.phase {
            Phase::Open if !one.is_wanted => {
                let listener = &one.config.name;
                let upstreams = &one.upstreams;
                tracing::warn!(
                    listener,
                    upstreams,
                    "a listener stops: none of its upstreams has a server"
                );
                self.close(id);
            }
            Phase::Closing(missing) if !missing.contains(&true) => {
                // After a failure not at once.
                let at = one.error.is_some().then(|| Instant::now() + RETRY_EVERY);
                one.phase = Phase::Closed(at);
                self.advance(id);
            }
            Phase::Closed(at) if one.is_wanted && at.is_none_or(|at| at <= Instant::now()) => {
                self.open(id);
            }
            _ => {}
        }
    }

    fn close(&mut self, id: ListenerId) {
        let one = &mut self.all[usize::from(id.0)];
        (self.show)(id, false);
        // A unix socket has no SYN to drop: without its path nobody new finds it.
        if let Address::Unix(path) = &one.address {
            self.unix_paths.remove(path);
        }
        one.phase = Phase::Closing(vec![true; self.cores.len()]);
        for core in self.cores.iter() {
            core.send(Message::Close(id));
        }
    }

    fn open(&mut self, id: ListenerId) {
        let one = &mut self.all[usize::from(id.0)];
        let again = Again {
            listener: &one.config,
            address: &one.address,
            options: &self.options,
            cpus: &self.cpus,
        };
        match again.bind(&mut self.unix_paths) {
            Ok(sockets) => {
                let mut sockets = sockets.into_iter();
                let first = sockets.next().expect("there is at least one core");
                one.phase = Phase::Opening(CoreId(0), sockets);
                self.cores[0].send(Message::Open(id, first));
            }
            Err(error) => {
                one.phase = Phase::Closed(Some(Instant::now() + RETRY_EVERY));
                self.fail(id, &error.to_string());
            }
        }
    }

    fn opened(&mut self, core: CoreId, id: ListenerId) {
        let one = &mut self.all[usize::from(id.0)];
        let Phase::Opening(told, sockets) = &mut one.phase else {
            return;
        };
        assert_eq!(*told, core, "one core after the other");
        if let Some(next) = sockets.next() {
            *told = CoreId(core.0 + 1);
            return self.cores[usize::from(told.0)].send(Message::Open(id, next));
        }
        one.phase = Phase::Open;
        one.error = None;
        (self.show)(id, true);
        let listener = &one.config.name;
        let address = &one.address;
        tracing::info!(listener, %address, "a listener listens again");
    }

    fn fail(&mut self, id: ListenerId, error: &str) {
        let one = &mut self.all[usize::from(id.0)];
        if one.error.as_deref() == Some(error) {
            return;
        }
        one.error = Some(error.to_owned());
        let listener = &one.config.name;
        let address = &one.address;
        tracing::warn!(
            listener,
            %address,
            error,
            "a listener cannot listen again; it is tried every second; see who has the address with `ss -ltnp` (`ss -lxp` for a unix socket)"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;
    use std::rc::Rc;

    use super::*;
    use crate::core::mailbox::{self, Receiver};

    const EDGE: ListenerId = ListenerId(0);

    /// Two cores that are played by hand.
    struct Stage {
        listeners: Listeners,
        mailboxes: Vec<Receiver<Message>>,
        shown: Rc<RefCell<Vec<bool>>>,
    }

    impl Stage {
        fn new() -> Self {
            let text = "listeners: { edge: { bind: 127.0.0.1:0, upstream: app } }\n\
                        upstreams: { app: { servers: [127.0.0.1:1] } }";
            let config = crate::config::from_str(text, "test", &|_| None).unwrap();
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = Address::Tcp(free.local_addr().unwrap());
            let pairs = (0..2).map(|_| mailbox::mailbox().unwrap());
            let (cores, mailboxes): (Vec<_>, Vec<_>) = pairs.unzip();
            let shown = Rc::new(RefCell::new(Vec::new()));
            let seen = Rc::clone(&shown);
            let listeners = Listeners::new(Parts {
                config: &config,
                addresses: &[address],
                options: Options {
                    nodelay: true,
                    user_timeout: None,
                },
                cpus: vec![0, 1],
                cores: cores.into(),
                show: Box::new(move |_, listens| seen.borrow_mut().push(listens)),
                unix_paths: UnixPaths::default(),
            });
            Self {
                listeners,
                mailboxes,
                shown,
            }
        }

        /// What a core has been told since; the sockets are closed.
        fn told(&self, core: usize) -> Vec<&'static str> {
            let word = |message| match message {
                Message::Close(EDGE) => "close",
                Message::Open(EDGE, _) => "open",
                _ => "something else",
            };
            std::iter::from_fn(|| self.mailboxes[core].next())
                .map(word)
                .collect()
        }

        fn close(&mut self) {
            self.listeners.want(EDGE, false);
            assert_eq!((self.told(0), self.told(1)), (vec!["close"], vec!["close"]));
            for core in [1, 0] {
                self.listeners.heard(Event::Closed(CoreId(core), EDGE));
            }
        }
    }

    #[test]
    fn cores_close_together_and_open_one_after_the_other() {
        let mut stage = Stage::new();
        stage.close();
        assert_eq!(stage.listeners.next_at(), None, "nobody wants it");
        stage.listeners.want(EDGE, true);
        assert_eq!((stage.told(0), stage.told(1)), (vec!["open"], vec![]));
        stage.listeners.heard(Event::Opened(CoreId(0), EDGE));
        assert_eq!((stage.told(0), stage.told(1)), (vec![], vec!["open"]));
        assert_eq!(*stage.shown.borrow(), [true, false]);
        stage.listeners.heard(Event::Opened(CoreId(1), EDGE));
        assert_eq!(*stage.shown.borrow(), [true, false, true]);
        assert_eq!((stage.told(0), stage.told(1)), (vec![], vec![]));
    }

    #[test]
    fn what_is_wanted_meanwhile_is_done_when_the_step_before_is() {
        let mut stage = Stage::new();
        stage.listeners.want(EDGE, false);
        stage.listeners.want(EDGE, true);
        assert_eq!(
            (stage.told(0), stage.told(1)),
            (vec!["close"], vec!["close"])
        );
        stage.listeners.heard(Event::Closed(CoreId(0), EDGE));
        assert_eq!(stage.told(0), [""; 0], "the other core still listens");
        stage.listeners.heard(Event::Closed(CoreId(1), EDGE));
        assert_eq!(stage.told(0), ["open"]);
        stage.listeners.want(EDGE, false);
        stage.listeners.heard(Event::Opened(CoreId(0), EDGE));
        assert_eq!(stage.told(1), ["open"]);
        stage.listeners.heard(Event::Opened(CoreId(1), EDGE));
        assert_eq!(
            (stage.told(0), stage.told(1)),
            (vec!["close"], vec!["close"])
        );
    }

    #[test]
    fn a_core_that_cannot_listen_closes_all_and_it_is_tried_again_later() {
        let mut stage = Stage::new();
        stage.close();
        stage.listeners.want(EDGE, true);
        stage.told(0);
        stage.listeners.heard(Event::Opened(CoreId(0), EDGE));
        stage.told(1);
        let error = io::Error::from_raw_os_error(libc::EADDRINUSE);
        stage
            .listeners
            .heard(Event::NotOpened(CoreId(1), EDGE, error));
        assert_eq!(
            (stage.told(0), stage.told(1)),
            (vec!["close"], vec!["close"])
        );
        assert_eq!(stage.shown.borrow().last(), Some(&false));
        for core in 0..2 {
            stage.listeners.heard(Event::Closed(CoreId(core), EDGE));
        }
        let next_at = stage.listeners.next_at().expect("it is wanted");
        assert!(next_at > Instant::now());
        stage.listeners.retry();
        assert_eq!(stage.told(0), [""; 0], "not yet");
        // Given up, there is nothing to wait for; wanted again, the second is still waited.
        stage.listeners.want(EDGE, false);
        assert_eq!(stage.listeners.next_at(), None);
        stage.listeners.want(EDGE, true);
        assert_eq!(stage.listeners.next_at(), Some(next_at));
    }

    #[test]
    fn at_the_end_nothing_is_opened_any_more() {
        let mut stage = Stage::new();
        stage.close();
        stage.listeners.want(EDGE, true);
        stage.told(0);
        stage.listeners.leave();
        stage.listeners.heard(Event::Opened(CoreId(0), EDGE));
        stage.listeners.retry();
        assert_eq!((stage.told(0), stage.told(1)), (vec![], vec![]));
        assert_eq!(stage.shown.borrow().last(), Some(&false));
    }
}
