// hub_page.hpp - the page that hub.cpp serves at GET /: one document, no external asset.
//
// A strip-chart recorder: the paper moves left at one sprocket hole a second, every event name has
// a pen, and a lost connection leaves a hatched gap. Edit it here, by hand; rebuild hub to see it.
// {{prefix}}, {{gap}} and {{publish}} are filled in by hub.cpp, escaped for an HTML attribute.
//
// Whatever arrives in an event is written as text (textContent, fillText), never as HTML. The
// policy in the head has the browser enforce that: with require-trusted-types-for an assignment
// to innerHTML throws, so a later edit cannot forget it.
#pragma once

#include <string_view>

// Several adjacent literals, since MSVC accepts at most 16 KB in one.
inline constexpr std::string_view hub_page = R"page(<!doctype html>
<html lang="en" data-prefix="{{prefix}}" data-gap="{{gap}}" data-publish="{{publish}}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="theme-color" content="#e6ecea" media="(prefers-color-scheme: light)">
<meta name="theme-color" content="#0b1316" media="(prefers-color-scheme: dark)">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; connect-src 'self';
    img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none';
    form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'">
<title>sse.hpp hub</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0
 16 16'%3E%3Crect width='16' height='16' rx='4' fill='%2310262c'/%3E%3Cpath
 d='M2 10h3l2-6 2 8 2-5h3' fill='none' stroke='%23ff7a59' stroke-width='1.6'
 stroke-linejoin='round'/%3E%3C/svg%3E">
<style>
:root {
    color-scheme: light dark;
    --desk: #e6ecea; --paper: #fcfefd; --rule: #d9e7e3; --rule-strong: #b9d0ca;
    --ink: #10262c; --soft: #4d636a; --edge: #c9d7d3; --field: #ffffff; --action: #10262c;
    --on-action: #ffffff; --good: #0d7a45; --warn: #8f5a00; --bad: #c2271b; --bad-wash: #f9e3e0;
    --pen-0: #5b6c74; --pen-1: #cf3a17; --pen-2: #1463c4; --pen-3: #0c7a46; --pen-4: #ad237c;
    --pen-5: #8f5a00; --pen-6: #6545cb; --pen-7: #06747f;
    --sans: system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif;
    --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono",
        monospace;
}
@media (prefers-color-scheme: dark) {
    :root {
        --desk: #0b1316; --paper: #121e23; --rule: #1d2e35; --rule-strong: #2d454e;
        --ink: #e4efee; --soft: #93a9af; --edge: #263a42; --field: #0d171b; --action: #e4efee;
        --on-action: #0b1316; --good: #4fd18b; --warn: #e8b339; --bad: #ff7b6b;
        --bad-wash: #2c1a1a;
        --pen-0: #8fa4ad; --pen-1: #ff7d5c; --pen-2: #6cb0ff; --pen-3: #4fd18b; --pen-4: #f383c8;
        --pen-5: #e8b339; --pen-6: #ad9bff; --pen-7: #40cad5;
    }
}
* { box-sizing: border-box; }
html { background: var(--desk); }
body {
    margin: 0; color: var(--ink); font: 16px/1.5 var(--sans); overflow-wrap: anywhere;
    -webkit-text-size-adjust: 100%;
}
h1, h2, p, dl, dd, ol, pre { margin: 0; padding: 0; }
h2 { font-size: 1.0625rem; font-weight: 650; }
.wrap { max-width: 80rem; margin: 0 auto; padding: 0 clamp(1rem, 3vw, 2.5rem); }

.top { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1rem;
    padding-top: 1.125rem; }
h1 { display: flex; align-items: baseline; gap: .75rem; font: 650 1.0625rem/1.2 var(--mono); }
h1 span { color: var(--soft); font-weight: 400; font-size: .875rem; }
.state {
    display: flex; align-items: center; gap: .625rem; margin-left: auto; padding: .375rem .875rem;
    border: 1px solid currentColor; border-radius: 2rem; font-size: .875rem; font-weight: 600;
    color: var(--warn);
}
.state[data-state="open"] { color: var(--good); }
.state[data-state="lost"] { color: var(--bad); background: var(--bad-wash); }
.lamp { width: .625rem; height: .625rem; border-radius: 50%; background: currentColor; flex: none; }
.state:not([data-state="open"]) .lamp { animation: blink 1.2s ease-in-out infinite; }
@keyframes blink { 50% { opacity: .2; } }

.readout {
    display: flex; flex-wrap: wrap; align-items: flex-end; gap: .5rem clamp(1.5rem, 4vw, 3.5rem);
    padding-top: clamp(1rem, 3vw, 2rem); padding-bottom: 1.25rem;
}
.rate { margin-right: auto; }
.rate b {
    display: block; font-size: clamp(4rem, 12vw, 7.5rem); line-height: .86; font-weight: 700;
    letter-spacing: -.045em; font-variant-numeric: tabular-nums;
}
.rate span { display: block; margin-top: .75rem; color: var(--soft); }
.small { display: flex; gap: clamp(1.25rem, 3vw, 2.5rem); }
.small div { display: flex; flex-direction: column-reverse; }
.small dt { color: var(--soft); font-size: .875rem; }
.small dd { font-size: 1.75rem; line-height: 1.2; font-weight: 650;
    font-variant-numeric: tabular-nums; }

