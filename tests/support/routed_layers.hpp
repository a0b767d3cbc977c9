#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/ia3/routed_ia3.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/routing/fixed_routers.hpp>

#include "support/batches.hpp"
#include "support/combinations.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

/// \file
/// A layer with routed adapters, LoRA or (IA)3, as a function from its arguments to all its
/// results, and random ones: for properties that both have.

namespace mhr::test {

/// The rows of a batch.
template <class T>
struct rows_of_batch {
    std::vector<std::int64_t> tasks;
    tensor<T, 2> x, d_y;
};

/// Gradients begin at 0, and so does y, where it accumulates.
template <class T>
struct layer_results {
    tensor<T, 2> y, d_x;
    std::vector<tensor<T, 4>> d_modules;
    tensor<T, 3> d_table;
};

struct trial_sizes {
    index_t tasks, heads, modules, in_block, out_block, rank;
};

/// The base of both layers. `modules` are [heads, modules, ., .]; `table` [tasks, heads, modules]
/// has the weights of each task.
template <class T>
struct routed_layer {
    std::vector<tensor<T, 4>> modules;
    tensor<T, 3> table;

    /// Forward and backward on one batch; `call(plan, weights, d_weights, results)` does both.
    template <class Call>
    layer_results<T> run_with(const rows_of_batch<T>& batch, index_t out_features,
                              Call&& call) const {
        const batch_plan plan = plan_of(batch.tasks);
        layer_results<T> results{tensor<T, 2>({plan.rows(), out_features}),
                                 tensor<T, 2>(batch.x.extents()),
                                 {},
                                 tensor<T, 3>(table.extents())};
        for (const tensor<T, 4>& matrices : modules)
            results.d_modules.emplace_back(matrices.extents());
        tensor<T, 3> weights({plan.entries(), table.extents()[1], table.extents()[2]});
        tensor<T, 3> d_weights(weights.extents());
        given_router_forward({}, table.view(), plan.tasks(), weights.view());
        call(plan, weights.const_view(), d_weights.view(), results);
        given_router_backward({}, plan.tasks(), d_weights.view(), results.d_table.view());
        return results;
    }
};

template <class T>
struct lora_layer : routed_layer<T> {
    using value_type = T;
    double scale = 0.75;

    explicit lora_layer(const trial_sizes& s)
        : routed_layer<T>{{tensor<T, 4>({s.heads, s.modules, s.in_block, s.rank}),
                           tensor<T, 4>({s.heads, s.modules, s.rank, s.out_block})},
                          tensor<T, 3>({s.tasks, s.heads, s.modules})} {}

    static index_t in_features(const trial_sizes& s) { return s.heads * s.in_block; }
    static index_t out_features(const trial_sizes& s) { return s.heads * s.out_block; }
    /// The axis of each of `modules` that the heads divide.
    static constexpr std::array<std::size_t, 2> axis_of_heads{2, 3};

    /// The parameters of the layer, with the weights of a batch.
    [[nodiscard]] routed_lora parameters(const tensor_view<const T, 3>& weights) const {
        return {this->modules[0].view(), this->modules[1].view(), weights, scale};
    }

    [[nodiscard]] layer_results<T> run(const rows_of_batch<T>& batch) const {
        constexpr element_type sums = element_type_of_v<T>;
        const index_t out_features = shape_of(parameters({}).inventory()).out_features;
        return this->run_with(
            batch, out_features,
            [&](const batch_plan& plan, const auto& weights, const auto& d_weights,
                layer_results<T>& results) {
                const routed_lora layer = parameters(weights);
                owned_workspace memory(routed_lora_state_size({plan}, layer, sums));
                workspace rest = memory;
                const auto state = take_routed_lora_state(rest, {plan}, layer, sums);
                owned_workspace scratch(routed_lora_backward_workspace_size({plan}, layer, sums));
                routed_lora_forward({plan}, layer, batch.x.view(), results.y.view(), state);
                routed_lora_backward({plan}, layer, batch.x.view(), batch.d_y.view(), state,
                                     {results.d_x.view(), results.d_modules[0].view(),
                                      results.d_modules[1].view(), d_weights},
                                     scratch);
            });
    }
};

/// modules [heads, modules, 1, features / heads]. Rows of no task have y = x, which makes no
/// difference here.
template <class T>
struct ia3_layer : routed_layer<T> {
    using value_type = T;

