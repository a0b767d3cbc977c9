#include <string>

#include "../support/catch.hpp"

#include "dispatched_kernels_levels.hpp"

// What each level of x86-64 costs beside this file's own flags (-march=native in the preset): the
// highest level should take as long, the lowest says what a program without a choice would lose.
TEST_CASE("levels of x86-64", "[dispatch]") {
    const auto cases = mhr_bench::standard_cases();
    const auto& sizes = GENERATE_COPY(from_range(cases));
    if (sizes.name != "decode-32" && sizes.name != "batch" && sizes.name != "small") return;
    mhr_bench::layer<float> layer(sizes);
    const auto measure = [&](const std::string& name, auto&& forward, auto&& backward) {
        BENCHMARK_ADVANCED("forward, " + sizes.name + ", " + name)
        (Catch::Benchmark::Chronometer meter) {
            meter.measure([&] { forward(layer); });
        };
        BENCHMARK_ADVANCED("backward, " + sizes.name + ", " + name)
        (Catch::Benchmark::Chronometer meter) {
            meter.measure([&] { backward(layer); });
        };
    };
    measure(
        "own flags", [](auto& l) { l.forward(mhr::serial_executor{}); },
        [](auto& l) { l.backward(mhr::serial_executor{}); });
    for (const char* level : dispatched_kernels_levels)
        if (const auto kernels = dispatched_kernels_for(level))
            measure(level, kernels().forward, kernels().backward);
}
