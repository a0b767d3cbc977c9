#pragma once

#include <algorithm>
#include <type_traits>

#include <mhr/core/tensor_view.hpp>
#include <mhr/simd/arch.hpp>
#include <mhr/simd/tiles.hpp>
#include <mhr/simd/transpose.hpp>

/// \file
/// What the tiles work on: pointers to rows of dense whole vectors of the type of sums. Rows of a
/// host that are such already are pointed at where they are; others (another type, another stride,
/// the last columns of a width that is no multiple of a vector) are copied to the stack, a chunk of
/// columns at a time.

namespace mhr {
inline namespace MHR_ISA {
namespace detail {

/// Numbers of rows of a matrix.
struct row_set {
    const index_t* numbers;
    index_t count;
};

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
template <class Arch, class A, class F>
void for_chunks(index_t n, index_t size, F&& f) {
    constexpr index_t width = lanes<A, Arch>;
    index_t first = 0;
    while (first < n) {
        const index_t left = n - first;
        const index_t count = left < width ? left : (std::min)(size, left / width * width);
        f(first, count);
        first += count;
    }
}

/// Calls `f(first, count)` for pieces of [0, n) of at most `size`.
template <class F>
void for_groups(index_t n, index_t size, F&& f) {
    for (index_t first = 0; first < n; first += size)
        f(first, (std::min)(size, n - first));
}

/// True if rows of such a matrix need no copy (but for the end of a row).
template <class A, class T>
constexpr bool is_dense(const tensor_view<T, 2>& matrix) noexcept {
    return std::is_same_v<A, std::remove_const_t<T>> && matrix.stride(1) == 1;
}

/// Columns of the chunks in which two matrices are walked along side by side.
template <class Arch, class A, class T, class U>
constexpr index_t chunk_columns_of(const tensor_view<T, 2>& a,
                                   const tensor_view<U, 2>& b) noexcept {
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
    /// Columns [first, first + count), padded with zeros to whole vectors, of the rows
    /// of the set.
    template <class T>
    const A* const* read(row_set rows, const tensor_view<const T, 2>& matrix, index_t first,
                         index_t count) noexcept {
        if (points_at(
                matrix, count, [&](index_t i) { return rows.numbers[i]; }, first, rows.count))
            return pointers_;
        for (index_t i = 0; i < rows.count; ++i) {
            A* const row = buffer_ + i * chunk_columns<A>;
            read_run<Arch>(&matrix(rows.numbers[i], first), matrix.stride(1), count, row);
            pad(row, count);
        }
        return copies(rows.count);
    }

    /// The same without padding: for coefficients, which are read one by one.
    template <class T>
    const A* const* read_unpadded(row_set rows, const tensor_view<const T, 2>& matrix,
                                  index_t first, index_t count) noexcept {
        if constexpr (std::is_same_v<A, T>) {
            if (matrix.stride(1) == 1) {
                for (index_t i = 0; i < rows.count; ++i)
                    pointers_[i] = &matrix(rows.numbers[i], first);
                return pointers_;
            }
        }
        for (index_t i = 0; i < rows.count; ++i)
            read_run<Arch>(&matrix(rows.numbers[i], first), matrix.stride(1), count,
                           buffer_ + i * chunk_columns<A>);
        return copies(rows.count);
    }

    /// The same of the rows [first_row, first_row + rows).
    template <class T>
    const A* const* read(index_t first_row, index_t rows, const tensor_view<const T, 2>& matrix,
                         index_t first, index_t count) noexcept {
        if (points_at(
                matrix, count, [&](index_t i) { return first_row + i; }, first, rows))
            return pointers_;
        copy_in<Arch>(matrix.block(0, first_row, rows).block(1, first, count), buffer_,
                      chunk_columns<A>);
        for (index_t i = 0; i < rows; ++i)
            pad(buffer_ + i * chunk_columns<A>, count);
        return copies(rows);
    }

  private:
    template <class T, class Number>
    bool points_at(const tensor_view<const T, 2>& matrix, index_t count, Number&& number,
                   index_t first, index_t rows) noexcept {
        if constexpr (std::is_same_v<A, T>) {
            if (matrix.stride(1) == 1 && count % lanes<A, Arch> == 0) {
                for (index_t i = 0; i < rows; ++i)
                    pointers_[i] = &matrix(number(i), first);
                return true;
            }
        }
        return false;
    }
    static void pad(A* row, index_t count) noexcept {
        std::fill(row + count, row + padded<Arch, A>(count), A(0));
    }
    const A* const* copies(index_t rows) noexcept {
        for (index_t i = 0; i < rows; ++i)
            pointers_[i] = buffer_ + i * chunk_columns<A>;
        return pointers_;
    }

    alignas(64) A buffer_[Rows * chunk_columns<A>];
    const A* pointers_[as_size(Rows)];
};

/// A chunk of up to Rows rows that sums are added to.
template <class Arch, class A, index_t Rows>
class dense_output_rows {
  public:
    /// Columns [first, first + count) of the rows of the set, to add to; `write` must follow.
    template <class T>
    A* const* open(row_set rows, const tensor_view<T, 2>& matrix, index_t first,
                   index_t count) noexcept {
        in_place_ = is_dense<A>(matrix) && count % lanes<A, Arch> == 0;
        for (index_t i = 0; i < rows.count; ++i) {
            T* const row = &matrix(rows.numbers[i], first);
            pointers_[i] = buffer_ + i * chunk_columns<A>;
            if (in_place_)
                point_at(i, row);
            else
                read_run<Arch>(static_cast<const T*>(row), matrix.stride(1), count, pointers_[i]);
        }
        return pointers_;
    }

    /// Rounds what was added to the rows' storage type, with the arguments of `open`.
    template <class T>
    void write(row_set rows, const tensor_view<T, 2>& matrix, index_t first,
               index_t count) const noexcept {
        if (in_place_) return;
        for (index_t i = 0; i < rows.count; ++i)
            write_run<Arch>(static_cast<const A*>(pointers_[i]), count,
                            &matrix(rows.numbers[i], first), matrix.stride(1));
    }

  private:
    template <class T>
    void point_at(index_t i, T* row) noexcept {
        if constexpr (std::is_same_v<A, T>) pointers_[i] = row;
    }

    bool in_place_ = false;
    alignas(64) A buffer_[Rows * chunk_columns<A>];
    A* pointers_[as_size(Rows)];
};

} // namespace detail
} // namespace MHR_ISA
} // namespace mhr
