// tls.mjs - both ends over TLS with other people's programs; interop.mjs runs it.
//
// The hub, read by Node's https, by undici and by curl, asked by openssl s_client for each version
// and cipher, and shown certificates of clients. sse::client, through examples/client, of nginx, of
// Node's https and of openssl s_server, whose certificates are right, or wrong in each way that has
// a name: what it says must have that name.

import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, request as httpsRequest } from "node:https";
import { join } from "node:path";
import { authority } from "./authority.mjs";

let tools, folder, root, between, good;

const names = "DNS:localhost,IP:127.0.0.1";

function file(name, text) {
    writeFileSync(join(folder, name), text);
    return join(folder, name);
}

const pems = ({ certificate, key }) => ({ cert: readFileSync(certificate), key: readFileSync(key) });

async function eventually(condition, what) {
    let over = false;
    const reached = (async () => {
        while (!over && !condition()) await new Promise(resolve => setTimeout(resolve, 10));
    })();
    await tools.within(reached, what).finally(() => { over = true; });
}

// >>hub  What others see of it
const startHub = (port, ...flags) => tools.start("hub", "--port", String(port), "--log", "info",
    "--publish-token", tools.token, "--tls-cert", good.certificate, "--tls-key", good.key, ...flags);

const ask = (url, { method = "GET", headers = {}, body, ...tls } = {}) => tools.within(
    new Promise((resolve, reject) => {
        httpsRequest(url, { method, headers, ca: readFileSync(root.file), agent: false, ...tls })
            .once("response", resolve).on("error", reject).end(body);
    }), `${method} ${url}`);

async function openStream(url, options) {
    const answer = await ask(url, options), events = tools.mailbox("an event");
    tools.equal(answer.statusCode, 200, url);
    let text = "";
    answer.on("error", () => {}).setEncoding("utf8").on("data", piece => {
        text += piece;
        for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2))
            for (const event of tools.eventsIn(text.slice(0, end + 2))) events.push(event);
    });
    return { answer, events };
}

async function publish(hub, data) {
    const answer = await ask(`${hub.url}/publish/room`, {
        method: "POST", body: data,
        headers: { Authorization: `Bearer ${tools.token}`, "Content-Type": "text/plain" },
    });
    tools.equal(answer.statusCode, 202, "POST /publish/room");
    answer.resume();
}

const dataOf = events => events.map(event => event.data);

const testNode = () => tools.check("TLS: Node's https, a cut, and what was missed", async () => {
    const hub = await startHub(0);
    for (const version of ["TLSv1.3", "TLSv1.2"]) {
        const only = { minVersion: version, maxVersion: version };
        const first = await openStream(`${hub.url}/subscribe/room`, only);
        tools.equal(first.answer.socket.getProtocol(), version, "protocol");
        await publish(hub, "one");
        const [{ id }] = await first.events.take(1);
        first.answer.destroy(); // without close_notify
        await publish(hub, "two");
        const second = await openStream(`${hub.url}/subscribe/room`,
                                        { ...only, headers: { "Last-Event-ID": id } });
        await publish(hub, "three");
        tools.equal(dataOf(await second.events.take(2)), ["two", "three"], "events");
        second.answer.destroy();
    }
    await tools.endsWell(hub);
});

async function testUndici(label, { Agent, fetch }) {
    const agent = new Agent({ connect: { ca: readFileSync(root.file) } });
    const secured = (url, init) => fetch(url, { ...init, dispatcher: agent });
    await tools.check(`TLS: ${label}: fetch, with its connections used again`, async () => {
        const hub = await startHub(0), wire = await tools.wireTo(hub.port);
        for (let round = 0; round < 4; ++round) {
            const answer = await secured(wire.url.replace("http:", "https:") + "/health");
            tools.equal(answer.status, 200, "status");
            await answer.text();
        }
        tools.expect(wire.connections <= 2, `${wire.connections} connections`);
        wire.close();
        await tools.endsWell(hub);
    });
    await tools.withEach("eventsource", "", (source, { EventSource }) => tools.check(
        `TLS: ${source} on ${label}: nothing is lost by a cut, and a restart is told`, async () => {
            class Secured extends EventSource {
                constructor(url) { super(url, { fetch: secured }); }
            }
            let hub = await startHub(0);
            const wire = await tools.wireTo(hub.port);
            const { source, events } = tools.openEventSource(
                Secured, `${wire.url.replace("http:", "https:")}/subscribe/room`, "gap");
            await tools.within(once(source, "open"), "open");
            for (const data of ["one", "2"]) await publish(hub, data);
            await events.take(2);
            wire.reset();
            for (const data of ["three", "4"]) await publish(hub, data);
            await events.take(2);
            tools.equal(dataOf(events.items), ["one", "2", "three", "4"], "events");
            await hub.end("SIGKILL");
            hub = await startHub(hub.port);
            await publish(hub, "new");
            const [gap, later] = await events.take(2);
            tools.equal([gap.type, JSON.parse(gap.data).reason, later.data],
                        ["gap", "epoch", "new"], "after the restart");
            source.close();
            wire.close();
            await tools.endsWell(hub);
        }));
    await agent.destroy();
}

