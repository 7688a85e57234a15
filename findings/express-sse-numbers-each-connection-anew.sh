#!/usr/bin/env bash
# The ids that express-sse gives say nothing about the event: each connection counts its own from 0.
#
# Library    npm: express-sse 1.0.0 with express 4.21.2. Needs node 20 or newer and npm.
# Guess      An id that a server adds by itself names the event, the same for all clients, so that a
#            client that comes back with it gets what it missed.
# Behaviour  The counter is in the connection, so one event has different ids for different clients. The
#            header Last-Event-ID is not read: a client that comes back gets nothing of what it missed,
#            and ids that it had before, for other events.
# Seen       there from the start: 0 one, 1 two, 2 three
#            came later:           0 three
#            back after id 1:      0 four
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
echo '{"private": true}' >package.json
npm install --silent --no-audit --no-fund express-sse@1.0.0 express@4.21.2

cat >try.mjs <<'JS'
import http from "node:http";
import express from "express";
import SSE from "express-sse";

const sse = new SSE();
const app = express();
app.get("/", sse.init);
const server = app.listen(0, "127.0.0.1");
await new Promise(ready => server.once("listening", ready));

// A client: what it was sent, as "id data", and a wait for so many of them.
async function connect(headers = {}) {
    const client = { got: [], text: "" };
    let told = () => {};
    const before = sse.listenerCount("data");
    client.request = http.get({ host: "127.0.0.1", port: server.address().port, headers }, response => {
        response.on("error", () => {});
        response.setEncoding("utf8").on("data", piece => {
            client.text += piece;
            client.got = [...client.text.matchAll(/id: (.*)\ndata: "(.*)"\n\n/g)].map(m => m[1] + " " + m[2]);
            told();
        });
    });
    client.request.on("error", () => {});
    client.has = count => new Promise(ready => {
        told = () => { if (client.got.length >= count) ready(); };
        told();
    });
    while (sse.listenerCount("data") === before) await new Promise(ready => setTimeout(ready, 5));
    return client;
}
const first = await connect();
for (const text of ["one", "two"]) sse.send(text);
await first.has(2);
const later = await connect();
sse.send("three");
await first.has(3);
await later.has(1);
first.request.destroy();
while (sse.listenerCount("data") > 1) await new Promise(ready => setTimeout(ready, 5));
const back = await connect({ "Last-Event-ID": "1" });
sse.send("four");
await back.has(1);
console.log(first.got.join(", "));
console.log(later.got[0]);
console.log(back.got.join(", "));
const right = first.got.join() === "0 one,1 two,2 three" && later.got[0] === "0 three" &&
    back.got.join() === "0 four";
process.exit(right ? 0 : 1);
JS
timeout 60 node try.mjs
