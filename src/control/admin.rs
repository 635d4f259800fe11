//! The admin HTTP server: `/metrics`, `/healthz`, `/readyz`, `/stats`, and `/` which lists them.
//!
//! It is small on purpose: GET and HEAD, HTTP/1.0 and 1.1, no bodies, no TLS. What it shows comes
//! from an [`AdminSource`]. It runs on threads of its own, never on a core: one that accepts and one per
//! connection, at most [`CONNECTIONS_MAX`]. A request, from the moment its connection is ready for it to
//! the last byte of the answer, has [`REQUEST_LIMIT`]; a client that is slower is dropped.
//!
//! ```text
//! admin-accept ──> admin-conn ×16:   read head ──> answer ──┐ keep-alive
//!      │ the 17th: 503, close            ▲                  │
//!      ▼                                 └──────────────────┘
//! ```
//!
//! Requests are parsed by `httparse`; answers are in `respond`.

mod respond;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::process_log::RateLimit;
use respond::{Answer, Head};

/// Connections served at once: a few scrapers and a few people.
pub const CONNECTIONS_MAX: usize = 16;
/// For one request, waiting for it included: a scraper that keeps its connection open between scrapes
/// connects anew, which is cheaper than a slot held for nothing.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// A request line and its headers.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// How long a client that was refused or had an error may take to read the answer and close. Closing
/// at once, with its request unread, would send a reset that destroys the answer.
const LINGER: Duration = Duration::from_millis(250);
/// Bytes thrown away in that time.
const LINGER_BYTES_MAX: usize = 64 * 1024;
/// Pause after a failed accept: it fails for want of file descriptors, which do not come at once.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

static ACCEPT_FAILED: RateLimit = RateLimit::per_second();

/// What the admin server shows. Called on its threads; may take as long as a scrape takes.
pub trait AdminSource: Send + Sync {
    /// The Prometheus page.
    fn metrics_text(&self) -> String;
    /// The document for people.
    fn stats_json(&self) -> String;
    /// How the servers stand, for people.
    fn upstreams_json(&self) -> String;
    /// Whether every core listens; the error says what is missing.
    fn ready(&self) -> Result<(), String>;
    /// Whether every core turns; the error says which does not.
    fn healthy(&self) -> Result<(), String>;
}

/// A bound admin listener that does not accept yet.
pub struct Admin {
    listener: TcpListener,
    request_limit: Duration,
}

impl Admin {
    /// Binds (SO_REUSEADDR, CLOEXEC) and listens.
    ///
    /// # Errors
    /// As bind(2): the address is in use, is not this host's, or its port is privileged.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        // The standard library sets both options.
        let listener = TcpListener::bind(address)?;
        Ok(Self {
            listener,
            request_limit: REQUEST_LIMIT,
        })
    }

    /// Where it listens: the port that was chosen if 0 was asked for.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Starts to serve.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn serve(self, source: Arc<dyn AdminSource>) -> io::Result<AdminHandle> {
        let shared = Arc::new(Shared {
            listener: self.listener,
            source,
            request_limit: self.request_limit,
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let thread = std::thread::Builder::new()
            .name("admin-accept".to_owned())
            .spawn({
                let shared = shared.clone();
                move || accept_loop(&shared)
            })?;
        Ok(AdminHandle { shared, thread })
    }
}

/// A running admin server. Dropping the handle leaves it running.
pub struct AdminHandle {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl AdminHandle {
    /// Connections being served.
    pub fn connections(&self) -> usize {
        self.shared.connections().open.len()
    }

    /// Closes the listener and every connection; returns when no thread is left. A source that is
    /// asked at this moment is waited for.
    pub fn stop(self) {
        self.shared.stopping.store(true, Ordering::Release);
        // shutdown(2) on a listening socket ends a blocked accept with EINVAL.
        let listener = socket2::SockRef::from(&self.shared.listener);
        if listener.shutdown(Shutdown::Both).is_err() {
            tracing::warn!("the admin listener could not be shut down");
            return;
        }
        self.thread
            .join()
            .expect("a panic ends the process before it can be joined");
        // No thread is started any more.
        let threads = {
            let mut connections = self.shared.connections();
            for stream in connections.open.values() {
                // Gone already is as good.
                let _ = stream.shutdown(Shutdown::Both);
            }
            std::mem::take(&mut connections.threads)
        };
        for thread in threads {
            thread
                .join()
                .expect("a panic ends the process before it can be joined");
        }
    }
}

struct Shared {
    listener: TcpListener,
    source: Arc<dyn AdminSource>,
    request_limit: Duration,
    stopping: AtomicBool,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    /// By the number that the connection got.
    open: HashMap<u64, Arc<TcpStream>>,
    /// Running, or ended and not joined yet.
    threads: Vec<JoinHandle<()>>,
    accepted_total: u64,
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept_loop(shared: &Arc<Shared>) {
    loop {
        let accepted = shared.listener.accept();
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            Ok((stream, _)) => start_connection(shared, stream),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if let Some(suppressed) = ACCEPT_FAILED.allow() {
                    tracing::warn!(error = %error, suppressed, "the admin listener cannot accept");
                }
                std::thread::sleep(ACCEPT_BACKOFF);
            }
        }
    }
}

