//! A ClientHello by hand: the least that every TLS 1.2 and 1.3 server takes (RFC 8446 section
//! 4.1.2, RFC 5246 section 7.4.1.2). No TLS is spoken after it.
//!
//! Its list of key shares is empty, which asks the server to choose a group (RFC 8446 section
//! 4.2.8): a TLS 1.3 server answers with a HelloRetryRequest, before it has computed anything.

/// TLS 1.3 suites; ECDHE with AEAD, then with CBC; RSA; and the renegotiation signal (RFC 5746).
const CIPHER_SUITES: [u16; 18] = [
    0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc009, 0xc013, 0xc00a,
    0xc014, 0x009c, 0x009d, 0x002f, 0x0035, 0x00ff,
];
/// x25519, secp256r1, secp384r1, secp521r1, x448.
const GROUPS: [u16; 5] = [0x001d, 0x0017, 0x0018, 0x0019, 0x001e];
/// ECDSA, EdDSA, RSA-PSS (both kinds of key), RSA PKCS#1, and the two of SHA-1 for old servers.
const SIGNATURES: [u16; 16] = [
    0x0403, 0x0503, 0x0603, 0x0807, 0x0808, 0x0804, 0x0805, 0x0806, 0x0809, 0x080a, 0x080b, 0x0401,
    0x0501, 0x0601, 0x0203, 0x0201,
];
/// TLS 1.3, TLS 1.2.
const VERSIONS: [u16; 2] = [0x0304, 0x0303];

const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_GROUPS: u16 = 10;
const EXTENSION_POINT_FORMATS: u16 = 11;
const EXTENSION_SIGNATURES: u16 = 13;
const EXTENSION_EXTENDED_MASTER_SECRET: u16 = 23;
const EXTENSION_VERSIONS: u16 = 43;
const EXTENSION_KEY_SHARE: u16 = 51;

/// One record with one ClientHello.
///
/// `random` need not be unpredictable: no secret is ever derived from it.
pub(super) fn client_hello(server_name: Option<&str>, random: [u8; 32]) -> Vec<u8> {
    let mut hello = Vec::new();
    hello.extend(0x0303u16.to_be_bytes());
    hello.extend(random);
    // No session to resume.
    hello.push(0);
    hello.extend(sized16(&numbers(&CIPHER_SUITES)));
    // One compression method: none.
    hello.extend([1, 0]);
    hello.extend(sized16(&extensions(server_name)));

    let mut message = vec![1];
    message.extend(&(hello.len() as u32).to_be_bytes()[1..]);
    message.extend(hello);

    // The record's version is that of TLS 1.0, which old servers ask for (RFC 8446 section 5.1).
    let mut record = vec![22, 3, 1];
    record.extend(sized16(&message));
    record
}

fn extensions(server_name: Option<&str>) -> Vec<u8> {
    let mut all = Vec::new();
    if let Some(name) = server_name {
        // A list of one entry, of type host_name.
        let mut entry = vec![0];
        entry.extend(sized16(name.as_bytes()));
        extension(&mut all, EXTENSION_SERVER_NAME, &sized16(&entry));
    }
    extension(&mut all, EXTENSION_GROUPS, &sized16(&numbers(&GROUPS)));
    // Uncompressed.
    extension(&mut all, EXTENSION_POINT_FORMATS, &[1, 0]);
    extension(
        &mut all,
        EXTENSION_SIGNATURES,
        &sized16(&numbers(&SIGNATURES)),
    );
    extension(&mut all, EXTENSION_EXTENDED_MASTER_SECRET, &[]);
    let versions = numbers(&VERSIONS);
    let mut sized = vec![versions.len() as u8];
    sized.extend(versions);
    extension(&mut all, EXTENSION_VERSIONS, &sized);
    extension(&mut all, EXTENSION_KEY_SHARE, &sized16(&[]));
    all
}

fn extension(all: &mut Vec<u8>, number: u16, body: &[u8]) {
    all.extend(number.to_be_bytes());
    all.extend(sized16(body));
}

fn numbers(list: &[u16]) -> Vec<u8> {
    list.iter()
        .flat_map(|number| number.to_be_bytes())
        .collect()
}

/// The bytes behind their length. Everything here is short: the name has at most 253 bytes.
fn sized16(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a hello is far shorter than 64 KiB");
    let mut sized = length.to_be_bytes().to_vec();
    sized.extend(bytes);
    sized
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The field of so many length bytes at the front, and what follows it.
    fn field(bytes: &[u8], length_bytes: usize) -> (&[u8], &[u8]) {
        let length = bytes[..length_bytes]
            .iter()
            .fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        bytes[length_bytes..].split_at(length)
    }

    #[test]
    fn every_length_fits_what_it_counts() {
        for name in [None, Some("db.example.org")] {
            let record = client_hello(name, [7; 32]);
            assert_eq!(record[..3], [22, 3, 1]);
            let (message, rest) = field(&record[3..], 2);
            assert!(rest.is_empty());
            assert_eq!(message[0], 1);
            let (hello, rest) = field(&message[1..], 3);
            assert!(rest.is_empty());
            assert_eq!(hello[..2], [3, 3]);
            assert_eq!(hello[2..34], [7; 32]);
            let (session, rest) = field(&hello[34..], 1);
            assert!(session.is_empty());
            let (suites, rest) = field(rest, 2);
            assert_eq!(suites.len(), 2 * CIPHER_SUITES.len());
            let (compression, rest) = field(rest, 1);
            assert_eq!(compression, [0]);
            let (mut extensions, rest) = field(rest, 2);
            assert!(rest.is_empty());
            let mut found = Vec::new();
            while !extensions.is_empty() {
                let (body, rest) = field(&extensions[2..], 2);
                found.push((extensions[1], body));
                extensions = rest;
            }
            let name_expected = name.map(|name| [&[0, 17, 0, 0, 14], name.as_bytes()].concat());
            let name_found = found.iter().find(|(number, _)| *number == 0);
            assert_eq!(name_found.map(|(_, body)| body.to_vec()), name_expected);
            assert!(found.contains(&(51, &[0, 0])));
            assert!(found.contains(&(43, &[4, 3, 4, 3, 3])));
        }
    }
}
