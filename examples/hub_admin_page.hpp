// hub_admin_page.hpp - the page that hub.cpp serves at GET /admin/ with --admin-token: who is
// there, what they follow, and buttons that end streams. Edit it here, by hand; rebuild hub to see
// it.
//
// The page itself is for anyone and has no data. It asks for the token, keeps it in memory, and
// sends it in the Authorization field of each request: no other page can make a browser do that.
//
// Users and topics are named by clients. They are written as text (textContent), never as HTML,
// which the policy in the head has the browser enforce, and in <bdi>, so that none can turn around
// the text beside it.
#pragma once

#include <string_view>

inline constexpr std::string_view hub_admin_page = R"page(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; connect-src 'self';
    img-src data:; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none';
    form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'">
<title>sse.hpp hub: who is there</title>
<link rel="icon" href="data:,">
<style>
:root { --desk: #e6ecea; --paper: #fcfefd; --ink: #10262c; --soft: #4d636a; --edge: #c9d7d3;
    --pen: #1463c4; --good: #0d7a45; --warn: #8f5a00; --bad: #c2271b; }
@media (prefers-color-scheme: dark) { :root { --desk: #0b1316; --paper: #121e23; --ink: #e4efee;
    --soft: #93a9af; --edge: #263a42; --pen: #6cb0ff; --good: #4fd18b; --warn: #e8b339;
    --bad: #ff7b6b; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0 auto; max-width: 80rem; padding: 1rem clamp(1rem, 3vw, 2.5rem) 3rem;
    background: var(--desk); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
    overflow-wrap: anywhere; -webkit-text-size-adjust: 100%; }
header { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline;
    gap: .25rem 1rem; margin-bottom: 1rem; }
h1, h2, p, ol, dl, dd { margin: 0; padding: 0; }
h1 { font: 650 1.0625rem ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
h2 { font-size: 1.0625rem; font-weight: 650; }
#state { font-weight: 600; color: var(--warn); }
#state[data-state="open"] { color: var(--good); }
#state[data-state="closed"] { color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr));
    gap: .75rem 1rem; margin-bottom: 1.5rem; }
.figures div { display: flex; flex-direction: column-reverse; }
.figures dt { color: var(--soft); font-size: .875rem; }
.figures dd { font-size: 1.5rem; line-height: 1.2; font-weight: 650;
    font-variant-numeric: tabular-nums; }
.columns { display: grid; grid-template-columns: minmax(0, 1fr) minmax(16rem, 24rem); gap: 2rem; }
form { display: flex; flex-wrap: wrap; align-items: end; gap: .5rem .75rem; margin: .5rem 0 1rem; }
label { display: flex; flex-direction: column; font-size: .875rem; font-weight: 600;
    flex: 1 1 9rem; }
label.check { flex-direction: row; align-items: center; gap: .5rem; flex: none; min-height: 2.5rem; }
input, button { font: inherit; min-height: 2.5rem; padding: .25rem .75rem; color: inherit;
    background: var(--paper); border: 1px solid var(--soft); border-radius: .375rem; min-width: 0; }
input[type="checkbox"] { width: 1.25rem; min-height: 1.25rem; accent-color: var(--pen); }
button { cursor: pointer; font-size: .875rem; }
button.main { color: var(--paper); background: var(--ink); border-color: var(--ink); }
button.end { color: var(--bad); border-color: currentColor; }
button.link { padding: 0 .25rem; min-height: 1.75rem; border-color: transparent;
    background: transparent; color: var(--pen); text-align: start; text-decoration: underline; margin-inline-start: -.25rem; }
input { font-weight: 400; }
button:disabled { cursor: default; opacity: .55; }
:focus-visible { outline: 3px solid var(--pen); outline-offset: 2px; }
.list { list-style: none; background: var(--paper); border: 1px solid var(--edge);
    border-radius: .5rem; }
.list:empty { display: none; }
.list li { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 1rem;
    align-items: center; padding: .5rem 1rem; border-bottom: 1px solid var(--edge); }
.list li:last-child { border-bottom: 0; }
.list p { font-size: .875rem; color: var(--soft); }
.list .far { color: var(--warn); font-weight: 650; }
.bar { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1rem; margin: .75rem 0; }
.hint { color: var(--soft); font-size: .875rem; }
#said { min-height: 1.5em; font-size: .875rem; }
#said.failed { color: var(--bad); }
@media (max-width: 60rem) { .columns { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 40rem) { input, button, button.link { min-height: 2.75rem; } }
</style>
</head>
<body>
<header><h1>who is there <bdi id="node"></bdi></h1><p id="state" role="status">Closed</p></header>
<main>
<form id="enter" autocomplete="off">
    <label>Token, of the hub's --admin-token
        <input id="token" type="password" autocomplete="off" required></label>
    <button class="main">Enter</button>
</form>
<p id="said" role="status"></p>
<div id="inside" hidden>
<dl class="figures" id="figures"></dl>
<div class="columns">
<section aria-labelledby="streams-title">
    <h2 id="streams-title">Streams</h2>
    <form id="filter" autocomplete="off">
        <label>User <input id="user" spellcheck="false" autocapitalize="none"></label>
        <label>Gets what is published to
            <input id="topic" spellcheck="false" autocapitalize="none" placeholder="/prices"></label>
        <label>Follows exactly
            <input id="follows" spellcheck="false" autocapitalize="none"></label>
        <label class="check"><input id="lagging" type="checkbox"> Furthest behind first</label>
        <button class="main">Show</button>
    </form>
    <div class="bar">
        <p id="total" class="hint"></p>
        <button type="button" id="first" disabled>First page</button>
        <button type="button" id="next" disabled>Next page</button>
        <button type="button" id="end-all" class="end" disabled>End all of these</button>
    </div>
    <ol class="list" id="streams" aria-label="Streams"></ol>
</section>
<section aria-labelledby="topics-title">
    <h2 id="topics-title">Topics</h2>
    <p class="hint" id="topics-total"></p>
    <ol class="list" id="topics" aria-label="Topics"></ol>
    <h2 style="margin-top:2rem">Drain</h2>
    <p class="hint">Disconnects all clients, spread over some seconds, and ends this hub.</p>
    <form id="drain">
        <label>Seconds <input id="window" type="number" min="0" max="86400" value="5"
            required></label>
        <button class="end">Drain</button>
    </form>
</section>
</div>
</div>
</main>
)page"
                                                   R"page(<script type="module">
import { connect } from "/sse.js";

const byId = id => document.getElementById(id);
const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
};
const count = new Intl.NumberFormat("en");
const short = text => text.length > 300 ? text.slice(0, 300) + "…" : text;
const limit = 100;
let token = "", stream = null, filter = {}, after = "", next = null, before = null;
let drained = false;

function say(text, failed = false) {
    byId("said").textContent = text;
    byId("said").className = failed ? "failed" : "";
}

function time(ms) {
    const s = Math.floor(ms / 1000);
    return s < 120 ? `${s} s` : s < 7200 ? `${Math.floor(s / 60)} min` : s < 172800
        ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} days`;
}

// >>requests
const query = parts => new URLSearchParams(Object.entries(parts).filter(([, value]) => value));

async function ask(method, path, parts = {}) {
    const response = await fetch(`/admin${path}?${query(parts)}`, {
        method, headers: { Authorization: `Bearer ${token}` }, credentials: "omit",
        cache: "no-store",
    });
    const text = await response.text();
    let body;
    try { body = JSON.parse(text); } catch { body = { error: text.trim() }; }
    if (!response.ok) throw new Error(body.error || `status ${response.status}`);
    return body;
}

async function end(what, path, parts, sentence) {
    if (sentence && !confirm(sentence)) return;
    try {
        const { ending } = await ask("DELETE", path, parts);
        say(`${what}: ${count.format(ending)} told to end`);
    } catch (error) {
        say(`${what}: ${error.message}`, true);
    }
}

// >>rows  One for each key, kept while it is listed: focus stays where it is
function rowsIn(list, make) {
    const rows = new Map();
    return (all, keyOf) => {
        const gone = new Set(rows.keys());
        all.forEach((one, at) => {
            const key = keyOf(one);
            gone.delete(key);
            let row = rows.get(key);
            if (!row) rows.set(key, row = make(one));
            row.update(one);
            if (list.children[at] !== row.item) list.insertBefore(row.item, list.children[at] ?? null);
        });
        for (const key of gone) {
            rows.get(key).item.remove();
            rows.delete(key);
        }
    };
}

function button(text, className, act, label) {
    const made = element("button", className, text);
    made.type = "button";
    if (label) made.setAttribute("aria-label", label);
    made.addEventListener("click", act);
    return made;
}

function named(text, act, label) {
    const made = button(undefined, "link", act);
    made.append(element("bdi", "", short(text)));
    made.title = label;
    return made;
}

const showStreams = rowsIn(byId("streams"), one => {
    const item = element("li"), lines = element("div"), name = element("p"), topics = element("p");
    const where = element("p"), behind = element("span");
    item.dataset.id = one.id;
    name.append(element("b", "", `#${one.id}`));
    if (one.user) name.append(" ", named(one.user, () => show({ user: one.user }), "Show this user"));
    const client = element("bdi", "", `${one.client}${one.node && ` at ${one.node}`}`);
    const age = element("span");
    where.append(client, ", for ", age, ", ", behind);
    lines.append(name, topics, where);
    item.append(lines, button("End", "end", () => end(`Stream ${one.id}`, `/streams/${one.id}`),
                              `End stream ${one.id}`));
    let told = "";
    return {
        item,
        update(now) {
            age.textContent = time(now.age_ms);
            behind.textContent = now.behind
                ? `${count.format(now.behind)} messages behind, ${time(now.behind_ms)}` : "up to date";
            behind.className = now.behind ? "far" : "";
            const key = JSON.stringify([now.topics, now.topics_left_out]);
            if (key === told) return;
            told = key;
            topics.replaceChildren(...now.topics.map(topic => named(
                topic, () => show({ follows: topic }), "Show who follows this")));
            if (now.topics_left_out) topics.append(` and ${now.topics_left_out} more`);
            if (!now.topics.length && !now.topics_left_out) topics.append("no topic");
        },
    };
});

