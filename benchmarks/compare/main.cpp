// Routed LoRA against other ways to compute the same: all on the same arrays, their results checked
// against each other first, then timed in turn. Writes report.json and report.md.

#include <CLI/CLI.hpp>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>

#include "costs.hpp"
#include "machine.hpp"
#include "measure.hpp"
#include "report.hpp"
#include "summary.hpp"

namespace {

using namespace mhr_bench;

struct options {
    std::string output = "bench_output";
    double seconds = 6;
    int least_rounds = 7;
    int most_rounds = 41;
    bool smoke = false, keep = false;
    std::vector<std::string> cases, types{"f32", "bf16"}, peers;
    std::vector<int> threads{1, 2};
    layer_case own{"own", 2048, 2048, 16, 8, 8, 32, 64, 8};
};

void add_options(CLI::App& app, options& o, const std::vector<library>& libraries) {
    std::vector<std::string> case_names{"own", "costs"}, library_names{"none"};
    for (const layer_case& c : standard_cases())
        case_names.push_back(c.name);
    for (const library& of : libraries)
        library_names.push_back(of.name);
    const auto positive = CLI::Range(mhr::index_t{1}, mhr::index_t{1} << 30);
    app.add_option("--output", o.output, "Folder for report.md and report.json")
        ->capture_default_str();
    app.add_option("--seconds", o.seconds,
                   "Time to measure one case in one type with one number of threads")
        ->capture_default_str();
    app.add_option("--repetitions", o.least_rounds, "Least number of timings to take a median of")
        ->check(CLI::Range(1, 10000))
        ->capture_default_str();
    app.add_flag("--smoke", o.smoke,
                 "Only check results, on all cases with their sizes cut down: fails if any result "
                 "is wrong");
    app.add_flag("--keep", o.keep,
                 "Keep what an earlier report in the same folder has of other cases, types and "
                 "threads");
    app.add_option("--case", o.cases, "Only these cases (default: all standard ones)")
        ->check(CLI::IsMember(case_names));
    app.add_option("--type", o.types, "Storage types")->check(CLI::IsMember({"f32", "bf16"}));
    app.add_option("--threads", o.threads, "Numbers of threads")->check(CLI::Range(1, 1024));
    app.add_option("--peers", o.peers, "Only these peers (default: all), or none")
        ->check(CLI::IsMember(library_names));
    // Any of these adds a case of one's own.
    app.add_option("--in", o.own.in_features, "Own case: in_features")->check(positive);
    app.add_option("--out", o.own.out_features, "Own case: out_features")->check(positive);
    app.add_option("--rank", o.own.rank, "Own case: rank")->check(positive);
    app.add_option("--heads", o.own.heads, "Own case: heads")->check(positive);
    app.add_option("--modules", o.own.modules, "Own case: modules")->check(positive);
    app.add_option("--sequences", o.own.sequences, "Own case: sequences")->check(positive);
    app.add_option("--rows", o.own.rows_of_sequence, "Own case: rows of each sequence")
        ->check(positive);
    app.add_option("--tasks", o.own.tasks, "Own case: tasks, to which sequences are dealt in turn")
        ->check(positive);
}

bool has_own_case(const CLI::App& app) {
    for (const char* name :
         {"--in", "--out", "--rank", "--heads", "--modules", "--sequences", "--rows", "--tasks"})
        if (app.count(name)) return true;
    return false;
}

std::vector<layer_case> chosen_cases(const options& o, bool own) {
    auto cases = standard_cases();
    const bool named = std::find(o.cases.begin(), o.cases.end(), "own") != o.cases.end();
    if (own && o.cases.empty()) cases.clear();
    if (own || named) {
        const layer_case& c = o.own;
        if (c.in_features % c.heads != 0 || c.out_features % c.heads != 0)
            throw std::runtime_error("own case: heads must divide in_features and out_features");
        if (c.sequences < c.tasks) throw std::runtime_error("own case: each task needs a sequence");
        cases.push_back(c);
    }
    if (!o.cases.empty())
        cases.erase(std::remove_if(cases.begin(), cases.end(),
                                   [&](const layer_case& c) {
                                       return std::find(o.cases.begin(), o.cases.end(), c.name) ==
                                              o.cases.end();
                                   }),
                    cases.end());
    return cases;
}

/// The same case, small enough for oracles: what is computed, and how it is split, stays.
layer_case cut_down(layer_case c) {
    const auto least = std::max<index_t>(128, c.heads);
    const auto cut = [&](index_t features) {
        const index_t smaller = features / 16 / c.heads * c.heads;
        return std::min(features, std::max(least, smaller));
    };
    c.in_features = cut(c.in_features);
    c.out_features = cut(c.out_features);
    c.rows_of_sequence = std::min<index_t>(c.rows_of_sequence, 512 / c.sequences);
    c.layers = std::min<index_t>(c.layers, 2);
    return c;
}

std::string read(const std::filesystem::path& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
}

void write(const std::filesystem::path& path, const std::string& text) {
    std::ofstream file(path);
    file << text;
    if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
}

void run(const options& o, bool own, const std::vector<library>& libraries) {
    plan_of_measurement plan{
        {}, {o.seconds, o.least_rounds, std::max(o.least_rounds, o.most_rounds)}, o.smoke};
    for (const library& of : libraries)
        if (o.peers.empty() || std::find(o.peers.begin(), o.peers.end(), of.name) != o.peers.end())
            plan.libraries.push_back(of);
    report result;
    result.machine = describe_machine(plan.libraries);
    result.invalid_because = held_back(plan.libraries);
    // An older one would be taken for that of this run, should a result be wrong.
    std::filesystem::remove(std::filesystem::path(o.output) / "summary.md");
    const auto chosen = [&](const char* type) {
        return std::find(o.types.begin(), o.types.end(), type) != o.types.end();
    };
    const auto each = [&](const layer_case& sizes, const plan_of_measurement& how) {
        const auto keep = [&](std::vector<measured_pass> passes) {
            result.passes.insert(result.passes.end(), passes.begin(), passes.end());
        };
        for (const int threads : o.threads) {
            if (chosen("f32")) keep(measure<float>(sizes, threads, how));
            if (chosen("bf16")) keep(measure<bfloat16>(sizes, threads, how));
        }
    };
    const auto cases = chosen_cases(o, own);
    plan_of_measurement check = plan;
    check.only_verify = true;
    for (const layer_case& sizes : cases)
        each(cut_down(sizes), check);
    std::cerr << "results are right\n";
    if (o.smoke) return;

    for (const layer_case& sizes : cases) {
        std::cerr << sizes.name << '\n';
        each(sizes, plan);
    }
    const bool costs = std::find(o.cases.begin(), o.cases.end(), "costs") != o.cases.end();
    if (costs || (o.cases.empty() && !own)) {
        std::cerr << "costs\n";
        result.costs = measure_costs(plan);
    }
    const std::filesystem::path folder(o.output);
    if (o.keep && std::filesystem::exists(folder / "report.json"))
        keep_from(read(folder / "report.json"), libraries, result);
    result.summary = summarise(result.passes, result.costs);
    std::filesystem::create_directories(folder);
    write(folder / "report.json", as_json(result));
    write(folder / "report.md", as_markdown(result));
    write(folder / "summary.md", as_short_markdown(result));
    std::cout << as_markdown(result);
}

} // namespace

int main(int argc, char** argv) {
    prepare_environment(argv);
    try {
        const auto libraries = all_libraries();
        CLI::App app{"Times routed LoRA against other ways to compute the same.", "mhr_compare"};
        options chosen;
        add_options(app, chosen, libraries);
        CLI11_PARSE(app, argc, argv);
        run(chosen, has_own_case(app), libraries);
    } catch (const std::exception& failure) {
        std::cerr << "mhr_compare: " << failure.what() << '\n';
        return 1;
    }
    return 0;
}