const testCurl = () => tools.check("TLS: curl, by name and by address, each version", async () => {
    const hub = await startHub(0), trusting = ["-sSN", "--max-time", "20", "--cacert", root.file];
    for (const host of ["localhost", "127.0.0.1"]) {
        const url = `https://${host}:${hub.port}`;
        for (const [version, ...flags] of [["1.2", "--tls-max", "1.2"], ["1.3", "--tlsv1.3"]]) {
            const reader = tools.launch("curl", [...trusting, ...flags, "--http2", `${url}/subscribe/`]);
            const said = await tools.run(
                "curl", ...trusting, ...flags, "-w", "\n%{http_version} %{num_connects}\n", "-H",
                `Authorization: Bearer ${tools.token}`, "-H", "Content-Type: text/plain", "-d",
                version, `${url}/publish/a`, "-o", "/dev/null", `${url}/health`);
            tools.equal(said.match(/^1\.1 \d$/mg), ["1.1 1", "1.1 0"], "versions and connects");
            reader.status.catch(() => {});
            await reader.end("SIGTERM");
        }
    }
    const refused = await tools.fails(
        tools.run("curl", ...trusting, "--tls-max", "1.1", `${hub.url}/health`), "TLS 1.1");
    tools.expect(/protocol/.test(refused.message), refused.message);
    await tools.endsWell(hub);
});

/// What openssl s_client says when it asks for /health.
async function sClient(hub, ...flags) {
    const request = file("request", "GET /health HTTP/1.1\r\nHost: localhost\r\n" +
                                    "Connection: close\r\n\r\n");
    const client = tools.launch("sh", [
        "-c", `exec openssl s_client -connect 127.0.0.1:${hub.port} -CAfile ${root.file} ` +
              `-verify_return_error -quiet "$@" <${request}`, "s_client", ...flags]);
    await client.exit();
    return client.output.items.join("\n") + client.said.text;
}

