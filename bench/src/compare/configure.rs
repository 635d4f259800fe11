//! How each proxy is configured and started.
//!
//! All carry the same routes, one for each test server. All are told to use one thread (Corelay: a
//! worker per CPU that it is given), to keep no access log and to send small messages at once.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use super::launch;
use super::peers::{Installed, Kind, nginx_module};
use super::process::Plan;

/// One listener of a proxy and the server behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) name: &'static str,
    pub(super) listen: SocketAddr,
    pub(super) server: SocketAddr,
}

/// What a proxy is to be configured for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup<'a> {
    pub(super) routes: &'a [Route],
    /// Those that it has workers on.
    pub(super) cpus: &'a [usize],
    /// The most that it must carry at a time. Some reserve memory and descriptors for it.
    pub(super) connections: usize,
    /// For its files.
    pub(super) folder: &'a Path,
}

impl Installed {
    /// How to start it.
    pub(super) fn plan(&self, setup: &Setup<'_>) -> Plan {
        let Setup {
            routes,
            cpus,
            folder,
            ..
        } = *setup;
        let program = || self.program.clone().into_os_string();
        let file = |suffix: &str| folder.join(format!("{}.{suffix}", self.peer.name));
        let listeners = routes.iter().map(|route| route.listen).collect();
        let mut plan = Plan {
            listeners,
            ..Plan::default()
        };
        match self.peer.kind {
            Kind::Direct => plan.listeners.clear(),
            Kind::Corelay { settings } => {
                let path = file("yaml");
                plan.commands = vec![vec![
                    program(),
                    "run".into(),
                    "--config".into(),
                    path.clone().into(),
                ]];
                plan.files = vec![(path, corelay_config(routes, cpus, settings))];
            }
            Kind::Haproxy { global, defaults } => {
                let path = file("cfg");
                plan.commands = vec![vec![
                    program(),
                    "-db".into(),
                    "-f".into(),
                    path.clone().into(),
                ]];
                plan.files = vec![(path, haproxy_config(setup, global, defaults))];
            }
            Kind::Nginx { buffer } => {
                let path = file("conf");
                plan.commands = vec![vec![
                    program(),
                    "-p".into(),
                    folder.into(),
                    "-c".into(),
                    path.clone().into(),
                ]];
                plan.files = vec![(path, nginx_config(setup, buffer, &file("pid")))];
            }
            Kind::Socat => {
                let command = |route: &Route| socat_command(program(), route);
                plan.commands = routes.iter().map(command).collect();
            }
            Kind::Go => {
                plan.commands = vec![routes_command(program(), routes)];
                plan.environment = vec![("GOMAXPROCS", "1".to_owned())];
            }
            Kind::Helper { .. } => plan.commands = vec![routes_command(program(), routes)],
        }
        plan
    }
}

fn corelay_config(routes: &[Route], cpus: &[usize], settings: &str) -> String {
    let mut text = format!("workers: [{}]\n", launch::join(cpus));
    text.push_str("log: { access: off, level: error }\n");
    text.push_str(settings);
    text.push_str("listeners:\n");
    for Route { name, listen, .. } in routes {
        text.push_str(&format!(
            "  {name}: {{ bind: \"{listen}\", upstream: {name} }}\n"
        ));
    }
    text.push_str("upstreams:\n");
    for Route { name, server, .. } in routes {
        text.push_str(&format!("  {name}: {{ servers: [\"{server}\"] }}\n"));
    }
    text
}

fn haproxy_config(setup: &Setup<'_>, global: &str, defaults: &str) -> String {
    let connections = setup.connections;
    let mut text = format!(
        "global\n  nbthread 1\n  maxconn {connections}\n{global}defaults\n  mode tcp\n  timeout connect 3s\n  \
         timeout client 10m\n  timeout server 10m\n{defaults}"
    );
    for Route {
        name,
        listen,
        server,
    } in setup.routes
    {
        text.push_str(&format!(
            "listen {name}\n  bind {listen} backlog 4096\n  server {name} {server}\n"
        ));
    }
    text
}

fn nginx_config(setup: &Setup<'_>, buffer: &str, pid_file: &Path) -> String {
    // A session is two connections.
    let connections = setup.connections * 2;
    let mut text = String::new();
    if let Some(module) = nginx_module() {
        text.push_str(&format!("load_module {};\n", module.display()));
    }
    text.push_str(&format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\nerror_log stderr crit;\npid {};\n\
         events {{ worker_connections {connections}; multi_accept on; }}\n\
         stream {{\n  access_log off;\n  tcp_nodelay on;\n  proxy_half_close on;\n  proxy_buffer_size {buffer};\n",
        pid_file.display()
    ));
    for Route { listen, server, .. } in setup.routes {
        text.push_str(&format!(
            "  server {{ listen {listen} backlog=4096; proxy_pass {server}; }}\n"
        ));
    }
    text.push_str("}\n");
    text
}

/// Its default is to end a session half a second after one side has ended: `-t` makes it wait.
fn socat_command(program: OsString, route: &Route) -> Vec<OsString> {
    let Route { listen, server, .. } = route;
    let from = format!(
        "TCP4-LISTEN:{},bind={},fork,reuseaddr,backlog=4096,nodelay",
        listen.port(),
        listen.ip()
    );
    let to = format!("TCP4:{server},nodelay");
    vec![
        program,
        "-b".into(),
        "65536".into(),
        "-t".into(),
        "600".into(),
        from.into(),
        to.into(),
    ]
}

fn routes_command(program: OsString, routes: &[Route]) -> Vec<OsString> {
    let pairs = routes
        .iter()
        .map(|route| format!("{}={}", route.listen, route.server).into());
    std::iter::once(program).chain(pairs).collect()
}
