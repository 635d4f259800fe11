//! A panic anywhere ends the process (`panic = "abort"`): a core that died silently would keep its
//! share of the clients. The hook says, in one line, which thread and which session it was.

use std::io::Write;
use std::panic;
use std::thread;

use crate::core;

/// Installs the hook; once, at the very start.
pub fn install() {
    panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let message = info.payload_as_str().unwrap_or("no message");
        // Straight to stderr: whatever panicked may hold the process log's lock.
        let mut stderr = std::io::stderr();
        let session = core::session_in_hand().map_or("none".to_owned(), |id| id.to_string());
        let _ = writeln!(
            stderr,
            "corelay: panic in thread {name}, session {session}, at {place}: {message}; this is a bug: the process ends and the service manager restarts it"
        );
    }));
}
