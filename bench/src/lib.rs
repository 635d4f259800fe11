//! Test servers and load for layer-4 proxies, from outside.
//!
//! This crate knows nothing of Corelay: it opens sockets, sends bytes and checks what comes back,
//! so that what it says about Corelay it can say about HAProxy and nginx too.
//!
//! * [`servers`]: what a proxy connects *to*: echo, sink, source, HTTP, and servers that misbehave
//!   on purpose. Used by the end-to-end tests, by `corelay demo` and by `corelay-bench serve`.
//! * [`load`]: what connects to a proxy: requests and answers, connections, streams.
//! * [`compare`]: Corelay and other proxies side by side: what each costs.
//! * [`pattern`]: seeded bytes that can be checked at any offset.
//! * [`endpoint`]: `ip:port` or `unix:/path`.
//! * [`limits`]: room for file descriptors.
//! * [`pin`]: a thread's CPU.
//! * `plot`, `progress`: charts of reports, and the line on the terminal (feature `cli`).
//! * [`report`]: what comes of a load, as JSON, as text, and several of them merged.
//! * [`hlog`]: HdrHistogram's interval logs, read as reports and written.
//! * [`signals`]: to processes that a test started.
//! * [`units`]: sizes and rates as they are typed.

#[cfg(feature = "cli")]
pub mod compare;
pub mod endpoint;
pub mod hlog;
pub mod limits;
pub mod load;
pub mod pattern;
pub mod pin;
#[cfg(feature = "cli")]
pub mod plot;
#[cfg(feature = "cli")]
pub mod progress;
pub mod report;
pub mod servers;
pub mod signals;
pub mod units;
