//! The access log.
pub mod record;
