//! `source` of an upstream.

use serde_yaml::Value;

use super::{mapping, text};
use crate::config::model::Source;
use crate::config::validate::dscp_word;

pub(super) fn source(source: Option<&Source>) -> Value {
    let Some(Source {
        addresses,
        interface,
        mark,
        dscp,
        congestion,
        transparent,
        fast_open,
    }) = source
    else {
        return text("off");
    };
    let mut entries = Vec::new();
    if !addresses.is_empty() {
        let addresses = addresses.iter().map(text).collect();
        entries.push(("address", Value::Sequence(addresses)));
    }
    if let Some(name) = interface {
        entries.push(("interface", text(name)));
    }
    if let Some(mark) = mark {
        entries.push(("mark", text(format!("{mark:#x}"))));
    }
    if let Some(dscp) = dscp {
        entries.push(("dscp", dscp_word(*dscp).map_or((*dscp).into(), text)));
    }
    if let Some(name) = congestion {
        entries.push(("congestion", text(name)));
    }
    entries.push(("transparent", (*transparent).into()));
    entries.push(("fast_open", (*fast_open).into()));
    mapping(entries)
}
