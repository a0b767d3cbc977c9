#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include <mhr/core/workspace.hpp>
#include <mhr/routing/rows/arrow_prototypes.hpp>
#include <mhr/routing/rows/row_weights.hpp>

#include "support/golden_case.hpp"
#include "support/golden_row_layers.hpp"
#include "support/golden_row_routing_checks.hpp"
#include "support/tensor.hpp"

/// \file
/// Golden cases of Arrow: prototypes from adapters, as PEFT computes them and exactly; GenKnowSub;
/// the layer.

namespace mhr::test {

/// The exact prototype of an adapter in our orientation.
template <class T>
tensor<T, 1> exact_prototype_of(const tensor_view<const T, 2>& a,
                                const tensor_view<const T, 2>& b) {
    tensor<T, 1> prototype({a.extent(0)});
    owned_workspace scratch(arrow_prototype_workspace_size(a.extent(0), a.extent(1)));
    arrow_prototype(a, b, prototype.view(), scratch);
    return prototype;
}

/// The inner product, for signs and cosines.
template <class T>
double product_of(const tensor<T, 1>& u, const tensor_view<const T, 1>& v) {
    double sum = 0;
    for (index_t i = 0; i < v.extent(0); ++i)
        sum += static_cast<double>(u(i)) * static_cast<double>(v(i));
    return sum;
}

/// Compares up to the sign.
template <class T>
void compare_direction(const std::string& name, tensor<T, 1> got,
                       const tensor_view<const T, 1>& want, double tolerance, outcome& result) {
    if (product_of(got, want) < 0)
        for (T& value : got.values())
            value = -value;
    result.compare(name, got.view(), copy_as<T>(want), tolerance, 1e-8);
}

template <class T>
void check_peft_prototype(const golden_case& c, index_t e, const tensor_view<const T, 2>& a,
                          const tensor_view<const T, 2>& b, outcome& result) {
    const index_t in = c.size("d_in"), modules = c.size("n_adapters");
    const auto a32 = copy_as<float>(a), b32 = copy_as<float>(b);
    const auto start = c.file.read<float>("init_vector", {modules, in});
    tensor<float, 1> got({in});
    owned_workspace scratch(arrow_prototype_of_peft_workspace_size(in, a.extent(1)));
    arrow_prototype_of_peft(a32.view(), b32.view(), start.view().slice(0, e), got.view(), scratch);
    const auto want = c.file.read<T>("prototypes", {modules, in});
    compare_direction<T>("prototypes", copy_as<T>(got.view()), want.view().slice(0, e),
                         c.tolerance("tol_prototypes"), result);

    const double ratio = c.file.read<double>("sigma_ratio", {modules})(e);
    const auto exact = c.file.read<double>("prototypes_exact", {modules, in});
    const auto own = exact_prototype_of(a, b);
    const auto own64 = copy_as<double>(own.view());
    // A direction is known the less, the closer the next singular value is.
    const double precision = std::is_same_v<T, float> ? 1e-7 : 1e-15;
    compare_direction<double>("prototypes_exact", own64, exact.view().slice(0, e),
                              std::min(1e-3, 10 * precision / (1 - ratio)), result);
    tensor<double, 1> cosine({1}), want_cosine({1});
    cosine(0) = std::abs(product_of(own64, copy_as<double>(got.view()).const_view()));
    want_cosine(0) = c.file.read<double>("cosine", {modules})(e);
    result.compare("cosine", cosine.view(), want_cosine, c.tolerance("tol_prototypes"), 1e-2);
}

template <class T>
void check_peft_arrow(const golden_case& c, outcome& result) {
    const index_t modules = c.size("n_adapters"), in = c.size("d_in"), out = c.size("d_out");
    const index_t rank = c.size("rank"), general = c.size("n_general");
    result.require(c.size("power_iterations") == arrow_details::power_iterations,
                   "another number of iterations");
    result.require(std::abs(c.number("power_eps") - 1e-8) < 1e-20, "another epsilon");
    auto a = c.file.read<T>("lora_A", {modules, rank, in});
    auto b = c.file.read<T>("lora_B", {modules, out, rank});
    result.require(c.flag("use_gks") == (general > 0), "n_general: not as use_gks");
    if (general > 0) {
        const auto general_a = c.file.read<T>("general_A", {general, rank, in});
        const auto general_b = c.file.read<T>("general_B", {general, out, rank});
        for (index_t e = 0; e < modules; ++e) {
            subtract_general_knowledge(general_a.view(), a.view().slice(0, e));
            subtract_general_knowledge(general_b.view(), b.view().slice(0, e));
        }
        result.compare("lora_A_after", a.view(), c.file.read<T, 3>("lora_A_after"), c.tolerance());
        result.compare("lora_B_after", b.view(), c.file.read<T, 3>("lora_B_after"), c.tolerance());
    }
    row_layer<T> layer;
    layer.base = read_base_of_rows<T>(c);
    layer.a = tensor<T, 4>({1, modules, in, rank});
    layer.b = tensor<T, 4>({1, modules, rank, out});
    for (index_t e = 0; e < modules; ++e) {
        transform(a.view().slice(0, e).transpose(0, 1), layer.a.view().slice(0, 0).slice(0, e),
                  [](T value) { return value; });
        transform(b.view().slice(0, e).transpose(0, 1), layer.b.view().slice(0, 0).slice(0, e),
                  [](T value) { return value; });
        check_peft_prototype<T>(c, e, layer.a.const_view().slice(0, 0).slice(0, e),
                                layer.b.const_view().slice(0, 0).slice(0, e), result);
    }
    // The layer apart from the power iteration.
    const auto x = read_row_matrix<T>(c, "x", in), d_y = read_row_matrix<T>(c, "d_y", out);
    const auto prototypes = c.file.read<T>("prototypes", {modules, in});
    const auto scaling = c.file.read<T>("scaling", {modules});
    const row_gate gate{prototypes.view().transpose(0, 1)};
    const auto logits = run_gate(gate, x);
    const tempered_gate of_rows{magnitude_gate{}, c.number("temperature")};
    const softmax_normaliser normaliser{kept_of(c)};
    result.compare("weights", run_weights(routing_rule{of_rows, normaliser}, logits).view(),
                   c.file.read<T>("weights", {x.extents()[0], modules}), c.tolerance());
    const routing_rule rule{of_rows, scaled_normaliser{normaliser, 1, scaling.view()}};
    auto got = run_row_layer(layer, x, run_weights(rule, logits), d_y);
    run_gate_backward(gate, x, run_weights_backward(rule, logits, got.d_weights), {got.d_x.view()});
    const double floor = outcome::largest(d_y.view());
    result.compare("y", got.y.view(), read_row_matrix<T>(c, "y", out), c.tolerance());
    result.compare("d_x", got.d_x.view(), read_row_matrix<T>(c, "d_x", in), c.tolerance(), floor);
    const auto d_a = c.file.read<T, 3>("d_lora_A"), d_b = c.file.read<T, 3>("d_lora_B");
    for (index_t e = 0; e < modules; ++e) {
        compare_module("d_lora_A", got.d_a, e, copy_as<T>(d_a.view().slice(0, e)), c.tolerance(),
                       floor, result);
        compare_module("d_lora_B", got.d_b, e, copy_as<T>(d_b.view().slice(0, e)), c.tolerance(),
                       floor, result);
    }
}

/// mttl's, which is exact, with the other two factors of the decomposition.
template <class T>
void check_svd_arrow(const golden_case& c, outcome& result) {
    const index_t in = c.size("d_in"), out = c.size("d_out"), rank = c.size("rank");
    const auto a = c.file.read<T>("lora_A", {in, rank}), b = c.file.read<T>("lora_B", {rank, out});
    const auto prototype = exact_prototype_of(a.const_view(), b.const_view());
    const auto want = c.file.read<T>("prototype", {in});
    compare_direction("prototype", prototype, want.const_view(), c.tolerance(), result);
    // (A B)^T u = s v, whose sign is that of u.
    const auto values = c.file.read<T>("singular_values", {rank});
    const double sign = product_of(prototype, want.const_view()) < 0 ? -1 : 1;
    tensor<T, 1> right({out}), length({1}), want_length({1});
    for (index_t o = 0; o < out; ++o)
        for (index_t k = 0; k < rank; ++k)
            for (index_t i = 0; i < in; ++i)
                right(o) += static_cast<T>(sign) * prototype(i) * a(i, k) * b(k, o) / values(0);
    for (T value : right.values())
        length(0) += value * value;
    want_length(0) = 1;
    result.compare("singular_values", length.view(), want_length, c.tolerance());
    result.compare("right_vector", right.view(), c.file.read<T>("right_vector", {out}),
                   c.tolerance());
}

template <class T>
void check_arrow(const golden_case& c, outcome& result) {
    if (c.text("variant") == "mttl_svd")
        check_svd_arrow<T>(c, result);
    else
        check_peft_arrow<T>(c, result);
}

} // namespace mhr::test