.strip {
    background: var(--paper); border-block: 1px solid var(--edge);
    box-shadow: 0 18px 30px -26px rgb(0 20 24 / .55);
}
.strip canvas { display: block; width: 100%; height: 20rem; }

.caption { padding-top: .875rem; color: var(--soft); font-size: .875rem; }

.columns {
    display: grid; grid-template-columns: minmax(0, 1fr) minmax(18rem, 23rem);
    gap: 1.5rem clamp(1.5rem, 4vw, 3.5rem); padding-top: 1.5rem; padding-bottom: 3rem;
}
.bar { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; margin-bottom: .75rem; }
.bar h2 { margin-right: .5rem; }
.chips { display: flex; flex-wrap: wrap; gap: .375rem; }
button, .chip {
    font: inherit; font-size: .875rem; line-height: 1.25; min-height: 2rem; padding: .25rem .75rem;
    border: 1px solid var(--edge); border-radius: 2rem; background: transparent; color: var(--ink);
    cursor: pointer;
}
button:hover { border-color: var(--soft); }
button.main { background: var(--action); border-color: var(--action); color: var(--on-action); }
:focus-visible { outline: 3px solid var(--pen-2); outline-offset: 2px; }
.chips button { display: inline-flex; align-items: center; gap: .4375rem; font-family: var(--mono);
    font-size: .8125rem; }
.chips button::before { content: ""; width: .625rem; height: .625rem; border-radius: 50%;
    border: 2px solid var(--pen); flex: none; }
.chips button[aria-pressed="true"] { background: var(--paper); }
.chips button[aria-pressed="true"]::before { background: var(--pen); }
.chips button[aria-pressed="false"] { color: var(--soft); }
.chips small { color: var(--soft); font-size: .75rem; font-variant-numeric: tabular-nums; }
#pause { margin-left: auto; min-width: 6.5rem; }
#names { margin-bottom: .75rem; }

.feed {
    list-style: none; height: min(40rem, 72vh); overflow: auto; overscroll-behavior: auto;
    background: var(--paper); border: 1px solid var(--edge); border-radius: .5rem;
}
.feed li {
    display: grid; grid-template-columns: 6.5rem 5.75rem minmax(0, 1fr); gap: 0 1rem;
    align-items: baseline; padding: .4375rem 1rem; border-bottom: 1px solid var(--rule);
    box-shadow: inset 3px 0 var(--pen); font: .8125rem/1.55 var(--mono);
}
.feed time { color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap; }
.feed .name { color: var(--pen); font-weight: 700; }
.feed .data { white-space: pre-wrap; }
.feed .key { color: var(--soft); }
.feed .note { color: var(--soft); font-style: italic; }
.feed .gap { background: var(--bad-wash); box-shadow: inset 3px 0 var(--bad); }
.feed .gap .name { color: var(--bad); }
.empty { padding: 2.5rem 1.25rem; color: var(--soft); text-align: center; }
.feed:not(:empty) + .empty { display: none; }
.feed:empty { display: none; }
.empty { background: var(--paper); border: 1px dashed var(--rule-strong); border-radius: .5rem; }

aside { display: flex; flex-direction: column; gap: 2rem; }
aside h2 { margin-bottom: .5rem; }
aside section:first-child h2 { line-height: 2rem; }
.counters div { display: flex; align-items: baseline; gap: .75rem; padding: .375rem 0;
    border-bottom: 1px solid var(--edge); }
.counters dt { color: var(--soft); }
.counters dd { margin-left: auto; font-weight: 650; font-variant-numeric: tabular-nums; }
.counters dd.per { margin-left: 0; width: 5.5rem; text-align: right; font-weight: 400;
    font-size: .875rem; color: var(--soft); }
.hint { color: var(--soft); font-size: .875rem; }
label { display: block; margin-top: .625rem; font-size: .875rem; font-weight: 600; }
input {
    width: 100%; min-height: 2.5rem; margin-top: .25rem; padding: .375rem .75rem;
    font: 1rem/1.4 var(--mono); color: var(--ink); background: var(--field);
    border: 1px solid var(--rule-strong); border-radius: .375rem;
}
input::placeholder { color: var(--soft); opacity: 1; }
form button { margin-top: .75rem; min-height: 2.5rem; padding-inline: 1.25rem; }
#topics { margin-top: .75rem; }
#topics button::before { display: none; }
pre {
    margin-top: .5rem; padding: .75rem .875rem; font: .8125rem/1.6 var(--mono);
    white-space: pre-wrap; background: var(--paper); border: 1px solid var(--edge);
    border-radius: .375rem;
}
.said { min-height: 1.5em; margin-top: .5rem; font-size: .875rem; color: var(--soft); }
.hide { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }

