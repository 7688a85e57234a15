#!/usr/bin/env bash
# Some event-stream clients compare the media type of the response by case and refuse a stream whose
# Content-Type is "Text/Event-Stream".
#
# Libraries  npm: eventsource 4.1.0, extended-eventsource 2.1.0, undici 7.16.0 (Node's own EventSource),
#            eventsource-client 1.2.0. Needs node 20 or newer and npm.
# Guess      A media type is case-insensitive (RFC 9110 8.3.1), each client parses it as Fetch does, and
#            a server may write it as it likes.
# Behaviour  eventsource and extended-eventsource look for the text in lower case, and fail for good.
# Seen       eventsource: text/event-stream opens, Text/Event-Stream fails
#            extended-eventsource: text/event-stream opens, Text/Event-Stream fails
#            undici: text/event-stream opens, Text/Event-Stream opens
#            eventsource-client: text/event-stream opens, Text/Event-Stream opens
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
echo '{"private": true}' >package.json
npm install --silent --no-audit --no-fund eventsource@4.1.0 extended-eventsource@2.1.0 undici@7.16.0 \
    eventsource-client@1.2.0

cat >try.mjs <<'JS'
import http from "node:http";
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const print = console.log.bind(console);
for (const what of ["log", "error", "warn", "info"]) console[what] = () => {}; // some print what they do
process.on("unhandledRejection", () => {});

const like_the_browser = name => async (url, got) => {
    const { EventSource } = await import(name);
    const source = new EventSource(url);
    source.onmessage = got;
    source.onerror = () => {};
    return () => source.close();
};
const clients = {
    "eventsource": [like_the_browser("eventsource"), "fails"],
    "extended-eventsource": [like_the_browser("extended-eventsource"), "fails"],
    "undici": [like_the_browser("undici"), "opens"],
    "eventsource-client": [async (url, got) => {
        const { createEventSource } = await import("eventsource-client");
        const source = createEventSource({ url, onMessage: got });
        return () => source.close();
    }, "opens"],
};

async function opens(connect, type) {
    let asked = 0, events = 0;
    const server = http.createServer((request, response) => {
        ++asked;
        response.writeHead(200, { "Content-Type": type });
        response.end("retry: 20\ndata: a\n\n");
    });
    await new Promise(ready => server.listen(0, "127.0.0.1", ready));
    const close = await connect(`http://127.0.0.1:${server.address().port}/`, () => ++events);
    for (let i = 0; i < 100 && !events && (asked === 0 || i < 20); ++i) {
        await new Promise(go => setTimeout(go, 100));
    }
    close();
    server.closeAllConnections();
    server.close();
    return events > 0 ? "opens" : "fails";
}

let right = true;
for (const [name, [connect, expected]] of Object.entries(clients)) {
    const lower = await opens(connect, "text/event-stream");
    const mixed = await opens(connect, "Text/Event-Stream");
    print(`${name}: text/event-stream ${lower}, Text/Event-Stream ${mixed}`);
    right &&= lower === "opens" && mixed === expected;
}
if (!right) print("the behaviour has changed");
process.exit(right ? 0 : 1);
JS
timeout 120 node --no-warnings try.mjs
