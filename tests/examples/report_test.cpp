#include "examples/cross_task/claims.hpp"
#include "examples/cross_task/report.hpp"
#include "examples/cross_task/table.hpp"
#include "examples/made_up_results.hpp"
#include "support/temporary_folder.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>

using namespace cross_task;

namespace {

std::string text_of(const std::filesystem::path& file) {
    std::ifstream from(file, std::ios::binary);
    std::ostringstream text;
    text << from.rdbuf();
    return text.str();
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

auto count(const std::string& text, char what) {
    return std::count(text.begin(), text.end(), what);
}

table small_table() {
    table made;
    made.title = "Title";
    made.note = "A note.";
    made.columns = {"method", "bits"};
    made.add_heading("group");
    made.rows.push_back({{"a|b", {}}, {"2.5 \u00b1 0.5", 2.5}});
    made.rows.push_back({{"c", {}}, {"12.5", 12.5}});
    made.rows.push_back({{"d", {}}, {"n/a", {}}});
    made.mark_lowest(1);
    return made;
}

} // namespace

TEST_CASE("table: numbers are aligned on a terminal, the lowest has a star") {
    std::ostringstream to;
    print_text(to, small_table());
    CHECK(to.str() == "Title\n"
                      "=====\n"
                      "A note.\n"
                      "\n"
                      "method       bits\n"
                      "------------------\n"
                      "group\n"
                      "a|b     2.5 \u00b1 0.5*\n"
                      "c            12.5\n"
                      "d             n/a\n"
                      "\n");
}

TEST_CASE("table: Markdown has the lowest bold and escapes what is special") {
    std::ostringstream to;
    print_markdown(to, small_table());
    CHECK(to.str() == "## Title\n"
                      "\n"
                      "A note.\n"
                      "\n"
                      "| method | bits |\n"
                      "|:---|---:|\n"
                      "| *group* | |\n"
                      "| a\\|b | **2.5 \u00b1 0.5** |\n"
                      "| c | 12.5 |\n"
                      "| d | n/a |\n"
                      "\n");
    CHECK(escape_markdown("a_b*c\nd") == "a\\_b\\*c d");
}

TEST_CASE("table: numbers") {
    CHECK(fixed(1.23456, 3) == "1.235");
    CHECK(fixed(0.5, 1, true) == "+0.5");
    CHECK(grouped(24) == "24");
    CHECK(grouped(159744) == "159,744");
    CHECK(grouped(-1234567) == "-1,234,567");
    CHECK(grouped(-123) == "-123");
}

TEST_CASE("report: every claim is about methods of the results") {
    const results of = made_up_results();
    for (const claim& about : paper_claims()) {
        const auto& methods = about.in == section::few_shot    ? of.methods
                              : about.in == section::zero_shot ? of.zero_shot_methods
                                                               : of.fit_methods; // or alignment
        CHECK(std::count(methods.begin(), methods.end(), about.first) == 1);
        CHECK(std::count(methods.begin(), methods.end(), about.second) == 1);
    }
}

TEST_CASE("report: the tables are printed") {
    std::ostringstream to;
    print_tables(to, made_up_results());
    for (const char* part :
         {"Few-shot adaptation", "Zero-shot", "Fit of the training", "Gradient alignment",
          "Claims of the paper", "MHR-mu h8, annealed vs shared LoRA r16, further", "159,744",
          "512 words", "MHR-mu h32 vs shared LoRA r16", "first better", "second better",
          "within 2 standard errors", "30 of 30"})
        CHECK_MESSAGE(contains(to.str(), part), part);
    CHECK_FALSE(contains(to.str(), "n/a"));
}

TEST_CASE("report: one seed has no deviations, standard errors or verdicts") {
    std::ostringstream to;
    print_tables(to, made_up_results(1));
    CHECK(contains(to.str(), "n/a"));
    CHECK_FALSE(contains(to.str(), " \u00b1 "));
    CHECK_FALSE(contains(to.str(), "first better"));
}

TEST_CASE("report: methods that a run leaves out are left out") {
    results of = made_up_results();
    of.methods = {"Poly", "random routing"};
    of.zero_shot_methods.clear();
    of.fit_methods.clear();
    std::ostringstream to;
    print_tables(to, of);
    CHECK(contains(to.str(), "Poly vs random routing"));
    CHECK_FALSE(contains(to.str(), "MHR"));
    CHECK_FALSE(contains(to.str(), "Zero-shot"));

    of.adaptation.pop_back(); // zero-shot, which is not wanted
    CHECK_NOTHROW(print_tables(to, of));
    of.adaptation.clear();
    CHECK_THROWS_AS(print_tables(to, of), std::runtime_error);
}

TEST_CASE("report: the files") {
    const temporary_folder folder;
    results of = made_up_results();
    of.fit.front().bits_per_character = 0.1 + 0.2;
    of.settings.front().method = "a \"b\", c";
    write_report(folder.path() / "new", of, {});

    const std::string numbers = text_of(folder.path() / "new" / "results.csv");
    CHECK(contains(numbers, "kind,method,seed,words,language,bits_per_character,"
                            "trained_parameters,seconds\nfew-shot,LoRA from scratch,0,32,pt,"));
    CHECK(contains(numbers, "\nzero-shot,host,0,0,pt,"));
    CHECK(contains(numbers, "\nfit,host,0,,it,0.30000000000000004,,\n")); // all digits
    CHECK(count(numbers, '\n') == static_cast<long>(1 + of.adaptation.size() + of.fit.size()));

    const std::string cosines = text_of(folder.path() / "new" / "alignment.csv");
    CHECK(contains(cosines, "method,seed,step,all_layers,layer_1,layer_2,layer_3\n"));
    CHECK(contains(cosines, "\nMHR h8,2,1000,"));
    CHECK(count(cosines, '\n') == static_cast<long>(1 + of.alignment.size() * 40));

    const std::string settings = text_of(folder.path() / "new" / "settings.csv");
    CHECK(contains(settings, "method,words,rate,steps,development_bits\n\"a \"\"b\"\", c\",32,"));
    CHECK(count(settings, '\n') == static_cast<long>(1 + of.settings.size()));

    const std::string report = text_of(folder.path() / "new" / "report.md");
    for (const char* part : {"seeds: 0, 1, 2", "size of the run: default", "## Few-shot", "**",
                             "Norwegian Bokm\u00e5l", "20 min 35 s with 2 threads", "gnuplot"})
        CHECK_MESSAGE(contains(report, part), part);

    write_report(folder.path() / "new", of, {{"plots/x.png", "An x", "What it shows.", 640}});
    const std::string with_picture = text_of(folder.path() / "new" / "report.md");
    CHECK(contains(with_picture, "<img src=\"plots/x.png\" width=\"640\""));
    CHECK(contains(with_picture, "What it shows."));
    CHECK_FALSE(contains(with_picture, "gnuplot"));
}

TEST_CASE("report: a file that cannot be written is an error") {
    const temporary_folder folder;
    std::filesystem::create_directories(folder.path() / "results.csv"); // a folder in its place
    CHECK_THROWS_AS(write_report(folder.path(), made_up_results(1), {}), std::runtime_error);
}
