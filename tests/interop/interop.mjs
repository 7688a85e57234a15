// interop.mjs - the example programs with clients and servers that other people wrote. Run it:
//
//   ./tests/run.sh interop
//
// which installs the versions of tests/packages.txt that this Node can run, each major under a name
// of its own, and tests with all of them. Reading from sse.hpp: eventsource, eventsource-parser over fetch, fetch-event-source, openai, the
// Model Context Protocol's SDK and its later client package, curl. Read by sse::client, through examples/client: Node's http
// written to in odd ways, better-sse, nginx with nchan (skipped where it is not installed). Over TLS: see tls.mjs. Only
// loopback. A line for each check, in the Test Anything Protocol; status 1 when one failed.

import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { appendFileSync, existsSync, mkdtempSync, readFileSync, renameSync, rmSync, truncateSync,
         writeFileSync } from "node:fs";
import { createServer, request as httpRequest } from "node:http";
import { createRequire } from "node:module";
import { connect as connectSocket, createServer as createSocketServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve as absolute } from "node:path";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { testTls } from "./tls.mjs";

const { positionals: given } = parseArgs({ allowPositionals: true });
if (given.length !== 1) {
    console.error("usage: node interop.mjs DIRECTORY_OF_THE_BUILT_EXAMPLES");
    process.exit(2);
}
const examples = absolute(given[0]);
const patience = 20_000;    // ms
const token = "interop-test";
const scratch = mkdtempSync(join(tmpdir(), "sse-interop-"));

// >>checks
let said = 0, failed = 0;

async function check(sentence, body) {
    try {
        await body();
        console.log(`ok ${++said} - ${sentence}`);
    } catch (error) {
        failed += 1;
        console.log(`not ok ${++said} - ${sentence}: ${String(error?.message ?? error).split("\n")[0]}`);
    }
}

function skip(sentence, why) {
    console.log(`ok ${++said} - ${sentence} # SKIP ${why}`);
}

function expect(condition, otherwise) {
    if (!condition) throw new Error(otherwise);
}

function equal(actual, wanted, what) {
    const [is, should] = [JSON.stringify(actual), JSON.stringify(wanted)];
    expect(is === should, `${what}: ${is} instead of ${should}`);
}

