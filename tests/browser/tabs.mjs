// tabs.mjs - the page script, sse::script(), in many tabs of Chromium; browser.mjs runs it.
//
//   node build-npm/node-VERSION/browser/browser.mjs build/examples/{hub,sysenv,chat} --tabs 100
//       this alone, and the reading tab is lost 100 times (--way stopped: this way only)
//
// Twenty tabs follow one hub over HTTP/1.1. The tab that reads for all is closed, crashed, frozen
// (as browsers freeze pages in the background) and stopped (its process), while messages are
// published: each tab gets each message once and in order. So it does where the clock is set.
//
// The tabs are driven by the DevTools protocol itself: playwright keeps each page in the foreground,
// where none is frozen.

import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import ts from "typescript-5";

const patience = 60_000;    // ms
const mostBytes = 4096;     // of the script, gzipped
const tabCount = 20;
const pause = time => new Promise(resolve => setTimeout(resolve, time));

let tools;
const { check, expect, equal, within } = new Proxy({}, {
    get: (unused, name) => (...given) => tools[name](...given),
});

// Asks again and again until the response is true.
async function eventually(condition, what) {
    for (const end = Date.now() + patience; Date.now() < end; await pause(30)) {
        const answer = await condition();
        if (answer) return answer;
    }
    throw new Error(`${what}: not within ${patience} ms`);
}

