#include "../support/catch.hpp"

#include "../support/layer.hpp"

// One ready adapter for all rows: what MHR-mu trains.
TEST_CASE("LoRA", "[lora]") {
    const auto [rows, rank] =
        GENERATE(table<mhr::index_t, mhr::index_t>({{1, 16}, {512, 16}, {512, 64}, {512, 5}}));
    const std::string sizes = ", " + std::to_string(rows) + " rows, 2048 x " + std::to_string(rank);
    mhr_bench::layer<float> layer({"", 2048, 2048, rank, 1, 1, 1, rows, 1});
    const auto& mixed = layer.state().mixed;
    const mhr::lora_list adapter(mixed.a, mixed.b, layer.scale());
    const mhr::lora_state state{layer.state().hidden};
    const mhr::batch batch = layer.batch();
    mhr_bench::aligned_array<float> d_a(2048 * rank), d_b(2048 * rank);
    const mhr::lora_matrices d_adapter{{d_a.data(), {2048, rank}}, {d_b.data(), {rank, 2048}}};
    mhr::owned_workspace scratch(mhr::lora_backward_workspace_size(batch, adapter));

    BENCHMARK_ADVANCED("forward" + sizes)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] { mhr::lora_forward(batch, adapter, layer.x(), layer.y(), state); });
    };
    BENCHMARK_ADVANCED("backward" + sizes)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::lora_backward(batch, adapter, layer.x(), layer.d_y(), state,
                               {layer.d_x(), d_adapter}, scratch);
        });
    };
    BENCHMARK_ADVANCED("backward to x" + sizes)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] {
            mhr::lora_backward(batch, adapter, layer.x(), layer.d_y(), state, {layer.d_x(), {}},
                               scratch);
        });
    };
}
