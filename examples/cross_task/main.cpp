// The experiment of "Multi-Head Adapter Routing for Cross-Task Generalization" in miniature: tasks
// are languages, the frozen host is a small character model, adapters and routers are mhr's.

#include "experiment.hpp"
#include "plots.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "words.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <thread>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace {

bool stderr_is_terminal() {
#if __has_include(<unistd.h>)
    return isatty(STDERR_FILENO) == 1;
#else
    return false;
#endif
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"Adapts a frozen character model to languages: LoRA, Poly and MHR compared.",
                 "cross_task"};
    bool quick = false;
    bool full = false;
    std::uint64_t seed = 0;
    unsigned threads = std::max(1U, std::thread::hardware_concurrency());
    std::string words;
    std::string output = "cross_task_output";
    std::string gnuplot;
    auto* quick_flag = app.add_flag("--quick", quick, "Smoke test: under a minute");
    app.add_flag("--full", full,
                 "5 seeds, 1000 evaluation words, wider grids: about an hour on 2 cores")
        ->excludes(quick_flag);
    app.add_option("--seed", seed, "First seed")->capture_default_str();
    app.add_option("--threads", threads, "Trainings that run at a time; the numbers do not change")
        ->check(CLI::Range(1U, 1024U))
        ->capture_default_str();
    app.add_option("--words", words,
                   "Folder of word lists <language>.txt (UTF-8, one word a line) instead of the "
                   "system's dictionaries")
        ->check(CLI::ExistingDirectory);
    app.add_option("--output", output, "Folder for the report, tables and pictures")
        ->capture_default_str();
    app.add_option("--gnuplot", gnuplot, "The gnuplot program; without it no pictures are drawn");
    CLI11_PARSE(app, argc, argv);

    try {
        using namespace cross_task;
        experiment_options options = quick  ? quick_options(seed)
                                     : full ? full_options(seed)
                                            : default_options(seed);
        options.threads = threads;

        std::filesystem::create_directories(output); // fails now, not after the work
        corpus_options reading;
        reading.words_directory = words;
        reading.evaluation_words = options.evaluation_words;
        reading.few_shot_words = static_cast<std::size_t>(options.word_counts.back());
        reading.threads = threads;
        const corpus languages = load_corpus(reading);

        const results found = run_experiment(
            languages, options, [](const std::string& title, int steps) -> std::function<void()> {
                auto bar =
                    std::make_shared<progress>(std::cerr, stderr_is_terminal(), title, steps);
                return [bar] { bar->advance(); };
            });
        // First without pictures: what took an hour is not lost if gnuplot fails.
        write_report(output, found, {});
        print_tables(std::cout, found);
        write_report(output, found, draw_pictures(gnuplot, output, found));
        std::cout << "Report: " << (std::filesystem::path(output) / "report.md").string() << '\n';
    } catch (const std::exception& failure) {
        std::cerr << "cross_task: " << failure.what() << '\n';
        return 1;
    }
    return 0;
}
