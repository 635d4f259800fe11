//! Corelay: a layer-4 TCP splicer and load balancer for Linux.

pub mod config;
pub mod log;
pub mod metrics;
pub mod outcome;
pub mod units;
