#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include <mhr/core/executor.hpp>
#include <mhr/routing/fixed_routers.hpp>
#include <mhr/routing/gate_wrappers.hpp>
#include <mhr/routing/gates.hpp>
#include <mhr/routing/normalisers.hpp>
#include <mhr/routing/router.hpp>

#include "support/golden_case.hpp"
#include "support/precision.hpp"
#include "support/tensor.hpp"

/// \file
/// The router of a golden case: what its metadata say of the gate, the normaliser and annealing.

namespace mhr::test {

/// Sequences of the batch: `repeat` of them have one task id.
inline index_t sequences_of(const golden_case& c) {
    return c.size("batch") * (c.has("repeat") ? c.size("repeat") : 1);
}

/// The task of each sequence.
inline tensor<std::int64_t, 1> tasks_of(const golden_case& c) {
    const auto ids = c.file.read<std::int64_t>("task_ids", {c.size("batch")});
    tensor<std::int64_t, 1> tasks({sequences_of(c)});
    const index_t repeat = sequences_of(c) / c.size("batch");
    for (index_t s = 0; s < tasks.extents()[0]; ++s) {
        tasks(s) = ids(s / repeat);
        // A router without a table does not notice this.
        if (tasks(s) < 0 || tasks(s) >= c.size("n_tasks"))
            throw std::runtime_error("task_ids: outside of n_tasks");
    }
    return tasks;
}

/// A router with its logits, whatever its rule.
template <class T>
struct golden_router {
    using task_list = tensor_view<const std::int64_t, 1>;

