//! An upstream's `source`: the options of the sockets towards its servers.

use std::net::IpAddr;

use super::cross::{Draft, UpstreamDraft};
use crate::config::address::unusable_source;
use crate::config::limits::{DSCP_MAX, KERNEL_NAME_MAX_BYTES, MARK, SOURCE_ADDRESSES_MAX};
use crate::config::model::{AddressRange, ServerAddress, Source};
use crate::config::read::{Cursor, Place, Report};
use crate::units::{Address, shorten};

pub(super) const SOURCE_KEYS: [&str; 7] = [
    "address",
    "interface",
    "mark",
    "dscp",
    "congestion",
    "transparent",
    "fast_open",
];

/// The words of `dscp`: RFC 2474, 2597, 3246, 5865 and 8622.
pub(in crate::config) const DSCPS: [(&str, u8); 23] = [
    ("cs0", 0),
    ("cs1", 8),
    ("cs2", 16),
    ("cs3", 24),
    ("cs4", 32),
    ("cs5", 40),
    ("cs6", 48),
    ("cs7", 56),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("ef", 46),
    ("va", 44),
    ("le", 1),
];

/// The word for these six bits, if they have one.
pub(in crate::config) fn dscp_word(dscp: u8) -> Option<&'static str> {
    let mut words = DSCPS.iter();
    words.find(|(_, bits)| *bits == dscp).map(|(word, _)| *word)
}

