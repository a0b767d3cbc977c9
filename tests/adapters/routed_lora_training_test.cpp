// Router, mixing and LoRA together, as a host trains them.

#include <algorithm>
#include <complex>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/routed_lora.hpp>
#include <mhr/reference/routing.hpp>
#include <mhr/routing/router.hpp>

#include "support/allocation_counter.hpp"
#include "support/comparison.hpp"
#include "support/gradient_check.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_problem.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using complex = std::complex<double>;
using storage = routed_storage<double, double, double, double>;
using problem = routed_problem<storage>;

constexpr index_t heads = 2;
constexpr index_t modules = 3;
constexpr double temperature = 0.75;

/// Layers that share one router, on one batch.
struct model {
    batch_plan plan;
    tensor<std::int64_t, 1> tasks; // of the entries
    tensor<double, 3> logits, d_logits, weights, d_weights;
    tensor<double, 3> uniforms; // [entries, heads, modules], or absent: no noise
    std::vector<std::unique_ptr<problem>> layers;

    model(const batch_plan& batch, const std::vector<std::int64_t>& tasks_of_entries, bool noise,
          index_t number_of_layers)
        : plan(batch), tasks({static_cast<index_t>(tasks_of_entries.size())}),
          logits({6, heads, modules}), d_logits(logits.extents()),
          weights({plan.entries(), heads, modules}), d_weights(weights.extents()) {
        tasks.values() = tasks_of_entries;
        random_source random(41);
        random.fill(logits.view(), 2);
        random.fill(d_logits.view());
        if (noise) uniforms = tensor<double, 3>(weights.extents());
        random.fill(uniforms.view(), 0.01, 0.99);
        for (index_t i = 0; i < number_of_layers; ++i) {
            const routed_sizes sizes{plan.rows(), 1, heads, modules, 3 - i, 2 + i, 2 + i};
            layers.push_back(std::make_unique<problem>(sizes, plan));
            layers.back()->scale = 0.5 - 0.2 * static_cast<double>(i);
        }
    }

    template <class F>
    void with_rule(F&& f) const {
        if (uniforms.values().empty())
            f(routing_rule{sigmoid_gate{}});
        else
            f(routing_rule{gumbel_sigmoid_gate{uniforms.view(), temperature}});
    }

    void forward(executor_ref executor) {
        with_rule([&](const auto& rule) {
            router_forward(executor, logits.const_view(), tasks.const_view(), rule, weights.view());
        });
        for (auto& layer : layers)
            routed_lora_forward(executor, plan, layer->x.view(), layer->inventory(),
                                weights.const_view(), layer->scale, layer->y.view(),
                                layer->state());
    }

    /// All layers add to one d_weights, then the router's backward runs once.
    void backward(executor_ref executor, const std::vector<tensor<double, 2>>& d_y) {
        for (std::size_t i = 0; i < layers.size(); ++i)
            routed_lora_backward(executor, plan, layers[i]->x.view(), layers[i]->inventory(),
                                 weights.const_view(), layers[i]->scale, layers[i]->state(),
                                 d_y[i].view(), layers[i]->d_x.view(), layers[i]->d_inventory(),
                                 d_weights.view(), layers[i]->scratch());
        with_rule([&](const auto& rule) {
            router_backward(executor, logits.const_view(), tasks.const_view(), rule,
                            d_weights.const_view(), d_logits.view());
        });
    }
};

/// The same with the oracles, in complex numbers: sum(y d_y) of all layers.
struct oracle_model {
    tensor<index_t, 1> tasks;
    tensor<complex, 3> logits, uniforms;
    std::vector<routed_oracle<complex>> layers;
    std::vector<tensor<complex, 2>> d_y;

    explicit oracle_model(model& m, const std::vector<tensor<double, 2>>& gradients)
        : tasks(copy_as_index(m.tasks)), logits(in_complex(m.logits.view())),
          uniforms(in_complex(m.uniforms.view())) {
        for (std::size_t i = 0; i < m.layers.size(); ++i) {
            problem& layer = *m.layers[i];
            layers.push_back({entry_of_row(m.plan), complex(layer.scale),
                              in_complex(layer.x.view()), in_complex(layer.a.view()),
                              in_complex(layer.b.view()), in_complex(m.weights.view())});
            d_y.push_back(in_complex(gradients[i].view()));
        }
    }

    complex loss() {
        tensor<complex, 3> weights(layers.front().weights.extents());
        reference::routing_options<complex> options;
        options.uniforms = uniforms.view();
        options.temperature = temperature;
        reference::router_forward<complex>(logits.view(), tasks.view(), options, weights.view());
        complex sum = 0;
        for (std::size_t i = 0; i < layers.size(); ++i) {
            layers[i].weights = weights;
            tensor<complex, 2> y(d_y[i].extents());
            layers[i].forward(y);
            sum += contract<complex>(y.view(), d_y[i].view());
        }
        return sum;
    }

