#include <array>
#include <cstddef>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/module_backward.hpp>

using namespace mhr;

TEST_CASE("module_scratch: as much as is taken, of the type of sums") {
    batch_plan plan;
    plan.assign_single_task(5);
    const lora_shape shape{2, 3, 8, 10, 4};
    workspace meter;
    (void)lora_details::module_scratch::take(meter, {plan}, shape, element_type::f64);
    std::vector<std::byte> memory(meter.used());
    workspace space(memory.data(), memory.size());
    const auto scratch =
        lora_details::module_scratch::take(space, {plan}, shape, element_type::f64);
    CHECK(space.used() == meter.used());
    CHECK(scratch.u.extents() == std::array<index_t, 4>{5, 2, 3, 4});
    CHECK(scratch.other.extents() == scratch.u.extents());
    CHECK(scratch.d_hidden.extents() == std::array<index_t, 2>{5, 4});
    CHECK(scratch.d_weights.extents() == std::array<index_t, 3>{5, 2, 3});
    CHECK(scratch.u.type() == element_type::f64);
}

TEST_CASE("weigh_rows: the gradient of a weight, and what the outer products take") {
    batch_plan plan;
    plan.assign_single_task(1);
    // One row, one head, two modules of rank 2, the second of weight 0.
    std::vector<float> weights{3, 0}, products{1, 2, 90, 90}, hidden{5, 7};
    std::vector<float> u{10, 20, 30, 40}, other{0, 0, 4, 6}, d_hidden{11, 13}, d_weights{-1, -1};
    const lora_details::module_layer layer{
        {},
        1,
        {tensor_ref<3>(weights.data(), {1, 1, 2}), tensor_ref<4>(products.data(), {1, 1, 2, 2})},
        tensor_ref<2>(hidden.data(), {1, 2})};
    const lora_details::module_scratch scratch{
        tensor_ref<4>(u.data(), {1, 1, 2, 2}), tensor_ref<4>(other.data(), {1, 1, 2, 2}),
        tensor_ref<2>(d_hidden.data(), {1, 2}), tensor_ref<3>(d_weights.data(), {1, 1, 2})};
    lora_details::weigh_rows<float>({plan}, layer, scratch, true, true);
    // 5 10 + 7 20 + 11 1 + 13 2, and 5 30 + 7 40 + 11 4 + 13 6
    CHECK(d_weights == std::vector<float>{227, 552});
    CHECK(u == std::vector<float>{33, 39, 0, 0});
    CHECK(other == std::vector<float>{15, 21, 0, 0});
}
