#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>

#include <mhr/batch/batch_plan.hpp>

#include "support/golden_case.hpp"
#include "support/golden_rules.hpp"
#include "support/positions.hpp"
#include "support/tensor.hpp"

/// \file
/// What golden cases of all adapted layers have in common: the host's linear layer, the grouping of
/// sequences, and the router's part.

namespace mhr::test {

/// [sequences, rows, features] as [all rows, features].
template <class T>
tensor_view<const T, 2> rows_of(const tensor<T, 3>& batch) {
    const auto& extents = batch.extents();
    return {batch.values().data(), {extents[0] * extents[1], extents[2]}};
}

/// The host's linear layer, y = x W^T + bias, which is no part of the library.
template <class T>
struct base_layer {
    tensor<T, 2> weight; // [out_features, in_features]
    tensor<T, 1> bias;   // [out_features], or nothing

    tensor<T, 2> forward(const tensor_view<const T, 2>& x) const {
        tensor<T, 2> y({x.extent(0), weight.extents()[0]});
        for (index_t row = 0; row < x.extent(0); ++row)
            for (index_t o = 0; o < weight.extents()[0]; ++o) {
                T sum = bias.extents()[0] == 0 ? T(0) : bias(o);
                for (index_t i = 0; i < x.extent(1); ++i)
                    sum += x(row, i) * weight(o, i);
                y(row, o) = sum;
            }
        return y;
    }

    tensor<T, 2> backward(const tensor_view<const T, 2>& d_y) const {
        tensor<T, 2> d_x({d_y.extent(0), weight.extents()[1]});
        for (index_t row = 0; row < d_y.extent(0); ++row)
            for (index_t o = 0; o < d_y.extent(1); ++o)
                for (index_t i = 0; i < weight.extents()[1]; ++i)
                    d_x(row, i) += d_y(row, o) * weight(o, i);
        return d_x;
    }
};

template <class T>
base_layer<T> read_base(const golden_case& c) {
    const index_t out_features = c.size("d_out");
    base_layer<T> base;
    base.weight = c.file.read<T>("base_weight", {out_features, c.size("d_in")});
    if (c.flag("bias")) base.bias = c.file.read<T>("base_bias", {out_features});
    return base;
}

/// [sequences, rows of each, features]
template <class T>
tensor<T, 3> read_rows(const golden_case& c, const char* name, const char* features) {
    return c.file.read<T>(name, {sequences_of(c), c.size("seq"), c.size(features)});
}

/// Sequences of equal length, grouped by their labels: their tasks, or their own numbers.
class grouping {
  public:
    grouping(const tensor<std::int64_t, 1>& labels, index_t rows_of_each) : labels_(labels) {
        plan_.assign_sequences(labels_.const_view(),
                               tensor_view<const index_t, 1>(&rows_of_each, labels.extents(), {0}));
    }

    [[nodiscard]] const batch_plan& plan() const { return plan_; }

    /// Turns what was computed for each sequence, which is the same for all sequences of an entry,
    /// into one for each entry.
    template <class T, std::size_t Rank>
    tensor<T, Rank> one_of(const tensor<T, Rank>& of_sequences) const {
        return collect(of_sequences, [](T&, const T& value) { return value; });
    }
    /// Does the same for gradients, which add up.
    template <class T, std::size_t Rank>
    tensor<T, Rank> sum_of(const tensor<T, Rank>& of_sequences) const {
        return collect(of_sequences, [](T& sum, const T& value) { return sum + value; });
    }

  private:
    template <class T, std::size_t Rank, class F>
    tensor<T, Rank> collect(const tensor<T, Rank>& of_sequences, F&& f) const {
        auto extents = of_sequences.extents();
        extents[0] = plan_.entries();
        tensor<T, Rank> result(extents);
        for (index_t s = 0; s < labels_.extents()[0]; ++s)
            for (index_t g = 0; g < plan_.entries(); ++g) {
                if (plan_.tasks()(g) != labels_(s)) continue;
                extents[0] = 1;
                for_each_position(extents, [&](position<Rank> at) {
                    at[0] = s;
                    const T& value = element(of_sequences.view(), at);
                    at[0] = g;
                    T& to = element(result.view(), at);
                    to = f(to, value);
                });
            }
        return result;
    }

    tensor<std::int64_t, 1> labels_;
    batch_plan plan_;
};

/// Every sequence by itself.
inline grouping each_sequence(const golden_case& c) {
    tensor<std::int64_t, 1> numbers({sequences_of(c)});
    std::iota(numbers.values().begin(), numbers.values().end(), std::int64_t{0});
    return {numbers, c.size("seq")};
}

/// Weights for all heads: those of a router with a single head are shared by them.
template <class T>
tensor_view<const T, 3> for_heads(const tensor<T, 3>& weights, index_t heads) {
    const auto view = weights.view();
    if (view.extent(1) != 1) return view;
    return {
        view.data(), {view.extent(0), heads, view.extent(2)}, {view.stride(0), 0, view.stride(2)}};
}

/// Runs a layer with the router of its case: once with every sequence by itself, as the peers
/// compute it, and, unless there is noise, once with the sequences grouped by task.
/// `check_layer(grouping, weights)` is given weights [entries, heads, modules], compares the
/// layer's own values, and returns its d_weights.
template <class T, class F>
void check_with_router(const golden_case& c, outcome& result, F&& check_layer) {
    const auto tasks = tasks_of(c);
    with_router<T>(c, [&](const golden_router<T>& router) {
        const index_t sequences = sequences_of(c);
        const index_t modules = c.size("n_skills");
        const auto weights = c.file.read<T>("mixing_weights", {sequences, router.heads, modules});
        tensor<T, 3> d_weights;
        if (router.backward)
            d_weights = c.file.read<T>("d_mixing_weights", {sequences, router.heads, modules});
        const double floor = outcome::largest(d_weights.view());

        const auto check = [&](const grouping& group,
                               const tensor_view<const std::int64_t, 1>& tasks_of_entries) {
            const auto want = group.one_of(weights);
            tensor<T, 3> got(want.extents());
            router.forward(tasks_of_entries, got.view());
            result.compare("mixing_weights", got.view(), want, c.tolerance());
            const tensor<T, 3> d_got = check_layer(group, for_heads(got, c.size("n_splits")));
            if (!router.backward) return;
            result.compare("d_mixing_weights", d_got.view(), group.sum_of(d_weights),
                           c.tolerance());
            check_router_gradient<T>(c, router, tasks_of_entries, d_got.view(), floor, result);
        };
        check(each_sequence(c), tasks.view());
        if (router.has_noise) return;
        const grouping by_task(tasks, c.size("seq"));
        check(by_task, by_task.plan().tasks());
    });
}

} // namespace mhr::test
