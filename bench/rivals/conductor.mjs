// conductor.mjs - bench::conductor for Node: obeys the client, publishes a burst and then at a rate.
import { parseArgs } from "node:util";

const text = { type: "string" };
const { values } = parseArgs({
    options: { rate: text, burst: text, payload: text, each: text, topics: text },
});
// Messages a second to each client by a loop of its own, and how many get each message in turn; 0: all get each.
export const each = Number(values.each), topics = Number(values.topics);
const rate = Number(values.rate), burst = Number(values.burst);
const padding = "x".repeat(Number(values.payload));

export const line = (seq, ns) => `${seq} ${ns} ${padding}`;

// `publish` takes a line and its number; `end` is called when the client says so or is gone. Where messages
// do not come from here, `published` is told whether they are to go on, and says how many there are.
export function conduct({ port, pid, publish, published, end }) {
    const say = line => process.stdout.write(`${line}\n`);
    let seq = 0, sends = false, timer;
    const publishNext = () => publish(line(++seq, process.hrtime.bigint()), seq);

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
            if (command !== "a") sends = command === "s";
            if (published) seq = published(sends);
            say(seq);
            if (command === "s") start();
        }
    });
    process.stdin.on("end", end);
    say(`${port} ${pid}`);
}
