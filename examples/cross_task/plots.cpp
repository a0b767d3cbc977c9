#include "plots.hpp"

#include "gnuplot.hpp"
#include "heat_map.hpp"
#include "label_placement.hpp"
#include "plot.hpp"
#include "statistics.hpp"
#include "table.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <stdexcept>

namespace cross_task {

namespace {

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

/// The colours are those of Okabe and Ito, which colour-blind people can tell apart, and greys.
std::string colour_of(const std::string& method) {
    const struct {
        const char* part;
        const char* colour;
    } colours[] = {{"scratch", "#000000"}, {"r128", "#555555"}, {"shared", "#999999"},
                   {"random", "#CC79A7"},  {"Poly", "#D55E00"}, {"h32", "#0072B2"},
                   {"MHR", "#56B4E9"}};
    for (const auto& one : colours)
        if (contains(method, one.part)) return one.colour;
    return "#009E73";
}

/// Filled points of gnuplot: what is trained decides.
int point_type_of(const std::string& method) {
    constexpr int square = 5, circle = 7, triangle = 9, diamond = 13;
    if (contains(method, "-z")) return triangle;
    if (contains(method, "-mu")) return square;
    if (contains(method, "LoRA")) return diamond;
    return circle;
}

std::string mean_over_seeds(const results& of) {
    return of.seeds.size() == 1 ? "one seed"
                                : "mean over " + std::to_string(of.seeds.size()) + " seeds";
}

/// Letters and digits alone, the others become underscores.
std::string file_name_of(const std::string& method) {
    std::string name;
    for (const char c : method) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x80U && std::isalnum(byte) != 0)
            name += static_cast<char>(std::tolower(byte));
        else if (!name.empty() && name.back() != '_')
            name += '_';
    }
    return name;
}

/// The curve of a method: mean over its seeds.
learning_curve mean_curve(const std::vector<learning_curve>& curves, const std::string& method) {
    learning_curve mean;
    int seeds = 0;
    for (const learning_curve& one : curves) {
        if (one.method != method) continue;
        if (seeds == 0) {
            mean.step = one.step;
            mean.bits_per_character.assign(one.step.size(), 0.0);
        }
        if (one.step != mean.step || one.bits_per_character.size() != mean.step.size())
            throw std::runtime_error("the learning curves of " + method + " have unlike steps");
        for (std::size_t i = 0; i < mean.step.size(); ++i)
            mean.bits_per_character[i] += one.bits_per_character[i];
        ++seeds;
    }
    for (double& bits : mean.bits_per_character)
        bits /= seeds;
    return mean;
}

plot plot_learning_curves(const results& of) {
    std::vector<std::string> methods;
    for (const learning_curve& curve : of.curves)
        if (std::find(methods.begin(), methods.end(), curve.method) == methods.end())
            methods.push_back(curve.method);

    plot to("learning_curves", 900, 460);
    to.script << "set xlabel 'training step'\n"
              << "set ylabel 'bits per character of the training batches'\n"
              << "set format y '%.1f'\n"
              << "set key outside right center reverse Left samplen 2 spacing 1.4\n"
              << "plot ";
    for (const std::string& method : methods) {
        const learning_curve mean = mean_curve(of.curves, method);
        to.begin_data(method);
        for (std::size_t i = 0; i < mean.step.size(); ++i)
            to.data << mean.step[i] << ' ' << mean.bits_per_character[i] << '\n';
        to.script << (to.last_block() == 0 ? "" : ", ") << to.data_file() << " index "
                  << to.last_block() << " using 1:2 with lines linewidth 2 linecolor rgb '"
                  << colour_of(method) << "' title " << gnuplot_string(method);
    }
    to.script << '\n';
    return to;
}

/// Cosines are noisy from batch to batch: each point of the picture is a mean of so many measures.
constexpr std::size_t smoothing = 5;

plot plot_alignment(const results& of) {
    plot to("gradient_alignment", 900, 460);
    to.script << "set xlabel 'training step'\n"
              << "set ylabel 'mean cosine between the gradients of two languages'\n"
              << "set key outside right center reverse Left samplen 2 spacing 1.4\n"
              << "set arrow from graph 0, first 0 to graph 1, first 0 nohead linewidth 0.6 "
                 "linecolor rgb '#888888' back\n"
              << "plot ";
    for (const std::string& method : of.fit_methods) {
        const auto first =
            std::find_if(of.alignment.begin(), of.alignment.end(),
                         [&](const alignment_curve& curve) { return curve.method == method; });
        if (first == of.alignment.end()) continue;
        const scores cosines = scores::of_alignment(of, method);
        const std::size_t width = std::min(smoothing, cosines.items());
        to.begin_data(method);
        for (std::size_t i = 0; i + width <= cosines.items(); ++i) {
            double step = 0;
            double cosine = 0;
            for (std::size_t k = i; k < i + width; ++k) {
                step += first->step[k];
                for (std::size_t s = 0; s < cosines.seeds(); ++s)
                    cosine += cosines.at(s, k) / static_cast<double>(cosines.seeds());
            }
            to.data << step / static_cast<double>(width) << ' '
                    << cosine / static_cast<double>(width) << '\n';
        }
        to.script << (to.last_block() == 0 ? "" : ", ") << to.data_file() << " index "
                  << to.last_block() << " using 1:2 with lines linewidth 2 linecolor rgb '"
                  << colour_of(method) << "' title " << gnuplot_string(method);
    }
    to.script << '\n';
    return to;
}