    explicit ia3_layer(const trial_sizes& s)
        : routed_layer<T>{{tensor<T, 4>({s.heads, s.modules, 1, s.in_block})},
                          tensor<T, 3>({s.tasks, s.heads, s.modules})} {}

    static index_t in_features(const trial_sizes& s) { return s.heads * s.in_block; }
    static index_t out_features(const trial_sizes& s) { return in_features(s); }
    static constexpr std::array<std::size_t, 1> axis_of_heads{3};

    [[nodiscard]] layer_results<T> run(const rows_of_batch<T>& batch) const {
        constexpr element_type sums = element_type_of_v<T>;
        return this->run_with(
            batch, batch.x.extents()[1],
            [&](const batch_plan& plan, const auto& weights, const auto& d_weights,
                layer_results<T>& results) {
                const routed_ia3 layer{this->modules[0].view().slice(2, 0), weights};
                owned_workspace memory(routed_ia3_state_size({plan}, layer, sums));
                workspace rest = memory;
                const auto state = take_routed_ia3_state(rest, {plan}, layer, sums);
                owned_workspace scratch(routed_ia3_backward_workspace_size({plan}, layer, sums));
                routed_ia3_forward({plan}, layer, batch.x.view(), results.y.view(), state);
                routed_ia3_backward(
                    {plan}, layer, batch.x.view(), batch.d_y.view(), state,
                    {results.d_x.view(), results.d_modules[0].view().slice(2, 0), d_weights},
                    scratch);
            });
    }
};

inline constexpr int layer_trials = MHR_TEST_FEW_COMBINATIONS ? 8 : 40;

/// Sizes round those of the tiles.
inline trial_sizes random_sizes(random_source& random) {
    const auto upto = [&](index_t largest) { return 1 + random.integer(largest); };
    return {upto(5), upto(4), upto(11), upto(20), upto(20), upto(20)};
}

/// Small whole numbers: sums of their products are exact.
template <class View>
void fill_whole(random_source& random, const View& view) {
    random.fill(view, 4);
    transform(view, view, [](const auto& value) { return std::round(value) + 0; });
}

/// A random layer and batch; some weights are 0.
template <class L>
struct layer_trial {
    using T = typename L::value_type;
    trial_sizes s;
    L layer;
    rows_of_batch<T> batch;

    layer_trial(random_source& random, const trial_sizes& sizes, bool whole)
        : s(sizes), layer(sizes), batch(random_rows(random, sizes)) {
        const auto fill = [&](auto& values) {
            whole ? fill_whole(random, values.view()) : random.fill(values.view());
        };
        for (auto& matrices : layer.modules)
            fill(matrices);
        fill(layer.table);
        for (auto& weight : layer.table.values())
            if (random.integer(5) == 0) weight = 0;
        fill(batch.x);
        fill(batch.d_y);
    }

    static rows_of_batch<T> random_rows(random_source& random, const trial_sizes& s) {
        const index_t rows = 1 + random.integer(60);
        rows_of_batch<T> batch{
            {}, tensor<T, 2>({rows, L::in_features(s)}), tensor<T, 2>({rows, L::out_features(s)})};
        for (index_t row = 0; row < rows; ++row)
            batch.tasks.push_back(random.integer(s.tasks + 1) - 1);
        return batch;
    }
};

/// Calls `f` with random trials.
template <class L, class F>
void for_random_layers(bool whole, F&& f) {
    random_source random(17);
    for (int i = 0; i < layer_trials; ++i) {
        CAPTURE(i);
        const trial_sizes s = random_sizes(random);
        f(layer_trial<L>(random, s, whole), random);
    }
}

} // namespace mhr::test
