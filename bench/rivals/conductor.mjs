// conductor.mjs - bench::conductor for Node: obeys the client, publishes a burst and then at a rate.
import { parseArgs } from "node:util";

const text = { type: "string" };
const { values } = parseArgs({ options: { rate: text, burst: text, payload: text } });
const rate = Number(values.rate), burst = Number(values.burst);
const padding = "x".repeat(Number(values.payload));

// `publish` takes a line; `end` is called when the client says so or is gone.
export function conduct({ port, pid, publish, end }) {
    const say = line => process.stdout.write(`${line}\n`);
    let seq = 0, timer;
    const publishNext = () => publish(`${++seq} ${process.hrtime.bigint()} ${padding}`);

    function start() {
        for (let n = 0; n < burst; ++n) publishNext();
        if (rate === 0) return;
        const began = performance.now();
        let done = 0;
        timer = setInterval(() => {
            const due = Math.floor((performance.now() - began) / 1000 * rate);
            for (; done < due; ++done) publishNext();
        }, 1000 / rate);
    }

    process.stdin.on("data", bytes => {
        for (const command of bytes.toString()) {
            if (command === "q") return end();
            if (command === "p") clearInterval(timer);
            say(seq);
            if (command === "s") start();
        }
    });
    process.stdin.on("end", end);
    say(`${port} ${pid}`);
}
