//! Replays the fuzzers' corpus, `fuzz/corpus/TARGET/*`, through the same checks that the fuzzers make.
//!
//! `scripts/fuzz.sh` looks for more inputs; what once failed becomes a file here and stays mended.

use std::fs;
use std::path::Path;

#[path = "../fuzz/checks.rs"]
mod checks;

#[test]
fn every_file_of_the_corpus_passes_its_check() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, check) in checks::TARGETS {
        let folder = corpus.join(target);
        let mut files = 0;
        for entry in fs::read_dir(&folder).expect("a folder for each target") {
            let path = entry.expect("a directory entry").path();
            // Captured by the test harness, shown where a check panics.
            eprintln!("{}", path.display());
            check(&fs::read(&path).expect("a readable file"));
            files += 1;
        }
        assert!(files >= 10, "only {files} files in {}", folder.display());
    }
}
