//! Another proxy, as sender or receiver of PROXY headers: the real HAProxy or nginx, if it is here.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use corelay_bench::servers::RefusedPort;
use tempfile::TempDir;

use super::process::tool;
use super::wait_until;

/// A running proxy, killed when dropped.
pub(crate) struct PeerProxy {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl PeerProxy {
    /// HAProxy with `bind ADDRESS {bind}` and `server {server}`; `None` if it is not installed.
    pub(crate) fn haproxy(bind: &str, server: &str) -> Option<Self> {
        let path = tool("haproxy")?;
        let address = free_address();
        let config = format!(
            "global\n  maxconn 100\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
             listen it\n  bind {address} {bind}\n  server s {server}\n"
        );
        Some(Self::start(&path, &["-db", "-f"], &config, address))
    }

    /// nginx with `listen ADDRESS {listen};` and these further lines in its stream server; `None` if it, or
    /// its stream module, is not installed.
    pub(crate) fn nginx(listen: &str, lines: &str) -> Option<Self> {
        let path = tool("nginx")?;
        let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
        if !module.exists() {
            return None;
        }
        let address = free_address();
        let config = format!(
            "load_module {};\ndaemon off; master_process off; error_log stderr crit; pid /dev/null;\n\
             events {{ worker_connections 100; }}\n\
             stream {{ access_log off; server {{ listen {address} {listen}; {lines} }} }}\n",
            module.display()
        );
        Some(Self::start(&path, &["-c"], &config, address))
    }

    fn start(path: &Path, arguments: &[&str], config: &str, address: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("peer.conf");
        std::fs::write(&file, config).unwrap();
        let child = Command::new(path)
            .args(arguments)
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starting the other proxy");
        wait_until("the other proxy listens", || is_listening(address));
        Self {
            child,
            address,
            _directory: directory,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for PeerProxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    RefusedPort::new().unwrap().address()
}

/// As the kernel's table of sockets says: a connection would be a client.
fn is_listening(address: SocketAddr) -> bool {
    let wanted = format!(":{:04X} ", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let mut lines = table.lines();
    lines.any(|line| line.contains(&wanted) && line.contains(" 00000000:0000 0A "))
}
