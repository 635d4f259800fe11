//! Corelay: a layer-4 TCP splicer and load balancer for Linux.

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
pub mod relay;
pub mod ring;
pub mod sys;
pub mod units;
pub mod worker;
