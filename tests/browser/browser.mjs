// browser.mjs - the example programs in a real browser. Run it:
//
//   ./tests/run.sh browser
//   node build-npm/node-VERSION/browser/browser.mjs build/examples/{hub,sysenv,chat} \
//       --screenshots DIR     once more, and writes pictures of the pages
//       --tabs 100            the page script alone, see tabs.mjs
//
// Drives Chromium (/usr/bin/chromium, or what CHROMIUM names) through playwright-core. Only
// loopback: every name but 127.0.0.1 is unknown to the browser. A line for each check, in
// the Test Anything Protocol; status 1 when one failed.

import { spawn, spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { createServer } from "node:http";
import { connect as connectSocket, createServer as createSocketServer } from "node:net";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import axe from "axe-core-4";
import { chromium } from "playwright-core-1";
import { testScript } from "./tabs.mjs";
import { testTls } from "./tls.mjs";

const { values: given, positionals: programs } = parseArgs({
    allowPositionals: true, options: {
        screenshots: { type: "string" }, tabs: { type: "string" }, way: { type: "string" },
    },
});
if (programs.length !== 3) {
    console.error("usage: node browser.mjs HUB SYSENV CHAT [--screenshots DIR] " +
                  "[--tabs ROUNDS [--way WAY]]");
    process.exit(2);
}
const [hubProgram, sysenvProgram, chatProgram] = programs;
const patience = 20_000;    // ms; a browser waits 3 s before it reconnects
const token = "browser-test";
const desktop = { viewport: { width: 1280, height: 900 } };
const phone = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true,
                hasTouch: true };

// >>checks
let said = 0, failed = 0;

async function check(sentence, body) {
    try {
        await body();
        console.log(`ok ${++said} - ${sentence}`);
    } catch (error) {
        failed += 1;
        console.log(`not ok ${++said} - ${sentence}: ${String(error.message).split("\n")[0]}`);
    }
}

function skip(sentence, why) {
    console.log(`ok ${++said} - ${sentence} # SKIP ${why}`);
}

function expect(condition, otherwise) {
    if (!condition) throw new Error(otherwise);
}

function equal(actual, wanted, what) {
    expect(actual === wanted, `${what}: ${JSON.stringify(actual)} instead of ` +
                              JSON.stringify(wanted));
}

async function within(time, promise, what) {
    let timer;
    const late = new Promise((unused, reject) => {
        timer = setTimeout(() => reject(new Error(`${what}: not within ${time} ms`)), time);
    });
    return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// >>programs
const running = new Set();

// Starts a program that prints the URL it listens on, and waits for that line.
async function start(program, ...args) {
    const child = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] });
    const output = [];
    const ended = new Promise(resolve => child.once("exit", (code, signal) => {
        running.delete(child);
        resolve({ code, signal });
    }));
    running.add(child);
    const url = new Promise((resolve, reject) => {
        child.once("error", reject);
        child.once("exit", code => reject(new Error(`${program} ended with ${code}`)));
        createInterface({ input: child.stdout }).on("line", line => {
            output.push(line);
            const found = line.match(/(https?):\/\/[^/]*:(\d+)\//);
            if (found) resolve(found);
        });
    });
    const [, scheme, port] = await within(patience, url, `${program} prints its URL`);
    return {
        port, output, url: `${scheme}://127.0.0.1:${port}/`, hangUp: () => child.kill("SIGHUP"),
        end: signal => (child.kill(signal), within(patience, ended, `${program} ends`)),
    };
}

const startHub = (port, name = "hub-1") =>
    start(hubProgram, "--port", port, "--demo", "--publish-token", token, "--name", name);
const startHubWithoutDemo = (port, ...flags) =>
    start(hubProgram, "--port", port, "--publish-token", token, ...flags);
const startChat = port =>
    start(chatProgram, `127.0.0.1:${port}`, join(dirname(chatProgram), "chat.html"));
const startSysenv = port => start(sysenvProgram, `127.0.0.1:${port}`);

async function publish(hub, topic, body, type = "application/x-www-form-urlencoded") {
    const answer = await fetch(hub.url + "publish" + topic, {
        method: "POST", headers: { Authorization: `Bearer ${token}`, "Content-Type": type }, body,
        signal: AbortSignal.timeout(patience),
    });
    equal(answer.status, 202, `POST /publish${topic}`);
    return answer.json();
}

// Publishes "1", "2", "3" and so on to a topic, in this order whoever asks for more.
function numbersTo(hub, topic) {
    let sent = 0, last = Promise.resolve();
    const next = () => publish(hub, topic, String(++sent), "text/plain");
    return {
        more(count) {
            for (; count > 0; --count) last = last.then(next);
            last.catch(() => {}); // whoever awaits it hears of it
            return last;
        },
    };
}

const numberIn = id => Number(id.match(/-(\d+)$/)[1]);