@media (max-width: 60rem) { .columns { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 40rem) {
    #host { display: none; }
    .readout { padding-bottom: 1rem; }
    .rate { width: 100%; }
    .small { width: 100%; justify-content: space-between; gap: 1rem; padding-top: .75rem; }
    .small dd { font-size: 1.375rem; }
    .small dt { font-size: .8125rem; }
    button, .chips button { min-height: 2.75rem; }
    .feed { height: 68vh; }
    .feed li { grid-template-columns: minmax(0, 1fr) auto; padding-block: .5625rem; }
    .feed .name { grid-row: 1; grid-column: 1; }
    .feed time { grid-row: 1; grid-column: 2; }
    .feed .data { grid-column: 1 / -1; }
}
@media (prefers-reduced-motion: reduce) { .lamp { animation: none !important; } }
</style>
</head>
)page"
                                             R"page(<body>
<header class="wrap top">
    <h1>sse.hpp hub <span id="host"></span> <span id="node"></span></h1>
    <p class="state" id="state" data-state="connecting" role="status">
        <i class="lamp" aria-hidden="true"></i><span id="state-text">Connecting</span></p>
</header>
<main>
    <section class="wrap readout" aria-label="Now">
        <p class="rate"><b id="rate">0</b><span>events a second, received by this page</span></p>
        <dl class="small">
            <div><dt>Connections</dt><dd id="connections">&ndash;</dd></div>
            <div><dt>Connected for</dt><dd id="uptime">&ndash;</dd></div>
            <div><dt>Reconnects</dt><dd id="reconnects">0</dd></div>
        </dl>
    </section>
    <div class="strip"><canvas id="chart" role="img"
        aria-label="Strip chart: events per second, each event by name, connections"></canvas></div>
    <p class="wrap caption">One hole is one second, every event name has its pen.
        A lost connection leaves a hatched gap: stop the hub and start it again to see one.
        What was published meanwhile follows; what the hub no longer has is said in the list.</p>
    <div class="wrap columns">
        <section aria-labelledby="events-title">
            <div class="bar">
                <h2 id="events-title">Events</h2>
                <button type="button" id="pause" aria-pressed="false">Pause</button>
            </div>
            <div class="chips" id="names" role="group" aria-label="Event names to show"></div>
            <ol class="feed" id="feed" tabindex="0" aria-label="Events, newest first"></ol>
            <div class="empty" id="empty">No event yet. Start the hub with <code>--demo</code>,
                or publish one from your shell.</div>
        </section>
        <aside>
            <section aria-labelledby="hub-title">
                <h2 id="hub-title">The hub</h2>
                <dl class="counters" id="counters"></dl>
            </section>
            <section aria-labelledby="follow-title">
                <h2 id="follow-title">Follow more</h2>
                <p class="hint">A browser hears only event names that it listens to. A topic brings
                    everything below it.</p>
                <form id="follow" autocomplete="off">
                    <label for="follow-event">Event name</label>
                    <input id="follow-event" spellcheck="false" autocapitalize="none"
                        placeholder="deploy">
                    <label for="follow-topic">Topic</label>
                    <input id="follow-topic" spellcheck="false" autocapitalize="none"
                        placeholder="/demo/prices">
                    <button class="main">Follow</button>
                </form>
                <div class="chips" id="topics" role="group" aria-label="Topics followed"></div>
                <p class="said" id="said" role="status"></p>
            </section>
            <section aria-labelledby="shell-title">
                <h2 id="shell-title">From your shell</h2>
                <p class="hint">Listen:</p>
                <pre id="listen"></pre>
                <p class="hint" id="publish-hint" style="margin-top:.75rem"></p>
                <pre id="publish"></pre>
            </section>
        </aside>
    </div>
</main>
)page"
                                             R"page(<script>
"use strict";
const page = document.documentElement.dataset;
const maxRows = 200;        // the list is bounded: a page left open for a week must not grow
const maxShown = 2000;      // characters of data in one row
const maxTopics = 4;        // a browser gives six connections to one HTTP/1.1 origin, to all tabs
const silence = 8000;       // ms without statistics until a stream counts as lost
const firstNames = ["message", "price", "chat", "build", "sensor", "stats", page.gap];

const byId = id => document.getElementById(id);
const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
};
const now = () => performance.now();
const say = text => { byId("said").textContent = text; };

// >>names  What the page listens to ////////////////////////////////////////////////////////////
const names = new Map();    // name -> {pen, shown, total, last, bins, chip, figure}

// Time is kept in bins, so that drawing costs the same for one event a minute and for 10,000 a
// second. `bins` is a ring; `head` is the absolute number of its newest bin.
const binMs = 200, binCount = 330;
const rateBins = new Uint32Array(binCount);
let head = Math.floor(now() / binMs);

function advance() {
    const bin = Math.floor(now() / binMs);
    const steps = Math.min(bin - head, binCount);
    for (let i = 1; i <= steps; ++i) {
        const slot = (head + i) % binCount;
        rateBins[slot] = 0;
        for (const entry of names.values()) entry.bins[slot] = 0;
    }
    head = bin;
}

function listenTo(name) {
    if (names.has(name)) return false;
    const pen = name === "stats" ? 0 : 1 + (names.size % 7);
    const entry = {pen, shown: name !== "stats", total: 0, last: -1e9,
                   bins: new Uint16Array(binCount)};
    entry.chip = element("button", "", name + " ");
    entry.chip.type = "button";
    entry.chip.style.setProperty("--pen", `var(--pen-${pen})`);
    entry.figure = element("small", "", "0");
    entry.chip.append(entry.figure);
    entry.chip.setAttribute("aria-pressed", entry.shown);
    entry.chip.onclick = () => show(name, !entry.shown);
    byId("names").append(entry.chip);
    names.set(name, entry);
    for (const [topic, source] of sources) hear(source, topic, name);
    resize();
    return true;
}

