// json.hpp - a small strict reader of JSON (RFC 8259) for the examples: one object, its members.
//
//   for (const json::member& each : json::read_object(R"({"event": "chat", "data": [1, 2]})"))
//       each.name is "data", each.value is "[1, 2]", the text as it came
//   json::raw(members, "data") is "[1, 2]", json::text(members, "event") is "chat"
//   json::quoted("a \"b\"") is a JSON string
//
// Strict: no comment, no trailing comma, no bare control character, no second member of the same
// name, no text that is not UTF-8. Errors say where and what is wrong, so that a person can correct
// it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace json {

struct error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct member {
    std::string name;
    std::string_view value; // as written; valid as long as the text that was read
    bool is_string;         // then `text` holds it decoded
    std::string text;
};

// The length of the UTF-8 sequence that `bytes` begins with; 0 if that is not valid. Overlong
// forms, surrogates and code points over U+10FFFF are not (RFC 3629).
inline std::size_t utf8_length(std::string_view bytes) {
    const auto byte = [&](std::size_t at) {
        return at < bytes.size() ? static_cast<unsigned char>(bytes[at]) : 0u;
    };
    const unsigned first = byte(0), second = byte(1);
    const auto follows = [&](std::size_t at) { return (byte(at) & 0xC0u) == 0x80u; };
    if (first < 0x80) return 1;
    if (first < 0xC2 || first > 0xF4 || !follows(1)) return 0;
    if (first < 0xE0) return 2;
    if (!follows(2) || (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F))
        return 0;
    if (first < 0xF0) return 3;
    if (!follows(3) || (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F))
        return 0;
    return 4;
}

inline void append_utf8(std::string& out, unsigned long code) {
    const auto put = [&](unsigned long bits) { out.push_back(static_cast<char>(bits)); };
    if (code < 0x80) return put(code);
    if (code < 0x800) {
        put(0xC0 | code >> 6);
    } else {
        if (code < 0x10000) {
            put(0xE0 | code >> 12);
        } else {
            put(0xF0 | code >> 18);
            put(0x80 | (code >> 12 & 0x3F));
        }
        put(0x80 | (code >> 6 & 0x3F));
    }
    put(0x80 | (code & 0x3F));
}

class reader {
public:
    explicit reader(std::string_view text) : text_(text) {}

    std::vector<member> whole_object() {
        skip_space();
        if (!at('{')) fail(R"(expected an object, as in {"event": "chat", "data": "hello"})");
        std::vector<member> members = object(0);
        skip_space();
        if (at_ < text_.size()) fail("expected the end, since the object is complete");
        return members;
    }

private:
    // Nested values are read by recursion: without a limit, a body of brackets would overflow the
    // stack.
    static constexpr int max_depth = 64;

    std::vector<member> object(int depth) {
        std::vector<member> members;
        expect('{', "an object");
        skip_space();
        if (take('}')) return members;
        do {
            skip_space();
            if (!at('"')) fail("expected the name of a member in double quotes");
            std::string name = string();
            const auto same = [&](const member& other) { return other.name == name; };
            if (std::any_of(members.begin(), members.end(), same))
                fail("a second member named \"" + name + "\"; give it once");
            skip_space();
            expect(':', "':' after the name of a member");
            skip_space();
            const std::size_t start = at_;
            const bool is_string = at('"');
            std::string text = value(depth + 1);
            const std::string_view raw = text_.substr(start, at_ - start);
            members.push_back({std::move(name), raw, is_string, std::move(text)});
            skip_space();
        } while (take(','));
        expect('}', "',' or '}' after a member");
        return members;
    }

    void array(int depth) {
        expect('[', "an array");
        skip_space();
        if (take(']')) return;
        do {
            skip_space();
            value(depth + 1);
            skip_space();
        } while (take(','));
        expect(']', "',' or ']' after an element");
    }

    std::string value(int depth) {
        if (depth > max_depth) fail("more than 64 values inside one another; flatten it");
        if (at('"')) return string();
        if (at('{'))
            object(depth);
        else if (at('['))
            array(depth);
        else if (at('t'))
            word("true");
        else if (at('f'))
            word("false");
        else if (at('n'))
            word("null");
        else
            number();
        return {};
    }

    void word(std::string_view expected) {
        if (text_.substr(at_, expected.size()) != expected)
            fail("expected " + std::string(expected));
        at_ += expected.size();
    }

    void number() {
        if (!at('-') && !digit()) fail("expected a value: text goes in double quotes");
        take('-');
        if (!take('0'))
            digits();
        else if (digit())
            fail("a number has no leading zero");
        if (take('.')) digits();
        if (take('e') || take('E')) {
            if (!take('+')) take('-');
            digits();
        }
    }

