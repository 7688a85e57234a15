// authority.mjs - certificates for tests, made on the spot by the openssl command: chains, dates and
// revocation lists of any kind.
//
//   const ca = authority(folder, "Test CA");
//   const { certificate, key } = ca.issue("localhost", { names: "DNS:localhost" });
//
// Both are paths of PEM files in that folder; the first has the chain behind the certificate, which
// is also alone in `alone`.

import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const openssl = (...args) =>
    execFileSync("openssl", args, { stdio: ["ignore", "pipe", "pipe"], timeout: 20_000 });

// Days from now, as openssl ca wants them.
const day = offset => new Date(Date.now() + offset * 86_400_000).toISOString()
    .replace(/[-:T]/g, "").replace(/\.\d+/, "");

let count = 0;

// `above` is the authority that signs it; without one it signs itself.
export function authority(folder, name, above = null, { constraints = "critical,CA:TRUE" } = {}) {
    const home = join(folder, `ca${++count}`), file = join(home, "ca.pem");
    const settings = join(home, "settings"), key = join(home, "key.pem");
    mkdirSync(home);
    writeFileSync(join(home, "index"), "");
    writeFileSync(settings, `
        [ca]
        default_ca = own
        [own]
        database = ${home}/index
        new_certs_dir = ${home}
        certificate = ${file}
        private_key = ${key}
        default_md = sha256
        default_days = 1
        unique_subject = no
        rand_serial = yes
        policy = any
        [any]
        commonName = supplied
        `);

    function make(subject, key, request, extensions, { begins = -1, ends = 1 }, ...more) {
        const made = join(home, `${++count}.pem`);
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-subj", `/CN=${subject}`, "-keyout", key, "-out", request, "-batch");
        writeFileSync(request + ".extensions", extensions.join("\n"));
        openssl("ca", "-batch", "-notext", "-config", settings, "-in", request, "-out", made,
                "-startdate", day(begins), "-enddate", day(ends), "-extfile",
                request + ".extensions", ...more);
        return made;
    }

    const self = {
        file, key,
        // The certificates from this authority up, without the one that signs itself.
        chain: "",
        /// names: subjectAltName; usage: extendedKeyUsage; begins, ends: days from now.
        issue(subject, { names, usage, constraints = "CA:FALSE", ...times } = {}) {
            const own = join(home, `${++count}.key`);
            const extensions = [`basicConstraints=${constraints}`];
            if (names) extensions.push(`subjectAltName=${names}`);
            if (usage) extensions.push(`extendedKeyUsage=${usage}`);
            const alone = make(subject, own, own + ".request", extensions, times);
            const certificate = own + ".chain";
            writeFileSync(certificate, readFileSync(alone, "utf8") + self.chain);
            return { certificate, alone, key: own };
        },
        /// Revokes a certificate of `issue`, or an authority.
        revoke(one) {
            openssl("ca", "-config", settings, "-revoke", one.alone ?? one.file);
        },
        /// The text of its revocation list as it is now.
        list({ ends = 1 } = {}) {
            return openssl("ca", "-config", settings, "-gencrl", "-crl_lastupdate", day(-2),
                           "-crl_nextupdate", day(ends)).toString();
        },
        // For an authority below this one.
        sign(request, subject, key, extensions) {
            return make(subject, key, request, extensions, {});
        },
    };
    const extensions = [`basicConstraints=${constraints}`];
    const request = join(home, "request.pem");
    const made = above ? above.sign(request, name, key, extensions)
                       : make(name, key, request, extensions, {}, "-selfsign", "-keyfile", key);
    writeFileSync(file, readFileSync(made));
    if (above) self.chain = readFileSync(file, "utf8") + above.chain;
    return self;
}