// >>driver  A browser, its tabs, and what happens to them
async function launch(program, flags) {
    const folder = mkdtempSync(join(tmpdir(), "sse-tabs-"));
    const child = spawn(program, [...flags, `--user-data-dir=${folder}`, "--remote-debugging-pipe"],
                        { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
    const ended = new Promise(resolve => child.once("exit", resolve));
    const waiting = new Map(), crashed = new Set();
    let number = 0, rest = "";
    child.stdio[4].on("data", bytes => {
        const parts = (rest + bytes).split("\0");
        rest = parts.pop();
        for (const { id, result, error, method, params } of parts.map(part => JSON.parse(part))) {
            if (method === "Target.targetCrashed") crashed.add(params.targetId);
            waiting.get(id)?.(error ? Promise.reject(new Error(error.message)) : result);
            waiting.delete(id);
        }
    });
    const send = (method, params = {}, sessionId) => new Promise(resolve => {
        waiting.set(++number, resolve);
        child.stdio[3].write(JSON.stringify({ id: number, method, params, sessionId }) + "\0");
    });
    await within(patience, send("Target.setDiscoverTargets", { discover: true }), "Chromium starts");

    async function openPage(url) {
        const { targetId } = await send("Target.createTarget", { url });
        const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
        const ask = (method, params) => send(method, params, sessionId);
        const page = {
            async evaluate(body, argument) {
                const { result, exceptionDetails: wrong } = await ask("Runtime.evaluate", {
                    expression: `(${body})(${JSON.stringify(argument)})`,
                    awaitPromise: true, returnByValue: true,
                });
                if (wrong) throw new Error(wrong.exception?.description ?? wrong.text);
                return result.value;
            },
            until: (condition, argument) => eventually(() => page.evaluate(condition, argument),
                                                       String(condition)),
            close: () => send("Target.closeTarget", { targetId }),
            async crash() {
                ask("Page.crash").catch(() => {});  // nobody answers
                await eventually(() => crashed.has(targetId), "the tab crashes");
                await page.close();
            },
            freeze: () => ask("Page.setWebLifecycleState", { state: "frozen" }),
            thaw: () => ask("Page.setWebLifecycleState", { state: "active" }),
            show: () => ask("Page.bringToFront"),
            network: async works => {
                await ask("Network.enable");
                await ask("Network.emulateNetworkConditions", {
                    offline: !works, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
            },
        };
        await eventually(() => page.evaluate(
            wanted => location.href === wanted && document.readyState === "complete", url)
            .catch(() => false), "the page loads");
        return page;
    }

    // The process of a page: a worker of that page shows among its threads.
    async function processOf(page) {
        const { processInfo } = await send("SystemInfo.getProcessInfo");
        const workers = () => processInfo.filter(({ type, id }) => {
            try {
                return type === "renderer" && readdirSync(`/proc/${id}/task`).some(thread =>
                    readFileSync(`/proc/${id}/task/${thread}/comm`, "latin1").startsWith("Dedicated"));
            } catch { return false; }   // it has ended meanwhile
        });
        await eventually(() => workers().length === 0, "no page has a worker");
        await page.evaluate(() => { window.worker = new Worker("data:text/javascript,"); });
        const [found] = await eventually(() => workers().length === 1 && workers(),
                                         "a page has a worker");
        await page.evaluate(() => worker.terminate());
        return found.id;
    }

    async function close() {
        send("Browser.close").catch(() => {});
        await within(patience, ended, "Chromium ends").catch(() => child.kill("SIGKILL"));
        rmSync(folder, { recursive: true, force: true, maxRetries: 10 });
    }

    return { openPage, processOf, close };
}

// >>tabs
// A page that has no script of its own follows a topic. What arrives is noted in it.
async function openTab(browser, url, { hours = 0, ...options } = {}, address = "/subscribe/t") {
    const page = await browser.openPage(url + "health");
    await setClock(page, hours);
    await page.evaluate(listenIn);
    await page.evaluate(async ([target, given]) => {
        const { connect } = await import("/sse.js");
        Object.assign(window, { heard: [], passing: [], gaps: [], states: [], refused: [] });
        if (given.token) given.headers = status => {
            refused.push(status);
            return { Authorization: `Bearer ${refused.length}` };
        };
        window.stream = connect(target, {
            onmessage: event => heard.push(event.data), ongap: gap => gaps.push(gap.reason),
            onstate: (state, { status }) => states.push(status ? `${state} ${status}` : state),
            heartbeat: 1000, ...given,
        });
        window.stream.addEventListener("passing", event => passing.push(Number(event.data)));
    }, [address, options]);
    return page;
}

// Remembers what the script of a page said to other tabs and heard from them last.
function listenIn() {
    window.last = {};
    const keep = (what, message) => { last[what] = { message, at: performance.now() }; };
    window.BroadcastChannel = class extends BroadcastChannel {
        constructor(name) {
            super(name);
            this.addEventListener("message", event => keep("heard", event.data));
        }
        postMessage(message) {
            keep("said", message);
            super.postMessage(message);
        }
    };
}

// What tabs say of themselves, for the text of an error.
async function account(tabs) {
    const all = await Promise.all(tabs.map(tab => within(5000, tab.evaluate(async () => {
        const { held, pending } = await navigator.locks.query();
        const told = Object.entries(last).map(([what, { message: { b: blocks, ...rest }, at }]) =>
            `${what} ${Math.round(performance.now() - at)} ms ago ${JSON.stringify(rest)}`);
        return `${stream.reads ? "reads" : "follows"}, ${stream.state}, ` +
            `${document.hidden ? "hidden" : "visible"}, has ${heard.at(-1)}, ${told.join(", ")}; ` +
            `locks: ${held.map(lock => lock.clientId.slice(0, 4))} of ${held.length + pending.length}`;
    }), "it tells").catch(error => error.message)));
    return all.map((text, index) => `tab ${index}: ${text}`).join("; ");
}

// The machine's clock is set, by hours: the time of day alone, as the page sees it.
const setClock = (page, hours) => page.evaluate(by => {
    const real = window.realDate ??= Date;
    window.Date = class extends real {
        constructor(...given) { super(...given.length ? given : [Date.now()]); }
        static now() { return real.now() + by; }
    };
}, hours * 3600e3);

const isOpen = page => page.until(() => stream.state === "open");
const newest = page => page.evaluate(() => Number(heard.at(-1)));

// The tab that reads for all, if it is exactly one.
async function reading(tabs) {
    const answers = await Promise.all(tabs.map(tab => tab.evaluate(() => stream.reads)));
    const all = tabs.filter((tab, index) => answers[index]);
    return all.length === 1 && all[0];
}

const streamsOf = async hub =>
    Number((await (await fetch(hub.url + "health")).text()).match(/connections: (\d+)/)[1]);

async function expectOneStream(hub, tabs) {
    await eventually(() => reading(tabs), "one tab reads");
    await eventually(async () => await streamsOf(hub) === 1, "the hub has one stream");
}

// Publishes 1, 2, 3 and so on, until it is told to stop, and each once more as something that is
// only for those who are there.
function publishNumbers(hub) {
    let stopped = false;
    const told = { last: 0, stop() { stopped = true; return done; } };
    const done = (async () => {
        while (!stopped) {
            const next = told.last + 1;
            await tools.publish(hub, "/t", `event=passing&data=${next}&ephemeral=true`);
            await tools.publish(hub, "/t", String(next), "text/plain");
            told.last = next;
            await pause(10);
        }
    })();
    done.catch(() => {});   // whoever stops it hears of it
    return told;
}

// From the first that it heard on, without a hole, twice or out of order.
function expectAll(heard, last, who) {
    heard.forEach((each, index) => expect(Number(each) === Number(heard[0]) + index,
        `${who} heard ${each} after ${heard[index - 1]}`));
    equal(heard.at(-1), String(last), `the last that ${who} heard`);
}

// How the reading tab is lost. What is returned brings it back.
const ways = {
    closed: tab => tab.close().then(() => null),
    crashed: tab => tab.crash().then(() => null),
    async frozen(tab, others) {
        await others[0].show();     // only what is hidden is frozen
        await tab.until(() => document.hidden);
        await tab.freeze();
        return () => tab.thaw();
    },
    async stopped(tab, others, browser) {
        // Where all have been hidden for five minutes, Chromium lets their timers run once a minute
        // only, and none would notice before.
        await others[0].show();
        await tab.until(() => document.hidden);
        const id = await browser.processOf(tab);
        process.kill(id, "SIGSTOP");
        return () => process.kill(id, "SIGCONT");
    },
};

async function loseReaders(browser, hub, wire, rounds, way) {
    const kinds = Object.entries(ways).filter(([name]) => !way || name === way);
    let tabs = [];
    await check(`script: ${tabCount} tabs open`, async () => {
        for (let i = 0; i < tabCount; ++i) tabs.push(await openTab(browser, wire.url));
        for (const tab of tabs) await isOpen(tab);
    });
    await check("script: one of them reads, the others follow it", () => expectOneStream(hub, tabs));
    const told = publishNumbers(hub), lost = {};
    let kept = 0;
    const explained = body => body().catch(async error => {
        throw new Error(`${error.message}; ${await account(tabs)}`);
    });
    for (let round = 0; round < rounds; ++round) {
        const [way, lose] = kinds[round % kinds.length];
        await check(`script: another tab reads when the one that did is ${way}`, async () => {
            const reader = await eventually(() => reading(tabs), "one tab reads");
            const before = told.last;
            tabs = tabs.filter(tab => tab !== reader);
            const bringBack = await lose(reader, tabs, browser);
            const next = await explained(async () => {
                const found = await eventually(() => reading(tabs), "another tab reads");
                await found.until(least => Number(heard.at(-1)) > least, before);
                return found;
            }).finally(bringBack ?? (() => {}));
            const back = bringBack ? reader : await openTab(browser, wire.url);
            tabs.push(back);
            // Which tab reads by then is not said: where all are starved, one may be taken for silent.
            await explained(async () => {
                await back.until(least => Number(heard.at(-1)) >= least, told.last);
                await eventually(() => reading(tabs), "one tab reads");
            });
            lost[way] = (lost[way] ?? 0) + 1;
            if (await next.evaluate(() => stream.reads)) ++kept;
        });
    }
    await check("script: each tab heard all, once and in order", async () => {
        await told.stop();
        let count = 0;
        for (const [index, tab] of tabs.entries()) {
            await tab.until(last => Number(heard.at(-1)) === last, told.last);
            const [heard, passing, gaps] = await tab.evaluate(() => [heard, passing, gaps]);
            expectAll(heard, told.last, `tab ${index}`);
            passing.forEach((each, at) => expect(at === 0 || each > passing[at - 1],
                `tab ${index} heard ephemeral ${each} after ${passing[at - 1]}`));
            equal(gaps.join(), "", `gaps of tab ${index}`);
            count += heard.length;
        }
        console.log(`# ${told.last} published, ${count} heard by ${tabs.length} tabs; the reading ` +
                    `tab was lost: ${JSON.stringify(lost)}, and the next one kept the stream ` +
                    `${kept} times`);
    });
    await check("script: in the end there is one stream again", () => expectOneStream(hub, tabs));
    return tabs;
}

// The tabs of one machine, whose clock is set. A server that is starved for long is not silent yet:
// here the tabs wait for the heartbeat of 15 s, except where silence is to be noticed.
async function setClocks(browser, hub, wire) {
    const told = publishNumbers(hub);
    const open = async (count, options) => {
        const opened = [];
        while (opened.length < count) opened.push(await openTab(browser, wire.url, options));
        for (const tab of opened) await isOpen(tab);
        return opened;
    };
    const hearMore = async all => {
        const last = told.last + 20;
        for (const tab of all) await tab.until(least => Number(heard.at(-1)) >= least, last);
    };
    const expectNothingLost = async all => {
        for (const [index, tab] of all.entries()) {
            await tab.until(last => Number(heard.at(-1)) === last, told.last);
            const [heard, passing, gaps] = await tab.evaluate(() => [heard, passing, gaps]);
            expectAll(heard, told.last, `tab ${index}`);
            equal(new Set(passing).size, passing.length, `ephemeral ones of tab ${index}`);
            equal(gaps.join(), "", `gaps of tab ${index}`);
        }
    };

    let tabs = await open(4, { heartbeat: 15_000 });
    await check("script: no stream is silent because the clock is set", async () => {
        await expectOneStream(hub, tabs);
        await hearMore(tabs);
        const streams = wire.streams.length;
        for (const hours of [5, -5, 0, -5]) {
            for (const tab of tabs) {
                await setClock(tab, hours);
                await hearMore([tab]);
                await tab.evaluate(() => { dispatchEvent(new Event("online")); });  // it looks now
            }
            await hearMore(tabs);
        }
        equal(wire.streams.length, streams, "streams that were opened");
    });
    for (const hours of [5, -10]) {
        await check(`script: another tab reads where the clock is ${hours} h off`, async () => {
            for (const tab of tabs) await setClock(tab, hours);
            const reader = await eventually(() => reading(tabs), "one tab reads");
            tabs = tabs.filter(tab => tab !== reader);
            await reader.close();
            await eventually(() => reading(tabs), "another tab reads");
            tabs.push(...await open(1, { heartbeat: 15_000, hours }));
            await hearMore(tabs);
        });
    }
    await check("script: all follow a new tab that reads, whose clock is behind", async () => {
        const stopped = await eventually(() => reading(tabs), "one tab reads");
        const others = tabs.filter(tab => tab !== stopped);
        const bringBack = await ways.stopped(stopped, others, browser);
        const [late] = await open(1, { heartbeat: 15_000, hours: -15 });
        await hearMore([...others, late]);
        await bringBack();
        tabs.push(late);
        await hearMore(tabs);
        await expectOneStream(hub, tabs);
    });
    await check("script: each tab heard all, once and in order, by whatever clock", async () => {
        await told.stop();
        await expectNothingLost(tabs);
    });
    for (const tab of tabs) await tab.close();

    await check("script: silence is noticed after the clock was set back", async () => {
        tabs = await open(3);
        for (const tab of tabs) await setClock(tab, -5);
        wire.freeze();
        await tools.publish(hub, "/t", "into the void", "text/plain");
        for (const tab of tabs) {
            await tab.until(() => heard.at(-1) === "into the void");
            equal(await tab.evaluate(() => heard.length), 1, "how often it came");
        }
    });
    for (const tab of tabs) await tab.close();
}

// What happens to a stream while nobody takes over.
async function loseStreams(browser, hub, wire, tabs) {
    const expectOnce = async data => {
        await tools.publish(hub, "/t", data, "text/plain");
        return async () => {
            for (const tab of tabs) await tab.until(wanted => heard.at(-1) === wanted, data);
            for (const tab of tabs) equal(await tab.evaluate(
                wanted => heard.filter(each => each === wanted).length, data), 1, "how often it came");
        };
    };
    await check("script: what is published while the reading tab is offline comes once", async () => {
        const reader = await eventually(() => reading(tabs), "one tab reads");
        await reader.network(false);
        wire.cut();
        for (const tab of tabs) await tab.until(() => stream.state === "connecting");
        const comes = await expectOnce("while offline");
        await reader.network(true);
        await comes();
    });
    await check("script: what is published while the network is dead comes once", async () => {
        wire.freeze();
        await (await expectOnce("into the void"))();
    });
    await check("script: a tab that begins at an id catches up with the others", async () => {
        const { id } = await tools.publish(hub, "/t", "first", "text/plain");
        for (const data of ["second", "third"]) await tools.publish(hub, "/t", data, "text/plain");
        const tab = await openTab(browser, wire.url, { lastEventId: id });
        await tab.until(() => heard.length === 2);
        await expectOneStream(hub, [...tabs, tab]);
        await tools.publish(hub, "/t", "fourth", "text/plain");
        await tab.until(() => heard.length === 3);
        equal(await tab.evaluate(() => heard.join()), "second,third,fourth", "what it heard");
        await tab.close();
    });
    await check("script: close() ends a tab's stream, and another tab reads", async () => {
        const reader = await eventually(() => reading(tabs), "one tab reads");
        await reader.evaluate(() => stream.close());
        tabs = tabs.filter(tab => tab !== reader);
        await expectOneStream(hub, tabs);
        await tools.publish(hub, "/t", "fifth", "text/plain");
        for (const tab of tabs) await tab.until(() => heard.at(-1) === "fifth");
        expect(await reader.evaluate(() => heard.at(-1) !== "fifth"), "the closed one heard it too");
        await reader.close();
    });
    await check("script: after a restart each tab is told of one gap", async () => {
        await hub.end("SIGKILL");
        for (const tab of tabs) await tab.until(() => stream.state === "connecting");
        hub = await tools.startHub(hub.port);
        for (const tab of tabs) await isOpen(tab);
        await tools.publish(hub, "/t", "afterwards", "text/plain");
        for (const tab of tabs) {
            await tab.until(() => heard.at(-1) === "afterwards");
            equal(await tab.evaluate(() => gaps.join()), "epoch", "its gaps");
        }
    });
    return hub;
}

// >>server  A server that a test plays
async function playServer(script) {
    const played = { requests: [], play: null, held: null };
    const server = createServer((request, response) => {
        response.setHeader("Access-Control-Allow-Origin", "*");
        if (request.url === "/health") return response.end("empty\n");
        if (request.url === "/sse.js") {
            return response.writeHead(200, { "Content-Type": "text/javascript" }).end(script);
        }
        if (request.url === "/held") return played.held = response;
        if (request.url !== "/stream") return response.writeHead(404).end();
        const { authorization: token, "last-event-id": lastEventId } = request.headers;
        played.requests.push({ token, lastEventId, at: Date.now() });
        played.play(response, played.requests.length, token);
    });
    await new Promise(resolve => server.listen(0, "127.0.0.1", resolve));
    played.port = server.address().port;
    played.url = `http://127.0.0.1:${played.port}/`;
    played.begin = play => Object.assign(played, { requests: [], play });
    played.close = () => (server.close(), server.closeAllConnections());
    return played;
}

function stream(response, text) {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.write(text);
    return response;
}

async function testAnswers(browser, played) {
    const tab = () => openTab(browser, played.url, {}, "/stream");

    await check("script: what cannot get better ends it, for all tabs", async () => {
        for (const status of [204, 400, 404, 410]) {
            let end;
            played.begin(response => {
                stream(response, "retry: 10\ndata: hello\n\n");
                end = () => response.end();
                played.play = again => again.writeHead(status).end();
            });
            const tabs = [await tab(), await tab()];
            for (const each of tabs) await isOpen(each);
            end();
            for (const each of tabs) {
                await each.until(wanted => states.at(-1) === wanted, `closed ${status}`);
                await each.close();
            }
        }
        played.begin(response => response.writeHead(200, { "Content-Type": "text/html" }).end("page"));
        const page = await tab();
        await page.until(() => states.at(-1) === "closed 200");
        await page.close();
        equal(played.requests.length, 1, "requests after a wrong type");
    });

    await check("script: what may get better is tried again, with the last id", async () => {
        played.begin((response, number) => {
            if (number === 1) stream(response, "retry: 10\nid: é7\ndata: 1\n\n").end();
            if (number === 2) response.writeHead(503).end();
            if (number === 3) response.writeHead(429, { "Retry-After": "1" }).end();
            if (number === 4) response.destroy();
            if (number === 5) response.writeHead(500).end();
            if (number === 6) stream(response, "data: 2\n\n");
        });
        const page = await tab();
        await page.until(() => heard.length === 2);
        const bytes = Buffer.from("é7").toString("latin1"); // as Node shows a header field
        equal(played.requests.map(request => request.lastEventId).join(),
              ["", bytes, bytes, bytes, bytes, bytes].join(), "ids of the requests");
        const waited = played.requests[3].at - played.requests[2].at;
        expect(waited >= 1000, `${waited} ms after Retry-After: 1`);
        equal(await page.evaluate(() => states.filter(state => / /.test(state)).join()),
              "connecting 503,connecting 429,connecting 500", "states with a status");
        await page.close();
    });

    await check("script: a server's date is read by the server's clock", async () => {
        const second = at => new Date(Date.UTC(2040, 10, 22, 19, 31, at)).toUTCString();
        played.begin((response, number) => number > 1 ? stream(response, "data: 1\n\n") :
            response.writeHead(503, { Date: second(50), "Retry-After": second(55) }).end());
        const page = await tab();
        await page.until(() => heard.length === 1);
        const [first, next] = played.requests;
        expect(next.at - first.at >= 5000, `${next.at - first.at} ms, when 5 s were asked for`);
        await page.close();
    });

    for (const hours of [0, 5, -5]) {
        const clock = hours ? `, the clock ${hours} h off` : "";
        await check("script: a token is asked for each time, and once more if it is refused" + clock,
                    async () => {
            let valid = 1, end;
            played.begin((response, number, token) => {
                if (token !== `Bearer ${valid}`) return response.writeHead(401).end();
                stream(response, "retry: 10\n\n");
                end = () => response.end();
            });
            const page = await openTab(browser, played.url, { token: true }, "/stream");
            await isOpen(page);
            await setClock(page, hours);
            valid = 3;
            end();
            await eventually(() => played.requests.length === 3, "it asks with the next token");
            await isOpen(page);
            valid = 99;
            end();
            await page.until(() => states.at(-1) === "closed 401");
            equal(await page.evaluate(() => refused.join()), "0,0,401,0,401", "what headers() was told");
            await page.close();
        });
    }

    await check("script: what comes after another tab took over is left to that one", async () => {
        const page = await browser.openPage(played.url + "health");
        const heard = await page.evaluate(async () => {
            const { connect } = await import("/sse.js"), heard = [], beginnings = [];
            window.fetch = async () => new Response(new ReadableStream({
                start: body => { beginnings.push(body); },
            }), { headers: { "Content-Type": "text/event-stream" } });
            const stream = connect("/stream", { onmessage: event => heard.push(event.data) });
            const tell = text => beginnings[0].enqueue(new TextEncoder().encode(text));
            const until = async condition => {
                while (!condition()) await new Promise(resolve => setTimeout(resolve, 10));
            };
            await until(() => stream.state === "open");
            tell("data: before\n\n");
            await until(() => heard.length);
            const [{ name }] = (await navigator.locks.query()).held;
            navigator.locks.request(name, { steal: true }, () => new Promise(() => {}));
            tell("data: after\n\n");
            await until(() => !stream.reads);
            return heard.join();
        });
        equal(heard, "before", "what it heard");
        await page.close();
    });

    // A page that waits for a response in the middle of its script is as good as stopped.
    const stop = async page => {
        const asked = page.evaluate(() => {
            const request = new XMLHttpRequest();
            request.open("GET", "/held", false);
            request.send();
        });
        const response = await eventually(() => played.held, "the page waits");
        played.held = null;
        return () => (response.end(), asked);
    };
    // A page that plays another tab: what others say to each other is heard there.
    const openOther = async () => {
        const page = await browser.openPage(played.url + "health");
        await page.evaluate(async () => {
            const [{ name }] = (await navigator.locks.query()).held;
            window.told = [];
            const ear = new BroadcastChannel(name), mouth = new BroadcastChannel(name);
            ear.onmessage = ({ data }) => told.push(data);
            Object.assign(window, { lock: name, say: message => mouth.postMessage(message) });
        });
        return page;
    };
    // A tab that reads is stopped, and asked often by another one.
    const whileStopped = async body => {
        played.begin(response => stream(response, "data: 1\n\n"));
        const page = await openTab(browser, played.url, { heartbeat: 0 }, "/stream");
        await isOpen(page);
        const other = await openOther();
        try {
            const goOn = await stop(page);
            await other.evaluate(() => { for (let i = 0; i < 50; ++i) say({ ask: 1 }); });
            await other.until(() => told.length === 50);    // so the stopped one has them too
            await body(other, goOn, page);
        } finally {
            await page.close();
            await other.close();
        }
    };

    await check("script: tabs that ask at once get few answers", () =>
        whileStopped(async (other, goOn) => {
            const last = Date.now() + 3600e3;   // a later term, which shows in the response to it
            await other.evaluate(term => say({ ask: term }), last);
            await other.until(term => told.at(-1).ask === term, last);
            await goOn();
            await other.until(term => told.at(-1).t > term, last);
            const answers = await other.evaluate(() => told.filter(each => each.t).length);
            expect(answers < 10, `${answers} answers to 51`);
        }));

    await check("script: a tab that was stopped answers nobody if another reads by now", () =>
        whileStopped(async (other, goOn, page) => {
            await other.evaluate(() => new Promise(taken => navigator.locks.request(
                lock, { steal: true }, () => (taken(), new Promise(() => {})))));
            await goOn();
            await other.until(() => told.some(each => each.ask > 1));   // by now it follows
            equal(await other.evaluate(() => told.filter(each => each.t).length), 0, "answers");
            await other.evaluate(() => say({
                t: Date.now() + 1, i: "", s: "open", d: {},
                b: [{ o: false, p: "", i: "", e: ["message", "of the other"] }],
            }));
            await page.until(() => heard.at(-1) === "of the other" && !stream.reads);
        }));

    await check("script: a silent stream is opened again", async () => {
        played.begin((response, number) => stream(response, `data: ${number}\n\n`));
        const page = await openTab(browser, played.url, { heartbeat: 200 }, "/stream");
        await page.until(() => heard.length >= 2);
        await page.close();
    });

    await check("script: without Web Locks each tab has its own stream", async () => {
        played.begin((response, number) => stream(response, `data: ${number}\n\n`));
        const address = `http://plain.test:${played.port}/`, all = [];
        for (let i = 0; i < 2; ++i) all.push(await openTab(browser, address, {}, "/stream"));
        for (const page of all) {
            expect(await page.evaluate(() => !navigator.locks), "the page has Web Locks");
            await page.until(() => heard.length === 1 && stream.reads);
            await page.close();
        }
        equal(played.requests.length, 2, "streams");
    });
}

// The same bytes as one chunk, cut at each place, and byte by byte: as the browser's own
// EventSource reads them.
async function testParser(browser, played) {
    const text = "\uFEFFretry: 1\rdata: a\ndata:b\r\n\r\n: comment\nid: 1\nevent: tick\ndata\n\n" +
        "data:  two\nid\n\nevent: none\n\nid: no\0no\ndata: é€😀\r\rdataless: 1\ndata:\ndata: :\n\n" +
        "id: 2\n\ndata: \u2028x\nretry: 1x\n\r\nid: 3\ndata: unfinished";
    played.begin(response => stream(response, text).end());
    await check("script: it reads a stream as EventSource does, wherever it is cut", async () => {
        const page = await browser.openPage(played.url + "health");
        const results = await page.evaluate(async text => {
            const { connect } = await import("/sse.js");
            const note = (source, list) => {
                for (const name of ["message", "tick", "none"]) source.addEventListener(name, event =>
                    list.push(JSON.stringify([name, event.data, event.lastEventId, event.origin])));
                return list;
            };
            const source = new EventSource("/stream"), wanted = note(source, []);
            await new Promise(resolve => { source.onerror = resolve; });
            source.close();

            const bytes = new TextEncoder().encode(text), wrong = [];
            const ways = [[...bytes].map(byte => [byte])];
            for (let at = 0; at < bytes.length; ++at) ways.push([bytes.slice(0, at), bytes.slice(at)]);
            let chunks, again;
            window.fetch = async () => {
                if (!chunks) { again(); return new Promise(() => {}); }
                const all = chunks;
                chunks = null;
                return new Response(new ReadableStream({ start(to) {
                    for (const each of all) to.enqueue(Uint8Array.from(each));
                    to.close();
                } }), { headers: { "Content-Type": "text/event-stream" } });
            };
            for (const way of ways) {
                chunks = way;
                const ended = new Promise(resolve => { again = resolve; });
                const stream = connect("/stream", { shared: false }), got = note(stream, []);
                await ended;
                stream.close();
                if (got.join() !== wanted.join()) wrong.push(`${got} cut at ${way[0].length}`);
            }
            return { wanted, wrong, ways: ways.length };
        }, text);
        equal(results.wrong.join("; "), "", `not as ${results.wanted}`);
        equal(results.wanted.length, 6, "events");
        console.log(`# ${results.ways} ways to cut it`);
        await page.close();
    });
}

// >>types
async function testTypes(text) {
    const types = readFileSync("examples/sse.d.ts", "utf8");
    await check("script: its types name what it has", () => {
        const inScript = before => text.split(before)[1].match(/\{([^}]*)\}/)[1].split(",")
            .map(each => each.match(/\w+/)?.[0]).filter(Boolean).join();
        const inTypes = name => [...types.match(new RegExp(`interface ${name} [^]*?\n}`))[0]
            .matchAll(/^    (?:readonly )?(?!addEvent)(\w+)[:?(]/gm)].map(found => found[1]).join();
        equal(inTypes("Options"), inScript("connect(url, "), "options");
        equal(inTypes("Stream"), inScript("Object.assign(new EventTarget(),"), "members");
    });
    await check("script: TypeScript takes what its types allow, and nothing else", () => {
        const folder = mkdtempSync(join(tmpdir(), "sse-types-")), file = join(folder, "page.ts");
        writeFileSync(join(folder, "sse.d.ts"), types);
        writeFileSync(file, `
            import { connect, type Gap, type State } from "./sse.js";
            const stream = connect(new URL("https://a.example/"), {
                topics: ["a"], headers: async status => ({ Status: status.toFixed() }),
                credentials: "include", lastEventId: "1", heartbeat: 15000, shared: "ann",
                onmessage: event => event.data.trim(),
                ongap: (gap: Gap, { lastEventId }) => gap.missed ?? lastEventId.trim(),
                onstate: (state: State, { status }) => state === "open" || status?.toFixed(),
            });
            stream.addEventListener("tick", event => event.data.trim());
            stream.removeEventListener("tick", null);
            stream.close();
            // @ts-expect-error
            connect("/", { topic: "a" });
            // @ts-expect-error
            stream.reads = true;`);
        const program = ts.createProgram([file], { noEmit: true, strict: true,
            target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, types: [],
            moduleResolution: ts.ModuleResolutionKind.Bundler });
        const wrong = ts.getPreEmitDiagnostics(program).map(
            each => ts.flattenDiagnosticMessageText(each.messageText, " "));
        rmSync(folder, { recursive: true });
        equal(wrong.join("; "), "", "the compiler says");
    });
}

// >>run
export async function testScript(given) {
    tools = given;
    let hub = await given.startHub("0");
    const text = await (await fetch(hub.url + "sse.js")).text();
    await check("script: it has at most 4 KiB, gzipped", () => {
        const size = gzipSync(text, { level: 9 }).length;
        console.log(`# ${text.length} bytes, ${size} gzipped`);
        expect(size <= mostBytes, `${size} bytes`);
    });
    await testTypes(text);
    const played = await playServer(text);
    const browser = await launch(given.program, given.flags);
    try {
        await testParser(browser, played);
        await testAnswers(browser, played);
        const wire = await given.wireTo(hub);
        await setClocks(browser, hub, wire);
        const tabs = await loseReaders(browser, hub, wire, given.rounds, given.way);
        hub = await loseStreams(browser, hub, wire, tabs);
        wire.close();
        await hub.end("SIGINT");
    } finally {
        await browser.close();
        played.close();
    }
}
