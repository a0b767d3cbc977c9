#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/dense_rows.hpp>
#include <mhr/kernels/simd/tiles.hpp>
#include <mhr/kernels/simd/transpose.hpp>

/// \file
/// Mixing the matrices of one head, and back, in parts: those of eight modules (4 KiB each forward,
/// 2 KiB backward) stay in an L1 of 32 KiB or more while 32 entries take their mixtures from them,
/// so that a module is read from memory once for all of these. Up to 128 KiB of stack.
///
/// Nothing is checked here: the entry points of lora/ and ia3/ have done that.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// Outputs, and inputs, of which the runs are kept in L1 beside each other.
inline constexpr index_t module_group = 8;
inline constexpr index_t entry_group = 32;

/// Entries for which runs of another type are rather converted twice than copied.
inline constexpr index_t few_entries = 8;

/// Columns of rows that are too short to be worth a walk of their own, beside which a copy of them
/// costs little.
inline constexpr index_t short_columns = 128;

/// A part of the matrix that a module, or a mixture, has in one head: rows [p, p + rows), columns
/// [q, q + columns).
struct matrix_part {
    index_t p, rows, q, columns;
    [[nodiscard]] index_t size() const noexcept { return rows * columns; }
};

/// Rows of the parts of a matrix that is stored by columns, whose runs are that short then: as many
/// as are transposed in registers, or, of another type, enough to convert them in vectors.
template <class A>
index_t rows_of_tall_parts(element_type type) noexcept {
    return type == element_type_of_v<A> ? 4 : 16;
}

/// Calls `f(part)` for parts that cover a part of a matrix, of at most `limit` elements (a multiple
/// of 256): parts of one row, `whole` rows, or, unless `height` is 1, of at least so many rows
/// where there are so many.
template <class Function>
void for_parts(const matrix_part& all, index_t limit, index_t height, bool whole, Function&& f) {
    const index_t across = (std::min)(all.columns, limit / height);
    const index_t fit = limit / (std::max)(across, index_t(1));
    const index_t down = height > 1 ? fit / height * height : whole ? fit : 1;
    for_groups(all.rows, down, [&](index_t p, index_t rows) {
        for_groups(all.columns, across, [&](index_t q, index_t columns) {
            f(matrix_part{all.p + p, rows, all.q + q, columns});
        });
    });
}

/// Matrices [items, P, Q] whose parts are runs of whole vectors of A: where they are, or in a
/// buffer, padded with zeros. `Void` is void where they are written.
template <class Arch, class A, class Void>
class matrix_runs {
  public:
    explicit matrix_runs(const basic_tensor_ref<Void, 3>& matrices) noexcept
        : matrices_(matrices),
          rows_(matrices.extent(1) == 1 ? matrices.extent(2) : matrices.stride(1)),
          columns_(matrices.extent(2) == 1 ? 1 : matrices.stride(2)) {}

    /// True if a part is such a run, but for its type.
    [[nodiscard]] bool has_stored_run(const matrix_part& part) const noexcept {
        return columns_ == 1 && (part.rows == 1 || rows_ == part.columns) &&
               part.size() % lanes<A, Arch> == 0;
    }

    /// True if a part is such a run already.
    [[nodiscard]] bool has_run(const matrix_part& part) const noexcept {
        return matrices_.type() == element_type_of_v<A> && has_stored_run(part);
    }

    /// The run of a part, or a copy of it in the buffer.
    [[nodiscard]] const A* read(index_t item, const matrix_part& part, A* buffer) const noexcept {
        if (has_run(part)) return static_cast<const A*>(at(item, part));
        copy_in<Arch>(const_tensor_ref<2>(view(item, part)), buffer, part.columns);
        std::fill(buffer + part.size(), buffer + padded<Arch, A>(part.size()), A(0));
        return buffer;
    }

    /// The run of a part, or else the buffer.
    [[nodiscard]] A* in_place(index_t item, const matrix_part& part, A* buffer) const noexcept {
        return has_run(part) ? static_cast<A*>(at(item, part)) : buffer;
    }

    /// Rounds a run to the part that it is of, unless it is there already.
    void write(const A* run, index_t item, const matrix_part& part) const noexcept {
        if (!has_run(part)) copy_out<Arch>(run, part.columns, view(item, part));
    }

    /// Where a part begins.
    [[nodiscard]] Void* at(index_t item, const matrix_part& part) const noexcept {
        return matrices_.address_of(item, part.p, part.q);
    }

  private:
    [[nodiscard]] basic_tensor_ref<Void, 2> view(index_t item,
                                                 const matrix_part& part) const noexcept {
        return {at(item, part), matrices_.type(), {part.rows, part.columns}, {rows_, columns_}};
    }

    basic_tensor_ref<Void, 3> matrices_;
    index_t rows_, columns_;
};

/// Matrices whose rows are dense one behind the other are matrices of one long row.
/// @{
template <class Void>
bool has_joined_rows(const basic_tensor_ref<Void, 3>& matrices) noexcept {
    return matrices.absent() || matrices.slice(0, 0).is_contiguous();
}
template <class Void>
basic_tensor_ref<Void, 3> with_joined_rows(const basic_tensor_ref<Void, 3>& matrices) noexcept {
    // Matrices of no module, which have no memory, have extents all the same.
    return {matrices.data(),
            matrices.type(),
            {matrices.extent(0), 1, matrices.extent(1) * matrices.extent(2)},
            {matrices.stride(0), 0, 1}};
}
/// @}

/// A table of weights, and the combinations of runs with them.
template <class Arch, class A, index_t Outputs, index_t Inputs>
class weight_table {
  public:
    static_assert(Inputs <= 32, "mhr: one bit of used_ for each input");

    /// Takes the weights [outputs, inputs].
    void read(const const_tensor_ref<2>& weights) noexcept {
        outputs_ = weights.extent(0);
        inputs_ = weights.extent(1);
        used_ = 0;
        for (index_t n = 0; n < outputs_; ++n) {
            A* const row = values_ + n * Inputs;
            rows_[n] = row;
            read_run<Arch>(weights.type(), weights.address_of(n, 0), weights.stride(1), inputs_,
                           row);
            std::uint32_t used = 0;
            for (index_t m = 0; m < inputs_; ++m)
                used |= std::uint32_t(is_exactly(row[m], 0) ? 0 : 1) << m;
            used_ |= used;
            complete_[n] = used == all_inputs();
        }
    }

    /// True if some output takes input m.
    [[nodiscard]] bool uses(index_t m) const noexcept { return ((used_ >> m) & 1U) != 0; }

    /// outputs[n] = sum over m of weights[n, m] inputs[m] over `size` elements, or += that if it
    /// should `accumulate`. An input of weight 0 is not read for that output.
    template <class T>
    void combine(const T* const* inputs, index_t size, A* const* outputs,
                 bool accumulate) const noexcept {
        for (index_t n = 0; n < outputs_;) {
            index_t next = n;
            while (next < outputs_ && complete_[next])
                ++next;
            if (next > n) {
                add_combinations<Arch>(rows_ + n, inputs, inputs_, size,
                                       combined<A>{outputs + n, A(1), accumulate}, next - n);
                n = next;
                continue;
            }
            A used_weights[as_size(Inputs)];
            const T* used_inputs[as_size(Inputs)];
            index_t used = 0;
            for (index_t m = 0; m < inputs_; ++m)
                if (!is_exactly(rows_[n][m], 0)) {
                    used_weights[used] = rows_[n][m];
                    used_inputs[used++] = inputs[m];
                }
            const A* const coefficients[] = {used_weights};
            if (!accumulate || used != 0)
                add_combinations<Arch>(coefficients, used_inputs, used, size,
                                       combined<A>{outputs + n, A(1), accumulate}, 1);
            ++n;
        }
    }

  private:
    [[nodiscard]] std::uint32_t all_inputs() const noexcept {
        return inputs_ == 32 ? ~std::uint32_t(0) : (std::uint32_t(1) << inputs_) - 1;
    }

    index_t outputs_ = 0, inputs_ = 0;
    std::uint32_t used_ = 0;
    A values_[as_size(Outputs * Inputs)];
    const A* rows_[as_size(Outputs)];
    bool complete_[as_size(Outputs)];
};

