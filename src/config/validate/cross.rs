//! Relations between the parts of a configuration, and the step from a draft to the model.

use std::time::Duration;

use super::names;
use super::policy::{ListenerPolicy, check_policies};
use super::route::RouteDraft;
use super::target::{TargetDraft, check_references};
use super::{source, stop_listening};
use crate::config::address::{binds_collide, is_loop, same_server};
use crate::config::limits::{
    DEFAULT_ACCEPT, DEFAULT_BACKLOG, DEFAULT_BUFFERS, DEFAULT_DNS, DEFAULT_LOG, DEFAULT_RELAY,
    DEFAULT_TCP, DEFAULT_TIMEOUTS, DEFAULT_UNIX_MODE, DEFAULT_UPSTREAM, DEFAULT_WEIGHT,
    ZERO_COPY_MIN_BYTES,
};
use crate::config::model::{
    Accept, Admin, Buffers, Check, Config, Dns, Listener, Log, ProxyRequired, Relay, Server,
    ServerAddress, Source, TcpOptions, Timeouts, Upstream, UpstreamPolicy, Workers,
};
use crate::config::read::{Place, Report};
use crate::units::{Address, ByteSize, UpstreamId, shorten};

/// A configuration with holes where something was wrong, and the place of each part.
pub(super) struct Draft {
    pub(super) workers: Workers,
    pub(super) buffers: Buffers,
    pub(super) timeouts: Timeouts,
    pub(super) relay: Relay,
    pub(super) relay_place: Option<Place>,
    pub(super) tcp: TcpOptions,
    pub(super) listeners: Vec<ListenerDraft>,
    pub(super) upstreams: Vec<UpstreamDraft>,
    pub(super) dns: Dns,
    pub(super) admin: Option<(Admin, Place)>,
    pub(super) log: Log,
}

pub(super) struct ListenerDraft {
    pub(super) name: String,
    pub(super) bind: Option<Address>,
    pub(super) bind_place: Place,
    pub(super) target: Option<TargetDraft>,
    pub(super) backlog: u32,
    pub(super) unix_mode: u32,
    pub(super) defer_connect: Option<Duration>,
    pub(super) accept: Accept,
    pub(super) proxy_protocol: Option<ProxyRequired>,
    pub(super) route: Option<RouteDraft>,
    /// Whether there is a `route`, sound or not.
    pub(super) has_route: bool,
    pub(super) policy: ListenerPolicy,
}

pub(super) struct UpstreamDraft {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) policy: UpstreamPolicy,
    pub(super) hash_place: Option<Place>,
    pub(super) check: Option<Check>,
    /// Of a check that is not off.
    pub(super) check_place: Option<Place>,
    /// The name, and where it stands.
    pub(super) fallback: Option<(String, Place)>,
    pub(super) source: Option<(Source, Place)>,
    pub(super) servers: Vec<ServerDraft>,
}

pub(super) struct ServerDraft {
    pub(super) address: Option<ServerAddress>,
    pub(super) place: Place,
    pub(super) weight: u16,
    pub(super) backup: bool,
    pub(super) max_connections: Option<u32>,
    /// And where it stands.
    pub(super) check_address: Option<(Address, Place)>,
}

impl UpstreamDraft {
    /// With every default.
    pub(super) fn plain(name: String, place: Place, servers: Vec<ServerDraft>) -> Self {
        Self {
            name,
            place,
            policy: DEFAULT_UPSTREAM,
            hash_place: None,
            check: None,
            check_place: None,
            fallback: None,
            source: None,
            servers,
        }
    }
}

impl ServerDraft {
    /// With every default.
    pub(super) fn plain(address: Option<ServerAddress>, place: Place) -> Self {
        Self {
            address,
            place,
            weight: DEFAULT_WEIGHT,
            backup: false,
            max_connections: None,
            check_address: None,
        }
    }
}

impl ListenerDraft {
    /// With every default.
    pub(super) fn plain(
        name: String,
        bind: Option<Address>,
        bind_place: Place,
        target: TargetDraft,
    ) -> Self {
        Self {
            name,
            bind,
            bind_place,
            target: Some(target),
            backlog: DEFAULT_BACKLOG,
            unix_mode: DEFAULT_UNIX_MODE,
            defer_connect: None,
            accept: DEFAULT_ACCEPT,
            proxy_protocol: None,
            route: None,
            has_route: false,
            policy: ListenerPolicy::default(),
        }
    }

    /// Every upstream that its sessions may go to, fallbacks aside.
    pub(super) fn upstreams(&self) -> Vec<&String> {
        let targets = self.target.iter().flat_map(TargetDraft::names);
        let routed = self.route.iter().flat_map(RouteDraft::upstreams);
        let targets = targets.map(|it| &it.name);
        targets.chain(routed.map(|(name, _)| name)).collect()
    }
}

