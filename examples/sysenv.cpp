// sysenv.cpp - this machine's load, processor, memory. Run it, then open http://localhost:8082/
//
// Event `env` on topic /sysenv/update once a second, as JSON. The page subscribes to /sysenv: a
// subscriber of a topic gets everything below it. Readings come from Linux's /proc; without it they
// are null.
#include "sse.hpp"

#include "program.hpp"

#include <chrono>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

constexpr std::string_view page = R"page(<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; connect-src 'self';
    img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none';
    form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'">
<title>sysenv</title>
<link rel="icon" href="data:,">
<style>
:root { --desk: #e6ecea; --paper: #fcfefd; --ink: #10262c; --soft: #4d636a; --edge: #c9d7d3;
    --pen: #1463c4; --good: #0d7a45; --bad: #c2271b; }
@media (prefers-color-scheme: dark) { :root { --desk: #0b1316; --paper: #121e23; --ink: #e4efee;
    --soft: #93a9af; --edge: #263a42; --pen: #6cb0ff; --good: #4fd18b; --bad: #ff7b6b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.25rem clamp(1rem, 4vw, 2.5rem) 3rem;
    background: var(--desk); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; align-items: center; justify-content: space-between;
    gap: .5rem 1rem; margin-bottom: 1.5rem; }
h1 { margin: 0; font: 650 1.0625rem ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
#state { margin: 0; padding: .375rem .875rem; border: 1px solid; border-radius: 2rem;
    font-size: .875rem; font-weight: 600; color: var(--soft); }
#state[data-state="open"] { color: var(--good); }
#state[data-state="lost"] { color: var(--bad); }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr));
    gap: 1rem; }
section:last-child { grid-column: 1 / -1; }
section { padding: 1rem 1.25rem 1.25rem; background: var(--paper); border: 1px solid var(--edge);
    border-radius: .5rem; }
h2 { margin: 0; font-size: 1rem; font-weight: 500; color: var(--soft); }
.value { margin: .25rem 0 .5rem; font-size: 3rem; line-height: 1; font-weight: 700;
    letter-spacing: -.03em; font-variant-numeric: tabular-nums; }
.note { margin: 0; min-height: 1.5em; color: var(--soft); font-size: .875rem;
    font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: 4.5rem; margin-top: .75rem; overflow: visible;
    border-bottom: 1px solid var(--edge); }
path { fill: none; stroke: var(--pen); stroke-width: 2; stroke-linejoin: round;
    vector-effect: non-scaling-stroke; }
path + path { fill: var(--pen); fill-opacity: .12; stroke: none; }
main.stale .value { color: var(--soft); }
</style>
<header><h1>sysenv</h1><p id="state" role="status" data-state="connecting">Connecting</p></header>
<main id="cards"></main>
<script>
"use strict";
const gigabytes = bytes => (bytes / 2 ** 30).toFixed(1);
const used = env => env.memory_total - env.memory_available;
const two = number => String(number).padStart(2, "0");
const cards = [     // value and note are text, level is the height of the curve from 0 to 1
    {title: "Load", value: env => env.load_1.toFixed(2),
     note: env => `${env.load_5.toFixed(2)} over 5 minutes, ${env.load_15.toFixed(2)} over 15`,
     level: env => env.load_1 / Math.max(env.cores, env.load_1)},
    {title: "Processor", value: env => `${(100 * env.busy).toFixed(0)} %`,
     note: env => `busy, of ${env.cores} cores`, level: env => env.busy},
    {title: "Memory", value: env => `${(100 * used(env) / env.memory_total).toFixed(0)} %`,
     note: env => `${gigabytes(used(env))} of ${gigabytes(env.memory_total)} GiB in use`,
     level: env => used(env) / env.memory_total},
    {title: "Uptime", value: ({uptime: s}) => s < 86400
         ? `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(Math.floor(s % 60))}`
         : `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`,
     note: env => `${Math.floor(env.uptime)} seconds`},
];

const svg = name => document.createElementNS("http://www.w3.org/2000/svg", name);
for (const card of cards) {
    const section = document.createElement("section");
    const add = (tag, className, text) => {
        const made = section.appendChild(document.createElement(tag));
        made.className = className;
        made.textContent = text;
        return made;
    };
    add("h2", "", card.title);
    card.shown = add("p", "value", "\u2013");
    card.noted = add("p", "note", "");
    card.levels = [];
    if (card.level) {
        const chart = section.appendChild(svg("svg"));
        chart.setAttribute("viewBox", "0 0 60 1");
        chart.setAttribute("preserveAspectRatio", "none");
        chart.setAttribute("aria-hidden", "true");
        card.curve = chart.appendChild(svg("path"));
        card.area = chart.appendChild(svg("path"));
    }
    document.getElementById("cards").append(section);
}

// Text only: what an event brings is never taken for HTML.
function show(env) {
    for (const card of cards) {
        try {
            card.shown.textContent = card.value(env);
            card.noted.textContent = card.note(env);
        } catch { // a reading that is null
            card.shown.textContent = "\u2013";
            card.noted.textContent = "not to be read on this machine";
            continue;
        }
        if (!card.curve) continue;
        card.levels.push(Math.min(Math.max(card.level(env), 0), 1));
        if (card.levels.length > 61) card.levels.shift();
        const first = 61 - card.levels.length;
        const line = card.levels.map((level, at) => `${first + at} ${(1 - level).toFixed(3)}`)
            .join("L");
        card.curve.setAttribute("d", "M" + line);
        card.area.setAttribute("d", `M${first} 1L${line}L60 1`);
    }
}

function tell(state, text) {
    document.getElementById("state").dataset.state = state;
    document.getElementById("state").textContent = text;
    document.getElementById("cards").className = state === "open" ? "" : "stale";
}

function connect() {
    const events = new EventSource("/subscribe/sysenv");
    events.onopen = () => tell("open", "Connected");
    events.onerror = () => {
        tell("lost", "Connection lost, trying again");
        // Any status but 200, as a proxy's 502, ends an EventSource for good: then a new one is made.
        if (events.readyState === EventSource.CLOSED) {
            setTimeout(connect, 3000 + 3000 * Math.random());
        }
    };
    events.addEventListener("env", event => show(JSON.parse(event.data)));
}
connect();
</script>
)page";

// Returns a number as JSON: 25276514304, not 25276514304.000000.
std::string as_json(double number) {
    std::ostringstream out;
    out << std::setprecision(15) << number;
    return out.str();
}

// The number after `name` in a file of /proc, as JSON; null if there is none.
std::string reading(const char* file, const std::string& name, double scale = 1) {
    std::ifstream in(file);
    for (std::string word; in >> word; in.ignore(std::numeric_limits<std::streamsize>::max(), '\n'))
        if (double number = 0; word == name && in >> number) return as_json(number * scale);
    return "null";
}

// The number at a position in the first line of a file of /proc, as JSON; null if there is none.
std::string number_at(const char* file, int place) {
    std::ifstream in(file);
    double number = 0;
    for (int i = 0; i <= place; ++i) in >> number;
    return in ? as_json(number) : "null";
}

// The fraction of the time since the last call in which the processor was not idle. /proc/stat
// counts ticks since the start: user, nice, system, idle, waiting for I/O, interrupts (two),
// stolen.
class processor {
public:
    std::string busy() {
        std::ifstream in("/proc/stat");
        std::string name;
        in >> name;
        double all = 0, idle = 0, ticks = 0;
        for (int i = 0; i < 8 && in >> ticks; ++i) {
            all += ticks;
            if (i == 3 || i == 4) idle += ticks;
        }
        const double passed = all - std::exchange(all_, all);
        const double rested = idle - std::exchange(idle_, idle);
        return passed > 0 ? as_json(1 - rested / passed) : "null";
    }

private:
    double all_ = 0, idle_ = 0;
};

std::string readings(processor& cpu) {
    return "{\"load_1\":" + number_at("/proc/loadavg", 0) +
           ",\"load_5\":" + number_at("/proc/loadavg", 1) +
           ",\"load_15\":" + number_at("/proc/loadavg", 2) +
           ",\"cores\":" + std::to_string(std::thread::hardware_concurrency()) +
           ",\"busy\":" + cpu.busy() +
           ",\"memory_total\":" + reading("/proc/meminfo", "MemTotal:", 1024) +
           ",\"memory_available\":" + reading("/proc/meminfo", "MemAvailable:", 1024) +
           ",\"uptime\":" + number_at("/proc/uptime", 0) + "}";
}

asio::awaitable<void> send_page(sse::stream& client) {
    std::string body(page);
    co_await client.respond(200, "text/html; charset=utf-8", std::move(body));
}

int main(int argc, char** argv) {
    return program::run(argc, argv, "sysenv [ADDRESS]", [&] {
        sse::server server;
        server.route("GET", "/", send_page);
        server.start(argc > 1 ? argv[1] : "127.0.0.1:8082");
        std::cout << "http://localhost:" << server.port() << "/" << std::endl;
        for (processor cpu;;) {
            server.publish("/sysenv/update", {.event = "env", .data = readings(cpu)});
            std::this_thread::sleep_for(std::chrono::seconds(1));
        }
    });
}
