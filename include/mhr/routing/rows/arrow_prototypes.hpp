#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/kernels/kernels.hpp>
#include <mhr/routing/rows/symmetric_eigenvectors.hpp>

/// \file
/// The prototypes of Arrow (Ostapenko et al. 2024, arXiv 2405.11157, section 4.1): that of a module
/// is the direction of the input that its A B stretches most. They are made once, when adapters are
/// loaded; modules may be of different ranks.
///
/// Also GenKnowSub (General Knowledge Subtraction, ACL 2025, short paper 54), which takes from an
/// adapter, before its prototype is made, what adapters of general knowledge have in common.

namespace mhr {
inline namespace MHR_ISA {

/// Returns the bytes of workspace that arrow_prototype needs.
inline std::size_t arrow_prototype_workspace_size(index_t in_features, index_t rank) noexcept;

/// prototype = the first left singular vector of A B, of length 1 and with its largest element
/// positive; it is 0 where A B is 0. It is computed without the product: A w, with w from the
/// eigenvectors of two rank x rank matrices, A^T A and B B^T, in f64.
///
/// a [in_features, rank], b [rank, out_features], of any types; prototype [in_features],
/// overwritten. Where the two largest singular values are equal, any vector of their plane is as
/// good, and one of them is given.
///
/// These are refused: shapes that do not fit; a prototype of which elements overlap; a workspace
/// that is too small. The cost is rank^2 (in + out) multiply-adds and about 60 rank^3.
inline void arrow_prototype(const const_tensor_ref<2>& a, const const_tensor_ref<2>& b,
                            const tensor_ref<1>& prototype, workspace scratch);

/// Returns the bytes of workspace that arrow_prototype_of_peft needs.
inline std::size_t arrow_prototype_of_peft_workspace_size(index_t in_features,
                                                          index_t rank) noexcept;

/// The prototype as PEFT computes it, for parity with models that were used with it: v = start /
/// (|start| + 1e-8), and 15 times, in f32, v = w / (|w| + 1e-8) with w = A (B B^T (A^T v)).
///
/// How far it is from arrow_prototype depends on the start and on the two largest singular values:
/// the error falls as (s2 / s1)^30, so that where they are close the result is another direction.
/// Where s1 is below 1e-4 or so, 1e-8 is not small beside |w| and the result is shorter than 1.
///
/// a [in_features, rank], b [rank, out_features] and start [in_features]; prototype [in_features],
/// overwritten. PEFT draws the start from a normal distribution; with its `rng_seed` all modules
/// of one width share it.
///
/// These are refused: shapes that do not fit; f64, which PEFT rounds to f32 beforehand; a prototype
/// of which elements overlap; a workspace that is too small. The cost is
/// rank^2 out + 30 rank in multiply-adds.
inline void arrow_prototype_of_peft(const const_tensor_ref<2>& a, const const_tensor_ref<2>& b,
                                    const const_tensor_ref<1>& start,
                                    const tensor_ref<1>& prototype, workspace scratch);

/// matrix -= mean over g of general[g]: GenKnowSub, called for A and for B of an adapter, each with
/// those of the general adapters, as PEFT's `use_gks` does it. (A and B are subtracted separately,
/// and so the adapter's new product is *not* its old one minus the mean of theirs.)
///
/// general [adapters, rows, columns]; matrix [rows, columns] accumulates. Sums are f64 if a tensor
/// is, else f32.
///
/// These are refused: shapes that do not fit; no general adapter; a matrix of which elements
/// overlap. The cost is adapters rows columns additions.
inline void subtract_general_knowledge(const const_tensor_ref<3>& general,
                                       const tensor_ref<2>& matrix);

namespace arrow_details {

/// The finest type of sums that the build has.
inline constexpr element_type finest = MHR_ONLY_F32 ? element_type::f32 : element_type::f64;

/// Iterations of PEFT, and what it adds to a length.
inline constexpr int power_iterations = 15;
inline constexpr float power_epsilon = 1e-8F;

struct exact_scratch {
    tensor_view<index_t, 1> numbers;                 ///< 0 .. rank - 1
    tensor_ref<2> gram_a, gram_b, hidden, direction; ///< direction [1, in_features]
    tensor_view<double, 2> symmetric, vectors, root; ///< [rank, rank]
};

inline exact_scratch take_exact(workspace& memory, index_t in_features, index_t rank) noexcept {
    return {memory.take<index_t, 1>({rank}),          memory.take<2>(finest, {rank, rank}),
            memory.take<2>(finest, {rank, rank}),     memory.take<2>(finest, {1, rank}),
            memory.take<2>(finest, {1, in_features}), memory.take<double, 2>({rank, rank}),
            memory.take<double, 2>({rank, rank}),     memory.take<double, 2>({rank, rank})};
}

struct power_scratch {
    tensor_view<index_t, 1> numbers;                  ///< 0 .. max(rank, 1) - 1
    tensor_view<float, 2> gram_b, hidden, of_product; ///< [rank, rank], [1, rank], [1, rank]
    tensor_view<float, 2> direction;                  ///< [1, in_features]
};

inline power_scratch take_power(workspace& memory, index_t in_features, index_t rank) noexcept {
    return {memory.take<index_t, 1>({(std::max)(rank, index_t(1))}),
            memory.take<float, 2>({rank, rank}), memory.take<float, 2>({1, rank}),
            memory.take<float, 2>({1, rank}), memory.take<float, 2>({1, in_features})};
}

inline void check_arguments(argument_checks& checks, const const_tensor_ref<2>& a,
                            const const_tensor_ref<2>& b, const tensor_ref<1>& prototype) {
    checks.input("a", a);
    checks.input("b", b, {a.extent(1), any_extent});
    checks.output("prototype", prototype, {a.extent(0)});
}

inline void count_up(const tensor_view<index_t, 1>& numbers) noexcept {
    for (index_t k = 0; k < numbers.extent(0); ++k)
        numbers(k) = k;
}

/// root root^T = matrix, which is symmetric and has no negative eigenvalue but by rounding.
inline void take_root(const tensor_view<double, 2>& matrix, const tensor_view<double, 2>& vectors,
                      const tensor_view<double, 2>& root) noexcept {
    diagonalise(matrix, vectors);
    for (index_t k = 0; k < root.extent(1); ++k)
        for (index_t i = 0; i < root.extent(0); ++i)
            root(i, k) = vectors(i, k) * std::sqrt((std::max)(matrix(k, k), 0.0));
}

/// to = left^T middle left
inline void congruence(const tensor_view<double, 2>& left, const tensor_ref<2>& middle,
                       const tensor_view<double, 2>& half,
                       const tensor_view<double, 2>& to) noexcept {
    const index_t rank = left.extent(0);
    for (index_t i = 0; i < rank; ++i)
        for (index_t j = 0; j < rank; ++j) {
            double sum = 0;
            for (index_t k = 0; k < rank; ++k)
                sum += read_element(middle, i, k) * left(k, j);
            half(i, j) = sum;
        }
    for (index_t i = 0; i < rank; ++i)
        for (index_t j = 0; j < rank; ++j) {
            double sum = 0;
            for (index_t k = 0; k < rank; ++k)
                sum += left(k, i) * half(k, j);
            to(i, j) = sum;
        }
}

/// prototype = direction / its length, with the largest element positive; 0 stays 0.
inline void write_unit(const tensor_ref<2>& direction, const tensor_ref<1>& prototype) noexcept {
    double largest = 0;
    for (index_t i = 0; i < prototype.extent(0); ++i) {
        const double value = read_element(direction, 0, i);
        if ((std::abs)(value) > (std::abs)(largest)) largest = value;
    }
    // Over the largest element, so that squares neither overflow nor vanish.
    const double divisor = is_exactly(largest, 0) ? 1 : largest;
    double squares = 0;
    for (index_t i = 0; i < prototype.extent(0); ++i) {
        const double value = read_element(direction, 0, i) / divisor;
        squares += value * value;
    }
    const double length = is_exactly(largest, 0) ? 1 : std::sqrt(squares);
    for (index_t i = 0; i < prototype.extent(0); ++i)
        write_element(read_element(direction, 0, i) / divisor / length, prototype, i);
}

/// v /= |v| + 1e-8
inline void divide_by_length(const tensor_view<float, 2>& direction) noexcept {
    float squares = 0;
    for (index_t i = 0; i < direction.extent(1); ++i)
        squares += direction(0, i) * direction(0, i);
    const float divisor = std::sqrt(squares) + power_epsilon;
    for (index_t i = 0; i < direction.extent(1); ++i)
        direction(0, i) /= divisor;
}

inline void set_zero(const tensor_ref<2>& row) noexcept {
    for_each_element(row, [&](void* to) { write_number(row.type(), to, 0.0F); });
}

} // namespace arrow_details

inline std::size_t arrow_prototype_workspace_size(index_t in_features, index_t rank) noexcept {
    workspace meter;
    (void)arrow_details::take_exact(meter, in_features, rank);
    return meter.used();
}

inline void arrow_prototype(const const_tensor_ref<2>& a, const const_tensor_ref<2>& b,
                            const tensor_ref<1>& prototype, workspace scratch) {
    argument_checks checks("arrow_prototype");
    arrow_details::check_arguments(checks, a, b, prototype);
    if (checks.passed())
        checks.workspace_size(scratch, arrow_prototype_workspace_size(a.extent(0), a.extent(1)));
    checks.raise();
    const index_t rank = a.extent(1);
    const auto s = arrow_details::take_exact(scratch, a.extent(0), rank);
    arrow_details::count_up(s.numbers);
    arrow_details::set_zero(s.direction);
    if (rank > 0) {
        const row_set all{s.numbers.data(), rank};
        kernels::shrink(all, a.transpose(0, 1), a, 1, s.gram_a);
        kernels::shrink(all, b, b.transpose(0, 1), 1, s.gram_b);
        // A B (A B)^T A w = s^2 A w where B B^T A^T A w = s^2 w: with B B^T = R R^T and w = R z,
        // z is an eigenvector of R^T A^T A R, which is symmetric.
        for (index_t i = 0; i < rank; ++i)
            for (index_t k = 0; k < rank; ++k)
                s.symmetric(i, k) = read_element(s.gram_b, i, k);
        arrow_details::take_root(s.symmetric, s.vectors, s.root);
        arrow_details::congruence(s.root, s.gram_a, s.vectors, s.symmetric);
        diagonalise(s.symmetric, s.vectors);
        index_t first = 0;
        for (index_t k = 1; k < rank; ++k)
            if (s.symmetric(k, k) > s.symmetric(first, first)) first = k;
        for (index_t i = 0; i < rank; ++i) {
            double sum = 0;
            for (index_t k = 0; k < rank; ++k)
                sum += s.root(i, k) * s.vectors(k, first);
            write_element(sum, s.hidden, 0, i);
        }
        kernels::expand({s.numbers.data(), 1}, s.hidden, a.transpose(0, 1), 1, s.direction);
    }
    arrow_details::write_unit(s.direction, prototype);
}

inline std::size_t arrow_prototype_of_peft_workspace_size(index_t in_features,
                                                          index_t rank) noexcept {
    workspace meter;
    (void)arrow_details::take_power(meter, in_features, rank);
    return meter.used();
}

inline void arrow_prototype_of_peft(const const_tensor_ref<2>& a, const const_tensor_ref<2>& b,
                                    const const_tensor_ref<1>& start,
                                    const tensor_ref<1>& prototype, workspace scratch) {
    argument_checks checks("arrow_prototype_of_peft");
    checks.sums_are(element_type::f32);
    arrow_details::check_arguments(checks, a, b, prototype);
    checks.input("start", start, {a.extent(0)});
    if (checks.passed())
        checks.workspace_size(scratch,
                              arrow_prototype_of_peft_workspace_size(a.extent(0), a.extent(1)));
    checks.raise();
    const index_t in_features = a.extent(0);
    const index_t rank = a.extent(1);
    const auto s = arrow_details::take_power(scratch, in_features, rank);
    arrow_details::count_up(s.numbers);
    const row_set one{s.numbers.data(), 1};
    const tensor_ref<2> direction = s.direction;
    kernels::read_elements(start, s.direction.data());
    arrow_details::divide_by_length(s.direction);
    kernels::shrink({s.numbers.data(), rank}, b, b.transpose(0, 1), 1, s.gram_b);
    for (int i = 0; i < arrow_details::power_iterations; ++i) {
        kernels::shrink(one, direction, a, 1, s.hidden);
        for (index_t k = 0; k < rank; ++k) {
            s.of_product(0, k) = 0;
            for (index_t j = 0; j < rank; ++j)
                s.of_product(0, k) += s.gram_b(k, j) * s.hidden(0, j);
        }
        arrow_details::set_zero(direction);
        kernels::expand(one, s.of_product, a.transpose(0, 1), 1, direction);
        arrow_details::divide_by_length(s.direction);
    }
    kernels::write_elements(s.direction.data(), prototype);
}

inline void subtract_general_knowledge(const const_tensor_ref<3>& general,
                                       const tensor_ref<2>& matrix) {
    argument_checks checks("subtract_general_knowledge");
    checks.output("matrix", matrix, argument_checks::any_extents<2>());
    checks.input("general", general, {any_extent, matrix.extent(0), matrix.extent(1)});
    checks.expect(general.extent(0) >= 1, "general", "1 adapter or more", "none");
    checks.raise();
    with_sums(sums_of(general.type(), matrix.type()), [&](auto zero) {
        using A = decltype(zero);
        for (index_t i = 0; i < matrix.extent(0); ++i) {
            const element_row_output<A> row(matrix.type(), matrix.address_of(i, 0),
                                            matrix.stride(1));
            for (index_t k = 0; k < matrix.extent(1); ++k) {
                A sum = 0;
                for (index_t g = 0; g < general.extent(0); ++g)
                    sum += read_number<A>(general.type(), general.address_of(g, i, k));
                row.add(k, -(sum / static_cast<A>(general.extent(0))));
            }
        }
    });
}

} // namespace MHR_ISA
} // namespace mhr
