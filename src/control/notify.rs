//! Talking to the service manager: sd_notify(3) and the watchdog's interval.
//!
//! Without `NOTIFY_SOCKET` every message is a no-op. The messages are those of the `sd-notify` crate;
//! they are sent from here, because that crate reads the environment at each call, knows no abstract sockets (which
//! containers use), and may block while the manager's queue is full.
//!
//! When to say what is decided elsewhere: READY=1 once every core listens, WATCHDOG=1 only when every core
//! echoed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

use super::process_log::RateLimit;

static SEND_FAILED: RateLimit = RateLimit::per_second();

/// What the service manager put into the environment; see sd_notify(3) and sd_watchdog_enabled(3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `NOTIFY_SOCKET`: a path, or `@` and an abstract name.
    pub notify_socket: Option<OsString>,
    /// `WATCHDOG_USEC`: microseconds.
    pub watchdog_usec: Option<OsString>,
    /// `WATCHDOG_PID`: the process meant, if only one is.
    pub watchdog_pid: Option<OsString>,
}

impl Environment {
    /// That of this process.
    pub fn read() -> Self {
        Self {
            notify_socket: std::env::var_os("NOTIFY_SOCKET"),
            watchdog_usec: std::env::var_os("WATCHDOG_USEC"),
            watchdog_pid: std::env::var_os("WATCHDOG_PID"),
        }
    }
}

/// Why the service manager cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// The variable holds no usable address.
    #[error("NOTIFY_SOCKET={0:?} is neither an absolute path nor @ and a name")]
    Address(OsString),
    /// No socket could be made.
    #[error("cannot make the socket for NOTIFY_SOCKET: {0}")]
    Socket(io::Error),
}

/// The way to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    peer: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// For this environment and process id.
    ///
    /// # Errors
    /// `NOTIFY_SOCKET` is set and makes no sense.
    pub fn new(environment: &Environment, pid: u32) -> Result<Self, NotifyError> {
        let peer = match environment.notify_socket.as_deref() {
            None => None,
            Some(text) => {
                let address =
                    address_of(text).ok_or_else(|| NotifyError::Address(text.to_owned()))?;
                let socket = UnixDatagram::unbound().map_err(NotifyError::Socket)?;
                // A manager whose queue is full must not stop the control thread.
                socket.set_nonblocking(true).map_err(NotifyError::Socket)?;
                Some((socket, address))
            }
        };
        // Without a way to feed it there is no watchdog to feed.
        let watchdog = peer
            .is_some()
            .then(|| watchdog_of(environment, pid))
            .flatten();
        Ok(Self { peer, watchdog })
    }

    /// Whether someone listens.
    pub fn is_connected(&self) -> bool {
        self.peer.is_some()
    }

    /// How long the service manager waits for a sign of life before it restarts the service. Half
    /// of it is the usual interval between two signs.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Start-up is finished.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// Shutdown has begun.
    pub fn stopping(&self, status: &str) {
        self.send(&[
            NotifyState::Stopping,
            NotifyState::Status(&one_line(status)),
        ]);
    }

    /// The line that `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    /// A sign of life.
    pub fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some((socket, address)) = &self.peer else {
            return;
        };
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address)
            && let Some(suppressed) = SEND_FAILED.allow()
        {
            tracing::warn!(error = %error, suppressed, "the service manager cannot be told");
        }
    }
}

/// A line feed would begin another assignment.
fn one_line(status: &str) -> String {
    status.replace(['\n', '\r'], " ")
}

fn address_of(text: &OsStr) -> Option<SocketAddr> {
    match text.as_bytes() {
        [b'@', name @ ..] if !name.is_empty() => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(text).ok(),
        _ => None,
    }
}

/// sd_watchdog_enabled(3): off unless an interval is given and it is meant for this process.
fn watchdog_of(environment: &Environment, pid: u32) -> Option<Duration> {
    let usec: u64 = environment
        .watchdog_usec
        .as_deref()?
        .to_str()?
        .parse()
        .ok()?;
    if let Some(meant) = environment.watchdog_pid.as_deref()
        && meant.to_str()?.parse() != Ok(pid)
    {
        return None;
    }
    (usec > 0).then(|| Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: u32 = 4711;

    fn environment(socket: &OsStr) -> Environment {
        Environment {
            notify_socket: Some(socket.to_owned()),
            ..Environment::default()
        }
    }

    fn receive(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let bytes = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..bytes].to_vec()).unwrap()
    }

    #[test]
    fn messages_arrive_at_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(&environment(path.as_os_str()), PID).unwrap();
        assert!(notifier.is_connected());
        notifier.ready("serving on 2 cores");
        assert_eq!(receive(&manager), "READY=1\nSTATUS=serving on 2 cores\n");
        notifier.alive();
        assert_eq!(receive(&manager), "WATCHDOG=1\n");
        notifier.status("a\nREADY=1");
        assert_eq!(receive(&manager), "STATUS=a READY=1\n");
        notifier.stopping("draining");
        assert_eq!(receive(&manager), "STOPPING=1\nSTATUS=draining\n");
        // The manager is gone: said in the log, and nothing else happens.
        drop(manager);
        notifier.alive();
    }

    #[test]
    fn messages_arrive_at_an_abstract_name() {
        let name = format!("corelay-notify-test-{}", std::process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let socket = OsString::from(format!("@{name}"));
        Notifier::new(&environment(&socket), PID).unwrap().alive();
        assert_eq!(receive(&manager), "WATCHDOG=1\n");
    }

    #[test]
    fn a_manager_that_does_not_read_blocks_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(&environment(path.as_os_str()), PID).unwrap();
        // Far more than net.unix.max_dgram_qlen.
        for _ in 0..5_000 {
            notifier.alive();
        }
    }

    #[test]
    fn nothing_is_sent_without_a_socket_and_nonsense_is_named() {
        let notifier = Notifier::new(&Environment::default(), PID).unwrap();
        assert!(!notifier.is_connected());
        notifier.ready("x");
        for nonsense in ["", "@", "relative/path", "vsock:2:1"] {
            let error = Notifier::new(&environment(OsStr::new(nonsense)), PID).unwrap_err();
            assert!(error.to_string().contains("NOTIFY_SOCKET"), "{error}");
        }
    }

    #[test]
    fn the_watchdog_is_for_this_process_only() {
        let with = |usec: &str, pid: Option<&str>| {
            let environment = Environment {
                notify_socket: Some("/run/notify".into()),
                watchdog_usec: Some(usec.into()),
                watchdog_pid: pid.map(Into::into),
            };
            Notifier::new(&environment, PID).unwrap().watchdog()
        };
        assert_eq!(with("30000000", None), Some(Duration::from_secs(30)));
        assert_eq!(
            with("30000000", Some("4711")),
            Some(Duration::from_secs(30))
        );
        assert_eq!(with("30000000", Some("4712")), None);
        assert_eq!(with("30000000", Some("x")), None);
        assert_eq!(with("0", None), None);
        assert_eq!(with("-1", None), None);
        let unfed = Environment {
            watchdog_usec: Some("1000".into()),
            ..Environment::default()
        };
        assert_eq!(Notifier::new(&unfed, PID).unwrap().watchdog(), None);
    }
}
