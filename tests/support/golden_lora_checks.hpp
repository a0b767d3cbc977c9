#pragma once

#include <algorithm>
#include <array>

#include <mhr/batch/batch.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/lora/output_mixed_lora.hpp>
#include <mhr/lora/routed_lora.hpp>

#include "support/golden_case.hpp"
#include "support/golden_layers.hpp"
#include "support/golden_rules.hpp"
#include "support/tensor.hpp"

/// \file
/// Golden cases of LoRA layers: parameters mixed, outputs mixed, and the average.

namespace mhr::test {

/// How the modules of a layer lie in memory.
enum class memory_order { peft, mttl };

/// An inventory, or its gradient, in either order.
template <class T>
class inventory_memory {
  public:
    inventory_memory(const std::array<index_t, 4>& a, const std::array<index_t, 4>& b,
                     memory_order order)
        : a_(a), b_(b) {
        T* at_a = a_.values().data();
        T* at_b = b_.values().data();
        if (order == memory_order::peft) {
            of_a_ = {at_a, a};
            of_b_ = {at_b, b};
        } else { // a is [modules, heads, in, rank], b [modules, rank, heads, out]
            of_a_ = tensor_view<T, 4>(at_a, {a[1], a[0], a[2], a[3]}).transpose(0, 1);
            of_b_ =
                tensor_view<T, 4>(at_b, {b[1], b[2], b[0], b[3]}).transpose(0, 2).transpose(1, 2);
        }
    }
    inventory_memory(const tensor<T, 4>& a, const tensor<T, 4>& b, memory_order order)
        : inventory_memory(a.extents(), b.extents(), order) {
        const auto same = [](const T& value) { return value; };
        transform(a.view(), of_a_, same);
        transform(b.view(), of_b_, same);
    }
    inventory_memory(const inventory_memory&) = delete;
    inventory_memory& operator=(const inventory_memory&) = delete;

    const tensor_view<T, 4>& a() const { return of_a_; }
    const tensor_view<T, 4>& b() const { return of_b_; }

