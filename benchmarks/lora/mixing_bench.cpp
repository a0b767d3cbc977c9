#include "../support/catch.hpp"

#include "../support/layer.hpp"

TEST_CASE("mixing", "[mix]") {
    const auto [tasks, heads, rank] = GENERATE(
        table<mhr::index_t, mhr::index_t, mhr::index_t>({{8, 8, 16}, {8, 64, 1}, {1, 8, 16}}));
    const std::string sizes = ", " + std::to_string(tasks) + " tasks, " + std::to_string(heads) +
                              " heads, 8 modules, 2048 x " + std::to_string(rank);
    mhr_bench::layer<float> layer({"", 2048, 2048, rank, heads, 8, tasks, 1, tasks});
    mhr_bench::aligned_array<float> mixed(tasks * 2048 * rank);
    const mhr::tensor_view<float, 4> blocks(mixed.data(), {tasks, heads, 2048 / heads, rank});
    const mhr::serial_executor executor;

    BENCHMARK_ADVANCED("forward" + sizes)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::mix_forward(executor, layer.weights(), layer.a(), blocks);
            return mixed.data()[0];
        });
    };
    BENCHMARK_ADVANCED("backward to modules and weights" + sizes)
    (Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::mix_backward(executor, layer.weights(), layer.a(), blocks,
                              {layer.d_a(), layer.d_weights()});
            return layer.d_a().data()[0];
        });
    };
    BENCHMARK_ADVANCED("backward to weights" + sizes)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::mix_backward(executor, layer.weights(), layer.a(), blocks,
                              {{}, layer.d_weights()});
            return layer.d_weights().data()[0];
        });
    };
}