const showTopics = rowsIn(byId("topics"), one => {
    const item = element("li"), lines = element("div"), name = element("p"), figures = element("p");
    name.append(named(one.topic, () => show({ follows: one.topic }), "Show who follows this"));
    lines.append(name, figures);
    item.append(lines, button("End", "end", () => end(
        one.topic, "/streams", { follows: one.topic },
        `End all streams that follow ${short(one.topic)}?`), `End all that follow ${one.topic}`));
    return {
        item,
        update(now) {
            figures.textContent = `${count.format(now.streams)} ` +
                (now.streams === 1 ? "stream" : "streams") +
                (now.behind ? `, up to ${count.format(now.behind)} messages behind` : "");
        },
    };
});

// >>figures
const figures = [
    ["streams", "Streams"], ["connections", "Connections"], ["published", "Published", true],
    ["delivered", "Delivered", true], ["lagged", "Cut off for lag"], ["gaps", "Gaps told"],
    ["refused", "Refused"], ["revoked", "Revoked"], ["furthest", "Furthest behind"],
    ["bus", "Bus"],
].map(([key, label, rate]) => {
    const line = element("div"), value = element("dd", "", "–");
    line.append(element("dt", "", rate ? `${label} a second` : label), value);
    byId("figures").append(line);
    return { key, value, rate };
});

