#!/usr/bin/env bash
# Caddy cuts some responses that begin as soon as a request with a body has come: the first piece passes,
# then a complete end. With `buffer_requests` it cuts none.
#
# Library    Caddy 2.6.2-5, Debian 12's package `caddy`. Needs apt-get and python3.
# Guess      Once the server behind Caddy has read the whole of a small request, nothing of the request
#            matters any more: its response is passed on until its end.
# Behaviour  Some of the responses that go on after their first piece end there: Caddy logs "use of
#            closed network connection" and closes its own connection to the server. To the client the
#            response looks whole. The same requests without a body, or with `buffer_requests`, get
#            their whole responses. How many are cut changes from run to run; a busy machine has more.
# Seen       bodies passed on:  4 of 9000 were cut
#            no bodies:         0 of 9000 were cut
#            bodies buffered:   0 of 9000 were cut
set -euo pipefail
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial home
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install caddy=2.6.2-5 >/dev/null 2>&1
for package in debs/caddy_*.deb; do dpkg -x "$package" .; done

cat >try.py <<'PY'
import asyncio, os, subprocess, sys

async def serve(reader, writer):
    """Answers at once when a request is there, and ends its response a moment later."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"POST" in head:
                await reader.readexactly(2)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                         b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            await writer.drain()
            await asyncio.sleep(0.005)
            writer.write(b"4\r\nlast\r\n0\r\n\r\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        pass
    writer.close()

async def ask(port, body):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if body:
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
    else:
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    got = await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    assert b"first" in got, got
    return b"last" in got

async def count_cut(port, body, rounds):
    """How many of rounds * 10 responses are cut; ten at a time."""
    cut = 0
    for _ in range(rounds):
        cut += (await asyncio.gather(*(ask(port, body) for _ in range(10)))).count(False)
    return cut

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    upstream = server.sockets[0].getsockname()[1]
    probes = [await asyncio.start_server(serve, "127.0.0.1", 0) for _ in range(2)]
    ports = [p.sockets[0].getsockname()[1] for p in probes]
    for p in probes:
        p.close()
        await p.wait_closed()
    with open("Caddyfile", "w") as out:
        out.write("{\n\tadmin off\n\tauto_https off\n}\n")
        for port, line in zip(ports, ("", "buffer_requests")):
            out.write("http://:%d {\n\tbind 127.0.0.1\n\treverse_proxy 127.0.0.1:%d {\n\t\t%s\n\t}\n}\n" %
                      (port, upstream, line))
    home = os.getcwd() + "/home"
    proxy = subprocess.Popen(["./usr/bin/caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"],
                             env=dict(os.environ, HOME=home, XDG_DATA_HOME=home, XDG_CONFIG_HOME=home),
                             stdout=open("caddy.log", "w"), stderr=subprocess.STDOUT)
    for port in ports:
        for _ in range(400):
            try:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                break
            except OSError:
                assert proxy.poll() is None, open("caddy.log").read()
                await asyncio.sleep(0.05)
    rounds = cut = 0
    while rounds < 6000 and cut < 3:  # as long as it takes
        cut += await count_cut(ports[0], True, 100)
        rounds += 100
    print(f"bodies passed on:  {cut} of {rounds * 10} were cut")
    others = [await count_cut(ports[0], False, rounds), await count_cut(ports[1], True, rounds)]
    print(f"no bodies:         {others[0]} of {rounds * 10} were cut")
    print(f"bodies buffered:   {others[1]} of {rounds * 10} were cut")
    logged = open("caddy.log").read().count("use of closed network connection")
    proxy.terminate()
    proxy.wait()
    return cut > 0 and logged > 0 and others == [0, 0]

sys.exit(0 if asyncio.run(main()) else "the behaviour has changed")
PY
timeout 300 python3 try.py
