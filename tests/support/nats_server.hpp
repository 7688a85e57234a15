// nats-server, started by a test in a folder of its own: on loopback, gone with its object.
#pragma once

#include "client.hpp"
#include "free_port.hpp"
#include "temporary_folder.hpp"

#include <nats/nats.h>

#include <arpa/inet.h>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

namespace support {

/// The program, or nothing.
inline std::string find_nats_server() {
    for (const char* path :
         {"/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"})
        if (::access(path, X_OK) == 0) return path;
    return {};
}

class nats_server {
public:
    /// `more`: lines of its configuration.
    explicit nats_server(std::string more = {}, bool jetstream = true)
        : nats_server(free_port(), {}, jetstream) {
        more_ = std::move(more);
    }
    nats_server(int port, std::string more, bool jetstream)
        : port_(port), jetstream_(jetstream), more_(std::move(more)) {}
    ~nats_server() { kill(); }
    nats_server(const nats_server&) = delete;
    nats_server& operator=(const nats_server&) = delete;

    std::string url() const { return "nats://127.0.0.1:" + std::to_string(port_); }
    const std::filesystem::path& folder() const { return folder_.path(); }
    pid_t process() const { return pid_; }
    std::string said() const {
        std::ifstream in(folder_ / "log");
        return {std::istreambuf_iterator<char>(in), {}};
    }

