#!/usr/bin/env bash
# eventsource-parser gives an event whose lines end in CR only with the next byte of the stream, and
# the last one of a stream never. With LF or CRLF it gives the same event at once.
#
# Library    npm: eventsource-parser 3.0.6. Needs node 18 or newer and npm.
# Guess      A CR ends a line (WHATWG HTML 9.2.5); whether an LF follows can be seen with the next byte,
#            which would then be skipped. So an event is complete with the CR of its blank line.
# Behaviour  A CR at the end of what was fed is kept back, as it may be half of a CRLF. A quiet server
#            whose lines end in CR is heard one event late, and its last event before the end is lost.
# Seen       LF: event 1 after its own bytes, event 2 after its own bytes
#            CRLF: event 1 after its own bytes, event 2 after its own bytes
#            CR: event 1 after the bytes of event 2, event 2 never
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
echo '{"private": true}' >package.json
npm install --silent --no-audit --no-fund eventsource-parser@3.0.6

cat >try.mjs <<'JS'
import { createParser } from "eventsource-parser";
const expected = {
    LF: ["its own bytes", "its own bytes"], CRLF: ["its own bytes", "its own bytes"],
    CR: ["the bytes of event 2", "never"],
};
let right = true;
for (const [name, end] of [["LF", "\n"], ["CRLF", "\r\n"], ["CR", "\r"]]) {
    const came = {};
    let fed = 0;
    const parser = createParser({ onEvent: event => { came[event.data] = fed; } });
    for (fed = 1; fed <= 2; ++fed) parser.feed(`data: ${fed}${end}${end}`);
    const when = [1, 2].map(n => (came[n] === undefined ? "never"
        : came[n] === n ? "its own bytes" : `the bytes of event ${came[n]}`));
    const after = text => (text === "never" ? text : "after " + text);
    console.log(`${name}: event 1 ${after(when[0])}, event 2 ${after(when[1])}`);
    right &&= when.join() === expected[name].join();
}
if (!right) console.error("the behaviour has changed");
process.exit(right ? 0 : 1);
JS
timeout 60 node try.mjs
