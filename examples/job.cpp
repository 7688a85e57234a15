// job.cpp - work that continues without its client, which may come back for it. Run it, then:
// curl -N localhost:8080$(curl -s -d '' localhost:8080/jobs)
// Press Ctrl-C, then ask for the same URL again: it has continued.
//
// POST /jobs starts a job and responds with its path; GET /jobs/{id} shows it from its beginning,
// or after Last-Event-ID, to its last event. A client that comes late gets every line of the log,
// but only the newest progress, since progress has a key. Who leaves can come back; only
// DELETE /jobs/{id} stops the work.
#include "sse.hpp"

#include "program.hpp"

#include <asio/thread_pool.hpp>

#include <iostream>

using namespace std::chrono_literals;

std::atomic<bool> stopping = false;

// Runs on a thread of the pool, and knows nothing of HTTP.
void bake(sse::job job) {
    for (const std::string step : {"mix", "knead", "rise", "bake"}) {
        job.send({.event = "log", .data = "now: " + step});
        for (int percent = 10; percent <= 100; percent += 10) {
            if (stopping) return;
            if (job.stop_requested()) return job.finish({.event = "stopped", .data = step});
            std::this_thread::sleep_for(30ms);
            job.send({.event = "progress",
                      .data = step + " " + std::to_string(percent) + " %",
                      .key = "progress"});
        }
    }
    job.finish({.event = "done", .data = "bread"});
}

int main(int argc, char** argv) {
    return program::run(argc, argv, "job [ADDRESS]", [&] {
        sse::jobs jobs;
        asio::thread_pool workers(2);
        std::atomic<int> started = 0;

        sse::server server({.handle_signals = true});
        server.route("POST", "/jobs", [&](sse::stream& client) -> asio::awaitable<void> {
            const std::string id = std::to_string(++started);
            asio::post(workers, [job = jobs.start(id)]() mutable { bake(std::move(job)); });
            client.add_header("Location", "/jobs/" + id);
            co_await client.respond(202, "text/plain", "/jobs/" + id + "\n");
        });
        server.route("GET", "/jobs/{id}", [&](sse::stream& client) {
            return jobs.serve(client, client.request().path_value("id"));
        });
        server.route("DELETE", "/jobs/{id}", [&](sse::stream& client) {
            const bool runs = jobs.stop(client.request().path_value("id"));
            return client.respond(runs ? 202 : 404, "text/plain",
                                  runs ? "It is asked to stop\n" : "No such job runs\n");
        });
        server.start(argc > 1 ? argv[1] : "127.0.0.1:8080");
        std::cout << "http://localhost:" << server.port() << "/jobs" << std::endl;
        server.join();
        stopping = true;
        workers.join();
    });
}
