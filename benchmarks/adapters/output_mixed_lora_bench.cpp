#include "../support/catch.hpp"

#include "../support/layer.hpp"

TEST_CASE("LoRA with mixed outputs, 8 tasks, 32 sequences of 16 rows, 1024 x 8",
          "[output_mixed_lora]") {
    const auto modules = GENERATE(mhr::index_t{2}, mhr::index_t{8});
    mhr_bench::layer<float> layer({"", 1024, 1024, 8, 1, modules, 32, 16, 8});
    const auto& plan = layer.plan();
    const auto shape = mhr::shape_of(layer.inventory());
    mhr_bench::aligned_array<float> memory(plan.rows() * modules * 8);
    const mhr::tensor_view<float, 3> hidden(memory.data(), {plan.rows(), modules, 8});
    mhr::owned_workspace scratch(
        mhr::output_mixed_lora_backward_workspace_size<float>(plan, shape));
    const mhr::serial_executor executor;
    const std::string name = ", " + std::to_string(modules) + " modules";

    BENCHMARK_ADVANCED("forward" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::output_mixed_lora_forward(executor, plan, layer.x(), layer.inventory(),
                                           layer.weights(), layer.scale(), layer.y(), hidden);
        });
    };
    BENCHMARK_ADVANCED("backward" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::output_mixed_lora_backward(
                executor, plan, layer.x(), layer.inventory(), layer.weights(), layer.scale(),
                hidden, layer.d_y(), layer.d_x(), layer.d_inventory(), layer.d_weights(), scratch);
        });
    };
}