    template <std::size_t Rank>
    tensor<double, Rank> gradient_of(tensor<complex, Rank>& variable) {
        return complex_step_gradient([&] { return loss(); }, variable.view());
    }

  private:
    template <class T, std::size_t Rank>
    static tensor<complex, Rank> in_complex(const tensor_view<T, Rank>& view) {
        tensor<complex, Rank> result(view.extents());
        transform(view, result.view(), [](double value) { return complex(value); });
        return result;
    }
    static tensor<index_t, 1> copy_as_index(const tensor<std::int64_t, 1>& ids) {
        tensor<index_t, 1> result(ids.extents());
        transform(ids.view(), result.view(), [](std::int64_t id) { return index_t{id}; });
        return result;
    }
};

batch_plan sequences(const std::vector<std::int64_t>& labels, const std::vector<index_t>& rows) {
    const auto n = static_cast<index_t>(labels.size());
    batch_plan plan;
    plan.assign_sequences(tensor_view<const std::int64_t, 1>(labels.data(), {n}),
                          tensor_view<const index_t, 1>(rows.data(), {n}));
    return plan;
}

/// The gradient that was there before, and what the oracle adds to it.
template <std::size_t Rank>
tensor<double, Rank> sum_of(const tensor<double, Rank>& before, const tensor<double, Rank>& added) {
    auto sum = before;
    for (std::size_t i = 0; i < sum.values().size(); ++i)
        sum.values()[i] += added.values()[i];
    return sum;
}

/// Everything of order 1 or a few hundred terms of it: errors are some roundings of that.
template <std::size_t Rank>
comparison agree(const tensor_view<double, Rank>& got, const tensor<double, Rank>& want) {
    auto magnitude = want;
    for (double& value : magnitude.values())
        value = 1;
    return compare(got, want.view(), magnitude.view(), within<double>(100));
}

void check_against_complex_step(model& m) {
    std::vector<tensor<double, 2>> d_y;
    std::vector<routed_expectation<double>> before;
    for (auto& layer : m.layers) {
        d_y.push_back(copy_as<double>(layer->y.view()));
        before.push_back({d_y.back(),
                          copy_as<double>(layer->d_x.view()),
                          copy_as<double>(layer->d_a.view()),
                          copy_as<double>(layer->d_b.view()),
                          {}});
    }
    const auto d_logits = m.d_logits;
    m.forward(serial_executor{});
    m.backward(serial_executor{}, d_y);

    oracle_model oracle(m, d_y);
    CHECK(agree(m.d_logits.view(), sum_of(d_logits, oracle.gradient_of(oracle.logits))));
    for (std::size_t i = 0; i < m.layers.size(); ++i) {
        CAPTURE(i);
        auto& layer = *m.layers[i];
        auto& of_oracle = oracle.layers[i];
        CHECK(agree(layer.d_x.view(), sum_of(before[i].d_x, oracle.gradient_of(of_oracle.x))));
        CHECK(agree(layer.d_a.view(), sum_of(before[i].d_a, oracle.gradient_of(of_oracle.a))));
        CHECK(agree(layer.d_b.view(), sum_of(before[i].d_b, oracle.gradient_of(of_oracle.b))));
        CHECK(layer.intact());
    }
}

// Tasks that repeat, one sequence of no task, and a task of the table that is absent.
const std::vector<std::int64_t> tasks_of_sequences{3, 0, 3, no_task, 5, 3, 0};
const std::vector<index_t> rows_of_sequences{2, 1, 3, 2, 1, 1, 2};

model grouped_by_task(index_t layers) {
    return {sequences(tasks_of_sequences, rows_of_sequences), {0, 3, 5}, false, layers};
}

/// As PEFT does it: noise for every sequence, each an entry of its own.
model noise_for_every_sequence(index_t layers) {
    return {sequences({0, 1, 2, no_task, 3, 4, 5}, rows_of_sequences),
            {3, 0, 3, 5, 3, 0},
            true,
            layers};
}

} // namespace

TEST_CASE("gradients from the output to the logits agree with complex steps") {
    for (index_t layers : {1, 2, 3}) {
        CAPTURE(layers);
        auto plain = grouped_by_task(layers);
        check_against_complex_step(plain);
        auto noisy = noise_for_every_sequence(layers);
        check_against_complex_step(noisy);
    }
}

