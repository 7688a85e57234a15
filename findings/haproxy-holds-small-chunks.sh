#!/usr/bin/env bash
# HAProxy holds the small chunks of a chunked event stream for up to 200 ms and passes them on in
# clumps, although every event is a chunk of its own and nothing is left to wait for.
#
# Library    HAProxy 2.6.12-1+deb12u4, Debian 12's package `haproxy`. Needs apt-get and python3.
# Guess      A proxy in `mode http` without any buffering option passes each chunk on as it comes;
#            "option http-no-delay" is about request latency and not needed for a stream of events.
# Behaviour  With the defaults, a token every 20 ms arrives in pieces about 200 ms apart. The socket to
#            the client is written with MSG_MORE as long as the response's end is not known. With
#            `option http-no-delay` each token is a piece of its own, from 0 ms on.
#            A body that is delimited by the end of the connection is passed on at once in both cases.
# Seen       defaults:              chunked in 5 pieces, until-close in 50 pieces
#            option http-no-delay:  chunked in 50 pieces, until-close in 50 pieces
set -euo pipefail
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install haproxy=2.6.12-1+deb12u4 >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$PWD/usr/lib/x86_64-linux-gnu:$PWD/lib/x86_64-linux-gnu

cat >try.py <<'PY'
import socket, subprocess, sys, threading, time
tokens = 50

def listening():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.listen(8)
    return s

def upstream(listener):
    while True:
        peer, _ = listener.accept()
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        path = peer.recv(65536).split()[1]
        chunked = path == b"/chunked"
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" +
                     (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Connection: close\r\n\r\n"))
        for n in range(tokens):
            time.sleep(0.02)
            event = b"data: token %02d\n\n" % n
            peer.sendall(b"%x\r\n%s\r\n" % (len(event), event) if chunked else event)
        if chunked:
            peer.sendall(b"0\r\n\r\n")
        peer.close()

def pieces(port, path):
    s = socket.create_connection(("127.0.0.1", port))
    s.sendall(b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path)
    count, seen = 0, b""
    while True:
        piece = s.recv(65536)
        if not piece:
            break
        seen += piece
        count += b"token" in piece
    assert seen.count(b"token") == tokens, seen
    return count

listener = listening()
threading.Thread(target=upstream, args=(listener,), daemon=True).start()
free = listening()
port = free.getsockname()[1]
free.close()
right = True
for label, option in (("defaults", ""), ("option http-no-delay", "option http-no-delay")):
    with open("haproxy.cfg", "w") as out:
        out.write(f"""
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    {option}
frontend f
    bind 127.0.0.1:{port}
    default_backend b
backend b
    server s 127.0.0.1:{listener.getsockname()[1]}
""")
    proxy = subprocess.Popen(["usr/sbin/haproxy", "-f", "haproxy.cfg", "-db"], stderr=subprocess.DEVNULL)
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.05)
    chunked, plain = pieces(port, b"/chunked"), pieces(port, b"/plain")
    proxy.kill()
    proxy.wait()
    print(f"{label}: chunked in {chunked} pieces, until-close in {plain} pieces")
    clumped = chunked < 15
    right = right and clumped == (option == "") and plain > 25
    if option:
        right = right and chunked > 25
sys.exit(0 if right else "the behaviour has changed")
PY
timeout 60 python3 try.py
