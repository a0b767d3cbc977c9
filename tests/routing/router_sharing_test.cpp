// One router for a whole model, for a block, or for a layer: what README and router.hpp promise of
// shared weights and gradients, on a model of three layers that feed each other.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/batch/batch.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/routing/router.hpp>

#include "support/comparison.hpp"
#include "support/gradient_check.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr index_t heads = 2;
constexpr index_t modules = 3;
constexpr index_t table_tasks = 5;
constexpr index_t rank = 2;
constexpr element_type sums = element_type::f64;
constexpr std::size_t layers = 3;
constexpr std::array<index_t, layers + 1> features{6, 4, 8, 2};
constexpr double scale = 0.7;

// Tasks that repeat, rows of no task, and tasks of the table (1 and 4) that are absent.
const std::array<std::int64_t, 8> task_of_row{3, 0, no_task, 2, 3, 0, 3, no_task};

struct router {
    tensor<double, 3> logits{{table_tasks, heads, modules}};
    tensor<double, 3> d_logits{{table_tasks, heads, modules}};
    tensor<double, 3> weights, d_weights;
};

struct layer {
    std::size_t router;
    tensor<double, 4> a, b;
    tensor<double, 2> bias; // what the frozen layer of the host adds
    tensor<double, 2> x, y, d_x;
    owned_workspace state_memory, scratch;
};

struct model {
    batch_plan plan;
    std::vector<router> routers;
    std::vector<layer> stack;
    tensor<double, 2> d_y;

    /// `router_of_layer` counts from 0.
    explicit model(const std::array<std::size_t, layers>& router_of_layer) {
        const auto rows = static_cast<index_t>(task_of_row.size());
        plan.assign_rows(tensor_view<const std::int64_t, 1>(task_of_row.data(), {rows}));
        random_source random(137);
        for (std::size_t i = 0; i < layers; ++i) {
            const index_t in = features[i];
            const index_t out = features[i + 1];
            layer l{router_of_layer[i],
                    tensor<double, 4>({heads, modules, in / heads, rank}),
                    tensor<double, 4>({heads, modules, rank, out / heads}),
                    tensor<double, 2>({rows, out}),
                    tensor<double, 2>({rows, in}),
                    tensor<double, 2>({rows, out}),
                    tensor<double, 2>({rows, in}),
                    {},
                    {}};
            random.fill(l.a.view());
            random.fill(l.b.view());
            random.fill(l.bias.view());
            random.fill(l.x.view());
            stack.push_back(std::move(l));
        }
        d_y = tensor<double, 2>(stack.back().y.extents());
        random.fill(d_y.view());
        const auto number = *std::max_element(router_of_layer.begin(), router_of_layer.end()) + 1;
        for (std::size_t i = 0; i < number; ++i) {
            router r;
            random_source(139).fill(r.logits.view(), 2); // the same for all
            r.weights = tensor<double, 3>({plan.entries(), heads, modules});
            r.d_weights = r.weights;
            routers.push_back(std::move(r));
        }
        for (layer& l : stack) {
            l.state_memory.reserve(routed_lora_state_size({plan}, adapter_of(l), sums));
            l.scratch.reserve(routed_lora_backward_workspace_size({plan}, adapter_of(l), sums));
        }
    }

    routed_lora adapter_of(layer& l) {
        return {l.a.view(), l.b.view(), routers[l.router].weights.view(), scale};
    }
    routed_lora_state state_of(layer& l) {
        workspace memory = l.state_memory;
        return take_routed_lora_state(memory, {plan}, adapter_of(l), sums);
    }
    static auto rule() { return routing_rule{sigmoid_gate{}, sum_normaliser{}, 0.8}; }

    void forward(executor_ref executor = serial_executor{}) {
        for (router& r : routers)
            router_forward(executor, r.logits.const_view(), plan.tasks(), rule(), r.weights.view());
        for (std::size_t i = 0; i < layers; ++i) {
            layer& l = stack[i];
            if (i > 0) l.x = stack[i - 1].y;
            l.y = l.bias;
            routed_lora_forward({plan, executor}, adapter_of(l), l.x.view(), l.y.view(),
                                state_of(l));
        }
    }

    /// The layers' part, from the last to the first: each adds to what `d_weights_of(layer)` gives.
    template <class F>
    void layers_backward(executor_ref executor, F&& d_weights_of) {
        tensor<double, 2> d = d_y;
        for (std::size_t i = layers; i-- > 0;) {
            layer& l = stack[i];
            l.d_x = tensor<double, 2>(l.x.extents());
            // Trained is the router alone, as in MHR-z: nothing for the inventory.
            routed_lora_backward({plan, executor}, adapter_of(l), l.x.view(), d.view(), state_of(l),
                                 {l.d_x.view(), {}, {}, d_weights_of(i)}, l.scratch);
            d = l.d_x;
        }
    }