struct measured_point {
    std::string method;
    double parameters = 0;
    double bits = 0;
    std::optional<double> deviation;

    double lowest() const { return bits - deviation.value_or(0.0); }
    double highest() const { return bits + deviation.value_or(0.0); }
};

/// Maps [low, high] to pixels.
struct axis {
    double low, high, first_pixel, last_pixel;

    double pixel(double value) const {
        return first_pixel + (value - low) / (high - low) * (last_pixel - first_pixel);
    }
    double value(double pixel) const {
        return low + (pixel - first_pixel) / (last_pixel - first_pixel) * (high - low);
    }
};

constexpr double point_radius = 5; // pixels

/// Moves points that cover each other apart, to the left and to the right.
void spread(std::vector<labelled_point>& points) {
    const auto covers = [](const labelled_point& a, const labelled_point& b) {
        return std::abs(a.x - b.x) < 2 * point_radius && a.marker.bottom < b.marker.top &&
               b.marker.bottom < a.marker.top;
    };
    std::vector<bool> is_done(points.size(), false);
    std::vector<double> shifts(points.size(), 0.0);
    for (std::size_t first = 0; first < points.size(); ++first) {
        if (is_done[first]) continue;
        // All that are connected with the first one by points that cover each other.
        std::vector<std::size_t> group{first};
        is_done[first] = true;
        for (std::size_t next = 0; next < group.size(); ++next)
            for (std::size_t other = 0; other < points.size(); ++other)
                if (!is_done[other] && covers(points[group[next]], points[other])) {
                    is_done[other] = true;
                    group.push_back(other);
                }
        std::sort(group.begin(), group.end());
        for (std::size_t i = 0; i < group.size(); ++i)
            shifts[group[i]] =
                (static_cast<double>(i) - static_cast<double>(group.size() - 1) / 2) * 2.4 *
                point_radius;
    }
    for (std::size_t i = 0; i < points.size(); ++i) {
        points[i].x += shifts[i];
        points[i].marker.left += shifts[i];
        points[i].marker.right += shifts[i];
    }
}

std::vector<measured_point> measured_points(const results& of, int words) {
    std::vector<measured_point> points;
    for (const std::string& method : of.methods) {
        const cost found = adaptation_cost(of, method, words);
        if (found.trained_parameters <= 0) continue; // has no place on a logarithmic axis
        const summary bits = summarise(scores::of_adaptation(of, method, words));
        points.push_back({method, static_cast<double>(found.trained_parameters), bits.mean,
                          bits.standard_deviation});
    }
    return points;
}