function show(name, shown) {
    const entry = names.get(name);
    entry.shown = shown;
    entry.chip.setAttribute("aria-pressed", shown);
    if (shown) return;
    for (const row of [...byId("feed").children]) if (row.dataset.name === name) row.remove();
}

// >>sources  Topics and their streams, the connection state ////////////////////////////////////
const sources = new Map();  // topic -> {stream, open, wasOpen, lastId, heard}
const followed = new Set();
const gaps = [];            // {from, to}: times without a connection; `to` is null while it lasts
let state = "connecting", reconnects = 0, firstOpen = Infinity, since = 0;

const covers = (topic, other) =>
    topic === "/" || other === topic || other.startsWith(topic + "/");
const tidy = text => "/" + text.split("/").map(part => part.trim()).filter(Boolean).join("/");
const address = topic => (page.prefix === "/" ? topic : page.prefix + topic)
    .split("/").map(encodeURIComponent).join("/");

// A published event may be called "open" or "error": it arrives as a MessageEvent at the
// listeners of the connection's own events. Only a plain Event speaks of the connection.
const ofConnection = event => !(event instanceof MessageEvent);

function hear(source, topic, name) {
    source.stream.addEventListener(name, event => {
        if (!ofConnection(event)) receive(event, topic, source);
    });
}

// An EventSource comes back with the last id by itself; a new one is told it in its address. Each
// stream brings the statistics too, once a second.
function connect(topic, lastId = "", wasOpen = false) {
    const query = new URLSearchParams({topic});
    if (lastId) query.set("lastEventId", lastId);
    const stream = new EventSource("/hub/stats?" + query);
    const source = {stream, open: false, wasOpen, lastId, heard: now()};
    stream.addEventListener("open", event => {
        if (!ofConnection(event)) return;
        source.open = source.wasOpen = true;
        source.heard = now();
        refreshState();
    });
    stream.addEventListener("error", event => {
        if (!ofConnection(event)) return;
        source.open = false;
        // Any answer but 200 (a full hub, a proxy's 502) ends an EventSource for good.
        if (stream.readyState === EventSource.CLOSED) setTimeout(() => reopen(topic, source),
                                                                 3000 + 3000 * Math.random());
        refreshState();
    });
    for (const name of names.keys()) hear(source, topic, name);
    sources.set(topic, source);
}

function reopen(topic, source) {
    if (sources.get(topic) !== source) return;
    source.stream.close();
    connect(topic, source.lastId, source.wasOpen);
}

// A stream for every followed topic.
function syncSources() {
    const before = [...sources];
    for (const [topic, source] of before) {
        if (followed.has(topic)) continue;
        source.stream.close();
        sources.delete(topic);
    }
    for (const topic of followed) {
        if (sources.has(topic)) continue;
        // A stream that brought the topic until now had all of it up to its last id.
        const wider = before.find(([other]) => covers(other, topic));
        connect(topic, wider?.[1].lastId);
    }
    refreshState();
    drawTopics();
}

function refreshState() {
    const all = [...sources.values()];
    const lost = state === "lost" || all.some(source => source.wasOpen && !source.open);
    const next = all.every(source => source.open) ? "open" : lost ? "lost" : "connecting";
    if (next === state) return;
    if (next === "open") {
        if (state === "lost") byId("reconnects").textContent = ++reconnects;
        since = now();
        firstOpen = Math.min(firstOpen, since);
        const gap = gaps.at(-1);
        if (gap) gap.to ??= now();
    }
    if (next === "lost") {
        gaps.push({from: now(), to: null});
        byId("connections").textContent = "–";
    }
    state = next;
    byId("state").dataset.state = state;
    byId("state-text").textContent = {connecting: "Connecting", open: "Connected",
                                      lost: "Connection lost, trying again"}[state];
}

// >>follow  The form, the topics as buttons, the address bar ///////////////////////////////////
// Topics followed never contain one another: an event does not say its topic, so one that came
// through two streams could not be told from two events.
function follow(topic) {
    if (followed.has(topic)) return `Already following ${topic}.`;
    const related = [...followed].filter(other => covers(other, topic) || covers(topic, other));
    if (followed.size - related.length >= maxTopics)
        return `A page follows at most ${maxTopics} topics. Remove one first.`;
    for (const other of related) followed.delete(other);
    followed.add(topic);
    return related.length === 0 ? `Following ${topic}.`
                                : `Following ${topic} instead of ${related.join(", ")}.`;
}

function unfollow(topic) {
    followed.delete(topic);
    if (followed.size === 0) followed.add("/");
    say(`No longer following ${topic}.`);
    syncSources();
    remember();
}

function drawTopics() {
    byId("topics").replaceChildren(...[...followed].map(topic => {
        const only = topic === "/";
        const chip = element("button", "", only ? "/ (everything)" : `${topic} \u00d7`);
        chip.type = "button";
        chip.disabled = only;
        if (!only) chip.setAttribute("aria-label", `Stop following ${topic}`);
        chip.onclick = () => unfollow(topic);
        return chip;
    }));
}

