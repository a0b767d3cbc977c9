#pragma once

#include <algorithm>

#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/row_set.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/tiles.hpp>
#include <mhr/kernels/simd/transpose.hpp>

/// \file
/// What the tiles work on: pointers to rows of dense whole vectors of the type of sums. Rows of a
/// host that are such already are pointed at where they are; others (another type, another stride,
/// the last columns of a width that is no multiple of a vector) are copied to the stack, a chunk of
/// columns at a time. Here end the element types that are data: what a row needs is decided once
/// for a chunk of it.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// Columns of a chunk of rows that may have to be copied: 1 KiB, so that the copies share L1.
template <class A>
inline constexpr index_t chunk_columns = static_cast<index_t>(1024 / sizeof(A));

/// Columns of a chunk of rows that are dense already: those of a tile, 24 KiB, stay in L1 while
/// what they are multiplied with streams by.
template <class Arch, class A>
inline constexpr index_t
    chunk_columns_in_place = static_cast<index_t>(24576 / sizeof(A)) / inner_product_rows<Arch>;

/// Calls `f(first, count)` for chunks of [0, n) of up to `size` columns (whole vectors), and at the
/// end one of less than a vector.
template <class Arch, class A, class Function>
void for_chunks(index_t n, index_t size, Function&& f) {
    constexpr index_t width = lanes<A, Arch>;
    index_t first = 0;
    while (first < n) {
        const index_t left = n - first;
        const index_t count = left < width ? left : (std::min)(size, left / width * width);
        f(first, count);
        first += count;
    }
}

/// Calls `f(first, count)` for consecutive parts of [0, n) of at most `size`.
template <class Function>
void for_groups(index_t n, index_t size, Function&& f) {
    for (index_t first = 0; first < n; first += size)
        f(first, (std::min)(size, n - first));
}

/// True if rows of such a matrix need no copy (but for the end of a row).
template <class A, class Void>
bool is_dense(const basic_tensor_ref<Void, 2>& matrix) noexcept {
    return matrix.type() == element_type_of_v<A> && matrix.stride(1) == 1;
}

/// Columns of the chunks in which two matrices are walked along side by side.
template <class Arch, class A, class V, class W>
index_t chunk_columns_of(const basic_tensor_ref<V, 2>& a,
                         const basic_tensor_ref<W, 2>& b) noexcept {
    return is_dense<A>(a) && is_dense<A>(b) ? chunk_columns_in_place<Arch, A> : chunk_columns<A>;
}

/// The number of whole vectors' elements that hold `count` elements.
template <class Arch, class A>
constexpr index_t padded(index_t count) noexcept {
    return (count + lanes<A, Arch> - 1) / lanes<A, Arch> * lanes<A, Arch>;
}

/// A chunk of up to Rows rows.
template <class Arch, class A, index_t Rows>
class dense_rows {
  public:
    /// Columns [first, first + count), padded with zeros to whole vectors, of the rows of the set.
    const A* const* read(row_set rows, const const_tensor_ref<2>& matrix, index_t first,
                         index_t count) noexcept {
        if (is_dense<A>(matrix) && count % lanes<A, Arch> == 0)
            return point_at(rows, matrix, first);
        for (index_t i = 0; i < rows.count; ++i) {
            A* const row = buffer_ + i * chunk_columns<A>;
            read_run<Arch>(matrix.type(), matrix.address_of(rows.numbers[i], first),
                           matrix.stride(1), count, row);
            pad(row, count);
        }
        return copies(rows.count);
    }

    /// The same without padding: for coefficients, which are read one by one.
    const A* const* read_unpadded(row_set rows, const const_tensor_ref<2>& matrix, index_t first,
                                  index_t count) noexcept {
        if (is_dense<A>(matrix)) return point_at(rows, matrix, first);
        for (index_t i = 0; i < rows.count; ++i)
            read_run<Arch>(matrix.type(), matrix.address_of(rows.numbers[i], first),
                           matrix.stride(1), count, buffer_ + i * chunk_columns<A>);
        return copies(rows.count);
    }

    /// Reads the rows [first_row, first_row + rows) in the same way, padded.
    const A* const* read(index_t first_row, index_t rows, const const_tensor_ref<2>& matrix,
                         index_t first, index_t count) noexcept {
        if (is_dense<A>(matrix) && count % lanes<A, Arch> == 0) {
            for (index_t i = 0; i < rows; ++i)
                pointers_[i] = static_cast<const A*>(matrix.address_of(first_row + i, first));
            return pointers_;
        }
        copy_in<Arch>(matrix.block(0, first_row, rows).block(1, first, count), buffer_,
                      chunk_columns<A>);
        for (index_t i = 0; i < rows; ++i)
            pad(buffer_ + i * chunk_columns<A>, count);
        return copies(rows);
    }

  private:
    const A* const* point_at(row_set rows, const const_tensor_ref<2>& matrix,
                             index_t first) noexcept {
        for (index_t i = 0; i < rows.count; ++i)
            pointers_[i] = static_cast<const A*>(matrix.address_of(rows.numbers[i], first));
        return pointers_;
    }
    static void pad(A* row, index_t count) noexcept {
        std::fill(row + count, row + padded<Arch, A>(count), A(0));
    }
    const A* const* copies(index_t rows) noexcept {
        for (index_t i = 0; i < rows; ++i)
            pointers_[i] = buffer_ + i * chunk_columns<A>;
        return pointers_;
    }

    alignas(64) A buffer_[as_size(Rows * chunk_columns<A>)];
    const A* pointers_[as_size(Rows)];
};

/// A chunk of up to Rows rows that sums are added to.
template <class Arch, class A, index_t Rows>
class dense_output_rows {
  public:
    /// Columns [first, first + count) of the rows of the set, to add to; `write` must follow.
    A* const* open(row_set rows, const tensor_ref<2>& matrix, index_t first,
                   index_t count) noexcept {
        open_unread(rows, matrix, first, count);
        if (in_place_) return pointers_;
        for (index_t i = 0; i < rows.count; ++i)
            read_run<Arch>(matrix.type(), matrix.address_of(rows.numbers[i], first),
                           matrix.stride(1), count, pointers_[i]);
        return pointers_;
    }

    /// Opens rows that are overwritten, and so are not read.
    A* const* open_unread(row_set rows, const tensor_ref<2>& matrix, index_t first,
                          index_t count) noexcept {
        in_place_ = is_dense<A>(matrix) && count % lanes<A, Arch> == 0;
        for (index_t i = 0; i < rows.count; ++i)
            pointers_[i] = in_place_ ? static_cast<A*>(matrix.address_of(rows.numbers[i], first))
                                     : buffer_ + i * chunk_columns<A>;
        return pointers_;
    }

    /// Rounds what was added to the rows' own type, with the arguments of `open`.
    void write(row_set rows, const tensor_ref<2>& matrix, index_t first,
               index_t count) const noexcept {
        if (in_place_) return;
        for (index_t i = 0; i < rows.count; ++i)
            write_run<Arch>(static_cast<const A*>(pointers_[i]), count, matrix.type(),
                            matrix.address_of(rows.numbers[i], first), matrix.stride(1));
    }

  private:
    bool in_place_ = false;
    alignas(64) A buffer_[as_size(Rows * chunk_columns<A>)];
    A* pointers_[as_size(Rows)];
};

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr
