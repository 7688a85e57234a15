#!/usr/bin/env python3
"""The hub and a handler's streams behind a proxy, with its configuration of examples/proxies.

    tests/proxies.py PROXY EXAMPLES    PROXY is one of `proxies` below, EXAMPLES the built examples

It starts that program, if there is one, on loopback with its files in a temporary folder, and nothing
that the system runs. A line for each check, in the Test Anything Protocol. Nothing depends on how
long something takes, but that it comes within `patience`.
"""
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

patience = 60  # seconds
token = "secret"


class Proxy:
    def __init__(self, program, config, arguments, *, leaving="at once", away="told",
                 shows_cuts=True):
        self.program = program      # one that is in Debian's package
        self.config = config        # of examples/proxies; the arguments say FILE for its copy
        self.arguments = arguments
        self.leaving = leaving      # "at once", or "heartbeats": noticed only when they are sent
        self.away = away            # what an EventSource gets while there is no server
        self.shows_cuts = shows_cuts    # whether a body that is cut does not look whole


proxies = {
    "nginx": Proxy("nginx", "nginx.conf", "-e stderr -c FILE"),
    "haproxy": Proxy("haproxy", "haproxy.cfg", "-f FILE"),
    "varnish": Proxy("varnishd", "varnish.vcl", "-F -n FOLDER/varnish -a 127.0.0.1:PORT -f FILE",
                     away="dropped"),
    "apache": Proxy("apache2", "apache.conf", "-D FOREGROUND -f FILE", leaving="heartbeats"),
    "caddy": Proxy("caddy", "Caddyfile", "run", away="waits", shows_cuts=False),
    "squid": Proxy("squid", "squid.conf", "-N -f FILE", away="refused"),
    "lighttpd": Proxy("lighttpd", "lighttpd.conf", "-D -f FILE", shows_cuts=False),
}

# ---- checks --------------------------------------------------------------------------------------

said = 0
failed = 0


def check(sentence, body):
    """Says whether the body ran without an error."""
    global said, failed
    said += 1
    try:
        body()
        print(f"ok {said} - {sentence}", flush=True)
    except Exception as error:  # a check of its own: others go on
        failed += 1
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(f"not ok {said} - {sentence}: {reason}", flush=True)


def expect(condition, otherwise):
    if not condition:
        raise AssertionError(otherwise)


def equal(actual, wanted):
    expect(actual == wanted, f"{actual!r} instead of {wanted!r}")


def until(condition, what):
    end = time.monotonic() + patience
    while not condition():
        expect(time.monotonic() < end, f"not within {patience} s: {what}")
        time.sleep(0.02)


# ---- programs ------------------------------------------------------------------------------------

folder = None
running = []


class Program:
    def __init__(self, name, command, place):
        self.name = name
        self.log = folder / f"{name}.log"
        with open(self.log, "ab") as log:
            self.begins = log.tell()
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            cwd=place, start_new_session=True,  # with its children
                                            env={**os.environ, "HOME": str(folder), "PWD": str(place)})
        running.append(self)

    def text(self):
        with open(self.log, "rb") as log:
            log.seek(self.begins)
            return log.read().decode(errors="replace")

    def ended(self):
        return self.process.poll() is not None

    def says(self, pattern):
        until(lambda: re.search(pattern, self.text(), re.M) or self.ended(), f"{pattern} of {self.name}")
        return re.search(pattern, self.text(), re.M)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.wait(patience)


