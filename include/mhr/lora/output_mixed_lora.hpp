#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/kernels/kernels.hpp>
#include <mhr/lora/passes.hpp>
#include <mhr/lora/routed_lora.hpp>

/// \file
/// LoRA whose modules' *outputs* are mixed, rather than their parameters: what serving a library of
/// LoRAs means, and mttl's `merge_after_op`. The weights enter once here, twice in
/// lora/routed_lora.hpp: a different function, equal to one LoRA of rank modules * rank. It takes a
/// `routed_lora` of one head, and gives the same gradients.

namespace mhr {

/// What a forward keeps for its backward. Its type, f32 or f64, is the type of all sums.
struct output_mixed_lora_state {
    tensor_ref<3> hidden; ///< [rows, modules, rank]: x a of each row and each module of its task
};

inline namespace MHR_ISA {

/// Takes the state of one layer from a workspace (or, from one without memory, tells its size).
/// Inference may use one state for all layers; training keeps one for each layer until its
/// backward.
inline output_mixed_lora_state
take_output_mixed_lora_state(workspace& memory, const batch& rows, const routed_lora& layer,
                             element_type sums = element_type::f32) noexcept {
    return {memory.take<3>(sums, {rows.plan.rows(), layer.a.extent(1), layer.a.extent(3)})};
}

/// Returns the bytes that take_output_mixed_lora_state takes.
inline std::size_t output_mixed_lora_state_size(const batch& rows, const routed_lora& layer,
                                                element_type sums = element_type::f32) noexcept {
    workspace meter;
    (void)take_output_mixed_lora_state(meter, rows, layer, sums);
    return meter.used();
}

/// Why output_mixed_lora_forward would refuse these arguments, or nothing: for hosts that fall
/// back.
inline std::string why_not(const batch& rows, const routed_lora& layer,
                           const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                           const output_mixed_lora_state& state);

/// y[row] += scale sum over modules of weights[g, 0, m] (x[row] A[m]) B[m] for every row that has a
/// task, g the row's entry in the plan. Rows of no task keep their y.
///
/// x [rows, in_features]; layer.a [1, modules, in_features, rank], layer.b [1, modules, rank,
/// out_features], layer.weights [entries, 1, modules]; y [rows, out_features] accumulates;
/// state.hidden [rows, modules, rank] receives x A[m]: the backward wants it. A module of weight 0
/// is not read, and its place in hidden left alone, as the rows of no task are: a large library
/// costs what is used of it.
///
/// One phase; y must not overlap x. These are refused: several heads; shapes that do not fit; f64
/// beside a state of f32; ranks that share the layer; a y or a state two of whose elements overlap.
/// The cost for R pairs of a row and a module whose weight is not 0 is R rank (in + out)
/// multiply-adds; y is read and written once.
inline void output_mixed_lora_forward(const batch& rows, const routed_lora& layer,
                                      const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                                      const output_mixed_lora_state& state);

/// Returns the bytes of workspace that output_mixed_lora_backward needs for sums of this type.
inline std::size_t
output_mixed_lora_backward_workspace_size(const batch& rows, const routed_lora& layer,
                                          element_type sums = element_type::f32) noexcept;

/// The backward of output_mixed_lora_forward, with its arguments and the state that it left. With
/// u[row, m] = d_y[row] B[m]^T:
///     gradients.x[row]      += scale sum over modules of weights[g, 0, m] u[row, m] A[m]^T
///     gradients.a[0, m]     += scale sum over entries g of weights[g, 0, m]
///                              sum over the rows of g of x[row]^T u[row, m]
///     gradients.b[0, m]     += the same of hidden[row, m]^T d_y[row]
///     gradients.weights[g, 0, m] += scale sum over the rows of g of hidden[row, m] u[row, m]^T
///
/// d_y [rows, out_features]; the gradients have the shapes of what they belong to. A module of
/// weight 0 gets no gradient and gives none to x, but its weight has a gradient: for that alone it
/// is read, and its x A[m] computed here.
///
/// It needs an executor that runs every part, and the workspace of
/// `output_mixed_lora_backward_workspace_size`. These are refused: what the forward refuses;
/// gradients whose shapes do not fit, or two of whose elements overlap; a workspace that is too
/// small. The cost for R pairs of a row and a module whose weight is not 0 is R rank (2 in + 2 out)
/// multiply-adds; the gradient of weights costs R' rank (in + out) more for the R' pairs of weight
/// 0.
inline void output_mixed_lora_backward(const batch& rows, const routed_lora& layer,
                                       const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_y,
                                       const output_mixed_lora_state& state,
                                       const routed_lora_gradients& gradients, workspace scratch);

namespace output_mixing_details {

inline void check_layer(argument_checks& checks, const batch& rows, const routed_lora& layer,
                        const const_tensor_ref<2>& x, const output_mixed_lora_state& state) {
    checks.sums_type("state.hidden", state.hidden.type());
    checks.sums_are(state.hidden.type());
    lora_details::check_layer(checks, rows, layer);
    const lora_shape shape = shape_of(layer.inventory());
    checks.expect(
        shape.heads == 1, "layer.a",
        [] {
            return std::string(
                "one head (the output of a module cannot be mixed in blocks of its rows)");
        },
        [&] { return std::to_string(shape.heads); });
    checks.expect(
        !rows.sum_over_ranks, "batch.sum_over_ranks",
        [] { return std::string("none (one head cannot be shared by ranks)"); },
        [] { return std::string("a sum"); });
    checks.input("x", x, {rows.plan.rows(), shape.in_features});
    checks.output("state.hidden", state.hidden, {rows.plan.rows(), shape.modules, shape.rank});
}

inline argument_checks check_forward(const batch& rows, const routed_lora& layer,
                                     const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                                     const output_mixed_lora_state& state) {
    argument_checks checks("output_mixed_lora_forward");
    check_layer(checks, rows, layer, x, state);
    checks.output("y", y, {rows.plan.rows(), layer.b.extent(3)});
    return checks;
}

/// The weights of an entry as those of each of its rows: [rows, modules].
inline const_tensor_ref<2> weights_of_rows(const batch& rows, const const_tensor_ref<2>& weights,
                                           index_t entry) noexcept {
    return {weights.address_of(entry, 0),
            weights.type(),
            {rows.plan.rows(), weights.extent(1)},
            {0, weights.stride(1)}};
}

/// Which weights of an entry are not 0.
inline bool is_used(const const_tensor_ref<2>& weights, index_t entry, index_t module) noexcept {
    double weight = 0;
    kernels::read_elements(weights.slice(0, entry).block(0, module, 1), &weight);
    return !(weight >= 0 && weight <= 0); // NaN is used, and spoils its task
}

/// The scratch memory of a backward.
struct backward_scratch {
    tensor_ref<3> u;               ///< [rows, modules, rank]
    tensor_ref<2> missing;         ///< [rows, rank]: x A[m] of a module of weight 0
    tensor_ref<2> weights_of_rows; ///< [rows, modules]: what each row adds to its weights' gradient

    static backward_scratch take(workspace& memory, const batch_plan& plan, const lora_shape& shape,
                                 element_type sums) noexcept {
        return {memory.take<3>(sums, {plan.rows(), shape.modules, shape.rank}),
                memory.take<2>(sums, {plan.rows(), shape.rank}),
                memory.take<2>(sums, {plan.rows(), shape.modules})};
    }
};

/// to[row] = the inner product of the rows `u` and `v`, for the rows of the set.
template <class A>
void multiply_rows(row_set rows, const tensor_view<const A, 2>& u, const tensor_view<const A, 2>& v,
                   const tensor_view<A, 1>& to) noexcept {
    for (index_t r = 0; r < rows.count; ++r) {
        const index_t row = rows.numbers[r];
        A sum = 0;
        for (index_t k = 0; k < u.extent(1); ++k)
            sum += u(row, k) * v(row, k);
        to(row) = sum;
    }
}

/// gradients[g, m] += scale * sum over the rows of g of of_rows[row, m].
template <class A>
void add_weight_gradients(const batch& rows, const tensor_view<const A, 2>& of_rows, double scale,
                          const tensor_ref<2>& gradients) {
    rows.executor.run(rows.plan.entries(), [&](index_t entry) noexcept {
        const auto numbers = rows.plan.rows_of(entry);
        for (index_t m = 0; m < of_rows.extent(1); ++m) {
            A sum = 0;
            for (index_t r = 0; r < numbers.extent(0); ++r)
                sum += of_rows(numbers(r), m);
            const auto target = gradients.slice(0, entry).block(0, m, 1);
            A value = 0;
            kernels::read_elements(target, &value);
            value += static_cast<A>(scale) * sum;
            kernels::write_elements(&value, target);
        }
    });
}

/// matrices[m, i, k] += scale * sum over entries g of weights[g, m] * sum over the rows of g of
/// wide[row, i] narrow[row, m, k]. A part owns some features of one module and adds the entries in
/// their order, so that each sum has one owner and is rounded once.
template <class A>
void add_module_gradients(const batch& rows, const const_tensor_ref<2>& wide,
                          const const_tensor_ref<3>& narrow, const const_tensor_ref<2>& weights,
                          double scale, const tensor_ref<3>& matrices) {
    constexpr index_t features = 128;
    constexpr index_t ranks = 16;
    const batch_plan& plan = rows.plan;
    const index_t n = matrices.extent(1);
    const index_t rank = matrices.extent(2);
    const index_t parts = (n + features - 1) / features;
    rows.executor.run(matrices.extent(0) * parts, [&](index_t part) noexcept {
        const index_t m = part / parts;
        const index_t i0 = part % parts * features;
        const index_t width = (std::min)(features, n - i0);
        for (index_t k0 = 0; k0 < rank; k0 += ranks) {
            const index_t depth = (std::min)(ranks, rank - k0);
            A memory[static_cast<std::size_t>(ranks * features)];
            const tensor_ref<2> sums(memory, {depth, width}, {features, 1});
            bool empty = true;
            for (index_t g = 0; g < plan.entries(); ++g) {
                if (!is_used(weights, g, m)) continue;
                A weight = 0;
                kernels::read_elements(weights.slice(0, g).block(0, m, 1), &weight);
                const auto numbers = plan.rows_of(g);
                kernels::add_outer_products({numbers.data(), numbers.extent(0)},
                                            wide.block(1, i0, width),
                                            narrow.slice(1, m).block(1, k0, depth),
                                            static_cast<double>(weight), sums, !empty, {});
                empty = false;
            }
            if (empty) continue;
            for (index_t k = 0; k < depth; ++k)
                for (index_t i = 0; i < width; ++i)
                    memory[k * features + i] *= static_cast<A>(scale);
            kernels::add_sums(
                sums, matrices.slice(0, m).block(0, i0, width).block(1, k0, depth).transpose(0, 1));
        }
    });
}

template <class A>
void backward(const batch& rows, const routed_lora& layer, const const_tensor_ref<2>& x,
              const const_tensor_ref<2>& d_y, const const_tensor_ref<3>& hidden,
              const routed_lora_gradients& gradients, const backward_scratch& scratch) {
    const auto a = layer.a.slice(0, 0);
    const auto b = layer.b.slice(0, 0);
    const auto weights = layer.weights.slice(1, 0);
    const bool wants_weights = !gradients.weights.absent();
    const index_t modules = a.extent(0);
    const auto& u = scratch.u;
    if (!gradients.x.absent() || !gradients.a.absent() || wants_weights) {
        const auto& blocks = rows.plan.data().blocks;
        rows.executor.run(static_cast<index_t>(blocks.size()), [&](index_t block) noexcept {
            const auto& range = blocks[static_cast<std::size_t>(block)];
            const row_set numbers = lora_details::rows_of(rows.plan, range);
            for (index_t m = 0; m < modules; ++m) {
                const bool used = is_used(weights, range.entry, m);
                if (!used && !wants_weights) continue;
                kernels::shrink(numbers, d_y, b.slice(0, m).transpose(0, 1), 1, u.slice(1, m));
                if (!wants_weights) continue;
                // What the forward left out is computed in `missing`.
                if (!used) kernels::shrink(numbers, x, a.slice(0, m), 1, scratch.missing);
                const const_tensor_ref<2> x_a =
                    used ? hidden.slice(1, m) : const_tensor_ref<2>(scratch.missing);
                multiply_rows<A>(numbers, x_a.as<A>(), as_const(u.slice(1, m).template as<A>()),
                                 scratch.weights_of_rows.slice(1, m).template as<A>());
            }
            if (!gradients.x.absent())
                kernels::expand_rows(numbers, u, weights_of_rows(rows, weights, range.entry),
                                     a.transpose(1, 2), layer.scale, gradients.x);
        });
        if (!gradients.a.absent())
            add_module_gradients<A>(rows, x, u, weights, layer.scale, gradients.a.slice(0, 0));
        if (wants_weights)
            add_weight_gradients<A>(rows, as_const(scratch.weights_of_rows.as<A>()), layer.scale,
                                    gradients.weights.slice(1, 0));
    }
    if (!gradients.b.absent())
        add_module_gradients<A>(rows, d_y, hidden, weights, layer.scale,
                                gradients.b.slice(0, 0).transpose(1, 2));
}

} // namespace output_mixing_details

inline std::string why_not(const batch& rows, const routed_lora& layer,
                           const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                           const output_mixed_lora_state& state) {
    return output_mixing_details::check_forward(rows, layer, x, y, state).why();
}

inline void output_mixed_lora_forward(const batch& rows, const routed_lora& layer,
                                      const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                                      const output_mixed_lora_state& state) {
    output_mixing_details::check_forward(rows, layer, x, y, state).raise();
    const auto a = layer.a.slice(0, 0);
    const auto b = layer.b.slice(0, 0);
    const auto weights = layer.weights.slice(1, 0);
    const auto& blocks = rows.plan.data().blocks;
    rows.executor.run(static_cast<index_t>(blocks.size()), [&](index_t block) noexcept {
        const auto& range = blocks[static_cast<std::size_t>(block)];
        const row_set numbers = lora_details::rows_of(rows.plan, range);
        for (index_t m = 0; m < a.extent(0); ++m)
            if (output_mixing_details::is_used(weights, range.entry, m))
                kernels::shrink(numbers, x, a.slice(0, m), 1, state.hidden.slice(1, m));
        kernels::expand_rows(numbers, state.hidden,
                             output_mixing_details::weights_of_rows(rows, weights, range.entry), b,
                             layer.scale, y);
    });
}

inline std::size_t output_mixed_lora_backward_workspace_size(const batch& rows,
                                                             const routed_lora& layer,
                                                             element_type sums) noexcept {
    workspace meter;
    (void)output_mixing_details::backward_scratch::take(meter, rows.plan,
                                                        shape_of(layer.inventory()), sums);
    return meter.used();
}

inline void output_mixed_lora_backward(const batch& rows, const routed_lora& layer,
                                       const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_y,
                                       const output_mixed_lora_state& state,
                                       const routed_lora_gradients& gradients, workspace scratch) {
    argument_checks checks("output_mixed_lora_backward");
    output_mixing_details::check_layer(checks, rows, layer, x, state);
    const lora_shape shape = shape_of(layer.inventory());
    const element_type sums = state.hidden.type();
    checks.input("d_y", d_y, {rows.plan.rows(), shape.out_features});
    checks.optional_output("gradients.x", gradients.x, x.extents());
    checks.optional_output("gradients.a", gradients.a, layer.a.extents());
    checks.optional_output("gradients.b", gradients.b, layer.b.extents());
    checks.optional_output("gradients.weights", gradients.weights, layer.weights.extents());
    checks.every_part(rows.executor);
    if (checks.passed())
        checks.workspace_size(scratch,
                              output_mixed_lora_backward_workspace_size(rows, layer, sums));
    checks.raise();

    const auto taken =
        output_mixing_details::backward_scratch::take(scratch, rows.plan, shape, sums);
    with_sums(sums, [&](auto zero) {
        output_mixing_details::backward<decltype(zero)>(rows, layer, x, d_y, state.hidden,
                                                        gradients, taken);
    });
}

} // namespace MHR_ISA
} // namespace mhr
