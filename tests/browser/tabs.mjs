// tabs.mjs - the page script, sse::script(), in many tabs of Chromium; browser.mjs runs it.
//
//   node build-npm/node-VERSION/browser/browser.mjs build/examples/{hub,sysenv,chat} --tabs 100
//       this alone, and the reading tab is lost 100 times
//
// Twenty tabs follow one hub over HTTP/1.1. The tab that reads for all is closed, crashed, frozen
// (as browsers freeze pages in the background) and stopped (its process), while messages are
// published: each tab gets each message once and in order.
//
// The tabs are driven by the DevTools protocol itself: playwright keeps each page in the foreground,
// where none is frozen.

import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";

const patience = 60_000;    // ms
const mostBytes = 4096;     // of the script, gzipped
const tabCount = 20;
const pause = time => new Promise(resolve => setTimeout(resolve, time));

let tools;
const { check, expect, equal, within } = new Proxy({}, {
    get: (unused, name) => (...given) => tools[name](...given),
});

// Asks again and again until the answer is true.
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
async function openTab(browser, url, options = {}, address = "/subscribe/t") {
    const page = await browser.openPage(url + "health");
    await page.evaluate(async ([target, given]) => {
        const { connect } = await import("/sse.js");
        Object.assign(window, { heard: [], gaps: [], states: [], refused: [] });
        if (given.token) given.headers = status => {
            refused.push(status);
            return { Authorization: `Bearer ${refused.length}` };
        };
        window.stream = connect(target, {
            onmessage: event => heard.push(event.data), ongap: gap => gaps.push(gap.reason),
            onstate: (state, { status }) => states.push(status ? `${state} ${status}` : state),
            heartbeat: 1000, ...given,
        });
    }, [address, options]);
    return page;
}

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

// Publishes 1, 2, 3 and so on, until it is told to stop.
function publishNumbers(hub) {
    let stopped = false;
    const told = { last: 0, stop() { stopped = true; return done; } };
    const done = (async () => {
        while (!stopped) {
            await tools.publish(hub, "/t", String(told.last + 1), "text/plain");
            told.last += 1;
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
        const id = await browser.processOf(tab);
        process.kill(id, "SIGSTOP");
        return () => process.kill(id, "SIGCONT");
    },
};

async function loseReaders(browser, hub, rounds) {
    let tabs = [];
    await check(`script: ${tabCount} tabs open`, async () => {
        for (let i = 0; i < tabCount; ++i) tabs.push(await openTab(browser, hub.url));
        for (const tab of tabs) await isOpen(tab);
    });
    await check("script: one of them reads, the others follow it", () => expectOneStream(hub, tabs));
    const told = publishNumbers(hub), lost = {};
    for (let round = 0; round < rounds; ++round) {
        const [way, lose] = Object.entries(ways)[round % 4];
        await check(`script: another tab reads when the one that did is ${way}`, async () => {
            const reader = await eventually(() => reading(tabs), "one tab reads");
            const before = told.last;
            tabs = tabs.filter(tab => tab !== reader);
            const bringBack = await lose(reader, tabs, browser);
            const next = await eventually(() => reading(tabs), "another tab reads");
            await next.until(least => Number(heard.at(-1)) > least, before);
            if (bringBack) await bringBack();
            const back = bringBack ? reader : await openTab(browser, hub.url);
            tabs.push(back);
            await back.until(least => Number(heard.at(-1)) >= least && !stream.reads, told.last);
            lost[way] = (lost[way] ?? 0) + 1;
        });
    }
    await check("script: each tab heard all, once and in order", async () => {
        await told.stop();
        let count = 0;
        for (const [index, tab] of tabs.entries()) {
            await tab.until(last => Number(heard.at(-1)) === last, told.last);
            const [heard, gaps] = await tab.evaluate(() => [heard, gaps]);
            expectAll(heard, told.last, `tab ${index}`);
            equal(gaps.join(), "", `gaps of tab ${index}`);
            count += heard.length;
        }
        console.log(`# ${told.last} published, ${count} heard by ${tabs.length} tabs; the reading ` +
                    `tab was lost: ${JSON.stringify(lost)}`);
    });
    await check("script: in the end there is one stream again", () => expectOneStream(hub, tabs));
    return tabs;
}

// >>run
export async function testScript(given) {
    tools = given;
    const hub = await given.startHub("--heartbeat", "1");
    await check("script: it has at most 4 KiB, gzipped", async () => {
        const text = await (await fetch(hub.url + "sse.js")).text();
        const size = gzipSync(text, { level: 9 }).length;
        console.log(`# ${text.length} bytes, ${size} gzipped`);
        expect(size <= mostBytes, `${size} bytes`);
    });
    const browser = await launch(given.program, given.flags);
    try {
        const tabs = await loseReaders(browser, hub, given.rounds);
        await hub.end("SIGINT");
    } finally {
        await browser.close();
    }
}
