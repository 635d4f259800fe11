#!/usr/bin/env bash
# Runs each fuzz target for a fixed number of executions on top of its committed corpus:
#
#   scripts/fuzz.sh [EXECUTIONS] [TARGET...]     EXECUTIONS per target, 20000 if not given; all targets if none is named
#   FUZZ_KEEP=1 scripts/fuzz.sh 1000000          also adds to fuzz/corpus what reached something new
#
# Works on the stable toolchain: the flags below are the coverage instrumentation that `cargo fuzz` would ask for,
# without a sanitizer, which only nightly has. The parsers contain no `unsafe`; overflow checks and assertions are on.
# A failure leaves its input in fuzz/artifacts/TARGET and ends the script with 1. Where fuzzing is impossible it says
# "skipped:" with the reason and ends with 0.
set -euo pipefail
cd "$(dirname "$0")/.."
executions=${1:-20000}
shift || true
# One input, its mutations included, may take this long, and be this large.
readonly input_timeout_s=10 input_max_bytes=4096
readonly all_targets=(proxy_v1 proxy_v2 client_hello http_head dns config)
targets=("$@")
[ $# -gt 0 ] || targets=("${all_targets[@]}")

skip() { echo "skipped: $*" >&2; exit 0; }

[[ $executions =~ ^[1-9][0-9]*$ ]] || { echo "usage: scripts/fuzz.sh [EXECUTIONS] [TARGET...]" >&2; exit 2; }
command -v cargo >/dev/null || skip "cargo is not installed"
# libFuzzer is C++, compiled by the crate.
command -v "${CXX:-c++}" >/dev/null || skip "no C++ compiler (\$CXX or c++), which libFuzzer needs"
triple=$(rustc -vV | sed -n 's/^host: //p')
[[ $triple == *-linux-* ]] || skip "libFuzzer is only tried on Linux, this is $triple"

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-fuzz/target}
fetch_log=$(mktemp)
work=$(mktemp -d)
trap 'rm -rf "$fetch_log" "$work"' EXIT
cargo fetch --locked --manifest-path fuzz/Cargo.toml --target "$triple" 2>"$fetch_log" ||
    skip "the crates cannot be fetched: $(tail -n 1 "$fetch_log")"

# With --target the flags do not reach build scripts and procedural macros, which could not be linked with them.
export RUSTFLAGS="--cfg fuzzing -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table
    -C llvm-args=-sanitizer-coverage-trace-compares -C codegen-units=16"
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
cargo build --locked --release --manifest-path fuzz/Cargo.toml --target "$triple" "${bins[@]}"

for target in "${targets[@]}"; do
    fuzzer=$CARGO_TARGET_DIR/$triple/release/$target
    corpus=fuzz/corpus/$target
    mkdir -p "fuzz/artifacts/$target" "$work/$target"
    # New inputs go to the first folder, which is thrown away.
    if ! "$fuzzer" -runs="$executions" -timeout="$input_timeout_s" -max_len="$input_max_bytes" -print_final_stats=1 \
        -artifact_prefix="fuzz/artifacts/$target/" "$work/$target" "$corpus" >"$work/log" 2>&1; then
        cat "$work/log" >&2
        echo "$target: failed; the input is in fuzz/artifacts/$target" >&2
        exit 1
    fi
    coverage=$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' "$work/log" | tail -n 1)
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log")
    echo "$target: $executed executions, $coverage places in the code reached, no failure"
    if [ -n "${FUZZ_KEEP:-}" ]; then
        "$fuzzer" -merge=1 -max_len="$input_max_bytes" "$corpus" "$work/$target" 2>/dev/null
    fi
done