    /// Starts it; returns when it accepts.
    void start() {
        launch();
        if (!eventually([&] { return accepts(); }))
            throw std::runtime_error("nats-server does not start: " + said());
    }
    void launch() {
        std::ofstream(folder_ / "conf")
            << "listen: 127.0.0.1:" << port_ << "\n"
            << (jetstream_ ? "jetstream { store_dir: \"" + (folder_ / "js") + "\" }\n" : "")
            << more_ << "\n";
        const auto program = find_nats_server(), conf = folder_ / "conf", log = folder_ / "log";
        const char* const arguments[] = {program.c_str(), "-c",   conf.c_str(), "-l",
                                         log.c_str(),     nullptr};
        pid_ = ::fork();
        if (pid_ == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            ::execv(arguments[0], const_cast<char* const*>(arguments));
            ::_exit(127);
        }
    }
    /// With what it has stored, but at another address: where nobody knows it.
    void start_elsewhere() {
        std::swap(port_, other_port_);
        start();
    }
    void start_at_home() {
        signal(SIGTERM); // after SIGKILL, messages that were deleted one by one are there again
        ::waitpid(pid_, nullptr, 0);
        pid_ = -1;
        std::swap(port_, other_port_);
        start();
    }
    void signal(int number) const {
        if (pid_ <= 0) return;
        ::kill(pid_, number);
        if (number == SIGSTOP)
            ::waitpid(pid_, nullptr, WUNTRACED); // its threads go on for a moment
    }
    /// As a crash of the process does.
    void kill() {
        if (pid_ <= 0) return;
        signal(SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = -1;
    }
    void lose_everything() const { std::filesystem::remove_all(folder_ / "js"); }
    bool accepts() const {
        const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in at{};
        at.sin_family = AF_INET;
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        at.sin_port = htons(static_cast<std::uint16_t>(port_));
        const bool connected = ::connect(fd, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0;
        ::close(fd);
        return connected;
    }

private:
    int port_;
    int other_port_ = free_port();
    bool jetstream_;
    std::string more_;
    temporary_folder folder_{"sse-nats"};
    pid_t pid_ = -1;
};

/// What an operator does with the tools of NATS.
class nats_operator {
public:
    explicit nats_operator(const std::string& url) {
        natsOptions_Create(&options_);
        natsOptions_SetURL(options_, url.c_str());
        natsOptions_SetErrorHandler(
            options_, [](natsConnection*, natsSubscription*, natsStatus, void*) {}, nullptr);
        if (natsConnection_Connect(&connection_, options_) != NATS_OK ||
            natsConnection_JetStream(&js_, connection_, nullptr) != NATS_OK)
            throw std::runtime_error("no connection to " + url);
    }
    ~nats_operator() {
        jsCtx_Destroy(js_);
        natsConnection_Destroy(connection_);
        natsOptions_Destroy(options_);
    }
    nats_operator(const nats_operator&) = delete;
    nats_operator& operator=(const nats_operator&) = delete;

    bool make(std::vector<const char*> subjects, std::int64_t max_messages = -1,
              bool refuse = false) {
        jsStreamConfig config;
        jsStreamConfig_Init(&config);
        config.Name = "SSE";
        config.Subjects = subjects.data();
        config.SubjectsLen = static_cast<int>(subjects.size());
        config.MaxMsgs = max_messages;
        config.Discard = refuse ? js_DiscardNew : js_DiscardOld;
        return js_AddStream(nullptr, js_, &config, nullptr, nullptr) == NATS_OK;
    }
    bool remove() { return js_DeleteStream(js_, "SSE", nullptr, nullptr) == NATS_OK; }
    bool purge(const char* subject = nullptr) {
        jsOptions options;
        jsOptions_Init(&options);
        options.Stream.Purge.Subject = subject;
        return js_PurgeStream(js_, "SSE", &options, nullptr) == NATS_OK;
    }
    bool remove_message(std::uint64_t number) {
        return js_DeleteMsg(js_, "SSE", number, nullptr, nullptr) == NATS_OK;
    }
    bool publish(const std::string& text, const char* id = nullptr,
                 const char* subject = "sse.log") {
        jsPubOptions options;
        jsPubOptions_Init(&options);
        options.MsgId = id;
        return js_Publish(nullptr, js_, subject, text.data(), static_cast<int>(text.size()),
                          &options, nullptr) == NATS_OK;
    }
    /// Number and text of each message of a subject.
    std::vector<std::pair<std::uint64_t, std::string>> all(const std::string& subject) {
        std::vector<std::pair<std::uint64_t, std::string>> found;
        for (std::uint64_t n = first(); n <= last(); ++n) {
            natsMsg* message = nullptr;
            if (js_GetMsg(&message, js_, "SSE", n, nullptr, nullptr) != NATS_OK) continue;
            if (subject == natsMsg_GetSubject(message))
                found.emplace_back(
                    n, std::string(natsMsg_GetData(message),
                                   static_cast<std::size_t>(natsMsg_GetDataLength(message))));
            natsMsg_Destroy(message);
        }
        return found;
    }
    std::uint64_t first() { return state().first; }
    std::uint64_t last() { return state().second; }
    /// Which of the servers leads the stream.
    std::string leader() {
        jsStreamInfo* info = nullptr;
        if (js_GetStreamInfo(&info, js_, "SSE", nullptr, nullptr) != NATS_OK) return {};
        const std::string name =
            info->Cluster && info->Cluster->Leader ? info->Cluster->Leader : "";
        jsStreamInfo_Destroy(info);
        return name;
    }

    /// Whether all of so many followers have what the leader has.
    bool is_replicated(int followers) {
        jsStreamInfo* info = nullptr;
        if (js_GetStreamInfo(&info, js_, "SSE", nullptr, nullptr) != NATS_OK) return false;
        int current = 0;
        for (int i = 0; info->Cluster && i < info->Cluster->ReplicasLen; ++i)
            current += info->Cluster->Replicas[i]->Current ? 1 : 0;
        jsStreamInfo_Destroy(info);
        return current >= followers;
    }

private:
    std::pair<std::uint64_t, std::uint64_t> state() {
        jsStreamInfo* info = nullptr;
        if (js_GetStreamInfo(&info, js_, "SSE", nullptr, nullptr) != NATS_OK) return {1, 0};
        const std::pair<std::uint64_t, std::uint64_t> found{info->State.FirstSeq,
                                                            info->State.LastSeq};
        jsStreamInfo_Destroy(info);
        return found;
    }
    natsOptions* options_ = nullptr;
    natsConnection* connection_ = nullptr;
    jsCtx* js_ = nullptr;
};

} // namespace support
