//! Names that clients ask for, and who needs them: listeners look for them, upstreams may hash them or tell
//! servers of them.

use super::cross::{Draft, UpstreamDraft};
use crate::config::model::{HashBy, ProxyVersions};
use crate::config::read::Report;
use crate::units::shorten;

/// An upstream that hashes names gets sessions that have them, and nobody looks for names in vain.
pub(super) fn check(report: &mut Report<'_>, draft: &Draft) {
    for upstream in &draft.upstreams {
        let Some(place) = &upstream.hash_place else {
            continue;
        };
        if upstream.policy.hash != HashBy::Name {
            continue;
        }
        for listener in draft.listeners_to(upstream).filter(|it| !it.has_route) {
            report.add(
                place.clone(),
                format!(
                    "listener `{}` leads here and does not look for names",
                    shorten(&listener.name)
                ),
                "give it `route: { by: sni }` or `route: { by: host }`, or write source",
            );
        }
    }
    for listener in &draft.listeners {
        let Some(route) = listener.route.as_ref().filter(|it| it.is_bare) else {
            continue;
        };
        if !draft.upstreams_from(listener).into_iter().any(uses_names) {
            report.add(
                route.place.clone(),
                "nothing is done with the names",
                "add `names: { app.example.com: app }`, or `hash: name` to an upstream, or remove it",
            );
        }
    }
}

fn uses_names(upstream: &UpstreamDraft) -> bool {
    let policy = &upstream.policy;
    let sent = policy.proxy_protocol;
    policy.hash == HashBy::Name
        || sent.is_some_and(|it| it.version == ProxyVersions::V2 && it.pass_tlvs.authority)
}
