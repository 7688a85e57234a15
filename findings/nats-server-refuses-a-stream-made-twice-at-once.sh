#!/usr/bin/env bash
# nats-server tells one of several clients that make the same stream at the same moment that another
# stream has its subjects, and means the stream that was just made, of the same name.
#
# Library    nats-server 2.9.10, Debian 12's package `nats-server` 2.9.10-1+b3. Needs apt-get and python3.
# Guess      To make a stream that is there with the same configuration succeeds, so nodes that start
#            together may all make it: one does, and the others find it made.
# Behaviour  It is so nearly always. The server looks for the name and for the subjects one after the
#            other, without a lock over both. A stream that comes between them has the subjects:
#            error 10065, as if they belonged to a stream of another name.
# Seen       in round 2194 of at most 20000, 8 at once: 10065, subjects overlap with an existing stream
#            otherwise made, or found made: 17551
#            In five runs it came in round 96 to 4774.
set -euo pipefail
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p debs/partial
apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs" --no-install-recommends \
    --reinstall -d install nats-server=2.9.10-1+b3 >/dev/null 2>&1
for package in debs/*.deb; do dpkg -x "$package" .; done

cat >try.py <<'PYTHON'
import json, socket, sys

CONNECTIONS, MOST_ROUNDS = 8, 20000


class Connection:
    def __init__(self, port, number):
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.bytes = b""
        self.number = number
        self.line()
        self.socket.sendall(b'CONNECT {"verbose":false}\r\nSUB r%d 1\r\nPING\r\n' % number)
        while self.line() != b"PONG":
            pass

    def line(self):
        while b"\r\n" not in self.bytes:
            more = self.socket.recv(65536)
            if not more:
                sys.exit("the server has closed the connection")
            self.bytes += more
        line, self.bytes = self.bytes.split(b"\r\n", 1)
        return line

    def ask(self, subject, body):
        request = b"PUB $JS.API.%s r%d %d\r\n%s\r\n" % (subject, self.number, len(body), body)
        self.socket.sendall(request)

    def reply(self):
        while True:
            line = self.line()
            if line.startswith(b"MSG"):
                return json.loads(self.line())
            if line == b"PING":
                self.socket.sendall(b"PONG\r\n")


port = int(sys.argv[1])
all = [Connection(port, n) for n in range(CONNECTIONS)]
stream = json.dumps({"name": "KEPT", "subjects": ["kept"], "storage": "memory"}).encode()
seen, made = {}, 0
for turn in range(1, MOST_ROUNDS + 1):
    for one in all:
        one.ask(b"STREAM.CREATE.KEPT", stream)
    for one in all:
        error = one.reply().get("error")
        if error:
            seen[(error["err_code"], error["description"])] = turn
        else:
            made += 1
    all[0].ask(b"STREAM.DELETE.KEPT", b"")
    if "error" in all[0].reply():
        sys.exit("the stream is not deleted")
    if seen:
        break
for (code, text), turn in seen.items():
    print(f"in round {turn} of at most {MOST_ROUNDS}, {CONNECTIONS} at once: {code}, {text}")
print(f"otherwise made, or found made: {made}")
sys.exit(0 if list(seen) == [(10065, "subjects overlap with an existing stream")] else 1)
PYTHON
usr/sbin/nats-server --version
usr/sbin/nats-server -a 127.0.0.1 -p -1 -js -sd "$PWD/store" --ports_file_dir "$PWD" >log 2>&1 &
for ((i = 0; i < 3000; ++i)); do
    if ls nats-server_*.ports >/dev/null 2>&1 && grep 'Server is ready' log >/dev/null; then break; fi
    sleep 0.01
done
port=$(grep -Eo 'nats://[0-9.:]+' nats-server_*.ports | head -n 1 | sed 's/.*://')
timeout 300 python3 try.py "$port" || { echo "the behaviour has changed" >&2; exit 1; }