/// mixed[n, p, q] = sum over modules of weights[n, m] modules[m, p, q]. A module of weight 0 is not
/// read for that entry.
template <class Arch, class A>
void mix_matrices(const const_tensor_ref<2>& weights, const_tensor_ref<3> modules,
                  tensor_ref<3> mixed) noexcept {
    const index_t count = modules.extent(0);
    // Where rows of modules become columns of mixtures, the fewer of them are transposed.
    if (mixed.stride(1) == 1 && mixed.stride(2) != 1 && weights.extent(0) >= count) {
        modules = modules.transpose(1, 2);
        mixed = mixed.transpose(1, 2);
    }
    const bool joined = has_joined_rows(modules);
    if (joined && has_joined_rows(mixed)) {
        modules = with_joined_rows(modules);
        mixed = with_joined_rows(mixed);
    }
    constexpr auto limit = static_cast<index_t>(4096 / sizeof(A));
    constexpr auto limit_of_copies = static_cast<index_t>(1024 / sizeof(A));
    alignas(64) A module_buffer[as_size(module_group)][as_size(limit)];
    alignas(64) A output_buffer[as_size(entry_group)][as_size(limit_of_copies)];
    const bool dense = is_dense<A>(mixed.slice(0, 0));
    const matrix_runs<Arch, A, const void> input(modules);
    const matrix_runs<Arch, A, void> output(mixed);
    weight_table<Arch, A, entry_group, module_group> table;
    for_groups(weights.extent(0), entry_group, [&](index_t n0, index_t entries) {
        const auto weights_of = [&](index_t first, index_t depth) {
            return weights.block(0, n0, entries).block(1, first, depth);
        };
        if (count <= module_group) table.read(weights_of(0, count));
        const auto mix_part = [&](const matrix_part& part) {
            // In place, row by row, or all rows in the buffer.
            const bool in_place = dense && part.columns % lanes<A, Arch> == 0;
            const index_t steps = in_place ? part.rows : 1;
            const index_t size = in_place ? part.columns : padded<Arch, A>(part.size());
            const auto combine = [&](auto* runs, index_t first, index_t depth) {
                A* outputs[as_size(entry_group)];
                for (index_t n = 0; n < entries; ++n)
                    outputs[n] = in_place
                                     ? output.in_place(n0 + n, {part.p, 1, part.q, part.columns},
                                                       output_buffer[n])
                                     : output_buffer[as_size(n)];
                for (index_t step = 0; step < steps; ++step) {
                    table.combine(runs, size, outputs, first != 0);
                    if (step + 1 == steps) return;
                    for (index_t m = 0; m < depth; ++m)
                        runs[m] += size;
                    for (index_t n = 0; n < entries; ++n)
                        outputs[n] += mixed.stride(1);
                }
            };
            // 16-bit runs are widened on the way where few entries take them.
            const auto combine_stored = [&](auto* null, index_t first, index_t depth) {
                decltype(null) runs[as_size(module_group)];
                for (index_t m = 0; m < depth; ++m)
                    runs[m] = static_cast<decltype(null)>(input.at(first + m, part));
                combine(runs, first, depth);
            };
            const bool direct = entries <= few_entries && input.has_stored_run(part);
            const auto mix_group = [&](index_t first, index_t depth) {
                if (count > module_group) table.read(weights_of(first, depth));
                if constexpr (widens_in_tiles<bf16, A, Arch>)
                    if (direct && modules.type() == element_type::bf16)
                        return combine_stored(static_cast<const bf16*>(nullptr), first, depth);
                if constexpr (widens_in_tiles<f16, A, Arch>)
                    if (direct && modules.type() == element_type::f16)
                        return combine_stored(static_cast<const f16*>(nullptr), first, depth);
                const A* runs[as_size(module_group)];
                for (index_t m = 0; m < depth; ++m)
                    runs[m] = table.uses(m) ? input.read(first + m, part, module_buffer[m])
                                            : module_buffer[as_size(m)];
                combine(runs, first, depth);
            };
            mix_group(0, (std::min)(count, module_group));
            for (index_t first = module_group; first < count; first += module_group)
                mix_group(first, (std::min)(module_group, count - first));
            if (in_place) return;
            for (index_t n = 0; n < entries; ++n)
                copy_out<Arch>(static_cast<const A*>(output_buffer[n]), part.columns,
                               mixed.slice(0, n0 + n)
                                   .block(0, part.p, part.rows)
                                   .block(1, part.q, part.columns));
        };
        const index_t rows = modules.extent(1);
        const index_t columns = modules.extent(2);
        const index_t whole = dense ? columns / lanes<A, Arch> * lanes<A, Arch> : 0;
        const bool tall = modules.stride(2) != 1 || mixed.stride(2) != 1;
        const index_t height = tall ? rows_of_tall_parts<A>(modules.type()) : 1;
        for_parts({0, rows, 0, whole}, limit, height, columns == whole && joined, mix_part);
        for_parts({0, rows, whole, columns - whole}, limit_of_copies, height, false, mix_part);
    });
}

