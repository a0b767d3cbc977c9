// The parts of the library together, without exceptions and run-time type information.

#include <array>

#include <doctest/doctest.h>

#include <mhr/mhr.hpp>

static_assert(MHR_EXCEPTIONS == 0, "this test is to be compiled without exceptions");

#if defined(__GXX_RTTI) || defined(__cpp_rtti)
#error "this test is to be compiled without run-time type information"
#endif

using namespace mhr;

// One task, one head, two modules, two features to one, rank 1. The numbers are small, and exact
// in f32.
TEST_CASE("routed LoRA, forward and backward, is right without exceptions") {
    std::array<float, 2> logits{0, 0};
    std::array<float, 4> a{2, 4, 0, 2};
    std::array<float, 2> b{6, 2};
    const std::array<float, 2> x{1, 2};
    const std::array<float, 1> d_y{1};
    std::array<float, 2> weights{};
    std::array<float, 1> y{10};

    const tensor_view<float, 3> logits_view(logits.data(), {1, 1, 2});
    const tensor_view<float, 3> weights_view(weights.data(), {1, 1, 2});
    const tensor_view<const float, 2> x_view(x.data(), {1, 2});
    const lora_inventory<float> inventory{{a.data(), {1, 2, 2, 1}}, {b.data(), {1, 2, 1, 1}}};
    const double scale = 0.5;
    const serial_executor executor;

    batch_plan plan;
    plan.assign_single_task(1);
    owned_workspace memory(routed_lora_state_size<float>(plan, shape_of(inventory)));
    workspace taken = memory;
    const auto state = take_routed_lora_state<float>(taken, plan, shape_of(inventory));

    router_forward(executor, logits_view, plan.tasks(), routing_rule{sigmoid_gate{}}, weights_view);
    routed_lora_forward(executor, plan, x_view, inventory, weights_view, scale,
                        tensor_view<float, 2>(y.data(), {1, 1}), state);
    // Equal weights: A = ((2, 4) + (0, 2)) / 2 = (1, 3), B = (6 + 2) / 2 = 4,
    // x A = 1 + 6 = 7, y = 10 + 7 4 / 2.
    CHECK(weights == std::array<float, 2>{0.5F, 0.5F});
    CHECK(y[0] == 24);

    std::array<float, 2> d_x{};
    std::array<float, 4> d_a{};
    std::array<float, 2> d_b{};
    std::array<float, 2> d_weights{};
    std::array<float, 2> d_logits{};
    const tensor_view<float, 3> d_weights_view(d_weights.data(), {1, 1, 2});
    owned_workspace scratch(routed_lora_backward_workspace_size<float>(plan, shape_of(inventory)));
    routed_lora_backward(
        executor, plan, x_view, inventory, weights_view, scale, state,
        tensor_view<const float, 2>(d_y.data(), {1, 1}), tensor_view<float, 2>(d_x.data(), {1, 2}),
        lora_inventory<float>{{d_a.data(), {1, 2, 2, 1}}, {d_b.data(), {1, 2, 1, 1}}},
        d_weights_view, scratch);
    router_backward(executor, logits_view, plan.tasks(), routing_rule{sigmoid_gate{}},
                    d_weights_view, tensor_view<float, 3>(d_logits.data(), {1, 1, 2}));
    // d_hidden = 4 / 2 = 2: d_x = 2 A, d_A = 2 x = (2, 4), d_B = 7 / 2, half of each for a module.
    CHECK(d_x == std::array<float, 2>{2, 6});
    CHECK(d_a == std::array<float, 4>{1, 2, 1, 2});
    CHECK(d_b == std::array<float, 2>{1.75F, 1.75F});
    // (2, 4) (2, 4) + 7/2 6 = 41, (2, 4) (0, 2) + 7/2 2 = 15; their mean is 28, slopes are 1/4.
    CHECK(d_weights == std::array<float, 2>{41, 15});
    CHECK(d_logits == std::array<float, 2>{3.25F, -3.25F});
}

// The classes that own memory, and what else the library has beside LoRA.
TEST_CASE("so are the classes that own memory, and what else there is beside LoRA") {
    const serial_executor executor;
    logits_table<float> table(1, 2);
    table.add_task(zero_row{});
    CHECK(table.add_task(copied_row{0}) == 1);

    batch_plan plan;
    plan.assign_single_task(2);
    std::array<float, 2> weights{};
    const tensor_view<float, 3> weights_view(weights.data(), {1, 1, 2});
    router_forward(executor, table.view(), plan.tasks(),
                   routing_rule{shared_module_gate{sigmoid_gate{}}, softmax_normaliser{1}},
                   weights_view);
    CHECK(weights == std::array<float, 2>{0, 1});

    const std::array<float, 2> scales{2, 3}; // two modules, one feature
    std::array<float, 2> x{4, 5};
    std::array<float, 1> state{};
    routed_ia3_forward(executor, plan, tensor_view<const float, 2>(x.data(), {2, 1}),
                       tensor_view<const float, 3>(scales.data(), {1, 2, 1}), weights_view,
                       tensor_view<float, 2>(x.data(), {2, 1}),
                       tensor_view<float, 2>(state.data(), {1, 1}));
    CHECK(x == std::array<float, 2>{12, 15});

    const std::array<float, 2> a{1, 2}, b{3, 4};
    const lora_inventory<const float> inventory{{a.data(), {1, 2, 1, 1}}, {b.data(), {1, 2, 1, 1}}};
    mixed_lora_cache<float> cache(shape_of(inventory), 1);
    const auto mixed = cache.get(executor, plan, weights_view, inventory, 7);
    CHECK(mixed.a(0, 0, 0) == 2);
    CHECK(mixed.b(0, 0, 0) == 4);

    std::array<double, 4> similarity{};
    std::array<index_t, 2> order{};
    const std::array<float, 4> of_tasks{1, 0, 1, 1};
    const tensor_view<double, 2> similarity_view(similarity.data(), {2, 2});
    task_similarity(tensor_view<const float, 3>(of_tasks.data(), {2, 1, 2}), similarity_view);
    clustering_order(similarity_view, tensor_view<index_t, 1>(order.data(), {2}));
    CHECK(order == std::array<index_t, 2>{0, 1});
}
