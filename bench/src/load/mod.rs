//! Load: what connects to a proxy, or to a server directly, to compare.
//!
//! Everything is closed-loop or idle here; each kind of load is a module with an `Options`, a
//! `run` and a report that prints as text and as JSON.

pub mod idle;
pub mod rr;
