//! Questions to a name server and its answers (RFC 1035): A, AAAA (RFC 3596) and SRV (RFC 2782), as a
//! stub resolver asks them.
//!
//! The messages themselves are `simple-dns`'s; here is which answer belongs to which question, and what
//! it says. A server that recurses is asked: the whole chain of aliases stands in its answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, TYPE};

use super::name::NAME_MAX_BYTES;

/// Largest answer that is asked for over UDP, in bytes: what passes every common path in one piece
/// (DNS flag day 2020). A larger one comes truncated, and is asked for over TCP.
pub const UDP_ANSWER_MAX_BYTES: usize = 1_232;
/// Bytes before the question (RFC 1035 section 4.1.1).
const HEADER_BYTES: usize = 12;
/// Aliases that are followed; as long a chain is a mistake, or a circle.
const ALIASES_MAX: usize = 16;

/// What is asked of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its IPv4 addresses.
    A,
    /// Its IPv6 addresses.
    Aaaa,
    /// Where a service is.
    Srv,
}

impl Kind {
    fn record_type(self) -> TYPE {
        match self {
            Kind::A => TYPE::A,
            Kind::Aaaa => TYPE::AAAA,
            Kind::Srv => TYPE::SRV,
        }
    }
}

/// One place of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    /// Those with the lowest are to be used.
    pub priority: u16,
    /// Its share among those of the same priority.
    pub weight: u16,
    /// The host, without a final dot.
    pub target: String,
    /// TCP port.
    pub port: u16,
}

/// What a name server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Addresses; none is an answer too.
    Addresses(Vec<IpAddr>),
    /// Places; none is an answer too.
    Services(Vec<Service>),
}

/// Why an answer is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// The name cannot be asked for.
    #[error("the name has an empty label, or one of more than 63 bytes, or is longer than 253")]
    BadName,
    /// The bytes are no message.
    #[error("the answer is malformed")]
    Malformed,
    /// It answers another question: a late one, or a forged one.
    #[error("the answer belongs to another question")]
    NotOurs,
    /// It did not fit: ask over TCP.
    #[error("the answer is truncated")]
    Truncated,
    /// FORMERR: perhaps it does not know EDNS (RFC 6891 section 7).
    #[error("the name server does not understand the question (FORMERR)")]
    NotUnderstood,
    /// NXDOMAIN.
    #[error("there is no such name (NXDOMAIN)")]
    NoSuchName,
    /// SERVFAIL, REFUSED and their like, by number (RFC 1035 section 4.1.1).
    #[error("the name server failed (RCODE {0})")]
    ServerFailed(u8),
    /// An alias of an alias, and so on.
    #[error("more than {ALIASES_MAX} aliases in a row")]
    TooManyAliases,
}

/// One question. Its answer is told by [`Query::read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    id: u16,
    name: String,
    kind: Kind,
}

impl Query {
    /// A question about an absolute name, with or without its final dot. `id` is to be unpredictable.
    ///
    /// # Errors
    /// [`DnsError::BadName`].
    pub fn new(id: u16, name: &str, kind: Kind) -> Result<Self, DnsError> {
        let name = name.strip_suffix('.').unwrap_or(name);
        // A backslash would begin an escape sequence.
        let valid = (1..=NAME_MAX_BYTES).contains(&name.len())
            && name.split('.').all(|label| !label.is_empty())
            && !name.contains('\\')
            && Name::new(name).is_ok();
        if !valid {
            return Err(DnsError::BadName);
        }
        Ok(Self {
            id,
            name: name.to_ascii_lowercase(),
            kind,
        })
    }

