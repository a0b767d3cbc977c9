#pragma once

#include <mhr/core/element_access.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/dense_rows.hpp>

// Step 2: the kernel, to copy into a header of include/mhr/kernels/. Architecture and type of sums
// are the template parameters, and nothing else is: element types are data, which dense_rows looks
// at once for a chunk of a row. A kernel of the library is then declared for callers in
// kernels/kernels.hpp.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// y[row, i] += gates[row] x[row, i] for the rows of the set.
///
/// x and y [rows, n], gates [rows]; y accumulates, and each element is rounded once. An element
/// takes one multiply-add.
template <class Arch, class A>
void add_gated_rows(row_set rows, const const_tensor_ref<2>& x, const const_tensor_ref<1>& gates,
                    const tensor_ref<2>& y) noexcept {
    using V = vector<A, Arch>;
    constexpr index_t width = lanes<A, Arch>;
    dense_rows<Arch, A, 1> input;
    dense_output_rows<Arch, A, 1> output;
    for (index_t r = 0; r < rows.count; ++r) {
        const row_set row{rows.numbers + r, 1};
        const V gate(read_number<A>(gates.type(), gates.address_of(*row.numbers)));
        for_chunks<Arch, A>(y.extent(1), chunk_columns<A>, [&](index_t first, index_t count) {
            const A* const from = input.read(row, x, first, count)[0];
            A* const to = output.open(row, y, first, count)[0];
            for (index_t i = 0; i < count; i += width)
                multiply_add(gate, V::load_unaligned(from + i), V::load_unaligned(to + i))
                    .store_unaligned(to + i);
            output.write(row, y, first, count);
        });
    }
}

/// The backward of add_gated_rows to the gates: d_gates[row] += sum over i of x[row, i] d_y[row,
/// i]. (To x, it is add_gated_rows itself, from d_y.)
///
/// x and d_y [rows, n]; d_gates [rows] accumulates, and each element is rounded once. The order of
/// a sum depends on n alone: lane k sums the elements k, k + lanes, .., then the lanes are summed.
template <class Arch, class A>
void add_gate_gradients(row_set rows, const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_y,
                        const tensor_ref<1>& d_gates) noexcept {
    using V = vector<A, Arch>;
    constexpr index_t width = lanes<A, Arch>;
    dense_rows<Arch, A, 1> left;
    dense_rows<Arch, A, 1> right;
    for (index_t r = 0; r < rows.count; ++r) {
        const row_set row{rows.numbers + r, 1};
        V total(A(0));
        for_chunks<Arch, A>(x.extent(1), chunk_columns<A>, [&](index_t first, index_t count) {
            const A* const u = left.read(row, x, first, count)[0];
            const A* const v = right.read(row, d_y, first, count)[0];
            for (index_t i = 0; i < count; i += width)
                total = multiply_add(V::load_unaligned(u + i), V::load_unaligned(v + i), total);
        });
        alignas(64) A of_lanes[as_size(width)];
        total.store_aligned(of_lanes);
        A sum = 0;
        for (A number : of_lanes)
            sum += number;
        void* const to = d_gates.address_of(*row.numbers);
        write_number(d_gates.type(), to, read_number<A>(d_gates.type(), to) + sum);
    }
}

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr
