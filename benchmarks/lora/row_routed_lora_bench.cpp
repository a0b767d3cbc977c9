#include "../support/catch.hpp"

#include <vector>

#include <mhr/lora/row_routed_lora.hpp>

#include "../support/layer.hpp"

namespace {

/// Each of so many rows is a task of its own, and 2 of the modules have a weight that is not 0, or
/// all have.
void time_rows(mhr::index_t rows, mhr::index_t modules, bool top_2) {
    mhr_bench::layer<float> layer({"", 2048, 2048, 16, 1, modules, rows, 1, rows});
    const mhr::batch batch = layer.batch();
    std::vector<float> weights(static_cast<std::size_t>(rows * modules), 0.3F);
    for (mhr::index_t i = 0; top_2 && i < rows * modules; ++i)
        if ((i % modules + i / modules) % (modules / 2) != 0)
            weights[static_cast<std::size_t>(i)] = 0;
    const mhr::row_routed_lora routed{layer.a(),
                                      layer.b(),
                                      {weights.data(), {rows, 1, modules}},
                                      layer.scale(),
                                      mhr::mixture::of_outputs};
    mhr::owned_workspace memory(mhr::row_routed_lora_state_size(batch, routed));
    mhr::workspace rest = memory;
    const auto state = mhr::take_row_routed_lora_state(rest, batch, routed);
    mhr::owned_workspace scratch(mhr::row_routed_lora_backward_workspace_size(batch, routed));
    const std::string name = ", " + std::to_string(rows) + " rows, " +
                             (top_2 ? "2 of " : "all of ") + std::to_string(modules);

    BENCHMARK_ADVANCED("forward" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure(
            [&] { mhr::row_routed_lora_forward(batch, routed, layer.x(), layer.y(), state); });
    };
    BENCHMARK_ADVANCED("backward" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::row_routed_lora_backward(batch, routed, layer.x(), layer.d_y(), state,
                                          {layer.d_x(), layer.d_a(), layer.d_b(), {}, true},
                                          scratch);
        });
    };
}

} // namespace

TEST_CASE("LoRA with weights of each row, 2048 x 16", "[row_routed_lora]") {
    const bool top_2 = GENERATE(false, true);
    time_rows(32, 16, top_2);
    time_rows(256, 16, top_2);
}
