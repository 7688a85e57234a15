#!/usr/bin/env bash
# Caddy with `flush_interval -1`, the line that recipes for event streams begin with, no longer tells
# the server behind it that a client has left. Without the line events pass at once as well, and the
# server sees it.
#
# Library    Caddy 2.6.2-5, Debian 12's package `caddy`. Needs apt-get and python3.
# Guess      `flush_interval -1` is what makes a proxied event stream flow; a client that leaves ends
#            the request to the server with it or without it.
# Behaviour  A response of type text/event-stream is passed on at once without the line. With it, the
#            request to the server is no longer bound to the client's: while the server sends nothing,
#            its connection stays open after the client's is closed.
# Seen       without the line: first event at once, the server sees the client leave
#            with it:          first event at once, the server does not see the client leave (3 s)
set -euo pipefail
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial home
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install caddy=2.6.2-5 >/dev/null 2>&1
for package in debs/caddy_*.deb; do dpkg -x "$package" .; done

cat >try.py <<'PY'
import os, queue, socket, subprocess, sys, threading, time
patience = 3

def listening():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.listen(8)
    return s

left = queue.Queue()

def serve(peer):
    peer.recv(65536)
    event = b"data: first\n\n"
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                 b"%x\r\n%s\r\n" % (len(event), event))
    try:
        peer.recv(1)  # returns when the other end is gone
    except OSError:
        pass
    left.put(time.monotonic())

def upstream(listener):
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

def sees_leaving(port):
    while not left.empty():
        left.get()
    s = socket.create_connection(("127.0.0.1", port))
    s.settimeout(20)
    s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    seen = b""
    begun = time.monotonic()
    while b"first" not in seen:
        piece = s.recv(65536)
        assert piece, seen
        seen += piece
    assert time.monotonic() - begun < patience
    s.close()
    try:
        left.get(timeout=patience)
        return True
    except queue.Empty:
        return False

def free_port():
    s = listening()
    port = s.getsockname()[1]
    s.close()
    return port

listener = listening()
threading.Thread(target=upstream, args=(listener,), daemon=True).start()
ports = [free_port(), free_port()]
with open("Caddyfile", "w") as out:
    out.write("{\n\tadmin off\n\tauto_https off\n}\n")
    for port, line in zip(ports, ("", "flush_interval -1")):
        out.write("http://:%d {\n\tbind 127.0.0.1\n\treverse_proxy 127.0.0.1:%d {\n\t\t%s\n\t}\n}\n" %
                  (port, listener.getsockname()[1], line))
log = open("caddy.log", "w")
home = os.getcwd() + "/home"
proxy = subprocess.Popen(["./usr/bin/caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"],
                         env=dict(os.environ, HOME=home, XDG_DATA_HOME=home, XDG_CONFIG_HOME=home),
                         stdout=log, stderr=log)
for port in ports:
    for _ in range(400):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert proxy.poll() is None, open("caddy.log").read()
            time.sleep(0.05)
results = [sees_leaving(port) for port in ports]
for label, sees in zip(("without the line", "with it"), results):
    print(f"{label}: first event at once, the server " +
          ("sees the client leave" if sees else f"does not see the client leave ({patience} s)"))
proxy.terminate()
proxy.wait()
sys.exit(0 if results == [True, False] else "the behaviour has changed")
PY
timeout 120 python3 try.py
