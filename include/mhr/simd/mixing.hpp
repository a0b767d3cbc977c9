#pragma once

#include <algorithm>
#include <type_traits>

#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/simd/arch.hpp>
#include <mhr/simd/dense_rows.hpp>
#include <mhr/simd/tiles.hpp>
#include <mhr/simd/transpose.hpp>

/// \file
/// Mixing the blocks of one head, and back, in pieces: those of eight modules (4 KiB each forward,
/// 2 KiB backward) stay in an L1 of 32 KiB or more while 32 entries take their mixtures from them,
/// so that a module is read from memory once for all of these. Up to 128 KiB of stack.
///
/// Not checked: the entry points of mixing/ have done that.

namespace mhr {
inline namespace MHR_ISA {
namespace detail {

/// Outputs, and inputs, of which the runs are kept in L1 beside each other.
inline constexpr index_t module_group = 8;
inline constexpr index_t entry_group = 32;

/// Entries for which runs of another type are rather converted twice than copied.
inline constexpr index_t few_entries = 8;

/// Columns of rows that are too short to be worth a walk of their own, beside which a copy of them
/// costs little.
inline constexpr index_t short_columns = 128;

/// A part of a block: rows [p, p + rows), columns [q, q + columns).
struct block_piece {
    index_t p, rows, q, columns;
    [[nodiscard]] index_t size() const noexcept { return rows * columns; }
};

/// Rows of the pieces of a block that is stored by columns, whose runs are that short then: as many
/// as are transposed in registers, or, of another type, enough to convert them in vectors.
template <class A, class T>
inline constexpr index_t rows_of_tall_pieces = std::is_same_v<A, std::remove_const_t<T>> ? 4 : 16;

/// Calls `f(piece)` for pieces that cover a part of a block, of at most `limit` elements (a
/// multiple of 256): parts of one row, `whole` rows, or, unless `height` is 1, of at least so many
/// rows where there are so many.
template <class F>
void for_pieces(const block_piece& all, index_t limit, index_t height, bool whole, F&& f) {
    const index_t across = (std::min)(all.columns, limit / height);
    const index_t fit = limit / (std::max)(across, index_t(1));
    const index_t down = height > 1 ? fit / height * height : whole ? fit : 1;
    for_groups(all.rows, down, [&](index_t p, index_t rows) {
        for_groups(all.columns, across, [&](index_t q, index_t columns) {
            f(block_piece{all.p + p, rows, all.q + q, columns});
        });
    });
}

/// Blocks [items, P, Q] whose pieces are runs of whole vectors of A: where they are, or in a
/// buffer, padded with zeros.
template <class Arch, class A, class T>
class block_runs {
  public:
    explicit block_runs(const tensor_view<T, 3>& blocks) noexcept
        : data_(blocks.data()), items_(blocks.stride(0)),
          rows_(blocks.extent(1) == 1 ? blocks.extent(2) : blocks.stride(1)),
          columns_(blocks.extent(2) == 1 ? 1 : blocks.stride(2)) {}

    /// True if a piece is such a run, but for its type.
    [[nodiscard]] bool has_stored_run(const block_piece& piece) const noexcept {
        return columns_ == 1 && (piece.rows == 1 || rows_ == piece.columns) &&
               piece.size() % lanes<A, Arch> == 0;
    }

    /// True if a piece is such a run already.
    [[nodiscard]] bool has_run(const block_piece& piece) const noexcept {
        return std::is_same_v<A, std::remove_const_t<T>> && has_stored_run(piece);
    }

    /// The run of a piece, or a copy of it in the buffer.
    [[nodiscard]] const A* read(index_t item, const block_piece& piece, A* buffer) const noexcept {
        if (has_run(piece)) return in_place(item, piece, buffer);
        copy_in<Arch>(as_const(view(item, piece)), buffer, piece.columns);
        std::fill(buffer + piece.size(), buffer + padded<Arch, A>(piece.size()), A(0));
        return buffer;
    }

    /// The run of a piece, or else the buffer.
    [[nodiscard]] A* in_place(index_t item, const block_piece& piece, A* buffer) const noexcept {
        if constexpr (std::is_same_v<A, std::remove_const_t<T>>)
            if (has_run(piece)) return const_cast<A*>(at(item, piece));
        return buffer;
    }

    /// Rounds a run to the piece that it is of, unless it is there already.
    void write(const A* run, index_t item, const block_piece& piece) const noexcept {
        if (!has_run(piece)) copy_out<Arch>(run, piece.columns, view(item, piece));
    }

    /// Where a piece begins.
    [[nodiscard]] T* at(index_t item, const block_piece& piece) const noexcept {
        return data_ + item * items_ + piece.p * rows_ + piece.q * columns_;
    }

  private:
    [[nodiscard]] tensor_view<T, 2> view(index_t item, const block_piece& piece) const noexcept {
        return {at(item, piece), {piece.rows, piece.columns}, {rows_, columns_}};
    }

    T* data_;
    index_t items_, rows_, columns_;
};

/// Blocks whose rows are dense one behind the other are blocks of one long row.
template <class T>
bool has_joined_rows(const tensor_view<T, 3>& blocks) noexcept {
    return blocks.absent() || blocks.slice(0, 0).is_contiguous();
}
template <class T>
tensor_view<T, 3> with_joined_rows(const tensor_view<T, 3>& blocks) noexcept {
    if (blocks.absent()) return blocks;
    return {blocks.data(),
            {blocks.extent(0), 1, blocks.extent(1) * blocks.extent(2)},
            {blocks.stride(0), 0, 1}};
}

/// A table of weights, and the combinations of runs with them.
template <class Arch, class A, index_t Outputs, index_t Inputs>
class weight_table {
  public:
    /// Takes the weights [outputs, inputs].
    template <class W>
    void read(const tensor_view<const W, 2>& weights) noexcept {
        outputs_ = weights.extent(0);
        inputs_ = weights.extent(1);
        std::fill_n(used_, inputs_, false);
        for (index_t n = 0; n < outputs_; ++n) {
            A* const row = values_ + n * Inputs;
            rows_[n] = row;
            complete_[n] = true;
            for (index_t m = 0; m < inputs_; ++m) {
                row[m] = load<A>(weights(n, m));
                complete_[n] = complete_[n] && !is_exactly(row[m], 0);
                used_[m] = used_[m] || !is_exactly(row[m], 0);
            }
        }
    }

    /// True if some output takes input m.
    [[nodiscard]] bool uses(index_t m) const noexcept { return used_[m]; }

    /// outputs[n] = sum over m of weights[n, m] inputs[m] over `size` elements, or += with
    /// Accumulate. An input of weight 0 is not read for that output.
    template <bool Accumulate, format Format = format::other, class T>
    void combine(const T* const* inputs, index_t size, A* const* outputs) const noexcept {
        for (index_t n = 0; n < outputs_;) {
            index_t next = n;
            while (next < outputs_ && complete_[next])
                ++next;
            if (next > n) {
                add_combinations<Arch, Accumulate, Format>(rows_ + n, inputs, inputs_, size, A(1),
                                                           outputs + n, next - n);
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
            if (!Accumulate || used != 0)
                add_combinations<Arch, Accumulate, Format>(coefficients, used_inputs, used, size,
                                                           A(1), outputs + n, 1);
            ++n;
        }
    }

  private:
    index_t outputs_ = 0, inputs_ = 0;
    A values_[as_size(Outputs * Inputs)];
    const A* rows_[as_size(Outputs)];
    bool complete_[as_size(Outputs)], used_[as_size(Inputs)];
};

template <format Format>
using form_of = std::integral_constant<format, Format>;

/// mixed[n, p, q] = sum over modules of weights[n, m] modules[m, p, q]. A module of weight 0 is not
/// read for that entry.
template <class Arch = default_arch, class W, class M, class Y>
void mix_blocks(tensor_view<const W, 2> weights, tensor_view<const M, 3> modules,
                tensor_view<Y, 3> mixed) noexcept {
    using A = accumulator_t<W, M, Y>;
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
    const block_runs<Arch, A, const M> input(modules);
    const block_runs<Arch, A, Y> output(mixed);
    const format stored = format_of<M>();
    weight_table<Arch, A, entry_group, module_group> table;
    for_groups(weights.extent(0), entry_group, [&](index_t n0, index_t entries) {
        const auto weights_of = [&](index_t first, index_t depth) {
            return weights.block(0, n0, entries).block(1, first, depth);
        };
        if (count <= module_group) table.read(weights_of(0, count));
        const auto mix_piece = [&](const block_piece& piece) {
            // In place, row by row, or all rows in the buffer.
            const bool in_place = dense && piece.columns % lanes<A, Arch> == 0;
            const index_t parts = in_place ? piece.rows : 1;
            const index_t size = in_place ? piece.columns : padded<Arch, A>(piece.size());
            const auto combine = [&](auto form, auto* runs, index_t first, index_t depth) {
                A* outputs[entry_group];
                for (index_t n = 0; n < entries; ++n)
                    outputs[n] = in_place
                                     ? output.in_place(n0 + n, {piece.p, 1, piece.q, piece.columns},
                                                       output_buffer[n])
                                     : output_buffer[n];
                for (index_t part = 0; part < parts; ++part) {
                    first == 0 ? table.template combine<false, form>(runs, size, outputs)
                               : table.template combine<true, form>(runs, size, outputs);
                    if (part + 1 == parts) return;
                    for (index_t m = 0; m < depth; ++m)
                        runs[m] += size;
                    for (index_t n = 0; n < entries; ++n)
                        outputs[n] += mixed.stride(1);
                }
            };
            const bool direct = entries <= few_entries && input.has_stored_run(piece);
            const auto mix_group = [&](index_t first, index_t depth) {
                if (count > module_group) table.read(weights_of(first, depth));
                if constexpr (std::is_same_v<A, float> && sizeof(M) == 2) {
                    const M* runs[module_group];
                    for (index_t m = 0; m < depth; ++m)
                        runs[m] = input.at(first + m, piece);
                    if (direct && stored == format::bf16)
                        return combine(form_of<format::bf16>{}, runs, first, depth);
                    if (direct && stored == format::f16)
                        return combine(form_of<format::f16>{}, runs, first, depth);
                }
                const A* runs[module_group];
                for (index_t m = 0; m < depth; ++m)
                    runs[m] = table.uses(m) ? input.read(first + m, piece, module_buffer[m])
                                            : module_buffer[m];
                combine(form_of<format::other>{}, runs, first, depth);
            };
            mix_group(0, (std::min)(count, module_group));
            for (index_t first = module_group; first < count; first += module_group)
                mix_group(first, (std::min)(module_group, count - first));
            if (in_place) return;
            for (index_t n = 0; n < entries; ++n)
                copy_out<Arch>(static_cast<const A*>(output_buffer[n]), piece.columns,
                               mixed.slice(0, n0 + n)
                                   .block(0, piece.p, piece.rows)
                                   .block(1, piece.q, piece.columns));
        };
        const index_t rows = modules.extent(1);
        const index_t columns = modules.extent(2);
        const index_t whole = dense ? columns / lanes<A, Arch> * lanes<A, Arch> : 0;
        const bool tall = modules.stride(2) != 1 || mixed.stride(2) != 1;
        const index_t height = tall ? rows_of_tall_pieces<A, M> : 1;
        for_pieces({0, rows, 0, whole}, limit, height, columns == whole && joined, mix_piece);
        for_pieces({0, rows, whole, columns - whole}, limit_of_copies, height, false, mix_piece);
    });
}

/// d_modules[m, p, q] += sum over n of weights[n, m] d_mixed[n, p, q], and
/// d_weights[n, m] += sum over p, q of d_mixed[n, p, q] modules[m, p, q]. An entry of weight 0 adds
/// nothing to d_modules. Either may be absent.
template <class Arch = default_arch, class W, class M, class D, class DM, class DW>
void mix_blocks_backward(tensor_view<const W, 2> weights, tensor_view<const M, 3> modules,
                         tensor_view<const D, 3> d_mixed, tensor_view<DM, 3> d_modules,
                         tensor_view<DW, 2> d_weights) noexcept {
    using A = accumulator_t<W, M, D, DM, DW>;
    constexpr auto limit = static_cast<index_t>(2048 / sizeof(A));
    if (has_joined_rows(modules) && has_joined_rows(d_mixed) && has_joined_rows(d_modules)) {
        modules = with_joined_rows(modules);
        d_mixed = with_joined_rows(d_mixed);
        d_modules = with_joined_rows(d_modules);
    }
    alignas(64) A entry_buffer[as_size(entry_group)][as_size(limit)];
    alignas(64) A module_buffer[as_size(module_group)][as_size(limit)];
    alignas(64) A sums[entry_group * module_group * lanes<A, Arch>];
    A totals[entry_group * module_group];
    const block_runs<Arch, A, const M> input(modules);
    const block_runs<Arch, A, const D> of_entries(d_mixed);
    const block_runs<Arch, A, DM> of_modules(d_modules);
    weight_table<Arch, A, module_group, entry_group> table;
    const block_piece all{0, modules.extent(1), 0, modules.extent(2)};
    const bool tall = modules.stride(2) != 1 || d_mixed.stride(2) != 1;
    const index_t height = tall ? rows_of_tall_pieces<A, M> : 1;
    // Short rows of modules one behind the other are one run; of whole vectors, for the same bits.
    const bool whole = all.columns <= short_columns && all.columns % lanes<A, Arch> == 0 &&
                       has_joined_rows(modules) && has_joined_rows(d_modules);
    for_groups(d_mixed.extent(0), entry_group, [&](index_t n0, index_t entries) {
        for_groups(modules.extent(0), module_group, [&](index_t m0, index_t count) {
            table.read(weights.block(0, n0, entries).block(1, m0, count).transpose(0, 1));
            std::fill_n(sums, entries * count * lanes<A, Arch>, A(0));
            for_pieces(all, limit, height, whole, [&](const block_piece& piece) {
                const index_t size = padded<Arch, A>(piece.size());
                const A* d[entry_group];
                for (index_t n = 0; n < entries; ++n)
                    d[n] = of_entries.read(n0 + n, piece, entry_buffer[n]);
                if (!d_weights.absent()) {
                    const A* runs[module_group];
                    for (index_t m = 0; m < count; ++m)
                        runs[m] = input.read(m0 + m, piece, module_buffer[m]);
                    add_inner_products<Arch>(d, entries, runs, count, size, sums);
                }
                if (d_modules.absent()) return;
                A* outputs[module_group];
                for (index_t m = 0; m < count; ++m) {
                    (void)of_modules.read(m0 + m, piece, module_buffer[m]);
                    outputs[m] = of_modules.in_place(m0 + m, piece, module_buffer[m]);
                }
                table.template combine<true>(d, size, outputs);
                for (index_t m = 0; m < count; ++m)
                    of_modules.write(module_buffer[m], m0 + m, piece);
            });
            if (d_weights.absent()) return;
            finish_inner_products<Arch>(entries, count, sums, totals);
            for (index_t n = 0; n < entries; ++n)
                for (index_t m = 0; m < count; ++m) {
                    DW& target = d_weights(n0 + n, m0 + m);
                    target = store<DW>(load<A>(target) + totals[n * count + m]);
                }
        });
    });
}

} // namespace detail
} // namespace MHR_ISA
} // namespace mhr
