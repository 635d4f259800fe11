//! The arrows of the design: every module may use only what lies below it.
//!
//! ```text
//! main ─> { cli, demo, doctor } ─> control ─> worker ─> mode ─> { relay, dial } ─> core ─> ring
//!      ─> { sys, wire, balance, policy, metrics, log } ─> { outcome, units }
//! ```
//!
//! `config` knows only `units`, and is visible to `mode`, `worker`, `control` and the commands.
//! Also here: `unsafe` only in `sys` and `ring`, file sizes as a ratchet, and the features of monoio.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each module, and what it may use besides itself.
const MAY_USE: &[(&str, &[&str])] = &[
    ("outcome", &[]),
    ("units", &[]),
    ("config", &["units"]),
    ("sys", &["outcome", "units"]),
    ("wire", &["outcome", "units"]),
    ("balance", &["outcome", "units"]),
    ("policy", &["outcome", "units"]),
    ("metrics", &["outcome", "units"]),
    ("log", &["outcome", "units"]),
    ("ring", &["sys", "outcome", "units"]),
    ("core", &["ring", "sys", "outcome", "units"]),
    (
        "dial",
        &[
            "core", "ring", "sys", "wire", "metrics", "log", "outcome", "units",
        ],
    ),
    (
        "relay",
        &[
            "core", "ring", "sys", "wire", "policy", "metrics", "log", "outcome", "units",
        ],
    ),
    (
        "mode",
        &[
            "relay", "dial", "core", "ring", "sys", "wire", "balance", "policy", "metrics", "log",
            "config", "outcome", "units",
        ],
    ),
    (
        "worker",
        &[
            "mode", "relay", "dial", "core", "ring", "sys", "wire", "balance", "policy", "metrics",
            "log", "config", "outcome", "units",
        ],
    ),
    (
        "control",
        &[
            "worker", "mode", "relay", "core", "ring", "sys", "wire", "balance", "policy",
            "metrics", "log", "config", "outcome", "units",
        ],
    ),
    ("cli", &["control", "config", "units"]),
    ("demo", &["control", "config", "units"]),
    ("doctor", &["control", "sys", "config", "units"]),
    ("main", &["cli", "demo", "doctor", "control", "config"]),
];

/// Lines of a source file beyond which it asks to be split.
const FILE_LINES_MAX: usize = 600;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no sources in {}", folder.display());
    found
}

/// The top-level module that a file belongs to.
fn module_of(path: &Path) -> String {
    let relative = path.strip_prefix(root().join("src")).expect("below src");
    let first = relative.components().next().expect("a file name");
    let name = first.as_os_str().to_str().expect("UTF-8");
    name.trim_end_matches(".rs").to_owned()
}

/// Modules of this crate named after `crate::` or `corelay::`, comments left out.
fn used_modules(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut used = BTreeSet::new();
    for prefix in ["crate::", "corelay::"] {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            let name = |text: &str| -> String {
                text.trim_start()
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect()
            };
            match rest.strip_prefix('{') {
                Some(group) => {
                    let group = group.split('}').next().unwrap_or_default();
                    used.extend(group.split(',').map(name));
                }
                None => {
                    used.insert(name(rest));
                }
            }
        }
    }
    used.remove("");
    used
}

#[test]
fn every_import_points_down() {
    let modules: BTreeSet<&str> = MAY_USE.iter().map(|(module, _)| *module).collect();
    let mut wrong = Vec::new();
    for path in sources(&root().join("src")) {
        let module = module_of(&path);
        if module == "lib" {
            continue;
        }
        let allowed = MAY_USE
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("module {module} has no place in the layers"))
            .1;
        let text = fs::read_to_string(&path).expect("a readable source");
        for used in used_modules(&text) {
            let known = modules.contains(used.as_str());
            if known && used != module && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{} uses {used}", path.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "imports against the layers:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_scan_sees_imports_of_every_form() {
    let text = "use crate::sys::clock;\nuse crate::{ring, core::wheel};\n// crate::worker\nlet x = crate::relay::pair::End::BOTH;";
    let used: Vec<_> = used_modules(text).into_iter().collect();
    assert_eq!(used, ["core", "relay", "ring", "sys"]);
}

#[test]
fn unsafe_stays_in_sys_and_ring() {
    let mut wrong = Vec::new();
    for path in sources(&root().join("src")) {
        let module = module_of(&path);
        if module == "sys" || module == "ring" {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a readable source");
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|word| code.contains(word))
            {
                wrong.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "unsafe outside sys and ring:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn files_stay_readable() {
    let mut long = Vec::new();
    for folder in ["src", "bench/src"] {
        for path in sources(&root().join(folder)) {
            let lines = fs::read_to_string(&path)
                .expect("a readable source")
                .lines()
                .count();
            if lines > FILE_LINES_MAX {
                long.push(format!("{}: {lines} lines", path.display()));
            }
        }
    }
    assert!(
        long.is_empty(),
        "is there a concept to split along?\n{}",
        long.join("\n")
    );
}

/// With `sync`, a wake from another thread is lost while the core sleeps in the relay ring; `legacy` would bring
/// a second driver.
#[test]
fn monoio_has_none_of_the_features_that_break_the_pump() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--edges",
            "features",
            "--invert",
            "monoio@0.2.4",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let tree = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        tree.contains("monoio feature \"iouring\""),
        "the tree names no features:\n{tree}"
    );
    for feature in ["sync", "signal", "legacy", "tokio-compat", "poll-io"] {
        assert!(
            !tree.contains(&format!("monoio feature \"{feature}\"")),
            "{feature} is on"
        );
    }
}

/// The tokio proxy is there only to be compared with: its feature is never on by default.
#[test]
fn tokio_is_in_no_default_build() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--workspace", "--prefix", "none"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let tree = String::from_utf8(output.stdout).expect("UTF-8");
    let has = |package: &str| tree.lines().any(|line| line.starts_with(package));
    assert!(has("corelay-bench v"), "the tree lacks bench:\n{tree}");
    assert!(!has("tokio v"), "tokio is in the default build:\n{tree}");
}

/// Only the access log may ask for the time of day: every deadline runs on the monotonic clock.
#[test]
fn the_wall_clock_is_read_for_the_log_alone() {
    for path in sources(&root().join("src")) {
        let text = fs::read_to_string(&path).expect("a readable source");
        if text.contains("SystemTime::now") {
            let name = path
                .strip_prefix(root())
                .expect("below the root")
                .display()
                .to_string();
            assert!(name.starts_with("src/log/"), "{name} reads the wall clock");
        }
    }
}
