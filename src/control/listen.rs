//! Taking the addresses: all of them, or none.
//!
//! Every listener gets one socket per core, bound into a SO_REUSEPORT group. Before that, the
//! instance lock and a probe bind make sure that the group is ours: joining another process's group
//! would take a share of its clients away without anyone noticing.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::config::model::{Accept, Listener, Steer};
use crate::sys::socket::{self, ConnectError, Options, ThirdSegment};
use crate::sys::{affinity, fast_open, filter, lock};
use crate::units::{Address, ListenerId};

/// How long an address may stay in use after the process that had it was killed.
const PROBE_WITHIN: Duration = Duration::from_secs(1);
/// How often it is tried meanwhile.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Ports below this need CAP_NET_BIND_SERVICE, unless the sysctl says otherwise.
const PRIVILEGED_BELOW: u16 = 1024;

/// Why an address could not be taken: cause, consequence and remedy in one line.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another Corelay holds the lock.
    #[error(
        "listener {name}: another corelay serves {address}; this one does not start, for it would take a share of its clients; stop the other one first (its process holds the abstract socket @corelay/{address})"
    )]
    OtherInstance {
        /// The listener.
        name: String,
        /// Its address.
        address: String,
    },
    /// Another process listens there.
    #[error(
        "listener {name}: {address} is in use by another process; nothing was started; find it with `ss -ltnp` (`ss -lxp` for a unix socket) and stop it, or change `bind`"
    )]
    InUse {
        /// The listener.
        name: String,
        /// Its address.
        address: String,
    },
    /// A privileged port without the right.
    #[error("listener {name}: not permitted to bind {address}; nothing was started; {remedy}")]
    NotPermitted {
        /// The listener.
        name: String,
        /// Its address.
        address: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Anything else.
    #[error("listener {name}: cannot bind {address}: {source}; nothing was started; {remedy}")]
    Other {
        /// The listener.
        name: String,
        /// Its address.
        address: String,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
}

/// The addresses, held.
pub struct Bound {
    /// Indexed by [`ListenerId`]: where each listens, with the port that the kernel chose.
    pub addresses: Vec<Address>,
    /// By core: its sockets.
    pub sockets: Vec<Vec<(ListenerId, OwnedFd)>>,
    /// Held for life.
    pub locks: Vec<OwnedFd>,
    /// Removed at the end.
    pub unix_paths: UnixPaths,
}

/// Paths of unix listeners that this process made; dropping it removes them.
#[derive(Default)]
pub struct UnixPaths(Vec<UnixPath>);

/// Dropping it removes it.
struct UnixPath {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl UnixPaths {
    fn add(&mut self, path: &Path) -> io::Result<()> {
        let metadata = std::fs::symlink_metadata(path)?;
        let (device, inode) = (metadata.dev(), metadata.ino());
        self.0.push(UnixPath {
            path: path.to_path_buf(),
            device,
            inode,
        });
        Ok(())
    }

    /// Removes one of them.
    pub(super) fn remove(&mut self, path: &Path) {
        self.0.retain(|it| it.path != path);
    }
}

impl Drop for UnixPath {
    fn drop(&mut self) {
        // Somebody may have put another socket there meanwhile: that one is not ours.
        let is_ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if is_ours {
            // Gone already is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Takes every listener's address for a core on each of `cpus`. On an error nothing stays bound.
///
/// The cores must begin to listen in this order: see [`filter::steer_by_cpu`].
pub fn bind_all(config: &Config, options: &Options, cpus: &[usize]) -> Result<Bound, BindError> {
    let cores = cpus.len();
    let mut bound = Bound {
        addresses: Vec::new(),
        sockets: (0..cores).map(|_| Vec::new()).collect(),
        locks: Vec::new(),
        unix_paths: UnixPaths::default(),
    };
    for (index, listener) in config.listeners.iter().enumerate() {
        let id = ListenerId(u16::try_from(index).expect("bounded by the configuration"));
        let sockets = match &listener.bind {
            Address::Tcp(address) => bind_tcp(*address, options, cores, &mut bound)
                .and_then(|sockets| set_accept_options(&listener.accept, sockets, cpus)),
            Address::Unix(path) => bind_unix(path, listener, options, cores, &mut bound),
        }
        .map_err(|failure| explain(listener, failure))?;
        for (core, socket) in sockets.into_iter().enumerate() {
            bound.sockets[core].push((id, socket));
        }
    }
    Ok(bound)
}

/// Taking the address of a listener that has stopped again. The lock was never given up.
pub(super) struct Again<'a> {
    pub(super) listener: &'a Listener,
    /// With the port that the kernel chose.
    pub(super) address: &'a Address,
    pub(super) options: &'a Options,
    pub(super) cpus: &'a [usize],
}

impl Again<'_> {
    /// A socket for a core on each of `cpus`. Waits for nobody: whoever calls it has other things to do.
    ///
    /// # Errors
    /// As bind(2), mostly because somebody else has the address by now.
    pub(super) fn bind(&self, unix_paths: &mut UnixPaths) -> io::Result<Vec<OwnedFd>> {
        let bound = match self.address {
            Address::Tcp(_) => self.bind_tcp(),
            Address::Unix(path) => {
                let bound = self.bind_unix(path, unix_paths);
                if bound.is_err() {
                    unix_paths.remove(path);
                }
                bound
            }
        };
        bound.map_err(|failure| match failure {
            Failure::Os(error) => error,
            Failure::Locked => io::Error::from_raw_os_error(libc::EADDRINUSE),
            Failure::NotASocket => io::Error::from_raw_os_error(libc::EEXIST),
        })
    }

    fn bind_tcp(&self) -> Result<Vec<OwnedFd>, Failure> {
        drop(socket::bind(self.address, false, self.options)?);
        let sockets = group(self.address, self.options, self.cpus.len())?;
        set_accept_options(&self.listener.accept, sockets, self.cpus)
    }

    fn bind_unix(&self, path: &Path, unix_paths: &mut UnixPaths) -> Result<Vec<OwnedFd>, Failure> {
        remove_stale(path, self.options, Duration::ZERO)?;
        make_unix(
            path,
            self.listener,
            self.options,
            self.cpus.len(),
            unix_paths,
        )
    }
}

enum Failure {
    Locked,
    Os(io::Error),
    NotASocket,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Os(error)
    }
}

fn take_lock(address: &str, bound: &mut Bound) -> Result<(), Failure> {
    match lock::acquire(address) {
        Ok(held) => {
            bound.locks.push(held);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Failure::Locked),
        Err(error) => Err(Failure::Os(error)),
    }
}

fn bind_tcp(
    address: SocketAddr,
    options: &Options,
    cores: usize,
    bound: &mut Bound,
) -> Result<Vec<OwnedFd>, Failure> {
    if address.port() != 0 {
        take_lock(&address.to_string(), bound)?;
    }
    // The probe joins no group: it fails if anyone listens here, a group included. It is closed
    // only after the port is known, and the group is bound before anybody else can want it.
    let probe = probe(address, options)?;
    let resolved = socket::local_address(&probe)?.unwrap_or(address);
    drop(probe);
    if address.port() == 0 {
        take_lock(&resolved.to_string(), bound)?;
    }
    let resolved = Address::Tcp(resolved);
    let sockets = group(&resolved, options, cores)?;
    bound.addresses.push(resolved);
    Ok(sockets)
}

/// A socket for each core.
fn group(address: &Address, options: &Options, cores: usize) -> Result<Vec<OwnedFd>, Failure> {
    let sockets = (0..cores).map(|_| socket::bind(address, true, options));
    Ok(sockets.collect::<Result<_, _>>()?)
}

fn set_accept_options(
    accept: &Accept,
    sockets: Vec<OwnedFd>,
    cpus: &[usize],
) -> Result<Vec<OwnedFd>, Failure> {
    for socket in &sockets {
        if let Some(wait) = accept.defer {
            socket::defer_accept(socket, wait)?;
        }
        if let Some(queue) = accept.fast_open {
            fast_open::accept(socket, queue)?;
        }
    }
    if let (Steer::Cpu, Some(first)) = (accept.steer, sockets.first()) {
        filter::steer_by_cpu(first, cpus)?;
    }
    Ok(sockets)
}

/// Says what of the listeners' `accept`, and of Fast Open on either side, this host does not do as it is.
pub fn warn_of_socket_options(config: &Config, cpus: &[usize]) {
    let tcp = |listener: &&Listener| matches!(listener.bind, Address::Tcp(_));
    let mut listeners = config.listeners.iter().filter(tcp);
    if listeners.any(|it| it.accept.steer == Steer::Cpu) {
        let mut uncovered = affinity::online_cpus();
        uncovered.retain(|cpu| !cpus.contains(cpu));
        if !uncovered.is_empty() {
            tracing::warn!(
                cpus = ?uncovered,
                "accept.steer: cpu: these CPUs have no worker, and connections that they receive are spread by hash; give each CPU that the network card interrupts a worker"
            );
        }
    }
    let asked = fast_open_asked(config);
    let Some(allowed) = fast_open::allowed().filter(|allowed| allowed & asked != asked) else {
        return;
    };
    let wanted = allowed | asked;
    let missing = asked & !allowed;
    if missing & fast_open::SERVERS != 0 {
        tracing::warn!(
            "accept.fast_open: net.ipv4.tcp_fastopen does not allow it to servers, and SYNs with bytes are answered as any other; set it to {wanted} (sysctl net.ipv4.tcp_fastopen={wanted})"
        );
    }
    if missing & fast_open::CLIENTS != 0 {
        tracing::warn!(
            "source.fast_open: net.ipv4.tcp_fastopen does not allow it to clients, and connections to servers are made as any other; set it to {wanted} (sysctl net.ipv4.tcp_fastopen={wanted})"
        );
    }
}

/// Whom the configuration wants Fast Open allowed: [`fast_open::CLIENTS`], [`fast_open::SERVERS`], both or 0.
pub fn fast_open_asked(config: &Config) -> i64 {
    let mut listeners = config.listeners.iter();
    let is_asked =
        |it: &Listener| matches!(it.bind, Address::Tcp(_)) && it.accept.fast_open.is_some();
    let from_clients = listeners.any(is_asked);
    let mut sources = config.upstreams.iter().flat_map(|it| &it.source);
    let to_servers = sources.any(|it| it.fast_open);
    let bit = |is_asked: bool, bit| if is_asked { bit } else { 0 };
    bit(from_clients, fast_open::SERVERS) | bit(to_servers, fast_open::CLIENTS)
}

/// Binds alone. An instance that was killed keeps its listeners for a moment, while the kernel
/// takes its rings down; that is waited for.
fn probe(address: SocketAddr, options: &Options) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + PROBE_WITHIN;
    loop {
        match socket::bind(&Address::Tcp(address), false, options) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(PROBE_EVERY);
            }
            result => return result,
        }
    }
}

