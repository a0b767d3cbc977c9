#include "../support/catch.hpp"

#include "../support/layer.hpp"

TEST_CASE("routed LoRA", "[routed_lora]") {
    const auto cases = mhr_bench::standard_cases();
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
