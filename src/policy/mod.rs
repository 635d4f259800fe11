//! Who may connect, how often and how fast: the arithmetic of admission, without sockets and
//! without a clock of its own.
//!
//! - [`access`]: an ordered list of allowed and denied [networks](crate::units::network); [`list`] reads such a list's file.
//! - [`bucket`]: a rate with a burst, for one owner or shared by all cores.
//! - [`sources`]: connections and new connections per source network, in a bounded table.
//! - [`names`]: exact names and wildcards.
//! - [`limit`]: how many of something there may be at once.
//! - [`retry_budget`]: how many sessions may try a further server.
//!
//! Time is `now_us`, monotonic microseconds from any start; cores may disagree by a little. What is
//! decided here has no effect by itself: the caller refuses, waits or counts.

pub mod access;
pub mod bucket;
pub mod limit;
pub mod list;
pub mod names;
pub mod retry_budget;
pub mod sources;
