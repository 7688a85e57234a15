#!/usr/bin/env bash
# Varnish holds the first events of a close-delimited stream until more bytes come, when they were
# sent in one write with the response's head. Sent as one chunk they pass at once.
#
# Library    Varnish 7.1.1-2+deb12u1, Debian 12's package `varnish`. Needs apt-get, a C compiler (its
#            configuration is compiled) and python3.
# Guess      A proxy that streams (`beresp.do_stream`, the default) passes on what it has read; how the
#            end of the body is marked does not matter, and fewer writes of the origin are only better.
# Behaviour  Bytes of the body that arrive together with the head of a response without Content-Length
#            and without chunks are kept back until the origin sends again. The same bytes as a chunk,
#            in the same write with the head, or after a pause, reach the client at once.
# Seen       until-close, with the head: after the next event (1.5 s)
#            until-close, 0.3 s later:   at once
#            chunked, with the head:     at once
set -euo pipefail
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install varnish=7.1.1-2+deb12u1 libvarnishapi3=7.1.1-2+deb12u1 >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done

cat >try.py <<'PY'
import os, socket, subprocess, sys, threading, time
pause = 1.5

def listening():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.listen(8)
    return s

def serve(peer):
    path = peer.recv(65536).split()[1]
    chunked = path == b"/chunked"
    head = (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n" +
            (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Connection: close\r\n\r\n"))
    frame = lambda event: b"%x\r\n%s\r\n" % (len(event), event) if chunked else event
    if path == b"/later":
        peer.sendall(head)
        time.sleep(0.3)
        peer.sendall(frame(b"data: first\n\n"))
    else:
        peer.sendall(head + frame(b"data: first\n\n"))
    time.sleep(pause)
    peer.sendall(frame(b"data: second\n\n") + (b"0\r\n\r\n" if chunked else b""))
    peer.close()

def upstream(listener):
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

def first_event(port, path):
    s = socket.create_connection(("127.0.0.1", port))
    s.settimeout(20)
    begun = time.monotonic()
    s.sendall(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path)
    seen = b""
    while b"first" not in seen:
        piece = s.recv(65536)
        assert piece, seen
        seen += piece
    return time.monotonic() - begun

listener = listening()
threading.Thread(target=upstream, args=(listener,), daemon=True).start()
free = listening()
port = free.getsockname()[1]
free.close()
with open("default.vcl", "w") as out:
    out.write('vcl 4.1;\nbackend default { .host = "127.0.0.1"; .port = "%d"; }\n'
              "sub vcl_recv { return (pass); }\n" % listener.getsockname()[1])
here = os.getcwd()
libraries = here + "/usr/lib/x86_64-linux-gnu:" + here + "/usr/lib/varnish:" + here + "/usr/lib/x86_64-linux-gnu/varnish"
log = open("varnishd.log", "w")
proxy = subprocess.Popen([here + "/usr/sbin/varnishd", "-F", "-j", "none", "-n", here + "/state",
                          "-a", "127.0.0.1:%d" % port, "-f", here + "/default.vcl", "-s", "malloc,16m"],
                         env=dict(os.environ, LD_LIBRARY_PATH=libraries), stdout=log, stderr=log)
for _ in range(400):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        break
    except OSError:
        assert proxy.poll() is None, open("varnishd.log").read()
        time.sleep(0.05)
time.sleep(0.5)
first_event(port, b"/chunked")  # compiled and warm
right = True
for label, path, held in (("until-close, with the head", b"/with", True),
                          ("until-close, 0.3 s later", b"/later", False),
                          ("chunked, with the head", b"/chunked", False)):
    took = first_event(port, path) - (0.3 if path == b"/later" else 0)
    print(f"{label}: " + (f"after the next event ({took:.1f} s)" if took > pause * 0.8 else "at once"))
    right = right and held == (took > pause * 0.8)
proxy.terminate()
proxy.wait()
sys.exit(0 if right else "the behaviour has changed")
PY
timeout 120 python3 try.py
