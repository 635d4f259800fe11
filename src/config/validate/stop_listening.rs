//! `on_no_server: stop_listening` and its section.

use super::cross::{Draft, ListenerDraft, UpstreamDraft};
use super::health::ON_NO_SERVERS;
use super::route::RouteDraft;
use super::target::TargetDraft;
use crate::config::limits::{DEFAULT_STOP_LISTENING, TIMEOUT};
use crate::config::model::{OnNoServer, StopListening};
use crate::config::read::{Report, Section};
use crate::units::shorten;

pub(super) const STOP_LISTENING_KEYS: [&str; 2] = ["after", "resume_after"];

pub(super) fn stop_listening(
    report: &mut Report<'_>,
    upstream: &Section<'_>,
    on_no_server: OnNoServer,
) -> StopListening {
    let Some(at) = upstream.get("stop_listening") else {
        return DEFAULT_STOP_LISTENING;
    };
    if on_no_server != OnNoServer::StopListening {
        report.add(
            at.place(),
            "means nothing unless `on_no_server` is stop_listening",
            "set `on_no_server: stop_listening`, or remove it",
        );
    }
    let Some(section) = report.section(at, &STOP_LISTENING_KEYS) else {
        return DEFAULT_STOP_LISTENING;
    };
    let mut duration = |key, default| {
        let at = section.get(key);
        at.and_then(|at| report.duration(at, &TIMEOUT))
            .unwrap_or(default)
    };
    StopListening {
        after: duration("after", DEFAULT_STOP_LISTENING.after),
        resume_after: duration("resume_after", DEFAULT_STOP_LISTENING.resume_after),
    }
}

/// What would never stop a listener is a mistake: somebody relies on it.
pub(super) fn check(report: &mut Report<'_>, draft: &Draft) {
    let says_so = |it: &&UpstreamDraft| it.policy.on_no_server == OnNoServer::StopListening;
    for upstream in draft.upstreams.iter().filter(says_so) {
        if upstream.check_place.is_none() {
            report.add(
                upstream.place.clone(),
                "`on_no_server: stop_listening` needs a `check`: without one the last server is never known to be down",
                "add one, like `check: tcp`",
            );
        }
        if let Some((name, place)) = &upstream.fallback
            && let Some(fallback) = draft.upstreams.iter().find(|it| it.name == *name)
            && fallback.check_place.is_none()
        {
            report.add(
                place.clone(),
                format!(
                    "`on_no_server: stop_listening` needs a `check` of the fallback `{}` too: without one its last server is never known to be down",
                    shorten(name)
                ),
                "add one there, like `check: tcp`, or remove the fallback",
            );
        }
        let listeners = draft.listeners.iter();
        let here: Vec<_> = listeners.filter(|it| names(it, upstream)).collect();
        let hindrances = here.iter().map(|it| hindrance(draft, it, upstream));
        let Some(hindrances) = hindrances.collect::<Option<Vec<_>>>() else {
            continue;
        };
        let (problem, remedy) = match hindrances.first() {
            Some(other) => (
                format!(
                    "`on_no_server: stop_listening` stops no listener: each that leads here leads to `{}` too, which says {}",
                    shorten(&other.name),
                    word(other.policy.on_no_server)
                ),
                "say stop_listening there too, or something else here",
            ),
            // One without a listener at all is a finding of its own.
            None if is_fallback(draft, upstream) => (
                "`on_no_server: stop_listening` stops no listener: only a fallback leads here"
                    .to_owned(),
                "say it of the upstreams that fall back to this one",
            ),
            None => continue,
        };
        report.add(upstream.place.clone(), problem, remedy);
    }
}

fn word(on_no_server: OnNoServer) -> &'static str {
    let mut words = ON_NO_SERVERS.iter();
    let found = words.find(|(_, it)| *it == on_no_server);
    found.expect("every value has its word").0
}

fn is_fallback(draft: &Draft, upstream: &UpstreamDraft) -> bool {
    let fallbacks = draft.upstreams.iter().filter_map(|it| it.fallback.as_ref());
    fallbacks
        .into_iter()
        .any(|(name, _)| *name == upstream.name)
}

/// Whether a listener leads to an upstream, be it with weight 0.
fn names(listener: &ListenerDraft, upstream: &UpstreamDraft) -> bool {
    listener.upstreams().contains(&&upstream.name)
}

/// Why a listener never stops for an upstream: another one that it leads to, and that says something else.
fn hindrance<'a>(
    draft: &'a Draft,
    listener: &ListenerDraft,
    upstream: &UpstreamDraft,
) -> Option<&'a UpstreamDraft> {
    let of_target: Vec<&String> = match &listener.target {
        None => Vec::new(),
        Some(TargetDraft::One(one)) => vec![&one.name],
        Some(TargetDraft::Split { parts, .. }) => {
            let weighty = parts.iter().filter(|(_, weight)| *weight > 0);
            weighty.map(|(part, _)| &part.name).collect()
        }
    };
    let routed = listener.route.iter().flat_map(RouteDraft::upstreams);
    let mut others = of_target.into_iter().chain(routed.map(|(name, _)| name));
    others.find_map(|name| {
        let mut upstreams = draft.upstreams.iter();
        upstreams.find(|it| {
            it.name == *name
                && it.name != upstream.name
                && it.policy.on_no_server != OnNoServer::StopListening
        })
    })
}