    /// The message to send. EDNS (RFC 6891) says that we take more than 512 bytes over UDP.
    pub fn bytes(&self, with_edns: bool) -> Vec<u8> {
        let mut packet = Packet::new_query(self.id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new(&self.name).expect("tried by new");
        packet.questions.push(Question::new(
            name,
            QTYPE::TYPE(self.kind.record_type()),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        if with_edns {
            *packet.opt_mut() = Some(OPT {
                opt_codes: Vec::new(),
                udp_packet_size: UDP_ANSWER_MAX_BYTES as u16,
                version: 0,
            });
        }
        packet
            .build_bytes_vec()
            .expect("one question fits in any message")
    }

    /// Reads an answer, and spoils the bytes.
    ///
    /// # Errors
    /// See [`DnsError`]. After [`DnsError::NotOurs`] the answer may still come.
    pub fn read(&self, bytes: &mut [u8]) -> Result<Answer, DnsError> {
        const RESPONSE: u8 = 0x80;
        const TRUNCATED: u8 = 0x02;
        const RCODE: u8 = 0x0F;
        let Some((head, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(DnsError::NotOurs);
        };
        // What another question's answer holds is of no interest, nor what was cut anywhere.
        if head[..2] != self.id.to_be_bytes() || head[2] & RESPONSE == 0 {
            return Err(DnsError::NotOurs);
        }
        if head[2] & TRUNCATED != 0 {
            return Err(DnsError::Truncated);
        }
        let rcode = head[3] & RCODE;
        let packet = parse(bytes)?;
        if !self.is_asked_in(&packet, rcode) {
            return Err(DnsError::NotOurs);
        }
        match rcode {
            0 => self.collect(&packet),
            1 => Err(DnsError::NotUnderstood),
            3 => Err(DnsError::NoSuchName),
            other => Err(DnsError::ServerFailed(other)),
        }
    }

    fn is_asked_in(&self, packet: &Packet<'_>, rcode: u8) -> bool {
        match &packet.questions[..] {
            [question] => {
                text(&question.qname) == self.name
                    && question.qtype == QTYPE::TYPE(self.kind.record_type())
            }
            // A server that refuses may leave the question out (RFC 1035 does not say).
            [] => rcode != 0,
            _ => false,
        }
    }

    fn collect(&self, packet: &Packet<'_>) -> Result<Answer, DnsError> {
        let name = self.unaliased(packet)?;
        let records = packet.answers.iter().filter(|it| text(&it.name) == name);
        let mut addresses = Vec::new();
        let mut services = Vec::new();
        for record in records {
            match (&record.rdata, self.kind) {
                (RData::A(a), Kind::A) => {
                    addresses.push(IpAddr::V4(Ipv4Addr::from_bits(a.address)));
                }
                (RData::AAAA(aaaa), Kind::Aaaa) => {
                    addresses.push(IpAddr::V6(Ipv6Addr::from_bits(aaaa.address)));
                }
                (RData::SRV(srv), Kind::Srv) => services.push(Service {
                    priority: srv.priority,
                    weight: srv.weight,
                    target: text(&srv.target),
                    port: srv.port,
                }),
                _ => {}
            }
        }
        // RFC 2782: "." as the target says that the service is decidedly not there.
        services.retain(|service| !service.target.is_empty());
        Ok(match self.kind {
            Kind::A | Kind::Aaaa => Answer::Addresses(addresses),
            Kind::Srv => Answer::Services(services),
        })
    }

    /// The name that the name is an alias of, after however many steps.
    fn unaliased(&self, packet: &Packet<'_>) -> Result<String, DnsError> {
        let mut name = self.name.clone();
        for _ in 0..=ALIASES_MAX {
            let alias = packet
                .answers
                .iter()
                .find_map(|record| match &record.rdata {
                    RData::CNAME(target) if text(&record.name) == name => Some(text(target)),
                    _ => None,
                });
            match alias {
                None => return Ok(name),
                Some(target) => name = target,
            }
        }
        Err(DnsError::TooManyAliases)
    }
}

/// Question and answer. What stands behind them is not needed, and must not fail what is.
fn parse<'a>(bytes: &'a mut [u8]) -> Result<Packet<'a>, DnsError> {
    // The counts of the authority and additional sections.
    bytes[8..HEADER_BYTES].fill(0);
    Packet::parse(bytes).map_err(|_| DnsError::Malformed)
}

/// In lower case, as names are compared (RFC 4343); without a final dot.
fn text(name: &Name<'_>) -> String {
    name.to_string().to_ascii_lowercase()
}

#[cfg(test)]
mod tests;
