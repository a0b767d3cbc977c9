#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/serving/combining/flat_elements.hpp>

/// \file
/// Which elements of a matrix are largest in magnitude, without sorting them: three passes over a
/// matrix (six where sums are f64), each of which counts the elements by eleven bits of their
/// magnitude. The memory is the same for matrices of any size.

namespace mhr {
inline namespace MHR_ISA {
namespace combining_details {

/// The bits that a pass counts by.
inline constexpr int digit_bits = 11;
inline constexpr index_t digits = index_t(1) << digit_bits;

/// The elements that are kept: those of a larger magnitude than `last`, and the first `of_last` of
/// those that have it, in row-major order.
struct largest_elements {
    std::uint64_t last = 0; ///< magnitude_key of the smallest that is kept
    index_t of_last = 0;
    /// For each part, how many elements of magnitude `last` come before it.
    tensor_view<index_t, 1> before_part{};
};

/// [parts, digits]: each part counts for itself.
inline tensor_view<index_t, 2> take_counts(workspace& memory) noexcept {
    return memory.take<index_t, 2>({parts, digits});
}

/// Counts, part by part, the elements whose bits above those of the pass are those of `prefix`, by
/// the bits of the pass.
template <class A>
void count_digits(executor_ref executor, const const_tensor_ref<2>& matrix, std::uint64_t prefix,
                  int shift, const tensor_view<index_t, 2>& counts) {
    const index_t elements = matrix.size();
    executor.run(parts, 32 * (elements / parts), [&](index_t part) noexcept {
        index_t* const own = &counts(part, 0);
        std::fill_n(own, digits, index_t(0));
        A numbers[static_cast<std::size_t>(chunk)];
        const index_t end = first_of_part(elements, part + 1);
        for (index_t first = first_of_part(elements, part); first < end; first += chunk) {
            const index_t count = (std::min)(chunk, end - first);
            read_flat(matrix, first, count, numbers);
            for (index_t i = 0; i < count; ++i) {
                const std::uint64_t key{magnitude_key(numbers[i])};
                if (key >> shift >> digit_bits == prefix)
                    ++own[(key >> shift) & static_cast<std::uint64_t>(digits - 1)];
            }
        }
    });
}

/// The `kept` elements of largest magnitude (from 0 to all) in the type of sums A. `counts` is
/// scratch; `before_part` [parts] belongs to the result.
template <class A>
largest_elements select_largest(executor_ref executor, const const_tensor_ref<2>& matrix,
                                index_t kept, const tensor_view<index_t, 2>& counts,
                                const tensor_view<index_t, 1>& before_part) {
    largest_elements result{0, kept, before_part};
    // From the highest digit down: whole digits, so that the lowest one is one, too.
    constexpr int bits = 8 * static_cast<int>(sizeof(A)) - 1;
    constexpr int passes = (bits + digit_bits - 1) / digit_bits;
    for (int pass = passes - 1; pass >= 0; --pass) {
        const int shift = pass * digit_bits;
        count_digits<A>(executor, matrix, result.last, shift, counts);
        // The digit of the last one that is kept: fewer than that many are larger.
        index_t digit = digits - 1;
        for (; digit > 0; --digit) {
            index_t of_digit = 0;
            for (index_t part = 0; part < parts; ++part)
                of_digit += counts(part, digit);
            if (of_digit >= result.of_last) break;
            result.of_last -= of_digit;
        }
        result.last = result.last << digit_bits | static_cast<std::uint64_t>(digit);
        if (pass > 0) continue;
        index_t before = 0;
        for (index_t part = 0; part < parts; ++part) {
            before_part(part) = before;
            before += counts(part, digit);
        }
    }
    return result;
}

} // namespace combining_details
} // namespace MHR_ISA
} // namespace mhr
