#include "../support/catch.hpp"

#include <algorithm>

#include "../support/layer.hpp"

TEST_CASE("routed LoRA", "[routed_lora]") {
    auto cases = mhr_bench::standard_cases();
    cases.erase(std::remove_if(cases.begin(), cases.end(),
                               [](const auto& sizes) { return sizes.is_cold(); }),
                cases.end());
    const auto& sizes = GENERATE_COPY(from_range(cases));
    mhr_bench::layer<float> layer(sizes);
    const mhr::serial_executor executor;
    BENCHMARK_ADVANCED("forward, " + sizes.name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] { layer.forward(executor); });
    };
    BENCHMARK_ADVANCED("backward, " + sizes.name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] { layer.backward(executor); });
    };
    BENCHMARK_ADVANCED("backward to weights, " + sizes.name)
    (Catch::Benchmark::Chronometer meter) {
        meter.measure([&] { layer.backward_to_weights(executor); });
    };
}