// >>wire  Between the browser and a hub: what passes is heard, and it can be cut at any byte
async function wireTo(hub) {
    const links = new Set(), watchers = new Set();
    const streams = [];     // heads of the requests for a stream, as the hub got them
    let said = "";          // what the hub answered
    let share = null;       // of its next bytes, what still passes before a cut
    let gate = Promise.resolve();
    const look = () => { for (const watcher of watchers) watcher(); };
    const server = createSocketServer(near => {
        const far = connectSocket(hub.port, "127.0.0.1");
        const link = { near, far, frozen: false };
        links.add(link);
        let heads = "";
        near.on("data", async bytes => {
            await gate;
            if (far.destroyed) return;
            far.write(bytes);
            heads += bytes.toString("latin1");
            for (let end; (end = heads.indexOf("\r\n\r\n")) >= 0; heads = heads.slice(end + 4)) {
                if (/^GET \/(subscribe|hub\/stats)/.test(heads)) streams.push(heads.slice(0, end));
                look();
            }
        });
        far.on("data", bytes => {
            if (link.frozen) return;
            said += bytes.toString("latin1");
            near.write(share === null ? bytes : bytes.subarray(0, bytes.length * share));
            if (share !== null) wire.cut();
            look();
        });
        near.on("close", () => { links.delete(link); far.destroy(); });
        far.on("close", () => near.end());
        for (const side of [near, far]) side.on("error", () => side.destroy());
    });
    const wire = {
        streams,
        // What arrived before is still read.
        cut() {
            share = null;
            for (const { near, far } of links) { near.end(); far.destroy(); }
        },
        cutInside(part) { share = part; },
        // Requests wait until the function that is returned is called.
        hold() {
            let release;
            gate = new Promise(resolve => { release = resolve; });
            return release;
        },
        // From now on nothing arrives, and nobody says so.
        freeze() { for (const link of links) link.frozen = true; },
        until: (condition, what) => within(patience, new Promise(resolve => {
            const watcher = () => {
                if (condition()) { watchers.delete(watcher); resolve(); }
            };
            watchers.add(watcher);
            watcher();
        }), what),
        nextStream() {
            const seen = streams.length;
            return wire.until(() => streams.length > seen, "the browser asks for a stream again");
        },
        newestNumber: () => Number([...said.matchAll(/^id: \w+-(\d+)$/gm)].at(-1)?.[1] ?? -1),
        heartbeats: () => [...said.matchAll(/^:$/gm)].length,
        close() { server.close(); wire.cut(); },
    };
    await new Promise(resolve => server.listen(0, "127.0.0.1", resolve));
    wire.url = `http://127.0.0.1:${server.address().port}/`;
    return wire;
}

const lastEventId = head => head.match(/^Last-Event-ID: (.*)$/mi)?.[1];

// >>pages
const requested = [], complaints = [];

async function open(browser, url, options) {
    const context = await browser.newContext(options);
    const page = await context.newPage();
    page.setDefaultTimeout(patience);
    page.on("request", request => requested.push(request.url()));
    page.on("pageerror", error => complaints.push(error.message));
    await page.goto(url);
    return page;
}

const until = (page, condition, argument) => page.waitForFunction(condition, argument);
const state = (page, wanted) => page.locator(`#state[data-state="${wanted}"]`).waitFor();
const row = (page, text) => page.locator("#feed li", { hasText: text }).first();
const number = async (page, selector) => Number(await page.locator(selector).textContent());

// The list as a user reads it from its end, "message hello", without times and notes.
const listed = page => page.locator("#feed li").evaluateAll(rows => rows.reverse().map(
    each => `${each.dataset.name} ${each.querySelector(".data").firstChild.textContent}`));

const newestListed = (page, data) => until(page, wanted => wanted ===
    document.querySelector("#feed .data")?.firstChild.textContent, data);

async function expectListed(page, wanted) {
    await newestListed(page, wanted.at(-1).replace(/^\w+ /, ""));
    equal((await listed(page)).join(), wanted.join(), "the list");
}

const messages = (first, last) =>
    Array.from({ length: last - first + 1 }, (unused, index) => `message ${first + index}`);

// An EventSource of our own, on a page of the hub that has no script. `heard` are its events,
// `opened` counts its connections.
async function listen(browser, wire, target) {
    const page = await open(browser, wire.url + "health", desktop);
    await hear(page, target);
    return page;
}

async function hear(page, target) {
    await page.evaluate(address => {
        Object.assign(window, { heard: [], opened: 0, source: new EventSource(address) });
        for (const type of ["message", "gap", "heartbeat"])
            source.addEventListener(type, event => heard.push(`${type} ${event.data}`));
        source.addEventListener("open", () => ++opened);
    }, target);
    await until(page, () => opened === 1);
}

async function expectHeard(page, wanted) {
    await until(page, count => heard.length >= count, wanted.length);
    equal((await page.evaluate(() => heard)).join(), wanted.join(), "what was heard");
}

// How often a listened name arrived: the figure on its button, which the page brings up to date
// once a second.
const arrived = (page, name) => page.evaluate(wanted => {
    const chips = [...document.querySelectorAll("#names button")];
    const chip = chips.find(each => each.firstChild.textContent.trim() === wanted);
    return Number(chip?.querySelector("small").textContent.replaceAll(",", ""));
}, name);

const more = async (page, name, than) => until(page, ([wanted, least]) => {
    const chips = [...document.querySelectorAll("#names button")];
    const chip = chips.find(each => each.firstChild.textContent.trim() === wanted);
    return Number(chip?.querySelector("small").textContent.replaceAll(",", "")) > least;
}, [name, than]);

// Pixels of the chart in the pen of the named lane.
const inked = (page, pen) => page.evaluate(which => {
    const canvas = document.getElementById("chart");
    const wanted = getComputedStyle(document.documentElement).getPropertyValue(`--pen-${which}`);
    const rgb = [1, 3, 5].map(at => parseInt(wanted.trim().slice(at, at + 2), 16));
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let at = 0; at < data.length; at += 4)
        count += rgb.every((part, index) => Math.abs(part - data[at + index]) < 3);
    return count;
}, pen);

