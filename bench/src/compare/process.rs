//! Running proxies: started, waited for until they accept, and ended with everything they started.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use super::launch;

/// How long a proxy may take until it accepts.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// How long a proxy may take to end after SIGTERM; then it is killed. It may have sessions to
/// drain, and nobody waits for those here.
const STOP_DEADLINE: Duration = Duration::from_secs(1);
/// Between two looks at a process or a port.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Ports for listeners: below the range from which the kernel takes ports for connections, so
/// that none is taken between looking and listening.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
/// Bytes of a proxy's output that are shown when it fails.
const OUTPUT_SHOWN_BYTES: usize = 2000;

/// What to start for one proxy.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// Programs with their arguments: one process each.
    pub(super) commands: Vec<Vec<OsString>>,
    /// Environment of all of them.
    pub(super) environment: Vec<(&'static str, String)>,
    /// Configuration files, written before the start.
    pub(super) files: Vec<(PathBuf, String)>,
    /// Addresses that accept once it runs.
    pub(super) listeners: Vec<SocketAddr>,
}

/// A proxy's processes. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Proxy {
    name: String,
    children: Vec<Child>,
    output: PathBuf,
}

impl Proxy {
    /// Starts it on these CPUs (wherever, if there are none) and waits until it accepts.
    pub(super) fn start(name: &str, plan: &Plan, cpus: &[usize], folder: &Path) -> Result<Self> {
        for (path, text) in &plan.files {
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        let output = folder.join(format!("{name}.output"));
        let sink = File::create(&output).with_context(|| output.display().to_string())?;
        let mut proxy = Self {
            name: name.to_owned(),
            children: Vec::new(),
            output,
        };
        for command in &plan.commands {
            let mut child = launch::command(cpus, command)?;
            child
                .stdin(Stdio::null())
                .stdout(sink.try_clone()?)
                .stderr(sink.try_clone()?)
                .envs(plan.environment.iter().cloned())
                // A group of its own: Ctrl-C reaches only this process, which then ends the rest
                // in order; and what a proxy forks is ended with it.
                .process_group(0);
            let child = child.spawn().with_context(|| format!("starting {name}"))?;
            proxy.children.push(child);
        }
        proxy.await_listeners(&plan.listeners)?;
        Ok(proxy)
    }

    /// The processes that were started, without their children.
    pub(super) fn processes(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// Fails, with what it printed, if one of its processes has ended.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        for child in &mut self.children {
            if let Some(status) = child.try_wait()? {
                let output = fs::read_to_string(&self.output).unwrap_or_default();
                let start = output.len().saturating_sub(OUTPUT_SHOWN_BYTES);
                let end = output.get(start..).unwrap_or(&output);
                bail!("{} ended with {status}:\n{end}", self.name);
            }
        }
        Ok(())
    }

    fn await_listeners(&mut self, listeners: &[SocketAddr]) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        for listener in listeners {
            while TcpStream::connect(listener).is_err() {
                self.check_alive()?;
                if Instant::now() >= deadline {
                    bail!("{} does not listen on {listener}", self.name);
                }
                std::thread::sleep(LOOK_INTERVAL);
            }
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        for child in &self.children {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // It fails if the group is gone, which is what is wanted.
                let _ = kill_process_group(group, signal);
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_DEADLINE;
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        while !self.children.iter_mut().all(ended) && Instant::now() < deadline {
            std::thread::sleep(LOOK_INTERVAL);
        }
        // The group's id stays taken while a member lives, so this reaches nobody else.
        self.signal(Signal::KILL);
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

/// A free loopback address for a listener of a proxy, which this process has for itself among all
/// comparisons of this machine until it ends.
///
/// # Errors
/// None is left.
pub(super) fn free_address() -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    // Two processes at the same time begin at different places, or they would go through the same ports
    // one behind the other.
    let start = (std::process::id() % u32::from(span)) as u16;
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % span;
        let port = PORTS.start + (start + step) % span;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if claim(port) && TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port from {} to {}", PORTS.start, PORTS.end)
}

/// Claims a port among all comparisons of this machine. Between looking at a port and a proxy that
/// listens there time passes, in which another comparison would find it free. An abstract unix socket
/// goes with the process that holds it, however that ends.
fn claim(port: u16) -> bool {
    static CLAIMS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let name = format!("corelay-bench/port/{port}");
    let claim = UnixAddress::from_abstract_name(name).and_then(|it| UnixListener::bind_addr(&it));
    let claim = claim.map(|claim| CLAIMS.lock().expect("no panic holds it").push(claim));
    claim.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_addresses_are_free_and_differ() {
        let first = free_address().unwrap();
        let held = TcpListener::bind(first).unwrap();
        let second = free_address().unwrap();
        assert_ne!(first, second);
        drop(held);
        let is_claimed = |address: SocketAddr| !claim(address.port());
        assert!(is_claimed(first) && is_claimed(second), "by this process");
        assert!(!PORTS.contains(&32_768), "{PORTS:?} meets ephemeral ports");
    }
}
