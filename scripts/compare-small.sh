#!/usr/bin/env bash
# Small messages through Corelay, nginx stream and HAProxy, side by side: proxy CPU per request.
#
#   scripts/compare-small.sh [ROUNDS] [SECONDS] [CONNECTIONS] [BYTES]
#
# Each proxy has one worker pinned to the last CPU; the echo server and the load generator share the
# first. All run at once and are loaded in turn, A B C A B C …, so that a drift of the machine hits
# all alike. CPU time comes from /proc/PID/stat over the requests that were answered. Congestion
# control is fixed to cubic while it runs (needs root; else the current one is kept and printed).
# Peers that are not installed are named and left out. Loopback only; everything started is ended.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-7} seconds=${2:-3} connections=${3:-64} bytes=${4:-64}
cargo build --release --workspace --quiet
bin=${CARGO_TARGET_DIR:-target}/release
work=$(mktemp -d)
pids=()
cc_file=/proc/sys/net/ipv4/tcp_congestion_control
cc_before=$(cat "$cc_file")
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    { echo "$cc_before" >"$cc_file"; } 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
{ echo cubic >"$cc_file"; } 2>/dev/null || true
last=$(($(nproc) - 1))
echo "kernel $(uname -r), $(nproc) CPUs, congestion control $(cat "$cc_file"), $connections connections, $bytes bytes"

await_port() {
    for _ in $(seq 100); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
        sleep 0.05
    done
    echo "nothing listens on port $1" >&2
    exit 1
}
free_port() {
    while :; do
        port=$((20000 + RANDOM % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo "$port"; return; fi
    done
}

echo_port=$(free_port)
taskset -c 0 $bin/corelay-bench serve echo --listen "127.0.0.1:$echo_port" --name echo >/dev/null &
pids+=($!)
await_port "$echo_port"

names=() ports=() groups=()
port=$(free_port)
cat >"$work/corelay.yaml" <<EOF
workers: [$last]
listeners: { edge: { bind: "127.0.0.1:$port", upstream: app } }
upstreams: { app: { servers: ["127.0.0.1:$echo_port"] } }
log: { access: off, level: error }
EOF
$bin/corelay run --config "$work/corelay.yaml" &
pids+=($!); names+=(corelay); ports+=("$port"); groups+=("$!")
await_port "$port"

if command -v nginx >/dev/null; then
    port=$(free_port)
    mkdir "$work/nginx"
    module=/usr/lib/nginx/modules/ngx_stream_module.so
    cat >"$work/nginx.conf" <<EOF
$([ -e $module ] && echo "load_module $module;")
worker_processes 1; worker_cpu_affinity auto; daemon off; master_process off; error_log stderr crit; pid $work/nginx.pid;
events { worker_connections 10000; multi_accept on; }
stream { access_log off; server { listen 127.0.0.1:$port; proxy_pass 127.0.0.1:$echo_port; tcp_nodelay on; proxy_buffer_size 16k; } }
EOF
    taskset -c "$last" nginx -p "$work/nginx" -c "$work/nginx.conf" &
    pids+=($!); names+=(nginx); ports+=("$port"); groups+=("$!")
    await_port "$port"
    echo "nginx $(nginx -v 2>&1 | sed 's/.*\///')"
else
    echo "nginx: absent (Debian: nginx libnginx-mod-stream)"
fi
if command -v haproxy >/dev/null; then
    port=$(free_port)
    cat >"$work/haproxy.cfg" <<EOF
global
  nbthread 1
  maxconn 5000
defaults
  mode tcp
  timeout connect 3s
  timeout client 10m
  timeout server 10m
listen edge
  bind 127.0.0.1:$port
  server s 127.0.0.1:$echo_port
EOF
    taskset -c "$last" haproxy -db -f "$work/haproxy.cfg" &
    pids+=($!); names+=(haproxy); ports+=("$port"); groups+=("$!")
    await_port "$port"
    echo "$(haproxy -v 2>/dev/null | head -1 | cut -d' ' -f1-3)"
else
    echo "HAProxy: absent (Debian: haproxy)"
fi

ticks_of() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }
us_per_tick=$((1000000 / $(getconf CLK_TCK)))
for ((round = 0; round <= rounds; round++)); do
    for index in "${!names[@]}"; do
        before=$(ticks_of "${groups[index]}")
        result=$(taskset -c 0 $bin/corelay-bench rr --to "127.0.0.1:${ports[index]}" \
            --connections "$connections" --size "$bytes" --duration "${seconds}s" --fail-fast --json - \
            2>"$work/load") || { cat "$work/load" >&2; exit 1; }
        after=$(ticks_of "${groups[index]}")
        requests=$(sed -E 's/.*"operations":([0-9]+).*/\1/' <<<"$result")
        # The first round warms up.
        if ((round > 0)); then
            echo "$round ${names[index]} $requests $(((after - before) * us_per_tick))" >>"$work/results"
        fi
    done
done

awk -v seconds="$seconds" '
    { us[$1, $2] = $4 / $3; rate[$1, $2] = $3 / seconds; name[$2] = 1; if ($1 > rounds) rounds = $1 }
    function median(values, n,   i, j, t) {
        for (i = 2; i <= n; i++) { t = values[i]; for (j = i - 1; j > 0 && values[j] > t; j--) values[j + 1] = values[j]; values[j + 1] = t }
        return n % 2 ? values[(n + 1) / 2] : (values[n / 2] + values[n / 2 + 1]) / 2
    }
    END {
        printf "%-10s %28s %14s %26s\n", "proxy", "CPU us/request (min-max)", "requests/s", "CPU ratio to corelay"
        split("corelay nginx haproxy", order)
        for (o = 1; o <= 3; o++) {
            p = order[o]; if (!(p in name)) continue
            for (r = 1; r <= rounds; r++) { a[r] = us[r, p]; b[r] = rate[r, p]; c[r] = us[r, p] / us[r, "corelay"] }
            ma = median(a, rounds); mb = median(b, rounds); mc = median(c, rounds)
            printf "%-10s %10.2f (%6.2f-%6.2f) %14.0f %10.3f (%5.3f-%5.3f)\n", p, ma, a[1], a[rounds], mb, mc, c[1], c[rounds]
        }
    }' "$work/results"