/// Whether only this connection failed, so that the next accept may well succeed.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}

fn start_connection(shared: &Arc<Shared>, stream: TcpStream) {
    let stream = Arc::new(stream);
    let number = {
        let mut connections = shared.connections();
        connections.threads.retain(|thread| !thread.is_finished());
        if connections.open.len() >= CONNECTIONS_MAX {
            drop(connections);
            return refuse(&stream);
        }
        connections.accepted_total += 1;
        let number = connections.accepted_total;
        connections.open.insert(number, stream.clone());
        number
    };
    let thread = std::thread::Builder::new()
        .name("admin-conn".to_owned())
        .spawn({
            let (shared, stream) = (shared.clone(), stream.clone());
            move || {
                serve_connection(&shared, &stream);
                shared.connections().open.remove(&number);
            }
        });
    let mut connections = shared.connections();
    match thread {
        Ok(thread) => connections.threads.push(thread),
        Err(_) => {
            connections.open.remove(&number);
            drop(connections);
            refuse(&stream);
        }
    }
}

fn refuse(stream: &TcpStream) {
    let answer = Answer::text(
        503,
        format!("busy: {CONNECTIONS_MAX} connections are being served already\n"),
    );
    let deadline = Instant::now() + LINGER;
    if write_all(stream, &answer.bytes(Head::LAST), deadline).is_ok() {
        linger(stream, deadline);
    }
}

/// Serves requests until the client closes, errs or is too slow. Errors end the connection and concern nobody else.
fn serve_connection(shared: &Shared, stream: &TcpStream) {
    let mut input = Vec::new();
    while !shared.stopping.load(Ordering::Acquire) {
        let deadline = Instant::now() + shared.request_limit;
        let (answer, head) = match read_head(stream, &mut input, deadline) {
            Ok(Some(head)) => (respond::route(&head, shared.source.as_ref()), head),
            Ok(None) => return,
            Err(Refusal::Io) => return,
            Err(Refusal::Bad(answer)) => (answer, Head::LAST),
        };
        let keep_alive = head.keep_alive;
        if write_all(stream, &answer.bytes(head), deadline).is_err() {
            return;
        }
        if !keep_alive {
            return linger(stream, Instant::now() + LINGER);
        }
    }
}

/// Why no request could be read.
enum Refusal {
    /// The connection failed or was too slow.
    Io,
    /// To be told the client, and then to close.
    Bad(Answer),
}

/// Reads one request's head and removes it from `input`; `None` at an end of the stream between two requests.
fn read_head(
    stream: &TcpStream,
    input: &mut Vec<u8>,
    deadline: Instant,
) -> Result<Option<Head>, Refusal> {
    loop {
        match respond::parse(input) {
            Ok(Some((head, used))) => {
                input.drain(..used);
                return Ok(Some(head));
            }
            Ok(None) => {}
            Err(answer) => return Err(Refusal::Bad(answer)),
        }
        if input.len() >= HEAD_BYTES_MAX {
            let text = format!("the request's head is larger than {HEAD_BYTES_MAX} bytes\n");
            return Err(Refusal::Bad(Answer::text(431, text)));
        }
        let mut chunk = [0; 2048];
        let room = chunk.len().min(HEAD_BYTES_MAX - input.len());
        match read_some(stream, &mut chunk[..room], deadline) {
            Ok(0) if input.is_empty() => return Ok(None),
            Ok(0) | Err(_) => return Err(Refusal::Io),
            Ok(bytes) => input.extend_from_slice(&chunk[..bytes]),
        }
    }
}

/// The time left, which the socket's timeouts need to be above zero.
fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

fn read_some(mut stream: &TcpStream, chunk: &mut [u8], deadline: Instant) -> io::Result<usize> {
    loop {
        stream.set_read_timeout(Some(time_left(deadline)?))?;
        match stream.read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn write_all(mut stream: &TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        // Set before every write: a client that takes a byte at a time gets no new 5 s with each.
        stream.set_write_timeout(Some(time_left(deadline)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends FIN and waits a little for the client's, so that the answer is not destroyed by a reset.
fn linger(stream: &TcpStream, deadline: Instant) {
    if stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut chunk = [0; 2048];
    let mut thrown_away = 0;
    while thrown_away < LINGER_BYTES_MAX {
        match read_some(stream, &mut chunk, deadline) {
            Ok(0) | Err(_) => return,
            Ok(bytes) => thrown_away += bytes,
        }
    }
}
