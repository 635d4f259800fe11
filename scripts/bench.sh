#!/usr/bin/env bash
# Corelay beside other proxies on this machine: builds what is needed, runs the whole comparison in
# less than 15 minutes, prints the tables and writes them to bench/runs/DATE-MACHINE/.
#
#   scripts/bench.sh                                    everything
#   scripts/bench.sh --only rr,bulk --rounds 30         some scenarios, more rounds
#   scripts/bench.sh --peers haproxy-splice,nginx       some proxies; direct and corelay always take part
#   scripts/bench.sh --list                             names of scenarios and proxies
#   scripts/bench.sh --help                             everything else
#
# It installs nothing: a proxy that is absent is named with its package. As root it sets the
# congestion control to cubic while it runs; otherwise the present one stays and is printed. Loopback
# only. Ctrl-C ends everything that it started. Let nothing else run meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked --quiet
# By itself, so that the features of the peers do not reach the build of corelay.
cargo build --release --locked --quiet --package corelay-bench --features peer-monoio,peer-tokio
exec "${CARGO_TARGET_DIR:-target}/release/corelay-bench" compare "$@"
