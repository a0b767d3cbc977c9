#include "../support/catch.hpp"

#include <mhr/lora/output_mixed_lora.hpp>

#include "../support/layer.hpp"

TEST_CASE("LoRA with mixed outputs, 8 tasks, 32 sequences of 16 rows, 1024 x 8",
          "[output_mixed_lora]") {
    const auto modules = GENERATE(mhr::index_t{2}, mhr::index_t{8});
    mhr_bench::layer<float> layer({"", 1024, 1024, 8, 1, modules, 32, 16, 8});
    const mhr::batch batch = layer.batch();
    const mhr::routed_lora adapters = layer.adapters();
    mhr::owned_workspace memory(mhr::output_mixed_lora_state_size(batch, adapters));
    mhr::workspace rest = memory;
    const auto state = mhr::take_output_mixed_lora_state(rest, batch, adapters);
    mhr::owned_workspace scratch(mhr::output_mixed_lora_backward_workspace_size(batch, adapters));
    const std::string name = ", " + std::to_string(modules) + " modules";

    BENCHMARK_ADVANCED("forward" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure(
            [&] { mhr::output_mixed_lora_forward(batch, adapters, layer.x(), layer.y(), state); });
    };
    BENCHMARK_ADVANCED("backward" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::output_mixed_lora_backward(
                batch, adapters, layer.x(), layer.d_y(), state,
                {layer.d_x(), layer.d_a(), layer.d_b(), layer.d_weights()}, scratch);
        });
    };
}
