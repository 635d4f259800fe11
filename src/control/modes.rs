//! What a listener does with a connection before it chooses a server, in the words of those who do it.

use crate::config::model::{Listener, ProxyRequired, ProxyVersions, RouteBy};
use crate::mode::proxy::Required;
use crate::mode::route::{By, Routes};
use crate::policy::access::{Access, Action, Rule};
use crate::policy::names::Names;
use crate::wire::proxy::Mode;

/// The PROXY header that a listener wants.
pub(super) fn required(required: &ProxyRequired) -> Required {
    let allow = |&network: &_| Rule {
        action: Action::Allow,
        network,
    };
    Required {
        mode: match required.versions {
            ProxyVersions::Any => Mode::Any,
            ProxyVersions::V1 => Mode::V1,
            ProxyVersions::V2 => Mode::V2,
        },
        timeout: required.timeout,
        trusted: Access::new(required.trusted.iter().map(allow).collect(), Action::Deny),
    }
}

/// Where a listener's sessions go by name.
pub(super) fn routes(listener: &Listener) -> Option<Routes> {
    let route = listener.route.as_ref()?;
    let mut names = Names::default();
    for (name, upstream) in &route.names {
        names.insert(name, *upstream);
    }
    let protocols = route.alpn.iter();
    Some(Routes {
        protocols: protocols
            .map(|(protocol, upstream)| (protocol.clone(), *upstream))
            .collect(),
        by: match route.by {
            RouteBy::Sni => By::Sni,
            RouteBy::Host => By::Host,
        },
        names,
        no_name: route.no_name,
        other_protocol: route.other_protocol,
        timeout: route.timeout,
    })
}