    void digits() {
        if (!digit()) fail("expected a digit");
        while (digit()) ++at_;
    }

    std::string string() {
        std::string out;
        expect('"', "a string");
        while (!take('"')) {
            if (at_ == text_.size()) fail("expected '\"' at the end of the string");
            if (static_cast<unsigned char>(text_[at_]) < 0x20)
                fail(R"(a control character in a string; write it as \n, \t or \u00XX)");
            if (take('\\')) {
                escape(out);
                continue;
            }
            const std::size_t length = utf8_length(text_.substr(at_));
            if (length == 0) fail("a byte that is not UTF-8; send the text as UTF-8");
            out.append(text_.substr(at_, length));
            at_ += length;
        }
        return out;
    }

    void escape(std::string& out) {
        constexpr std::string_view names = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
        if (take('u')) return append_utf8(out, code_point());
        const std::size_t which = at_ < text_.size() ? names.find(text_[at_]) : names.npos;
        if (which == names.npos) fail(R"(expected one of " \ / b f n r t u after '\')");
        out.push_back(meanings[which]);
        ++at_;
    }

    // After "\u". A code point beyond U+FFFF is two escapes, a high and a low surrogate.
    unsigned long code_point() {
        const unsigned long high = four_hex();
        if (high < 0xD800 || high > 0xDFFF) return high;
        if (high > 0xDBFF || !take('\\') || !take('u')) fail("half of a surrogate pair");
        const unsigned long low = four_hex();
        if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair");
        return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    }

    unsigned long four_hex() {
        constexpr std::string_view hex = "0123456789abcdef";
        unsigned long code = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const char lower = at_ < text_.size() && text_[at_] >= 'A' && text_[at_] <= 'F'
                                   ? static_cast<char>(text_[at_] + ('a' - 'A'))
                               : at_ < text_.size() ? text_[at_]
                                                    : '?';
            const std::size_t value = hex.find(lower);
            if (value == hex.npos) fail(R"(expected four hexadecimal digits after '\u')");
            code = code << 4 | value;
        }
        return code;
    }

    bool at(char wanted) const { return at_ < text_.size() && text_[at_] == wanted; }
    bool digit() const { return at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; }
    bool take(char wanted) { return at(wanted) ? (++at_, true) : false; }

    void expect(char wanted, const std::string& what) {
        if (!take(wanted)) fail("expected " + what);
    }

    void skip_space() {
        while (at(' ') || at('\t') || at('\n') || at('\r')) ++at_;
    }

    [[noreturn]] void fail(const std::string& what) const {
        const std::string place =
            at_ < text_.size() ? "at byte " + std::to_string(at_ + 1) : std::string("at its end");
        throw error("the JSON is wrong " + place + ": " + what);
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

inline std::vector<member> read_object(std::string_view text) {
    return reader(text).whole_object();
}

inline const member* find(const std::vector<member>& members, std::string_view name) {
    const auto same = [&](const member& each) { return each.name == name; };
    const auto found = std::find_if(members.begin(), members.end(), same);
    return found == members.end() ? nullptr : &*found;
}

// The text of a member's value as written; empty if there is no such member.
inline std::string_view raw(const std::vector<member>& members, std::string_view name) {
    const member* const found = find(members, name);
    return found ? found->value : std::string_view();
}

// A member that is a string, decoded; empty if it is not one.
inline std::string text(const std::vector<member>& members, std::string_view name) {
    const member* const found = find(members, name);
    return found ? found->text : std::string();
}

// The members of a member that is an object; empty if it is not one.
inline std::vector<member> object(const std::vector<member>& members, std::string_view name) {
    const std::string_view value = raw(members, name);
    return value.starts_with('{') ? read_object(value) : std::vector<member>();
}

// The text as a JSON string; bytes that are not UTF-8 become U+FFFD.
inline std::string quoted(std::string_view text) {
    constexpr std::string_view hex = "0123456789abcdef";
    std::string out = "\"";
    while (!text.empty()) {
        const std::size_t length = utf8_length(text);
        const auto code = static_cast<unsigned char>(text.front());
        if (length == 0)
            out += "\uFFFD";
        else if (code < 0x20)
            out.append("\\u00").append(1, hex[code / 16]).append(1, hex[code % 16]);
        else
            out.append(code == '"' || code == '\\' ? "\\" : "").append(text.substr(0, length));
        text.remove_prefix(length == 0 ? 1 : length);
    }
    return out + '"';
}

} // namespace json
