#!/usr/bin/env bash
# What Prometheus itself says of the hub's metrics: promtool of their text, and a Prometheus that
# scrapes them. EXAMPLES is the folder of the built hub. Prometheus is unpacked, not installed: as a
# service it would listen on all addresses.
set -euo pipefail
command -v curl >/dev/null || { echo "no curl"; exit 77; }
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait; rm -rf "$folder"' EXIT
cd "$folder"
if command -v promtool prometheus >/dev/null; then
    PATH=$PATH
elif apt-get download -qq prometheus >/dev/null 2>&1; then
    dpkg -x prometheus_*.deb unpacked
    PATH=$PWD/unpacked/usr/bin:$PATH
else
    echo "no prometheus, and it cannot be downloaded"
    exit 77
fi

until_true() { # WHAT COMMAND...: waits for up to a minute
    local end=$((SECONDS + 60))
    until "${@:2}"; do
        [ $SECONDS -lt $end ] || { echo "not within a minute: $1" >&2; tail hub.log prometheus.log >&2; exit 1; }
        sleep 0.1
    done
}

"$EXAMPLES/hub" --port 0 --metrics /metrics --publish-token secret >hub.log 2>&1 &
pids+=($!)
has_url() { url=$(grep -oE 'http://127[^ ]+' hub.log); }
until_true "the hub starts" has_url
url=${url%/}
curl -sN --max-time 120 "$url/subscribe/a" >events &
pids+=($!)
curl -fsS -o /dev/null -H 'Authorization: Bearer secret' -d data=x "$url/publish/a"
is_counted() { curl -fsS "$url/metrics" | grep -x 'sse_streams 1' >/dev/null; }
until_true "the stream is counted" is_counted

curl -fsS "$url/metrics" | promtool check metrics
curl -fsS -H 'Accept: application/openmetrics-text' "$url/metrics" | tail -n 1 | grep -x '# EOF' >/dev/null

curl -fsS "$url/metrics" >text
grep -oE '"expr": ".*"' "$here/../examples/grafana.json" | grep -oE 'sse_[a-z_]+' | sort -u >named
[ "$(wc -l <named)" -gt 10 ]
while read -r name; do # the dashboard names what there is; a bus is not there
    [ "$name" = sse_bus_up ] || grep -q "^$name[ {]" text || { echo "no metric $name" >&2; exit 1; }
done <named

cat >prometheus.yml <<END
global: { scrape_interval: 200ms, scrape_timeout: 200ms }
scrape_configs: [{ job_name: hub, static_configs: [{ targets: ["${url#http://}"] }] }]
END
port=0
start_prometheus() { # on a port that is free; another program may take it meanwhile
    port=$((20000 + RANDOM % 12000))
    prometheus --config.file=prometheus.yml --storage.tsdb.path=data \
        --web.listen-address=127.0.0.1:$port >prometheus.log 2>&1 &
    pids+=($!)
}
start_prometheus
query() { curl -fsS "http://127.0.0.1:$port/api/v1/query" --data-urlencode "query=$1" 2>/dev/null; }
has_scraped() {
    kill -0 "${pids[-1]}" 2>/dev/null || start_prometheus
    query 'sse_streams' | grep '"1"\]' >/dev/null
}
until_true "Prometheus has scraped it" has_scraped
query 'up{job="hub"}' | grep '"1"\]' >/dev/null
query 'sse_messages_published_total' | grep '"1"\]' >/dev/null
query 'sse_streams_ended_total{reason="revoked"}' | grep '"0"\]' >/dev/null
echo "Prometheus takes it"
