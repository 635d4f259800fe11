#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, tests, documentation. CI runs exactly this.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '\n== %s\n' "$*"; "$@"; }
step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- -D warnings
step cargo test --workspace --locked
# The ordinary run above chooses the mover by itself; each must pass every case alone.
for mover in copy splice; do
    CORELAY_E2E_MOVER=$mover step cargo test --locked --test e2e
done
RUSTDOCFLAGS="-D warnings" step cargo doc --workspace --no-deps --locked
for script in scripts/*.sh; do step bash -n "$script"; done
# A few seconds per target; longer by hand.
step scripts/fuzz.sh 5000
