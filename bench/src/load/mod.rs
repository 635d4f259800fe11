//! Load: what connects to a proxy, or to a server directly, to compare.
//!
//! Each kind is a module with an `Options` and a `run` that takes them and a [`Control`] and returns
//! a [`Report`]: [`rr`], [`crr`], [`answers`], [`bulk`], [`idle`], [`mixed`],
//! [`slow`]. What they share is the engine:
//! threads with one epoll set each, connections that are opened again when they fail, the common
//! start, the end and the counting.

mod control;
mod echo;
mod engine;
mod exchange;
mod pace;
mod pool;
mod report;
mod schedule;
mod stream;
mod tally;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_answers;
#[cfg(test)]
mod tests_open_loop;
#[cfg(test)]
mod tests_paced;
#[cfg(test)]
mod tests_verify;

pub mod answers;
pub mod bulk;
pub mod crr;
pub mod idle;
pub mod mixed;
pub mod rr;
pub mod slow;

pub use control::{Control, Snapshot};
pub use report::{Kind, Rates, Report};
pub use tally::{MAX_LATENCY_NS, histogram};
