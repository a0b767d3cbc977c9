// Routed LoRA against the same by Eigen: both on the same buffers, checked against each other
// first, then timed in turn. Writes report.json and report.md.

#include "eigen_peer.hpp"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <stdexcept>

namespace {

using namespace mhr_bench;

template <class F>
double seconds_of(F&& f) {
    const auto start = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

/// Throws unless both computed the same y from zero, up to the rounding of long sums.
void verify(layer& ours, eigen_peer& peer) {
    const mhr::serial_executor executor;
    std::fill_n(ours.y().data(), ours.y().size(), 0.0F);
    ours.forward(executor);
    peer.forward();
    float largest = 0;
    float error = 0;
    for (index_t i = 0; i < ours.y().size(); ++i) {
        const float difference = std::abs(ours.y().data()[i] - peer.y()[i]);
        if (!(difference <= error)) error = difference; // NaN, too, ends up in `error`
        largest = std::max(largest, std::abs(peer.y()[i]));
    }
    if (!(error <= 1e-4F * largest))
        throw std::runtime_error("case " + ours.sizes().name + ": results differ by " +
                                 std::to_string(error) + " of " + std::to_string(largest));
}

nlohmann::json measure(const layer_case& sizes, int repetitions) {
    layer ours(sizes);
    eigen_peer peer(ours);
    verify(ours, peer);
    const mhr::serial_executor executor;
    std::vector<double> forward, backward, train, to_weights, eigen;
    for (int i = 0; i < repetitions; ++i) {
        forward.push_back(seconds_of([&] { ours.forward(executor); }));
        eigen.push_back(seconds_of([&] { peer.forward(); }));
        backward.push_back(seconds_of([&] { ours.backward(executor); }));
        train.push_back(seconds_of([&] {
            ours.forward(executor);
            ours.backward(executor);
        }));
        to_weights.push_back(seconds_of([&] { ours.backward_to_weights(executor); }));
    }
    const auto row = [&](const char* pass, double seconds) {
        return nlohmann::json{{"case", sizes.name}, {"pass", pass},
                              {"type", "f32"},      {"threads", 1},
                              {"seconds", seconds}, {"peers", nlohmann::json::object()}};
    };
    auto rows = nlohmann::json::array(
        {row("forward", median(forward)), row("forward+backward", median(train)),
         row("backward", median(backward)), row("backward to weights", median(to_weights))});
    rows[0]["peers"]["Eigen"] = median(eigen) / median(forward);
    return rows;
}

/// Training the routing alone (MHR-z) against training all: time of the backward to the weights
/// alone over that of the backward to everything; geometric mean of the cases, and their worst.
nlohmann::json summarise(const nlohmann::json& rows) {
    std::map<std::string, std::map<std::string, double>> seconds; // [case][pass]
    for (const auto& row : rows)
        seconds[row.at("case").get<std::string>()][row.at("pass").get<std::string>()] =
            row.at("seconds").get<double>();
    double logarithms = 0;
    double worst = 0;
    for (const auto& [name, of_pass] : seconds) {
        const double ratio = of_pass.at("backward to weights") / of_pass.at("backward");
        logarithms += std::log(ratio);
        worst = std::max(worst, ratio);
    }
    return {{"z_backward_cost", std::exp(logarithms / static_cast<double>(seconds.size()))},
            {"z_backward_cost_worst", worst}};
}

void write_markdown(std::ostream& to, const nlohmann::json& report) {
    to << "# Benchmark\n\nMedians of one run, one thread. Ratios above 1: the peer is slower.\n\n"
          "| case | pass | type | threads | ms | Eigen / mhr |\n|---|---|---|---|---|---|\n";
    char text[64];
    for (const auto& row : report.at("rows")) {
        std::snprintf(text, sizeof text, "%.4f", 1e3 * row.at("seconds").get<double>());
        to << "| " << row.at("case").get<std::string>() << " | "
           << row.at("pass").get<std::string>() << " | " << row.at("type").get<std::string>()
           << " | " << row.at("threads") << " | " << text << " | ";
        if (row.at("peers").contains("Eigen")) {
            std::snprintf(text, sizeof text, "%.2f", row.at("peers").at("Eigen").get<double>());
            to << text;
        }
        to << " |\n";
    }
    std::snprintf(text, sizeof text, "%.2f (worst case %.2f)",
                  report.at("summary").at("z_backward_cost").get<double>(),
                  report.at("summary").at("z_backward_cost_worst").get<double>());
    to << "\nBackward to the weights alone (MHR-z) over the backward to everything: " << text
       << ".\n";
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"Times routed LoRA against Eigen.", "mhr_compare"};
    std::string output = "bench_output";
    int repetitions = 21;
    app.add_option("--output", output, "Folder for report.md and report.json")
        ->capture_default_str();
    app.add_option("--repetitions", repetitions, "Timings of which the median is told")
        ->check(CLI::Range(1, 10000))
        ->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    try {
        nlohmann::json report{{"rows", nlohmann::json::array()}};
        for (const layer_case& sizes : standard_cases()) {
            std::cerr << sizes.name << '\n';
            for (auto& row : measure(sizes, repetitions))
                report["rows"].push_back(row);
        }
        report["summary"] = summarise(report["rows"]);
        std::filesystem::create_directories(output);
        const std::filesystem::path folder(output);
        std::ofstream json(folder / "report.json");
        json << report.dump(2) << '\n';
        std::ofstream markdown(folder / "report.md");
        write_markdown(markdown, report);
        write_markdown(std::cout, report);
        if (!json.flush() || !markdown.flush())
            throw std::runtime_error("cannot write to " + output);
    } catch (const std::exception& failure) {
        std::cerr << "mhr_compare: " << failure.what() << '\n';
        return 1;
    }
    return 0;
}
