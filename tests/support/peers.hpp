// peers.hpp - servers of others, as a node of the judge starts them and publishes to them over
// HTTP. What they are made of is installed, not here; how they are set up is in tests/peers/.
#pragma once

#include "client.hpp"

#include <filesystem>
#include <fstream>

namespace support {

/// As text, with each of the marks replaced.
inline std::string filled_in(const std::filesystem::path& file,
                             const std::vector<std::pair<std::string, std::string>>& marks) {
    std::ifstream in(file);
    std::string text{std::istreambuf_iterator<char>(in), {}};
    if (text.empty()) throw std::runtime_error("there is no " + file.string());
    for (const auto& [mark, part] : marks)
        for (std::size_t at = 0; (at = text.find(mark, at)) != text.npos; at += part.size())
            text.replace(at, mark.size(), part);
    return text;
}

/// Where a server is, and what it keeps.
struct peer_place {
    std::uint16_t port = 0;
    std::string redis; ///< An address.
    std::filesystem::path folder;
};

/// A kind of server. All take `POST /publish` and `GET /subscribe`.
struct peer {
    std::string name;
    std::string (*what_is_missing)(); ///< Empty: nothing.
    void (*build)(const std::filesystem::path& folder);
    std::vector<std::string> (*command)(const peer_place& place);
};

inline const std::filesystem::path peer_files = "tests/peers";

inline bool there_is(const std::string& program) {
    return std::system(("command -v " + program + " >/dev/null 2>&1").c_str()) == 0;
}

inline const peer nchan{
    .name = "nchan",
    .what_is_missing =
        [] {
            return std::string(
                !there_is("nginx") ? "there is no nginx"
                : !std::filesystem::exists("/usr/lib/nginx/modules/ngx_nchan_module.so")
                    ? "there is no libnginx-mod-nchan"
                    : "");
        },
    .build = [](const std::filesystem::path&) {},
    .command =
        [](const peer_place& place) {
            const std::filesystem::path home = place.folder / std::to_string(place.port);
            std::filesystem::create_directories(home);
            std::ofstream(home / "nginx.conf") << filled_in(
                peer_files / "nchan.conf", {{"@HOME@", home.string()},
                                            {"@PORT@", std::to_string(place.port)},
                                            {"@REDIS@", place.redis},
                                            {"@USER@", ::getuid() == 0 ? "user root;" : ""}});
            return std::vector<std::string>{"/usr/sbin/nginx", "-p", home.string(), "-c",
                                            (home / "nginx.conf").string()};
        },
};

inline const peer centrifuge{
    .name = "centrifuge",
    .what_is_missing =
        [] {
            const std::string library = "/usr/share/gocode/src/github.com/centrifugal/centrifuge";
            return std::string(!there_is("go")                     ? "there is no golang-go"
                               : !std::filesystem::exists(library) ? "there is no "
                                                                     "golang-github-centrifugal-"
                                                                     "centrifuge-dev"
                                                                   : "");
        },
    .build =
        [](const std::filesystem::path& folder) {
            const std::string command =
                "GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=" + (folder / "go").string() +
                " go build -o " + (folder / "centrifuge").string() + " " +
                (peer_files / "centrifuge.go").string();
            if (std::system(command.c_str()) != 0) throw std::runtime_error(command);
        },
    .command =
        [](const peer_place& place) {
            return std::vector<std::string>{(place.folder / "centrifuge").string(),
                                            "127.0.0.1:" + std::to_string(place.port), place.redis};
        },
};

inline const peer* find_peer(const std::string& name) {
    for (const peer* each : {&nchan, &centrifuge})
        if (each->name == name) return each;
    return nullptr;
}

/// Posts one message after the other.
class peer_publisher {
public:
    enum class outcome : std::uint8_t { acknowledged, refused, unknown };

    explicit peer_publisher(std::uint16_t port) : port_(port) {}

    outcome publish(std::string_view body, std::chrono::milliseconds timeout) {
        const deadline until = timeout;
        try {
            if (!connection_ || connection_->ended())
                connection_.emplace(port_, connect_options{.until = until});
        } catch (const std::runtime_error&) { return outcome::refused; }
        try {
            connection_->send("POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: " +
                                  std::to_string(body.size()) + "\r\n\r\n" + std::string(body),
                              until);
            const int status = connection_->read_response("POST", until).status;
            return status / 100 == 2 ? outcome::acknowledged : outcome::refused;
        } catch (const std::runtime_error&) {
            connection_.reset();
            return outcome::unknown;
        }
    }

private:
    std::uint16_t port_;
    std::optional<connection> connection_;
};

} // namespace support