  private:
    tensor<T, 4> a_; // of these sizes, whatever the order
    tensor<T, 4> b_;
    tensor_view<T, 4> of_a_, of_b_;
};

/// A layer and its inputs. `M` is the storage type of the modules.
template <class T, class M = T>
struct lora_layer {
    base_layer<T> base;
    tensor<M, 4> a;
    tensor<M, 4> b;
    double scale = 1;
    tensor<T, 3> x;
    tensor<T, 3> d_y; // of extents 0: forward only
};

template <class T>
struct lora_result {
    tensor<T, 3> mixed_a, mixed_b; // nothing, where outputs are mixed
    tensor<T, 2> y, d_x;
    tensor<T, 4> d_a, d_b;
    tensor<T, 3> d_weights;
};

/// The layer with the parameters of its modules mixed; weights [entries, heads, modules].
template <class T, class M>
lora_result<T> run_routed(const lora_layer<T, M>& layer, const batch_plan& plan,
                          const tensor_view<const T, 3>& weights, memory_order order) {
    const inventory_memory<M> inventory(layer.a, layer.b, order);
    const routed_lora routed{inventory.a(), inventory.b(), weights, layer.scale};
    const batch rows{plan};
    constexpr element_type sums = element_type_of_v<T>;
    const auto x = rows_of(layer.x);
    lora_result<T> result;

    owned_workspace memory(routed_lora_state_size(rows, routed, sums));
    workspace state_memory = memory;
    const auto state = take_routed_lora_state(state_memory, rows, routed, sums);
    result.y = layer.base.forward(x);
    routed_lora_forward(rows, routed, x, result.y.view(), state);
    result.mixed_a = copy_as<T>(state.mixed.a.template as<T>());
    result.mixed_b = copy_as<T>(state.mixed.b.template as<T>());
    if (layer.d_y.view().size() == 0) return result;

    const auto d_y = rows_of(layer.d_y);
    const inventory_memory<T> d_inventory(layer.a.extents(), layer.b.extents(), order);
    owned_workspace scratch(routed_lora_backward_workspace_size(rows, routed, sums));
    result.d_x = layer.base.backward(d_y);
    result.d_weights = tensor<T, 3>(weights.extents());
    routed_lora_backward(
        rows, routed, x, d_y, state,
        {result.d_x.view(), d_inventory.a(), d_inventory.b(), result.d_weights.view()}, scratch);
    result.d_a = copy_as<T>(d_inventory.a());
    result.d_b = copy_as<T>(d_inventory.b());
    return result;
}

/// The layer with the outputs of its modules mixed; weights [entries, 1, modules].
template <class T>
lora_result<T> run_output_mixed(const lora_layer<T>& layer, const batch_plan& plan,
                                const tensor_view<const T, 3>& weights, memory_order order) {
    const inventory_memory<T> inventory(layer.a, layer.b, order);
    const inventory_memory<T> d_inventory(layer.a.extents(), layer.b.extents(), order);
    const routed_lora mixed{inventory.a(), inventory.b(), weights, layer.scale};
    const batch rows{plan};
    constexpr element_type sums = element_type_of_v<T>;
    const auto x = rows_of(layer.x);
    const auto d_y = rows_of(layer.d_y);
    owned_workspace memory(output_mixed_lora_state_size(rows, mixed, sums));
    workspace state_memory = memory;
    const auto state = take_output_mixed_lora_state(state_memory, rows, mixed, sums);
    lora_result<T> result;
    result.y = layer.base.forward(x);
    output_mixed_lora_forward(rows, mixed, x, result.y.view(), state);

    owned_workspace scratch(output_mixed_lora_backward_workspace_size(rows, mixed, sums));
    result.d_x = layer.base.backward(d_y);
    result.d_weights = tensor<T, 3>(weights.extents());
    output_mixed_lora_backward(
        rows, mixed, x, d_y, state,
        {result.d_x.view(), d_inventory.a(), d_inventory.b(), result.d_weights.view()}, scratch);
    result.d_a = copy_as<T>(d_inventory.a());
    result.d_b = copy_as<T>(d_inventory.b());
    return result;
}

/// Calls `run(memory_order)` with both orders, which must give the same bits.
template <class F>
auto in_both_orders(outcome& result, F&& run) {
    const auto peft = run(memory_order::peft);
    const auto mttl = run(memory_order::mttl);
    if (peft.mixed_a.view().size() > 0) {
        result.compare_bits("mttl's order, a", mttl.mixed_a, peft.mixed_a);
        result.compare_bits("mttl's order, b", mttl.mixed_b, peft.mixed_b);
    }
    result.compare_bits("mttl's order, y", mttl.y, peft.y);
    result.compare_bits("mttl's order, d_x", mttl.d_x, peft.d_x);
    result.compare_bits("mttl's order, d_a", mttl.d_a, peft.d_a);
    result.compare_bits("mttl's order, d_b", mttl.d_b, peft.d_b);
    result.compare_bits("mttl's order, d_weights", mttl.d_weights, peft.d_weights);
    return peft;
}

/// scaling, 1/r or alpha/r, times the warm-up.
inline double read_scale(const golden_case& c, outcome& result) {
    const double scaling = c.number("scaling");
    const bool has_alpha = c.has("lora_alpha");
    result.require(c.text("scaling_rule") == (has_alpha ? "lora_alpha/rank" : "1/rank"),
                   "another scaling_rule");
    result.require(is_exactly(scaling, c.number_or("lora_alpha", 1) / c.number("rank")),
                   "scaling: not as its rule says");
    if (!c.has("warmup_factor")) return scaling;
    const double warmup = c.number("warmup_factor");
    result.require(is_exactly(warmup, std::min(c.number("training_steps_used") / 10000, 1.0)),
                   "warmup_factor: not that of its step");
    return scaling * warmup;
}

template <class T>
lora_layer<T> read_lora(const golden_case& c, outcome& result) {
    const index_t heads = c.size("n_splits");
    const index_t modules = c.size("n_skills");
    const index_t rank = c.size("rank");
    lora_layer<T> layer;
    layer.base = read_base<T>(c);
    layer.a = c.file.read<T>("lora_A", {heads, modules, c.size("d_in") / heads, rank});
    layer.b = c.file.read<T>("lora_B", {heads, modules, rank, c.size("d_out") / heads});
    layer.scale = read_scale(c, result);
    layer.x = read_rows<T>(c, "x", "d_in");
    layer.d_y = read_rows<T>(c, "d_y", "d_out");
    return layer;
}

template <class T>
void compare_lora(const golden_case& c, const lora_result<T>& got, outcome& result) {
    const double tolerance = c.tolerance();
    const auto y = read_rows<T>(c, "y", "d_out");
    const auto d_x = read_rows<T>(c, "d_x", "d_in");
    result.compare("y", got.y.view(), copy_as<T>(rows_of(y)), tolerance);
    result.compare("d_x", got.d_x.view(), copy_as<T>(rows_of(d_x)), tolerance);
    result.compare("d_lora_A", got.d_a.view(), c.file.read<T, 4>("d_lora_A"), tolerance);
    result.compare("d_lora_B", got.d_b.view(), c.file.read<T, 4>("d_lora_B"), tolerance);
}

template <class T>
void check_routed_lora(const golden_case& c, outcome& result) {
    const auto layer = read_lora<T>(c, result);
    const auto mixed_a = c.file.read<T, 3>("A_mixed");
    const auto mixed_b = c.file.read<T, 3>("B_mixed");
    check_with_router<T>(c, result, [&](const grouping& group, const auto& weights) {
        const auto got = in_both_orders(result, [&](memory_order order) {
            return run_routed(layer, group.plan(), weights, order);
        });
        result.compare("A_mixed", got.mixed_a.view(), group.one_of(mixed_a), c.tolerance());
        result.compare("B_mixed", got.mixed_b.view(), group.one_of(mixed_b), c.tolerance());
        compare_lora(c, got, result);
        return got.d_weights;
    });
}

/// The weights are given, and there are no tasks.
template <class T>
void check_output_mixed_lora(const golden_case& c, outcome& result) {
    const index_t sequences = sequences_of(c);
    const index_t modules = c.size("n_skills");
    const auto layer = read_lora<T>(c, result);
    const auto weights = c.file.read<T>("mixing_weights", {sequences, 1, modules});
    const auto d_weights = c.file.read<T>("d_mixing_weights", {sequences, 1, modules});
    const grouping group = each_sequence(c);
    const auto got = in_both_orders(result, [&](memory_order order) {
        return run_output_mixed<T>(layer, group.plan(), weights.view(), order);
    });
    compare_lora(c, got, result);
    result.compare("d_mixing_weights", got.d_weights.view(), d_weights, c.tolerance());
}

/// Uniform routing, and the one adapter that it equals.
template <class T>
void check_average_lora(const golden_case& c, outcome& result) {
    const double tolerance = c.tolerance();
    const auto layer = read_lora<T>(c, result);
    const inventory_memory<T> inventory(layer.a, layer.b, memory_order::peft);
    const auto want_a = c.file.read<T, 2>("A_average");
    const auto want_b = c.file.read<T, 2>("B_average");
    tensor<T, 2> a(want_a.extents()), b(want_b.extents()), d_a(a.extents()), d_b(b.extents());
    average_lora_forward({}, {inventory.a(), inventory.b()}, {a.view(), b.view()});
    result.compare("A_average", a.view(), want_a, tolerance);
    result.compare("B_average", b.view(), want_b, tolerance);

    check_with_router<T>(c, result, [&](const grouping& group, const auto& weights) {
        const auto got = in_both_orders(result, [&](memory_order order) {
            return run_routed(layer, group.plan(), weights, order);
        });
        compare_lora(c, got, result);
        for (index_t g = 0; g < group.plan().entries(); ++g) {
            result.compare_bits("routed a", a, copy_as<T>(got.mixed_a.view().slice(0, g)));
            result.compare_bits("routed b", b, copy_as<T>(got.mixed_b.view().slice(0, g)));
        }
        return got.d_weights;
    });

    const auto x = rows_of(layer.x);
    const auto d_y = rows_of(layer.d_y);
    const lora adapter{a.view(), b.view(), layer.scale};
    batch_plan plan;
    plan.assign_single_task(x.extent(0));
    const batch rows{plan};
    auto y = layer.base.forward(x);
    auto d_x = layer.base.backward(d_y);
    tensor<T, 2> hidden({x.extent(0), a.extents()[1]});
    const lora_state state{hidden.view()};
    lora_forward(rows, adapter, x, y.view(), state);
    owned_workspace scratch(lora_backward_workspace_size(rows, adapter, element_type_of_v<T>));
    lora_backward(rows, adapter, x, d_y, state, {d_x.view(), lora_matrices{d_a.view(), d_b.view()}},
                  scratch);
    const auto want_y = read_rows<T>(c, "y_single", "d_out");
    const auto want_d_x = read_rows<T>(c, "d_x_single", "d_in");
    result.compare("y_single", y.view(), copy_as<T>(rows_of(want_y)), tolerance);
    result.compare("d_x_single", d_x.view(), copy_as<T>(rows_of(want_d_x)), tolerance);
    result.compare("d_A_average", d_a.view(), c.file.read<T, 2>("d_A_average"), tolerance);
    result.compare("d_B_average", d_b.view(), c.file.read<T, 2>("d_B_average"), tolerance);

    tensor<T, 4> d_modules_a(layer.a.extents()), d_modules_b(layer.b.extents());
    average_lora_backward({}, d_a.view(), d_b.view(), {d_modules_a.view(), d_modules_b.view()});
    result.compare("d_lora_A of the average", d_modules_a.view(), c.file.read<T, 4>("d_lora_A"),
                   tolerance);
    result.compare("d_lora_B of the average", d_modules_b.view(), c.file.read<T, 4>("d_lora_B"),
                   tolerance);
}

} // namespace mhr::test
