//! What the subcommands take and do. The library does the work.

pub(crate) mod load;
pub(crate) mod reports;
pub(crate) mod serve;

use std::sync::Arc;

use anyhow::{Context, Result};
use corelay_bench::load::Control;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Exit code of a process that a signal ended: 128 and the signal's number.
const EXIT_BY_SIGNAL: i32 = 128;

/// A control that Ctrl-C (and SIGTERM) stops; the second one ends the process at once.
pub(crate) fn control_with_signals() -> Result<Control> {
    let control = Control::new();
    for signal in [SIGINT, SIGTERM] {
        let stopped = control.stop_flag();
        // In this order: the first signal finds the flag still clear.
        flag::register_conditional_shutdown(signal, EXIT_BY_SIGNAL + signal, Arc::clone(&stopped))
            .and_then(|_| flag::register(signal, stopped))
            .context("handling signals")?;
    }
    Ok(control)
}
