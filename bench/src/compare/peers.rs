//! The proxies that are compared: what they are called, where they are found, what to install.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Source of the Go peer, built where `go` is found.
const GO_SOURCE: &str = include_str!("../../peers/go/main.go");
/// Where distributions put nginx's loadable modules.
const NGINX_MODULES: [&str; 3] = [
    "/usr/lib/nginx/modules",
    "/usr/lib64/nginx/modules",
    "/usr/share/nginx/modules",
];
/// The most connections to a proxy that needs a process for each.
const MAX_PROCESSES: usize = 1000;
/// Descriptors that a proxy and this process each need besides those of connections.
const SPARE_DESCRIPTORS: u64 = 500;
/// Descriptors per connection: two sockets, and in some proxies a pipe for every other one.
const DESCRIPTORS: u64 = 3;
/// The same where each direction keeps a pipe.
const DESCRIPTORS_WITH_PIPES: u64 = 6;
/// Looked at besides `PATH`: daemons live there, and a user's `PATH` may lack them.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// Peers that differ only in their settings. A bar against "nginx" means the best of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Direct,
    Corelay,
    Haproxy,
    Nginx,
    Other,
}

/// How a peer is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No proxy: the load goes to the servers.
    Direct,
    /// Lines beside those that every Corelay here has.
    Corelay {
        settings: &'static str,
    },
    /// Lines of `global` and of `defaults`.
    Haproxy {
        global: &'static str,
        defaults: &'static str,
    },
    Nginx {
        buffer: &'static str,
    },
    Go,
    Socat,
    /// A program of this crate behind a cargo feature.
    Helper {
        binary: &'static str,
        feature: &'static str,
    },
}

/// A proxy to compare.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) family: Family,
    /// Whether it takes part when `--peers` is not given.
    pub(super) by_default: bool,
    pub(super) kind: Kind,
}

/// All of them, in the order of the rounds.
pub(super) const PEERS: &[Peer] = &[
    Peer {
        name: "direct",
        what: "no proxy: the control",
        family: Family::Direct,
        by_default: true,
        kind: Kind::Direct,
    },
    Peer {
        name: CORELAY,
        what: "Corelay with its defaults",
        family: Family::Corelay,
        by_default: true,
        kind: Kind::Corelay { settings: "" },
    },
    Peer {
        name: "corelay-busy-poll",
        what: "Corelay that looks for more work for 50 us before it sleeps",
        family: Family::Corelay,
        by_default: true,
        kind: Kind::Corelay {
            settings: "relay: { busy_poll: 50us }\n",
        },
    },
    Peer {
        name: "corelay-copy",
        what: "Corelay that never splices",
        family: Family::Corelay,
        by_default: false,
        kind: Kind::Corelay {
            settings: "relay: { mover: copy }\n",
        },
    },
    Peer {
        name: "corelay-splice",
        what: "Corelay that always splices",
        family: Family::Corelay,
        by_default: false,
        kind: Kind::Corelay {
            settings: "relay: { mover: splice }\n",
        },
    },
    Peer {
        name: "haproxy",
        what: "HAProxy, mode tcp",
        family: Family::Haproxy,
        by_default: true,
        kind: Kind::Haproxy {
            global: "",
            defaults: "",
        },
    },
    Peer {
        name: "haproxy-splice-auto",
        what: "HAProxy with option splice-auto",
        family: Family::Haproxy,
        by_default: true,
        kind: Kind::Haproxy {
            global: "",
            defaults: "  option splice-auto\n",
        },
    },
    Peer {
        name: HAPROXY_SPLICE,
        what: "HAProxy that always splices",
        family: Family::Haproxy,
        by_default: true,
        kind: Kind::Haproxy {
            global: "",
            defaults: "  option splice-request\n  option splice-response\n",
        },
    },
    Peer {
        name: "haproxy-splice-1m",
        what: "HAProxy that always splices, with pipes of 1 MiB",
        family: Family::Haproxy,
        by_default: true,
        kind: Kind::Haproxy {
            global: "  tune.pipesize 1048576\n",
            defaults: "  option splice-request\n  option splice-response\n",
        },
    },
    Peer {
        name: "nginx",
        what: "nginx stream, buffers of 16 KiB (its default)",
        family: Family::Nginx,
        by_default: true,
        kind: Kind::Nginx { buffer: "16k" },
    },
    Peer {
        name: "nginx-64k",
        what: "nginx stream, buffers of 64 KiB",
        family: Family::Nginx,
        by_default: true,
        kind: Kind::Nginx { buffer: "64k" },
    },
    Peer {
        name: "nginx-256k",
        what: "nginx stream, buffers of 256 KiB",
        family: Family::Nginx,
        by_default: false,
        kind: Kind::Nginx { buffer: "256k" },
    },
    Peer {
        name: "go",
        what: "Go, io.Copy both ways (splices by itself)",
        family: Family::Other,
        by_default: true,
        kind: Kind::Go,
    },
    Peer {
        name: "socat",
        what: "socat, one process per connection",
        family: Family::Other,
        by_default: true,
        kind: Kind::Socat,
    },
    Peer {
        name: "monoio-copy",
        what: "monoio, a copy loop with buffers of 64 KiB",
        family: Family::Other,
        by_default: true,
        kind: Kind::Helper {
            binary: "peer-monoio-copy",
            feature: "peer-monoio",
        },
    },
    Peer {
        name: "tokio-copy",
        what: "tokio, copy_bidirectional",
        family: Family::Other,
        by_default: true,
        kind: Kind::Helper {
            binary: "peer-tokio-copy",
            feature: "peer-tokio",
        },
    },
];