def end_all():
    for program in running:
        try:
            os.killpg(program.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        program.process.wait()


def free_port():
    """Most likely; the system gives those from 32768 on to connections."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), patience).close()
        return True
    except OSError:
        return False


def start_proxy(proxy, upstream):
    """The port that it listens on. Another program may have taken the one that it was given."""
    for _ in range(5):
        port = free_port()
        scratch = Path(tempfile.mkdtemp(dir=folder))
        scratch.chmod(0o777)  # started by root, most of them go on as another user
        for each in (source / "examples/proxies").iterdir():
            text = each.read_bytes().replace(b"8000", str(port).encode())
            text = text.replace(b"8080", str(upstream).encode())
            (scratch / each.name).write_bytes(text.replace(b"/tmp", str(scratch).encode()))
        words = {"FILE": str(scratch / proxy.config), "PORT": str(port), "FOLDER": str(scratch)}
        arguments = re.sub("|".join(words), lambda word: words[word[0]], proxy.arguments).split()
        program = Program(f"{name} at {port}", [proxy.program, *arguments], scratch)
        until(lambda: accepts(port) or program.ended(), f"{name} starts")
        if not program.ended():
            return port
    raise AssertionError(f"{name} does not start: {program.text()[-1000:]}")


class Hub(Program):
    """It keeps its messages over a restart, and sends heartbeats only if it is told to."""

    def __init__(self, port=None, heartbeat=0):
        port = port or free_port()
        flags = f"--port {port} --heartbeat {heartbeat} --history 8 --retry-after 1 --log info " \
                f"--publish-token {token} --trusted-proxy 127.0.0.1 " \
                "--allow-origin https://other.example --log-dir hub"
        super().__init__("hub", [str(examples / "hub"), *flags.split()], folder)
        opened = self.says(r"^hub: open http://127\.0\.0\.1:(\d+)")
        expect(opened, f"the hub does not start: {self.text()}")
        self.port = int(opened[1])


# ---- a client ------------------------------------------------------------------------------------


class Response:
    """What comes by HTTP/1.1, read as an EventSource reads it.

    `end` is how the body ended: "whole" if its framing says so, "cut" if it says the contrary, or
    "closed" if the framing cannot tell.
    """

    def __init__(self, port, path, headers={}, *, method="GET", body=None, address="127.0.0.1",
                 after=None):
        self.socket = after.socket if after else socket.create_connection(
            ("127.0.0.1", port), patience, (address, 0))
        lines = {"Host": f"localhost:{port}", **headers}
        if body is not None:
            lines["Content-Length"] = len(body)
        head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
        self.socket.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n{body or ''}".encode())
        self.unread = b""       # of what came
        self.text = b""         # of the body, not yet taken as events
        self.pieces = 0         # it came in
        self.end = None
        self.last_id = self.retry = None
        self.status = None

    def more(self):
        try:
            bytes_ = self.socket.recv(65536)
        except ConnectionResetError:
            bytes_ = b""
        self.unread += bytes_
        self.pieces += 1
        return len(bytes_) > 0

    def head(self):
        while b"\r\n\r\n" not in self.unread:
            expect(self.more(), f"the connection ended in the head: {self.unread!r}")
        head, self.unread = self.unread.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {key.lower(): value.strip() for key, _, value in
                        (line.partition(":") for line in lines[1:])}
        length = self.headers.get("content-length")
        self.left = int(length) if length else None
        self.chunked = self.headers.get("transfer-encoding") == "chunked"
        if self.left == 0 or self.status == 204:
            self.end = "whole"
        return self

    def take(self):
        """One step of reading the body: a chunk, or what there is."""
        if self.chunked:
            found = re.match(rb"([0-9a-fA-F]+)[^\r]*\r\n", self.unread)
            size = int(found[1], 16) if found else 0
            if found and len(self.unread) >= found.end() + size + 2:
                self.text += self.unread[found.end():found.end() + size]
                self.unread = self.unread[found.end() + size + 2:]
                self.end = None if size else "whole"
                return
        elif self.unread:
            self.text += self.unread
            if self.left is not None:
                self.left -= len(self.unread)
                self.end = None if self.left else "whole"
            self.unread = b""
            return
        if not self.more():
            self.end = "cut" if self.chunked or self.left else "closed"

    def event(self):
        """The next one, or None at the end: its type and data."""
        if self.status is None:
            self.head()
        while True:
            while b"\n\n" not in self.text:
                if self.end:
                    return None
                self.take()
            block, self.text = self.text.split(b"\n\n", 1)
            kind, data = "message", []
            for line in block.decode().split("\n"):
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if field == "id":
                    self.last_id = value
                elif field == "retry":
                    self.retry = int(value)
                elif field == "event":
                    kind = value
                elif field == "data":
                    data.append(value)
            if data:
                return kind, "\n".join(data)

    def events(self, count):
        return [self.event() for _ in range(count)]

    def rest(self):
        """The remaining events, up to the end."""
        return list(iter(self.event, None))

    def close(self):
        self.socket.close()


def subscribe(port, topic, last_id=None, **more):
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "gzip", **more.pop("headers", {})}
    if last_id:
        headers["Last-Event-ID"] = last_id
    return Response(port, f"/subscribe/{topic}", headers, **more).head()


def publish(port, topic, *texts):
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "text/plain"}
    for text in texts:
        response = Response(port, f"/publish/{topic}", headers, method="POST", body=text).head()
        equal(response.status, 202)
        response.close()


def messages(*texts):
    return [("message", text) for text in texts]


# ---- what is checked -----------------------------------------------------------------------------


def check_streams(proxy, hub, port):
    position = {}
    long = "2" * 2000  # some compress what begins with more than a little

    def first_event():
        client = subscribe(port, "first")
        equal(client.status, 200)
        publish(port, "first", "1")
        equal(client.event(), ("message", "1"))
        position["first"] = client.last_id
        client.close()
    check("what is published comes at once, though nothing follows it", first_event)

    def replay():
        publish(port, "first", long, "3", "4")
        client = subscribe(port, "first", position["first"])
        equal(client.events(3), messages(long, "3", "4"))
        client.close()
    check("what a client missed comes at once, though nothing follows it", replay)

    def gap():
        client = subscribe(port, "first", "elsewhere-1")
        kind, data = client.event()
        equal(kind, "gap")
        expect('"reason":"unknown"' in data, data)
        equal(client.events(4), messages("1", long, "3", "4"))
        client.close()
    check("a gap is reported, and what follows it comes", gap)

    def host():
        origin = f"http://page.localhost:{port}"
        client = subscribe(port, "host", headers={"Host": f"page.localhost:{port}", "Origin": origin})
        equal(client.status, 200)
        client.close()
        refused = subscribe(port, "host", headers={"Origin": "http://page.localhost:1"})
        equal(refused.status, 403)
        refused.close()
    check("the server sees the host that the client asked for", host)

    def address():
        for topic, headers in {"forged": {"X-Forwarded-For": "6.6.6.6"}, "plain": {}}.items():
            client = subscribe(port, topic, headers=headers, address="127.0.0.9")
            found = hub.says(rf"^hub: request GET /subscribe/{topic} 200 .*from (\S+)")
            expect(found, "the hub has ended")
            equal(found[1], "127.0.0.9")
            client.close()
    check("the server sees the address of the client, and not one that it invents", address)

    def further():
        refused = subscribe(port, "first", headers={"Origin": "http://page.localhost:1"},
                            address="127.0.0.9")  # 127.0.0.1 is trusted, whoever it is
        refused.rest()
        try:
            second = Response(port, "/subscribe/forged", {"X-Forwarded-For": "6.6.6.6"}, after=refused)
            second.more()
        except OSError:  # the proxy has closed the connection
            pass
        refused.close()
        subscribe(hub.port, "logged").close()
        hub.says("^hub: request GET /subscribe/logged ")
        expect("from 6.6.6.6" not in hub.text(), "it believes an address that the client wrote")
    check("nor in a further request on a connection", further)


def check_leaving(proxy, hub, port):
    def silent():
        client = subscribe(port, "leaving")
        client.close()
        expect(hub.says("^hub: stream closed /subscribe/leaving .*client left"), "the hub has ended")

    def handler():
        client = Response(port, "/hub/stats", {"Accept": "text/event-stream"})
        equal(client.event()[0], "stats")
        client.close()
        expect(hub.says("^hub: stream closed /hub/stats .*client left"), "the hub has ended")
    check("a client that leaves is noticed " +
          ("without any traffic" if proxy.leaving == "at once" else "after some heartbeats"), silent)
    check("a handler is cancelled when its client leaves", handler)


def check_restart(proxy, hub, port):
    state = {}

    def cut():
        client = subscribe(port, "restart")
        publish(port, "restart", "1")
        equal(client.event(), ("message", "1"))
        hub.end()
        equal(client.rest(), [])
        expect(client.retry and 1000 <= client.retry <= 2000, f"retry is {client.retry}")
        state["id"] = client.last_id
        client.close()
    check("a server that stops says through the proxy when to come back", cut)

    def away():
        if proxy.away == "waits":
            state["waiting"] = Response(port, "/subscribe/waiting", {"Accept": "text/event-stream"})
            return
        client = Response(port, "/subscribe/away", {"Accept": "text/event-stream"})
        if proxy.away == "dropped":
            equal(client.more(), False)  # as where nobody listens
            return client.close()
        client.head()
        if proxy.away == "told":
            equal((client.status, client.headers["content-type"]), (200, "text/event-stream"))
            equal(client.rest(), [])
            equal(client.retry, 2000)
        else:
            expect(client.status in (502, 503, 504), client.status)
        client.close()
        other = Response(port, "/health").head()
        expect(other.status in (502, 503, 504), f"another path gets {other.status}")
        other.close()
    check({"told": "while it is away an EventSource is told to come back later",
           "dropped": "while it is away an EventSource is left without a response",
           "waits": "while it is away an EventSource waits",
           "refused": "while it is away an EventSource is refused"}[proxy.away], away)

    if not hub.ended():
        hub.end()
    again = Hub(hub.port, heartbeat=1 if proxy.leaving == "heartbeats" else 0)

    def serves():
        response = Response(port, "/health").head()
        response.close()
        return response.status == 200
    until(serves, "the proxy finds the server again")  # some leave it alone for a second

    def back():
        publish(again.port, "restart", "2", "3")
        client = subscribe(port, "restart", state["id"])
        equal(client.status, 200)
        equal(client.events(2), messages("2", "3"))
        publish(port, "restart", "4")
        equal(client.event(), ("message", "4"))
        client.close()
        expect(again.says("^hub: stream closed /subscribe/restart "), "the hub has ended")
        requests = re.findall("^hub: request GET /subscribe/restart ", again.text(), re.M)
        equal(len(requests), 1)
        if proxy.away == "waits":
            equal(state["waiting"].head().status, 200)
            state["waiting"].close()
    check("when it is there again, one reconnection with the id goes on without a loss", back)
    return again


def check_handlers(proxy):
    tokens = Program("tokens", [str(examples / "tokens"), "127.0.0.1:0"], folder)
    port = start_proxy(proxy, int(tokens.says(r"^http://localhost:(\d+)/")[1]))

    def ask(most=1000):
        headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip"}
        wish = '{"model":"parrot","messages":[],"stream":true,"max_tokens":%d}' % most
        return Response(port, "/v1/chat/completions", headers, method="POST", body=wish).head()

    def whole():
        def pieces():
            client = ask()
            equal(client.rest()[-1], ("message", "[DONE]"))
            equal(client.end, "whole")
            return client.pieces
        # A proxy that holds small chunks makes five of these fifty.
        expect(any(pieces() >= 10 for _ in range(5)), "it comes in a few pieces")
    check("a handler's stream comes piece by piece, and ends whole", whole)

    def all_whole():
        # A proxy that forwards a body while the response comes already may cut one of a hundred.
        for _ in range(60):
            clients = [ask(1) for _ in range(10)]
            for client in clients:
                equal(client.rest()[-1], ("message", "[DONE]"))
                client.close()
    check("of many streams that begin at once, none is cut", all_whole)

    def cut():
        client = ask()
        expect(client.event(), "no event")
        tokens.end(signal.SIGKILL)
        expect(("message", "[DONE]") not in client.rest(), "it was whole before it was cut")
        if proxy.shows_cuts:
            equal(client.end, "cut")
    check("a stream that is cut " + ("is seen to be" if proxy.shows_cuts else
          "looks whole but for its last event, which is missing"), cut)


def run(proxy):
    hub = Hub()
    port = start_proxy(proxy, hub.port)
    check_streams(proxy, hub, port)
    if proxy.leaving == "at once":
        check_leaving(proxy, hub, port)
    hub = check_restart(proxy, hub, port)
    if proxy.leaving == "heartbeats":
        check_leaving(proxy, hub, port)
    check_handlers(proxy)


name, examples = sys.argv[1], Path(sys.argv[2]).absolute()
source = Path(__file__).absolute().parent.parent
os.environ["PATH"] += ":/usr/sbin"
if not shutil.which(proxies[name].program):
    print(f"1..0 # SKIP no {proxies[name].program}")
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what is started here must end too
folder = Path(tempfile.mkdtemp(prefix="sse-proxies-"))
folder.chmod(0o755)
try:
    run(proxies[name])
finally:
    end_all()
    if failed:
        for program in running:
            print(f"---- {program.name}\n{program.text()[-3000:]}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
print(f"1..{said}")
sys.exit(failed > 0)