impl Draft {
    /// The listeners whose sessions may go to an upstream, also by a fallback.
    pub(super) fn listeners_to<'a>(
        &'a self,
        upstream: &'a UpstreamDraft,
    ) -> impl Iterator<Item = &'a ListenerDraft> {
        let falls_here = |it: &&UpstreamDraft| {
            let fallback = it.fallback.as_ref().map(|(to, _)| to);
            fallback == Some(&upstream.name)
        };
        let others = self.upstreams.iter().filter(falls_here);
        let mut names: Vec<&String> = others.map(|it| &it.name).collect();
        names.push(&upstream.name);
        let leads_here = move |it: &&ListenerDraft| {
            let upstreams = it.upstreams();
            upstreams.iter().any(|to| names.contains(to))
        };
        self.listeners.iter().filter(leads_here)
    }

    /// The upstreams that a listener's sessions may go to, also by a fallback.
    pub(super) fn upstreams_from(&self, listener: &ListenerDraft) -> Vec<&UpstreamDraft> {
        let find = |name: &String| self.upstreams.iter().find(|it| it.name == *name);
        let upstreams = listener.upstreams().into_iter().filter_map(find);
        let fallback = |it: &UpstreamDraft| it.fallback.as_ref().and_then(|(to, _)| find(to));
        let with_fallback = |it| [Some(it), fallback(it)].into_iter().flatten();
        upstreams.flat_map(with_fallback).collect()
    }
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            workers: Workers::Auto,
            buffers: DEFAULT_BUFFERS,
            timeouts: DEFAULT_TIMEOUTS,
            relay: DEFAULT_RELAY,
            relay_place: None,
            tcp: DEFAULT_TCP,
            listeners: Vec::new(),
            upstreams: Vec::new(),
            dns: DEFAULT_DNS,
            admin: None,
            log: DEFAULT_LOG,
        }
    }
}

/// Notes every relation that does not hold.
pub(super) fn check(report: &mut Report<'_>, draft: &Draft) {
    check_references(report, draft);
    check_fallbacks(report, draft);
    check_binds(report, draft);
    check_admin(report, draft);
    check_servers(report, draft);
    check_weights(report, draft);
    check_checks(report, draft);
    stop_listening::check(report, draft);
    source::check(report, draft);
    names::check(report, draft);
    check_loops(report, draft);
    check_zero_copy(report, draft);
    check_policies(report, &draft.listeners);
}

fn check_zero_copy(report: &mut Report<'_>, draft: &Draft) {
    let size = draft.buffers.size_bytes;
    if let Some(place) = &draft.relay_place
        && draft.relay.zero_copy_send
        && size < ZERO_COPY_MIN_BYTES
    {
        let least = ByteSize(ZERO_COPY_MIN_BYTES.into());
        report.add(
            place.clone(),
            format!(
                "zero_copy_send does nothing with buffers of {}: smaller sends than {least} are copied",
                ByteSize(size.into())
            ),
            format!("set buffers.size to {least} at least, or zero_copy_send to false"),
        );
    }
}

/// A fallback leads to servers: neither back to where it came from nor on to a further one.
fn check_fallbacks(report: &mut Report<'_>, draft: &Draft) {
    for upstream in &draft.upstreams {
        let Some((name, place)) = &upstream.fallback else {
            continue;
        };
        let target = draft.upstreams.iter().find(|other| other.name == *name);
        if target.is_some_and(|target| target.fallback.is_some()) {
            report.add(
                place.clone(),
                format!("`{}` has a fallback itself", shorten(name)),
                "fall back to an upstream without one: a session falls once",
            );
        }
    }
}

/// What a check needs of the servers it is for.
fn check_checks(report: &mut Report<'_>, draft: &Draft) {
    for upstream in &draft.upstreams {
        let (Some(check), Some(place)) = (&upstream.check, &upstream.check_place) else {
            refuse_check_addresses(report, upstream);
            continue;
        };
        let unix = |server: &ServerDraft| {
            server.check_address.is_none()
                && matches!(
                    &server.address,
                    Some(ServerAddress::Known(Address::Unix(_)))
                )
        };
        if check.port.is_some() && upstream.servers.iter().any(unix) {
            report.add(
                place.clone(),
                "`port` means nothing for a server with a unix path",
                "remove it, give such servers a `check_address`, or put them into an upstream of their own",
            );
        }
    }
}

/// Of an upstream that checks nobody.
fn refuse_check_addresses(report: &mut Report<'_>, upstream: &UpstreamDraft) {
    // A check with an error in it is still one.
    if upstream.check_place.is_some() {
        return;
    }
    let places = upstream.servers.iter();
    for (_, place) in places.filter_map(|server| server.check_address.as_ref()) {
        report.add(
            place.clone(),
            "means nothing: the upstream has no `check`",
            "add one, like `check: tcp`, or remove it",
        );
    }
}

fn check_binds(report: &mut Report<'_>, draft: &Draft) {
    for (index, listener) in draft.listeners.iter().enumerate() {
        let Some(bind) = &listener.bind else { continue };
        let earlier = draft.listeners[..index].iter().find(|earlier| {
            earlier
                .bind
                .as_ref()
                .is_some_and(|other| binds_collide(bind, other))
        });
        if let Some(earlier) = earlier {
            let other = earlier.bind.as_ref().expect("found by it");
            let problem = format!(
                "`{bind}` collides with `{other}` of {}",
                earlier.bind_place.path
            );
            report.add(
                listener.bind_place.clone(),
                problem,
                "give each listener an address of its own",
            );
        }
    }
}

