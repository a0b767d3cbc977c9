#include <catch2/catch.hpp>

#include "../support/layer.hpp"

TEST_CASE("mixing an inventory, 8 tasks, 8 heads, 8 modules, 2048 x 16", "[mix]") {
    mhr_bench::layer layer({"batch", 2048, 2048, 16, 8, 8, 8, 1, 8});
    const auto inventory = layer.inventory();
    const auto d_inventory = layer.d_inventory();
    std::vector<float> mixed(8 * 2048 * 16, 1.0F);
    const mhr::tensor_view<float, 4> blocks(mixed.data(), {8, 8, 2048 / 8, 16});
    const mhr::serial_executor executor;

    BENCHMARK("forward") {
        mhr::mix_forward(executor, layer.weights(), inventory.a, blocks);
        return mixed[0];
    };
    BENCHMARK("backward to modules and weights") {
        mhr::mix_backward(executor, layer.weights(), inventory.a, blocks, d_inventory.a,
                          layer.d_weights());
        return d_inventory.a.data()[0];
    };
    BENCHMARK("backward to weights") {
        mhr::mix_backward(executor, layer.weights(), inventory.a, blocks,
                          mhr::tensor_view<float, 4>{}, layer.d_weights());
        return layer.d_weights().data()[0];
    };
}
