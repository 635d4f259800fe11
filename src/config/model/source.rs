//! Options of the sockets towards an upstream's servers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `upstreams.NAME.source`. What is absent is left to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Where connections come from, in turn. They do not overlap, and there is none if `transparent`.
    pub addresses: Vec<AddressRange>,
    /// SO_BINDTODEVICE.
    pub interface: Option<String>,
    /// SO_MARK; never 0.
    pub mark: Option<u32>,
    /// The six bits of DSCP.
    pub dscp: Option<u8>,
    /// TCP_CONGESTION.
    pub congestion: Option<String>,
    /// Come from the client's own address and port.
    pub transparent: bool,
    /// The SYN takes the first bytes along (TCP Fast Open).
    pub fast_open: bool,
}

impl Source {
    /// Every single address of this family, in the order of the configuration.
    pub fn addresses_of(&self, is_ipv4: bool) -> Vec<IpAddr> {
        let ranges = self.addresses.iter();
        let ranges = ranges.filter(|range| range.is_ipv4() == is_ipv4);
        ranges.flat_map(AddressRange::iter).collect()
    }
}

/// Addresses of one family from one to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    from: IpAddr,
    to: IpAddr,
}

impl AddressRange {
    /// `None` if it would be empty, or has a family at each end.
    pub fn new(from: IpAddr, to: IpAddr) -> Option<Self> {
        (from.is_ipv4() == to.is_ipv4() && from <= to).then_some(Self { from, to })
    }

    /// Of which family.
    pub fn is_ipv4(&self) -> bool {
        self.from.is_ipv4()
    }

    /// Both ends.
    pub fn ends(&self) -> [IpAddr; 2] {
        [self.from, self.to]
    }

    /// How many; the largest number there is if it has no room.
    pub fn count(&self) -> u128 {
        (number(self.to) - number(self.from)).saturating_add(1)
    }

    /// Whether some address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.from <= other.to && other.from <= self.to
    }

    fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let is_ipv4 = self.is_ipv4();
        (number(self.from)..=number(self.to)).map(move |number| {
            if is_ipv4 {
                Ipv4Addr::from(number as u32).into()
            } else {
                Ipv6Addr::from(number).into()
            }
        })
    }
}

impl fmt::Display for AddressRange {
    /// As written in the configuration: `10.0.0.1` or `10.0.0.1-10.0.0.9`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to {
            write!(f, "{}", self.from)
        } else {
            write!(f, "{}-{}", self.from, self.to)
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}
