//! Codecs for what stands at the head of a byte stream: bytes in, a value or an error out.
//!
//! ```text
//!            ┌ proxy          who the client is, from a proxy in front of us; and the way back
//! bytes ───> ┤ client_hello   which name a TLS client asks for
//!            └ http_head      which host an HTTP/1 client asks for
//! ```
//!
//! Beside them, for control: `dns`, whole messages to and from a name server.
//!
//! No sockets, no clocks, no state: a caller peeks a growing prefix of the stream and asks again each
//! time, until the answer is not [`Parsed::NeedMore`]. The answer depends on the bytes alone, never on how
//! they were cut into segments: whatever is `Done` or `Bad` stays so, with the same value, however many
//! bytes follow. No byte is changed or swallowed; `used` tells the caller how many belong to the value.
//!
//! Every input is a stranger's. The work of one call is linear in the input, every list has a bound, and
//! the errors are closed enums whose words ([`proxy::ProxyError::as_str`] and its like) become metric
//! labels.

pub mod client_hello;
pub mod dns;
pub mod http_head;
pub mod name;
pub mod proxy;

mod cursor;

/// What a prefix of a stream turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Parsed<T, E> {
    /// The value is complete.
    Done {
        /// What was read.
        value: T,
        /// How many bytes of the input it took, from the first; at most the input's length.
        used: usize,
    },
    /// A prefix of something valid: ask again with more bytes. At the end of the stream this means
    /// that it was cut short.
    NeedMore,
    /// No continuation can make this valid.
    Bad(E),
}

impl<T, E> Parsed<T, E> {
    /// The same with another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Parsed<U, E> {
        match self {
            Parsed::Done { value, used } => Parsed::Done {
                value: change(value),
                used,
            },
            Parsed::NeedMore => Parsed::NeedMore,
            Parsed::Bad(error) => Parsed::Bad(error),
        }
    }
}

#[cfg(test)]
mod fixtures;
