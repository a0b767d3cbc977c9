// The library without exceptions and run-time type information (-fno-exceptions -fno-rtti): numbers
// are right, and an error reaches the handler and then ends the program. The end is expected here:
// the program exits with 0 from the signal of std::abort.

#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <mhr/mhr.hpp>

static_assert(MHR_EXCEPTIONS == 0, "this test is to be compiled without exceptions");

namespace {

using namespace mhr;

bool all_good = true;

void expect(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "wrong: %s\n", what);
    all_good = false;
}

// One task, one head, two modules, two features to one, rank 1. The numbers are small, and exact
// in f32.
void check_numbers() {
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
    expect(weights == std::array<float, 2>{0.5F, 0.5F}, "weights");
    expect(y[0] == 24, "y");

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
    expect(d_x == std::array<float, 2>{2, 6}, "d_x");
    expect(d_a == std::array<float, 4>{1, 2, 1, 2}, "d_inventory.a");
    expect(d_b == std::array<float, 2>{1.75F, 1.75F}, "d_inventory.b");
    // (2, 4) (2, 4) + 7/2 6 = 41, (2, 4) (0, 2) + 7/2 2 = 15; their mean is 28, slopes are 1/4.
    expect(d_weights == std::array<float, 2>{41, 15}, "d_weights");
    expect(d_logits == std::array<float, 2>{3.25F, -3.25F}, "d_logits");
}

// The classes that own memory, and what else the library has beside LoRA.
void check_the_rest() {
    const serial_executor executor;
    logits_table<float> table(1, 2);
    table.add_task(zero_row{});
    expect(table.add_task(copied_row{0}) == 1, "the second task");

    batch_plan plan;
    plan.assign_single_task(2);
    std::array<float, 2> weights{};
    const tensor_view<float, 3> weights_view(weights.data(), {1, 1, 2});
    router_forward(executor, table.view(), plan.tasks(),
                   routing_rule{shared_module_gate{sigmoid_gate{}}, softmax_normaliser{1}},
                   weights_view);
    expect(weights == std::array<float, 2>{0, 1}, "weights of the shared module");

    const std::array<float, 2> scales{2, 3}; // two modules, one feature
    std::array<float, 2> x{4, 5};
    std::array<float, 1> state{};
    routed_ia3_forward(executor, plan, tensor_view<const float, 2>(x.data(), {2, 1}),
                       tensor_view<const float, 3>(scales.data(), {1, 2, 1}), weights_view,
                       tensor_view<float, 2>(x.data(), {2, 1}),
                       tensor_view<float, 2>(state.data(), {1, 1}));
    expect(x == std::array<float, 2>{12, 15}, "x rescaled in place");

    const std::array<float, 2> a{1, 2}, b{3, 4};
    const lora_inventory<const float> inventory{{a.data(), {1, 2, 1, 1}}, {b.data(), {1, 2, 1, 1}}};
    mixed_lora_cache<float> cache(shape_of(inventory), 1);
    const auto mixed = cache.get(executor, plan, weights_view, inventory, 7);
    expect(mixed.a(0, 0, 0) == 2 && mixed.b(0, 0, 0) == 4, "the mixed adapter");

    std::array<double, 4> similarity{};
    std::array<index_t, 2> order{};
    const std::array<float, 4> of_tasks{1, 0, 1, 1};
    const tensor_view<double, 2> similarity_view(similarity.data(), {2, 2});
    task_similarity(tensor_view<const float, 3>(of_tasks.data(), {2, 1, 2}), similarity_view);
    clustering_order(similarity_view, tensor_view<index_t, 1>(order.data(), {2}));
    expect(order == std::array<index_t, 2>{0, 1}, "the order of the tasks");
}

int handler_calls = 0;

void handler_that_returns(const char* message) {
    ++handler_calls;
    expect(std::strcmp(message,
                       "initialise_logits: logits: expected memory, got a null pointer with "
                       "extents [2, 3, 4]") == 0,
           message);
}

extern "C" void on_abort(int) {
    expect(handler_calls == 1, "the handler was to be called once before the program is aborted");
    std::_Exit(all_good ? EXIT_SUCCESS : EXIT_FAILURE);
}

} // namespace

int main() {
    check_numbers();
    check_the_rest();

    expect(set_error_handler(handler_that_returns) == nullptr, "there was no handler before");
    std::signal(SIGABRT, on_abort);
    initialise_logits(1, tensor_view<float, 3>(nullptr, {2, 3, 4}));
    std::fprintf(stderr, "wrong: the program went on after an error\n");
    return EXIT_FAILURE;
}
