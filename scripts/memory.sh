#!/usr/bin/env bash
# Memory of an idle relayed connection, in user space: Corelay, and beside it HAProxy and nginx
# `stream` where they are installed, in one run with the same load.
#
# What is measured: anonymous resident memory ("Anonymous:" in /proc/PID/smaps_rollup, summed over
# the proxy's processes), with the connections open minus just after the start. So it holds
# everything that the connections made the process touch: tables, buffers, heap. It does not hold
# the kernel's socket buffers, which every proxy needs alike.
#
# Each connection has carried one echo, so that both of its sides exist, and then stays silent.
#
#   scripts/memory.sh                     4,000 connections; exit 1 above 2,048 B each for Corelay
#   CONNECTIONS=1000 LIMIT_BYTES=4096 scripts/memory.sh
#
# Everything runs on loopback and ends with the script.
set -euo pipefail

connections=${CONNECTIONS:-4000}
limit_bytes=${LIMIT_BYTES:-2048}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
started=()

finish() {
    # Only what this script started, by process id.
    for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
    for process in "${started[@]}"; do wait "$process" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT

fail() { echo "memory.sh: $*" >&2; exit 2; }

# Two descriptors per connection in the proxy, and some for itself.
needed=$((connections * 2 + 200))
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
if [ "$(ulimit -n)" != unlimited ] && [ "$(ulimit -n)" -lt "$needed" ]; then
    fail "$connections connections need $needed open files and the limit is $(ulimit -n): raise it (ulimit -n) or set CONNECTIONS"
fi

cd "$root"
cargo build --quiet --release --workspace --bins
corelay=${CORELAY_BIN:-${CARGO_TARGET_DIR:-$root/target}/release/corelay}
bench=${BENCH_BIN:-${CARGO_TARGET_DIR:-$root/target}/release/corelay-bench}

# Waits for a line in a file and prints the first match's last field.
wait_line() { # file pattern
    for _ in $(seq 600); do
        if line=$(grep -m1 -- "$2" "$1" 2>/dev/null); then echo "${line##* }"; return; fi
        sleep 0.05
    done
    fail "no '$2' in $1: $(tail -3 "$1")"
}

wait_port() { # port
    for _ in $(seq 200); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
        sleep 0.05
    done
    fail "nothing listens on port $1"
}

free_port() { "$bench" free-port; }

# Anonymous bytes of a process and its children.
anonymous_bytes() { # pid
    local total=0 process kib
    for process in "$1" $(cat "/proc/$1/task/$1/children"); do
        kib=$(awk '/^Anonymous:/ { print $2 }' "/proc/$process/smaps_rollup")
        total=$((total + kib * 1024))
    done
    echo "$total"
}

measure() { # name pid port
    local name=$1 process=$2 port=$3 before after holder each
    before=$(anonymous_bytes "$process")
    "$bench" idle --to "127.0.0.1:$port" --connections "$connections" --duration 10min \
        >"$work/$name.idle" 2>&1 &
    holder=$!
    started+=("$holder")
    wait_line "$work/$name.idle" "holding" >/dev/null
    sleep 1 # what is freed with a delay is freed
    after=$(anonymous_bytes "$process")
    kill "$holder"
    wait "$holder" 2>/dev/null || true
    each=$(((after - before) / connections))
    printf '%-10s %12d %12d %10d\n' "$name" "$before" "$after" "$each"
    measured=$each
}

"$bench" serve echo --name echo >"$work/echo" 2>&1 &
started+=($!)
echo_address=$(wait_line "$work/echo" "listening on")

echo "$connections idle connections, one echo each; anonymous resident bytes (smaps_rollup)"
printf '%-10s %12s %12s %10s\n' proxy before after "B/conn"

port=$(free_port)
"$corelay" relay --listen "127.0.0.1:$port" --to "$echo_address" >/dev/null 2>"$work/corelay.log" &
started+=($!)
corelay_process=$!
wait_port "$port"
measure corelay "$corelay_process" "$port"
corelay_bytes=$measured

if haproxy=$(command -v haproxy || ls /usr/sbin/haproxy 2>/dev/null); then
    port=$(free_port)
    cat >"$work/haproxy.cfg" <<CONFIG
global
    maxconn $((connections + 1000))
defaults
    mode tcp
    timeout connect 5s
    timeout client 10m
    timeout server 10m
listen edge
    bind 127.0.0.1:$port
    server echo $echo_address
CONFIG
    "$haproxy" -db -q -f "$work/haproxy.cfg" >"$work/haproxy.log" 2>&1 &
    started+=($!)
    haproxy_process=$!
    wait_port "$port"
    measure haproxy "$haproxy_process" "$port"
else
    echo "haproxy    not installed"
fi

if nginx=$(command -v nginx || ls /usr/sbin/nginx 2>/dev/null); then
    port=$(free_port)
    module=""
    for path in /usr/lib/nginx/modules /usr/lib64/nginx/modules /usr/share/nginx/modules; do
        [ -e "$path/ngx_stream_module.so" ] && module="load_module $path/ngx_stream_module.so;"
    done
    cat >"$work/nginx.conf" <<CONFIG
$module
daemon off;
worker_processes auto;
pid $work/nginx.pid;
error_log $work/nginx.error warn;
events { worker_connections $((connections * 2 + 1000)); }
stream { server { listen 127.0.0.1:$port reuseport; proxy_pass $echo_address; } }
CONFIG
    if "$nginx" -t -p "$work" -c "$work/nginx.conf" >"$work/nginx.test" 2>&1; then
        "$nginx" -p "$work" -c "$work/nginx.conf" >"$work/nginx.log" 2>&1 &
        started+=($!)
        nginx_process=$!
        wait_port "$port"
        measure nginx "$nginx_process" "$port"
    else
        echo "nginx      has no stream module: $(tail -1 "$work/nginx.test")"
    fi
else
    echo "nginx      not installed"
fi

if [ "$corelay_bytes" -gt "$limit_bytes" ]; then
    echo "corelay needs $corelay_bytes B per idle connection; at most $limit_bytes are allowed" >&2
    exit 1
fi
echo "corelay: $corelay_bytes B per idle connection, at most $limit_bytes allowed"
