#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/kernels.hpp>

/// \file
/// What a prototype gate does to rows, or to its prototypes, before their products: the norms that
/// mttl offers. `norm_d` is a layer norm, `unit` a division by the length; `norm_p` is the layer
/// norm across the prototypes, feature by feature: that of the rows of the prototypes'
/// `.transpose(0, 1)`. Its `id` needs no call.

namespace mhr {

/// How a row is normalised.
enum class row_norm : unsigned char {
    layer, ///< (x - mean) / sqrt(variance + 1e-5), with the mean of squares and no parameters
    unit   ///< x / max(|x|, 1e-8)
};

/// Added to the variance in a layer norm, and the least length of a row.
/// @{
inline constexpr double layer_norm_epsilon = 1e-5;
inline constexpr double unit_norm_epsilon = 1e-8;
/// @}

inline namespace MHR_ISA {

/// y[row] = x[row] normalised. Sums are f64 if a tensor is, else f32.
///
/// x [rows, features]; y [rows, features], overwritten; it may be x itself.
///
/// It has one phase. These are refused: tensors of other shapes or without memory; y of which
/// elements overlap; a number that is no norm. The cost is about 3 rows features multiply-adds.
inline void row_norm_forward(executor_ref executor, row_norm norm, const const_tensor_ref<2>& x,
                             const tensor_ref<2>& y);

/// The backward of row_norm_forward, with its norm and x. With y the normalised row and n the
/// number of features,
///     layer: d_x += (d_y - mean of d_y - y mean of y d_y) / sqrt(variance + 1e-5)
///     unit:  d_x += (d_y - y sum of y d_y) / |x|, or d_y / 1e-8 where |x| is less than that
///
/// d_y [rows, features]; d_x [rows, features] accumulates.
///
/// It has one phase. These are refused: what the forward refuses; d_y or d_x of another shape than
/// x; d_x of which elements overlap. The cost is about 6 rows features multiply-adds and as many
/// divisions as elements.
inline void row_norm_backward(executor_ref executor, row_norm norm, const const_tensor_ref<2>& x,
                              const const_tensor_ref<2>& d_y, const tensor_ref<2>& d_x);

namespace row_norm_details {

/// Elements that are converted at a time, and partial sums that are enough to fill registers.
inline constexpr index_t chunk = 512;
inline constexpr index_t partial_sums = 16;
/// What an element of the forward costs, in multiply-adds of a kernel.
inline constexpr index_t cost_of_element = 32;

inline void check_arguments(argument_checks& checks, row_norm norm, const const_tensor_ref<2>& x) {
    checks.expect(norm == row_norm::layer || norm == row_norm::unit, "norm",
                  "row_norm::layer or row_norm::unit", joined("number ", static_cast<int>(norm)));
    checks.input("x", x);
}

/// Calls `f(first, count, numbers, others)` for chunks of two rows of one length. The second may be
/// absent: then others are the numbers.
template <class A, class Function>
void for_chunks(const const_tensor_ref<1>& x, const const_tensor_ref<1>& other, Function&& f) {
    A numbers[static_cast<std::size_t>(chunk)];
    A others[static_cast<std::size_t>(chunk)];
    for (index_t first = 0; first < x.extent(0); first += chunk) {
        const index_t count = (std::min)(chunk, x.extent(0) - first);
        kernels::read_elements(x.block(0, first, count), numbers);
        if (!other.absent()) kernels::read_elements(other.block(0, first, count), others);
        // Never numbers that nobody has written.
        f(first, count, numbers, other.absent() ? numbers : others);
    }
}

/// The sum of f(number, other) over two rows, in an order that the length alone decides.
template <class A, class Function>
A sum_of(const const_tensor_ref<1>& x, const const_tensor_ref<1>& other, Function&& f) {
    A sums[static_cast<std::size_t>(partial_sums)] = {};
    for_chunks<A>(x, other, [&](index_t, index_t count, const A* u, const A* v) {
        index_t i = 0;
        for (; i + partial_sums <= count; i += partial_sums)
            for (index_t k = 0; k < partial_sums; ++k)
                sums[k] += f(u[i + k], v[i + k]);
        for (index_t k = 0; i + k < count; ++k)
            sums[k] += f(u[i + k], v[i + k]);
    });
    A total = 0;
    for (A sum : sums)
        total += sum;
    return total;
}

/// y = (x - shift) / divisor of one row.
template <class A>
struct normalised {
    A shift = 0;
    A divisor = 1;
    bool is_constant = false; ///< the divisor is the least length, not that of the row

    A operator()(A x) const noexcept { return (x - shift) / divisor; }
};

template <class A>
normalised<A> norm_of(row_norm norm, const const_tensor_ref<1>& x) {
    normalised<A> result;
    const auto features = static_cast<A>(x.extent(0));
    if (norm == row_norm::layer) {
        result.shift = sum_of<A>(x, {}, [](A u, A) { return u; }) / features;
        const A squares =
            sum_of<A>(x, {}, [mean = result.shift](A u, A) { return (u - mean) * (u - mean); });
        result.divisor = std::sqrt(squares / features + static_cast<A>(layer_norm_epsilon));
    } else {
        const auto least = static_cast<A>(unit_norm_epsilon);
        const A length = std::sqrt(sum_of<A>(x, {}, [](A u, A) { return u * u; }));
        result.is_constant = length < least;
        result.divisor = result.is_constant ? least : length;
    }
    return result;
}

template <class A>
void forward(row_norm norm, const const_tensor_ref<1>& x, const tensor_ref<1>& y) {
    const normalised<A> of = norm_of<A>(norm, x);
    for_chunks<A>(x, {}, [&](index_t first, index_t count, A* numbers, const A*) {
        for (index_t i = 0; i < count; ++i)
            numbers[i] = of(numbers[i]);
        kernels::write_elements(numbers, y.block(0, first, count));
    });
}

template <class A>
void backward(row_norm norm, const const_tensor_ref<1>& x, const const_tensor_ref<1>& d_y,
              const tensor_ref<1>& d_x) {
    const normalised<A> of = norm_of<A>(norm, x);
    const auto features = static_cast<A>(x.extent(0));
    const bool is_layer = norm == row_norm::layer;
    A mean = 0;
    A along = 0;
    if (is_layer) mean = sum_of<A>(d_y, {}, [](A d, A) { return d; }) / features;
    if (!of.is_constant) along = sum_of<A>(x, d_y, [&](A u, A d) { return of(u) * d; });
    if (is_layer) along /= features;
    for_chunks<A>(x, d_y, [&](index_t first, index_t count, const A* u, A* d) {
        A sums[static_cast<std::size_t>(chunk)];
        kernels::read_elements(d_x.block(0, first, count), sums);
        for (index_t i = 0; i < count; ++i)
            sums[i] += (d[i] - mean - of(u[i]) * along) / of.divisor;
        kernels::write_elements(sums, d_x.block(0, first, count));
    });
}

} // namespace row_norm_details

inline void row_norm_forward(executor_ref executor, row_norm norm, const const_tensor_ref<2>& x,
                             const tensor_ref<2>& y) {
    argument_checks checks("row_norm_forward");
    row_norm_details::check_arguments(checks, norm, x);
    checks.output("y", y, x.extents());
    checks.raise();
    with_sums(sums_of(x.type(), y.type()), [&](auto zero) {
        executor.run(x.extent(0), row_norm_details::cost_of_element * x.extent(1),
                     [&](index_t row) noexcept {
                         row_norm_details::forward<decltype(zero)>(norm, x.slice(0, row),
                                                                   y.slice(0, row));
                     });
    });
}

inline void row_norm_backward(executor_ref executor, row_norm norm, const const_tensor_ref<2>& x,
                              const const_tensor_ref<2>& d_y, const tensor_ref<2>& d_x) {
    argument_checks checks("row_norm_backward");
    row_norm_details::check_arguments(checks, norm, x);
    checks.input("d_y", d_y, x.extents());
    checks.output("d_x", d_x, x.extents());
    checks.raise();
    with_sums(sums_of(sums_of(x.type(), d_y.type()), d_x.type()), [&](auto zero) {
        executor.run(x.extent(0), 2 * row_norm_details::cost_of_element * x.extent(1),
                     [&](index_t row) noexcept {
                         row_norm_details::backward<decltype(zero)>(
                             norm, x.slice(0, row), d_y.slice(0, row), d_x.slice(0, row));
                     });
    });
}

} // namespace MHR_ISA
} // namespace mhr