fn check_admin(report: &mut Report<'_>, draft: &Draft) {
    let Some((admin, place)) = &draft.admin else {
        return;
    };
    let bind = Address::Tcp(admin.bind);
    for listener in &draft.listeners {
        let Some(other) = &listener.bind else {
            continue;
        };
        if binds_collide(&bind, other) {
            let problem = format!(
                "`{bind}` collides with `{other}` of {}",
                listener.bind_place.path
            );
            report.add(
                place.clone(),
                problem,
                "give the admin listener a port of its own",
            );
        }
    }
}

fn check_servers(report: &mut Report<'_>, draft: &Draft) {
    for upstream in &draft.upstreams {
        for (index, server) in upstream.servers.iter().enumerate() {
            let Some(address) = &server.address else {
                continue;
            };
            let mut earlier = upstream.servers[..index]
                .iter()
                .filter_map(|earlier| earlier.address.as_ref());
            if earlier.any(|other| same_server(address, other)) {
                let problem = format!("`{address}` stands in this upstream a second time");
                report.add(
                    server.place.clone(),
                    problem,
                    "name each server once, and give it a weight for a larger share",
                );
            }
        }
    }
}

/// An upstream must be able to serve somebody, and its backups must have somebody to stand in for.
fn check_weights(report: &mut Report<'_>, draft: &Draft) {
    for upstream in &draft.upstreams {
        let serves = |backup: bool| {
            let mut servers = upstream.servers.iter();
            servers.any(|server| server.weight > 0 && server.backup == backup)
        };
        if upstream.servers.is_empty() || serves(false) {
            continue;
        }
        let (problem, remedy) = if serves(true) {
            (
                "every server that takes sessions is a backup",
                "set backup to false for those that serve first",
            )
        } else {
            (
                "every server has weight 0: no session could be served",
                "give at least one server a weight from 1 to 256",
            )
        };
        report.add(upstream.place.clone(), problem, remedy);
    }
}

fn check_loops(report: &mut Report<'_>, draft: &Draft) {
    for server in draft
        .upstreams
        .iter()
        .flat_map(|upstream| &upstream.servers)
    {
        let Some(address) = &server.address else {
            continue;
        };
        let own = draft.listeners.iter().find(|listener| {
            listener
                .bind
                .as_ref()
                .is_some_and(|bind| is_loop(bind, address))
        });
        if let Some(listener) = own {
            let problem = format!(
                "`{address}` is Corelay's own listener ({}): a loop",
                listener.bind_place.path
            );
            report.add(
                server.place.clone(),
                problem,
                "write the address of a server behind Corelay",
            );
        }
    }
}

/// What a draft without a finding is.
const WHOLE: &str = "a part is missing only where a problem was noted";

impl ServerDraft {
    fn model(&self) -> Server {
        Server {
            address: self.address.clone().expect(WHOLE),
            weight: self.weight,
            backup: self.backup,
            max_connections: self.max_connections,
            check_address: self.check_address.as_ref().map(|(at, _)| at.clone()),
        }
    }
}

impl Draft {
    /// Call it only when nothing is wrong.
    ///
    /// # Panics
    /// If a part is missing although no problem was noted: a bug of this module.
    pub(super) fn into_config(self) -> Config {
        let id_of = |name: &str| {
            let index = self
                .upstreams
                .iter()
                .position(|upstream| upstream.name == name)
                .expect(WHOLE);
            UpstreamId(u16::try_from(index).expect("at most LISTENERS_MAX upstreams"))
        };
        let listeners = self.listeners.iter().map(|listener| Listener {
            access: listener.policy.access.clone(),
            limits: listener.policy.limits,
            on_refuse: listener.policy.on_refuse,
            name: listener.name.clone(),
            bind: listener.bind.clone().expect(WHOLE),
            target: listener.target.as_ref().expect(WHOLE).model(&id_of),
            backlog: listener.backlog,
            unix_mode: listener.unix_mode,
            defer_connect: listener.defer_connect,
            accept: listener.accept,
            proxy_protocol: listener.proxy_protocol.clone(),
            route: listener.route.as_ref().map(|route| route.model(&id_of)),
        });
        let upstreams = self.upstreams.iter().map(|upstream| Upstream {
            name: upstream.name.clone(),
            policy: UpstreamPolicy {
                fallback: upstream.fallback.as_ref().map(|(name, _)| id_of(name)),
                ..upstream.policy
            },
            check: upstream.check.clone(),
            source: upstream.source.as_ref().map(|(source, _)| source.clone()),
            servers: upstream.servers.iter().map(ServerDraft::model).collect(),
        });
        Config {
            listeners: listeners.collect(),
            upstreams: upstreams.collect(),
            workers: self.workers,
            buffers: self.buffers,
            timeouts: self.timeouts,
            relay: self.relay,
            tcp: self.tcp,
            dns: self.dns,
            admin: self.admin.map(|(admin, _)| admin),
            log: self.log,
        }
    }
}