/// `off`, or a section.
pub(super) fn source(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<Option<Source>> {
    if report.is_off(at) {
        return Some(None);
    }
    let section = report.section(at, &SOURCE_KEYS)?;
    let addresses_at = section.get("address");
    let addresses = addresses_at.map_or_else(Vec::new, |at| addresses(report, at));
    let mut flag = |key| {
        let at = section.get(key)?;
        report.boolean(at)
    };
    let transparent = flag("transparent").unwrap_or(false);
    let fast_open = flag("fast_open").unwrap_or(false);
    if let (Some(at), true) = (addresses_at, transparent) {
        report.add(
            at.place(),
            "means nothing with `transparent: true`, which takes the client's address",
            "remove one of the two",
        );
    }
    let mut name = |key, what: &str| {
        let at = section.get(key)?;
        kernel_name(report, at, what)
    };
    let interface = name("interface", "a network interface, like eth0");
    let congestion = name("congestion", "a congestion control, like bbr");
    let source = Source {
        addresses,
        interface,
        mark: section.get("mark").and_then(|at| mark(report, at)),
        dscp: section.get("dscp").and_then(|at| dscp(report, at)),
        congestion,
        transparent,
        fast_open,
    };
    // A section whose every line is commented out asks for nothing.
    Some((source != Source::default()).then_some(source))
}

/// One address, one range, or a list of those.
fn addresses(report: &mut Report<'_>, at: &Cursor<'_>) -> Vec<AddressRange> {
    let remedy = "add an address, like 10.0.0.10, or remove the key";
    let items = report.one_or_list(at, remedy).unwrap_or_default();
    let mut ranges: Vec<AddressRange> = Vec::new();
    for item in &items {
        let Some(range) = range(report, item) else {
            continue;
        };
        if let Some(earlier) = ranges.iter().find(|earlier| earlier.overlaps(&range)) {
            report.add(
                item.place(),
                format!("`{range}` has addresses of `{earlier}`"),
                "name each address once",
            );
        }
        ranges.push(range);
    }
    let counts = ranges.iter().map(AddressRange::count);
    let count = counts.fold(0, u128::saturating_add);
    if count > SOURCE_ADDRESSES_MAX as u128 {
        report.add(
            at.place(),
            format!("{count} addresses are too many"),
            format!("keep at most {SOURCE_ADDRESSES_MAX}"),
        );
        return Vec::new();
    }
    ranges
}

fn range(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<AddressRange> {
    let text = report.text(at)?;
    let (from, to) = text.split_once('-').unwrap_or((&text, &text));
    let parse = |text: &str| text.trim().parse::<IpAddr>();
    let (Ok(from), Ok(to)) = (parse(from), parse(to)) else {
        report.add(
            at.place(),
            format!(
                "`{}` is not an IP address or a range of them",
                shorten(&text)
            ),
            "write an address of this host without a port, like 10.0.0.10, or 10.0.0.10-10.0.0.20",
        );
        return None;
    };
    let Some(range) = AddressRange::new(from, to) else {
        report.add(
            at.place(),
            format!("`{}` is not a range", shorten(&text)),
            "write the lower address first, and both of one family",
        );
        return None;
    };
    if let Some((problem, remedy)) = range.ends().into_iter().find_map(unusable_source) {
        report.add(at.place(), format!("`{range}` {problem}"), remedy);
        return None;
    }
    Some(range)
}

fn kernel_name(report: &mut Report<'_>, at: &Cursor<'_>, what: &str) -> Option<String> {
    let name = report.text(at)?;
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
    if name.len() <= KERNEL_NAME_MAX_BYTES && name.bytes().all(plain) {
        return Some(name);
    }
    report.add(
        at.place(),
        format!("`{}` cannot be a name in the kernel", shorten(&name)),
        format!("write the name of {what}: at most {KERNEL_NAME_MAX_BYTES} characters"),
    );
    None
}

/// Decimal, or hexadecimal behind 0x.
fn mark(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<u32> {
    let text = report.text(at)?;
    let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text.as_str(), 10),
    };
    let digits_only = digits.chars().all(|c| c.is_digit(radix));
    match u32::from_str_radix(digits, radix) {
        Ok(mark) if digits_only && MARK.contains(&mark) => Some(mark),
        _ => {
            report.add(
                at.place(),
                format!("`{}` is not a mark", shorten(&text)),
                "write a number from 1 to 4294967295, or like 0x2a; without the key there is none",
            );
            None
        }
    }
}

fn dscp(report: &mut Report<'_>, at: &Cursor<'_>) -> Option<u8> {
    let text = report.text(at)?;
    let word = text.to_ascii_lowercase();
    let known = DSCPS.iter().find(|(name, _)| *name == word);
    let digits_only = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text
        .parse()
        .ok()
        .filter(|bits| digits_only && *bits <= DSCP_MAX);
    let bits = known.map(|(_, bits)| *bits).or(number);
    if bits.is_none() {
        report.add(
            at.place(),
            format!("`{}` is not a DSCP", shorten(&text)),
            format!("write 0 to {DSCP_MAX}, or a name: cs0 to cs7, af11 to af43, ef, va, le"),
        );
    }
    bits
}

/// What a source needs of the servers it leads to, and of the listeners that lead to it.
pub(super) fn check(report: &mut Report<'_>, draft: &Draft) {
    for upstream in &draft.upstreams {
        let Some((source, place)) = &upstream.source else {
            continue;
        };
        let servers = upstream.servers.iter();
        let known: Vec<&ServerAddress> = servers.filter_map(|it| it.address.as_ref()).collect();
        let is_unix = |it: &&ServerAddress| matches!(it, ServerAddress::Known(Address::Unix(_)));
        if !known.is_empty() && known.iter().all(is_unix) {
            report.add(
                place.clone(),
                "means nothing for servers with unix paths, and this upstream has no others",
                "remove it",
            );
            continue;
        }
        for is_ipv4 in [true, false] {
            let server = known.iter().find(|server| match server {
                ServerAddress::Known(Address::Tcp(ip)) => ip.is_ipv4() == is_ipv4,
                _ => false,
            });
            if let Some(server) = server {
                check_family(report, source, place, (server, is_ipv4));
            }
        }
        if source.transparent {
            check_clients(report, draft, upstream, place);
        }
    }
}

fn check_family(
    report: &mut Report<'_>,
    source: &Source,
    place: &Place,
    (server, is_ipv4): (&ServerAddress, bool),
) {
    let has_some = source
        .addresses
        .iter()
        .any(|range| range.is_ipv4() == is_ipv4);
    if !source.addresses.is_empty() && !has_some {
        let family = family(is_ipv4);
        report.add(
            place.clone(),
            format!("`address` has no {family} address, and the server {server} has one"),
            format!("add an {family} address of this host, or put such servers into an upstream of their own"),
        );
    }
}

/// Transparent: each client's address must fit each server's.
fn check_clients(report: &mut Report<'_>, draft: &Draft, upstream: &UpstreamDraft, place: &Place) {
    for listener in draft.listeners_to(upstream) {
        let mut servers = upstream.servers.iter().filter_map(|it| it.address.as_ref());
        match &listener.bind {
            Some(Address::Unix(_)) => report.add(
                place.clone(),
                format!(
                    "is transparent, and clients of listener `{}` have no address: it is a unix path",
                    shorten(&listener.name)
                ),
                "give that listener an upstream of its own, without `transparent`",
            ),
            Some(Address::Tcp(bind)) => {
                let other = servers.find(|server| match server {
                    ServerAddress::Known(Address::Tcp(ip)) => ip.is_ipv4() != bind.is_ipv4(),
                    _ => false,
                });
                if let Some(server) = other {
                    report.add(
                        place.clone(),
                        format!(
                            "is transparent, and {} clients of listener `{}` cannot be the source of connections to {server}",
                            family(bind.is_ipv4()),
                            shorten(&listener.name)
                        ),
                        "give each family an upstream of its own",
                    );
                }
            }
            None => {}
        }
    }
}

fn family(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "IPv4" } else { "IPv6" }
}