    index_t heads = 0;      ///< of the weights: 1 where all heads of a layer share them
    bool has_noise = false; ///< every sequence has its own: they cannot be grouped by task
    std::function<void(task_list, tensor_view<T, 3> weights)> forward;
    /// Empty for routers without logits.
    std::function<void(task_list, tensor_view<const T, 3> d_weights, tensor_view<T, 2> d_logits)>
        backward;
};

/// True for a router with noise: PEFT's whenever it is trained, mttl's where the flag says so.
inline bool is_relaxed(const golden_case& c) {
    const bool may_be =
        c.flag("module_logits_relaxed_bernoulli") || c.text("kind") == "peft_linear";
    return may_be && c.text("mode") == "train";
}

/// True if PyTorch's relaxed Bernoulli clamps sigmoid(l) of a logit that is used, that is, at the
/// machine epsilon of the dtype.
inline bool has_clamped_logits(const golden_case& c) {
    if (!is_relaxed(c)) return false;
    const auto logits = c.file.read<double, 2>("module_logits");
    const bool is_f32 = c.text("dtype") == "float32";
    const double bound = -std::log(is_f32 ? epsilon_of<float>() : epsilon_of<double>());
    const auto tasks = tasks_of(c);
    return std::any_of(tasks.values().begin(), tasks.values().end(), [&](std::int64_t task) {
        return outcome::largest(logits.view().block(0, task, 1)) > bound;
    });
}

/// Calls `f` with the gate: with noise, rounded or neither, then with dropout, then with the module
/// that is always on.
template <class T, class F>
void with_gate(const golden_case& c, F&& f) {
    const index_t entries = sequences_of(c);
    const index_t heads = c.size("n_splits");
    const index_t modules = c.size("n_skills");
    const auto with_shared_module = [&](const auto& gate) {
        if (c.flag("poly_use_shared_skill"))
            f(shared_module_gate{gate});
        else
            f(gate);
    };
    const auto with_dropout = [&](const auto& gate) {
        if (!c.has("module_logits_dropout")) return with_shared_module(gate);
        const auto keep = c.file.read<std::uint8_t>("dropout_keep", {entries, heads, modules});
        for (std::uint8_t kept : keep.values())
            if (kept > 1) throw std::runtime_error("dropout_keep: neither 0 nor 1");
        with_shared_module(dropout_gate{gate, keep.view(), c.number("module_logits_dropout")});
    };
    if (is_relaxed(c)) {
        const auto uniforms = c.file.read<T>("uniform", {entries, heads, modules});
        with_dropout(gumbel_sigmoid_gate{uniforms.view(), c.number("temperature")});
    } else if (c.flag("module_logits_straight_through")) {
        with_dropout(straight_through_gate{});
    } else {
        with_dropout(sigmoid_gate{});
    }
}

/// Calls `f` with the routing rule.
template <class T, class F>
void with_rule(const golden_case& c, F&& f) {
    const double annealing = c.number_or("alpha", 1);
    if (c.flag("module_logits_l2_norm"))
        return f(routing_rule{identity_gate{}, l2_normaliser{}, annealing});
    with_gate<T>(c, [&](const auto& gate) {
        if (c.flag("poly_average_correction"))
            f(routing_rule{gate, average_correction_normaliser{}, annealing});
        else
            f(routing_rule{gate, sum_normaliser{}, annealing});
    });
}

/// Calls `f` with the router of a case.
template <class T, class F>
void with_router(const golden_case& c, F&& f) {
    const index_t heads = c.size("n_splits");
    golden_router<T> router;
    router.heads = heads;
    if (c.text("variant") == "private") {
        router.heads = 1;
        router.forward = [](auto tasks, auto weights) {
            private_router_forward(serial_executor{}, tasks, weights);
        };
        return f(router);
    }
    if (c.text("variant") == "average" || c.text("kind") == "average_lora") {
        router.forward = [](auto, auto weights) {
            average_router_forward(serial_executor{}, weights);
        };
        return f(router);
    }
    const auto logits =
        c.file.read<T>("module_logits", {c.size("n_tasks"), heads * c.size("n_skills")});
    const auto table = logits.view().split(1, heads);
    with_rule<T>(c, [&](const auto& rule) {
        router.has_noise = is_relaxed(c) || c.has("module_logits_dropout");
        router.forward = [&](auto tasks, auto weights) {
            router_forward(serial_executor{}, table, tasks, rule, weights);
        };
        router.backward = [&](auto tasks, auto d_weights, auto d_logits) {
            router_backward(serial_executor{}, table, tasks, rule, d_weights,
                            d_logits.split(1, heads));
        };
        f(router);
    });
}

inline bool has_task(const tensor_view<const std::int64_t, 1>& tasks, index_t task) {
    for (index_t i = 0; i < tasks.extent(0); ++i)
        if (tasks(i) == task) return true;
    return false;
}

/// Compares the gradient of the logits, if there are any. `floor` is the largest gradient of the
/// weights: that of the logits is a difference of nearly equal terms.
template <class T>
void check_router_gradient(const golden_case& c, const golden_router<T>& router,
                           const tensor_view<const std::int64_t, 1>& tasks,
                           const tensor_view<const T, 3>& d_weights, double floor,
                           outcome& result) {
    if (!router.backward) return;
    const index_t columns = c.size("n_splits") * c.size("n_skills");
    const auto want = c.file.read<T>("d_module_logits", {c.size("n_tasks"), columns});
    tensor<T, 2> got(want.extents());
    router.backward(tasks, d_weights, got.view());
    const auto got_heads = got.view().split(1, c.size("n_splits"));
    const auto want_heads = want.view().split(1, c.size("n_splits"));
    for (index_t t = 0; t < got.extents()[0]; ++t) {
        // Head by head: where all gates are 0, gradients are so large that they would hide others.
        for (index_t h = 0; h < got_heads.extent(1); ++h)
            result.compare("d_module_logits", got_heads.slice(0, t).slice(0, h),
                           copy_as<T>(want_heads.slice(0, t).slice(0, h)), c.tolerance(), floor);
        if (!has_task(tasks, t))
            result.require(is_exactly(outcome::largest(got.view().block(0, t, 1)), 0),
                           "d_module_logits: not 0 for a task that is absent");
    }
}

} // namespace mhr::test