// An origin of its own with an empty page. A real server, since a browser takes the address of a
// page that a test made up for a public one, and keeps it from loopback.
async function emptyOrigin() {
    const server = createServer((request, response) => {
        response.writeHead(200, { "Content-Type": "text/html", Connection: "close" });
        response.end("<!doctype html><title>empty</title>");
    });
    await new Promise(resolve => server.listen(0, "127.0.0.1", resolve));
    return { origin: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}

// Reads a stream on a page of another origin: "open", or "error" when the browser refuses.
async function readFrom(browser, origin, stream) {
    const page = await open(browser, origin + "/", desktop);
    const outcome = await within(patience, page.evaluate(address => new Promise(resolve => {
        const events = new EventSource(address);
        for (const type of ["open", "error"])
            events.addEventListener(type, () => (events.close(), resolve(type)));
    }), stream), "the stream opens or fails");
    await page.context().close();
    return outcome;
}

async function expectNoMarkup(page) {
    equal(await page.locator("img, iframe, b.forged").count(), 0, "forged elements");
    equal(await page.locator("script").count(), 1, "scripts");
    equal(await page.evaluate(() => window.forged), undefined, "a forged script's mark");
}

async function expectNoOverflow(page) {
    const [content, view] = await page.evaluate(
        () => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
    expect(content <= view, `the page is ${content} wide in a view of ${view}`);
}

// What axe-core finds wrong for people who see, hear or use a page in another way.
async function expectAccessible(page) {
    await page.evaluate(axe.source);
    const found = await page.evaluate(async () => {
        const { violations } = await axe.run(document);
        return violations.map(({ id, nodes }) => `${id} at ${nodes.map(each => each.target).join()}`);
    });
    equal(found.join("; "), "", "axe-core finds");
}

// Four views at once: desktop and phone, light and dark.
async function openViews(browser, url) {
    const views = [];
    for (const [device, options] of Object.entries({ desktop, phone }))
        for (const colorScheme of ["light", "dark"])
            views.push({ device, colorScheme,
                         page: await open(browser, url, { ...options, colorScheme }) });
    return views;
}

// The background is the root's own, or else the body's, which then fills the view.
async function expectScheme(page, colorScheme) {
    const bright = await page.evaluate(() => {
        const colors = [document.documentElement, document.body].map(
            element => getComputedStyle(element).backgroundColor);
        const rgb = colors.find(color => color !== "rgba(0, 0, 0, 0)").match(/\d+/g);
        return rgb.reduce((sum, part) => sum + Number(part), 0) / 3;
    });
    expect(colorScheme === "dark" ? bright < 64 : bright > 192, `the background has ${bright}`);
}

async function picture(page, name) {
    if (!given.screenshots) return;
    mkdirSync(given.screenshots, { recursive: true });
    await page.screenshot({ path: join(given.screenshots, name + ".png") });
}

// >>hub
const isAt = (page, name) => page.locator("#node", { hasText: `at ${name}` }).waitFor();

async function hubShowsEvents(page) {
    await check("hub: the page says that it is connected", () => state(page, "open"));
    await check("hub: events of the demo appear", async () => {
        for (const name of ["price", "chat", "build", "sensor"])
            await page.locator("#feed .name", { hasText: name }).first().waitFor();
    });
    await check("hub: the newest event stands first", async () => {
        const times = await page.locator("#feed time").evaluateAll(
            all => all.map(each => each.dateTime));
        expect(times.length > 3, "too few events");
        equal(times.join(), [...times].sort().reverse().join(), "the order of times");
    });
    await check("hub: the chart has a line, and a mark for each pen that wrote", async () => {
        for (const pen of [2, 3, 4, 5])
            expect(await inked(page, pen) > 20, `pen ${pen} drew nothing`);
        await until(page, () => Number(document.getElementById("rate").textContent) > 0);
    });
    await check("hub: the chart moves", async () => {
        const before = await page.locator("#chart").screenshot();
        await until(page, () => new Promise(done => requestAnimationFrame(
            () => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))));
        await more(page, "sensor", await arrived(page, "sensor"));
        expect(!before.equals(await page.locator("#chart").screenshot()), "two equal pictures");
    });
    await check("hub: the chart shows the time of a clock that is set", async () => {
        await page.evaluate(() => {
            const real = Date.now, pen = CanvasRenderingContext2D.prototype, write = pen.fillText;
            Date.now = () => real() + 5 * 3600e3;
            window.times = new Set();
            pen.fillText = function(words, ...where) {
                if (/^\d\d:\d\d:\d\d$/.test(words)) times.add(words);
                return write.call(this, words, ...where);
            };
            window.setBack = () => { Date.now = real; pen.fillText = write; };
        });
        const hours = await page.evaluate(() => [-1, 0, 1].map(minutes =>
            new Date(Date.now() - minutes * 60e3).toTimeString().slice(0, 2)));
        await until(page, () => times.size > 0);
        const times = await page.evaluate(() => (setBack(), [...window.times]));
        for (const time of times) expect(hours.includes(time.slice(0, 2)), `${time}, not ${hours}`);
    });
    await check("hub: the hub's own counters are shown", async () => {
        await until(page, () => document.querySelectorAll("#counters dd:not(.per)").length === 9 &&
            ![...document.querySelectorAll("#counters dd")].some(dd => dd.textContent === "–"));
        expect(await number(page, "#connections") >= 1, "no connection counted");
    });
    await check("hub: the page says at which hub it is", () => isAt(page, "hub-1"));
}

async function hubKeepsTextText(hub, page) {
    const forged = `<img src=x onerror="window.forged = 1"><b class="forged">bold</b>`;
    await check("hub: markup in plain data stays text", async () => {
        await publish(hub, "/test", forged, "text/plain");
        await row(page, forged).waitFor();
        await expectNoMarkup(page);
    });
    await check("hub: markup in JSON names and values stays text", async () => {
        const data = { [`<script>window.forged = 2</script>`]: `${forged} in JSON` };
        await publish(hub, "/test", JSON.stringify({ event: "chat", id: `<b>9</b>`, data }),
                      "application/json");
        await row(page, `${forged} in JSON`).waitFor();
        await row(page, "id <b>9</b>").waitFor();
        await expectNoMarkup(page);
    });
    await check("hub: markup in an event name and in a topic stays text", async () => {
        const name = `<img src=x onerror="window.forged=3">`;
        await page.fill("#follow-event", name);
        await page.click("#follow button");
        await publish(hub, "/test", new URLSearchParams({ event: name, data: "named" }));
        await row(page, name).waitFor();
        await page.fill("#follow-topic", "/test/<img src=x>");
        await page.click("#follow button");
        await page.locator("#topics", { hasText: "<img src=x>" }).waitFor();
        await expectNoMarkup(page);
        await page.fill("#follow-topic", "/");
        await page.click("#follow button");
        await state(page, "open");
    });
    await check("hub: the browser refuses HTML from any later edit", async () => {
        const thrown = await page.evaluate(() => {
            try { document.body.innerHTML = "<b>x</b>"; } catch (error) { return error.name; }
        });
        equal(thrown, "TypeError", "an assignment to innerHTML");
    });
}

async function hubFollows(hub, page) {
    await check("hub: events called open and error do not touch the state", async () => {
        for (const event of ["open", "error"]) {
            await page.fill("#follow-event", event);
            await page.click("#follow button");
            await publish(hub, "/test", new URLSearchParams({ event, data: `I am ${event}` }));
            await row(page, `I am ${event}`).waitFor();
        }
        equal(await page.locator("#state").getAttribute("data-state"), "open", "the state");
        equal(await number(page, "#reconnects"), 0, "reconnects");
    });
    await check("hub: a further event name is heard", async () => {
        await page.fill("#follow-event", "deploy");
        await page.click("#follow button");
        await publish(hub, "/test", new URLSearchParams({ event: "deploy", data: "to moon" }));
        await row(page, "to moon").waitFor();
    });
    await check("hub: following a topic leaves the others out, statistics go on", async () => {
        await page.fill("#follow-topic", "/test");
        await page.click("#follow button");
        await state(page, "open");
        await more(page, "stats", await arrived(page, "stats"));
        const prices = await arrived(page, "price");
        await more(page, "stats", await arrived(page, "stats") + 1);
        await publish(hub, "/test/below", "only here", "text/plain");
        await row(page, "only here").waitFor();
        equal(await arrived(page, "price"), prices, "prices arrived");
        await page.locator("#topics button").click();
        await more(page, "price", prices);
    });
    await check("hub: what is followed stands in the address", async () => {
        equal(new URL(page.url()).searchParams.getAll("event").at(-1), "deploy", "the address");
    });
    await check("hub: a paused list stands still, resuming shows what came", async () => {
        await page.click("#pause");
        await publish(hub, "/test", "while paused", "text/plain");
        await page.locator("#pause", { hasText: "new" }).waitFor();
        equal(await row(page, "while paused").count(), 0, "rows drawn while paused");
        await page.click("#pause");
        await row(page, "while paused").waitFor();
    });
    await check("hub: a name switched off leaves the list", async () => {
        const chip = page.locator("#names button", { hasText: "price" });
        await chip.click();
        equal(await chip.getAttribute("aria-pressed"), "false", "aria-pressed");
        await more(page, "price", await arrived(page, "price"));
        equal(await page.locator("#feed .name", { hasText: "price" }).count(), 0, "prices listed");
        await chip.click();
    });
    await check("hub: the list is bounded", async () => {
        for (let sent = 0; sent < 260; sent += 10)
            await Promise.all(Array.from({ length: 10 }, (unused, index) =>
                publish(hub, "/test", `bulk ${sent + index}`, "text/plain")));
        await row(page, "bulk 259").waitFor();
        expect(await page.locator("#feed li").count() <= 200, "more than 200 rows");
    });
}

async function hubComesBack(hub, page) {
    await check("hub: the page shows the loss when the hub is killed", async () => {
        await hub.end("SIGKILL");
        await state(page, "lost");
        await until(page, () => document.title.startsWith("offline"));
    });
    let again = hub;
    await check("hub: the page reconnects by itself and counts it", async () => {
        again = await startHub(hub.port, "hub-2");
        await state(page, "open");
        equal(await number(page, "#reconnects"), 1, "reconnects");
    });
    await check("hub: events flow again", async () => {
        await publish(again, "/test", "after the restart", "text/plain");
        await row(page, "after the restart").waitFor();
        await more(page, "price", await arrived(page, "price"));
    });
    await check("hub: the page says that it is at another one now", () => isAt(page, "hub-2"));
    return again;
}

async function hubFits(browser, hub) {
    const views = await openViews(browser, hub.url);
    const unbroken = "unbroken".repeat(500);
    for (const { device, colorScheme, page } of views) {
        await check(`hub: on a ${device} in ${colorScheme} mode nothing overflows, and axe-core finds nothing`, async () => {
            await state(page, "open");
            await publish(hub, "/test", unbroken, "text/plain");
            await row(page, unbroken.slice(0, 1000)).waitFor();
            await page.locator("#feed li").nth(15).waitFor();
            await expectNoOverflow(page);
            await expectAccessible(page);
            await expectScheme(page, colorScheme);
            expect(await inked(page, 2) > 20, "the chart is empty");
        });
    }
    if (given.screenshots) await showHub(hub, views);
    for (const { page } of views) await page.context().close();
}

// For the pictures: half a minute of paper, with a loss in it.
async function showHub(hub, views) {
    const stats = count => Promise.all(views.map(({ page }) => more(page, "stats", count)));
    for (const { page } of views) page.setDefaultTimeout(90_000);
    await stats(25);
    await hub.end("SIGKILL");
    await Promise.all(views.map(({ page }) => state(page, "lost")));
    Object.assign(hub, await startHub(hub.port));
    await stats(55);
    for (const { device, colorScheme, page } of views)
        await picture(page, `hub-${device}-${colorScheme}`);
}

async function hubObeysItsFlags(browser) {
    const [allowed, other] = [await emptyOrigin(), await emptyOrigin()];
    const hub = await start(hubProgram, "--port=0", "--prefix", "/live/a b", "--demo",
                            "--allow-origin", allowed.origin);
    await check("hub: the page follows another prefix and is not a foreign origin", async () => {
        const page = await open(browser, hub.url, desktop);
        await state(page, "open");
        await page.locator("#feed .name", { hasText: "price" }).first().waitFor();
        await page.context().close();
    });
    await check("hub: a page of an allowed origin may read, another may not", async () => {
        const stream = hub.url + "live/a%20b/";
        equal(await readFrom(browser, allowed.origin, stream), "open", "the allowed");
        equal(await readFrom(browser, other.origin, stream), "error", "the other");
    });
    await check("hub: publishing is off without a token", async () => {
        const answer = await fetch(hub.url + "publish/x", { method: "POST", body: "data=x" });
        equal(answer.status, 404, "POST /publish/x");
        expect((await answer.text()).includes("--publish-token"), "no remedy is named");
    });
    await hub.end("SIGTERM");
    for (const origin of [allowed, other]) origin.close();
}

async function hubIsAccessible(page) {
    await check("hub: controls have names, the page has landmarks", async () => {
        const unnamed = await page.locator("button, input, [role=img]").evaluateAll(all =>
            all.filter(each => !(each.labels?.[0]?.textContent ?? each.textContent).trim() &&
                               !each.getAttribute("aria-label")).map(each => each.outerHTML));
        equal(unnamed.join(), "", "controls without a name");
        for (const role of ["main", "banner"])
            equal(await page.getByRole(role).count(), 1, `landmark ${role}`);
        equal(await page.getByRole("heading", { level: 1 }).count(), 1, "first headings");
    });
}

async function testHub(browser) {
    let hub = await startHub("0");
    const page = await open(browser, hub.url, desktop);
    await hubShowsEvents(page);
    await hubIsAccessible(page);
    await hubKeepsTextText(hub, page);
    await hubFollows(hub, page);
    hub = await hubComesBack(hub, page);
    await hubFits(browser, hub);
    await hubObeysItsFlags(browser);
    await check("hub: SIGTERM lets the clients go and ends with status 0", async () => {
        equal((await hub.end("SIGTERM")).code, 0, "exit status");
        expect(/disconnected [1-9]/.test(hub.output.join("\n")), hub.output.join(" / "));
    });
    await page.context().close();
}

// >>admin
const adminToken = "admin-test";

// A stream of the hub's, by a name that only it has, until it ends.
async function follower(hub, topic) {
    const leaving = new AbortController();
    const response = await fetch(`${hub.url}subscribe?${new URLSearchParams({ topic })}`,
                                 { signal: leaving.signal });
    equal(response.status, 200, `a stream of ${topic}`);
    const ended = response.text().catch(() => "");
    return { leave: () => leaving.abort(), ended: () => within(patience, ended, `${topic} ends`) };
}

async function enter(page, secret = adminToken) {
    await page.fill("#token", secret);
    await page.press("#token", "Enter");
}

const streamRow = (page, topic) => page.locator("#streams li", { hasText: topic });
const topicRow = (page, topic) => page.locator("#topics li", { hasText: topic });
const selected = (page, wanted) => until(
    page, text => document.getElementById("total").textContent === text, wanted);

async function testAdmin(browser) {
    const hub = await startHubWithoutDemo("0", "--admin-token", adminToken, "--name", "hub-1");
    const forged = "/<img src=x onerror='window.forged = 1'>\u202e\"&amp;";
    const page = await open(browser, hub.url + "admin/", desktop);
    const dialogs = [];
    let answer = true;
    page.on("dialog", dialog => {
        dialogs.push(dialog.message());
        return answer ? dialog.accept() : dialog.dismiss();
    });
    await check("admin: a wrong token gets nowhere, and the page asks again", async () => {
        await enter(page, "wrong");
        await page.locator("#said", { hasText: "The token is wrong" }).waitFor();
        expect(!await page.locator("#inside").isVisible(), "the page shows what is inside");
        expect(!requested.some(url => url.includes("wrong")), "the token is in a URL");
    });
    await check("admin: the page says that it is connected, and where", async () => {
        await enter(page);
        await state(page, "open");
        await page.locator("#node", { hasText: "at hub-1" }).waitFor();
        expect(!requested.some(url => url.includes(adminToken)), "the token is in a URL");
        equal(await page.evaluate(() => [localStorage.length, sessionStorage.length,
                                         document.cookie].join()), "0,0,", "what the page stores");
    });
    let all = [];
    await check("admin: streams come and go, with their topics", async () => {
        all = [await follower(hub, "/room/1"), await follower(hub, "/room/1"),
               await follower(hub, "/room/2"), await follower(hub, forged)];
        for (const topic of ["/room/1", "/room/2"]) await streamRow(page, topic).first().waitFor();
        await topicRow(page, "/room/1").filter({ hasText: "2 streams" }).waitFor();
        await until(page, () => document.querySelector("#figures dd").textContent === "5");
        all.pop().leave();
        await topicRow(page, "<img").waitFor({ state: "detached" });
        all.push(await follower(hub, forged));
    });
    await check("admin: what clients name is shown as text", async () => {
        await streamRow(page, "<img src=x").waitFor();
        await topicRow(page, "<img src=x").waitFor();
        await expectNoMarkup(page);
    });
    await check("admin: the browser refuses HTML from any later edit", async () => {
        equal(await page.evaluate(() => {
            try { document.body.innerHTML = "<b>x</b>"; } catch (error) { return error.name; }
        }), "TypeError", "an assignment to innerHTML");
    });
    await check("admin: a row keeps the focus while figures change", async () => {
        await streamRow(page, "/room/2").locator("button.end").focus();
        const age = () => streamRow(page, "/room/2").textContent();
        const before = await age();
        await until(page, ([topic, text]) => [...document.querySelectorAll("#streams li")].some(
            row => row.textContent.includes(topic) && row.textContent !== text), ["/room/2", before]);
        equal(await page.evaluate(() => document.activeElement.textContent), "End", "the focus");
    });
    await check("admin: one stream is ended, and no other", async () => {
        const row = streamRow(page, "/room/2");
        await row.locator("button.end").click();
        await all[2].ended();
        await row.waitFor({ state: "detached" });
        equal(await streamRow(page, "/room/1").count(), 2, "the others");
        await page.locator("#said", { hasText: "1 told to end" }).waitFor();
    });
    await check("admin: what is not confirmed does not happen", async () => {
        answer = false;
        await topicRow(page, "/room/1").locator("button.end").click();
        answer = true;
        expect(dialogs.at(-1).includes("/room/1"), `it asks: ${dialogs.at(-1)}`);
        await topicRow(page, "/room/1").locator("button.link").click();
        await selected(page, "2 of 2");
    });
    await check("admin: all that are selected are ended, and no other", async () => {
        await page.click("#end-all");
        for (const one of all.slice(0, 2)) await one.ended();
        await selected(page, "0 of 0");
        equal(await page.locator("#end-all").isDisabled(), true, "nothing more to end");
        await page.fill("#follows", "");
        await page.press("#follows", "Enter");
        await streamRow(page, "<img src=x").waitFor();
    });
    await check("admin: a topic with markup in its name is ended by it", async () => {
        await topicRow(page, "<img src=x").locator("button.end").click();
        await all[3].ended();
        await topicRow(page, "<img src=x").waitFor({ state: "detached" });
    });
    await check("admin: pages lead through more streams than one has", async () => {
        const many = [];
        for (let i = 0; i < 130; ++i) many.push(await follower(hub, "/many"));
        await topicRow(page, "/many").locator("button.link").click();
        await selected(page, "100 of 130");
        await page.click("#next");
        await selected(page, "30 of 130");
        equal(await page.locator("#next").isDisabled(), true, "it is the last");
        await page.click("#first");
        await selected(page, "100 of 130");
        await page.click("#end-all");
        for (const one of many) await one.ended();
        await selected(page, "0 of 0");
    });
    await check("admin: a topic that cannot be is told of", async () => {
        await page.fill("#topic", "/../x");
        await page.fill("#follows", "");
        await page.press("#topic", "Enter");
        await page.locator("#said.failed", { hasText: "no such topic" }).waitFor();
        await page.fill("#topic", "");
        await page.press("#topic", "Enter");
        await state(page, "open");
    });
    const kept = [await follower(hub, "/" + "unbroken".repeat(60)), await follower(hub, "/a")];
    for (const { device, colorScheme, page: view } of await openViews(browser, hub.url + "admin")) {
        await check(`admin: on a ${device} in ${colorScheme} mode nothing overflows, and axe-core finds nothing`, async () => {
            await expectAccessible(view);
            await enter(view);
            await streamRow(view, "unbroken").waitFor();
            await topicRow(view, "unbroken").waitFor();
            await expectNoOverflow(view);
            await expectAccessible(view);
            await expectScheme(view, colorScheme);
            await picture(view, `admin-${device}-${colorScheme}`);
        });
        await view.context().close();
    }
    await check("admin: a drain is confirmed, ends the hub, and its page says so", async () => {
        const told = page.locator('#state:has-text("Drain")').waitFor();
        await page.fill("#window", "3");
        await page.click("#drain button");
        await told;
        for (const one of kept) await one.ended();
        equal((await hub.end(0)).code, 0, "exit status"); // without a signal
    });
    await page.context().close();
}

// >>resume
// What a page misses while it is away comes when it is back, once and in order; what cannot come
// any more is said. Each check has a hub of its own, and a wire to it; all run at once, since most
// of the time a browser waits before it reconnects.
async function resumes(sentence, flags, body) {
    await check("resume: " + sentence, async () => {
        const hub = await startHubWithoutDemo("0", ...flags), wire = await wireTo(hub);
        const page = await body(hub, wire, numbersTo(hub, "/count"));
        await page.context().close();
        wire.close();
        await hub.end("SIGTERM");
    });
}

const pageGoesOnAfterARestart = (browser, signal, ...flags) => resumes(
    `after ${signal} and a restart the list has one gap`, flags, async (hub, wire, numbers) => {
        const page = await open(browser, hub.url, desktop);
        await state(page, "open");
        const { id: last } = await numbers.more(5);
        await expectListed(page, messages(1, 5));
        await hub.end(signal);
        await state(page, "lost");
        Object.assign(hub, await startHubWithoutDemo(hub.port, ...flags));
        const { id } = await numbers.more(3);
        await state(page, "open");
        await numbers.more(2);
        const start = id.replace(/\d+$/, "0");
        const gap = `gap may have missed messages (epoch), from ${last} to ${start}`;
        await expectListed(page, [...messages(1, 5), gap, ...messages(6, 10)]);
        return page;
    });

// Numbers are published before and while the page is away, in the moment in which its request
// comes in, and after.
const pageGoesOnAfterALoss = (browser, how, lose, ...flags) => resumes(
    `every number is listed once when ${how}`, flags, async (hub, wire, numbers) => {
        const page = await open(browser, wire.url, desktop);
        await state(page, "open");
        for (let round = 1; round <= 3; ++round) {
            await numbers.more(5);
            const asked = wire.nextStream().then(() => numbers.more(5));
            lose(wire, round / 4);
            await Promise.all([state(page, "lost"), numbers.more(10)]);
            await asked;
            await until(page, times => times <=
                Number(document.getElementById("reconnects").textContent), round);
            expect(lastEventId(wire.streams.at(-1)), "the browser sent no Last-Event-ID");
        }
        await expectListed(page, messages(1, 60));
        return page;
    });

// Its statistics, on a stream of their own here, have no ids and so no gap.
const pageSaysWhatIsLost = browser => resumes(
    "the page says what the hub no longer has", ["--threads=1", "--history=16"],
    async (hub, wire, numbers) => {
        const page = await open(browser, wire.url + "?topic=/count", desktop);
        await state(page, "open");
        await numbers.more(5);
        await newestListed(page, "5");
        const release = wire.hold();
        wire.cut();
        await numbers.more(40);
        release();
        await newestListed(page, "45");
        const [gap] = (await listed(page)).slice(5);
        expect(/^gap (missed 24|may have missed) messages \(too_old\), from/.test(gap), gap);
        await expectListed(page, [...messages(1, 5), gap, ...messages(30, 45)]);
        return page;
    });

const pageGoesOnAfterSilence = browser => resumes(
    "a page that heard nothing for long opens anew where it was", [],
    async (hub, wire, numbers) => {
        const page = await open(browser, wire.url, desktop);
        await state(page, "open");
        await numbers.more(3);
        await newestListed(page, "3");
        wire.freeze();
        await numbers.more(3);
        await wire.nextStream();
        await until(page, () => document.getElementById("reconnects").textContent === "1");
        await numbers.more(3);
        await expectListed(page, messages(1, 9));
        return page;
    });

const pageNarrowsItsTopic = browser => resumes(
    "a page that turns to one of its topics misses none of it", [], async (hub, wire, numbers) => {
        const page = await open(browser, wire.url, desktop);
        await state(page, "open");
        await numbers.more(5);
        await newestListed(page, "5");
        await page.fill("#follow-topic", "/count");
        const release = wire.hold();
        await page.click("#follow button");
        await numbers.more(5);
        release();
        await state(page, "open");
        await numbers.more(5);
        await expectListed(page, messages(1, 15));
        return page;
    });

const streamThatHeardNothingComesBack = browser => resumes(
    "a stream that heard nothing yet misses nothing either", ["--heartbeat=3600"],
    async (hub, wire, numbers) => {
        await publish(hub, "/count", "before", "text/plain");
        const page = await listen(browser, wire, "/subscribe/count");
        await wire.until(() => wire.newestNumber() >= 1, "an id to come back with");
        const release = wire.hold();
        wire.cut();
        await numbers.more(2);
        release();
        await until(page, () => opened === 2);
        await numbers.more(1);
        await expectHeard(page, messages(1, 3));
        return page;
    });

const startIsAskedForOnce = (browser, query, oldest) => resumes(
    `?${query} holds at the first connection only`, ["--threads=1"],
    async (hub, wire, numbers) => {
        await numbers.more(10);
        const page = await listen(browser, wire, "/subscribe/count?" + query);
        await expectHeard(page, messages(oldest, 10));
        const release = wire.hold();
        wire.cut();
        await numbers.more(2);
        release();
        await until(page, () => opened === 2);
        for (const head of wire.streams)
            expect(head.startsWith(`GET /subscribe/count?${query} `), head);
        equal(wire.streams.map(lastEventId).map(Boolean).join(), "false,true", "ids were sent");
        await numbers.more(1);
        await until(page, () => heard.at(-1) === "message 13");
        await expectHeard(page, messages(oldest, 13));
        return page;
    });

// The topic is quiet while others take the whole history. Once the client was told what `told`
// waits for, it comes back: with which id, and what does it hear?
const quietStreamComesBack = (browser, sentence, flags, told, check) => resumes(
    sentence, ["--threads=1", "--history=16", ...flags], async (hub, wire) => {
        const page = await listen(browser, wire, "/subscribe/quiet");
        const { id: first } = await publish(hub, "/quiet", "first", "text/plain");
        await expectHeard(page, ["message first"]);
        const { id: newest } = await numbersTo(hub, "/noise").more(40);
        await wire.until(told(wire, numberIn(newest)), "the stream is told");
        await expectHeard(page, ["message first"]);
        wire.cut();
        await until(page, () => opened === 2);
        await publish(hub, "/quiet", "second", "text/plain");
        await until(page, () => heard.at(-1) === "message second");
        const sent = lastEventId(wire.streams[1]);
        check({ first, newest, sent, heard: await page.evaluate(() => heard) });
        return page;
    });

function quietStreamsComeBack(browser) {
    const expectNoGap = ({ heard }) =>
        equal(heard.join(), "message first,message second", "what was heard");
    return Promise.all([
        quietStreamComesBack(browser, "heartbeats move a quiet stream's id, and fire no event",
            ["--heartbeat=0.1"], (wire, newest) => () => wire.newestNumber() >= newest,
            result => {
                expectNoGap(result);
                expect(numberIn(result.sent) >= numberIn(result.newest), `${result.sent} was sent`);
            }),
        quietStreamComesBack(browser, "a quiet stream is told before half of the history is gone",
            ["--heartbeat=3600"], (wire, newest) => () => wire.newestNumber() >= newest - 8,
            expectNoGap),
        quietStreamComesBack(browser, "without --heartbeat-ids a quiet stream has a gap",
            ["--heartbeat=0.1", "--heartbeat-ids=off"],
            (wire, unused, before = wire.heartbeats()) => () => wire.heartbeats() >= before + 3,
            ({ first, sent, heard }) => {
                equal(sent, first, "the id that was sent");
                equal(heard.length, 3, "events");
                const { reason, from } = JSON.parse(heard[1].replace(/^gap /, ""));
                equal(`${reason} from ${from}`, `too_old from ${first}`, "the gap");
            }),
    ]);
}

// A stream of one topic, each event of it before the next one is published.
async function compressedStreamGoesOn(browser) {
    const sentence = "a compressed stream is read event by event, and goes on after a cut";
    const { stderr } = spawnSync(hubProgram, ["--compress", "on", "--log-dir", "/dev/null/none"],
                                 { encoding: "utf8" });
    if (stderr.includes("built without"))
        return skip(`resume: ${sentence}`, "the hub was built without zlib1g-dev");
    await resumes(sentence, ["--compress", "on"], async (hub, wire, numbers) => {
        const page = await open(browser, wire.url + "health", desktop);
        const answered = page.waitForResponse(each => each.url().endsWith("/subscribe/count"));
        await hear(page, "/subscribe/count");
        equal((await answered).headers()["content-encoding"], "gzip", "what the browser gets");
        const heard = [];
        for (let number = 1; number <= 20; ++number) {
            if (number === 11) {
                wire.cut();
                await wire.nextStream();
            }
            await numbers.more(1);
            heard.push(`message ${number}`);
            await expectHeard(page, heard);
        }
        return page;
    });
}

const testResume = browser => Promise.all([
    pageGoesOnAfterARestart(browser, "SIGKILL"),
    pageGoesOnAfterARestart(browser, "SIGTERM", "--drain-window=0.5"),
    pageGoesOnAfterALoss(browser, "streams end at --max-stream-age", () => {},
                         "--max-stream-age=1"),
    pageGoesOnAfterALoss(browser, "the connection is cut within a message",
                         (wire, share) => wire.cutInside(share)),
    pageSaysWhatIsLost(browser),
    pageGoesOnAfterSilence(browser),
    pageNarrowsItsTopic(browser),
    streamThatHeardNothingComesBack(browser),
    startIsAskedForOnce(browser, "last=5", 6),
    startIsAskedForOnce(browser, "from=oldest", 1),
    quietStreamsComeBack(browser),
    compressedStreamGoesOn(browser),
]);

// >>sysenv
const valuesAppear = page => until(page, () => {
    const values = [...document.querySelectorAll(".value")].map(each => each.textContent);
    return values.length === 4 && values.every(value => /^\d/.test(value));
});

async function sysenvFits(browser, sysenv) {
    for (const { device, colorScheme, page } of await openViews(browser, sysenv.url)) {
        await check(`sysenv: on a ${device} in ${colorScheme} mode nothing overflows, and axe-core finds nothing`, async () => {
            await valuesAppear(page);
            await expectNoOverflow(page);
            await expectAccessible(page);
            await expectScheme(page, colorScheme);
        });
        if (given.screenshots) {
            await page.waitForFunction(least => document.querySelector("path").getAttribute("d")
                .split("L").length > least, 40, { timeout: 90_000 });
            await picture(page, `sysenv-${device}-${colorScheme}`);
        }
        await page.context().close();
    }
}

async function sysenvKeepsTextText(browser, sysenv) {
    await check("sysenv: markup in readings makes no element", async () => {
        const forged = `<img src=x onerror="window.forged = 1">`;
        const env = Object.fromEntries(["load_1", "load_5", "load_15", "busy", "cores", "uptime",
            "memory_total", "memory_available"].map(name => [name, forged]));
        const context = await browser.newContext(desktop);
        await context.route("**/subscribe/sysenv", route => route.fulfill({
            contentType: "text/event-stream", body: `event: env\ndata: ${JSON.stringify(env)}\n\n`,
        }));
        const page = await context.newPage();
        await page.goto(sysenv.url);
        await page.locator(".note", { hasText: "not to be read" }).first().waitFor();
        await expectNoMarkup(page);
        await context.close();
    });
}

async function testSysenv(browser) {
    let sysenv = await startSysenv("0");
    const page = await open(browser, sysenv.url, desktop);
    await check("sysenv: the values appear", async () => {
        await state(page, "open");
        await valuesAppear(page);
    });
    await check("sysenv: the values change", async () => {
        const seen = await page.locator("main").textContent();
        await until(page, before => document.querySelector("main").textContent !== before, seen);
    });
    await sysenvKeepsTextText(browser, sysenv);
    await sysenvFits(browser, sysenv);
    await check("sysenv: the page shows the loss when the program is killed", async () => {
        await sysenv.end("SIGKILL");
        await state(page, "lost");
    });
    await check("sysenv: the page reconnects by itself and the values go on", async () => {
        sysenv = await startSysenv(sysenv.port);
        await state(page, "open");
        const seen = await page.locator("main").textContent();
        await until(page, before => document.querySelector("main").textContent !== before, seen);
    });
    await check("sysenv: Ctrl-C ends it", () => sysenv.end("SIGINT"));
    await page.context().close();
}

async function testChat(browser) {
    let chat = await startChat("0");
    const said = (page, text) => page.locator("#lines li", { hasText: text }).waitFor();
    const here = (page, names) => page.locator("#here", { hasText: names }).waitFor();
    const say = async (page, text) => {
        await page.fill("#text", text);
        await page.press("#text", "Enter");
    };
    const pages = [];
    for (const [name, view] of [["Ann", desktop], ["<b class=forged>Bob</b>", phone]]) {
        const page = await open(browser, chat.url, view);
        await page.fill("#name", name);
        await page.press("#name", "Enter");
        await state(page, "open");
        pages.push(page);
    }
    const [ann, bob] = pages;
    await check("chat: both see who is here", async () => {
        for (const page of pages) await here(page, "Here: Ann, <b class=forged>Bob</b>");
    });
    await check("chat: what one says the other reads, as text", async () => {
        await say(ann, "<img src=x onerror='window.forged = 1'>");
        await said(bob, "<img src=x");
        await say(bob, "seen");
        await said(ann, "seen");
        for (const page of pages) await expectNoMarkup(page);
    });
    await check("chat: the pages fit their screens, and axe-core finds nothing", async () => {
        for (const page of pages) {
            await expectNoOverflow(page);
            await expectAccessible(page);
        }
        await picture(ann, "chat");
    });
    await check("chat: after a restart both are in the room again", async () => {
        await chat.end("SIGKILL");
        for (const page of pages) await state(page, "lost");
        chat = await startChat(chat.port);
        for (const page of pages) await state(page, "open");
        await say(ann, "back");
        await said(bob, "back");
    });
    await check("chat: who closes the page is not here any more", async () => {
        await bob.context().close();
        await until(ann, () => document.getElementById("here").textContent === "Here: Ann");
    });
    await check("chat: Ctrl-C ends it", async () => {
        equal((await chat.end("SIGINT")).code, 0, "status");
    });
    await ann.context().close();
}

// >>run
const program = process.env.CHROMIUM ?? "/usr/bin/chromium";
const flags = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-proxy-server",
    // plain.test: pages of this machine that are not of a secure context
    "--host-resolver-rules=MAP plain.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

async function testPages() {
    const browser = await chromium.launch({ executablePath: program, args: flags });
    try {
        for (const test of [testHub, testAdmin, testResume, testSysenv, testChat])
            await test(browser).catch(error => check(test.name, () => { throw error; }));
        await check("all: the pages asked nobody but their own server", () => {
            const own = /^(http:\/\/127\.0\.0\.1:\d+\/|data:)/;
            equal(requested.filter(url => !own.test(url)).join(), "", "foreign requests");
        });
        await check("all: no script failed", () => equal(complaints.join(), "", "errors"));
    } finally {
        await browser.close();
    }
}

try {
    if (!given.tabs) await testPages();
    await testScript({
        check, expect, equal, within, publish, wireTo, program, flags,
        rounds: Number(given.tabs ?? 12), way: given.way,
        startHub: port => startHubWithoutDemo(port, "--heartbeat", "1"),
    }).catch(error => check("testScript", () => { throw error; }));
    if (!given.tabs) {
        await testTls({
            check, skip, equal, within, open, state, expectListed, messages, desktop, token, chromium,
            hubProgram, program, flags, startHub: startHubWithoutDemo,
        }).catch(error => check("testTls", () => { throw error; }));
    }
} finally {
    for (const child of running) child.kill("SIGKILL");
}
console.log(`1..${said}`);
process.exit(failed ? 1 : 0);
