#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/kernels/kernels.hpp>

/// \file
/// The gate of rows: logits that are linear in a row's activations, x G + bias. A column of G is
/// the prototype of a module: with prototypes [modules, features], as Arrow and Phatgoose keep
/// them, G is their `.transpose(0, 1)`, which is also the fastest layout. Norms of rows or
/// prototypes are applied beforehand (routing/rows/row_norm.hpp); what becomes of the logits is up
/// to row_weights_forward.

namespace mhr {

/// The parameters of a gate.
struct row_gate {
    const_tensor_ref<2> matrix{}; ///< G [features, modules]
    const_tensor_ref<1> bias{};   ///< [modules], or absent
};

/// Its gradients. Each is added to; one that is absent is not computed.
struct row_gate_gradients {
    tensor_ref<2> x{};      ///< [rows, features]
    tensor_ref<2> matrix{}; ///< [features, modules]
    tensor_ref<1> bias{};   ///< [modules]
};

inline namespace MHR_ISA {

/// Why row_gate_forward would refuse these arguments, or nothing: for hosts that fall back.
inline std::string why_not(const row_gate& gate, const const_tensor_ref<2>& x,
                           const tensor_ref<2>& logits);

/// logits[row, m] = sum over features of x[row, i] G[i, m], + bias[m] if there is one.
///
/// x [rows, features]; logits [rows, modules], overwritten, of f32 or f64: the type of all sums.
///
/// It has one phase. These are refused: shapes that do not fit; f64 beside logits of f32; logits of
/// which elements overlap. The cost is rows features modules multiply-adds; x is read once.
inline void row_gate_forward(executor_ref executor, const row_gate& gate,
                             const const_tensor_ref<2>& x, const tensor_ref<2>& logits);

/// Returns the bytes of workspace that row_gate_backward needs for sums of this type; none unless
/// the gradient of the matrix is wanted.
inline std::size_t row_gate_backward_workspace_size(const row_gate& gate,
                                                    const row_gate_gradients& gradients,
                                                    element_type sums = element_type::f32) noexcept;

/// The backward of row_gate_forward, with its gate and x:
///     gradients.x[row]    += d_logits[row] G^T
///     gradients.matrix    += sum over rows of x[row]^T d_logits[row]
///     gradients.bias      += sum over rows of d_logits[row]
///
/// d_logits [rows, modules], of f32 or f64: the type of all sums.
///
/// It has one phase, whose participants share one workspace. These are refused: what the forward
/// refuses; gradients whose shapes do not fit, or of which elements overlap; a workspace that is
/// too small. The cost is rows features modules multiply-adds for each of x and the matrix.
inline void row_gate_backward(executor_ref executor, const row_gate& gate,
                              const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_logits,
                              const row_gate_gradients& gradients, workspace scratch);

namespace row_gate_details {

/// Rows that a part of the work owns, and rows whose outer products are summed at a time.
inline constexpr index_t rows_per_part = 24;
inline constexpr index_t rows_at_a_time = 48;
/// Features of the matrix's gradient that a part owns.
inline constexpr index_t features_per_part = 512;

constexpr index_t parts_of(index_t extent, index_t size) noexcept {
    return extent / size + (extent % size != 0);
}

/// Calls `f` with the rows [first, first + count), by number; there are at most rows_at_a_time.
template <class Function>
void with_rows(index_t first, index_t count, Function&& f) {
    index_t numbers[static_cast<std::size_t>(rows_at_a_time)];
    std::iota(numbers, numbers + count, first);
    f(row_set{numbers, count});
}

inline void check_arguments(argument_checks& checks, const row_gate& gate,
                            const const_tensor_ref<2>& x, const char* name,
                            const const_tensor_ref<2>& logits) {
    checks.sums_type(name, logits.type());
    checks.sums_are(logits.type());
    checks.input("x", x);
    checks.input("gate.matrix", gate.matrix, {x.extent(1), any_extent});
    if (!gate.bias.absent()) checks.input("gate.bias", gate.bias, {gate.matrix.extent(1)});
}

inline argument_checks check_forward(const row_gate& gate, const const_tensor_ref<2>& x,
                                     const tensor_ref<2>& logits) {
    argument_checks checks("row_gate_forward");
    check_arguments(checks, gate, x, "logits", logits);
    checks.output("logits", logits, {x.extent(0), gate.matrix.extent(1)});
    return checks;
}

/// logits[row] += bias for some rows.
inline void add_bias(const const_tensor_ref<1>& bias, const tensor_ref<2>& logits) noexcept {
    with_sums(logits.type(), [&](auto zero) {
        using A = decltype(zero);
        const element_row<A> numbers(bias.type(), bias.data(), bias.stride(0), bias.extent(0));
        for (index_t row = 0; row < logits.extent(0); ++row) {
            const element_row_output<A> to(logits.type(), logits.address_of(row, 0),
                                           logits.stride(1));
            for (index_t m = 0; m < logits.extent(1); ++m)
                to.add(m, numbers[m]);
        }
    });
}

/// gradient[m] += sum over rows of d_logits[row, m]
inline void add_column_sums(const const_tensor_ref<2>& d_logits,
                            const tensor_ref<1>& gradient) noexcept {
    with_sums(d_logits.type(), [&](auto zero) {
        using A = decltype(zero);
        for (index_t m = 0; m < d_logits.extent(1); ++m) {
            const element_row<A> column(d_logits.type(), d_logits.address_of(0, m),
                                        d_logits.stride(0), d_logits.extent(0));
            A sum = 0;
            for (index_t row = 0; row < d_logits.extent(0); ++row)
                sum += column[row];
            element_row_output<A>(gradient.type(), gradient.address_of(m), 1).add(0, sum);
        }
    });
}

} // namespace row_gate_details

inline std::string why_not(const row_gate& gate, const const_tensor_ref<2>& x,
                           const tensor_ref<2>& logits) {
    return row_gate_details::check_forward(gate, x, logits).why();
}

inline void row_gate_forward(executor_ref executor, const row_gate& gate,
                             const const_tensor_ref<2>& x, const tensor_ref<2>& logits) {
    row_gate_details::check_forward(gate, x, logits).raise();
    constexpr index_t size = row_gate_details::rows_per_part;
    const index_t rows = x.extent(0);
    const index_t cost = size * x.extent(1) * logits.extent(1);
    executor.run(row_gate_details::parts_of(rows, size), cost, [&](index_t part) noexcept {
        const index_t first = part * size;
        const index_t count = (std::min)(size, rows - first);
        row_gate_details::with_rows(
            first, count, [&](row_set some) { kernels::shrink(some, x, gate.matrix, 1, logits); });
        if (!gate.bias.absent())
            row_gate_details::add_bias(gate.bias, logits.block(0, first, count));
    });
}

inline std::size_t row_gate_backward_workspace_size(const row_gate& gate,
                                                    const row_gate_gradients& gradients,
                                                    element_type sums) noexcept {
    workspace meter;
    if (!gradients.matrix.absent())
        (void)meter.take_rows<2>(sums, {gate.matrix.extent(1), gate.matrix.extent(0)});
    return meter.used();
}

inline void row_gate_backward(executor_ref executor, const row_gate& gate,
                              const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_logits,
                              const row_gate_gradients& gradients, workspace scratch) {
    argument_checks checks("row_gate_backward");
    row_gate_details::check_arguments(checks, gate, x, "d_logits", d_logits);
    checks.input("d_logits", d_logits, {x.extent(0), gate.matrix.extent(1)});
    checks.optional_output("gradients.x", gradients.x, x.extents());
    checks.optional_output("gradients.matrix", gradients.matrix, gate.matrix.extents());
    checks.optional_output("gradients.bias", gradients.bias, {gate.matrix.extent(1)});
    if (checks.passed())
        checks.workspace_size(scratch,
                              row_gate_backward_workspace_size(gate, gradients, d_logits.type()));
    checks.raise();

    const index_t rows = x.extent(0);
    const index_t features = x.extent(1);
    const index_t modules = d_logits.extent(1);
    if (!gradients.x.absent()) {
        constexpr index_t size = row_gate_details::rows_per_part;
        executor.run(row_gate_details::parts_of(rows, size), size * features * modules,
                     [&](index_t part) noexcept {
                         const index_t first = part * size;
                         row_gate_details::with_rows(
                             first, (std::min)(size, rows - first), [&](row_set some) {
                                 kernels::expand(some, d_logits, gate.matrix.transpose(0, 1), 1,
                                                 gradients.x);
                             });
                     });
    }
    if (!gradients.matrix.absent() && rows > 0) {
        // A part owns some features of all modules: no two parts write to one address, and the rows
        // are summed in their order.
        const auto sums = scratch.take_rows<2>(d_logits.type(), {modules, features});
        constexpr index_t size = row_gate_details::features_per_part;
        executor.run(
            row_gate_details::parts_of(features, size), size * rows * modules,
            [&](index_t part) noexcept {
                const index_t first = part * size;
                const index_t count = (std::min)(size, features - first);
                const auto of_part = sums.block(1, first, count);
                constexpr index_t step = row_gate_details::rows_at_a_time;
                for (index_t row = 0; row < rows; row += step)
                    row_gate_details::with_rows(
                        row, (std::min)(step, rows - row), [&](row_set some) {
                            kernels::add_outer_products(some, x.block(1, first, count), d_logits, 1,
                                                        of_part, row != 0, {});
                        });
                kernels::add_sums(of_part, gradients.matrix.block(0, first, count).transpose(0, 1));
            });
    }
    if (!gradients.bias.absent())
        executor.run(1, [&](index_t) noexcept {
            row_gate_details::add_column_sums(d_logits, gradients.bias);
        });
}

} // namespace MHR_ISA
} // namespace mhr
