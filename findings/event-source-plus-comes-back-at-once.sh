#!/usr/bin/env bash
# event-source-plus asks again without any wait after a whole response, whatever `retry` says, and goes
# on after a 204, which ends every EventSource.
#
# Library    npm: event-source-plus 0.1.15. Needs node 20 or newer and npm.
# Guess      A client of the standard waits for the server's `retry` time after each end (WHATWG HTML
#            9.2.3), and 204 is how a server tells it to stop.
# Behaviour  Its wait, with its own growing back-off, is for failures only. A clean end is followed by
#            the next request at once, some hundred in a second; a 204 is one of the failures.
# Seen       whole responses with "retry: 5000": more than 50 requests in a second
#            204: asked again
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
echo '{"private": true}' >package.json
npm install --silent --no-audit --no-fund event-source-plus@0.1.15

cat >try.mjs <<'JS'
import http from "node:http";
import { EventSourcePlus } from "event-source-plus";
process.on("unhandledRejection", () => {});

async function requests_in_a_second(respond) {
    let count = 0;
    const server = http.createServer((request, response) => {
        ++count;
        respond(response);
    });
    await new Promise(ready => server.listen(0, "127.0.0.1", ready));
    const listening = new EventSourcePlus(`http://127.0.0.1:${server.address().port}/`)
        .listen({ onMessage() {} });
    for (let i = 0; i < 100 && count === 0; ++i) await new Promise(go => setTimeout(go, 20));
    await new Promise(go => setTimeout(go, 1000));
    listening.abort();
    server.closeAllConnections();
    server.close();
    return count;
}

let right = true;
for (const [name, least, seen, respond] of [
    ['whole responses with "retry: 5000"', 50, "more than 50 requests in a second", response => {
        response.writeHead(200, { "Content-Type": "text/event-stream" });
        response.end("retry: 5000\nid: 1\ndata: a\n\n");
    }],
    ["204", 1, "asked again", response => response.writeHead(204).end()],
]) {
    const count = await requests_in_a_second(respond);
    console.log(`${name}: ${count > least ? seen : `${count} requests in a second`}`);
    right &&= count > least;
}
if (!right) console.error("the behaviour has changed");
process.exit(right ? 0 : 1);
JS
timeout 60 node try.mjs
