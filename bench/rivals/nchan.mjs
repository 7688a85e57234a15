// nchan.mjs - nginx with nchan, which is published to over HTTP: one connection, many requests on
// the way. Only nginx is measured, not this program.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { conduct } from "./conductor.mjs";

async function freePort() {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address();
    server.close();
    await once(server, "close");
    return port;
}

// Nothing announces that it listens.
async function connected(port) {
    for (;;) {
        const socket = connect(port, "127.0.0.1").setNoDelay();
        if (await once(socket, "connect").catch(() => null)) return socket;
        await new Promise(setImmediate);
    }
}

const home = mkdtempSync(join(tmpdir(), "nchan-")), port = await freePort();
const parts = {
    "@HOME@": home,
    "@PORT@": port,
    "@USER@": process.getuid() === 0 ? "user root;" : "",
};
let config = readFileSync(new URL("nchan.conf", import.meta.url), "utf8");
for (const [mark, part] of Object.entries(parts)) config = config.replaceAll(mark, part);
writeFileSync(join(home, "nginx.conf"), config);

// It ends with this program, however that ends.
const nginx = spawn("setpriv", ["--pdeathsig", "KILL", "/usr/sbin/nginx", "-p", home, "-c",
                                join(home, "nginx.conf")], { stdio: ["ignore", "ignore", "inherit"] });
nginx.on("exit", code => {
    rmSync(home, { recursive: true });
    process.exit(code ?? 0);
});
const publisher = await connected(port);
publisher.resume(); // the responses, which only say that it was published

conduct({
    port,
    pid: nginx.pid,
    publish: line => publisher.write(`POST /publish HTTP/1.1\r\nHost: 127.0.0.1\r\n` +
                                     `Content-Length: ${line.length}\r\n\r\n${line}`),
    end: () => nginx.kill("SIGKILL"), // asked to end, nchan frees something twice
});