async function within(promise, what) {
    let timer;
    const late = new Promise((unused, reject) => {
        timer = setTimeout(() => reject(new Error(`${what}: not within ${patience} ms`)), patience);
    });
    return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function fails(promise, what) {
    const error = await within(promise.then(() => null, reason => reason), what);
    expect(error, `${what}: it did not fail`);
    return error;
}

// What comes by and by, and who waits for it.
function mailbox(what) {
    const items = [];
    let taken = 0, wake = () => {};
    const box = {
        items,
        push(item) { items.push(item); wake(); },
        async until(condition, that) {
            const reached = (async () => {
                while (!condition()) await new Promise(resolve => { wake = resolve; });
            })();
            try {
                await within(reached, that);
            } catch (error) {
                throw new Error(`${error.message}; came: ${JSON.stringify(items).slice(-300)}`);
            }
        },
        async next() {
            const at = taken++;
            await box.until(() => items.length > at, `${what}, number ${at + 1}`);
            return items[at];
        },
        async take(count) {
            const all = [];
            while (all.length < count) all.push(await box.next());
            return all;
        },
    };
    return box;
}

// >>packages  Each major version of a package that is installed, oldest first
const dependencies = Object.keys(
    JSON.parse(readFileSync(new URL("package.json", import.meta.url))).dependencies);

function majorsOf(name) {
    const majors = dependencies.filter(other => other.replace(/-\d+$/, "") === name)
        .map(other => Number(other.match(/\d+$/)[0])).sort((one, other) => one - other);
    if (majors.length === 0) {
        skip(name, `no version of it runs on Node ${process.version}`);
    }
    return majors;
}

// test(label, module): with each of them; part is what is imported of it.
async function withEach(name, part, test) {
    for (const major of majorsOf(name)) {
        const label = `${name} ${major}`;
        try {
            await test(label, await import(`${name}-${major}${part}`));
        } catch (error) {
            await check(label, () => { throw error; });
        }
    }
}

// >>programs
const running = new Set();

function launch(program, args) {
    const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
    const output = mailbox(`a line of ${program}`);
    const status = new Promise((resolve, reject) => {
        child.once("error", reject);
        child.once("close", (code, signal) => resolve(code ?? signal));
    }).finally(() => running.delete(child));
    status.catch(() => {});
    running.add(child);
    const said = { text: "" };
    child.stderr.on("data", bytes => { said.text += bytes; });
    createInterface({ input: child.stdout }).on("line", line => output.push(line));
    return {
        output, said, status,
        lineWith: text => output.until(() => output.items.some(line => line.includes(text)),
                                       `"${text}" of ${program}`),
        exit: () => within(status, `${program} ends`),
        end(signal) { child.kill(signal); return this.exit(); },
    };
}

// What a program must do before it ends.
const before = (program, promise) => Promise.race([promise, program.status.then(status => {
    throw new Error(`it ended with status ${status}: ${program.said.text}`);
})]);

// An example that prints the URL it listens on.
async function start(name, ...args) {
    const program = launch(join(examples, name), args);
    const first = await before(program, program.output.next());
    const found = first.match(/(https?):\/\/[^/]*:(\d+)\//);
    expect(found, `${name} prints its URL, not ${first}`);
    return { ...program, port: Number(found[2]), url: `${found[1]}://127.0.0.1:${found[2]}` };
}

async function endsWell(program) {
    equal(await program.end("SIGINT"), 0, "status after Ctrl-C");
}

const startHub = (port = "0") => start("hub", "--port", String(port), "--publish-token", token);

async function publish(hub, topic, data) {
    const answer = await fetch(`${hub.url}/publish/${topic}`, {
        method: "POST", body: data, signal: AbortSignal.timeout(patience),
        headers: { Authorization: `Bearer ${token}`, "Content-Type": "text/plain" },
    });
    equal(answer.status, 202, `POST /publish/${topic}`);
    await answer.text();
}

// Standard output of a program that ends by itself.
const run = (program, ...args) => within(new Promise((resolve, reject) => {
    const child = execFile(program, args, (error, text, errors) => {
        running.delete(child);
        if (error) reject(new Error(`${program}: ${errors || error.message}`)); else resolve(text);
    });
    running.add(child);
}), `${program} ${args.join(" ")}`);

const curl = (...args) => run("curl", "-sSN", "--max-time", "20", ...args);

// Events in the form of a stream, as curl and examples/client print them.
function eventsIn(text) {
    return text.split("\n\n").slice(0, -1).map(block => {
        const event = { type: "message", data: [] };
        for (const line of block.split("\n")) {
            const [, name, value] = line.match(/^([a-z]*): ?(.*)$/) ?? [];
            if (name === "data") event.data.push(value);
            if (name === "event") event.type = value;
            if (name === "id") event.id = value;
        }
        return { ...event, data: event.data.join("\n") };
    }).filter(event => event.data !== "");
}

// >>wire  Between a client and a server: it counts connections, hears requests, and can be cut
async function wireTo(port) {
    const links = new Set();
    const requests = mailbox("a request");
    const server = createSocketServer(near => {
        const far = connectSocket(port, "127.0.0.1");
        const link = { near, far };
        links.add(link);
        wire.connections += 1;
        let heads = "";
        near.on("data", bytes => {
            far.write(bytes);
            heads += bytes.toString("latin1");
            for (let end; (end = heads.indexOf("\r\n\r\n")) >= 0; heads = heads.slice(end + 4))
                requests.push(heads.slice(0, end));
        });
        far.on("data", bytes => near.write(bytes));
        near.on("close", () => { links.delete(link); far.destroy(); });
        far.on("close", () => near.end());
        for (const side of [near, far]) side.on("error", () => side.destroy());
    });
    const wire = {
        requests, connections: 0,
        reset() { for (const { near } of links) near.resetAndDestroy(); },
        close() { server.close(); wire.reset(); },
    };
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    wire.url = `http://127.0.0.1:${server.address().port}`;
    return wire;
}

// Node's fetch opens a second one when it is asked in the very moment in which a body has ended.
function expectReused(wire) {
    const requests = wire.requests.items.length;
    expect(wire.connections <= 2 && requests >= 4,
           `${wire.connections} connections for ${requests} requests`);
}

const lastEventId = head => head.match(/^last-event-id: (.*)$/mi)?.[1];

// >>eventsource
function openEventSource(EventSource, url, ...types) {
    const events = mailbox("an event");
    const source = new EventSource(url);
    for (const type of ["message", ...types]) {
        source.addEventListener(type, ({ data, lastEventId: id }) =>
            events.push({ type, data, id }));
    }
    return { source, events };
}

async function testEventSource(label, { EventSource }) {
    await check(`${label}: a cut connection costs nothing, its Last-Event-ID is heard`, async () => {
        const hub = await startHub(), wire = await wireTo(hub.port);
        const { source, events } = openEventSource(EventSource, `${wire.url}/subscribe/room`, "gap");
        await within(once(source, "open"), "open");
        for (const data of ["one", "two\nlines", "3"]) await publish(hub, "room", data);
        const before = await events.take(3);
        wire.reset();
        for (const data of ["four", "5"]) await publish(hub, "room", data);
        const after = await events.take(2);
        equal([...before, ...after].map(event => `${event.type} ${event.data}`),
              ["message one", "message two\nlines", "message 3", "message four", "message 5"],
              "events");
        equal(lastEventId(wire.requests.items.at(-1)), before[2].id, "Last-Event-ID");
        source.close();
        wire.close();
        await endsWell(hub);
    });
    await check(`${label}: a server that died and came back tells the gap`, async () => {
        let hub = await startHub();
        const { source, events } = openEventSource(EventSource, `${hub.url}/subscribe/room`, "gap");
        await within(once(source, "open"), "open");
        await publish(hub, "room", "before");
        await events.next();
        await hub.end("SIGKILL");
        hub = await startHub(hub.port);
        await publish(hub, "room", "after");
        const [gap, after] = await events.take(2);
        equal([gap.type, JSON.parse(gap.data).reason, after.data], ["gap", "epoch", "after"], "seen");
        source.close();
        await endsWell(hub);
    });
    await check(`${label}: tail over a rotation and a truncation`, async () => {
        const path = join(scratch, "log"), tail = (writeFileSync(path, "1\n2\n3\n"),
                                                   await start("tail", "127.0.0.1:0", path));
        const { source, events } = openEventSource(EventSource, `${tail.url}/?lines=2`);
        const data = async count => (await events.take(count)).map(event => event.data);
        // The file may be read after the stream began: then all three are new to it.
        const first = await data(2);
        if (first[0] === "1") first.push(...await data(1));
        equal(first.at(-1), "3", "the last line");
        appendFileSync(path, "4\nhalf");
        equal(await data(1), ["4"], "what was added");
        appendFileSync(path, " line\n");
        equal(await data(1), ["half line"], "completed");
        renameSync(path, path + ".1");
        appendFileSync(path + ".1", "late\n");
        writeFileSync(path, "new 1\nnew 2\n");
        equal(await data(3), ["late", "new 1", "new 2"], "after the rotation");
        truncateSync(path);
        appendFileSync(path, "cut\n");
        equal(await data(1), ["cut"], "after the truncation");
        source.close();
        await endsWell(tail);
    });
    await check(`${label}: the end of a job ends it`, async () => {
        const job = await start("job", "127.0.0.1:0");
        const path = (await (await fetch(`${job.url}/jobs`, { method: "POST" })).text()).trim();
        const { source, events } = openEventSource(EventSource, job.url + path, "log", "done");
        equal((await events.take(5)).map(event => event.data),
              ["now: mix", "now: knead", "now: rise", "now: bake", "bread"], "events");
        const closed = new Promise(resolve => source.addEventListener("error", () => {
            if (source.readyState === EventSource.CLOSED) resolve();
        }));
        await within(closed, "204 ends it");
        await endsWell(job);
    });
    await check(`${label}: the page and the stream of beast on one port`, async () => {
        const beast = await start("beast", "127.0.0.1:0");
        const page = await fetch(beast.url + "/");
        expect((await page.text()).includes("EventSource"), "no page");
        const { source, events } = openEventSource(EventSource, `${beast.url}/events/clock`);
        for (const event of await events.take(2)) equal(event.data.length, 24, "length of the time");
        source.close();
        await endsWell(beast);
    });
}

// >>eventsource-parser
async function readStream(EventSourceParserStream, url, init = {}) {
    const answer = await fetch(url, { signal: AbortSignal.timeout(patience), ...init });
    equal(answer.status, 200, url);
    const events = [];
    const decoded = answer.body.pipeThrough(new TextDecoderStream())
        .pipeThrough(new EventSourceParserStream());
    for await (const event of decoded) events.push(event);
    return { answer, events };
}

const ask = (more = {}) => ({
    model: "parrot", messages: [{ role: "user", content: "hello" }], max_tokens: 5, ...more,
});

async function testParser(label, { EventSourceParserStream }) {
    await check(`${label}: POSTs over fetch, to their ends, connections used again`, async () => {
        const tokens = await start("tokens", "127.0.0.1:0"), wire = await wireTo(tokens.port);
        for (let round = 0; round < 4; ++round) {
            const { events } = await readStream(EventSourceParserStream, `${wire.url}/v1/chat/completions`, {
                method: "POST", body: JSON.stringify(ask({ stream: true })),
            });
            equal(events.length, 8, "role, 5 tokens, the reason, [DONE]");
            equal(events.at(-1).data, "[DONE]", "the last one");
            equal(JSON.parse(events[1].data).choices[0].delta.content, "Server-Sent", "the first");
        }
        expectReused(wire);
        wire.close();
        await endsWell(tokens);
    });
    await check(`${label}: a job from its beginning, and after an id`, async () => {
        const job = await start("job", "127.0.0.1:0");
        const started = await fetch(`${job.url}/jobs`, { method: "POST" });
        const path = (await started.text()).trim();
        equal([started.status, started.headers.get("Location")], [202, path], "POST /jobs");
        const { events } = await readStream(EventSourceParserStream, job.url + path);
        equal(events.filter(event => event.event === "log").map(event => event.data),
              ["now: mix", "now: knead", "now: rise", "now: bake"], "log");
        equal(events.at(-1).event, "done", "the last event");
        const later = await readStream(EventSourceParserStream, job.url + path, {
            headers: { "Last-Event-ID": events.at(-3).id },
        });
        equal(later.events.map(event => event.id), events.slice(-2).map(event => event.id), "ids");
        const over = await fetch(job.url + path, {
            headers: { "Last-Event-ID": events.at(-1).id },
        });
        equal(over.status, 204, "who has all of it");
        equal((await fetch(`${job.url}/jobs/unknown`)).status, 404, "an unknown job");
        await endsWell(job);
    });
}

// >>fetch-event-source  Made for browsers: it wants a window and a document
async function testFetchEventSource() {
    const name = "@microsoft/fetch-event-source", [major] = majorsOf(name);
    if (!major) return;
    // Its ECMAScript modules name each other without their suffix, which Node refuses.
    const { fetchEventSource } = createRequire(import.meta.url)(`${name}-${major}`);
    const label = `fetch-event-source ${major}`;
    globalThis.window = globalThis;
    globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
    await check(`${label}: a job over a cut connection, each event once`, async () => {
        const job = await start("job", "127.0.0.1:0"), wire = await wireTo(job.port);
        const path = (await (await fetch(`${job.url}/jobs`, { method: "POST" })).text()).trim();
        const events = [];
        await within(fetchEventSource(wire.url + path, {
            headers: { Authorization: "Bearer anything" },
            onmessage(event) {
                events.push(event);
                if (events.length === 3) wire.reset();
            },
            onerror: () => 10, // ms until it tries again
        }), "the job's end");
        equal(events.filter(event => event.event === "log").length, 4, "lines of the log");
        equal(events.at(-1).event, "done", "the last event");
        equal(new Set(events.map(event => event.id)).size, events.length, "different ids");
        equal(lastEventId(wire.requests.items[1]), events[2].id, "Last-Event-ID");
        wire.close();
        await endsWell(job);
    });
    delete globalThis.window; // openai would take this for a browser
    delete globalThis.document;
}

// >>openai
async function testOpenai(label, { default: OpenAI }) {
    const tokens = await start("tokens", "127.0.0.1:0"), wire = await wireTo(tokens.port);
    const openai = new OpenAI({
        baseURL: `${wire.url}/v1`, apiKey: "none", maxRetries: 0, timeout: patience,
    });
    const { completions } = openai.chat;
    const textOf = async stream => {
        let text = "", last;
        for await (const chunk of stream) {
            text += chunk.choices[0]?.delta?.content ?? "";
            last = chunk;
        }
        return { text, last };
    };
    await check(`${label}: the models`, async () => {
        const page = await openai.models.list();
        equal(page.data.map(model => model.id), ["parrot"], "models");
    });
    await check(`${label}: a completion in one piece`, async () => {
        const answer = await completions.create(ask());
        equal(answer.choices[0].message.content, "Server-Sent Events are a plain", "content");
        equal(answer.choices[0].finish_reason, "length", "reason");
        equal(answer.usage.completion_tokens, 5, "tokens");
    });
    await check(`${label}: a completion as a stream, with its usage`, async () => {
        const stream = await completions.create(
            ask({ stream: true, stream_options: { include_usage: true }, max_tokens: null }));
        const { text, last } = await textOf(stream);
        expect(text.startsWith("Server-Sent Events") && text.endsWith("to end."), text);
        equal(last.usage.completion_tokens, text.split(" ").length, "tokens");
    });
    await check(`${label}: the helper that collects a stream`, async () => {
        const runner = (completions.stream ? completions : openai.beta.chat.completions)
            .stream(ask()); // until version 4 it was in beta
        const answer = await within(runner.finalChatCompletion(), "the final completion");
        equal(answer.choices[0].message.content, "Server-Sent Events are a plain", "content");
    });
    await check(`${label}: its connections are used again`, () => expectReused(wire));
    await check(`${label}: when the client leaves, the server stops`, async () => {
        const seen = tokens.output.items.length;
        let count = 0;
        for await (const chunk of await completions.create(ask({ stream: true, max_tokens: 40 })))
            if (++count === 3) break;
        await tokens.output.until(() => tokens.output.items.length > seen, "what it says");
        const [, how, said] = tokens.output.items[seen].match(/^(\w+) after (\d+) tokens$/);
        equal(how, "stopped", "how it ended");
        expect(Number(said) < 40, `it said ${said}`);
    });
    await check(`${label}: errors are its own`, async () => {
        const unknown = await fails(completions.create(ask({ model: "owl" })), "an unknown model");
        expect(unknown instanceof OpenAI.NotFoundError, `not found, but ${unknown}`);
        equal(unknown.code, "model_not_found", "code");
        const bad = await fails(completions.create(ask({ messages: undefined })), "no messages");
        expect(bad instanceof OpenAI.BadRequestError, `bad request, but ${bad}`);
        const path = await fails(openai.get("/unheard-of"), "an unknown path");
        equal([path.status, path.type], [404, "invalid_request_error"], "status and type");
    });
    wire.close();
    await check(`${label}: the server ends on Ctrl-C`, () => endsWell(tokens));
}

// >>mcp
const testMcpSdk = () => withEach("@modelcontextprotocol/sdk", "/client/index.js",
                                  async (label, { Client }) => {
    const path = label.replace(" ", "-");
    const { StreamableHTTPClientTransport } = await import(`${path}/client/streamableHttp.js`);
    const { LoggingMessageNotificationSchema } = await import(`${path}/types.js`);
    await testMcp(label, Client, StreamableHTTPClientTransport,
                  LoggingMessageNotificationSchema, [undefined]);
});

const testMcpClient = () => withEach("@modelcontextprotocol/client", "",
    (label, { Client, StreamableHTTPClientTransport }) =>
        testMcp(label, Client, StreamableHTTPClientTransport, "notifications/message", []));

// beforeOptions: what callTool takes between the call and its options.
async function testMcp(label, Client, Transport, logging, beforeOptions) {
    const server = await start("mcp", "127.0.0.1:0"), url = new URL(`${server.url}/mcp`);
    const client = new Client({ name: "interop", version: "1.0.0" });
    const transport = new Transport(url);
    const logged = mailbox("a log message");
    client.setNotificationHandler(logging, ({ params }) => logged.push(params.data));
    await check(`${label}: initialize`, async () => {
        await within(client.connect(transport), "connect");
        equal(client.getServerVersion().name, "countdown", "name");
        expect(transport.sessionId, "no session");
    });
    await check(`${label}: the list of tools, and ping`, async () => {
        const { tools } = await client.listTools();
        equal(tools.map(tool => tool.name), ["count_down"], "tools");
        await client.ping();
    });
    await check(`${label}: a call tells its progress, then its result`, async () => {
        const progress = [];
        const result = await client.callTool(
            { name: "count_down", arguments: { from: 3 } }, ...beforeOptions,
            { onprogress: step => progress.push(`${step.progress}/${step.total}`) });
        equal(progress, ["1/3", "2/3", "3/3"], "progress");
        equal(result.content[0].text, "Lift-off after 3", "result");
    });
    await check(`${label}: two calls at once`, async () => {
        const call = from => client.callTool({ name: "count_down", arguments: { from } });
        const results = await within(Promise.all([call(2), call(1)]), "both");
        equal(results.map(result => result.content[0].text),
              ["Lift-off after 2", "Lift-off after 1"], "results");
    });
    await check(`${label}: the session's own stream`, async () => {
        // It opens beside the first calls; what was published before is not for it.
        const call = () => client.callTool({ name: "count_down", arguments: { from: 1 } });
        await call();
        equal(await logged.next(), "a countdown ended", "log");
    });
    await check(`${label}: a call whose connection is cut is resumed by GET, and runs once`, async () => {
        const wire = await wireTo(server.port), heads = wire.requests.items;
        const caller = new Client({ name: "interop", version: "1.0.0" });
        await within(caller.connect(new Transport(new URL(`${wire.url}/mcp`))), "connect");
        const progress = [];
        let before = 0;
        const result = await within(caller.callTool(
            { name: "count_down", arguments: { from: 40 } }, ...beforeOptions,
            { onprogress: step => {
                progress.push(step.progress);
                if (progress.length !== 3) return;
                before = heads.length;
                wire.reset();
            } }), "the result");
        equal(result.content[0].text, "Lift-off after 40", "result");
        equal(progress, Array.from({ length: 40 }, (unused, n) => n + 1), "progress");
        const later = heads.slice(before); // each after the body of the one before
        expect(later.some(head => /GET \/mcp HTTP/.test(head) && /^last-event-id: \S/im.test(head)),
               `no GET with an id: ${later}`);
        expect(!later.some(head => /POST \/mcp HTTP/.test(head)), `it called again: ${later}`);
        await caller.close();
        wire.close();
    });
    await check(`${label}: errors`, async () => {
        const tool = await fails(client.callTool({ name: "count_up", arguments: {} }), "a tool");
        equal(tool.code, -32602, "code of an unknown tool");
        const prompt = await fails(client.complete({
            ref: { type: "ref/prompt", name: "x" }, argument: { name: "y", value: "z" },
        }), "completion");
        expect(prompt, "an error");
    });
    await check(`${label}: a page of another machine is refused, one of this is not`, async () => {
        const status = origin => curl("-o", "-", "-w", "%{http_code}", "-H", `Origin: ${origin}`,
                                      "--json", '{"jsonrpc":"2.0","id":1,"method":"initialize"}',
                                      url.href);
        expect((await status("https://evil.example")).endsWith("403"), "let in");
        expect((await status("http://localhost:5173")).endsWith("200"), "refused");
    });
    await check(`${label}: requests without a session, or with a strange one`, async () => {
        const post = headers => fetch(url, {
            method: "POST", headers, body: '{"jsonrpc":"2.0","id":1,"method":"tools/list"}',
        });
        equal((await post({})).status, 400, "without");
        equal((await post({ "Mcp-Session-Id": "guessed" })).status, 404, "strange");
        equal((await fetch(url)).status, 400, "GET without");
        const broken = await fetch(url, { method: "POST", body: "{" });
        equal([broken.status, (await broken.json()).error.code], [400, -32700], "broken JSON");
    });
    await check(`${label}: the session ends by DELETE, and the server by Ctrl-C`, async () => {
        const session = transport.sessionId;
        await within(transport.terminateSession(), "DELETE");
        const headers = { "Mcp-Session-Id": session };
        equal((await fetch(url, { headers })).status, 404, "afterwards");
        await client.close();
        await endsWell(server);
    });
}

// The revision without sessions: 2026-07-28.
const testMcpStateless = () => withEach("@modelcontextprotocol/client", "",
                                        async (label, { Client, StreamableHTTPClientTransport }) => {
    const revision = "2026-07-28", about = `${label}, ${revision}`;
    const server = await start("mcp", "127.0.0.1:0"), url = new URL(`${server.url}/mcp`);
    const wire = await wireTo(server.port);
    const connect = async mode => {
        const made = new Client({ name: "interop", version: "1.0.0" }, { versionNegotiation: { mode } });
        await within(made.connect(new StreamableHTTPClientTransport(new URL(`${wire.url}/mcp`))), "connect");
        return made;
    };
    let client;
    await check(`${about}: a client pinned to it connects, and one that asks finds it`, async () => {
        client = await connect({ pin: revision });
        equal(client.getServerVersion().name, "countdown", "name");
        equal(client.getNegotiatedProtocolVersion(), revision, "pinned");
        const asking = await connect("auto");
        equal(asking.getNegotiatedProtocolVersion(), revision, "asked");
        await asking.close();
        const older = await connect("legacy");
        equal(older.getNegotiatedProtocolVersion(), "2025-11-25", "older");
        await older.close();
    });
    await check(`${about}: the list of tools`, async () => {
        const { tools } = await client.listTools();
        equal(tools.map(tool => tool.name), ["count_down"], "tools");
    });
    await check(`${about}: a call tells its progress, then its result`, async () => {
        const progress = [];
        const result = await client.callTool(
            { name: "count_down", arguments: { from: 3 } },
            { onprogress: step => progress.push(`${step.progress}/${step.total}`) });
        equal(progress, ["1/3", "2/3", "3/3"], "progress");
        equal(result.content[0].text, "Lift-off after 3", "result");
    });
    await check(`${about}: two calls at once`, async () => {
        const call = from => client.callTool({ name: "count_down", arguments: { from } });
        const results = await within(Promise.all([call(2), call(1)]), "both");
        equal(results.map(result => result.content[0].text),
              ["Lift-off after 2", "Lift-off after 1"], "results");
    });
    await check(`${about}: no session, no GET`, async () => {
        const sessions = wire.requests.items.filter(head => /^mcp-protocol-version: 2026/im.test(head))
            .filter(head => /^mcp-session-id/im.test(head) || !/POST \/mcp HTTP/.test(head));
        equal(sessions, [], "requests");
    });
    await check(`${about}: errors`, async () => {
        const tool = await fails(client.callTool({ name: "count_up", arguments: {} }), "a tool");
        equal(tool.code, -32602, "code of an unknown tool");
        const from = await fails(client.callTool({ name: "count_down", arguments: { from: 0 } }), "0");
        equal(from.code, -32602, "code of a wrong argument");
        await client.close();
    });
    const _meta = {
        "io.modelcontextprotocol/protocolVersion": revision,
        "io.modelcontextprotocol/clientInfo": { name: "interop", version: "1.0.0" },
        "io.modelcontextprotocol/clientCapabilities": {},
    };
    const post = async (method, params, headers, meta = _meta) => {
        const answer = await fetch(url, {
            method: "POST",
            headers: { "MCP-Protocol-Version": revision, "Mcp-Method": method, ...headers },
            body: JSON.stringify({ jsonrpc: "2.0", id: 7, method, params: { ...params, _meta: meta } }),
        });
        const text = await answer.text();
        const last = text.startsWith("{") ? text : eventsIn(text).at(-1).data;
        return { status: answer.status, text, ...JSON.parse(last) };
    };
    await check(`${about}: headers that contradict the body are refused`, async () => {
        const list = headers => post("tools/list", {}, headers);
        equal((await list({})).status, 200, "as it should be");
        for (const headers of [{ "MCP-Protocol-Version": "2025-11-25" }, { "Mcp-Method": "tools/call" },
                               { "MCP-Protocol-Version": "" }, { "Mcp-Method": "" }]) {
            const { status, error } = await list(headers);
            equal([status, error?.code], [400, -32020], JSON.stringify(headers));
        }
        const call = name => post("tools/call", { name: "count_down", arguments: { from: 1 } },
                                  name === undefined ? {} : { "Mcp-Name": name });
        const encoded = text => `=?base64?${Buffer.from(text).toString("base64")}?=`;
        equal((await call("count_down")).result.content[0].text, "Lift-off after 1", "plain");
        equal((await call(encoded("count_down"))).result.resultType, "complete", "in Base64");
        for (const name of [undefined, "count_up", encoded("count_up"), "=?base64?Y29?=", "=?base64?!?="]) {
            const { status, error } = await call(name);
            equal([status, error?.code], [400, -32020], `name ${name}`);
        }
        const bare = await post("tools/list", {}, {}, {});
        equal([bare.status, bare.error.code], [400, -32020], "without a version in the body");
    });
    await check(`${about}: other versions, methods and missing capabilities are told`, async () => {
        const key = "io.modelcontextprotocol/protocolVersion";
        const other = await post("tools/list", {}, { "MCP-Protocol-Version": "1900-01-01" },
                                 { ..._meta, [key]: "1900-01-01" });
        equal([other.status, other.error.code], [400, -32022], "an unknown version");
        equal(other.error.data.requested, "1900-01-01", "requested");
        expect(other.error.data.supported.includes(revision), "supported");
        const method = await post("ping", {}, {});
        equal([method.status, method.error.code, method.id], [404, -32601, 7], "an unknown method");
        const { "io.modelcontextprotocol/clientCapabilities": unused, ...poor } = _meta;
        const missing = await post("tools/list", {}, {}, poor);
        equal([missing.status, missing.error.code], [400, -32602], "without capabilities");
    });
    await check(`${about}: a log message comes if it is asked for, on the stream of its request`, async () => {
        const call = level => post("tools/call", { name: "count_down", arguments: { from: 1 } },
                                   { "Mcp-Name": "count_down" },
                                   { ..._meta, ...level && { "io.modelcontextprotocol/logLevel": level } });
        expect((await call("info")).text.includes("a countdown ended"), "asked for");
        expect(!(await call("error")).text.includes("a countdown ended"), "asked for errors alone");
        expect(!(await call()).text.includes("a countdown ended"), "not asked for");
    });
    wire.close();
    await check(`${about}: the server ends by Ctrl-C`, () => endsWell(server));
});

// >>curl
async function testCurl() {
    await check("curl: two streams over one connection", async () => {
        const tokens = await start("tokens", "127.0.0.1:0");
        const url = `${tokens.url}/v1/chat/completions`;
        const text = await curl("--json", JSON.stringify(ask({ stream: true })),
                                "-w", "\nconnects: %{num_connects}\n", url, url);
        equal(text.match(/connects: \d/g), ["connects: 1", "connects: 0"], "connections");
        equal(text.match(/data: \[DONE\]/g).length, 2, "ends");
        await endsWell(tokens);
    });
    await check("curl --http1.0: the end of the connection is the end of the stream", async () => {
        const tokens = await start("tokens", "127.0.0.1:0");
        const text = await curl("--http1.0", "-i", "-d", JSON.stringify(ask({ stream: true })),
                                `${tokens.url}/v1/chat/completions`);
        expect(!/transfer-encoding/i.test(text), "chunked, though HTTP/1.0 knows no chunks");
        expect(text.endsWith("data: [DONE]\n\n"), text.slice(-200));
        await endsWell(tokens);
    });
    await check("curl: a job, as its first line says", async () => {
        const job = await start("job", "127.0.0.1:0");
        const path = (await curl("-d", "", `${job.url}/jobs`)).trim();
        const events = eventsIn(await curl(job.url + path));
        equal(events.at(-1), { type: "done", data: "bread", id: events.at(-1).id }, "the last one");
        await endsWell(job);
    });
    await check("curl: what the program adds beside the server is in its stream", async () => {
        const embed = await start("embed", "127.0.0.1:0");
        expect(Number(await curl("-d", "", `${embed.url}/add`)) >= 1000, "the response");
        const reader = launch("curl", ["-sSN", `${embed.url}/subscribe/counter`]);
        await reader.lineWith("data: 10");
        await reader.end("SIGTERM");
        await endsWell(embed);
    });
}

// >>gzip  Each event is there before the next one is published, though the stream is compressed
const pythonReader = `
import http.client, sys, zlib
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.request("GET", "/subscribe/room", headers={"Accept-Encoding": "gzip"})
response = connection.getresponse()
print(response.status, response.headers["Content-Encoding"], flush=True)
plain = zlib.decompressobj(31)
while piece := response.read1(65536):
    sys.stdout.write(plain.decompress(piece).decode())
    sys.stdout.flush()
print("whole" if plain.eof and not plain.unused_data else "cut", flush=True)
`;

async function testGzip() {
    let hub;
    try {
        hub = await start("hub", "--port", "0", "--publish-token", token, "--compress", "on");
    } catch (error) {
        if (!error.message.includes("built without")) throw error;
        return skip("gzip", "the hub was built without zlib1g-dev");
    }
    await check("gzip: fetch, curl and Python read event by event, late ones too, to the end", async () => {
        const message = number => `a price, once more a price: ${number}`;
        const lineOf = number => `data: ${message(number)}`;
        const answer = await fetch(`${hub.url}/subscribe/room`);
        equal(answer.headers.get("content-encoding"), "gzip", "what fetch gets");
        const lines = mailbox("a line of fetch");
        const body = (async () => {
            let rest = "";
            for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
                const parts = (rest + piece).split("\n");
                rest = parts.pop();
                parts.forEach(lines.push);
            }
        })();
        const python = launch("python3", ["-uc", pythonReader, String(hub.port)]);
        equal(await before(python, python.output.next()), "200 gzip", "what Python gets");
        const readers = [
            number => lines.until(() => lines.items.includes(lineOf(number)), "fetch"),
            number => python.lineWith(lineOf(number)),
        ];
        let late;
        for (let number = 1; number <= 600; ++number) { // 32 KiB, after which those who are late share
            if (number === 200) {
                late = launch("curl", ["-sSN", "--compressed", "-i", `${hub.url}/subscribe/room`]);
                await late.lineWith("Content-Encoding: gzip");
                readers.push(number => late.lineWith(lineOf(number)));
            }
            await publish(hub, "room", message(number));
            for (const reads of readers) await reads(number);
        }
        await endsWell(hub);
        await within(body, "the end of what fetch reads");
        equal(await late.exit(), 0, "curl's status");
        equal(await python.exit(), 0, "Python's status");
        equal(python.output.items.at(-1), "whole", "Python's last line");
    });
}

// >>client  sse::client against servers of other people
function read(url, ...args) {
    const program = launch(join(examples, "client"), [url, ...args]);
    const events = mailbox("an event of client");
    let block = "";
    const seen = program.output.push;
    program.output.push = line => {
        seen(line);
        block += line + "\n";
        if (line !== "") return;
        for (const event of eventsIn(block)) events.push(event);
        block = "";
    };
    return { ...program, events };
}

async function serve(handler) {
    const server = createServer(handler);
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return {
        url: `http://127.0.0.1:${server.address().port}`,
        cut: () => server.closeAllConnections(),
        close() { server.close(); server.closeAllConnections(); },
    };
}

const stream = { "Content-Type": "text/event-stream" };
const dataOf = events => events.map(event => event.data);

async function testClient() {
    await check("client: odd line ends, a BOM, and characters cut in two", async () => {
        const text = "\uFEFFid: 1\r\ndata: gr\u00FC\u00DFe\r\rdata:\u{1F600}\ndata\r\n\n: no\r" +
                     "event: other\rdata: \u20AC\r\r\n";
        const bytes = Buffer.from(text);
        const server = await serve((request, answer) => {
            answer.writeHead(200, { "content-type": "Text/Event-Stream;charset=utf-8" });
            for (const byte of bytes) answer.write(Buffer.of(byte)); // a chunk each
            answer.end();
        });
        const client = read(server.url, "--once");
        equal(await client.exit(), 0, "status");
        equal(client.events.items, [{ type: "message", data: "gr\u00FC\u00DFe", id: "1" },
                                    { type: "message", data: "\u{1F600}\n", id: "1" },
                                    { type: "other", data: "\u20AC", id: "1" }], "events");
        server.close();
    });
    await check("client: comes back with its id after the time it was told; 204 ends it", async () => {
        const heads = [];
        const server = await serve((request, answer) => {
            heads.push(request.headers["last-event-id"]);
            if (heads.length === 4) return answer.writeHead(204).end();
            answer.writeHead(200, stream);
            answer.write(`retry: 20\nid: n\u00E4chste-${heads.length}\ndata: ${heads.length}\n\n`);
            if (heads.length === 1) return answer.end();
            answer.write("id: lost\ndata: unfinished\n", () => server.cut());
        });
        const client = read(server.url);
        equal(await client.exit(), 0, "status");
        equal(dataOf(client.events.items), ["1", "2", "3"], "events");
        equal(heads.map(head => head && Buffer.from(head, "latin1").toString()),
              [undefined, "n\u00E4chste-1", "n\u00E4chste-2", "n\u00E4chste-3"], "Last-Event-ID");
        server.close();
    });
    await check("client: follows redirects, and keeps the permanent ones", async () => {
        const paths = [];
        const server = await serve((request, answer) => {
            paths.push(request.url);
            const to = { "/": [301, "/moved"], "/moved": [307, "for-now?a=b"] }[request.url];
            if (to) return answer.writeHead(to[0], { Location: to[1] }).end("elsewhere");
            if (paths.length > 4) return answer.writeHead(204).end();
            answer.writeHead(200, stream).end("retry: 10\ndata: here\n\n");
        });
        const client = read(server.url);
        equal(await client.exit(), 0, "status");
        equal(paths, ["/", "/moved", "/for-now?a=b", "/moved", "/for-now?a=b"], "paths");
        server.close();
    });
    await check("client: a POST with its headers, not repeated", async () => {
        let body = "", count = 0, said;
        const server = await serve(async (request, answer) => {
            count += 1;
            said = [request.method, request.headers["x-token"], request.headers.accept];
            for await (const piece of request) body += piece;
            const text = "data: one\n\ndata: two\n\n";
            answer.writeHead(200, { ...stream, "Content-Length": text.length }).end(text);
        });
        const client = read(server.url, "-H", "X-Token: secret", "-d", '{"stream":true}');
        equal(await client.exit(), 0, "status");
        equal(dataOf(client.events.items), ["one", "two"], "events");
        equal([count, body, ...said], [1, '{"stream":true}', "POST", "secret", "text/event-stream"],
              "the request");
        server.close();
    });
    await check("client: what is not an event stream is said, with the response", async () => {
        const server = await serve((request, answer) => {
            if (request.url === "/page") answer.writeHead(200, { "Content-Type": "text/html" });
            else answer.writeHead(403);
            answer.end("not for you\n");
        });
        for (const path of ["/page", "/other"]) {
            const client = read(server.url + path);
            equal(await client.exit(), 3, `status of ${path}`);
            expect(client.said.text.includes("not for you"), client.said.text);
        }
        server.close();
    });
    await check("client: nobody listens", async () => {
        const server = await serve(() => {});
        server.close();
        equal(await read(server.url, "--once").exit(), 1, "status");
    });
    await check("client: tokens, a job, the hub: sse.hpp on both sides", async () => {
        const tokens = await start("tokens", "127.0.0.1:0");
        const answer = read(`${tokens.url}/v1/chat/completions`, "-d",
                            JSON.stringify(ask({ stream: true })));
        equal(await answer.exit(), 0, "status");
        equal(answer.events.items.at(-1).data, "[DONE]", "the last event");
        await endsWell(tokens);

        const job = await start("job", "127.0.0.1:0"), wire = await wireTo(job.port);
        const path = (await curl("-d", "", `${job.url}/jobs`)).trim();
        const watcher = read(wire.url + path);
        await watcher.events.take(3);
        wire.reset();
        equal(await watcher.exit(), 0, "status");
        const logged = watcher.events.items.filter(event => event.type === "log");
        equal(logged.length, 4, "lines of the log");
        equal(watcher.events.items.at(-1).type, "done", "the last event");
        wire.close();
        await endsWell(job);
    });
}

// >>better-sse
async function testBetterSse(label, module) {
    // The last version for Node 18 is a CommonJS module.
    const { createChannel, createSession } = module.createChannel ? module : module.default;
    await check(`client: ${label}, its session, its channel, its history`, async () => {
        const channel = createChannel(), trusted = [];
        const server = await serve(async (request, answer) => {
            const session = await createSession(request, answer, { retry: 20 });
            trusted.push(session.lastId);
            session.push({ hello: "you" }, "welcome", `session-${trusted.length}`);
            channel.register(session);
        });
        const client = read(server.url);
        const welcome = await client.events.next();
        equal([welcome.type, welcome.data, welcome.id],
              ["welcome", '{"hello":"you"}', "session-1"], "welcome");
        channel.broadcast("to all\nof you", "news", { eventId: "all-1" });
        equal((await client.events.next()).type, "news", "broadcast");
        server.cut();
        await client.events.next();
        equal(trusted, ["", client.events.items[1].id], "the id with which it came back");
        await client.end("SIGTERM");
        server.close();
    });
}

// >>nchan
async function freePort() {
    const server = createSocketServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address();
    server.close();
    await once(server, "close");
    return port;
}

// main: before its events; servers: what it serves. It answers at `url` once it is there.
async function startNginx(main, servers, url) {
    const home = mkdtempSync(join(scratch, "nginx-"));
    writeFileSync(join(home, "nginx.conf"), `
        ${main}
        daemon off;
        pid ${home}/pid;
        error_log stderr;
        ${process.getuid() === 0 ? "user root;" : ""}
        worker_processes 1;
        events {}
        http {
            access_log off;
            client_body_temp_path ${home}/body;
            proxy_temp_path ${home}/proxy;
            fastcgi_temp_path ${home}/fastcgi;
            uwsgi_temp_path ${home}/uwsgi;
            scgi_temp_path ${home}/scgi;
            ${servers}
        }`);
    const program = launch("/usr/sbin/nginx", ["-p", home, "-c", join(home, "nginx.conf")]);
    const answers = async () => { // nothing announces that it listens
        while (!await fetch(url).catch(() => null)) await new Promise(setImmediate);
    };
    await before(program, within(answers(), "nginx answers"));
    return { ...program, url };
}

async function startNchan() {
    const port = await freePort();
    const nginx = await startNginx("load_module /usr/lib/nginx/modules/ngx_nchan_module.so;", `
        server {
            listen 127.0.0.1:${port};
            location = /publish { nchan_publisher; nchan_channel_id room; }
            location = /room { nchan_subscriber eventsource; nchan_channel_id room; }
        }`, `http://127.0.0.1:${port}`);
    return { ...nginx, port };
}

async function testNchan() {
    if (!existsSync("/usr/lib/nginx/modules/ngx_nchan_module.so")) {
        return skip("nchan", "it is not installed");
    }
    await check("client: nginx with nchan, over a cut connection, nothing lost", async () => {
        const nginx = await startNchan(), wire = await wireTo(nginx.port);
        const publishTo = data => fetch(`${nginx.url}/publish`, { method: "POST", body: data })
            .then(answer => answer.text());
        try {
            const client = read(`${wire.url}/room`);
            for (const data of ["one", "two\nlines"]) await publishTo(data);
            equal(dataOf(await client.events.take(2)), ["one", "two\nlines"], "before");
            wire.reset();
            for (const data of ["three", "four"]) await publishTo(data);
            equal(dataOf(await client.events.take(2)), ["three", "four"], "after");
            equal(lastEventId(wire.requests.items.at(-1)), client.events.items[1].id,
                  "Last-Event-ID");
            await client.end("SIGTERM");
        } finally { // killed, it would leave its worker behind
            wire.close();
            equal(await nginx.end("SIGTERM"), 0, "nginx's status");
        }
    });
}

// >>run
try {
    await withEach("eventsource", "", testEventSource);
    await withEach("eventsource-parser", "/stream", testParser);
    await withEach("openai", "", testOpenai);
    for (const test of [testFetchEventSource, testMcpSdk, testMcpClient, testMcpStateless, testCurl, testGzip, testClient])
        await test().catch(error => check(test.name, () => { throw error; }));
    await withEach("better-sse", "", testBetterSse);
    await testNchan().catch(error => check("nchan", () => { throw error; }));
    await testTls({
        examples, scratch, token, check, skip, expect, equal, within, fails, mailbox, withEach, launch, start, endsWell, run, eventsIn,
        wireTo, openEventSource, read, freePort, startNginx,
    }).catch(error => check("TLS", () => { throw error; }));
} finally {
    for (const child of running) child.kill("SIGKILL");
    rmSync(scratch, { recursive: true, force: true });
}
console.log(`1..${said}`);
process.exit(failed ? 1 : 0);