// What is followed stands in the address, so that a link or a reload keeps it.
function remember() {
    const query = new URLSearchParams();
    for (const name of names.keys()) if (!firstNames.includes(name)) query.append("event", name);
    for (const topic of followed) if (topic !== "/") query.append("topic", topic);
    history.replaceState(null, "", query.size ? "?" + query : location.pathname);
}

byId("follow").onsubmit = event => {
    event.preventDefault();
    const name = byId("follow-event"), topic = byId("follow-topic");
    const said = [];
    if (name.value)
        said.push(listenTo(name.value) ? `Listening to ${name.value}.`
                                       : `Already listening to ${name.value}.`);
    if (topic.value.trim()) said.push(follow(tidy(topic.value)));
    say(said.join(" ") || "Give an event name, a topic, or both.");
    name.value = topic.value = "";
    syncSources();
    remember();
};

// >>feed  Events as they arrive ////////////////////////////////////////////////////////////////
let waiting = [];           // rows not yet drawn, oldest first, at most maxRows
let paused = false, held = 0;

function receive(event, topic, source) {
    const entry = names.get(event.type);
    const stats = event.type === "stats" && statsIn(event.data);
    if (stats) {
        source.heard = now();
        if (source !== sources.values().next().value) return; // all of them bring the same
        showStats(stats);
    }
    advance();
    const slot = head % binCount;
    const id = event.lastEventId === source.lastId ? "" : event.lastEventId;
    source.lastId = event.lastEventId;  // a browser repeats it on events that have none
    entry.total += 1;
    entry.last = now();
    entry.bins[slot] += 1;
    if (!stats) rateBins[slot] += 1;
    if (!entry.shown) return;
    waiting.push({name: event.type, pen: entry.pen, data: event.data, topic, id,
                  at: new Date()});
    if (waiting.length > maxRows) waiting.shift();
    if (paused) byId("pause").textContent = `Resume (${++held} new)`;
}

const clock = date => date.toTimeString().slice(0, 8);
const cut = text => text.length <= maxShown ? text : text.slice(0, maxShown);

// A flat look at a JSON object: its keys in grey, its values in ink. Anything else as it came.
function dataParts(data) {
    if (data.startsWith("{") && data.length <= maxShown) {
        try {
            return Object.entries(JSON.parse(data)).flatMap(([key, value], at) => [
                (at ? "  " : ""), element("span", "key", key + " "),
                typeof value === "string" ? value : JSON.stringify(value)]);
        } catch { /* not JSON: shown as it came */ }
    }
    const rest = data.length - maxShown;
    return rest <= 0 ? [data]
                     : [cut(data), element("span", "note", ` … ${rest} characters more`)];
}

// What the hub cannot send any more. Anybody with the token can publish an event of this name:
// one that is no gap is shown as it came.
function gapText(event) {
    let gap;
    try { gap = JSON.parse(event.data); } catch { return ""; }
    const {reason, from, to, missed} = gap ?? {};
    if (![reason, from, to].every(part => typeof part === "string")) return "";
    const loss = !Number.isFinite(missed) ? "may have missed messages"
        : `missed ${count.format(missed)} ${missed === 1 ? "message" : "messages"}`;
    return cut(`${loss} (${reason}), from ${from} to ${to}`);
}

function rowOf(event) {
    const row = element("li");
    const gap = event.name === page.gap && gapText(event);
    if (gap) row.className = "gap";
    row.dataset.name = event.name;
    row.style.setProperty("--pen", `var(--pen-${event.pen})`);
    const time = element("time", "", clock(event.at) + "." +
                         String(event.at.getMilliseconds()).padStart(3, "0"));
    time.dateTime = event.at.toISOString();
    const data = element("span", "data");
    data.append(...gap ? [gap] : dataParts(event.data));
    const notes = [event.id && `id ${cut(event.id)}`,
                   followed.size > 1 && `through ${event.topic}`].filter(Boolean);
    if (notes.length) data.append(element("span", "note", "  " + notes.join(", ")));
    row.append(time, element("span", "name", event.name), data);
    return row;
}

function drawFeed() {
    if (paused || waiting.length === 0) return;
    const feed = byId("feed");
    const shown = waiting.filter(event => names.get(event.name).shown);
    feed.prepend(...shown.reverse().map(rowOf));
    while (feed.children.length > maxRows) feed.lastChild.remove();
    waiting = [];
}

byId("pause").onclick = () => {
    paused = !paused;
    held = 0;
    byId("pause").textContent = paused ? "Resume" : "Pause";
    byId("pause").setAttribute("aria-pressed", paused);
};
)page"
                                             R"page(
// >>stats  The hub's own counters, which come each second on every stream //////////////////////
const count = new Intl.NumberFormat("en");
const amount = bytes => {
    const units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let unit = 0;
    for (; bytes >= 1000 && unit < 5; ++unit) bytes /= 1000;
    return `${bytes.toFixed(unit && bytes < 100 ? 1 : 0)} ${units[unit]}`;
};
const figures = [
    {key: "connections", label: "Connections open"},
    {key: "streams", label: "Event streams open"},
    {key: "published", label: "Messages published", rate: true},
    {key: "delivered", label: "Events delivered", rate: true},
    {key: "bytes", label: "Bytes sent", rate: true, format: amount},
    {key: "lagged", label: "Clients cut off for lag"},
    {key: "unreachable", label: "Clients out of reach"},
    {key: "gaps", label: "Gaps announced"},
    {key: "conflated", label: "Messages conflated"},
];
const connections = [];     // {at, value}
let before = null;