/// d_modules[m, p, q] += sum over n of weights[n, m] d_mixed[n, p, q], and
/// d_weights[n, m] += sum over p, q of d_mixed[n, p, q] modules[m, p, q]. An entry of weight 0 adds
/// nothing to d_modules. Either may be absent.
template <class Arch, class A>
void mix_matrices_backward(const const_tensor_ref<2>& weights, const_tensor_ref<3> modules,
                           const_tensor_ref<3> d_mixed, tensor_ref<3> d_modules,
                           const tensor_ref<2>& d_weights) noexcept {
    constexpr auto limit = static_cast<index_t>(2048 / sizeof(A));
    if (has_joined_rows(modules) && has_joined_rows(d_mixed) && has_joined_rows(d_modules)) {
        modules = with_joined_rows(modules);
        d_mixed = with_joined_rows(d_mixed);
        d_modules = with_joined_rows(d_modules);
    }
    alignas(64) A entry_buffer[as_size(entry_group)][as_size(limit)];
    alignas(64) A module_buffer[as_size(module_group)][as_size(limit)];
    alignas(64) A sums[as_size(entry_group * module_group * lanes<A, Arch>)];
    A totals[as_size(entry_group * module_group)];
    const matrix_runs<Arch, A, const void> input(modules);
    const matrix_runs<Arch, A, const void> of_entries(d_mixed);
    const matrix_runs<Arch, A, void> of_modules(d_modules);
    weight_table<Arch, A, module_group, entry_group> table;
    const matrix_part all{0, modules.extent(1), 0, modules.extent(2)};
    const bool tall = modules.stride(2) != 1 || d_mixed.stride(2) != 1;
    const index_t height = tall ? rows_of_tall_parts<A>(modules.type()) : 1;
    // Short rows of modules one behind the other are one run; of whole vectors, for the same bits.
    const bool whole = all.columns <= short_columns && all.columns % lanes<A, Arch> == 0 &&
                       has_joined_rows(modules) && has_joined_rows(d_modules);
    for_groups(d_mixed.extent(0), entry_group, [&](index_t n0, index_t entries) {
        for_groups(modules.extent(0), module_group, [&](index_t m0, index_t count) {
            table.read(weights.block(0, n0, entries).block(1, m0, count).transpose(0, 1));
            if (all.rows == 0 || all.columns == 0)
                std::fill_n(sums, entries * count * lanes<A, Arch>, A(0));
            for_parts(all, limit, height, whole, [&](const matrix_part& part) {
                const index_t size = padded<Arch, A>(part.size());
                const A* d[as_size(entry_group)];
                for (index_t n = 0; n < entries; ++n)
                    d[n] = of_entries.read(n0 + n, part, entry_buffer[n]);
                if (!d_weights.absent()) {
                    const A* runs[as_size(module_group)];
                    for (index_t m = 0; m < count; ++m)
                        runs[m] = input.read(m0 + m, part, module_buffer[m]);
                    add_inner_products<Arch>(d, entries, runs, count, size,
                                             part.p == 0 && part.q == 0, sums);
                }
                if (d_modules.absent()) return;
                A* outputs[as_size(module_group)];
                for (index_t m = 0; m < count; ++m) {
                    (void)of_modules.read(m0 + m, part, module_buffer[m]);
                    outputs[m] = of_modules.in_place(m0 + m, part, module_buffer[m]);
                }
                table.combine(d, size, outputs, true);
                for (index_t m = 0; m < count; ++m)
                    of_modules.write(module_buffer[m], m0 + m, part);
            });
            if (d_weights.absent()) return;
            finish_inner_products<Arch>(entries, count, sums, totals);
            for (index_t n = 0; n < entries; ++n) {
                A row[as_size(module_group)];
                void* const target = d_weights.address_of(n0 + n, m0);
                read_run<Arch>(d_weights.type(), target, d_weights.stride(1), count, row);
                for (index_t m = 0; m < count; ++m)
                    row[m] += totals[n * count + m];
                write_run<Arch>(static_cast<const A*>(row), count, d_weights.type(), target,
                                d_weights.stride(1));
            }
        });
    });
}

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr
