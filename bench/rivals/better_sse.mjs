// better_sse.mjs - better-sse on Node's http, one channel for all; or a session for each topic, or one
// that sends and sleeps by itself.
import { createServer } from "node:http";
import { createChannel, createSession } from "better-sse";
import { conduct, each, line, topics } from "./conductor.mjs";

const channel = createChannel(), sessions = new Map();
let sends = false, sent = 0;

// What a handler of an LLM's tokens does.
function sendAndSleep(session) {
    const period = 1e9 / each, first = Number(process.hrtime.bigint());
    let next = first + sessions.size * 7_919_000 % period, seq = 0;
    sessions.set(session, session);
    const step = () => {
        if (!session.isConnected) return sessions.delete(session);
        for (const now = Number(process.hrtime.bigint()); next <= now; next += period) {
            if (!sends) continue;
            session.push(line(++seq, Math.round(next)), "message");
            ++sent;
        }
        setTimeout(step, (next - Number(process.hrtime.bigint())) / 1e6);
    };
    step();
}

const server = createServer(async (request, response) => {
    const session = await createSession(request, response, {
        serializer: data => data, // the line as it is, not as JSON
        keepAlive: null,
    });
    if (each > 0) return sendAndSleep(session);
    if (topics > 0) sessions.set(Number(request.url.split("/").pop()) % topics, session);
    else channel.register(session);
});
server.listen(0, "127.0.0.1", 4096, () => conduct({
    port: server.address().port,
    pid: process.pid,
    publish: topics > 0 ? (text, seq) => sessions.get(seq % topics)?.push(text, "message")
                        : text => channel.broadcast(text, "message"),
    published: each > 0 ? go => (sends = go, sent) : undefined,
    end: () => process.exit(0),
}));
