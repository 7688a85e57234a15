// chart.hpp - bars as an SVG picture that can be read on a light and on a dark page.
#pragma once

#include "bench.hpp"

namespace bench {

struct bar {
    std::string name;
    double value = 0;
    std::string text;
    bool ours = false;
};

/// Bars under a title, drawn to one scale.
struct panel {
    std::string title;
    std::string subtitle;
    std::vector<bar> bars = {};
};

/// Lays panels out in two columns.
class chart {
public:
    explicit chart(std::string caption) : caption_(std::move(caption)) {}

    void add(panel one) { panels_.push_back(std::move(one)); }

    void write(const std::string& path) const {
        std::ostringstream body;
        std::array<double, 2> ends{};
        for (const panel& each : panels_) {
            const std::size_t column = ends[0] <= ends[1] ? 0 : 1;
            draw(body, each, static_cast<double>(column) * (width + space), ends[column]);
            ends[column] += heading + static_cast<double>(each.bars.size()) * line + space;
        }
        const double bottom = std::max(ends[0], ends[1]);
        draw_text(body, "dim", 0, bottom, caption_);
        std::ofstream file(path);
        file << R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -20 )"
             << 2 * width + space + 20 << ' ' << bottom + 30 << "\">\n"
             << style << body.str() << "</svg>\n";
        file.flush();
        if (!file) throw std::runtime_error("cannot write " + path);
    }

private:
    static constexpr double width = 420, space = 30, heading = 34, line = 22, names = 110,
                            texts = 90;
    static constexpr const char* style =
        "<style>text{font:13px system-ui,sans-serif;fill:#1f2328}.dim{font-size:12px;fill:#59636e}"
        ".title{font-weight:600}.bar{fill:#afb8c1}.ours{fill:#0969da}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.dim{fill:#9198a1}"
        ".bar{fill:#59636e}.ours{fill:#4493f8}}</style>\n";

    static void draw(std::ostream& out, const panel& what, double x, double y) {
        draw_text(out, "title", x, y, what.title);
        draw_text(out, "dim", x, y + 16, what.subtitle);
        double most = 0;
        for (const bar& each : what.bars) most = std::max(most, each.value);
        y += heading;
        for (const bar& each : what.bars) {
            const double size = std::max(1.0, each.value / most * (width - names - texts));
            draw_text(out, "", x, y + 12, each.name);
            out << "<rect class=\"bar" << (each.ours ? " ours" : "") << "\" x=\"" << x + names
                << "\" y=\"" << y << "\" width=\"" << grouped(size, 1)
                << "\" height=\"16\" rx=\"2\"/>\n";
            draw_text(out, "", x + names + size + 6, y + 12, each.text);
            y += line;
        }
    }

    static void draw_text(std::ostream& out, const char* kind, double x, double y,
                          const std::string& text) {
        out << "<text class=\"" << kind << "\" x=\"" << grouped(x, 1) << "\" y=\"" << grouped(y, 1)
            << "\">";
        for (char c : text) out << (c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c));
        out << "</text>\n";
    }

    std::string caption_;
    std::vector<panel> panels_;
};

} // namespace bench