for (const figure of figures) {
    const line = element("div");
    figure.value = element("dd", "", "\u2013");
    figure.per = element("dd", "per");
    line.append(element("dt", "", figure.label), figure.value, figure.per);
    byId("counters").append(line);
}

// Anybody with the token can publish an event called `stats`: only numbers and a name are believed.
function statsIn(text) {
    let stats;
    try { stats = JSON.parse(text); } catch { return null; }
    const isName = typeof stats?.node === "string" && stats.node.length <= 255;
    return isName && figures.every(({key}) => Number.isFinite(stats[key]) && stats[key] >= 0)
        ? stats : null;
}

function showStats(stats) {
    const at = now();
    for (const {key, value, per, rate, format = count.format} of figures) {
        value.textContent = format(stats[key]);
        // The hub restarted when a counter fell; the first second after that has no rate.
        const grown = before ? (stats[key] - before.stats[key]) / ((at - before.at) / 1000) : -1;
        if (rate) per.textContent = grown >= 0 ? `${format(Math.round(grown))}/s` : "";
    }
    byId("node").textContent = `at ${stats.node}`; // a balancer may have led here, or elsewhere
    byId("connections").textContent = count.format(stats.connections);
    connections.push({at, value: stats.connections});
    if (connections.length > 90) connections.shift();
    before = {stats, at};
}

// >>chart  The strip ///////////////////////////////////////////////////////////////////////////
const canvas = byId("chart"), ink = canvas.getContext("2d");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const size = {};            // all lengths in CSS pixels
let colors = {}, rateTop = 5, rateScale = 5, connectionScale = 2;

function readColors() {
    const style = getComputedStyle(document.documentElement);
    const read = name => style.getPropertyValue("--" + name).trim();
    colors = Object.fromEntries(["desk", "paper", "rule", "rule-strong", "ink", "soft", "bad"].map(
        name => [name, read(name)]));
    colors.pens = Array.from({length: 8}, (unused, pen) => read("pen-" + pen));
    colors.mono = read("mono");
}

function resize() {
    const width = canvas.parentElement.clientWidth, narrow = width < 640;
    const edge = Math.max((width - 1280) / 2, 0) + Math.min(Math.max(16, width * .03), 40);
    Object.assign(size, {
        width, narrow, edge, band: 18, lane: narrow ? 17 : 21, span: narrow ? 30000 : 60000,
        left: edge + (narrow ? 84 : 128), right: width - edge - 10, rate: narrow ? 84 : 124,
        connections: 40,
    });
    size.rateTop = size.band + 12;
    size.lanesTop = size.rateTop + size.rate + 14;
    size.connectionsTop = size.lanesTop + names.size * size.lane + 14;
    size.axis = size.connectionsTop + size.connections + 18;
    size.height = size.axis + 10 + size.band;
    const scale = devicePixelRatio || 1;
    canvas.style.height = size.height + "px";
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(size.height * scale);
    ink.setTransform(scale, 0, 0, scale, 0, 0);
    readColors();
    draw();
}

function text(words, x, y, color, align = "left", weight = 400) {
    ink.font = `${weight} ${size.narrow ? 11 : 12}px ${colors.mono}`;
    ink.textAlign = align;
    ink.textBaseline = "middle";
    ink.fillStyle = color;
    ink.fillText(words, x, y);
}

function line(x1, y1, x2, y2, color) {
    ink.strokeStyle = color;
    ink.lineWidth = 1;
    ink.beginPath();
    ink.moveTo(x1, y1);
    ink.lineTo(x2, y2);
    ink.stroke();
}

// A round number, the smallest that holds the value.
function scaleFor(value) {
    const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
    return [1, 2, 3, 4, 6, 8, 10].map(step => step * power).find(step => step >= value);
}

function drawPaper(at, x) {
    const {width, height, band, axis, left, right, rateTop, connectionsTop} = size;
    ink.fillStyle = colors.paper;
    ink.fillRect(0, 0, width, height);
    const origin = Date.now() - now(); // moves when the clock is set, or the machine slept
    const second = Math.floor((origin + at) / 1000);
    const ahead = Math.ceil((width - right) / (right - x(at - 1000))) + 1;
    for (let tick = second + ahead, where = width; where > -20; --tick) {
        where = x(tick * 1000 - origin);
        ink.fillStyle = colors.desk;
        for (const middle of [band / 2 + 1, height - band / 2 - 1]) {
            ink.beginPath();
            ink.arc(where, middle, size.narrow ? 2.75 : 3.75, 0, 7);
            ink.fill();
        }
        if (tick > second || tick % 5) continue;
        line(where, rateTop - 6, where, connectionsTop + size.connections + 6, colors.rule);
        if (tick % 10 === 0) text(clock(new Date(tick * 1000)), where, axis + 2, colors.soft,
                                  "center");
    }
}

