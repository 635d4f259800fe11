//! Where a listener's sessions go: `upstream`, or `upstreams` with weights and `split_by`.

use super::cross::Draft;
use super::route::RouteDraft;
use crate::config::limits::WEIGHT;
use crate::config::model::{SplitBy, Target};
use crate::config::read::{Cursor, Place, Report, Section};
use crate::config::suggest::closest;
use crate::units::{Address, UpstreamId, shorten};

/// The words of `split_by`.
pub(in crate::config) const SPLITS_BY: [(&str, SplitBy); 2] =
    [("random", SplitBy::Random), ("source", SplitBy::Source)];

/// Names instead of references.
pub(super) enum TargetDraft {
    One(NameDraft),
    Split {
        by: SplitBy,
        /// Of `split_by`, if it was written.
        by_place: Option<Place>,
        parts: Vec<(NameDraft, u16)>,
    },
}

/// An upstream's name, and where it is written.
pub(super) struct NameDraft {
    pub(super) name: String,
    pub(super) place: Place,
}

impl TargetDraft {
    /// With indices for the names.
    pub(super) fn model(&self, id_of: &impl Fn(&str) -> UpstreamId) -> Target {
        match self {
            TargetDraft::One(it) => Target::One(id_of(&it.name)),
            TargetDraft::Split { by, parts, .. } => {
                let part = |(it, weight): &(NameDraft, u16)| (id_of(&it.name), *weight);
                Target::Split {
                    by: *by,
                    parts: parts.iter().map(part).collect(),
                }
            }
        }
    }

    pub(super) fn one(name: String, place: Place) -> Self {
        TargetDraft::One(NameDraft { name, place })
    }

    pub(super) fn names(&self) -> Vec<&NameDraft> {
        match self {
            TargetDraft::One(name) => vec![name],
            TargetDraft::Split { parts, .. } => parts.iter().map(|(name, _)| name).collect(),
        }
    }
}

pub(super) fn read(report: &mut Report<'_>, section: &Section<'_>) -> Option<TargetDraft> {
    let Some(upstreams) = section.get("upstreams") else {
        if let Some(at) = section.get("split_by") {
            report.add(
                at.place(),
                "there is nothing to split",
                "write `upstreams: { app: 90, canary: 10 }` instead of `upstream`, or remove it",
            );
        }
        let at = section.require(report, "upstream", "upstream: app")?;
        let name = report.text(at)?;
        return Some(TargetDraft::one(name, at.place()));
    };
    if let Some(at) = section.get("upstream") {
        report.add(
            at.place(),
            "stands beside `upstreams`",
            "keep one of the two: `upstream` for one, `upstreams` for a split by weight",
        );
        return None;
    }
    let by_at = section.get("split_by");
    let by = by_at.and_then(|at| report.choice(at, &SPLITS_BY));
    Some(TargetDraft::Split {
        by: by.unwrap_or(SplitBy::Random),
        by_place: by_at.map(Cursor::place),
        parts: parts(report, upstreams)?,
    })
}

fn parts(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Vec<(NameDraft, u16)>> {
    let mut parts = Vec::new();
    let mut is_whole = true;
    for (name, at) in report.named(at)? {
        let weight: Option<u16> = report.number(&at, &WEIGHT);
        is_whole &= weight.is_some();
        let name = NameDraft {
            name: name.to_owned(),
            place: at.place(),
        };
        parts.push((name, weight.unwrap_or(0)));
    }
    if is_whole && parts.iter().all(|(_, weight)| *weight == 0) {
        report.add(
            at.place(),
            "no upstream has a weight: no session could be served",
            "give at least one a weight from 1 to 256, like `{ app: 90, canary: 10 }`",
        );
    }
    Some(parts)
}

/// Every name stands for an upstream, and every upstream is named.
pub(super) fn check_references(report: &mut Report<'_>, draft: &Draft) {
    let known: Vec<&str> = draft.upstreams.iter().map(|it| it.name.as_str()).collect();
    let targets = || draft.listeners.iter().filter_map(|it| it.target.as_ref());
    let of_targets = targets().flat_map(TargetDraft::names);
    let mut wanted: Vec<(&String, &Place)> = of_targets.map(|it| (&it.name, &it.place)).collect();
    let routes = draft.listeners.iter().filter_map(|it| it.route.as_ref());
    wanted.extend(routes.flat_map(RouteDraft::upstreams));
    let fallbacks = draft.upstreams.iter().filter_map(|it| it.fallback.as_ref());
    wanted.extend(fallbacks.map(|(name, place)| (name, place)));
    for &(name, place) in &wanted {
        if known.contains(&name.as_str()) {
            continue;
        }
        let remedy = match closest(name, &known) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!(
                "add it under `upstreams`, or name one of: {}",
                known.join(", ")
            ),
        };
        let problem = format!("there is no upstream `{}`", shorten(name));
        report.add(place.clone(), problem, remedy);
    }
    for listener in &draft.listeners {
        if let (
            Some(Address::Unix(_)),
            Some(TargetDraft::Split {
                by: SplitBy::Source,
                by_place: Some(place),
                ..
            }),
        ) = (&listener.bind, &listener.target)
        {
            report.add(
                place.clone(),
                "clients of a unix socket have no address",
                "write random",
            );
        }
    }
    // Where a listener's part is missing, nobody can say what is unused.
    if draft.listeners.is_empty() || targets().count() < draft.listeners.len() {
        return;
    }
    for upstream in &draft.upstreams {
        if wanted.iter().all(|(name, _)| **name != upstream.name) {
            report.add(
                upstream.place.clone(),
                "no listener uses this upstream",
                "point a listener at it, or remove it",
            );
        }
    }
}