const weak = "ALL:@SECLEVEL=0"; // so that it is the hub that refuses
const offers = [
    [["-tls1_3"], "200 OK"],
    [["-tls1_2"], "200 OK"],
    [["-tls1_1", "-cipher", weak], "alert protocol version"],
    [["-tls1", "-cipher", weak], "alert protocol version"],
    [["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"], "200 OK"],
    [["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"], "200 OK"],
    [["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"], "200 OK"],
    [["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"], "alert handshake failure"],
    [["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"], "200 OK"],
    [["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"], "200 OK"],
    [["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], "200 OK"],
    [["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"], "alert handshake failure"],
    [["-tls1_2", "-cipher", "AES128-GCM-SHA256"], "alert handshake failure"],
    [["-tls1_2", "-cipher", "eNULL:@SECLEVEL=0"], "alert handshake failure"],
];

const testVersions = () => tools.check("TLS: openssl s_client, each version, and ciphers", async () => {
    const hub = await startHub(0);
    for (const [flags, wanted] of offers) {
        const said = await sClient(hub, ...flags);
        tools.expect(said.includes(wanted), `${flags.join(" ")}: no "${wanted}" in ${said.slice(-300)}`);
    }
    await tools.endsWell(hub);
});

// >>clients  Whom the hub takes: what both ends say of a refusal
async function testClientCertificates() {
    const sensors = authority(folder, "Sensors"), branch = authority(folder, "Branch", sensors);
    const closed = authority(folder, "Closed", sensors), unlisted = authority(folder, "Unlisted", sensors);
    const lost = branch.issue("lost");
    branch.revoke(lost);
    sensors.revoke(closed);
    const lists = file("lists", sensors.list() + branch.list() + closed.list());
    const seven = branch.issue("seven"), alone = { ...seven, certificate: seven.alone };
    const cases = [
        ["none", null, "certificate required", "peer did not return a certificate"],
        ["of the CA", sensors.issue("seven", { usage: "clientAuth" })],
        ["of a CA below it", seven],
        ["of another CA", authority(folder, "Other").issue("seven"), "unknown ca",
         "unable to get local issuer certificate"],
        ["without the CA between", alone, "unknown ca", "unable to get local issuer certificate"],
        ["expired", branch.issue("seven", { begins: -3, ends: -2 }), "certificate expired",
         "certificate has expired"],
        ["of tomorrow", branch.issue("seven", { begins: 1, ends: 2 }), "bad certificate",
         "certificate is not yet valid"],
        ["of a server", branch.issue("seven", { usage: "serverAuth" }), "unsupported certificate",
         "unsuitable certificate purpose"],
        ["revoked", lost, "certificate revoked", "certificate revoked"],
        ["of a revoked CA", closed.issue("seven"), "certificate revoked", "certificate revoked"],
        ["of a CA without a list", unlisted.issue("seven"), "unknown ca",
         "unable to get certificate CRL"],
    ];
    const ways = {
        "Node's https": async (hub, who) => {
            try {
                return String((await ask(`${hub.url}/health`, who ? pems(who) : {})).statusCode);
            } catch (error) {
                return error.message;
            }
        },
        curl: (hub, who) => tools.run(
            "curl", "-sS", "--max-time", "20", "--cacert", root.file, `${hub.url}/health`, "-o",
            "/dev/null", "-w", "%{http_code}",
            ...(who ? ["--cert", who.certificate, "--key", who.key] : [])).catch(error => error.message),
        "openssl s_client": (hub, who) => sClient(
            hub, ...(who ? ["-cert", who.certificate, "-key", who.key, "-cert_chain",
                            who.certificate] : [])),
    };
    const flags = ["--tls-client-ca", sensors.file, "--tls-client-crl", lists];
    for (const [name, way] of Object.entries(ways)) {
        await tools.check(`TLS: ${name}, certificates of clients, right and wrong`, async () => {
            for (const [what, who, alert, reason] of cases) {
                const hub = await startHub(0, ...flags);
                const said = await way(hub, who);
                tools.expect(said.includes(alert ?? "200"), `${what}: the client says ${said.slice(-300)}`);
                if (reason) await eventually(() => hub.said.text.includes(reason),
                                             `${what}: the hub says ${hub.said.text.slice(-300)}`);
                else tools.expect(!hub.said.text.includes("TLS failed"), hub.said.text);
                await tools.endsWell(hub);
            }
        });
    }
}

// >>client  Whom sse::client trusts
const stream = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" +
               "data: hello\n\n";

/// Each serves the certificates of these names, at https://HOST:PORT, and says what its clients are.
const peers = {
    async nginx(identities) {
        const ports = [];
        while (ports.length <= identities.length) { // one that is free may be given twice
            const port = await tools.freePort();
            if (!ports.includes(port)) ports.push(port);
        }
        const ready = ports.pop();
        let servers = "";
        for (const [index, { certificate, key }] of identities.entries()) {
            servers += `server {
                listen 127.0.0.1:${ports[index]} ssl;
                ssl_certificate ${certificate};
                ssl_certificate_key ${key};
                ssl_client_certificate ${root.file};
                ssl_verify_client optional;
                ssl_verify_depth 2;
                default_type text/event-stream;
                location / { return 200 "data: hello $ssl_client_s_dn\\n\\n"; }
            }`;
        }
        const nginx = await tools.startNginx("", `${servers} server { listen 127.0.0.1:${ready}; }`,
                                             `http://127.0.0.1:${ready}`);
        return { ports, close: async () => tools.equal(await nginx.end("SIGTERM"), 0, "nginx") };
    },
    async "Node's https"(identities) {
        const servers = [];
        for (const one of identities) {
            servers.push(createServer({
                ...pems(one), requestCert: true, rejectUnauthorized: false, ca: readFileSync(root.file),
            }, (request, answer) => {
                const { subject } = request.socket.getPeerCertificate();
                answer.writeHead(200, { "Content-Type": "text/event-stream" })
                    .end(`data: hello ${subject ? "CN=" + subject.CN : ""}\n\n`);
            }).on("tlsClientError", () => {}).listen(0, "127.0.0.1"));
            await once(servers.at(-1), "listening");
        }
        return {
            ports: servers.map(server => server.address().port),
            async close() { for (const server of servers) server.close(); },
        };
    },
    async "openssl s_server"(identities) {
        file("stream", stream);
        const servers = [];
        for (const one of identities) servers.push(await sServer(one));
        return {
            ports: servers.map(server => server.port),
            async close() { for (const server of servers) await server.end("SIGTERM"); },
        };
    },
};

async function sServer({ certificate, key }, ...flags) {
    const server = tools.launch("sh", ["-c", `cd ${folder} && exec openssl s_server "$@"`, "s_server",
        "-accept", "127.0.0.1:0", "-cert", certificate, "-cert_chain", certificate, "-key", key,
        "-HTTP", ...flags]);
    await server.lineWith("ACCEPT");
    return { ...server, port: server.output.items.find(line => line.startsWith("ACCEPT")).match(/\d+$/)[0] };
}

async function testClient() {
    const closed = authority(folder, "Closed", root), leaf = authority(folder, "Leaf", root,
                                                                       { constraints: "CA:FALSE" });
    const own = (options, ca = between) => ca.issue("localhost", { names, ...options });
    const lost = own(), alone = { ...good, certificate: good.alone };
    const self = authority(folder, "localhost");
    between.revoke(lost);
    root.revoke(closed);
    const lists = file("lists of servers", root.list() + between.list() + closed.list());
    const few = file("too few lists", root.list());
    const old = file("old lists", root.list({ ends: -1 }) + between.list({ ends: -1 }));
    const addresses = own({ names: "IP:127.0.0.1" }), named = own({ names: "DNS:localhost" });
    const cases = [ // what, whose certificate, why it is refused, flags, host
        ["a chain", good],
        ["a chain, by address", good, null, [], "127.0.0.1"],
        ["a chain, not revoked", good, null, ["--crlfile", lists]],
        ["of the root itself", own({}, root)],
        ["for servers alone", own({ usage: "serverAuth" })],
        ["expired", own({ begins: -3, ends: -2 }), "certificate has expired"],
        ["of tomorrow", own({ begins: 1, ends: 2 }), "certificate is not yet valid"],
        ["of another host", own({ names: "DNS:other.example" }), "hostname mismatch"],
        ["of a name below the host", own({ names: "DNS:*.localhost" }), "hostname mismatch"],
        ["with a part of the host", own({ names: "DNS:local*" }), "hostname mismatch"],
        ["of an address, for a name", addresses, "hostname mismatch"],
        ["of an address", addresses, null, [], "127.0.0.1"],
        ["of a name, for an address", named, "IP address mismatch", [], "127.0.0.1"],
        ["of the address as a name", own({ names: "DNS:127.0.0.1" }), "IP address mismatch", [],
         "127.0.0.1"],
        ["signed by itself", { certificate: self.file, key: self.key }, "self-signed certificate"],
        ["of an unknown CA", own({}, authority(folder, "Other")), "unable to get local issuer"],
        ["without the CA between", alone, "unable to get local issuer"],
        ["of one that is no CA", own({}, leaf), "invalid CA certificate"],
        ["for clients alone", own({ usage: "clientAuth" }), "unsuitable certificate purpose"],
        ["revoked, without lists", lost],
        ["revoked", lost, "certificate revoked", ["--crlfile", lists]],
        ["of a revoked CA", own({}, closed), "certificate revoked", ["--crlfile", lists]],
        ["without a list of its CA", good, "unable to get certificate CRL", ["--crlfile", few]],
        ["with lists of yesterday", good, "CRL has expired", ["--crlfile", old]],
    ];
    const seven = between.issue("seven", { usage: "clientAuth" });
    for (const [name, serve] of Object.entries(peers)) {
        if (name === "nginx" && !existsSync("/usr/sbin/nginx")) {
            tools.skip("TLS: client of nginx", "it is not installed");
            continue;
        }
        await tools.check(`TLS: client of ${name}, certificates right and wrong`, async () => {
            const server = await serve(cases.map(each => each[1]));
            for (const [index, [what, , why, flags = [], host = "localhost"]] of cases.entries()) {
                const client = tools.read(`https://${host}:${server.ports[index]}/stream`, "--once",
                                          "--cacert", root.file, ...flags);
                const status = await client.exit(), said = client.said.text;
                tools.expect(why ? status === 1 && said.includes(why)
                                 : status === 0 && client.events.items.length === 1,
                             `${what}: status ${status}, ${said}`);
            }
            if (!name.includes("s_server")) { // it does not tell
                const client = tools.read(`https://localhost:${server.ports[0]}/`, "--once", "--cacert",
                    root.file, "--cert", seven.certificate, "--key", seven.key);
                tools.equal(await client.exit(), 0, "with its own certificate");
                tools.equal(dataOf(client.events.items), ["hello CN=seven"], "who it is");
            }
            await server.close();
        });
    }
    await tools.check("TLS: client of openssl s_server, versions, its own certificate", async () => {
        const ways = [
            [["-tls1_3"], null],
            [["-tls1_2"], null],
            [["-tls1_1", "-cipher", weak], "unsupported protocol|alert protocol version"],
            [["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"], "alert handshake failure"],
            [["-Verify", "2", "-CAfile", root.file], null, seven],
            [["-Verify", "2", "-CAfile", root.file], "alert certificate required|alert handshake failure"],
            [["-Verify", "2", "-verify_return_error", "-CAfile", self.file], "alert unknown ca", seven],
        ];
        for (const [flags, why, who] of ways) {
            const server = await sServer(good, ...flags);
            const client = tools.read(`https://localhost:${server.port}/stream`, "--once", "--cacert",
                root.file, ...(who ? ["--cert", who.certificate, "--key", who.key] : []));
            const status = await client.exit(), said = client.said.text;
            tools.expect(why ? status === 1 && new RegExp(why).test(said)
                             : status === 0 && client.events.items.length === 1,
                         `${flags.join(" ")}: status ${status}, ${said}`);
            await server.end("SIGTERM");
        }
    });
    if (!existsSync("/usr/sbin/nginx")) return;
    await tools.check("TLS: client of a hub behind nginx with TLS, over a restart of nginx", async () => {
        const hub = await tools.start("hub", "--port", "0", "--publish-token", tools.token);
        const port = await tools.freePort();
        const start = () => tools.startNginx("", `server {
            listen 127.0.0.1:${port} ssl;
            ssl_certificate ${good.certificate};
            ssl_certificate_key ${good.key};
            location / {
                proxy_pass http://127.0.0.1:${hub.port};
                proxy_http_version 1.1;
                proxy_set_header Host localhost;
                proxy_set_header Connection "";
                proxy_buffering off;
            }
        }`, `http://127.0.0.1:${port}`); // which answers 400
        const tell = data => fetch(`${hub.url}/publish/room`, {
            method: "POST", body: data,
            headers: { Authorization: `Bearer ${tools.token}`, "Content-Type": "text/plain" },
        }).then(answer => tools.equal(answer.status, 202, "publish"));
        let nginx = await start();
        const client = tools.read(`https://localhost:${port}/subscribe/room?from=oldest`, "--cacert",
                                  root.file);
        await tell("one");
        await client.events.take(1);
        await nginx.end("SIGTERM");
        await tell("two");
        nginx = await start();
        await tell("three");
        await client.events.take(2);
        tools.equal(dataOf(client.events.items), ["one", "two", "three"], "events");
        await client.end("SIGTERM");
        tools.equal(await nginx.end("SIGTERM"), 0, "nginx's status");
        await tools.endsWell(hub);
    });
}

// >>run
export async function testTls(given) {
    tools = given;
    const help = await tools.run(join(tools.examples, "client"), "--help");
    if (!help.includes("--cacert")) return tools.skip("TLS", "the examples were built without it");
    if (spawnSync("openssl", ["version"]).error) return tools.skip("TLS", "openssl is not installed");
    folder = join(tools.scratch, "tls");
    mkdirSync(folder);
    root = authority(folder, "Root");
    between = authority(folder, "Between", root);
    good = between.issue("localhost", { names });
    await testNode();
    await tools.withEach("undici", "", testUndici);
    await testCurl();
    await testVersions();
    await testClientCertificates();
    await testClient();
}