function drawGaps(at, x) {
    const top = size.rateTop - 6, bottom = size.connectionsTop + size.connections + 6;
    while (gaps.length && gaps[0].to !== null && gaps[0].to < at - size.span) gaps.shift();
    for (const gap of gaps) {
        const from = Math.max(x(gap.from), 0), to = x(gap.to ?? at);
        ink.save();
        ink.beginPath();
        ink.rect(from, top, to - from, bottom - top);
        ink.clip();
        ink.globalAlpha = .5;
        const shift = x(0) % 9;   // the hatching lies on the paper and moves with it
        for (let at = from - bottom - 9; at < to + 9; at += 9) {
            const foot = Math.floor(at / 9) * 9 + shift;
            line(foot, bottom, foot + bottom - top, top, colors.bad);
        }
        ink.restore();
        if (to - from > 100) {
            ink.fillStyle = colors.paper;
            ink.fillRect((from + to) / 2 - 48, top + 12, 96, 20);
            text("no connection", (from + to) / 2, top + 22, colors.bad, "center", 700);
        }
    }
}

const inGap = at => gaps.some(gap => at >= gap.from && at < (gap.to ?? Infinity));
const ringAt = (ring, bin) => bin < 0 || bin > head || head - bin >= binCount
    ? 0 : ring[bin % binCount];

function drawRate(at, x) {
    const bins = Math.ceil(size.span / binMs) + 1;
    const points = [];      // a second's events, seen from each bin
    for (let bin = head - bins; bin <= head; ++bin) {
        let sum = 0;
        for (let back = 0; back < 5; ++back) sum += ringAt(rateBins, bin - back);
        // The newest bin is not over yet: what it lacks of a second comes from the other end.
        if (bin === head) sum += ringAt(rateBins, bin - 5) * (1 - at / binMs % 1);
        points.push({at: Math.min((bin + 1) * binMs, at), sum});
    }
    rateTop = scaleFor(Math.max(5, ...points.map(point => point.sum)));
    rateScale += (rateTop - rateScale) * (calm.matches ? 1 : .15);
    const bottom = size.rateTop + size.rate;
    const y = value => bottom - value / rateScale * size.rate;
    for (const step of [0, .5, 1]) {
        const at = bottom - step * size.rate;
        line(0, at, size.right, at, step ? colors.rule : colors["rule-strong"]);
    }
    const runs = [];        // the pen is lifted while there is no connection
    let run = [];
    for (const point of points) {
        if (point.at < firstOpen || inGap(point.at)) { run = []; continue; }
        if (run.length === 0) runs.push(run);
        run.push(point);
    }
    for (const run of runs) {
        const line = new Path2D(), area = new Path2D();
        area.moveTo(x(run[0].at), bottom);
        for (const point of run) {
            line.lineTo(x(point.at), y(point.sum));
            area.lineTo(x(point.at), y(point.sum));
        }
        area.lineTo(x(run.at(-1).at), bottom);
        ink.globalAlpha = .09;
        ink.fillStyle = colors.ink;
        ink.fill(area);
        ink.globalAlpha = 1;
        ink.strokeStyle = colors.ink;
        ink.lineWidth = 1.75;
        ink.lineJoin = "round";
        ink.stroke(line);
    }
    return y(points.at(-1).sum);
}

function drawLanes(at, x) {
    const bins = Math.ceil(size.span / binMs) + 1;
    const thick = Math.max(2, (x(binMs) - x(0)) - 1);
    let y = size.lanesTop + size.lane / 2;
    for (const entry of names.values()) {
        line(0, y, size.right, y, colors.rule);
        ink.fillStyle = colors.pens[entry.pen];
        ink.globalAlpha = entry.shown ? 1 : .45;
        for (let bin = head - bins; bin <= head; ++bin) {
            const many = ringAt(entry.bins, bin);
            if (!many) continue;
            const tall = Math.min(size.lane - 3, 7 + 2.5 * Math.log2(many));
            ink.fillRect(x((bin + .5) * binMs) - thick / 2, y - tall / 2, thick, tall);
        }
        ink.globalAlpha = 1;
        y += size.lane;
    }
}

function drawConnections(at, x) {
    const bottom = size.connectionsTop + size.connections;
    const wanted = scaleFor(Math.max(2, ...connections.map(point => point.value)));
    connectionScale += (wanted - connectionScale) * (calm.matches ? 1 : .15);
    const y = value => bottom - value / connectionScale * size.connections;
    line(0, bottom, size.right, bottom, colors["rule-strong"]);
    ink.beginPath();
    connections.forEach((point, index) => {
        const next = connections[index + 1]?.at ?? at;
        const end = gaps.reduce((end, gap) => gap.from > point.at ? Math.min(end, gap.from) : end,
                                next);
        const joined = index && !inGap(point.at - 1) &&
            !gaps.some(gap => gap.from > connections[index - 1].at && gap.from < point.at);
        ink[joined ? "lineTo" : "moveTo"](x(point.at), y(point.value));
        ink.lineTo(x(end), y(point.value));
    });
    ink.strokeStyle = colors.ink;
    ink.lineWidth = 1.75;
    ink.stroke();
}

