//! Configuration: text → [`model::Config`].
pub mod model;
