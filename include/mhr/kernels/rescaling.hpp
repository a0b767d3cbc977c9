#pragma once

#include <algorithm>

#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/dense_rows.hpp>

/// \file
/// The products of (IA)3: rows multiplied, element by element, by a vector of scales, and back.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// to[row, i] = from[row, i] scales[i] for the rows of the set, or with `accumulate` += that;
/// absent scales are 1. `to` may be `from`.
template <class Arch, class A>
void rescale_rows(row_set rows, const const_tensor_ref<2>& from, const const_tensor_ref<1>& scales,
                  const tensor_ref<2>& to, bool accumulate) noexcept {
    using V = vector<A, Arch>;
    constexpr index_t width = lanes<A, Arch>;
    dense_rows<Arch, A, 1> input;
    dense_rows<Arch, A, 1> factors;
    dense_output_rows<Arch, A, 1> output;
    const index_t zero = 0;
    for_chunks<Arch, A>(to.extent(1), chunk_columns<A>, [&](index_t first, index_t count) {
        const A* const s = scales.absent() ? nullptr
                                           : factors.read(row_set{&zero, 1}, scales.prepend_axis(),
                                                          first, count)[0];
        for (index_t r = 0; r < rows.count; ++r) {
            const row_set row{rows.numbers + r, 1};
            const A* const x = input.read(row, from, first, count)[0];
            A* const y = accumulate ? output.open(row, to, first, count)[0]
                                    : output.open_unread(row, to, first, count)[0];
            for (index_t i = 0; i < count; i += width) {
                V value = V::load_unaligned(x + i);
                if (s != nullptr && accumulate)
                    value = multiply_add(value, V::load_unaligned(s + i), V::load_unaligned(y + i));
                else if (s != nullptr)
                    value *= V::load_unaligned(s + i);
                else if (accumulate)
                    value += V::load_unaligned(y + i);
                value.store_unaligned(y + i);
            }
            output.write(row, to, first, count);
        }
    });
}

/// Columns whose sums over rows are kept on the stack.
inline constexpr index_t product_columns = 128;

/// sums[i] += sum over the rows of the set of x[row, i] d_y[row, i], in their order; each element
/// of sums is rounded once.
template <class Arch, class A>
void add_products_of_rows(row_set rows, const const_tensor_ref<2>& x,
                          const const_tensor_ref<2>& d_y, const tensor_ref<1>& sums) noexcept {
    using V = vector<A, Arch>;
    constexpr index_t width = lanes<A, Arch>;
    dense_rows<Arch, A, 1> left;
    dense_rows<Arch, A, 1> right;
    dense_output_rows<Arch, A, 1> output;
    const index_t zero = 0;
    for_chunks<Arch, A>(sums.extent(0), product_columns, [&](index_t first, index_t count) {
        alignas(64) A total[as_size(product_columns)] = {};
        for (index_t r = 0; r < rows.count; ++r) {
            const row_set row{rows.numbers + r, 1};
            const A* const u = left.read(row, x, first, count)[0];
            const A* const v = right.read(row, d_y, first, count)[0];
            for (index_t i = 0; i < count; i += width)
                multiply_add(V::load_unaligned(u + i), V::load_unaligned(v + i),
                             V::load_aligned(total + i))
                    .store_aligned(total + i);
        }
        const row_set only{&zero, 1};
        const tensor_ref<2> row = sums.prepend_axis();
        A* const to = output.open(only, row, first, count)[0];
        for (index_t i = 0; i < count; i += width)
            (V::load_unaligned(to + i) + V::load_aligned(total + i)).store_unaligned(to + i);
        output.write(only, row, first, count);
    });
}

/// elements[i] *= factor, or /= it.
template <class Arch, class A>
void rescale_run(const tensor_ref<1>& elements, double factor, bool divide) noexcept {
    alignas(64) A buffer[as_size(chunk_columns<A>)];
    const A number = static_cast<A>(factor);
    for_groups(elements.extent(0), chunk_columns<A>, [&](index_t first, index_t count) {
        void* const at = elements.address_of(first);
        read_run<Arch>(elements.type(), at, elements.stride(0), count, buffer);
        for (index_t i = 0; i < count; ++i)
            buffer[i] = divide ? buffer[i] / number : buffer[i] * number;
        write_run<Arch>(static_cast<const A*>(buffer), count, elements.type(), at,
                        elements.stride(0));
    });
}

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr
