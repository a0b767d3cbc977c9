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

    const tensor_ref<3> logits_of_tasks(logits.data(), {1, 1, 2});
    const tensor_ref<3> weights_of_batch(weights.data(), {1, 1, 2});
    const routed_lora layer{
        {a.data(), {1, 2, 2, 1}}, {b.data(), {1, 2, 1, 1}}, weights_of_batch, 0.5};

    batch_plan plan;
    plan.assign_single_task(1);
    const batch rows{plan};
    owned_workspace memory(routed_lora_state_size(rows, layer));
    workspace taken = memory;
    const auto state = take_routed_lora_state(taken, rows, layer);

    router_forward({}, logits_of_tasks, plan.tasks(), routing_rule{sigmoid_gate{}},
                   weights_of_batch);
    routed_lora_forward(rows, layer, {x.data(), {1, 2}}, {y.data(), {1, 1}}, state);
    // Equal weights: A = ((2, 4) + (0, 2)) / 2 = (1, 3), B = (6 + 2) / 2 = 4,
    // x A = 1 + 6 = 7, y = 10 + 7 4 / 2.
    CHECK(weights == std::array<float, 2>{0.5F, 0.5F});
    CHECK(y[0] == 24);

    std::array<float, 2> d_x{};
    std::array<float, 4> d_a{};
    std::array<float, 2> d_b{};
    std::array<float, 2> d_weights{};
    std::array<float, 2> d_logits{};
    const tensor_ref<3> d_weights_of_batch(d_weights.data(), {1, 1, 2});
    owned_workspace scratch(routed_lora_backward_workspace_size(rows, layer));
    routed_lora_backward(rows, layer, {x.data(), {1, 2}}, {d_y.data(), {1, 1}}, state,
                         {{d_x.data(), {1, 2}},
                          {d_a.data(), {1, 2, 2, 1}},
                          {d_b.data(), {1, 2, 1, 1}},
                          d_weights_of_batch},
                         scratch);
    router_backward({}, logits_of_tasks, plan.tasks(), routing_rule{sigmoid_gate{}},
                    d_weights_of_batch, {d_logits.data(), {1, 1, 2}});
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
    logits_table table(1, 2);
    table.add_task(zero_row{});
    CHECK(table.add_task(copied_row{0}) == 1);

    batch_plan plan;
    plan.assign_single_task(2);
    std::array<float, 2> weights{};
    const batch rows{plan};
    const tensor_ref<3> weights_of_batch(weights.data(), {1, 1, 2});
    router_forward({}, table.view(), plan.tasks(),
                   routing_rule{shared_module_gate{sigmoid_gate{}}, softmax_normaliser{1}},
                   weights_of_batch);
    CHECK(weights == std::array<float, 2>{0, 1});

    const std::array<float, 2> scales{2, 3}; // two modules, one feature
    std::array<float, 2> x{4, 5};
    std::array<float, 1> state{};
    const routed_ia3 rescaled{{scales.data(), {1, 2, 1}}, weights_of_batch};
    routed_ia3_forward(rows, rescaled, {x.data(), {2, 1}}, {x.data(), {2, 1}},
                       {{state.data(), {1, 1}}});
    CHECK(x == std::array<float, 2>{12, 15});

    const std::array<float, 2> a{1, 2}, b{3, 4};
    const routed_lora layer{{a.data(), {1, 2, 1, 1}}, {b.data(), {1, 2, 1, 1}}, weights_of_batch};
    mixed_lora_cache cache(shape_of(layer.inventory()), 1);
    const lora mixed = cache.get(rows, layer, 7)[0];
    CHECK(mixed.a.as<float>()(0, 0) == 2);
    CHECK(mixed.b.as<float>()(0, 0) == 4);

    std::array<double, 4> similarity{};
    std::array<index_t, 2> order{};
    const std::array<float, 4> of_tasks{1, 0, 1, 1};
    const tensor_view<double, 2> similarity_view(similarity.data(), {2, 2});
    task_similarity({of_tasks.data(), {2, 1, 2}}, similarity_view);
    clustering_order(similarity_view, tensor_view<index_t, 1>(order.data(), {2}));
    CHECK(order == std::array<index_t, 2>{0, 1});
}