/// What all others are compared with.
pub(super) const CORELAY: &str = "corelay";
/// The peer of the bars of bulk transfer.
pub(super) const HAPROXY_SPLICE: &str = "haproxy-splice";

/// A peer that can be started here.
#[derive(Clone, Debug)]
pub(super) struct Installed {
    pub(super) peer: &'static Peer,
    pub(super) version: String,
    pub(super) program: PathBuf,
}

/// Why a peer cannot be started here, and what would help.
#[derive(Clone, Debug)]
pub(super) struct Absent {
    pub(super) peer: &'static Peer,
    pub(super) remedy: String,
}

/// Where to look for programs, and where to build.
pub(super) struct Places<'a> {
    /// The `corelay` under test.
    pub(super) corelay: &'a Path,
    /// The folder of this binary: the helpers lie beside it.
    pub(super) beside: &'a Path,
    /// For what is built here.
    pub(super) work: &'a Path,
}

impl Peer {
    /// As many of these connections as it can hold under this limit of descriptors.
    pub(super) fn fitting(&self, connections: usize, descriptors: u64) -> usize {
        let each = match self.kind {
            Kind::Go => DESCRIPTORS_WITH_PIPES,
            _ => DESCRIPTORS,
        };
        let most = match self.kind {
            Kind::Socat => MAX_PROCESSES,
            _ => usize::MAX,
        };
        let room = descriptors.saturating_sub(SPARE_DESCRIPTORS) / each;
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        connections.min(room).min(most).max(1)
    }

