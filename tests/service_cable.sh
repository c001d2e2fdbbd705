#!/usr/bin/env bash
# Pulls cables in the middle of a stream: two nodes and a trainer, each in a network namespace of its own, on one switch.
#
#   sudo tests/service_cable.sh BINARY
#
# First a node's cable, then the trainer's: nobody says goodbye, no FIN and no RST arrives. Prints what was seen; fails if
# the stream's digest is not the one that is made without nodes, or if a node holds on to a trainer that vanished.
# Needs root, ip, tc, curl and python3; draws its own pictures.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
binary=$(realpath "$1")
tmp=$(mktemp -d)
spaces="switch node1 node2 trainer"
clean() {
    # The shell would tell of each process that it was killed.
    exec 2>/dev/null
    for pid in "$tmp"/*.pid; do [ -f "$pid" ] && kill -9 "$(cat "$pid")" 2>/dev/null || true; done
    for name in $spaces; do ip netns del "cable-$name" 2>/dev/null || true; done
    rm -rf "$tmp"
}
trap clean EXIT
began=$(date +%s.%N)
say() { printf '%6.2f s  %s\n' "$(python3 -c "import time; print(time.time() - $began)")" "$*"; }
fail() { say "FAILED: $*"; cat "$tmp"/*.err >&2; exit 1; }
# Waits until a command succeeds.
until_so() {
    local what=$1; shift
    for _ in $(seq 600); do "$@" && return; sleep 0.1; done
    fail "$what never came"
}

python3 - "$tmp/pictures" <<'PY'
import os, random, struct, sys, zlib
def png(side, seed):
    pixels = random.Random(seed).randbytes(side * side * 3)
    rows = b"".join(b"\0" + pixels[i : i + side * 3] for i in range(0, len(pixels), side * 3))
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
for i in range(512):
    folder = os.path.join(sys.argv[1], f"class{i % 4}")
    os.makedirs(folder, exist_ok=True)
    open(os.path.join(folder, f"{i:04}.png"), "wb").write(png(32, i))
PY
"$binary" pack "$tmp/pictures" --out "$tmp/set" --shard-bytes 100000 --quiet >/dev/null
# 393 kB a batch: at 40 Mbit/s from each of two nodes, 25 batches a second.
stream=(--config cifar10-resnet18 --manifest "$tmp/set/manifest.json" --set batch.size=64)
batches=400
wanted=$("$binary" digest "${stream[@]}" --batches $batches --json --quiet | python3 -c 'import json, sys; print(json.load(sys.stdin)["digest"])')

for name in $spaces; do ip netns add "cable-$name"; ip -n "cable-$name" link set lo up; done
ip -n cable-switch link add bridge type bridge
ip -n cable-switch link set bridge up
i=0
for name in node1 node2 trainer; do
    i=$((i + 1))
    ip link add "$name" netns cable-switch type veth peer name eth0 netns "cable-$name"
    ip -n cable-switch link set "$name" master bridge up
    ip -n "cable-$name" addr add "10.78.0.$i/24" dev eth0
    ip -n "cable-$name" link set eth0 up
    [ "$name" = trainer ] || ip netns exec "cable-$name" tc qdisc add dev eth0 root tbf rate 40mbit burst 70000 latency 10ms
done
for i in 1 2; do
    ip netns exec "cable-node$i" "$binary" serve "${stream[@]}" --listen "10.78.0.$i:8815" --metrics 127.0.0.1:9464 \
        --set machine.threads=1 --set machine.service.client_timeout_seconds=2 --quiet >"$tmp/node$i.out" 2>"$tmp/node$i.err" &
    echo $! >"$tmp/node$i.pid"
done
page() { ip netns exec "cable-node$1" curl -fs "127.0.0.1:9464/$2"; }
ready() { page "$1" readyz >/dev/null; }
sent() { page "$1" metrics | awk '$1 == "simclr_service_sent_bytes_total" { printf "%d", $2 }'; }
more_than() { [ "$(sent "$1")" -gt "$2" ]; }
holds() { page "$1" status | python3 -c 'import json, sys; s = json.load(sys.stdin); print(s["clients"], s["streams"], s["memory_bytes"])'; }
holds_nothing() { [ "$(holds "$1")" = "0 0 0" ]; }
lost() { grep -q "$1.*lost" "$tmp/trainer.err" || grep -q "lost.*$1" "$tmp/trainer.err"; }
for i in 1 2; do until_so "node $i" ready $i; done

# Starts the trainer's side of a stream.
trainer() {
    ip netns exec cable-trainer "$binary" digest "${stream[@]}" --feed grpc://10.78.0.1:8815,grpc://10.78.0.2:8815 \
        --batches $batches --set machine.feed.timeout_seconds=2 --json >"$tmp/digest" 2>"$tmp/trainer.err" &
    echo $! >"$tmp/trainer.pid"
}
# Waits for its end, and compares its digest with the expected one.
finished() {
    wait "$(cat "$tmp/trainer.pid")" || fail "the stream failed"
    rm "$tmp/trainer.pid"
    local found
    found=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["digest"])' "$tmp/digest")
    [ "$found" = "$wanted" ] || fail "digest $found, $wanted expected"
    say "$batches batches came, digest ${found:0:16} as without nodes"
}
plug() { ip -n cable-switch link set "$1" "$2"; }

say "a node's cable:"
trainer
for i in 1 2; do until_so "batches of node $i" more_than $i 4000000; done
say "both nodes send; the cable of node 1 is pulled"
plug node1 down
until_so "the loss of node 1" lost 10.78.0.1
say "the trainer says: $(grep -m1 lost "$tmp/trainer.err" | sed 's/\x1b\[[0-9;]*m//g; s/^[^ ]* *//')"
at=$(sent 2)
until_so "batches of node 2" more_than 2 $((at + 8000000))
say "node 2 has sent $(($(sent 2) - at)) bytes more; node 1 holds (clients, streams, bytes): $(holds 1)"
until_so "the end of node 1's streams" holds_nothing 1
at=$(sent 1)
say "node 1 holds nothing any more; its cable is plugged in"
plug node1 up
until_so "node 1's return" more_than 1 $((at + 4000000))
say "node 1 is taken back: it has sent $(($(sent 1) - at)) bytes more"
finished

say "the trainer's cable:"
before=("$(sent 1)" "$(sent 2)")
trainer
for i in 1 2; do until_so "batches of node $i" more_than $i $((before[i - 1] + 4000000)); done
say "the nodes hold (clients, streams, bytes): $(holds 1), $(holds 2); the cable of the trainer is pulled"
plug trainer down
for i in 1 2; do until_so "the end of node $i's streams" holds_nothing $i; done
say "the nodes hold: $(holds 1), $(holds 2); the trainer's cable is plugged in"
plug trainer up
finished
for i in 1 2; do until_so "the end of node $i's streams" holds_nothing $i; done
say "the nodes hold: $(holds 1), $(holds 2)"
