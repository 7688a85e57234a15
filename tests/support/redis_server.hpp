// A redis-server of a test's own: on a free port of loopback, in a temporary folder.
#pragma once

#include "free_port.hpp"
#include "temporary_folder.hpp"

#include <hiredis/hiredis.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

class redis_server {
public:
    using reply = std::unique_ptr<redisReply, void (*)(void*)>;

    static bool is_installed() {
        return std::system("command -v redis-server >/dev/null 2>&1") == 0;
    }

    /// Starts it; the arguments are as on its command line, without those for port and folder.
    explicit redis_server(std::vector<std::string> arguments = {})
        : arguments_(std::move(arguments)), port_(support::free_port()) {
        start();
    }
    ~redis_server() { kill(); }
    redis_server(const redis_server&) = delete;
    redis_server& operator=(const redis_server&) = delete;

    int port() const { return port_; }
    std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
    const std::filesystem::path& folder() const { return folder_.path(); }
    pid_t process() const { return pid_; }
    std::vector<std::string>& arguments() { return arguments_; }

    void start(bool until_loaded = true) {
        std::vector<std::string> all{"redis-server",
                                     "--port",
                                     std::to_string(port_),
                                     "--bind",
                                     "127.0.0.1",
                                     "--dir",
                                     folder_.path().string(),
                                     "--repl-diskless-sync-delay",
                                     "0",
                                     "--save",
                                     "",
                                     "--logfile",
                                     folder_ / "log"};
        all.insert(all.end(), arguments_.begin(), arguments_.end());
        std::vector<char*> raw;
        for (auto& a : all) raw.push_back(a.data());
        raw.push_back(nullptr);
        pid_ = ::fork();
        if (pid_ == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            ::execvp(raw[0], raw.data());
            ::_exit(127);
        }
        if (until_loaded) wait_until_loaded();
    }
    void wait_until_loaded() {
        wait_until("redis-server does not start", [&] {
            auto r = try_command({"PING"});
            return r && (r->type != REDIS_REPLY_ERROR ||
                         std::string_view(r->str, r->len).find("LOADING") == std::string::npos);
        });
    }
    void kill() {
        own_.reset();
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = -1;
    }
    void signal(int number) { ::kill(pid_, number); }
    void freeze() { signal(SIGSTOP); }
    void thaw() { signal(SIGCONT); }
    void restart() {
        kill();
        start();
    }

    /// At most, of the file that is written to now.
    void cut_append_only_file(std::uintmax_t bytes) {
        for (const auto& file : std::filesystem::directory_iterator(folder_ / "appendonlydir")) {
            if (file.path().string().find(".incr.aof") == std::string::npos) continue;
            std::filesystem::resize_file(file.path(),
                                         file.file_size() - std::min(bytes, file.file_size()));
        }
    }

    /// Throws if Redis refuses it.
    reply command(const std::vector<std::string>& words) {
        auto r = try_command(words);
        if (!r) throw std::runtime_error("no reply to " + words[0]);
        if (r->type == REDIS_REPLY_ERROR) throw std::runtime_error(words[0] + ": " + r->str);
        return r;
    }
    std::string text(const std::vector<std::string>& words) {
        const auto r = command(words);
        return r->str ? std::string(r->str, r->len) : std::string();
    }
    bool info_has(const std::string& line) {
        return text({"INFO"}).find(line) != std::string::npos;
    }

    /// Makes it a replica of another, and waits until it has everything.
    void follow(redis_server& primary) {
        command({"REPLICAOF", "127.0.0.1", std::to_string(primary.port())});
        wait_until("no replication", [&] {
            return info_has("master_link_status:up") &&
                   primary.info_has("port=" + std::to_string(port_) + ",state=online");
        });
    }
    void promote() { command({"REPLICAOF", "NO", "ONE"}); }

    template <class F>
    static void wait_until(const char* what, F&& is_true) {
        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
        while (!is_true()) {
            if (std::chrono::steady_clock::now() > end) throw std::runtime_error(what);
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
    }

private:
    reply try_command(const std::vector<std::string>& words) {
        if (!own_ || own_->err) {
            own_.reset(redisConnectWithTimeout("127.0.0.1", port_, {5, 0}));
            if (!own_ || own_->err) return {nullptr, &freeReplyObject};
            redisSetTimeout(own_.get(), {10, 0});
            ::fcntl(own_->fd, F_SETFD, FD_CLOEXEC);
        }
        std::vector<const char*> text;
        std::vector<std::size_t> size;
        for (const auto& w : words) {
            text.push_back(w.data());
            size.push_back(w.size());
        }
        return {static_cast<redisReply*>(redisCommandArgv(
                    own_.get(), static_cast<int>(words.size()), text.data(), size.data())),
                &freeReplyObject};
    }

    std::vector<std::string> arguments_;
    int port_;
    support::temporary_folder folder_{"sse-redis"};
    pid_t pid_ = -1;
    std::unique_ptr<redisContext, void (*)(redisContext*)> own_{nullptr, &redisFree};
};
