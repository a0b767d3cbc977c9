// Serving requests that ask for different adapters: steps of decoding through the linear layers of
// a model, by one batch and in other ways. Results are compared first. Adds to report.json and
// report.md, which the comparison of layers may have begun.

#include <CLI/CLI.hpp>

#include <algorithm>
#include <exception>
#include <iostream>
#include <stdexcept>

#include "report.hpp"

namespace {

using namespace mhr_bench;

struct options {
    std::string output = "bench_output";
    decoder_sizes sizes;
    index_t rows = 32;
    std::vector<index_t> distinct{1, 2, 4, 8, 16, 32};
    std::vector<std::string> kinds, peers;
    int threads = 2;
    budget limits{6, 3, 15};
    bool smoke = false, keep = false;
};

void add_options(CLI::App& app, options& o, const std::vector<library>& libraries) {
    const auto positive = CLI::Range(mhr::index_t{1}, mhr::index_t{1} << 24);
    std::vector<std::string> kinds, names;
    for (const kind_of_adapters& kind : kinds_of_adapters())
        kinds.push_back(kind.name);
    for (const library& of : libraries)
        names.push_back(of.name);
    app.add_option("--output", o.output, "Folder of report.md and report.json")
        ->capture_default_str();
    app.add_option("--width", o.sizes.width, "Width of the model")
        ->check(positive)
        ->capture_default_str();
    app.add_option("--key-width", o.sizes.key_width, "Width of keys and values")
        ->check(positive)
        ->capture_default_str();
    app.add_option("--inner-width", o.sizes.inner_width, "Width inside of feed-forward layers")
        ->check(positive)
        ->capture_default_str();
    app.add_option("--blocks", o.sizes.blocks, "Blocks of seven linear layers")
        ->check(positive)
        ->capture_default_str();
    app.add_option("--requests", o.rows, "Requests of a batch")
        ->check(positive)
        ->capture_default_str();
    app.add_option("--distinct", o.distinct, "Numbers of distinct adapters in a batch")
        ->check(positive)
        ->capture_default_str();
    app.add_option("--kind", o.kinds, "Only these kinds of adapters (default: all)")
        ->check(CLI::IsMember(kinds));
    app.add_flag("--keep", o.keep,
                 "Keep what an earlier report in the same folder has of other kinds");
    app.add_option("--peers", o.peers, "Base products by one of these (default: the fastest)")
        ->check(CLI::IsMember(names));
    app.add_option("--threads", o.threads, "Number of threads")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_option("--seconds", o.limits.seconds, "Time to measure one number of adapters")
        ->capture_default_str();
    app.add_flag("--smoke", o.smoke, "Only compare results, of a model that is cut down");
}

void cut_down(options& o) {
    o.sizes = {128, 64, 256, 2};
    o.rows = 12;
    o.distinct = {1, 5, 12};
}

void run(options o, const std::vector<library>& all) {
    if (o.smoke) cut_down(o);
    std::vector<library> libraries;
    for (const library& of : all)
        if (o.peers.empty() || std::find(o.peers.begin(), o.peers.end(), of.name) != o.peers.end())
            libraries.push_back(of);
    for (const index_t count : o.distinct)
        if (count > o.rows) throw std::runtime_error("--distinct: more than there are requests");

    decoder model(o.sizes, o.rows, o.threads, libraries);
    serving_report result{describe_machine(libraries),
                          held_back(libraries),
                          o.sizes,
                          o.threads,
                          model.bytes(),
                          {},
                          {}};
    for (const kind_of_adapters& kind : kinds_of_adapters()) {
        const bool chosen = o.kinds.empty() ||
                            std::find(o.kinds.begin(), o.kinds.end(), kind.name) != o.kinds.end();
        if (!chosen) continue;
        std::cerr << "serving: " << kind.what << '\n';
        for (measured_serving& row : measure_serving(model, kind, o.distinct, o.limits, o.smoke))
            result.rows.push_back(std::move(row));
    }
    if (o.smoke) {
        std::cerr << "results agree\n";
        return;
    }
    result.base_libraries = model.libraries_used();
    if (o.keep) keep_from(o.output, result);
    write_serving_report(result, o.output);
    std::cout << markdown_of_serving(result);
}

} // namespace

int main(int argc, char** argv) {
    prepare_environment(argv);
    try {
        const auto libraries = all_libraries();
        CLI::App app{"Times serving requests that ask for different adapters.", "mhr_serve_bench"};
        options chosen;
        add_options(app, chosen, libraries);
        CLI11_PARSE(app, argc, argv);
        run(chosen, libraries);
    } catch (const std::exception& failure) {
        std::cerr << "mhr_serve_bench: " << failure.what() << '\n';
        return 1;
    }
    return 0;
}
