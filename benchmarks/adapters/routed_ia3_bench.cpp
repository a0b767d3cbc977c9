#include "../support/catch.hpp"

#include "../support/layer.hpp"

TEST_CASE("routed (IA)3, 8 tasks, 32 sequences of 64 rows, 8 modules, 2048", "[routed_ia3]") {
    const auto heads = GENERATE(mhr::index_t{1}, mhr::index_t{64});
    // Of the layer's arrays, those of the batch; and of its inventory as much as one needs.
    mhr_bench::layer<float> layer({"", 2048, 2048, 1, heads, 8, 32, 64, 8});
    const auto& plan = layer.plan();
    const auto vectors = [&](const mhr::lora_inventory<float>& of) {
        return mhr::tensor_view<float, 3>(of.b.data(), {heads, 8, 2048 / heads});
    };
    mhr_bench::aligned_array<float> memory(plan.entries() * 2048);
    const mhr::tensor_view<float, 2> state(memory.data(), {plan.entries(), 2048});
    mhr::owned_workspace scratch(mhr::routed_ia3_backward_workspace_size<float>(plan, 2048));
    const mhr::serial_executor executor;
    const std::string name = ", " + std::to_string(heads) + " heads";

    BENCHMARK_ADVANCED("forward" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::routed_ia3_forward(executor, plan, layer.x(), vectors(layer.inventory()),
                                    layer.weights(), layer.y(), state);
        });
    };
    BENCHMARK_ADVANCED("backward" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::routed_ia3_backward(executor, plan, layer.x(), vectors(layer.inventory()),
                                     layer.weights(), state, layer.d_y(), layer.d_x(),
                                     vectors(layer.d_inventory()), layer.d_weights(), scratch);
        });
    };
}
