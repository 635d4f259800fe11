//! The parsers of the proxy, compiled from its sources; see Cargo.toml for why.

#[path = "../src/config/mod.rs"]
pub mod config;
#[path = "../src/outcome.rs"]
pub mod outcome;
#[path = "../src/policy/mod.rs"]
pub mod policy;
#[path = "../src/units/mod.rs"]
pub mod units;
#[path = "../src/wire/mod.rs"]
pub mod wire;
