// event_stream.hpp - a decoder of text/event-stream: the oracle of the tests.
//
// Written along "9.2.6 Interpreting an event stream" of the WHATWG HTML standard, one function for
// one step of it, so that the two can be read side by side. Shares no code with sse.hpp.
//
// Bytes arrive in pieces of any size. The standard decodes UTF-8 first, and puts U+FFFD for what is
// broken; here bytes stay bytes, so that a test sees exactly what was sent. Each character with a
// meaning is ASCII, so this changes no line.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace support {

/// One dispatched event, as `onmessage` would see it.
struct decoded {
    std::string type; ///< "message" when the stream named none.
    std::string data;
    std::string id; ///< `lastEventId`: of this event, or inherited from an earlier block.

    friend bool operator==(const decoded&, const decoded&) = default;
    friend std::ostream& operator<<(std::ostream& out, const decoded& event) {
        return out << "{type \"" << event.type << "\", data \"" << event.data << "\", id \""
                   << event.id << "\"}";
    }
};

class event_stream_decoder {
public:
    /// Takes the next bytes of the stream. There is no finish(): what no blank line ended is never
    /// dispatched, as the standard demands.
    void feed(std::string_view bytes) {
        for (; at_start_ && !bytes.empty(); bytes.remove_prefix(1)) check_for_mark(bytes.front());
        take(bytes);
    }

    /// Events dispatched since the last call.
    std::vector<decoded> take_events() { return std::exchange(events_, {}); }
    /// Comments since the last call, each without its leading colon; a space after it is kept.
    std::vector<std::string> take_comments() { return std::exchange(comments_, {}); }

    /// What a client would send as Last-Event-ID. Taken over at each blank line, with data or not.
    const std::string& last_event_id() const { return last_event_id_; }
    /// Milliseconds of the last valid `retry`, at once, without waiting for a blank line.
    std::optional<std::uint64_t> reconnection_time() const { return reconnection_time_; }
    /// Whether the bytes so far end where an event ends, so that closing here cuts nothing off.
    bool between_events() const {
        return line_.empty() && !in_block_ && (!at_start_ || held_back_.empty());
    }

private:
    // stream = [ bom ] *event. One byte order mark is skipped; a second one belongs to the line.
    void check_for_mark(char byte) {
        static constexpr std::string_view mark = "\xEF\xBB\xBF";
        held_back_ += byte;
        if (held_back_ == mark) {
            at_start_ = false;
        } else if (!mark.starts_with(held_back_)) {
            at_start_ = false;
            take(held_back_);
        }
    }

    // end-of-line = CR LF / CR / LF. A CR ends the line at once: whether a LF follows cannot be
    // known yet, and a browser does not wait for it. So it is the LF that gets swallowed.
    void take(std::string_view bytes) {
        while (!bytes.empty()) {
            if (std::exchange(after_cr_, false) && bytes.front() == '\n') {
                bytes.remove_prefix(1);
                continue;
            }
            const std::size_t lf = bytes.find('\n');
            const std::size_t end = std::min(bytes.substr(0, lf).find('\r'), lf);
            line_.append(bytes.substr(0, end));
            if (end == std::string_view::npos) return;
            after_cr_ = bytes[end] == '\r';
            bytes.remove_prefix(end + 1);
            end_line(std::exchange(line_, {}));
        }
    }

    void end_line(std::string_view line) {
        const std::size_t colon = line.find(':');
        in_block_ = !line.empty() && (in_block_ || colon != 0);
        if (line.empty())
            dispatch();
        else if (colon == 0)
            comments_.emplace_back(line.substr(1));
        else if (colon == std::string_view::npos)
            process_field(line, "");
        else
            process_field(line.substr(0, colon), without_leading_space(line.substr(colon + 1)));
    }

    static std::string_view without_leading_space(std::string_view value) {
        return value.starts_with(' ') ? value.substr(1) : value; // one, no more, and no tab
    }

    void process_field(std::string_view name, std::string_view value) {
        if (name == "event")
            type_ = value;
        else if (name == "data")
            data_.append(value).append(1, '\n');
        else if (name == "id" && value.find('\0') == std::string_view::npos)
            id_ = value;
        else if (name == "retry" && !value.empty() && only_digits(value))
            reconnection_time_ = to_number(value);
        // Any other field is ignored. Names are compared byte for byte: "Data" is another field.
    }

    static bool only_digits(std::string_view value) {
        return value.find_first_not_of("0123456789") == std::string_view::npos;
    }

    // The standard knows no largest number; a larger one than fits is the largest that fits.
    static std::uint64_t to_number(std::string_view digits) {
        constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
        std::uint64_t number = 0;
        for (const char digit : digits) {
            const auto unit = static_cast<std::uint64_t>(digit - '0');
            if (number > (most - unit) / 10) return most;
            number = number * 10 + unit;
        }
        return number;
    }

    void dispatch() {
        last_event_id_ = id_; // id_ itself stays: later events without an id inherit it
        std::string data = std::exchange(data_, {});
        std::string type = std::exchange(type_, {});
        if (data.empty()) // no data line at all; a lone "data" line has left a "\n" here
            return;
        data.pop_back();
        events_.push_back(
            {type.empty() ? "message" : std::move(type), std::move(data), last_event_id_});
    }

    bool at_start_ = true;
    std::string held_back_; // first bytes, as long as they may become a byte order mark
    bool after_cr_ = false;
    std::string line_;
    bool in_block_ = false; // a field came since the last blank line

    std::string data_; // the three buffers of the standard
    std::string type_;
    std::string id_;

    std::vector<decoded> events_;
    std::vector<std::string> comments_;
    std::string last_event_id_;
    std::optional<std::uint64_t> reconnection_time_;
};

/// All events of a whole stream.
inline std::vector<decoded> decode_event_stream(std::string_view bytes) {
    event_stream_decoder decoder;
    decoder.feed(bytes);
    return decoder.take_events();
}

/// Whether bytes are UTF-8: each character is read as a number, which must need as many bytes.
inline bool is_utf8(std::string_view text) {
    for (std::size_t i = 0; i < text.size();) {
        const auto first = static_cast<unsigned char>(text[i]);
        std::size_t size = 0;
        while (size < 5 && (first & (0x80u >> size)) != 0) ++size;
        if (size == 1 || size > 4 || i + std::max<std::size_t>(size, 1) > text.size()) return false;
        if (size > 0) {
            unsigned long code = first & (0x7fu >> size);
            for (std::size_t k = 1; k < size; ++k) {
                const auto next = static_cast<unsigned char>(text[i + k]);
                if ((next & 0xc0u) != 0x80) return false;
                code = code * 64 + (next & 0x3fu);
            }
            const unsigned long least[] = {0x80, 0x800, 0x10000};
            if (code < least[size - 2] || code > 0x10ffff) return false;
            if (code >= 0xd800 && code <= 0xdfff) return false;
        }
        i += std::max<std::size_t>(size, 1);
    }
    return true;
}

/// Whether every client that got this id, a browser or one that uses fetch, sends the same bytes
/// back in a header field that a server takes. Shares no code with the library.
inline bool comes_back(const std::string& id) {
    for (const char c : id) {
        if (c < 0x20 || c > 0x7e) return false;
    }
    const bool blank_at_end = !id.empty() && (id.front() == ' ' || id.back() == ' ');
    return !blank_at_end && id.size() <= 1024;
}

} // namespace support