// Streams by how far they are behind: the bound of the last group that has any.
function furthest(lag) {
    const last = lag.findLast(({ streams }) => streams > 0);
    return !last || last.up_to === 0 ? "none" : last.up_to === undefined
        ? "over 10,000" : `up to ${count.format(last.up_to)}`;
}

function showStatus(now) {
    const at = performance.now();
    const shown = { ...now, revoked: now.ended.revoked, furthest: furthest(now.lag),
                    bus: now.bus_up === null ? "none" : now.bus_up ? "up" : "down" };
    for (const { key, value, rate } of figures) {
        const grown = before && (now[key] - before.now[key]) / ((at - before.at) / 1000);
        value.textContent = typeof shown[key] === "string" ? shown[key] : !rate
            ? count.format(shown[key]) : grown >= 0 ? count.format(Math.round(grown)) : "–";
    }
    byId("node").textContent = now.node && `at ${now.node}`;
    before = { now, at };
    if (now.draining) {
        drained = true;
        tell("lost", "Draining");
    }
}

function showList({ streams, total, next: following, missing, complete }) {
    showStreams(streams, one => one.id);
    const absent = missing.length ? `, without those of ${missing.join(", ")}`
        : complete ? "" : ", and maybe those of other servers";
    byId("total").textContent = `${count.format(streams.length)} of ${count.format(total)}${absent}`;
    next = following;
    byId("next").disabled = next === null;
    byId("first").disabled = after === "";
    byId("end-all").disabled = !selects() || total === 0;
}

