#!/usr/bin/env bash
# An id without data, which a server sends to move a quiet client on, is kept by some clients, ignored
# by others, and fires an empty event in a third kind.
#
# Libraries  npm: eventsource 4.1.0, eventsource-client 1.2.0, undici 7.16.0 (Node's own EventSource),
#            @microsoft/fetch-event-source 2.0.1, extended-eventsource 2.1.0. Needs node 20 and npm.
# Guess      Every client follows the standard's dispatch (WHATWG HTML 9.2.6): the last event id is set,
#            no event fires, and the next connection sends the id.
# Behaviour  eventsource-parser, on which the first two are built, reports events with data only: their
#            position stays where it was. The last two fire a message with empty data, in which a
#            handler's JSON.parse throws.
# Seen       eventsource: no event, the id is forgotten
#            eventsource-client: no event, the id is forgotten
#            undici: no event, the id is kept
#            @microsoft/fetch-event-source: an empty event, the id is kept
#            extended-eventsource: an empty event, the id is kept
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
echo '{"private": true}' >package.json
npm install --silent --no-audit --no-fund eventsource@4.1.0 eventsource-client@1.2.0 undici@7.16.0 \
    @microsoft/fetch-event-source@2.0.1 extended-eventsource@2.1.0

cat >try.mjs <<'JS'
import http from "node:http";
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const print = console.log.bind(console);
for (const what of ["log", "error", "warn", "info"]) console[what] = () => {}; // some print what they do
process.on("unhandledRejection", () => {});

const clients = {
    "eventsource": async (url, got) => {
        const { EventSource } = await import("eventsource");
        const source = new EventSource(url);
        source.onmessage = got;
        return () => source.close();
    },
    "eventsource-client": async (url, got) => {
        const { createEventSource } = await import("eventsource-client");
        const source = createEventSource({ url, onMessage: got });
        return () => source.close();
    },
    "undici": async (url, got) => {
        const { EventSource } = await import("undici");
        const source = new EventSource(url);
        source.onmessage = got;
        source.onerror = () => {};
        return () => source.close();
    },
    "@microsoft/fetch-event-source": async (url, got) => {
        const { fetchEventSource } = await import("@microsoft/fetch-event-source");
        const stop = new AbortController();
        fetchEventSource(url, { fetch, signal: stop.signal, onmessage: got }).catch(() => {});
        return () => stop.abort();
    },
    "extended-eventsource": async (url, got) => {
        const { EventSource } = await import("extended-eventsource");
        const source = new EventSource(url);
        source.onmessage = got;
        source.onerror = () => {};
        return () => source.close();
    },
};
const expected = {
    "eventsource": "no event, the id is forgotten",
    "eventsource-client": "no event, the id is forgotten",
    "undici": "no event, the id is kept",
    "@microsoft/fetch-event-source": "an empty event, the id is kept",
    "extended-eventsource": "an empty event, the id is kept",
};
let right = true;
for (const [name, connect] of Object.entries(clients)) {
    const ids = [], events = [];
    const server = http.createServer((request, response) => {
        ids.push(request.headers["last-event-id"]);
        response.writeHead(200, { "Content-Type": "text/event-stream" });
        response.write("retry: 50\n\nid: 7\n\n");
        setTimeout(() => response.destroy(), 100); // cut: after a whole response one of them stops
    });
    await new Promise(ready => server.listen(0, "127.0.0.1", ready));
    const close = await connect(`http://127.0.0.1:${server.address().port}/`,
        event => ids.length === 1 && events.push(event));
    for (let i = 0; i < 80 && ids.length < 2; ++i) await new Promise(go => setTimeout(go, 100));
    close();
    server.closeAllConnections();
    server.close();
    const empty = events.some(event => event.data === "" && String(event.id ?? event.lastEventId) === "7");
    const said = (empty ? "an empty event" : events.length ? "other events" : "no event") +
        (ids.length < 2 ? ", never came back" : ids[1] === "7" ? ", the id is kept" : ", the id is forgotten");
    print(`${name}: ${said}`);
    right &&= said === expected[name];
}
if (!right) print("the behaviour has changed");
process.exit(right ? 0 : 1);
JS
timeout 120 node --no-warnings try.mjs
