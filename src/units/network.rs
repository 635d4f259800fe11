//! A block of IP addresses in CIDR notation.
//!
//! An IPv4-mapped IPv6 address (`::ffff:10.0.0.1`, what a dual-stack socket reports for an IPv4
//! client) *is* that IPv4 address here: in networks as written and in addresses as asked for.
//! Nobody can therefore pass a list of IPv4 networks by connecting to an IPv6 socket. The other
//! side of it: `::/0` holds no IPv4 client.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::shorten;

/// Bits that all IPv4-mapped addresses have in common.
const MAPPED_PREFIX_BITS: u8 = 96;

/// All addresses that agree in the first bits. Those after them are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(IpNet);

/// Text that is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` {kind}", shorten(text))]
pub struct NetworkError {
    text: String,
    kind: NetworkErrorKind,
}

/// What is wrong with the text, as the end of a sentence about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkErrorKind {
    /// Neither an address nor an address with a prefix length.
    #[error("is not a network")]
    NotANetwork,
    /// An address with a port, or in brackets.
    #[error("is an address with a port or in brackets, not a network")]
    SocketAddress(IpAddr),
    /// `/33` after an IPv4 address, or something that is no number.
    #[error("has a prefix length that is not a number from 0 to {max_bits}")]
    BadPrefix {
        /// 32 or 128.
        max_bits: u8,
    },
    /// A netmask in place of a prefix length; the network that it stands for.
    #[error("has a netmask")]
    Netmask(Network),
    /// `10.0.0.1/8`: one address of a network, or a slip in the length?
    #[error("has bits set after its first {} bits", meant.prefix_bits())]
    HostBits {
        /// The network that holds the address.
        meant: Network,
    },
}

impl NetworkError {
    /// What is wrong, without the text.
    pub fn kind(&self) -> NetworkErrorKind {
        self.kind
    }

    /// How to write it instead.
    pub fn remedy(&self) -> String {
        match self.kind {
            NetworkErrorKind::NotANetwork => {
                "write a network like 10.0.0.0/8 or 2001:db8::/32, or an IP address".to_owned()
            }
            NetworkErrorKind::SocketAddress(ip) => format!("write {ip}"),
            NetworkErrorKind::BadPrefix { max_bits } => {
                format!("write a prefix length from 0 to {max_bits}, like /24")
            }
            NetworkErrorKind::Netmask(meant) => format!("write {meant}"),
            NetworkErrorKind::HostBits { meant } => format!(
                "write {meant} for the network, or the address without a length for itself alone"
            ),
        }
    }
}

impl Network {
    /// The network of `prefix_bits` bits that holds `ip`; `None` if the address has fewer bits.
    ///
    /// For an IPv4-mapped address the bits count from the start of its IPv4 address.
    pub fn around(ip: IpAddr, prefix_bits: u8) -> Option<Self> {
        let network = IpNet::new(ip.to_canonical(), prefix_bits).ok()?;
        Some(Self(network.trunc()))
    }

    /// Whether the address is in it. See the top of the file for IPv4-mapped ones.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip.to_canonical())
    }

    /// How many leading bits its addresses have in common: 0 to 32 or 0 to 128.
    pub fn prefix_bits(&self) -> u8 {
        self.0.prefix_len()
    }

    /// Its lowest address.
    pub fn first(&self) -> IpAddr {
        self.0.network()
    }

    /// Its highest address.
    pub fn last(&self) -> IpAddr {
        self.0.broadcast()
    }
}

impl fmt::Display for Network {
    /// As [`FromStr`] reads it: `10.0.0.0/8`, or the bare address if there is only one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            write!(f, "{}", self.first())
        } else {
            write!(f, "{}", self.0)
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    /// `10.0.0.0/8`, `2001:db8::/32`, or a bare address for itself alone.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        parse(text).map_err(|kind| NetworkError {
            text: text.to_owned(),
            kind,
        })
    }
}

fn parse(text: &str) -> Result<Network, NetworkErrorKind> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let ip: IpAddr = address.parse().map_err(|_| why_not_an_address(address))?;
    let max_bits = IpNet::from(ip).max_prefix_len();
    let prefix_bits = match length {
        Some(length) => parse_length(ip, length, max_bits)?,
        None => max_bits,
    };
    let written = IpNet::new(ip, prefix_bits).expect("checked by parse_length");
    let network = Network(canonical(written.trunc()));
    if written.trunc() != written {
        return Err(NetworkErrorKind::HostBits { meant: network });
    }
    Ok(network)
}

fn parse_length(ip: IpAddr, text: &str, max_bits: u8) -> Result<u8, NetworkErrorKind> {
    let bad = NetworkErrorKind::BadPrefix { max_bits };
    if let Ok(mask) = text.parse::<Ipv4Addr>() {
        let IpAddr::V4(ip) = ip else { return Err(bad) };
        let network = Ipv4Net::with_netmask(ip, mask).map_err(|_| bad)?;
        return Err(NetworkErrorKind::Netmask(Network(network.trunc().into())));
    }
    // `parse` alone would take `+8`.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad);
    }
    match text.parse() {
        Ok(bits) if bits <= max_bits => Ok(bits),
        _ => Err(bad),
    }
}

