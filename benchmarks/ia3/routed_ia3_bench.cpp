#include "../support/catch.hpp"

#include <mhr/ia3/routed_ia3.hpp>

#include "../support/layer.hpp"

TEST_CASE("routed (IA)3, 8 tasks, 32 sequences of 64 rows, 8 modules, 2048", "[routed_ia3]") {
    const auto heads = GENERATE(mhr::index_t{1}, mhr::index_t{64});
    // The layer's arrays are those of the batch, with as much of its inventory as one needs.
    mhr_bench::layer<float> layer({"", 2048, 2048, 1, heads, 8, 32, 64, 8});
    const mhr::batch batch = layer.batch();
    const mhr::routed_ia3 adapters{layer.b().slice(2, 0), layer.weights()};
    mhr::owned_workspace memory(mhr::routed_ia3_state_size(batch, adapters));
    mhr::workspace rest = memory;
    const auto state = mhr::take_routed_ia3_state(rest, batch, adapters);
    mhr::owned_workspace scratch(mhr::routed_ia3_backward_workspace_size(batch, adapters));
    const std::string name = ", " + std::to_string(heads) + " heads";

    BENCHMARK_ADVANCED("forward" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure(
            [&] { mhr::routed_ia3_forward(batch, adapters, layer.x(), layer.y(), state); });
    };
    BENCHMARK_ADVANCED("backward" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::routed_ia3_backward(batch, adapters, layer.x(), layer.d_y(), state,
                                     {layer.d_x(), layer.d_b().slice(2, 0), layer.d_weights()},
                                     scratch);
        });
    };
}
