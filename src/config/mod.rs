//! Configuration: text → [`model::Config`], and back.
//!
//! ```text
//! text ──raw──> tree ──validate (expand, read)──> draft ──cross──> model::Config ──render──> text
//!   │             │                                │         │
//!   └ syntax      └ unknown and duplicate keys,    └ limits  └ dangling references, collisions,
//!     errors        wrong kinds, unset variables               loops
//!     (the first)   └────────────── all of them at once ─────────────────┘
//! ```
//!
//! [`schema()`] tells editors what may be written.
//!
//! It opens no socket and resolves no name: what a host can do with a valid configuration is for
//! `doctor` and `run` to find out. Nothing optional is left in the model.

pub mod limits;
pub mod model;

mod address;
mod expand;
mod problem;
mod raw;
mod read;
mod render;
mod schema;
mod suggest;
mod validate;

use std::path::Path;

pub use address::can_be_server;
pub use model::Config;
pub use problem::{LoadError, Position, Problem};
pub use render::render;
pub use schema::schema;

use read::Finding;

/// Problems whose line is looked up; finding one line reads the text once more. Whoever has this many
/// problems gets the paths of the others all the same.
const POSITIONS_MAX: usize = 100;
/// Most text that is read to look lines up, in bytes: less than a second's work.
const POSITIONS_MAX_BYTES: usize = 32 << 20;

/// What errors about the command line are attributed to.
const COMMAND_LINE: &str = "command line";

/// Loads a configuration file, with `${NAME}` taken from the process's environment.
///
/// # Errors
/// The file cannot be read, or everything that is wrong with its text.
pub fn load(path: &Path) -> Result<Config, LoadError> {
    let source_name = path.display().to_string();
    let unreadable = |problem: String, remedy: &str| {
        let problem = Problem {
            position: None,
            path: String::new(),
            problem,
            remedy: remedy.to_owned(),
        };
        LoadError::new(&source_name, vec![problem])
    };
    let bytes = std::fs::read(path).map_err(|error| {
        let remedy = "name a file that this user can read with --config FILE";
        unreadable(format!("cannot be read: {error}"), remedy)
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        unreadable(
            format!("is not UTF-8 text from byte {at} on"),
            "save it as UTF-8",
        )
    })?;
    from_str(&text, &source_name, &|name| std::env::var(name).ok())
}

/// Loads a configuration from a text. `source_name` stands in front of every problem; `env` gives the
/// values of `${NAME}`.
///
/// # Errors
/// Everything that is wrong; of the errors of YAML itself the first one.
pub fn from_str(
    text: &str,
    source_name: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, LoadError> {
    let root = raw::parse(text).map_err(|problem| LoadError::new(source_name, vec![problem]))?;
    validate::validate(&root, env).map_err(|findings| {
        let most = POSITIONS_MAX.min(POSITIONS_MAX_BYTES / text.len().max(1));
        LoadError::new(
            source_name,
            locate_findings(findings, most, |id| raw::locate(text, id)),
        )
    })
}

/// The configuration of `corelay relay`: one listener, one upstream, every default.
///
/// `listen` is an address or a bare port, which means every IPv4 address.
///
/// # Errors
/// Everything that is wrong with the arguments, by the name of the option.
pub fn for_relay(listen: &str, to: &[String], admin: Option<&str>) -> Result<Config, LoadError> {
    validate::validate_relay(listen, to, admin)
        .map_err(|findings| LoadError::new(COMMAND_LINE, locate_findings(findings, 0, |_| None)))
}

/// Every key of the full form, as a path like `tcp.keepalive.idle`. `NAME` stands for a name that the
/// user gives and `[]` for an item of a list.
pub fn known_keys() -> Vec<String> {
    validate::known_keys()
}

/// Puts findings in the order of the text and looks the lines of the first `most` up.
fn locate_findings(
    mut findings: Vec<Finding>,
    most: usize,
    locate: impl Fn(raw::NodeId) -> Option<Position>,
) -> Vec<Problem> {
    // Stable: findings about one place stay in the order in which they were made.
    findings.sort_by_key(|finding| finding.place.id);
    let mut problems = Vec::with_capacity(findings.len());
    for (
        index,
        Finding {
            place,
            problem,
            remedy,
        },
    ) in findings.into_iter().enumerate()
    {
        let position = place.id.filter(|_| index < most).and_then(&locate);
        problems.push(Problem {
            position,
            path: place.path,
            problem,
            remedy,
        });
    }
    problems
}
