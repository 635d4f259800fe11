//! The command line of the proxies that are written here only to be compared with.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

/// What was built is what is locked: the version is read from there.
const LOCK_FILE: &str = include_str!("../../Cargo.lock");

/// Listening addresses, each with its server; none if only the version was asked for.
pub(crate) fn routes(library: &str) -> Result<Option<Vec<(SocketAddr, SocketAddr)>>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["--version"] {
        println!("{library} {}", locked_version(library).unwrap_or("unknown"));
        return Ok(None);
    }
    ensure!(!arguments.is_empty(), "usage: LISTEN=SERVER ...");
    let parse = |route: &String| {
        let (listen, server) = route.split_once('=')?;
        Some((listen.parse().ok()?, server.parse().ok()?))
    };
    let routes = arguments
        .iter()
        .map(|route| parse(route).with_context(|| format!("{route:?} is not LISTEN=SERVER")));
    routes.collect::<Result<_>>().map(Some)
}

fn locked_version(library: &str) -> Option<&'static str> {
    let name = format!("name = \"{library}\"");
    let mut lines = LOCK_FILE.lines().skip_while(|line| *line != name);
    let version = lines.nth(1)?.strip_prefix("version = \"")?;
    version.strip_suffix('"')
}