/// A unix address has no group: all cores share one socket and whoever is awake first accepts.
fn bind_unix(
    path: &Path,
    listener: &Listener,
    options: &Options,
    cores: usize,
    bound: &mut Bound,
) -> Result<Vec<OwnedFd>, Failure> {
    let address = Address::Unix(path.to_path_buf());
    take_lock(&address.to_string(), bound)?;
    // As for TCP: a killed instance's rings hold its socket for a moment.
    remove_stale(path, options, PROBE_WITHIN)?;
    let sockets = make_unix(path, listener, options, cores, &mut bound.unix_paths)?;
    bound.addresses.push(address);
    Ok(sockets)
}

fn make_unix(
    path: &Path,
    listener: &Listener,
    options: &Options,
    cores: usize,
    unix_paths: &mut UnixPaths,
) -> Result<Vec<OwnedFd>, Failure> {
    let socket = socket::bind(&Address::Unix(path.to_path_buf()), false, options)?;
    unix_paths.add(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(listener.unix_mode))?;
    let sockets = (0..cores).map(|_| socket.try_clone());
    Ok(sockets.collect::<Result<_, _>>()?)
}

/// Removes a socket that nobody listens on any more; anything else stays. Waits for so long for whoever does.
fn remove_stale(path: &Path, options: &Options, within: Duration) -> Result<(), Failure> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(Failure::NotASocket);
    }
    let deadline = Instant::now() + within;
    while is_served(path, options) {
        if Instant::now() >= deadline {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE).into());
        }
        std::thread::sleep(PROBE_EVERY);
    }
    std::fs::remove_file(path)?;
    Ok(())
}

