#include "heat_map.hpp"

#include "gnuplot.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>

namespace cross_task {

namespace {

/// Returns the number of columns of one layer.
std::size_t columns_of(const routing_map& of) {
    return static_cast<std::size_t>(of.heads) * static_cast<std::size_t>(of.modules);
}

/// Where everything is, in pixels.
struct layout {
    bool is_row;              // the layers stand beside each other, else below each other
    bool has_module_numbers;  // there is room for one at each column
    bool has_heads;           // more than one, or there is nothing to tell apart
    double left, top, bottom; // margins, with their texts
    double bar = 110;         // the margin on the right, with the scale of the colours
    double gap;               // between the layers
    double cell_width;
    double panel_width, panel_height;
    double width, height; // of it all

    explicit layout(const routing_map& of) {
        constexpr double widest = 1024, narrowest_cell = 4, widest_cell = 28, row_cell = 16;
        const double columns = of.heads * of.modules;
        is_row = columns * of.layers * row_cell <= widest;
        const double across = is_row ? of.layers : 1;
        const double down = is_row ? 1 : of.layers;
        cell_width = std::clamp(std::floor(widest / columns / across), narrowest_cell, widest_cell);
        has_module_numbers = cell_width >= 14;
        has_heads = of.heads > 1;

        left = 60;
        for (const std::string& language : of.languages)
            left = std::max(left, 20 + text_width(language));
        top = has_heads ? 76 : 62;
        bottom = has_module_numbers ? 50 : 35;
        gap = is_row ? 20 : bottom + 52;
        panel_width = cell_width * columns;
        // A few languages are higher, for the sake of the scale beside them.
        const auto rows = static_cast<double>(of.languages.size());
        panel_height = rows * std::clamp(150 / rows, 16.0, 40.0);
        width = left + across * (panel_width + gap) - gap + bar;
        height = top + down * (panel_height + gap) - gap + bottom;
    }

    rectangle panel(int layer) const {
        const double x = left + (is_row ? layer * (panel_width + gap) : 0);
        const double y = height - top - (is_row ? 0 : layer * (panel_height + gap));
        return {x, y - panel_height, x + panel_width, y};
    }
};

void add_data(plot& to, const routing_map& of, int layer) {
    const std::size_t columns = columns_of(of);
    const std::size_t columns_of_all = columns * static_cast<std::size_t>(of.layers);
    to.begin_data("layer " + std::to_string(layer + 1));
    for (std::size_t task = 0; task < of.languages.size(); ++task) {
        const float* row =
            of.weights.data() + task * columns_of_all + static_cast<std::size_t>(layer) * columns;
        for (std::size_t column = 0; column < columns; ++column)
            to.data << row[column] << (column + 1 < columns ? ' ' : '\n');
    }
}

/// The names of layer and heads above a panel, and lines between the heads.
void add_heads(plot& to, const routing_map& of, const layout& place, int layer) {
    const rectangle panel = place.panel(layer);
    to.add_text("layer " + std::to_string(layer + 1), panel.left,
                panel.top + (place.has_heads ? 28 : 12), "left");
    if (!place.has_heads) return;

    const double head_width = place.cell_width * of.modules;
    const bool has_word = head_width > 55;
    // Each in its place, or as many as there is room for.
    const int step = static_cast<int>(std::ceil(24 / head_width));
    if (!has_word) to.add_text("head", panel.left - 8, panel.top + 10, "right font ',9'");
    for (int head = 0; head < of.heads; ++head) {
        if (head % step == 0)
            to.add_text((has_word ? "head " : "") + std::to_string(head + 1),
                        panel.left + (head + 0.5) * head_width, panel.top + 10, "center font ',9'");
        const double x = panel.left + head * head_width;
        if (head > 0)
            to.script << "set arrow from " << to.at(x, panel.bottom) << " to "
                      << to.at(x, panel.top) << " nohead front linewidth "
                      << (place.has_module_numbers ? 2 : 1) << " linecolor rgb 'white'\n";
    }
}

void add_tics(plot& to, const routing_map& of, const layout& place, int layer) {
    to.script << "unset xtics\nunset ytics\n";
    if (place.has_module_numbers) {
        to.script << "set xtics offset 0,0.3 font ',8' textcolor rgb '#222222' (";
        for (int column = 0; column < of.heads * of.modules; ++column)
            to.script << (column == 0 ? "" : ", ") << '\'' << column % of.modules + 1 << "' "
                      << column;
        to.script << ")\nset xlabel 'module' offset 0,0.8\n";
    } else {
        to.script << "set xlabel 'modules 1 to " << of.modules << " of each head'\n";
    }
    if (layer > 0 && place.is_row) return; // they are those of the first
    to.script << "set ytics font ',9' textcolor rgb '#222222' (";
    for (std::size_t task = 0; task < of.languages.size(); ++task)
        to.script << (task == 0 ? "" : ", ") << gnuplot_string(of.languages[task]) << ' ' << task;
    to.script << ")\n";
}

} // namespace

plot plot_routing(const routing_map& of, const std::string& name) {
    const std::size_t columns = static_cast<std::size_t>(of.layers) * columns_of(of);
    const auto is_finite = [](float weight) { return std::isfinite(weight); };
    if (of.weights.empty() || of.languages.size() * columns != of.weights.size() ||
        !std::all_of(of.weights.begin(), of.weights.end(), is_finite))
        throw std::runtime_error("no routing weights, or a wrong number of them: " + of.method);

    const layout place(of);
    const float highest = *std::max_element(of.weights.begin(), of.weights.end());
    plot to(name, place.width, place.height);
    // The colours of viridis: evenly brighter, for colour-blind people too.
    to.script << "set palette defined (0 '#440154', 1 '#472D7B', 2 '#3B528B', 3 '#2C728E', "
                 "4 '#21918C', 5 '#28AE80', 6 '#5EC962', 7 '#ADDC30', 8 '#FDE725')\n"
              << "set cbrange [0:" << (highest > 0 ? highest : 1.0F) << "]\n"
              << "set multiplot\nunset key\nunset grid\nunset border\nset tics scale 0\n"
              << "set xrange [-0.5:" << of.heads * of.modules << " - 0.5]\n"
              << "set yrange [" << of.languages.size() << " - 0.5:-0.5]\n"
              << "set cblabel 'routing weight'\nset format cb '%.2f'\n"
              << "set colorbox user noborder origin "
              << to.at(place.width - place.bar + 15, place.panel(0).bottom) << " size "
              << to.at(14, place.panel_height) << '\n';
    for (int layer = 0; layer < of.layers; ++layer) {
        to.script << "unset label\nunset arrow\n";
        if (layer == 0)
            to.add_text("Routing of " + of.method, place.left, place.height - 18,
                        "left font ',12'");
        add_heads(to, of, place, layer);
        add_tics(to, of, place, layer);
        add_data(to, of, layer);
        to.set_frame(place.panel(layer));
        to.script << "plot " << to.data_file() << " index " << to.last_block()
                  << " matrix with image notitle\n"
                  << "unset colorbox\n"; // one for all layers
    }
    to.script << "unset multiplot\n";
    return to;
}

} // namespace cross_task
