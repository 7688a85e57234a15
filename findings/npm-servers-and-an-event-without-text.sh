#!/usr/bin/env bash
# An event with a name and an empty text never fires: two servers' libraries leave out the data line, and
# then the client drops the event.
#
# Library    npm: fastify-sse-v2 4.2.2, ssestream 1.1.0; read by eventsource-parser 3.0.6. Needs node 20
#            or newer and npm.
# Guess      {event: "done", data: ""} fires the listeners of "done" with an empty text, as it does with
#            better-sse and others: a line `data:` is an event (WHATWG HTML 9.2.6).
# Behaviour  Both take an empty text for none and write `event: done` and a blank line, which by the
#            standard is not an event. The listener is not called, and nobody is told. An id of the number
#            0 and a retry of 0 are left out in the same way.
# Seen       fastify-sse-v2   "event: done\n\n": no event
#            ssestream        "event: done\n\n": no event
#            data of a space  "event: done\ndata:  \n\n": an event of each
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
echo '{"private": true}' >package.json
npm install --silent --no-audit --no-fund fastify-sse-v2@4.2.2 fastify@4.29.1 ssestream@1.1.0 eventsource-parser@3.0.6

cat >try.mjs <<'JS'
import http from "node:http";
import { createRequire } from "node:module";
import { createParser } from "eventsource-parser";
const require = createRequire(import.meta.url);
const { FastifySSEPlugin } = require("fastify-sse-v2");
const Fastify = require("fastify");
const SseStream = require("ssestream").default;

const events = bytes => {
    const found = [];
    createParser({ onEvent: event => found.push(event) }).feed(bytes);
    return found.length;
};
async function of_fastify(message) {
    const app = Fastify();
    await app.register(FastifySSEPlugin, { retryDelay: false });
    app.get("/", (request, reply) => reply.sse((async function* () { yield message; })()));
    const url = await app.listen({ host: "127.0.0.1", port: 0 });
    const text = await (await fetch(url)).text();
    await app.close();
    return text.slice(0, text.indexOf("\n\n") + 2);
}
async function of_ssestream(message) {
    const stream = new SseStream();
    const pieces = [];
    stream.on("data", piece => pieces.push(piece));
    stream.writeMessage(message);
    await new Promise(ready => setImmediate(ready));
    return pieces.join("");
}
let right = true;
for (const [name, encode] of [["fastify-sse-v2", of_fastify], ["ssestream", of_ssestream]]) {
    for (const [data, expected] of [["", 0], [" ", 1]]) {
        const bytes = await encode({ event: "done", data });
        console.log(name, JSON.stringify(data), JSON.stringify(bytes), events(bytes));
        right &&= events(bytes) === expected && bytes.startsWith("event: done\n");
    }
}
process.exit(right ? 0 : 1);
JS
timeout 60 node try.mjs
