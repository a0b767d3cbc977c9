#include <catch2/catch.hpp>

#include "../support/layer.hpp"

TEST_CASE("routed LoRA", "[routed_lora]") {
    const auto cases = mhr_bench::standard_cases();
    const auto& sizes = GENERATE_COPY(from_range(cases));
    mhr_bench::layer layer(sizes);
    const mhr::serial_executor executor;
    BENCHMARK("forward, " + sizes.name) {
        layer.forward(executor);
        return layer.y().data()[0];
    };
    BENCHMARK("backward, " + sizes.name) {
        layer.backward(executor);
        return layer.d_weights().data()[0];
    };
    BENCHMARK("backward to weights, " + sizes.name) {
        layer.backward_to_weights(executor);
        return layer.d_weights().data()[0];
    };
}
