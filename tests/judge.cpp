// judge.cpp - nodes on one bus, killed, stopped and frozen like the bus itself, while clients come
// back to another node each time, and every message is accounted for.
//
// JUDGE_DURATION_SEC=600 JUDGE_BUS_SEC=30 build/tests/judge redis nats-cluster
//
// Each node is a process of its own, since its state has to die with it: this program again, as
// `judge node ...`. It publishes too, and tells by a pipe what was acknowledged. The clients and
// the books are in support/crowd.hpp. At the end the storm rests: all come back, a last message is
// published, and every client must get it; what it did not get before that is lost, unless a gap
// told it. Where nothing is lost durably (all but redis-promoted, -everysec and -cut), no client
// may be told a gap at all. In those, a message may come again after the gap that tells of its
// loss.
//
// file             one node with a log in files, which is killed
// redis            three nodes; a redis-server with appendfsync always, which is killed and frozen
// redis-everysec   the same with appendfsync everysec
// redis-promoted   a replica that lacks the last messages is promoted, and the master killed
// redis-cut        appendfsync everysec, and a file whose end is gone after each kill, by hand
// nats             a nats-server with files, which is killed and frozen
// nats-cluster     three of them; the one that leads the stream is killed or frozen
//
// To compare, the servers of others under the same storm, by hand and from the project's folder:
//
// nchan            three nginx with nchan, and a redis-server with appendfsync always
// centrifuge       three servers with Debian's library of Centrifugo, and the same redis-server
// nchan-cut, centrifuge-cut    the same with the Redis of redis-cut
#include "support/crowd.hpp"
#include "support/free_port.hpp"
#include "support/temporary_folder.hpp"

#include "sse.hpp"

#if defined(SSE_ENABLE_REDIS)
#include "support/peers.hpp"
#include "support/redis_server.hpp"
#endif
#if defined(SSE_ENABLE_NATS)
#include "support/nats_server.hpp"
#endif
#include "support/setting.hpp"

#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>

#include <sys/prctl.h>