/// Whether somebody listens on a unix socket's path.
fn is_served(path: &Path, options: &Options) -> bool {
    // Non-blocking: a process that hangs with a full backlog must not hang us, and is alive.
    let address = Address::Unix(path.to_path_buf());
    match socket::connect((&address).into(), options, ThirdSegment::Ack) {
        Err(ConnectError::Os(error)) => error.kind() != io::ErrorKind::ConnectionRefused,
        Err(ConnectError::Origin(_)) => true,
        Ok(_) => true,
    }
}

fn explain(listener: &Listener, failure: Failure) -> BindError {
    let name = listener.name.clone();
    let address = listener.bind.to_string();
    match failure {
        Failure::Locked => BindError::OtherInstance { name, address },
        Failure::NotASocket => BindError::Other {
            name,
            address,
            source: io::Error::from_raw_os_error(libc::EEXIST),
            remedy: "the path exists and is no socket: remove it, or change `bind`",
        },
        Failure::Os(error) => match error.raw_os_error() {
            Some(libc::EADDRINUSE) => BindError::InUse { name, address },
            Some(libc::EACCES | libc::EPERM) => {
                let privileged = matches!(
                    &listener.bind,
                    Address::Tcp(address) if address.port() < PRIVILEGED_BELOW
                );
                let remedy = if privileged {
                    "ports below 1024 need CAP_NET_BIND_SERVICE (the shipped systemd unit grants it) or a lower net.ipv4.ip_unprivileged_port_start"
                } else {
                    "let this user write to the directory of the socket, or change `bind`"
                };
                BindError::NotPermitted {
                    name,
                    address,
                    remedy,
                }
            }
            Some(libc::EADDRNOTAVAIL) => BindError::Other {
                name,
                address,
                source: error,
                remedy: "no interface of this host has the address: see `ip address`, or change `bind`",
            },
            Some(libc::ENOENT) => BindError::Other {
                name,
                address,
                source: error,
                remedy: "create the directory of the socket, or change `bind`",
            },
            _ => BindError::Other {
                name,
                address,
                source: error,
                remedy: "change `bind`",
            },
        },
    }
}
