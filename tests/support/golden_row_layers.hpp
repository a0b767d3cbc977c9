#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <mhr/batch/batch_plan.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/lora/row_routed_lora.hpp>

#include "support/golden_case.hpp"
#include "support/golden_layers.hpp"
#include "support/tensor.hpp"

/// \file
/// Golden cases of layers whose rows choose their modules themselves.

namespace mhr::test {

/// A tensor [batch, seq, ..] as [rows, ..].
template <class T>
tensor<T, 2> read_row_matrix(const golden_case& c, const std::string& name, index_t columns) {
    return copy_as<T>(rows_of(c.file.read<T>(name, {c.size("batch"), c.size("seq"), columns})));
}

/// [rows, modules] with an axis for heads, of which there is one.
template <class T>
tensor_view<T, 3> with_one_head(const tensor_view<T, 2>& values) {
    return values.split(1, 1);
}

template <class T>
struct row_layer {
    base_layer<T> base;
    tensor<T, 4> a, b; // [1, modules, in, rank], [1, modules, rank, out]
    double scale = 1;
};

template <class T>
struct row_layer_result {
    tensor<T, 2> y, d_x, d_weights; // d_x of the base layer, too
    tensor<T, 4> d_a, d_b;
};

/// The base layer of a case, with a bias where there is one.
template <class T>
base_layer<T> read_base_of_rows(const golden_case& c) {
    base_layer<T> base;
    base.weight = c.file.read<T>("base_weight", {c.size("d_out"), c.size("d_in")});
    if (c.file.contains("base_bias")) base.bias = c.file.read<T>("base_bias", {c.size("d_out")});
    return base;
}

/// Adapters in PEFT's orientation, `name`.m, of different ranks: zeros fill the lower ones.
template <class T>
row_layer<T> read_row_layer(const golden_case& c) {
    const index_t modules = c.size("n_adapters");
    std::vector<tensor<T, 2>> a, b;
    index_t rank = 0;
    for (index_t m = 0; m < modules; ++m) {
        a.push_back(c.file.read<T, 2>("lora_A." + std::to_string(m)));
        b.push_back(c.file.read<T, 2>("lora_B." + std::to_string(m)));
        rank = std::max(rank, a.back().extents()[0]);
    }
    row_layer<T> layer;
    layer.base = read_base_of_rows<T>(c);
    layer.a = tensor<T, 4>({1, modules, c.size("d_in"), rank});
    layer.b = tensor<T, 4>({1, modules, rank, c.size("d_out")});
    for (index_t m = 0; m < modules; ++m) {
        const auto& of_a = a[static_cast<std::size_t>(m)];
        const auto& of_b = b[static_cast<std::size_t>(m)];
        for_each_position(of_a.extents(), [&](const position<2>& at) {
            layer.a(0, m, at[1], at[0]) = of_a(at[0], at[1]);
        });
        for_each_position(of_b.extents(), [&](const position<2>& at) {
            layer.b(0, m, at[1], at[0]) = of_b(at[0], at[1]);
        });
    }
    return layer;
}

/// Forward and backward of outputs that are mixed by weights [rows, modules].
template <class T>
row_layer_result<T> run_row_layer(const row_layer<T>& layer, const tensor<T, 2>& x,
                                  const tensor<T, 2>& weights, const tensor<T, 2>& d_y) {
    batch_plan plan;
    plan.assign_single_task(x.extents()[0]);
    const batch rows{plan};
    const row_routed_lora routed{layer.a.view(), layer.b.view(), with_one_head(weights.view()),
                                 layer.scale, mixture::of_outputs};
    row_layer_result<T> result;
    result.y = layer.base.forward(x.view());
    result.d_x = layer.base.backward(d_y.view());
    result.d_weights = tensor<T, 2>(weights.extents());
    result.d_a = tensor<T, 4>(layer.a.extents());
    result.d_b = tensor<T, 4>(layer.b.extents());
    constexpr element_type sums = element_type_of_v<T>;
    owned_workspace memory(row_routed_lora_state_size(rows, routed, sums));
    workspace taken = memory;
    const auto state = take_row_routed_lora_state(taken, rows, routed, sums);
    row_routed_lora_forward(rows, routed, x.view(), result.y.view(), state);
    owned_workspace scratch(row_routed_lora_backward_workspace_size(rows, routed, sums));
    row_routed_lora_backward(rows, routed, x.view(), d_y.view(), state,
                             {result.d_x.view(), result.d_a.view(), result.d_b.view(),
                              with_one_head(result.d_weights.view())},
                             scratch);
    return result;
}

/// The forward of matrices that are mixed by the same weights, without the base layer.
template <class T>
tensor<T, 2> run_mixed_matrices(const row_layer<T>& layer, const tensor<T, 2>& x,
                                const tensor<T, 2>& weights) {
    batch_plan plan;
    plan.assign_single_task(x.extents()[0]);
    const batch rows{plan};
    const row_routed_lora routed{layer.a.view(), layer.b.view(), with_one_head(weights.view()),
                                 layer.scale};
    tensor<T, 2> y({x.extents()[0], layer.b.extents()[3]});
    constexpr element_type sums = element_type_of_v<T>;
    owned_workspace memory(row_routed_lora_state_size(rows, routed, sums));
    workspace taken = memory;
    row_routed_lora_forward(rows, routed, x.view(), y.view(),
                            take_row_routed_lora_state(taken, rows, routed, sums));
    return y;
}

/// A gradient [1, modules, p, q] of a module, of which the case has the first `rank` of an axis, in
/// PEFT's orientation.
template <class T>
void compare_module(const std::string& name, const tensor<T, 4>& got, index_t module,
                    const tensor<T, 2>& want, double tolerance, double floor, outcome& result) {
    tensor<T, 2> own(want.extents());
    for_each_position(want.extents(), [&](const position<2>& at) {
        own(at[0], at[1]) = got(0, module, at[1], at[0]);
    });
    result.compare(name, own.view(), want, tolerance, floor);
}

} // namespace mhr::test
