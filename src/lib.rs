//! Corelay: a layer-4 TCP splicer and load balancer for Linux.
//!
//! One pinned thread per CPU, each with its own listeners, its own buffers and two io_urings:
//! monoio's for accepting and dialling, the *relay ring* for every byte after that. Nothing mutable
//! is shared between cores on the data path. This library is the whole program; `main.rs` only
//! dispatches the command line.
//!
//! # The tour
//!
//! What happens to one connection, in reading order:
//!
//! 1. `worker/accept.rs`: a bounded batch of `accept4(2)`, and how a listener stops without
//!    resetting anyone. Who is let in at all: `worker/gate.rs` ([`policy`]).
//!    `worker/handoff.rs`: whether a less loaded core should serve it.
//! 2. `worker/session.rs`: from the accepted socket to the engine, and what is written down at the
//!    end.
//! 3. [`mode::tcp`]: wait for a first byte if asked to, then try one server after the other. Of which
//!    upstream: `worker/way.rs`. Which: `worker/route.rs`, with a place on it (`worker/servers.rs`)
//!    or a wait for one (`worker/queue.rs`) ([`balance`]).
//! 4. [`dial`]: one attempt, with a deadline, and what goes before the client's bytes.
//! 5. [`relay`]: the engine takes both sockets over. [`relay::direction`] decides what one
//!    direction does next, [`relay`] itself moves the bytes, `relay/ending.rs` ends sessions.
//! 6. [`outcome`]: the one [`outcome::CloseReason`] that [`metrics`] and [`log`] report.
//!
//! What it stands on: [`core`] is one core's clockwork (start with [`core::pump`]: who sleeps
//! where), [`ring`] the relay ring and the slab, [`sys`] the system calls, [`wire`] the codecs for
//! what a peer says first (PROXY header, TLS ClientHello, HTTP/1 head).
//!
//! What stands around it: [`worker`] is a core's thread, [`control`] the process that starts,
//! watches and stops the cores, [`config`] what it was told, [`cli`], [`demo`] and [`doctor`] the
//! commands.
//!
//! ```text
//! main ─> { cli, demo, doctor } ─> control ─> worker ─> mode ─> { relay, dial } ─> core ─> ring
//!      ─> { sys, wire, balance, policy, metrics, log } ─> { outcome, units }
//! ```
//!
//! Every import points along these arrows; `tests/architecture.rs` fails on one that does not.
//! `config` knows only `units`. Why things are as they are: `docs/design.md`.

pub mod balance;
pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod demo;
pub mod dial;
pub mod doctor;
pub mod log;
pub mod metrics;
pub mod mode;
pub mod outcome;
pub mod policy;
pub mod relay;
pub mod ring;
pub mod sys;
pub mod units;
pub mod wire;
pub mod worker;
