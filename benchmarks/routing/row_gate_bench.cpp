#include "../support/catch.hpp"

#include <random>
#include <string>

#include <mhr/mhr.hpp>

#include "../support/aligned_array.hpp"

TEST_CASE("row gate of 16 modules, 4096 features", "[row_gate]") {
    using mhr::index_t;
    const auto rows = GENERATE(index_t{1}, index_t{32}, index_t{512});
    constexpr index_t features = 4096, modules = 16;
    mhr_bench::aligned_array<float> x(rows * features), prototypes(modules * features);
    mhr_bench::aligned_array<float> logits(rows * modules), weights(rows * modules);
    mhr_bench::aligned_array<float> d_x(rows * features), d_prototypes(modules * features);
    std::mt19937_64 engine(1);
    mhr::draw_symmetric(engine, 1, mhr::tensor_ref<2>(x.data(), {rows, features}));
    mhr::draw_symmetric(engine, 1, mhr::tensor_ref<2>(prototypes.data(), {modules, features}));
    const mhr::row_gate gate{
        mhr::const_tensor_ref<2>(prototypes.data(), {modules, features}).transpose(0, 1)};
    const mhr::row_gate_gradients gradients{
        {d_x.data(), {rows, features}},
        mhr::tensor_ref<2>(d_prototypes.data(), {modules, features}).transpose(0, 1)};
    mhr::owned_workspace scratch(mhr::row_gate_backward_workspace_size(gate, gradients));
    const mhr::serial_executor executor;
    const mhr::tensor_ref<2> of_rows(logits.data(), {rows, modules});
    const mhr::tensor_ref<3> of_weights(weights.data(), {rows, 1, modules});
    const mhr::routing_rule arrow{mhr::tempered_gate{mhr::magnitude_gate{}, 1},
                                  mhr::softmax_normaliser{2}};
    const std::string name = std::to_string(rows) + " rows";

    BENCHMARK_ADVANCED("forward, " + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::row_gate_forward(executor, gate, {x.data(), {rows, features}}, of_rows);
        });
    };
    BENCHMARK_ADVANCED("weights of Arrow, two of 16, " + name)
    (Catch::Benchmark::Chronometer meter) {
        meter.measure(
            [&] { mhr::row_weights_forward(executor, of_rows.split(1, 1), arrow, of_weights); });
    };
    BENCHMARK_ADVANCED("backward, " + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::row_gate_backward(executor, gate, {x.data(), {rows, features}}, of_rows, gradients,
                                   scratch);
        });
    };
}
