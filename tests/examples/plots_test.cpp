#include "examples/cross_task/gnuplot.hpp"
#include "examples/cross_task/heat_map.hpp"
#include "examples/cross_task/label_placement.hpp"
#include "examples/cross_task/plots.hpp"
#include "examples/made_up_results.hpp"
#include "support/file_bytes.hpp"
#include "support/temporary_folder.hpp"

#include <doctest/doctest.h>

#include <fstream>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>

using namespace cross_task;
using mhr::test::read_file;

namespace {

/// A program of the shell, which begins in the folder. It stands in for gnuplot: it is called with
/// --default-settings -e <cd> <script>.
std::filesystem::path make_program(const temporary_folder& folder, const std::string& commands) {
    const std::filesystem::path program = folder.path() / "program";
    std::ofstream(program) << "#!/bin/sh\ncd \"" << folder.path().string() << "\"\n"
                           << commands << '\n';
    std::filesystem::permissions(program, std::filesystem::perms::owner_all);
    return program;
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

bool overlap(const rectangle& a, const rectangle& b) {
    return a.left < b.right && b.left < a.right && a.bottom < b.top && b.bottom < a.top;
}

} // namespace

TEST_CASE("gnuplot: strings are literal") {
    CHECK(gnuplot_string("a b") == "'a b'");
    CHECK(gnuplot_string("it's") == "'it''s'");
    CHECK(gnuplot_string("`rm`\n$x") == "'`rm` $x'");
}

TEST_CASE("gnuplot: the arguments reach it without a shell") {
    const temporary_folder folder; // its name has a quote and a space
    const auto program = make_program(folder, "printf '%s\\n' \"$@\" >arguments");
    run_gnuplot(program, folder.path(), "$(touch x); y.gp");
    CHECK(read_file(folder.path() / "arguments") == "--default-settings\n-e\ncd " +
                                                        gnuplot_string(folder.path().string()) +
                                                        "\n$(touch x); y.gp\n");
}

TEST_CASE("gnuplot: its failure is an error with what it said") {
    const temporary_folder folder;
    const auto program = make_program(folder, "echo 'line 3: undefined' >&2; exit 1");
    try {
        run_gnuplot(program, folder.path(), "x.gp");
        FAIL("no exception");
    } catch (const std::runtime_error& error) {
        CHECK(contains(error.what(), "line 3: undefined"));
        CHECK(contains(error.what(), "x.gp"));
    }
    CHECK_NOTHROW(run_gnuplot(make_program(folder, "echo only a warning >&2"), folder.path(), "x"));
    CHECK_THROWS_AS(run_gnuplot(make_program(folder, "kill $$"), folder.path(), "x"),
                    std::runtime_error);
    CHECK_THROWS_AS(run_gnuplot(folder.path() / "none", folder.path(), "x"), std::runtime_error);
    CHECK_THROWS_AS(draw_pictures(folder.path() / "none", folder.path(), made_up_results()),
                    std::runtime_error);
}

TEST_CASE("plots: without gnuplot there are none") {
    const temporary_folder folder;
    CHECK(draw_pictures({}, folder.path(), made_up_results()).empty());
    CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("plots: a gnuplot that draws nothing is an error") {
    const temporary_folder folder;
    CHECK_THROWS_AS(draw_pictures(make_program(folder, "exit 0"), folder.path(), made_up_results()),
                    std::runtime_error);
}

TEST_CASE("plots: scripts, data and pictures, for one seed and for several") {
    for (const std::size_t seeds : {1U, 3U}) {
        const temporary_folder folder;
        const auto program = make_program(folder, "touch \"plots/${4%.gp}.png\"");
        results of = made_up_results(seeds);
        of.routing.push_back(of.routing[1]);
        of.routing.back().method = "MHR/h8"; // would have the name of MHR h8
        std::set<std::string> files;
        for (const picture& drawn : draw_pictures(program, folder.path(), of)) {
            CHECK(files.insert(drawn.file).second);
            std::filesystem::path file = folder.path() / drawn.file;
            CHECK(std::filesystem::exists(file));
            CHECK(read_file(file.replace_extension(".gp")).size() > 0);
            CHECK(read_file(file.replace_extension(".dat")).size() > 0);
            CHECK(drawn.width > 0);
            CHECK_FALSE(drawn.title.empty());
            CHECK_FALSE(drawn.caption.empty());
        }
        CHECK(files.size() == 7);
        CHECK(files.count("plots/gradient_alignment.png") == 1);
        CHECK(files.count("plots/routing_mhr_h8.png") == 1);
        const std::string script = read_file(folder.path() / "plots/bits_against_parameters.gp");
        CHECK(contains(script, "'MHR-mu h32'"));
        CHECK(contains(script, "yerrorbars") == (seeds > 1));
        CHECK_FALSE(contains(script, "nan"));
        CHECK_FALSE(contains(script, "inf"));
    }
}

TEST_CASE("plots: results that do not fit together are errors") {
    const temporary_folder folder;
    const auto program = make_program(folder, "touch \"plots/${4%.gp}.png\"");
    results of = made_up_results(2);
    of.curves.back().step.back() += 1;
    CHECK_THROWS_AS(draw_pictures(program, folder.path(), of), std::runtime_error);
    of = made_up_results(2);
    of.alignment.back().overall.pop_back();
    CHECK_THROWS_AS(draw_pictures(program, folder.path(), of), std::runtime_error);

    routing_map map = of.routing.front();
    CHECK_NOTHROW(plot_routing(map, "x"));
    map.weights.back() = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS_AS(plot_routing(map, "x"), std::runtime_error);
    map.weights.pop_back();
    CHECK_THROWS_AS(plot_routing(map, "x"), std::runtime_error);
}

TEST_CASE("plots: labels do not cover each other, a marker or the frame") {
    const rectangle frame{0, 0, 600, 300};
    std::vector<labelled_point> points;
    for (const double x : {280.0, 300.0, 320.0, 400.0, 420.0})
        for (const double y : {100.0, 112.0})
            points.push_back({x, y, {x - 5, y - 5, x + 5, y + 5}, 80, 16});
    const std::vector<rectangle> labels = place_labels(points, frame);
    REQUIRE(labels.size() == points.size());
    for (std::size_t i = 0; i < labels.size(); ++i) {
        CHECK(labels[i].left >= frame.left);
        CHECK(labels[i].right <= frame.right);
        CHECK(labels[i].bottom >= frame.bottom);
        CHECK(labels[i].top <= frame.top);
        for (std::size_t j = 0; j < labels.size(); ++j) {
            CHECK_FALSE(overlap(labels[i], points[j].marker));
            CHECK_FALSE((j != i && overlap(labels[i], labels[j])));
        }
    }
    CHECK(place_labels({}, frame).empty());
    CHECK(place_labels({{5, 5, {0, 0, 10, 10}, 1000, 16}}, frame).size() == 1); // has no room
}
