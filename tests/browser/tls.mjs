// tls.mjs - the hub's page in Chromium by https, with a CA that is in the browser's own store, which
// on Linux is the NSS database of the user; browser.mjs runs it.

import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { request as httpsRequest } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { authority } from "./authority.mjs";

let tools, root;

/// The home of a user who trusts this CA.
function homeOf(folder, ca) {
    const store = join(folder, ".pki", "nssdb");
    mkdirSync(store, { recursive: true });
    for (const words of [["-N", "--empty-password"],
                         ["-A", "-n", "test", "-t", "C,,", "-i", ca.file]]) {
        const { status, stderr } = spawnSync("certutil", ["-d", `sql:${store}`, ...words]);
        tools.equal(status, 0, `certutil: ${stderr}`);
    }
    return folder;
}

const launch = home => tools.chromium.launch({
    executablePath: tools.program,
    env: { ...process.env, HOME: home },
    args: tools.flags.map(flag => flag.replace("EXCLUDE 127.0.0.1", "EXCLUDE localhost")),
});

const publish = (hub, data) => tools.within(20_000, new Promise((resolve, reject) => {
    httpsRequest(`${hub.url}publish/count`, {
        method: "POST", ca: readFileSync(root.file), agent: false,
        headers: { Authorization: `Bearer ${tools.token}`, "Content-Type": "text/plain" },
    }, answer => {
        answer.resume();
        if (answer.statusCode === 202) resolve(); else reject(new Error(`${answer.statusCode}`));
    }).on("error", reject).end(data);
}), "POST /publish/count");

async function publishNumbers(hub, first, last) {
    for (let number = first; number <= last; ++number) await publish(hub, String(number));
}

async function testPage(folder, browser) {
    const issue = name => root.issue(name, { names: "DNS:localhost,IP:127.0.0.1" });
    const first = issue("first"), files = { cert: join(folder, "cert"), key: join(folder, "key") };
    const take = one => {
        copyFileSync(one.certificate, files.cert);
        copyFileSync(one.key, files.key);
    };
    take(first);
    const start = port => tools.startHub(port, "--tls-cert", files.cert, "--tls-key", files.key,
                                         "--log-dir", join(folder, "log"));
    let hub = await start("0");
    const address = `https://localhost:${hub.port}/`;
    const page = await tools.open(browser, address, tools.desktop);
    await tools.check("https: the page opens without a warning, and lists what comes", async () => {
        await tools.state(page, "open");
        tools.equal(await page.evaluate(() => [isSecureContext, performance.getEntriesByType(
            "navigation")[0].nextHopProtocol].join()), "true,http/1.1", "context and protocol");
        await publishNumbers(hub, 1, 5);
        await tools.expectListed(page, tools.messages(1, 5));
    });
    await tools.check("https: after a restart it goes on, and misses nothing", async () => {
        await hub.end("SIGKILL");
        await tools.state(page, "lost");
        hub = await start(hub.port);
        await publishNumbers(hub, 6, 10);
        await tools.state(page, "open");
        await publishNumbers(hub, 11, 12);
        await tools.expectListed(page, tools.messages(1, 12));
    });
    await tools.check("https: a new certificate is for the next page, and the stream goes on", async () => {
        take(issue("second"));
        hub.hangUp();
        await tools.within(20_000, (async () => {
            while (!hub.output.includes("hub: read the certificate again"))
                await new Promise(resolve => setTimeout(resolve, 10));
        })(), "the hub reads it");
        const next = await browser.newContext().then(context => context.newPage());
        const { subjectName } = await (await next.goto(address + "health")).securityDetails();
        tools.equal(subjectName, "second", "who it is");
        await publishNumbers(hub, 13, 14);
        await tools.expectListed(page, tools.messages(1, 14));
        await next.context().close();
    });
    await tools.check("https: who does not trust the CA sees no page", async () => {
        const home = join(folder, "stranger");
        mkdirSync(home);
        const stranger = await launch(home);
        try {
            const refused = await (await stranger.newPage()).goto(address).then(
                () => "opened", error => error.message);
            tools.equal(/ERR_CERT_AUTHORITY_INVALID|opened/.exec(refused)?.[0],
                        "ERR_CERT_AUTHORITY_INVALID", "the browser says");
        } finally {
            await stranger.close();
        }
    });
    await page.context().close();
    await hub.end("SIGINT");
}

export async function testTls(given) {
    tools = given;
    for (const name of ["openssl", "certutil"])
        if (spawnSync(name, ["version"]).error) return tools.skip("https", `there is no ${name}`);
    const { stderr } = spawnSync(tools.hubProgram, ["--tls-cert", "none"], { encoding: "utf8" });
    if (stderr.includes("built without TLS")) return tools.skip("https", "the hub has no TLS");
    const folder = mkdtempSync(join(tmpdir(), "sse-browser-"));
    try {
        root = authority(folder, "Root");
        const browser = await launch(homeOf(join(folder, "home"), root));
        await testPage(folder, browser).finally(() => browser.close());
    } finally {
        rmSync(folder, { recursive: true });
    }
}
