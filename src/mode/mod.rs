//! What to do with an accepted connection. Today there is one mode: relay it to a server.

pub mod peek;
pub mod proxy;
pub mod route;
pub mod tcp;
