//! Hashes that are the same in every process, on every host and in every release.
//!
//! The hashing algorithms promise that two hosts with one configuration send a client to the same
//! server, and that a restart moves nobody. Hence fixed constants and not the standard library's
//! keyed hasher. The price: whoever may choose the hashed text (an SNI, an address out of a large
//! IPv6 prefix) can aim at one server. Limits per source and per server are there for that.

use std::net::{IpAddr, SocketAddr};

/// FNV-1a, 64 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>.
const FNV_OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// Of a client's IP address; its port is left out, so that all connections of a client agree.
///
/// An IPv4 client hashes alike on an IPv4 and on a dual-stack listener, where it appears as
/// `::ffff:a.b.c.d`.
pub fn hash_address(address: SocketAddr) -> u64 {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => hash_bytes(&ip.octets()),
        IpAddr::V6(ip) => hash_bytes(&ip.octets()),
    }
}

/// Of a text such as a server's address or a host name, byte for byte: bring a host name to lower
/// case first.
pub fn hash_text(text: &str) -> u64 {
    hash_bytes(text.as_bytes())
}

/// FNV-1a leaves the high bits of short inputs nearly alike; [`mix`] spreads them over all 64.
fn hash_bytes(bytes: &[u8]) -> u64 {
    mix(fnv1a(bytes))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(FNV_OFFSET_BASIS, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME)
    })
}

/// A bijection in which every bit of the input changes half of the output: the output function of
/// SplitMix64 (Stafford's variant 13 of Murmur3's).
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Maps uniform bits to a uniform number below `bound` without a division; off by at most
/// `bound` / 2^64.
pub(super) fn scale(bits: u64, bound: u64) -> u64 {
    let product = u128::from(bits) * u128::from(bound);
    (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_gives_its_published_values() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    /// If these change, a new release moves every client to another server.
    #[test]
    fn the_hashes_are_pinned() {
        let address = |text: &str| hash_address(text.parse().expect("an address"));
        assert_eq!(hash_text(""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(hash_text("10.0.0.1:9000"), 0x6fdc_231f_30af_7b3a);
        assert_eq!(address("192.0.2.1:1"), 0x1e00_e9a1_2f82_49cb);
        assert_eq!(address("[2001:db8::1]:1"), 0x216d_ba65_aa6c_0c57);
    }

    #[test]
    fn a_client_is_its_ip_address() {
        let address = |text: &str| hash_address(text.parse().expect("an address"));
        assert_eq!(address("192.0.2.1:1"), address("192.0.2.1:65535"));
        assert_eq!(address("192.0.2.1:1"), address("[::ffff:192.0.2.1]:1"));
        assert_ne!(address("192.0.2.1:1"), address("192.0.2.2:1"));
        assert_ne!(address("[2001:db8::1]:1"), address("[2001:db8::2]:1"));
    }

    #[test]
    fn every_bit_of_the_input_changes_about_half_of_the_output() {
        for bit in 0..64 {
            let changed: u32 = (0..256u64)
                .map(|n| {
                    let bits = mix(n).wrapping_mul(FNV_PRIME);
                    (mix(bits) ^ mix(bits ^ (1 << bit))).count_ones()
                })
                .sum();
            let mean = f64::from(changed) / 256.0;
            assert!((30.0..34.0).contains(&mean), "bit {bit} changes {mean}");
        }
    }

    #[test]
    fn scaling_reaches_both_ends_and_not_the_bound() {
        assert_eq!(scale(0, 10), 0);
        assert_eq!(scale(u64::MAX, 10), 9);
        assert_eq!(scale(1 << 63, 10), 5);
    }
}