fn why_not_an_address(text: &str) -> NetworkErrorKind {
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return NetworkErrorKind::SocketAddress(address.ip());
    }
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    match inner.and_then(|inner| inner.parse::<Ipv6Addr>().ok()) {
        Some(ip) => NetworkErrorKind::SocketAddress(ip.into()),
        None => NetworkErrorKind::NotANetwork,
    }
}

/// A network of IPv4-mapped addresses as the IPv4 network that it is.
fn canonical(network: IpNet) -> IpNet {
    match network {
        IpNet::V6(v6) => match v6_as_v4(v6) {
            Some(v4) => IpNet::V4(v4),
            None => network,
        },
        IpNet::V4(_) => network,
    }
}

fn v6_as_v4(network: Ipv6Net) -> Option<Ipv4Net> {
    let ip = network.network().to_ipv4_mapped()?;
    let bits = network.prefix_len().checked_sub(MAPPED_PREFIX_BITS)?;
    Ipv4Net::new(ip, bits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn what_is_written_is_printed() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "::/0",
            "2001:db8::/32",
            "127.0.0.1",
            "::1",
        ] {
            assert_eq!(network(text).to_string(), text);
        }
        assert_eq!(network("192.0.2.7/32").to_string(), "192.0.2.7");
        assert_eq!(network("::ffff:10.0.0.0/104").to_string(), "10.0.0.0/8");
    }

    #[test]
    fn holds_from_its_first_to_its_last_address() {
        let ten = network("10.0.0.0/8");
        assert!(ten.contains(ip("10.0.0.0")) && ten.contains(ip("10.255.255.255")));
        assert!(!ten.contains(ip("9.255.255.255")) && !ten.contains(ip("11.0.0.0")));
        assert!(!ten.contains(ip("a00::")));
        assert_eq!(
            (ten.first(), ten.last()),
            (ip("10.0.0.0"), ip("10.255.255.255"))
        );
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_address() {
        assert!(network("10.0.0.0/8").contains(ip("::ffff:10.1.2.3")));
        assert!(network("::ffff:0:0/96").contains(ip("10.1.2.3")));
        assert!(!network("::/0").contains(ip("::ffff:10.1.2.3")));
        assert_eq!(
            Network::around(ip("::ffff:10.1.2.3"), 24),
            Some(network("10.1.2.0/24"))
        );
        assert_eq!(Network::around(ip("10.1.2.3"), 33), None);
    }

    #[test]
    fn errors_say_what_was_meant() {
        let cases = [
            (
                "10.0.0.1/8",
                "has bits set after its first 8 bits",
                "write 10.0.0.0/8 ",
            ),
            (
                "2001:db8::1/32",
                "has bits set after its first 32 bits",
                "write 2001:db8::/32 ",
            ),
            (
                "::ffff:10.0.0.1/104",
                "has bits set after its first 8 bits",
                "write 10.0.0.0/8 ",
            ),
            (
                "10.0.0.0/33",
                "has a prefix length that is not a number from 0 to 32",
                "/24",
            ),
            (
                "10.0.0.0/+8",
                "has a prefix length that is not a number from 0 to 32",
                "/24",
            ),
            (
                "10.0.0.0/",
                "has a prefix length that is not a number from 0 to 32",
                "/24",
            ),
            (
                "::/129",
                "has a prefix length that is not a number from 0 to 128",
                "0 to 128",
            ),
            ("10.1.0.0/255.255.0.0", "has a netmask", "write 10.1.0.0/16"),
            ("10.1.0.0/255.0.255.0", "has a prefix length", "/24"),
            ("10.0.0.1:80", "is an address with a port", "write 10.0.0.1"),
            (
                "[::1]",
                "is an address with a port or in brackets",
                "write ::1",
            ),
            ("10.0/8", "is not a network", "10.0.0.0/8"),
            ("010.0.0.0/8", "is not a network", "10.0.0.0/8"),
            ("office", "is not a network", "10.0.0.0/8"),
            ("", "is not a network", "10.0.0.0/8"),
        ];
        for (text, problem, remedy) in cases {
            let error = text.parse::<Network>().expect_err(text);
            assert!(error.to_string().contains(problem), "{error}");
            assert!(
                error.remedy().contains(remedy),
                "{text}: {}",
                error.remedy()
            );
        }
    }

    proptest! {
        #[test]
        fn prints_what_parses_to_itself(ip: IpAddr, bits in 0..=128_u8) {
            if let Some(network) = Network::around(ip, bits) {
                prop_assert_eq!(network.to_string().parse(), Ok(network));
                prop_assert!(network.contains(ip));
            }
        }

        #[test]
        fn any_text_parses_or_says_why(text in "[0-9a-f:./\\[\\] ]{0,24}") {
            if let Err(error) = text.parse::<Network>() {
                prop_assert!(!error.remedy().is_empty());
            }
        }
    }
}