TEST_CASE("sequences by themselves or grouped by task: the same gradients") {
    model grouped = grouped_by_task(2);
    model apart(sequences({0, 1, 2, no_task, 3, 4, 5}, rows_of_sequences), {3, 0, 3, 5, 3, 0},
                false, 2);
    std::vector<tensor<double, 2>> d_y;
    for (auto& layer : grouped.layers)
        d_y.push_back(copy_as<double>(layer->y.view()));
    for (model* m : {&grouped, &apart}) {
        m->forward(serial_executor{});
        m->backward(serial_executor{}, d_y);
    }
    CHECK(agree(apart.d_logits.view(), grouped.d_logits));
    for (std::size_t i = 0; i < 2; ++i) {
        CHECK(compare_bitwise(apart.layers[i]->y.view(), grouped.layers[i]->y.view()));
        CHECK(compare_bitwise(apart.layers[i]->d_x.view(), grouped.layers[i]->d_x.view()));
        CHECK(agree(apart.layers[i]->d_a.view(), copy_as<double>(grouped.layers[i]->d_a.view())));
        CHECK(agree(apart.layers[i]->d_b.view(), copy_as<double>(grouped.layers[i]->d_b.view())));
    }
}

TEST_CASE("a step of training gives the same bits on every executor") {
    model want = noise_for_every_sequence(2);
    std::vector<tensor<double, 2>> d_y;
    for (auto& layer : want.layers)
        d_y.push_back(copy_as<double>(layer->y.view()));
    want.forward(serial_executor{});
    want.backward(serial_executor{}, d_y);
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        model m = noise_for_every_sequence(2);
        m.forward(executor);
        m.backward(executor, d_y);
        CHECK(compare_bitwise(m.d_logits.view(), want.d_logits.view()));
        for (std::size_t i = 0; i < 2; ++i) {
            CHECK(compare_bitwise(m.layers[i]->y.view(), want.layers[i]->y.view()));
            CHECK(compare_bitwise(m.layers[i]->d_x.view(), want.layers[i]->d_x.view()));
            CHECK(compare_bitwise(m.layers[i]->d_a.view(), want.layers[i]->d_a.view()));
            CHECK(compare_bitwise(m.layers[i]->d_b.view(), want.layers[i]->d_b.view()));
        }
    });
}

TEST_CASE("tasks that are absent from the batch get no gradient at all") {
    model m = grouped_by_task(1);
    const auto before = m.d_logits;
    const auto d_y = std::vector<tensor<double, 2>>{copy_as<double>(m.layers[0]->y.view())};
    m.forward(serial_executor{});
    m.backward(serial_executor{}, d_y);
    for (index_t task : {1, 2, 4})
        CHECK(compare_bitwise(m.d_logits.view().slice(0, task),
                              tensor<double, 3>(before).view().slice(0, task)));
    for (index_t task : {0, 3, 5})
        CHECK_FALSE(compare_bitwise(m.d_logits.view().slice(0, task),
                                    tensor<double, 3>(before).view().slice(0, task)));
}

TEST_CASE("forward and backward do not allocate") {
    for (bool noise : {false, true}) {
        model m = noise ? noise_for_every_sequence(2) : grouped_by_task(2);
        std::vector<tensor<double, 2>> d_y;
        for (auto& layer : m.layers)
            d_y.push_back(copy_as<double>(layer->y.view()));
        CHECK(allocations_of([&] { m.forward(serial_executor{}); }) == 0);
        CHECK(allocations_of([&] { m.backward(serial_executor{}, d_y); }) == 0);
    }
}

TEST_CASE("a wrong gradient would be seen") {
    model m = noise_for_every_sequence(1);
    const auto d_y = std::vector<tensor<double, 2>>{copy_as<double>(m.layers[0]->y.view())};
    m.d_logits = tensor<double, 3>(m.logits.extents());
    m.forward(serial_executor{});
    m.backward(serial_executor{}, d_y);
    oracle_model oracle(m, d_y);
    const auto want = oracle.gradient_of(oracle.logits);
    REQUIRE(agree(m.d_logits.view(), want));
    // A dropped temperature, a sign, noise of the wrong entry.
    for (double factor : {temperature, -1.0, 1 + 1e-10}) {
        auto wrong = m.d_logits;
        for (double& value : wrong.values())
            value *= factor;
        CHECK_FALSE(agree(wrong.view(), want));
    }
    auto reversed = m.uniforms;
    std::reverse(reversed.values().begin(), reversed.values().end());
    tensor<double, 3> d_logits(m.logits.extents());
    router_backward(serial_executor{}, m.logits.const_view(), m.tasks.const_view(),
                    routing_rule{gumbel_sigmoid_gate{reversed.const_view(), temperature}},
                    m.d_weights.const_view(), d_logits.view());
    CHECK_FALSE(agree(d_logits.view(), want));
}
