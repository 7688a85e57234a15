// better_sse.mjs - better-sse on Node's http, one channel for all.
import { createServer } from "node:http";
import { createChannel, createSession } from "better-sse";
import { conduct } from "./conductor.mjs";

const channel = createChannel();
const server = createServer(async (request, response) => {
    const session = await createSession(request, response, {
        serializer: data => data, // the line as it is, not as JSON
        keepAlive: null,
    });
    channel.register(session);
});
server.listen(0, "127.0.0.1", 4096, () => conduct({
    port: server.address().port,
    pid: process.pid,
    publish: line => channel.broadcast(line, "message"),
    end: () => process.exit(0),
}));
