#pragma once

#include <mhr/batch/batch.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/ia3/ia3.hpp>
#include <mhr/ia3/routed_ia3.hpp>

#include "support/golden_case.hpp"
#include "support/golden_layers.hpp"
#include "support/golden_rules.hpp"
#include "support/tensor.hpp"

/// \file
/// Golden cases of (IA)3 layers, routed and averaged.

namespace mhr::test {

/// A layer and its inputs: the host's y, bias included, is what is rescaled.
template <class T>
struct ia3_layer {
    base_layer<T> base;
    tensor<T, 3> modules; // [modules, heads, features / heads], as mttl keeps them
    tensor<T, 3> x;
    tensor<T, 3> d_y;
};

template <class T>
struct ia3_result {
    tensor<T, 2> scales, y, d_x;
    tensor<T, 3> d_modules; // as the modules
    tensor<T, 3> d_weights;
};

/// [modules, heads, ..] seen as [heads, modules, ..], or the other way.
template <class T>
tensor_view<T, 3> exchanged(const tensor_view<T, 3>& modules) {
    return modules.transpose(0, 1);
}

template <class T>
ia3_layer<T> read_ia3(const golden_case& c) {
    const index_t heads = c.size("n_splits");
    ia3_layer<T> layer;
    layer.base = read_base<T>(c);
    layer.modules = c.file.read<T>("ia3", {c.size("n_skills"), heads, c.size("d_out") / heads});
    layer.x = read_rows<T>(c, "x", "d_in");
    layer.d_y = read_rows<T>(c, "d_y", "d_out");
    return layer;
}

/// `modules` and `d_modules` are [heads, modules, features / heads], in any memory order.
template <class T>
ia3_result<T> run_ia3(const ia3_layer<T>& layer, const batch_plan& plan,
                      const tensor_view<const T, 3>& weights,
                      const tensor_view<const T, 3>& modules, const tensor_view<T, 3>& d_modules) {
    const auto host_y = layer.base.forward(rows_of(layer.x));
    const index_t features = host_y.extents()[1];
    ia3_result<T> result;
    result.scales = tensor<T, 2>({plan.entries(), features});
    result.y = tensor<T, 2>(host_y.extents());
    const batch rows{plan};
    const routed_ia3 routed{modules, weights};
    const routed_ia3_state state{result.scales.view()};
    routed_ia3_forward(rows, routed, host_y.view(), result.y.view(), state);

    tensor<T, 2> d_host_y(host_y.extents());
    owned_workspace scratch(routed_ia3_backward_workspace_size(rows, routed, element_type_of_v<T>));
    result.d_weights = tensor<T, 3>(weights.extents());
    routed_ia3_backward(rows, routed, host_y.view(), rows_of(layer.d_y), state,
                        {d_host_y.view(), d_modules, result.d_weights.view()}, scratch);
    result.d_x = layer.base.backward(d_host_y.const_view());
    result.d_modules = copy_as<T>(exchanged(d_modules));
    return result;
}

/// Runs the layer with the modules in mttl's order and with the heads first, which must give the
/// same bits.
template <class T>
ia3_result<T> run_ia3_in_both_orders(const ia3_layer<T>& layer, const batch_plan& plan,
                                     const tensor_view<const T, 3>& weights, outcome& result) {
    tensor<T, 3> d_modules(layer.modules.extents());
    const auto mttl = run_ia3<T>(layer, plan, weights, exchanged(layer.modules.view()),
                                 exchanged(d_modules.view()));
    const auto modules = copy_as<T>(exchanged(layer.modules.view()));
    d_modules = tensor<T, 3>(modules.extents());
    const auto ours = run_ia3<T>(layer, plan, weights, modules.view(), d_modules.view());
    result.compare_bits("mttl's order, scales", mttl.scales, ours.scales);
    result.compare_bits("mttl's order, y", mttl.y, ours.y);
    result.compare_bits("mttl's order, d_x", mttl.d_x, ours.d_x);
    result.compare_bits("mttl's order, d_modules", mttl.d_modules, ours.d_modules);
    result.compare_bits("mttl's order, d_weights", mttl.d_weights, ours.d_weights);
    return mttl;
}

template <class T>
void compare_ia3(const golden_case& c, const ia3_result<T>& got, outcome& result) {
    const auto y = read_rows<T>(c, "y", "d_out");
    const auto d_x = read_rows<T>(c, "d_x", "d_in");
    result.compare("y", got.y.view(), copy_as<T>(rows_of(y)), c.tolerance());
    result.compare("d_x", got.d_x.view(), copy_as<T>(rows_of(d_x)), c.tolerance());
    result.compare("d_ia3", got.d_modules.view(), c.file.read<T, 3>("d_ia3"), c.tolerance());
}

template <class T>
void check_routed_ia3(const golden_case& c, outcome& result) {
    const auto layer = read_ia3<T>(c);
    const auto scales = c.file.read<T, 2>("scale_mixed");
    check_with_router<T>(c, result, [&](const grouping& group, const auto& weights) {
        const auto got = run_ia3_in_both_orders(layer, group.plan(), weights, result);
        result.compare("scale_mixed", got.scales.view(), group.one_of(scales), c.tolerance());
        compare_ia3(c, got, result);
        return got.d_weights;
    });
}

/// Uniform routing, and the one vector of scales that it equals.
template <class T>
void check_average_ia3(const golden_case& c, outcome& result) {
    check_routed_ia3<T>(c, result);

    const auto layer = read_ia3<T>(c);
    const auto host_y = layer.base.forward(rows_of(layer.x));
    batch_plan plan;
    plan.assign_single_task(host_y.extents()[0]);
    tensor<T, 2> scales({1, host_y.extents()[1]});
    average_ia3_forward({}, exchanged(layer.modules.view()), scales.view().slice(0, 0));
    const auto of_sequences = c.file.read<T, 2>("scale_mixed");
    for (index_t s = 0; s < of_sequences.extents()[0]; ++s)
        result.compare("scale_mixed of the average", scales.view().slice(0, 0),
                       copy_as<T>(of_sequences.view().slice(0, s)), c.tolerance());

    ia3_result<T> got;
    got.y = tensor<T, 2>(host_y.extents());
    const batch rows{plan};
    const ia3 averaged{scales.view()};
    ia3_forward(rows, averaged, host_y.view(), got.y.view());
    tensor<T, 2> d_host_y(host_y.extents()), d_scales(scales.extents());
    ia3_backward(rows, averaged, host_y.view(), rows_of(layer.d_y),
                 {d_host_y.view(), d_scales.view()});
    got.d_x = layer.base.backward(d_host_y.const_view());
    got.d_modules = tensor<T, 3>(layer.modules.extents());
    average_ia3_backward({}, d_scales.view().slice(0, 0), exchanged(got.d_modules.view()));
    compare_ia3(c, got, result);
}

} // namespace mhr::test
