#!/usr/bin/env bash
# A chunked response that its origin cuts before the last chunk reaches an HTTP/2 client of HAProxy as
# a complete one: END_STREAM, no RST_STREAM. Over HTTP/1.1 the same client sees that it was cut.
#
# Library    HAProxy 2.6.12-1+deb12u4, Debian 12's package `haproxy`; the client is curl 7.88.1 (package
#            `curl`, with HTTP/2). Needs apt-get, curl and python3.
# Guess      A proxy that knows a body to be unfinished resets the stream (RFC 9113 8.1 calls such a
#            response malformed), so that the end of an event stream can be trusted over HTTP/2.
# Behaviour  The bytes come, then END_STREAM: nothing tells the client. nginx and Apache reset it.
#            The last event of a finite stream must say itself that it is the last.
# Seen       HTTP/1.1: curl ends with 18 after 3 events
#            HTTP/2:   curl ends with 0 after 3 events
set -euo pipefail
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install haproxy=2.6.12-1+deb12u4 >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$PWD/usr/lib/$(gcc -print-multiarch 2>/dev/null || echo x86_64-linux-gnu)

cat >try.py <<'PY'
import socket, subprocess, sys, threading, time

def listening():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.listen(8)
    return s

def upstream(listener):
    while True:
        peer, _ = listener.accept()
        if not peer.recv(65536):
            continue
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for n in range(3):
            event = b"data: %d\n\n" % n
            peer.sendall(b"%x\r\n%s\r\n" % (len(event), event))
            time.sleep(0.05)
        peer.close()  # no last chunk

listener = listening()
threading.Thread(target=upstream, args=(listener,), daemon=True).start()
free = [listening(), listening()]
h2, h1 = (s.getsockname()[1] for s in free)
for s in free:
    s.close()
with open("haproxy.cfg", "w") as out:
    out.write(f"""
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend f
    bind 127.0.0.1:{h2} proto h2
    default_backend b
frontend g
    bind 127.0.0.1:{h1}
    default_backend b
backend b
    server s 127.0.0.1:{listener.getsockname()[1]}
""")
proxy = subprocess.Popen(["usr/sbin/haproxy", "-f", "haproxy.cfg", "-db"], stderr=subprocess.DEVNULL)
for _ in range(100):
    try:
        socket.create_connection(("127.0.0.1", h1)).close()
        break
    except OSError:
        time.sleep(0.05)
right = True
for label, where, option, wanted in (("HTTP/1.1", h1, "--http1.1", 18),
                                     ("HTTP/2", h2, "--http2-prior-knowledge", 0)):
    got = subprocess.run(["curl", "-sN", "--max-time", "20", option, f"http://127.0.0.1:{where}/"],
                         capture_output=True, env={})
    events = got.stdout.count(b"data:")
    print(f"{label}: curl ends with {got.returncode} after {events} events")
    right = right and got.returncode == wanted and events == 3
proxy.kill()
proxy.wait()
sys.exit(0 if right else "the behaviour has changed")
PY
timeout 60 python3 try.py
