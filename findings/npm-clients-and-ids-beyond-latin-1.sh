#!/usr/bin/env bash
# An event's id outside Latin-1 is the end of every event-stream client that is built on fetch: it is
# given to the program, and the client never comes back. One within Latin-1 comes back as other bytes.
#
# Libraries  npm: eventsource 4.1.0, eventsource-client 1.2.0, undici 7.16.0 (Node's own EventSource),
#            event-source-polyfill 1.0.31. Needs node 20 or newer and npm.
# Guess      The standard sends the id back as UTF-8 in Last-Event-ID (WHATWG HTML 9.2.3), browsers do,
#            so any UTF-8 text without a line break is an id that one can resume by.
# Behaviour  A header of fetch is a byte string: one character above U+00FF makes it throw, after the
#            events were given, and these clients stop. Up to U+00FF each character becomes one byte,
#            which is not UTF-8. The polyfill of XMLHttpRequest puts the id into the query, and is right.
# Seen       eventsource: "ascii" comes back as "ascii", U+00E9 as bytes e9, U+65E5 never
#            eventsource-client: "ascii" comes back as "ascii", U+00E9 as bytes e9, U+65E5 never
#            undici: "ascii" comes back as "ascii", U+00E9 as bytes e9, U+65E5 never
#            event-source-polyfill: "ascii" comes back as "ascii", U+00E9 as bytes c3a9, U+65E5 as bytes e697a5
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
echo '{"private": true}' >package.json
npm install --silent --no-audit --no-fund eventsource@4.1.0 eventsource-client@1.2.0 undici@7.16.0 \
    event-source-polyfill@1.0.31

cat >try.mjs <<'JS'
import http from "node:http";
import { createRequire } from "node:module";
const require = createRequire(import.meta.url);
globalThis.window = globalThis;
globalThis.addEventListener ??= () => {};
process.on("unhandledRejection", () => {});
process.on("uncaughtException", () => {});

const clients = {
    "eventsource": async url => {
        const { EventSource } = await import("eventsource");
        const source = new EventSource(url);
        return () => source.close();
    },
    "eventsource-client": async url => {
        const { createEventSource } = await import("eventsource-client");
        const source = createEventSource({ url });
        return () => source.close();
    },
    "undici": async url => {
        const { EventSource } = await import("undici");
        const source = new EventSource(url);
        source.onerror = () => {};
        return () => source.close();
    },
    "event-source-polyfill": async url => {
        const { EventSourcePolyfill } = require("event-source-polyfill");
        const source = new EventSourcePolyfill(url);
        source.onmessage = source.onerror = () => {};
        return () => source.close();
    },
};

// The id with which the client comes back within 4 s, in hexadecimal; "never" if it does not.
async function comes_back(connect, id) {
    const connected = [];
    const server = http.createServer((request, response) => {
        const raw = request.headers["last-event-id"];
        const query = new URL(request.url, "http://a").searchParams.get("lastEventId");
        connected.push(raw !== undefined ? Buffer.from(raw, "latin1") : Buffer.from(query ?? ""));
        response.writeHead(200, { "Content-Type": "text/event-stream" });
        response.end(`retry: 50\nid: ${id}\ndata: a\n\n`);
    });
    await new Promise(ready => server.listen(0, "127.0.0.1", ready));
    const close = await connect(`http://127.0.0.1:${server.address().port}/`);
    for (let i = 0; i < 40 && connected.length < 2; ++i) await new Promise(go => setTimeout(go, 100));
    close();
    server.closeAllConnections();
    server.close();
    return connected.length < 2 ? "never" : connected[1].toString("hex");
}

let right = true;
for (const [name, connect] of Object.entries(clients)) {
    const [ascii, latin, beyond] = await Promise.all(
        ["ascii", "\u00e9", "\u65e5"].map(id => comes_back(connect, id)));
    const said = hex => (hex === "never" ? "never" : "as bytes " + hex);
    console.log(`${name}: "ascii" comes back as "${Buffer.from(ascii, "hex")}", ` +
        `U+00E9 ${said(latin)}, U+65E5 ${said(beyond)}`);
    const by_query = name === "event-source-polyfill";
    right &&= ascii === Buffer.from("ascii").toString("hex") && latin === (by_query ? "c3a9" : "e9") &&
        beyond === (by_query ? "e697a5" : "never");
}
if (!right) console.error("the behaviour has changed");
process.exit(right ? 0 : 1);
JS
timeout 120 node --no-warnings try.mjs
