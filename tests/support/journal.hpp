// journal.hpp - what the log hook got, and the head of a response.
#pragma once

#include "server.hpp"

namespace support {

inline response head_of(std::uint16_t port, const header_list& headers,
                        const std::string& target = "/subscribe/a") {
    connection peer(port);
    peer.send_request("GET", target, headers);
    return peer.read_head();
}

/// What the log hook got.
struct journal {
    struct line {
        sse::log_level level;
        std::string what, method, path, client, detail;
        int status;
    };

    void attach(sse::options& o) {
        o.hooks.log = [this](const sse::log_entry& e) {
            const std::lock_guard lock(mutex);
            lines.push_back({e.level, std::string(e.what), std::string(e.method),
                             std::string(e.path), e.client.to_string(), std::string(e.detail),
                             e.status});
        };
    }
    std::vector<line> taken() {
        const std::lock_guard lock(mutex);
        return lines;
    }
    [[nodiscard]] bool comes(std::string_view what) {
        return eventually([&] {
            const auto now = taken();
            return std::any_of(now.begin(), now.end(),
                               [&](const line& l) { return l.what == what; });
        });
    }

    std::mutex mutex;
    std::vector<line> lines;
};

} // namespace support