/// Bits against parameters for one number of words.
void add_panel(plot& to, const std::vector<measured_point>& points, const rectangle& frame) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    axis x{infinity, -infinity, frame.left, frame.right}; // log10 of the parameters
    axis y{infinity, -infinity, frame.bottom, frame.top};
    for (const measured_point& point : points) {
        x.low = std::min(x.low, std::log10(point.parameters));
        x.high = std::max(x.high, std::log10(point.parameters));
        y.low = std::min(y.low, point.lowest());
        y.high = std::max(y.high, point.highest());
    }
    // Room for the names; and something to show if all points are equal.
    x.low -= 0.4;
    x.high += 1.1;
    const double margin = 0.12 * (y.high - y.low) + 0.005;
    y.low -= margin;
    y.high += margin;

    std::vector<labelled_point> places;
    for (const measured_point& point : points) {
        const double px = x.pixel(std::log10(point.parameters));
        const double py = y.pixel(point.bits);
        const double reach = std::max(point_radius, y.pixel(point.highest()) - py);
        const rectangle marker{px - point_radius, py - reach, px + point_radius, py + reach};
        places.push_back({px, py, marker, text_width(point.method), 1.2 * font_pixels});
    }
    spread(places);
    const std::vector<rectangle> texts = place_labels(places, frame);

    to.script << "unset label\nunset arrow\n";
    for (std::size_t i = 0; i < points.size(); ++i) {
        const bool is_right = texts[i].left > places[i].x;
        const double end = is_right ? texts[i].left : texts[i].right;
        const double middle = (texts[i].bottom + texts[i].top) / 2;
        to.add_text(points[i].method, end, middle, is_right ? "left front" : "right front");
        to.script << "set arrow from " << to.at(places[i].x, places[i].y) << " to "
                  << to.at(is_right ? end - 2 : end + 2, middle)
                  << " nohead linewidth 0.6 linecolor rgb '#888888' back\n";
    }
    to.script << "set xtics (";
    for (double power = std::ceil(x.low); power <= x.high; ++power)
        to.script << (power > x.low + 1 ? ", " : "") << '\''
                  << grouped(std::llround(std::pow(10.0, power))) << "' 1e" << power;
    to.script << ")\nset xrange [" << std::pow(10.0, x.low) << ':' << std::pow(10.0, x.high)
              << "]\n"
              << "set yrange [" << y.low << ':' << y.high << "]\n"
              << "set format y '%." << (y.high - y.low < 0.06 ? 3 : 2) << "f'\n";

    to.set_frame(frame);
    to.script << "plot ";
    for (std::size_t i = 0; i < points.size(); ++i) {
        const measured_point& point = points[i];
        to.begin_data(point.method + ": parameters (where drawn), bits, deviation, parameters");
        to.data << std::pow(10.0, x.value(places[i].x)) << ' ' << point.bits << ' '
                << point.deviation.value_or(0.0) << ' ' << point.parameters << '\n';
        to.script << (i == 0 ? "" : ", ") << to.data_file() << " index " << to.last_block()
                  << (point.deviation ? " using 1:2:3 with yerrorbars" : " using 1:2 with points")
                  << " pointtype " << point_type_of(point.method)
                  << " pointsize 1.2 linecolor rgb '" << colour_of(point.method) << "' notitle";
    }
    to.script << '\n';
}

plot plot_bits_against_parameters(const results& of) {
    constexpr double width = 1000, panel = 320, gap = 62, left = 75, right = 15, top = 30;
    constexpr double bottom = 55;
    const auto panels = static_cast<double>(of.word_counts.size());
    const double height = top + panels * (panel + gap) - gap + bottom;

    plot to("bits_against_parameters", width, height);
    to.script << "set multiplot\nset logscale x\n"
              << "set ylabel 'bits per character' offset 0.5,0\n";
    double upper = height - top;
    for (const int words : of.word_counts) {
        const std::vector<measured_point> points = measured_points(of, words);
        if (points.empty()) continue;
        to.script << "set title " << gnuplot_string(std::to_string(words) + " words")
                  << " offset 0,-0.5 font ',11'\n";
        if (words == of.word_counts.back()) to.script << "set xlabel 'trained parameters'\n";
        add_panel(to, points, {left, upper - panel, width - right, upper});
        upper -= panel + gap;
    }
    to.script << "unset multiplot\n";
    return to;
}

} // namespace

std::vector<picture> draw_pictures(const std::filesystem::path& gnuplot,
                                   const std::filesystem::path& folder, const results& of) {
    std::vector<picture> pictures;
    if (gnuplot.empty()) return pictures;

    if (!of.curves.empty())
        pictures.push_back(plot_learning_curves(of).draw(
            gnuplot, folder, "Learning curves of the multi-task training",
            "Bits per character of the training batches, " + mean_over_seeds(of) + "."));
    if (!of.alignment.empty())
        pictures.push_back(plot_alignment(of).draw(
            gnuplot, folder, "Gradient alignment over the multi-task training",
            "Mean cosine between the gradients of each pair of training languages to the shared "
            "parameters, running mean over " +
                std::to_string(smoothing) + " measures, " + mean_over_seeds(of) + "."));
    if (!of.methods.empty() && !of.word_counts.empty())
        pictures.push_back(plot_bits_against_parameters(of).draw(
            gnuplot, folder, "Bits against trained parameters",
            "Bits per character of the test languages after few-shot adaptation, " +
                mean_over_seeds(of) + (of.seeds.size() > 1 ? " with standard deviations" : "") +
                "; fewer are better. Trained are: a LoRA adapter (diamonds), all modules "
                "(circles), the router alone (triangles), the average module (squares). Points "
                "that would cover each other are moved apart to the left and right."));
    std::set<std::string> names;
    for (const routing_map& map : of.routing) {
        std::string name = "routing_" + file_name_of(map.method);
        while (!names.insert(name).second)
            name += '_';
        pictures.push_back(plot_routing(map, name).draw(
            gnuplot, folder, "Routing of " + map.method,
            "How the training languages mix the modules, with the first "
            "seed: the brighter, the more. Languages that are routed alike are next to each "
            "other."));
    }
    return pictures;
}

} // namespace cross_task
