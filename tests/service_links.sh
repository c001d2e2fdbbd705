#!/usr/bin/env bash
# How fast nodes feed over links of a given speed: each node in a network namespace of its own, behind a shaped link.
#
#   sudo tests/service_links.sh BINARY MANIFEST NODES MBIT BATCHES [more arguments for serve and digest]
#
# Prints one line: what came, in how many seconds, and how much of the links that is. Needs root, ip and tc.
set -euo pipefail
[ $# -ge 5 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
binary=$(realpath "$1") manifest=$(realpath "$2") nodes=$3 mbit=$4 batches=$5
shift 5
tmp=$(mktemp -d)
clean() {
    for i in $(seq "$nodes"); do
        [ -f "$tmp/pid$i" ] && kill "$(cat "$tmp/pid$i")" 2>/dev/null || true
        ip link del "feed$i" 2>/dev/null || true
        ip netns del "feed$i" 2>/dev/null || true
    done
    rm -rf "$tmp"
}
trap clean EXIT
urls=""
for i in $(seq "$nodes"); do
    ip netns add "feed$i"
    ip link add "feed$i" type veth peer name eth0 netns "feed$i"
    ip addr add "10.77.$i.1/24" dev "feed$i"
    ip link set "feed$i" up
    ip -n "feed$i" addr add "10.77.$i.2/24" dev eth0
    ip -n "feed$i" link set eth0 up
    ip -n "feed$i" link set lo up
    # What the node sends is shaped; its queue is a hundredth of a second long, as a good switch's.
    ip netns exec "feed$i" tc qdisc add dev eth0 root tbf rate "${mbit}mbit" burst $((mbit * 1250 + 20000)) latency 10ms
    ip netns exec "feed$i" "$binary" serve --manifest "$manifest" --listen "10.77.$i.2:8815" --metrics "10.77.$i.2:9464" \
        --quiet "$@" >"$tmp/out$i" 2>"$tmp/err$i" &
    echo $! >"$tmp/pid$i"
    urls+=${urls:+,}grpc://10.77.$i.2:8815
done
for i in $(seq "$nodes"); do
    for _ in $(seq 100); do curl -fs "10.77.$i.2:9464/readyz" >/dev/null && break; sleep 0.1; done
done
received() { cat /sys/class/net/feed*/statistics/rx_bytes | awk '{ sum += $1 } END { print sum }'; }
before=$(received) began=$(date +%s.%N)
"$binary" digest --manifest "$manifest" --feed "$urls" --batches "$batches" --json --quiet "$@" >"$tmp/digest"
python3 - "$began" "$(date +%s.%N)" "$before" "$(received)" "$nodes" "$mbit" "$tmp/digest" <<'PY'
import json, sys
began, ended, before, after, nodes, mbit = map(float, sys.argv[1:7])
seconds, sent = ended - began, after - before
digest = json.load(open(sys.argv[7]))
print(f"{nodes:.0f} nodes at {mbit:.0f} Mbit/s: {len(digest['batches'])} batches, {sent / 1e6:.0f} MB in {seconds:.2f} s, "
      f"{sent / seconds / 1e6:.1f} MB/s: {100 * sent * 8 / seconds / (nodes * mbit * 1e6):.0f} % of the links; digest {digest['digest'][:16]}")
PY