    /// Finds the program and asks for its version.
    pub(super) fn find(&'static self, places: &Places<'_>) -> Result<Installed, Absent> {
        let absent = |remedy: String| Absent { peer: self, remedy };
        let (program, version) = match self.kind {
            Kind::Direct => (PathBuf::new(), String::new()),
            Kind::Corelay { .. } => {
                let remedy = format!(
                    "no {}: build it, or give --corelay",
                    places.corelay.display()
                );
                let version = version_of(places.corelay, "--version", 0);
                (
                    places.corelay.to_owned(),
                    version.ok_or_else(|| absent(remedy))?,
                )
            }
            Kind::Haproxy { .. } => {
                let program = in_path("haproxy").ok_or_else(|| absent(package("haproxy")))?;
                let version = version_of(&program, "-v", 0).unwrap_or_default();
                (program, version)
            }
            Kind::Nginx { .. } => {
                let remedy = || absent(package("nginx libnginx-mod-stream"));
                let program = in_path("nginx").ok_or_else(remedy)?;
                let arguments = version_of(&program, "-V", usize::MAX).unwrap_or_default();
                if !arguments.contains("--with-stream") {
                    return Err(remedy());
                }
                if arguments.contains("--with-stream=dynamic") && nginx_module().is_none() {
                    return Err(remedy());
                }
                (
                    program.clone(),
                    version_of(&program, "-v", 0).unwrap_or_default(),
                )
            }
            Kind::Socat => {
                let program = in_path("socat").ok_or_else(|| absent(package("socat")))?;
                let version = version_of(&program, "-V", 1).unwrap_or_default();
                (program, version)
            }
            Kind::Go => {
                let compiler = in_path("go").ok_or_else(|| absent(package("golang-go")))?;
                let program = build_go(&compiler, places.work)
                    .map_err(|error| absent(format!("go build fails: {error:#}")))?;
                let version = version_of(&program, "--version", 0).unwrap_or_default();
                (program, version)
            }
            Kind::Helper { binary, feature } => {
                let program = places.beside.join(binary);
                let remedy = format!("build corelay-bench with --features {feature}");
                let version = version_of(&program, "--version", 0);
                (program, version.ok_or_else(|| absent(remedy))?)
            }
        };
        Ok(Installed {
            peer: self,
            version,
            program,
        })
    }
}

impl Installed {
    /// Whether it is the control, which has no process.
    pub(super) fn is_direct(&self) -> bool {
        self.peer.family == Family::Direct
    }
}

fn build_go(compiler: &Path, work: &Path) -> Result<PathBuf> {
    let source = work.join("main.go");
    let program = work.join("peer-go-copy");
    std::fs::write(&source, GO_SOURCE)?;
    let mut command = Command::new(compiler);
    command.arg("build").arg("-o").arg(&program).arg(&source);
    // It needs nothing but the standard library: nothing is downloaded.
    command.env("GOFLAGS", "-mod=mod").env("GOPROXY", "off");
    let output = command.current_dir(work).output()?;
    let error = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
    anyhow::ensure!(output.status.success(), "{}", error());
    Ok(program)
}

fn package(name: &str) -> String {
    format!("not installed (Debian: {name})")
}

pub(super) fn nginx_module() -> Option<PathBuf> {
    let paths = NGINX_MODULES.map(|folder| Path::new(folder).join("ngx_stream_module.so"));
    paths.into_iter().find(|path| path.exists())
}

/// A program of this machine.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SYSTEM_FOLDERS.map(PathBuf::from));
    folders
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// One line of what a program prints when asked for its version, or everything; none if it does
/// not start. Some print to stderr.
fn version_of(program: &Path, argument: &str, line: usize) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    if line == usize::MAX {
        return Some(text.into_owned());
    }
    Some(text.lines().nth(line)?.trim().to_owned())
}

/// The peer of this name.
pub(super) fn by_name(name: &str) -> Result<&'static Peer> {
    PEERS
        .iter()
        .find(|peer| peer.name == name)
        .with_context(|| {
            let names: Vec<&str> = PEERS.iter().map(|peer| peer.name).collect();
            format!("there is no peer {name:?}; there are {}", names.join(", "))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_connections_fit_into_the_descriptors() {
        let fitting = |name, descriptors| by_name(name).unwrap().fitting(6000, descriptors);
        assert_eq!(fitting("corelay", 20_000), 6000);
        assert_eq!(fitting("go", 20_000), 3250);
        assert_eq!(fitting("socat", 20_000), 1000);
        assert_eq!(fitting("corelay", 1100), 200);
        assert_eq!(fitting("corelay", 100), 1);
    }

    #[test]
    fn names_are_unique_and_unknown_ones_are_refused() {
        let mut names: Vec<&str> = PEERS.iter().map(|peer| peer.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PEERS.len());
        assert!(by_name("nonsense").is_err());
    }
}