// The unmoving part: names on the left, pens on the right. A pen that just wrote stands out.
function drawFrame(at, rateY) {
    const {left, right, edge, height, band} = size;
    ink.fillStyle = colors.paper;
    ink.fillRect(0, band, left - 14, height - 2 * band);
    const fade = ink.createLinearGradient(left - 14, 0, left + 10, 0);
    fade.addColorStop(0, colors.paper);
    fade.addColorStop(1, colors.paper + "00");
    ink.fillStyle = fade;
    ink.fillRect(left - 14, band, 24, height - 2 * band);
    const rateBottom = size.rateTop + size.rate;
    text(size.narrow ? "events/s" : "events a second", edge, size.rateTop + 1, colors.ink, "left",
         700);
    text(`to ${rateTop}`, edge, size.rateTop + 18, colors.soft);
    text("0", edge, rateBottom, colors.soft);
    let y = size.lanesTop + size.lane / 2;
    for (const [name, entry] of names) {
        const room = size.narrow ? 8 : 13;
        text(name.length > room ? name.slice(0, room - 1) + "…" : name, edge, y,
             entry.shown ? colors.pens[entry.pen] : colors.soft, "left", 700);
        const kick = calm.matches ? 0 : Math.exp((entry.last - at) / 180);
        const half = 3.5 + 2.5 * kick;
        ink.fillStyle = colors.pens[entry.pen];
        ink.beginPath();
        ink.moveTo(right - 1 - 3 * kick, y);
        ink.lineTo(right + 8, y - half);
        ink.lineTo(right + 8, y + half);
        ink.fill();
        y += size.lane;
    }
    text("connections", edge, size.connectionsTop + 6, colors.ink,
         "left", 700);
    text(connections.length ? count.format(connections.at(-1).value) : "–", edge,
         size.connectionsTop + 24, colors.soft);
    if (state !== "open") return;
    ink.fillStyle = colors.ink;
    ink.beginPath();
    ink.arc(right, rateY, 4, 0, 7);
    ink.fill();
}

function draw() {
    advance();
    const at = now();
    const x = time => size.right - (at - time) * (size.right - size.left) / size.span;
    drawPaper(at, x);
    const rateY = drawRate(at, x);
    drawLanes(at, x);
    drawConnections(at, x);
    drawGaps(at, x);
    drawFrame(at, rateY);
}

// >>run  Frames, seconds, start ////////////////////////////////////////////////////////////////
let drawn = 0, fed = 0;

function frame(at) {
    if (at - fed >= 100) { fed = at; drawFeed(); }
    if (!paused && at - drawn >= (calm.matches ? 1000 : 30)) { drawn = at; draw(); }
    requestAnimationFrame(frame);
}

function showRate() {
    advance();
    let sum = 0;
    for (let back = 1; back <= 15; ++back) sum += ringAt(rateBins, head - back);
    const rate = sum * 1000 / (15 * binMs);
    byId("rate").textContent = rate === 0 ? "0" : rate < 100 ? rate.toFixed(1)
                                                             : count.format(Math.round(rate));
    return byId("rate").textContent;
}

function everySecond() {
    // A peer that vanished without a word (sleep, a changed network) closes nothing. The hub
    // sends its counters each second, so silence tells.
    for (const [topic, source] of [...sources]) {
        if (!source.open || now() - source.heard <= silence) continue;
        source.open = false;
        reopen(topic, source);
        refreshState();
    }
    const rate = showRate();
    const seconds = Math.floor((now() - since) / 1000);
    const two = value => String(value).padStart(2, "0");
    byId("uptime").textContent = state !== "open" ? "–" : seconds < 3600
        ? `${Math.floor(seconds / 60)}:${two(seconds % 60)}`
        : `${Math.floor(seconds / 3600)} h ${two(Math.floor(seconds / 60) % 60)}`;
    for (const entry of names.values()) entry.figure.textContent = count.format(entry.total);
    document.title = (state === "open" ? `${rate}/s` : "offline") + " · sse.hpp hub";
    canvas.setAttribute("aria-label", `Strip chart of the last ${size.span / 1000} seconds: ` +
        `${rate} events a second, ${connections.at(-1)?.value ?? "unknown"} connections, ` +
        `${gaps.length} gaps in the connection`);
}

byId("host").textContent = location.host;
byId("listen").textContent = `curl -N ${location.origin}${address("/")}`;
byId("publish-hint").textContent = page.publish === "on" ? "Publish:"
    : "Publishing is off. Start the hub with --publish-token to publish like this:";
byId("publish").textContent = `curl -d event=chat -d data=Hello \\\n` +
    `  -H "Authorization: Bearer $TOKEN" \\\n  ${location.origin}/publish/demo/hello`;

for (const name of firstNames) listenTo(name);
const asked = new URLSearchParams(location.search);
for (const name of asked.getAll("event")) if (name) listenTo(name);
for (const topic of asked.getAll("topic")) follow(tidy(topic));
if (followed.size === 0) followed.add("/");
syncSources();
new ResizeObserver(resize).observe(canvas.parentElement);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", resize);
setInterval(everySecond, 1000);
setInterval(showRate, 250);
requestAnimationFrame(frame);
</script>
</body>
</html>
)page";
