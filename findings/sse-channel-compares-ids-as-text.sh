#!/usr/bin/env bash
# A client of sse-channel that comes back with id 9 gets none of the messages 10, 11 and 12 that it missed.
#
# Library    npm: sse-channel 4.0.2. Needs node 20 or newer and npm.
# Guess      Its history is searched for the message with the client's id, and what came after that is
#            sent.
# Behaviour  It goes back from the newest message and stops at the first whose id is not greater than the
#            client's. An id that was given as a string is compared as text, and "12" < "9". Numbers are
#            compared as numbers; an id such as a UUID gives some part of the history, by chance.
# Seen       ids as numbers: after 9 come 10, 11, 12
#            ids as strings: after "9" comes nothing
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
echo '{"private": true}' >package.json
npm install --silent --no-audit --no-fund sse-channel@4.0.2

cat >try.mjs <<'JS'
import http from "node:http";
import { createRequire } from "node:module";
const SseChannel = createRequire(import.meta.url)("sse-channel");

// The ids that a client gets which comes back after 9, of messages with these ids.
async function after_9(as_id) {
    const channel = new SseChannel({ historySize: 100 });
    for (let n = 1; n <= 12; ++n) channel.send({ id: as_id(n), data: "message" });
    const server = http.createServer((request, response) =>
        channel.addClient(request, response, () => response.end()));
    await new Promise(ready => server.listen(0, "127.0.0.1", ready));
    const { port } = server.address();
    const text = await (await fetch(`http://127.0.0.1:${port}/`, { headers: { "Last-Event-ID": "9" } })).text();
    channel.close();
    server.close();
    return [...text.matchAll(/^id: ?(.*)$/gm)].map(match => match[1]).join(" ");
}
const numbers = await after_9(n => n);
const strings = await after_9(n => String(n));
console.log("numbers:", numbers);
console.log("strings:", strings);
process.exit(numbers === "10 11 12" && strings === "" ? 0 : 1);
JS
timeout 60 node try.mjs