// >>stream
const selects = () => Boolean(filter.user || filter.topic || filter.follows);

function tell(state, text) {
    byId("state").dataset.state = state;
    byId("state").textContent = text;
}

function open() {
    stream?.close();
    before = null;
    const mine = stream = connect(`/admin/live?${query({ ...filter, after, limit })}`, {
        headers: () => ({ Authorization: `Bearer ${token}` }), credentials: "omit", shared: false,
        heartbeat: 4000,
        onstate: (state, { status }) => {
            if (mine !== stream) return;
            if (state === "open") {
                drained = false;
                byId("enter").hidden = true;
                byId("inside").hidden = false;
                return tell("open", "Connected");
            }
            if (state === "connecting") return tell("lost", drained ? "Drained" : "Connecting");
            tell("closed", "Closed");
            if (status !== 401) return say(status === 400 ? "There is no such topic or user"
                                                          : `The hub says ${status}`, true);
            token = "";
            byId("enter").hidden = false;
            byId("inside").hidden = true;
            say("The token is wrong", true);
            byId("token").focus();
        },
    });
    for (const [type, act] of [["status", showStatus], ["streams", showList]])
        mine.addEventListener(type, event => mine === stream && act(JSON.parse(event.data)));
    mine.addEventListener("topics", event => {
        if (mine !== stream) return;
        const { topics, total } = JSON.parse(event.data);
        showTopics(topics, one => one.topic);
        byId("topics-total").textContent = `${count.format(topics.length)} of ` +
            `${count.format(total)}, of the streams selected`;
    });
}

function show(wanted, from = "") {
    filter = wanted;
    after = from;
    for (const name of ["user", "topic", "follows"]) byId(name).value = filter[name] ?? "";
    byId("lagging").checked = filter.order === "lag";
    byId("end-all").disabled = true;
    say("");
    open();
}

byId("enter").addEventListener("submit", event => {
    event.preventDefault();
    token = byId("token").value;
    byId("token").value = "";
    show({});
});
byId("filter").addEventListener("submit", event => {
    event.preventDefault();
    show({ user: byId("user").value, topic: byId("topic").value, follows: byId("follows").value,
           order: byId("lagging").checked ? "lag" : "" });
});
byId("first").addEventListener("click", () => show(filter));
byId("next").addEventListener("click", () => show(filter, String(next)));
byId("end-all").addEventListener("click", () => {
    const { user, topic, follows } = filter;
    end("These", "/streams", { user, topic, follows }, `End all ${byId("total").textContent
        .replace(/^.* of /, "")} streams that are selected?`);
});
byId("drain").addEventListener("submit", async event => {
    event.preventDefault();
    if (!confirm("Disconnect all clients, and end this hub?")) return;
    try {
        await ask("POST", "/drain", { window: byId("window").value });
        say("The hub drains");
    } catch (error) {
        say(`Drain: ${error.message}`, true);
    }
});
</script>
</body>
</html>
)page";
