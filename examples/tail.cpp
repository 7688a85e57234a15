// tail.cpp - follows a log file. Run it: tail 127.0.0.1:8080 /var/log/syslog
// Then: curl -N "http://localhost:8080/?lines=20"
//
// One thread reads the file, however many clients watch; the history holds its last lines for
// clients that come later or come back. A file that was truncated or replaced, as log rotation
// does, is read again from its beginning. Data may hold any text, so no line can forge an event.
#include "sse.hpp"

#include "program.hpp"

#include <iostream>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

using namespace std::chrono_literals;

constexpr std::size_t kept_lines = 1000;
constexpr std::size_t longest_line = 64 * 1024; // a longer one is sent in pieces
constexpr off_t looked_back = 1024 * 1024;      // bytes, if the file exists at the start

class log_file {
public:
    explicit log_file(std::string path) : path_(std::move(path)) { open(looked_back); }
    ~log_file() { close(); }
    log_file(const log_file&) = delete;
    log_file& operator=(const log_file&) = delete;

    // Calls `use` for each line completed since the last call.
    template <class Use>
    void read(Use use) {
        if (fd_ < 0) open(std::numeric_limits<off_t>::max());
        if (fd_ < 0) return;                 // there is no such file now
        const bool replaced = is_replaced(); // asked first, so that the old one is read to its end
        struct stat now {};
        if (::fstat(fd_, &now) == 0 && now.st_size < at_) begin(0); // truncated
        char bytes[16 * 1024];
        for (ssize_t n; (n = ::pread(fd_, bytes, sizeof bytes, at_)) > 0; at_ += n)
            split({bytes, static_cast<std::size_t>(n)}, use);
        if (replaced) close();
    }

private:
    void open(off_t back) {
        fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat now {};
        if (fd_ >= 0 && ::fstat(fd_, &now) == 0) begin(now.st_size > back ? now.st_size - back : 0);
    }
    void close() {
        if (fd_ >= 0) ::close(std::exchange(fd_, -1));
    }
    void begin(off_t at) {
        at_ = at;
        inside_ = at > 0; // in a line whose beginning was skipped
        line_.clear();
    }
    bool is_replaced() const {
        struct stat ours {
        }, named{};
        return ::fstat(fd_, &ours) == 0 && ::stat(path_.c_str(), &named) == 0 &&
               (ours.st_ino != named.st_ino || ours.st_dev != named.st_dev);
    }
    template <class Use>
    void split(std::string_view bytes, Use& use) {
        for (std::size_t end; (end = bytes.find('\n')) != bytes.npos; line_.clear()) {
            line_.append(bytes.substr(0, end));
            if (!std::exchange(inside_, false)) use(line_);
            bytes.remove_prefix(end + 1);
        }
        line_.append(bytes); // its end is not written yet
        if (line_.size() > longest_line) use(std::exchange(line_, {}));
    }

    std::string path_, line_;
    int fd_ = -1;
    off_t at_ = 0;
    bool inside_ = false;
};

asio::awaitable<void> watch(sse::stream& client) {
    const std::string asked = client.request().query_value("lines").value_or("10");
    std::size_t lines = 0;
    const char* const end = asked.data() + asked.size();
    if (asked.empty() || std::from_chars(asked.data(), end, lines).ptr != end || lines > kept_lines)
        co_return co_await client.respond(400, "text/plain", "lines is a number up to 1000\n");
    client.subscribe("/log", {.from = sse::start::resume_or(sse::start::last(lines)),
                              .lag = sse::lag_policy::skip});
}

int main(int argc, char** argv) {
    return program::run(argc, argv, "tail ADDRESS FILE", [&] {
        sse::options options;
        options.threads = 1;
        options.history.messages = kept_lines;
        options.handle_signals = true;
        sse::server server(options);
        server.route("GET", "/", watch);
        server.start(argv[1]);
        log_file file(argv[2]);
        std::jthread reader([&](const std::stop_token& stop) {
            try {
                for (; !stop.stop_requested(); std::this_thread::sleep_for(50ms))
                    file.read(
                        [&](const std::string& line) { server.publish("/log", {.data = line}); });
            } catch (const std::system_error&) {} // the server was stopped
        });
        std::cout << "http://localhost:" << server.port() << "/" << std::endl;
        server.join();
    });
}
