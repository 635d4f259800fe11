//! The listeners of the full form.

use super::cross::ListenerDraft;
use super::route::route;
use super::{parse_bind, policy, proxy, settings, target, within};
use crate::config::limits::{
    BACKLOG, DEFAULT_ACCEPT, DEFAULT_BACKLOG, DEFAULT_UNIX_MODE, LISTENERS_MAX, TIMEOUT,
    UNIX_MODE_MAX,
};
use crate::config::read::{Cursor, Report};
use crate::units::shorten;

pub(super) const LISTENER_KEYS: [&str; 13] = [
    "bind",
    "upstream",
    "upstreams",
    "split_by",
    "backlog",
    "unix_mode",
    "defer_connect",
    "accept",
    "proxy_protocol",
    "route",
    "access",
    "limits",
    "on_refuse",
];

pub(super) fn listeners(report: &mut Report<'_>, at: &Cursor<'_>) -> Vec<ListenerDraft> {
    let Some(named) = report.named(at) else {
        return Vec::new();
    };
    if named.is_empty() {
        report.add(
            at.place(),
            "there is no listener",
            "add one, like `edge: { bind: 0.0.0.0:9000, upstream: app }`",
        );
    }
    if !within(report, at, named.len(), LISTENERS_MAX, "listeners") {
        return Vec::new();
    }
    named
        .iter()
        .filter_map(|(name, at)| listener(report, name, at))
        .collect()
}

fn listener(report: &mut Report<'_>, name: &str, at: &Cursor<'_>) -> Option<ListenerDraft> {
    let section = report.section(at, &LISTENER_KEYS)?;
    let bind_at = section.require(report, "bind", "bind: 0.0.0.0:9000");
    let bind = bind_at.and_then(|at| {
        let text = report.text(at)?;
        parse_bind(report, &at.place(), &text)
    });
    let target = target::read(report, &section);
    let backlog = section
        .get("backlog")
        .and_then(|at| report.number(at, &BACKLOG))
        .unwrap_or(DEFAULT_BACKLOG);
    let unix_mode = section
        .get("unix_mode")
        .and_then(|at| unix_mode(report, at))
        .unwrap_or(DEFAULT_UNIX_MODE);
    let defer_connect = section
        .get("defer_connect")
        .and_then(|at| report.duration_or_off(at, &TIMEOUT))
        .flatten();
    let accept = section
        .get("accept")
        .and_then(|at| settings::accept(report, at))
        .unwrap_or(DEFAULT_ACCEPT);
    let proxy_protocol = section
        .get("proxy_protocol")
        .and_then(|at| proxy::required(report, at))
        .flatten();
    let route_at = section.get("route");
    let route = route_at.and_then(|at| route(report, at));
    let policy = policy::read(report, &section);
    Some(ListenerDraft {
        name: name.to_owned(),
        bind,
        bind_place: bind_at.map_or_else(|| at.place(), Cursor::place),
        target,
        backlog,
        unix_mode,
        defer_connect,
        accept,
        proxy_protocol,
        route,
        has_route: route_at.is_some_and(|at| !report.is_off(at)),
        policy,
    })
}

/// Octal, with the leading zero that says so: YAML itself would read 660 as a decimal number.
fn unix_mode(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<u32> {
    let text = report.text(at)?;
    let octal = text.starts_with('0') && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if octal && mode <= UNIX_MODE_MAX => Some(mode),
        _ => {
            let problem = format!("`{}` is not an octal mode from 0 to 0777", shorten(&text));
            report.add(
                at.place(),
                problem,
                "write permission bits with a leading 0 and in quotes, like \"0660\"",
            );
            None
        }
    }
}