    /// Every layer adds to the d_weights of its router, whose backward runs once.
    void backward(executor_ref executor = serial_executor{}) {
        for (router& r : routers)
            std::fill(r.d_weights.values().begin(), r.d_weights.values().end(), 0.0);
        layers_backward(executor,
                        [&](std::size_t i) { return routers[stack[i].router].d_weights.view(); });
        for (router& r : routers)
            router_backward(executor, r.logits.const_view(), plan.tasks(), rule(),
                            r.d_weights.const_view(), r.d_logits.view());
    }

    /// Every layer by itself, with a backward of the router for each.
    void backward_one_by_one() {
        std::vector<tensor<double, 3>> d_weights(layers, routers.front().weights);
        for (auto& d : d_weights)
            std::fill(d.values().begin(), d.values().end(), 0.0);
        layers_backward(serial_executor{}, [&](std::size_t i) { return d_weights[i].view(); });
        for (std::size_t i = 0; i < layers; ++i) {
            router& r = routers[stack[i].router];
            router_backward(serial_executor{}, r.logits.const_view(), plan.tasks(), rule(),
                            d_weights[i].const_view(), r.d_logits.view());
        }
    }
};

const std::array<std::size_t, layers> of_model{0, 0, 0};
const std::array<std::size_t, layers> of_blocks{0, 0, 1};
const std::array<std::size_t, layers> of_layers{0, 1, 2};

comparison nearly(const tensor<double, 3>& got, const tensor<double, 3>& want, double error) {
    tensor<double, 3> ones(want.extents());
    std::fill(ones.values().begin(), ones.values().end(), 1.0);
    return compare(got.view(), want.view(), ones.view(), {1, error, 1});
}

} // namespace

TEST_CASE("the gradient of shared routers is that of the whole model, by finite differences") {
    for (const auto& sharing : {of_model, of_blocks, of_layers}) {
        model m(sharing);
        CAPTURE(m.routers.size());
        m.forward();
        m.backward();
        for (std::size_t i = 0; i < m.routers.size(); ++i) {
            CAPTURE(i);
            const auto differences = central_difference_gradient(
                [&] {
                    m.forward();
                    return contract<double>(m.stack.back().y.view(), m.d_y.view());
                },
                m.routers[i].logits.view());
            CHECK(nearly(m.routers[i].d_logits, differences, 1e-9));
            CHECK(contract<double>(differences.view(), differences.view()) > 1e-5);
            for (index_t absent : {1, 4})
                for (index_t h = 0; h < heads; ++h)
                    CHECK(m.routers[i].d_logits(absent, h, 0) == 0);
            m.routers[i].d_logits(3, 1, 2) += 1e-7;
            CHECK_FALSE(nearly(m.routers[i].d_logits, differences, 1e-9));
        }
    }
}

TEST_CASE("one backward of a shared router equals the sum of those of its layers") {
    for (const auto& sharing : {of_model, of_blocks, of_layers}) {
        model together(sharing);
        model apart(sharing);
        together.forward();
        together.backward();
        apart.forward();
        apart.backward_one_by_one();
        for (std::size_t i = 0; i < together.routers.size(); ++i)
            CHECK(nearly(together.routers[i].d_logits, apart.routers[i].d_logits, 1e-14));
    }
}

TEST_CASE("equal routers compute what a shared one does, and its gradient is the sum of theirs") {
    model shared(of_model);
    shared.forward();
    shared.backward();
    for (const auto& sharing : {of_blocks, of_layers}) {
        model own(sharing);
        own.forward();
        own.backward();
        CHECK(compare_bitwise(own.stack.back().y.view(), shared.stack.back().y.view()));
        CHECK(compare_bitwise(own.stack.front().d_x.view(), shared.stack.front().d_x.view()));
        tensor<double, 3> sum(shared.routers[0].d_logits.extents());
        for (const router& r : own.routers) {
            for (std::size_t i = 0; i < sum.values().size(); ++i)
                sum.values()[i] += r.d_logits.values()[i];
            CHECK_FALSE(nearly(r.d_logits, shared.routers[0].d_logits, 1e-9));
        }
        CHECK(nearly(sum, shared.routers[0].d_logits, 1e-14));
    }
}

TEST_CASE("a model with shared routers gives the same bits on every executor") {
    for (const auto& sharing : {of_model, of_blocks}) {
        model want(sharing);
        want.forward();
        want.backward();
        for_each_executor([&](const executor_ref& executor, const std::string& name) {
            CAPTURE(name);
            model got(sharing);
            got.forward(executor);
            got.backward(executor);
            CHECK(compare_bitwise(got.stack.back().y.view(), want.stack.back().y.view()));
            for (std::size_t i = 0; i < want.routers.size(); ++i)
                CHECK(compare_bitwise(got.routers[i].d_logits.view(),
                                      want.routers[i].d_logits.view()));
        });
    }
}