namespace judge_test {

using namespace std::chrono_literals;
using namespace support;
using clock = std::chrono::steady_clock;

namespace {

// ---- what is asked for --------------------------------------------------------------------------

struct settings {
    bool wanted = setting("JUDGE", 1, 0, 1) == 1;
    std::chrono::seconds duration{setting("JUDGE_DURATION_SEC", 10, 5, 24 * 3600)}; ///< Of each.
    std::chrono::milliseconds between_bus{setting("JUDGE_BUS_SEC", 3, 1, 3600) * 1000};
    std::chrono::milliseconds between_nodes{setting("JUDGE_NODE_MS", 1000, 100, 3'600'000)};
    std::size_t clients = setting("JUDGE_CLIENTS", 300, 1, 5'000);
    std::size_t messages_per_second = setting("JUDGE_MSG_PER_SEC", 150, 1, 100'000);
    std::uint64_t seed = setting("SSE_TEST_SEED", std::random_device()(), 0,
                                 std::numeric_limits<std::uint64_t>::max());
};

// ---- a node: this program again -----------------------------------------------------------------

/// What a node is started with, as its arguments.
struct node_settings {
    std::string engine;    ///< file, redis, redis-that-keeps-all, nats, or the server of another
    std::string addresses; ///< Folders, or where the servers are, separated by commas.
    std::uint16_t port = 0;
    std::uint32_t publisher = 1; ///< The first number of its publishers.
    std::uint32_t publishers = 3;
    std::size_t messages_per_second = 50;

    std::vector<std::string> arguments() const {
        return {"node",
                engine,
                addresses,
                std::to_string(port),
                std::to_string(publisher),
                std::to_string(publishers),
                std::to_string(messages_per_second)};
    }
    static node_settings of(char** argument) {
        return {argument[0],
                argument[1],
                static_cast<std::uint16_t>(std::stoul(argument[2])),
                static_cast<std::uint32_t>(std::stoul(argument[3])),
                static_cast<std::uint32_t>(std::stoul(argument[4])),
                std::stoul(argument[5])};
    }
};

[[maybe_unused]] std::vector<std::string> parts_of(const std::string& list) {
    std::vector<std::string> parts;
    for (std::size_t at = 0; at < list.size();) {
        const std::size_t end = std::min(list.find(',', at), list.size());
        parts.push_back(list.substr(at, end - at));
        at = end + 1;
    }
    return parts;
}

std::shared_ptr<sse::bus> bus_for(const node_settings& asked) {
    if (asked.engine == "file") return sse::file_log(asked.addresses);
#if defined(SSE_ENABLE_REDIS)
    if (asked.engine.starts_with("redis")) {
        sse::redis_options o;
        o.addresses = parts_of(asked.addresses);
        o.keeps_all = asked.engine == "redis-that-keeps-all";
        o.max_length = 10'000'000;
        o.connect_timeout = 1s;
        o.block = 200ms;
        return sse::redis_bus(o);
    }
#endif
#if defined(SSE_ENABLE_NATS)
    if (asked.engine == "nats") {
        sse::nats_options o;
        o.servers = parts_of(asked.addresses);
        o.replicas = o.servers.size() == 3 ? 3 : 1;
        o.max_messages = 10'000'000;
        o.connect_timeout = 1s;
        o.reply_timeout = 1s;
        o.check_interval = 200ms;
        return sse::nats_bus(o);
    }
#endif
    throw std::invalid_argument("there is no engine " + asked.engine);
}

/// Publishes, and tells what was acknowledged.
class node {
public:
    virtual ~node() = default;
    node(const node&) = delete;
    node& operator=(const node&) = delete;

    /// Until the judge has gone, or says so: g(o) and publish, q(uiet), e(nd): publish the last
    /// message, s(top).
    void run() {
        for (char command = 0; ::read(STDIN_FILENO, &command, 1) == 1 && command != 's';) {
            if (command == 'g') go();
            if (command == 'q') quiet();
            if (command == 'e') publish_last();
        }
        quiet();
        stop();
    }

protected:
    struct outcome {
        std::uint64_t number = 0; ///< 0: it was not acknowledged.
        bool is_refused = false;  ///< Then it is not published either.
    };

    /// Those that run ahead publish some without waiting for their end, so that several are on
    /// their way at once. Nothing is known of these, but that their order must be right.
    node(node_settings asked, bool runs_ahead) : asked_(std::move(asked)), ahead_(runs_ahead) {}

    const node_settings& asked() const { return asked_; }

private:
    virtual outcome attempt(std::uint32_t publisher, const std::string& topic,
                            const std::string& data, bool wait) = 0;
    virtual void stop() = 0;

    void go() {
        is_quiet_ = false;
        for (std::uint32_t i = 0; i < asked_.publishers; ++i)
            threads_.emplace_back([this, i] { publish_all(asked_.publisher + i); });
    }
    void quiet() {
        is_quiet_ = true;
        for (std::thread& each : threads_) each.join();
        threads_.clear();
    }

    void publish_all(std::uint32_t publisher) {
        const std::chrono::nanoseconds pause =
            std::chrono::nanoseconds(1s) * asked_.publishers / asked_.messages_per_second;
        clock::time_point next = clock::now();
        for (std::uint32_t count = 1; !is_quiet_; ++count) {
            const bool in_a_row = ahead_ && count % 16 > 8;
            publish(publisher, count, !in_a_row);
            next += pause;
            if (next < clock::now() - 100ms) next = clock::now();
            if (!in_a_row) std::this_thread::sleep_until(next);
        }
    }
    /// Whether it was acknowledged.
    bool publish(std::uint32_t publisher, std::uint32_t count, bool wait) {
        const std::string topic = "/j/" + std::to_string(count % topic_count);
        const std::string data = std::to_string(publisher) + " " + std::to_string(count) +
                                 " and something else, so that it has some length";
        const outcome o = attempt(publisher, topic, data, wait);
        if (o.is_refused || o.number != 0) tell(publisher, count, o.number);
        return o.number != 0;
    }
    static void tell(std::uint32_t publisher, std::uint32_t count, std::uint64_t number) {
        using kind = receipt::kind;
        const receipt one{number != 0 ? kind::acknowledged : kind::refused, publisher, count, 0,
                          number};
        if (::write(STDOUT_FILENO, &one, sizeof one) != sizeof one) std::_Exit(3);
    }
    /// Each attempt has a number of its own: one that seemed to fail may be published too. So have
    /// those of a node that is started later.
    void publish_last() {
        const auto end = clock::now() + 30s;
        while (clock::now() < end && !publish(0, asked_.publisher * 100 + ++attempts_, true))
            std::this_thread::sleep_for(10ms);
    }

    const node_settings asked_;
    const bool ahead_;
    std::atomic<bool> is_quiet_{true};
    std::uint32_t attempts_ = 0;
    std::vector<std::thread> threads_;
};

class own_node final : public node {
public:
    explicit own_node(node_settings asked) : node(std::move(asked), true), server_(options()) {
        server_.start("127.0.0.1:" + std::to_string(this->asked().port));
    }

private:
    sse::options options() const {
        sse::options o;
        o.threads = 1;
        o.heartbeat = 500ms;
        o.timeouts.publish = 2s;
        o.history.messages = 1'000'000;
        o.limits.retry_after = 50ms;
        o.hooks.log = [](const sse::log_entry& e) {
            if (e.level < sse::log_level::warning && e.what != "bus") return;
            std::fprintf(stderr, "%.*s: %.*s\n", static_cast<int>(e.what.size()), e.what.data(),
                         static_cast<int>(e.detail.size()), e.detail.data());
        };
        o.bus = bus_for(asked());
#if defined(SSE_ENABLE_ZLIB)
        o.compress = gzip_by_default;
#endif
        return o;
    }

    outcome attempt(std::uint32_t publisher, const std::string& topic, const std::string& data,
                    bool wait) override {
        const sse::message m{.data = data};
        std::error_code failed;
        std::uint64_t number = 0;
        try {
            if (wait)
                number = publisher == 0 ? server_.broadcast(m) : server_.publish(topic, m);
            else
                failed = server_.try_publish(topic, m);
        } catch (const std::system_error& e) { failed = e.code(); }
        return {number, failed && failed != sse::errc::bus_timeout};
    }
    void stop() override {
        server_.stop();
        server_.join();
    }

    sse::server server_;
};

#if defined(SSE_ENABLE_REDIS)

/// The server of another, which is a child of this process and of its group.
class peer_node final : public node {
public:
    peer_node(node_settings asked, const peer& kind)
        : node(std::move(asked), false), server_(kind.command(place())) {
        ::prctl(PR_SET_PDEATHSIG, 0); // rather stop it, once the judge says nothing more
        for (std::uint32_t i = 0; i <= this->asked().publishers; ++i)
            publishers_.emplace_back(this->asked().port);
    }

private:
    peer_place place() const {
        const std::vector<std::string> parts = parts_of(asked().addresses);
        return {asked().port, parts.at(0), parts.at(1)};
    }
    outcome attempt(std::uint32_t publisher, const std::string&, const std::string& data,
                    bool) override {
        const std::size_t own = publisher == 0 ? 0 : publisher - asked().publisher + 1;
        const peer_publisher::outcome o = publishers_[own].publish(data, 2s);
        return {o == peer_publisher::outcome::acknowledged ? 1u : 0u,
                o == peer_publisher::outcome::refused};
    }
    void stop() override {
        server_.signal(SIGTERM);
        server_.wait_for_exit(10s);
    }

    process server_;
    std::vector<peer_publisher> publishers_; // the first publishes the last message
};

#endif

std::unique_ptr<node> node_for(const node_settings& asked) {
#if defined(SSE_ENABLE_REDIS)
    if (const peer* const kind = find_peer(asked.engine))
        return std::make_unique<peer_node>(asked, *kind);
#endif
    return std::make_unique<own_node>(asked);
}

// ---- the nodes, as the judge has them -----------------------------------------------------------

class node_process {
public:
    node_process(node_settings asked, std::string log)
        : asked_(std::move(asked)), log_(std::move(log)) {}
    ~node_process() { kill(); }
    node_process(node_process&&) = default;
    node_process& operator=(node_process&&) = delete;

    void start(std::uint32_t publisher) {
        asked_.publisher = publisher;
        int in[2], out[2];
        if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) throw_errno("pipe2");
        std::vector<std::string> words = asked_.arguments();
        words.insert(words.begin(), "judge");
        std::vector<char*> raw;
        for (std::string& each : words) raw.push_back(each.data());
        raw.push_back(nullptr);
        pid_ = ::fork();
        if (pid_ < 0) throw_errno("fork");
        if (pid_ == 0) {
            ::setpgid(0, 0);
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            const int log = ::open(log_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
            if (::dup2(in[0], 0) < 0 || ::dup2(out[1], 1) < 0 || ::dup2(log, 2) < 0) ::_exit(126);
            ::execv("/proc/self/exe", raw.data());
            ::_exit(127);
        }
        ::setpgid(pid_, pid_); // whichever is first: what it starts is harmed with it
        ::close(in[0]);
        ::close(out[1]);
        to_ = descriptor(in[1]);
        from_ = descriptor(out[0]);
        ::fcntl(from_.get(), F_SETFL, O_NONBLOCK);
        part_.clear();
    }
    void say(char command) const { // if it is gone, that shows elsewhere
        [[maybe_unused]] const ssize_t written = ::write(to_.get(), &command, 1);
    }
    bool is_running() const { return pid_ > 0; }
    std::uint16_t port() const { return asked_.port; }
    void freeze() { ::kill(-pid_, SIGSTOP), frozen_ = true; }
    void thaw() { ::kill(-pid_, SIGCONT), frozen_ = false; }
    bool is_frozen() const { return frozen_; }
    void kill() {
        if (pid_ <= 0) return;
        ::kill(-pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = -1;
        frozen_ = false;
    }
    /// Whether it ended by itself since it was last asked.
    bool has_ended() {
        if (pid_ <= 0 || ::waitpid(pid_, &status_, WNOHANG) != pid_) return false;
        pid_ = -1;
        return true;
    }
    int status() const { return status_; }
    /// The last line of its log.
    std::string last_words() const {
        std::ifstream lines(log_);
        std::string last;
        for (std::string line; std::getline(lines, line);) last = line;
        return last;
    }

    /// What its publishers were told meanwhile.
    void collect(std::vector<receipt>& to) {
        char bytes[16 * 1024];
        for (ssize_t size; from_ && (size = ::read(from_.get(), bytes, sizeof bytes)) > 0;)
            part_.append(bytes, static_cast<std::size_t>(size));
        const std::size_t whole = part_.size() / sizeof(receipt);
        for (std::size_t i = 0; i < whole; ++i) {
            receipt one;
            std::memcpy(&one, part_.data() + i * sizeof one, sizeof one);
            to.push_back(one);
        }
        part_.erase(0, whole * sizeof(receipt));
    }

    clock::time_point until{}; ///< Then it is started, or thawed.

private:
    node_settings asked_;
    std::string log_;
    pid_t pid_ = -1;
    int status_ = 0;
    bool frozen_ = false;
    descriptor to_, from_;
    std::string part_; // of a receipt
};

// ---- buses --------------------------------------------------------------------------------------

/// A bus that is to be harmed. `pass(time)` lets everything else go on for so long.
class target {
public:
    using pass = std::function<void(std::chrono::milliseconds)>;
    using dice = std::function<std::size_t(std::size_t below)>;

    virtual ~target() = default;
    virtual std::string engine() const = 0;
    virtual std::string addresses() const = 0;
    virtual std::size_t nodes() const { return 3; }
    virtual bool may_lose() const { return false; }
    virtual bool is_peer() const { return false; }
    /// Nothing by default: then it is the nodes that are harmed.
    virtual bool harm(const pass&, const dice&) { return false; }
};

class file_target final : public target {
public:
    std::string engine() const override { return "file"; }
    std::string addresses() const override { return folder_ / "log"; }
    std::size_t nodes() const override { return 1; }

private:
    temporary_folder folder_{"sse-judge"};
};

/// Kills it and starts it again, or freezes it for a while.
template <class Server>
void kill_or_freeze(Server& server, const target::pass& pass, const target::dice& dice) {
    const std::chrono::milliseconds pause(dice(1500));
    if (dice(3) == 0) {
        server.signal(SIGSTOP);
        pass(pause);
        server.signal(SIGCONT);
    } else {
        server.kill();
        pass(pause);
        server.start();
    }
}

#if defined(SSE_ENABLE_REDIS)

/// What a loss of power may do to a Redis that asks for what it wrote to be kept once a second.
void cut(redis_server& server, const target::pass& pass, const target::dice& dice) {
    server.kill();
    server.cut_append_only_file(dice(30'000));
    pass(std::chrono::milliseconds(dice(1500)));
    server.start();
}

class redis_target final : public target {
public:
    explicit redis_target(std::string fsync, bool cuts = false)
        : fsync_(std::move(fsync)), cuts_(cuts),
          server_({"--appendonly", "yes", "--appendfsync", fsync_}) {}
    std::string engine() const override { return may_lose() ? "redis" : "redis-that-keeps-all"; }
    std::string addresses() const override { return server_.address(); }
    bool may_lose() const override { return fsync_ != "always"; }
    bool harm(const pass& pass_, const dice& dice_) override {
        (cuts_ ? cut : kill_or_freeze<redis_server>)(server_, pass_, dice_);
        return true;
    }

private:
    std::string fsync_;
    bool cuts_;
    redis_server server_;
};

/// The servers of others.
class peer_target final : public target {
public:
    peer_target(const peer& kind, const std::string& fsync, bool cuts)
        : kind_(kind), redis_(fsync, cuts) {
        kind_.build(folder_ / "");
    }
    std::string engine() const override { return kind_.name; }
    std::string addresses() const override { return redis_.addresses() + "," + (folder_ / ""); }
    bool is_peer() const override { return true; }
    bool harm(const pass& pass_, const dice& dice_) override { return redis_.harm(pass_, dice_); }

private:
    const peer& kind_;
    temporary_folder folder_{"sse-judge"};
    redis_target redis_;
};

/// Two of them, one the replica of the other. There is never more than one master.
class promoted_target final : public target {
public:
    promoted_target() { replica_->follow(*master_); }
    std::string engine() const override { return "redis"; }
    std::string addresses() const override { return a_.address() + "," + b_.address(); }
    bool may_lose() const override { return true; }
    bool harm(const pass& pass_, const dice& dice_) override {
        replica_->command({"REPLICAOF", "127.0.0.1", "1"}); // hears nothing more, stays a replica
        pass_(std::chrono::milliseconds(dice_(300)));
        master_->kill();
        pass_(std::chrono::milliseconds(dice_(1000)));
        replica_->promote();
        pass_(std::chrono::milliseconds(dice_(500)));
        std::swap(master_, replica_);
        replica_->arguments() = options();
        replica_->arguments().insert(
            replica_->arguments().end(),
            {"--replicaof", "127.0.0.1 " + std::to_string(master_->port())});
        replica_->start();
        replica_->follow(*master_);
        return true;
    }

private:
    static std::vector<std::string> options() {
        return {"--appendonly", "yes", "--appendfsync", "everysec"};
    }
    redis_server a_{options()}, b_{options()};
    redis_server* master_ = &a_;
    redis_server* replica_ = &b_;
};

#endif // SSE_ENABLE_REDIS

#if defined(SSE_ENABLE_NATS)

class nats_target final : public target {
public:
    nats_target() { server_.start(); }
    std::string engine() const override { return "nats"; }
    std::string addresses() const override { return server_.url(); }
    bool harm(const pass& pass_, const dice& dice_) override {
        kill_or_freeze(server_, pass_, dice_);
        return true;
    }

private:
    nats_server server_;
};

class cluster_target final : public target {
public:
    cluster_target() {
        std::vector<int> ports;
        std::string routes;
        for (int i = 0; i < 3; ++i) {
            ports.push_back(free_port());
            routes += "nats-route://127.0.0.1:" + std::to_string(ports.back()) + ",";
        }
        for (const int port : ports)
            servers_.push_back(std::make_unique<nats_server>(
                "server_name: s" + std::to_string(servers_.size()) +
                "\ncluster { name: c, listen: \"127.0.0.1:" + std::to_string(port) +
                "\", routes: [" + routes + "] }"));
        for (const auto& server : servers_) server->launch();
        for (const auto& server : servers_)
            if (!eventually([&] { return server->accepts(); }))
                throw std::runtime_error("nats-server does not start: " + server->said());
    }
    std::string engine() const override { return "nats"; }
    std::string addresses() const override {
        return servers_[0]->url() + "," + servers_[1]->url() + "," + servers_[2]->url();
    }
    /// Only while all three have everything: two of three could lose what the third never had.
    bool harm(const pass& pass_, const dice& dice_) override {
        const std::string leader = leader_of_all();
        if (leader.empty()) return false;
        kill_or_freeze(*servers_[static_cast<std::size_t>(leader.at(1) - '0')], pass_, dice_);
        return true;
    }

private:
    std::string leader_of_all() {
        try {
            nats_operator one(servers_[0]->url());
            return one.is_replicated(2) ? one.leader() : "";
        } catch (const std::runtime_error&) { return {}; }
    }
    std::vector<std::unique_ptr<nats_server>> servers_;
};

#endif // SSE_ENABLE_NATS

/// Throws what_is_missing if this cannot run here.
struct what_is_missing : std::runtime_error {
    using std::runtime_error::runtime_error;
};
std::unique_ptr<target> target_of(const std::string& name) {
    if (name == "file") return std::make_unique<file_target>();
    if (name.starts_with("redis")) {
#if defined(SSE_ENABLE_REDIS)
        if (!redis_server::is_installed()) throw what_is_missing("there is no redis-server");
        if (name == "redis") return std::make_unique<redis_target>("always");
        if (name == "redis-everysec") return std::make_unique<redis_target>("everysec");
        if (name == "redis-cut") return std::make_unique<redis_target>("everysec", true);
        if (name == "redis-promoted") return std::make_unique<promoted_target>();
#else
        throw what_is_missing("there is no libhiredis-dev");
#endif
    }
#if defined(SSE_ENABLE_REDIS)
    const bool cuts = name.ends_with("-cut");
    if (const peer* const kind = find_peer(cuts ? name.substr(0, name.size() - 4) : name)) {
        const std::string missing = kind->what_is_missing();
        if (!missing.empty()) throw what_is_missing(missing);
        if (!std::filesystem::exists(peer_files))
            throw what_is_missing("this is not the project's folder");
        if (!redis_server::is_installed()) throw what_is_missing("there is no redis-server");
        return std::make_unique<peer_target>(*kind, cuts ? "everysec" : "always", cuts);
    }
#endif
    if (name.starts_with("nats")) {
#if defined(SSE_ENABLE_NATS)
        if (find_nats_server().empty()) throw what_is_missing("there is no nats-server");
        if (name == "nats") return std::make_unique<nats_target>();
        if (name == "nats-cluster") return std::make_unique<cluster_target>();
#else
        throw what_is_missing("there is no libnats-dev");
#endif
    }
    throw std::invalid_argument("there is no '" + name + "'; see the first lines of judge.cpp");
}

// ---- the trial ----------------------------------------------------------------------------------

class trial {
public:
    trial(const settings& asked, const std::string& name)
        : asked_(asked), name_(name), random_(asked.seed), bus_(target_of(name)) {
        for (std::size_t i = 0; i < bus_->nodes(); ++i) {
            ports_.push_back(free_port());
            nodes_.emplace_back(
                node_settings{.engine = bus_->engine(),
                              .addresses = bus_->addresses(),
                              .port = ports_.back(),
                              .publishers = publishers,
                              .messages_per_second = asked.messages_per_second / bus_->nodes() + 1},
                folder_ / ("node" + std::to_string(i) + ".log"));
        }
    }

    /// The number of faults.
    std::uint64_t run() {
        std::printf("judge: %s, %llu s, %zu nodes, %zu clients, %zu messages/s, seed %llu\n",
                    name_.c_str(), static_cast<unsigned long long>(asked_.duration.count()),
                    nodes_.size(), asked_.clients, asked_.messages_per_second,
                    static_cast<unsigned long long>(asked_.seed));
        std::fflush(stdout);
        for (node_process& each : nodes_) start(each);
        if (bus_->is_peer()) nodes_[0].say('e'); // there is no id without a message
        crowd_.emplace(crowd::settings{.clients = asked_.clients,
                                       .ports = ports_,
                                       .path = bus_->is_peer() ? "/subscribe" : "/subscribe/j",
                                       .reads_ids = !bus_->is_peer(),
                                       .gaps_are_allowed = bus_->may_lose(),
                                       .may_be_stored_twice = bus_->engine() != "file",
                                       .seed = asked_.seed});
        if (pass_until([&] { return crowd_->positioned() == asked_.clients; },
                       "get their first id"))
            storm();
        rest();
        crowd_->stop();
        const crowd::totals& sum = crowd_->judge(receipts_);
        show(sum);
        return sum.all_faults();
    }

private:
    static constexpr std::uint32_t publishers = 3; // of each node

    std::size_t below(std::size_t end) { return static_cast<std::size_t>(random_() % end); }

    void start(node_process& one) {
        one.start(next_publisher_);
        next_publisher_ += publishers;
        if (goes_) one.say('g');
    }

    // Everything goes on meanwhile.

    void pass(std::chrono::milliseconds time) {
        const auto end = clock::now() + time;
        do {
            tick();
            std::this_thread::sleep_for(std::min<clock::duration>(5ms, end - clock::now()));
        } while (clock::now() < end);
    }
    template <class Condition>
    bool pass_until(Condition&& condition, const char* what) {
        const auto end = clock::now() + 60s;
        while (!condition()) {
            if (clock::now() > end) {
                crowd_->fault(wrong::other, std::string("clients do not ") + what);
                return false;
            }
            pass(5ms);
        }
        return true;
    }
    void tick() {
        for (node_process& each : nodes_) {
            each.collect(receipts_);
            if (each.has_ended()) on_end(each);
            if (clock::now() < each.until) continue;
            if (each.is_frozen()) each.thaw();
            if (!each.is_running()) start(each);
        }
        if (storming_ && clock::now() >= next_harm_) harm_a_node();
    }
    /// By itself, which is right only if it was told to.
    void on_end(node_process& one) {
        if (std::exchange(stopping_, nullptr) == &one && one.status() == 0) return;
        crowd_->fault(wrong::other, "node " + std::to_string(&one - nodes_.data()) +
                                        " has ended with " + std::to_string(one.status()) +
                                        " and said last: " + one.last_words());
        one.until = clock::now() + 1s;
    }
    void harm_a_node() {
        next_harm_ = clock::now() + asked_.between_nodes / 2 +
                     std::chrono::milliseconds(
                         below(static_cast<std::size_t>(asked_.between_nodes.count())));
        node_process& one = nodes_[below(nodes_.size())];
        if (!one.is_running() || one.is_frozen() || stopping_) return;
        const std::size_t how = below(4);
        one.until = clock::now() + std::chrono::milliseconds(below(1500));
        if (how == 0) {
            ++frozen_;
            one.freeze();
        } else if (how == 1) {
            ++stopped_;
            stopping_ = &one;
            one.say('s');
        } else {
            ++killed_;
            one.kill();
            one.collect(receipts_);
        }
    }

    void storm() {
        goes_ = true;
        for (const node_process& each : nodes_) each.say('g');
        storming_ = true;
        const auto end = clock::now() + asked_.duration;
        auto next_bus = clock::now() + asked_.between_bus / 2;
        auto next_report = clock::now() + 10s;
        while (clock::now() < end) {
            pass(10ms);
            if (clock::now() >= next_bus) {
                const auto passing = [&](std::chrono::milliseconds time) { pass(time); };
                if (bus_->harm(passing, [&](std::size_t n) { return below(n); })) ++bus_harmed_;
                next_bus = clock::now() + asked_.between_bus;
            }
            if (clock::now() >= next_report) {
                std::printf("  %s delivered, %s faults\n",
                            with_commas(crowd_->deliveries()).c_str(),
                            with_commas(crowd_->faults()).c_str());
                std::fflush(stdout);
                next_report += 10s;
            }
        }
        storming_ = false;
        goes_ = false;
    }

    /// All come back, and get the last message.
    void rest() {
        pass_until(
            [&] {
                return std::all_of(nodes_.begin(), nodes_.end(), [&](const node_process& each) {
                    return each.is_running() && !each.is_frozen() && &each != stopping_;
                });
            },
            "see all nodes again");
        for (const node_process& each : nodes_) each.say('q');
        const std::size_t before = receipts_.size();
        nodes_[0].say('e');
        const auto last = [&] {
            std::uint32_t count = 0;
            for (std::size_t i = before; i < receipts_.size(); ++i)
                if (receipts_[i].publisher == 0 && receipts_[i].what == receipt::kind::acknowledged)
                    count = receipts_[i].count;
            return count;
        };
        if (!pass_until([&] { return last() != 0; }, "get a last message, it cannot be published"))
            return;
        crowd_->calm(last());
        if (!pass_until([&] { return crowd_->arrived() == asked_.clients; },
                        "all come to the end")) {
            crowd_->stop();
            std::printf("%s\n", crowd_->describe_missing().c_str());
        }
        for (node_process& each : nodes_) each.collect(receipts_);
    }

    static void row(const char* name, const std::string& value) {
        std::printf("| %s | %s |\n", name, value.c_str());
    }
    void show(const crowd::totals& sum) {
        std::uint64_t acknowledged = 0;
        for (const receipt& each : receipts_)
            acknowledged += each.what == receipt::kind::acknowledged ? 1 : 0;
        std::string gaps;
        for (const auto& [reason, count] : sum.gaps)
            gaps += (gaps.empty() ? "" : ", ") + with_commas(count) + " " + reason;
        std::printf("\n| %s | seed %llu |\n|---|---|\n", name_.c_str(),
                    static_cast<unsigned long long>(asked_.seed));
        row("deliveries", with_commas(sum.deliveries));
        row("connections", with_commas(sum.connections) + ", and " + with_commas(sum.refused) +
                               " that found no node");
        row("of these by gzip", with_commas(sum.by_gzip));
        row("acknowledged, refused",
            with_commas(acknowledged) + ", " + with_commas(receipts_.size() - acknowledged));
        row("bus harmed", with_commas(bus_harmed_));
        row("nodes killed, stopped, frozen",
            with_commas(killed_) + ", " + with_commas(stopped_) + ", " + with_commas(frozen_));
        row("gaps", gaps.empty() ? "0" : gaps);
        row("missing, and told", with_commas(sum.told_missing));
        row("confirmed with the number of a copy", with_commas(sum.copies));
        row("again, after the bus had lost it", with_commas(sum.again));
        row("lost",
            with_commas(sum.of(wrong::lost)) +
                (sum.messages_lost == 0 ? ""
                                        : ", of " + with_commas(sum.messages_lost) + " messages"));
        row("doubled", with_commas(sum.of(wrong::doubled)));
        row("out of order", with_commas(sum.of(wrong::order)));
        row("ids of two messages", with_commas(sum.of(wrong::ids)));
        row("gaps that nothing explains", with_commas(sum.of(wrong::gaps)));
        row("other faults", with_commas(sum.of(wrong::other)));
        std::printf("\n");
        std::fflush(stdout);
        if (sum.all_faults() == 0) return;
        folder_.keep();
        std::printf("what the nodes said is in %s\n", (folder_ / "").c_str());
    }

    const settings asked_;
    const std::string name_;
    std::mt19937_64 random_;
    temporary_folder folder_{"sse-judge"};
    std::unique_ptr<target> bus_;
    std::vector<std::uint16_t> ports_;
    std::vector<node_process> nodes_;
    std::optional<crowd> crowd_;
    std::vector<receipt> receipts_;
    std::uint32_t next_publisher_ = 1; // 0 publishes the last message
    bool goes_ = false, storming_ = false;
    clock::time_point next_harm_{};
    const node_process* stopping_ = nullptr; // was told to
    std::uint64_t killed_ = 0, stopped_ = 0, frozen_ = 0, bus_harmed_ = 0;
};

int run(const std::vector<std::string>& names) {
    const settings asked;
    if (!asked.wanted) {
        std::printf("judge: left out, since JUDGE is 0\n");
        return 77; // not run
    }
    raise_descriptor_limit();
    std::uint64_t faults = 0;
    std::size_t tried = 0;
    for (const std::string& name : names) {
        try {
            faults += trial(asked, name).run();
            ++tried;
        } catch (const what_is_missing& e) {
            std::printf("judge: not run: %s: %s\n", name.c_str(), e.what());
        }
    }
    if (tried == 0) return 77;
    std::printf(faults == 0 ? "judge: passed\n" : "judge: %llu faults, seed %llu\n",
                static_cast<unsigned long long>(faults),
                static_cast<unsigned long long>(asked.seed));
    return faults == 0 ? 0 : 1;
}

} // namespace

} // namespace judge_test

int main(int argc, char** argv) {
    try {
        ::signal(SIGPIPE, SIG_IGN);
        if (argc == 8 && std::string_view(argv[1]) == "node") {
            judge_test::node_for(judge_test::node_settings::of(argv + 2))->run();
            return 0;
        }
        std::vector<std::string> names(argv + 1, argv + argc);
        if (names.empty())
            names = {"file", "redis", "redis-everysec", "redis-promoted", "nats", "nats-cluster"};
        return judge_test::run(names);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "judge: %s\n", e.what());
        return 2;
    }
}
