#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/serving/combining/flat_elements.hpp>
#include <mhr/serving/combining/largest_elements.hpp>

/// \file
/// Weighted sums of matrices of one shape, some of whose elements are left out beforehand, and with
/// the signs that most of them agree on: the arithmetic of TIES (Yadav et al. 2023,
/// arXiv 2306.01708) and DARE (Yu et al. 2024, arXiv 2311.03099).
/// serving/combining/combine_lora.hpp applies it to adapters as PEFT does; applied to differences
/// of whole weights it is what the papers describe.

namespace mhr {

/// Which elements of each matrix are left out before it is summed.
enum class pruning : unsigned char {
    none,      ///< none
    magnitude, ///< all but the int(density elements) of largest magnitude, of equal ones the first
    mask       ///< those whose `keep` is 0; the others are divided by the density
};

/// The sign that the elements at one place agree on; those of the other are left out.
enum class sign_election : unsigned char {
    none,     ///< there is no election
    total,    ///< the sign of their sum, 0 being positive
    frequency ///< the sign of the sum of their signs, 0 being positive
};

/// How matrices are combined.
struct combining_rule {
    pruning pruned = pruning::none; ///< which elements are left out
    double density = 1;             ///< from 0 to 1; 1 leaves nothing out, and no mask is read
    sign_election election = sign_election::none; ///< whose sign the others must have
};

/// One of the matrices that are combined.
struct combined_matrix {
    const_tensor_ref<2> matrix{};              ///< of the shape of the result
    double factor = 1;                         ///< of its elements in the sum
    tensor_view<const std::uint8_t, 2> keep{}; ///< of the same shape, for pruning by a mask
};

inline namespace MHR_ISA {

/// Returns the bytes of workspace that combine_matrices needs for so many matrices: about half a
/// kilobyte of each and a megabyte for pruning by magnitude, whatever their size.
inline std::size_t combine_matrices_workspace_size(index_t matrices,
                                                   const combining_rule& rule) noexcept;

/// result = sum over i of factor[i] X[i], with X[i] the pruned matrix i; with an election,
///     result = sum over i of factor[i] X[i] e[i] / max(1, sum over i of e[i]),
/// where e[i] is 1 where X[i] has the elected sign, else 0. Neither the election nor the divisor
/// takes account of the factors: a negative one turns the sign after the election. An element that
/// is 0 or pruned never agrees.
///
/// matrices [any number]; result of the shape of each, overwritten; it must not overlap them. Sums
/// are f64 if a tensor is, else f32. Elements are streamed: nothing of the size of a matrix is
/// kept, and nothing is sorted.
///
/// It has several phases. The result is the same to the bit for every executor. These are refused:
/// no matrix; matrices or masks of another shape; a result of which elements overlap; a density
/// outside [0, 1], or below the least normal f32 with masks (which divide by it); factors that are
/// not numbers in the range of f32; a workspace that is too small. Each matrix is read once, with
/// an election twice, and three times more for pruning by magnitude (six with sums of f64).
inline void combine_matrices(executor_ref executor, tensor_view<const combined_matrix, 1> matrices,
                             const combining_rule& rule, const tensor_ref<2>& result,
                             workspace scratch);

namespace combining_details {

/// This says which elements of matrices are kept.
struct pruning_scratch {
    tensor_view<index_t, 2> counts;      ///< see take_counts
    tensor_view<index_t, 2> before_part; ///< [matrices, parts]
    tensor_view<index_t, 1> of_last;     ///< [matrices]
    tensor_view<std::uint64_t, 1> last;  ///< [matrices]
    tensor_view<index_t, 2> seen;        ///< [parts, matrices]: equal ones before the chunk
};

inline bool selects(const combining_rule& rule) noexcept {
    return rule.pruned == pruning::magnitude && rule.density < 1;
}

inline pruning_scratch take_pruning(workspace& memory, index_t matrices,
                                    const combining_rule& rule) noexcept {
    if (!selects(rule)) return {};
    return {take_counts(memory), memory.take<index_t, 2>({matrices, parts}),
            memory.take<index_t, 1>({matrices}), memory.take<std::uint64_t, 1>({matrices}),
            memory.take<index_t, 2>({parts, matrices})};
}

inline void check_rule(argument_checks& checks, const combining_rule& rule) {
    const bool masked = rule.pruned == pruning::mask;
    checks.expect(rule.pruned <= pruning::mask, "rule.pruned", "none, magnitude or mask",
                  joined("number ", static_cast<int>(rule.pruned)));
    checks.expect(rule.election <= sign_election::frequency, "rule.election",
                  "none, total or frequency", joined("number ", static_cast<int>(rule.election)));
    // Masks divide by it, perhaps in f32.
    const double least = masked ? static_cast<double>((std::numeric_limits<float>::min)()) : 0;
    checks.expect(rule.density >= least && rule.density <= 1, "rule.density",
                  masked ? "a number above 0 in the range of f32, up to 1" : "a number from 0 to 1",
                  rule.density);
}

/// Checks a factor, which must be a number in f32, too, if that is the type of sums.
inline void check_factor(argument_checks& checks, const char* argument, double factor) {
    checks.expect((std::abs)(factor) <= static_cast<double>((std::numeric_limits<float>::max)()),
                  argument, "a weight in the range of f32", factor);
}

/// Checks one of the matrices, whose name is `argument`, with its mask, whose name is `keep`.
inline void check_source(argument_checks& checks, const combined_matrix& source,
                         const combining_rule& rule, const std::array<index_t, 2>& extents,
                         const char* argument, const char* keep) {
    checks.input(argument, source.matrix, extents);
    check_factor(checks, argument, source.factor);
    if (rule.pruned == pruning::mask && rule.density < 1)
        checks.numbers(keep, source.keep, extents);
}

/// X of a chunk: reads it and prunes it. `seen` counts the elements of the last magnitude so far.
template <class A>
struct pruned_reader {
    const combined_matrix& source;
    const combining_rule& rule;
    std::uint64_t last;
    index_t of_last;

    void read(index_t first, index_t count, A* to, index_t& seen) const noexcept {
        read_flat(source.matrix, first, count, to);
        if (rule.pruned == pruning::none || !(rule.density < 1)) return;
        if (rule.pruned == pruning::mask) {
            const index_t columns = source.matrix.extent(1);
            const auto density = static_cast<A>(rule.density);
            for (index_t i = 0; i < count; ++i) {
                const index_t at = first + i;
                to[i] = source.keep(at / columns, at % columns) != 0 ? to[i] / density : A(0);
            }
            return;
        }
        const auto of_last_kept = static_cast<key_of<A>>(last);
        // Equal ones are rare, and so what is done for every element has no branch.
        index_t equal = 0;
        for (index_t i = 0; i < count; ++i)
            equal += magnitude_key(to[i]) == of_last_kept;
        for (index_t i = 0; i < count && equal > 0; ++i)
            if (magnitude_key(to[i]) == of_last_kept && seen++ >= of_last) to[i] = 0;
        for (index_t i = 0; i < count; ++i)
            to[i] = magnitude_key(to[i]) < of_last_kept ? A(0) : to[i];
    }
};

/// One chunk of the result.
template <class A, class Reader>
void combine_chunk(index_t matrices, sign_election election, index_t count, Reader&& read,
                   A* result) noexcept {
    A numbers[static_cast<std::size_t>(chunk)];
    A votes[static_cast<std::size_t>(chunk)] = {};
    A agreeing[static_cast<std::size_t>(chunk)] = {};
    const auto sign = [](A x) { return static_cast<A>(static_cast<int>(x > 0) - int(x < 0)); };
    for (index_t m = 0; m < matrices && election != sign_election::none; ++m) {
        (void)read(m, numbers, false);
        for (index_t i = 0; i < count; ++i)
            votes[i] += election == sign_election::total ? numbers[i] : sign(numbers[i]);
    }
    std::fill_n(result, count, A(0));
    for (index_t m = 0; m < matrices; ++m) {
        const A factor = read(m, numbers, true);
        if (election == sign_election::none) {
            for (index_t i = 0; i < count; ++i)
                result[i] += factor * numbers[i];
            continue;
        }
        for (index_t i = 0; i < count; ++i) {
            const bool agrees = votes[i] < 0 ? numbers[i] < 0 : numbers[i] > 0;
            // NaN shows in the result rather than losing the election.
            const bool counts = agrees || std::isnan(numbers[i]);
            result[i] += counts ? factor * numbers[i] : A(0);
            agreeing[i] += counts ? A(1) : A(0);
        }
    }
    for (index_t i = 0; i < count && election != sign_election::none; ++i)
        result[i] /= (std::max)(agreeing[i], A(1));
}

/// combine_matrices of checked arguments, of which `source_of(i)` tells one.
template <class A, class Sources>
void combine(executor_ref executor, index_t matrices, const Sources& source_of,
             const combining_rule& rule, const tensor_ref<2>& result,
             const pruning_scratch& scratch) {
    const index_t elements = result.size();
    for (index_t m = 0; m < matrices && selects(rule); ++m) {
        // As PEFT truncates it: .29 of 100 elements are 28.
        const auto kept = static_cast<index_t>(rule.density * static_cast<double>(elements));
        const auto largest = select_largest<A>(executor, source_of(m).matrix, kept, scratch.counts,
                                               scratch.before_part.slice(0, m));
        scratch.last(m) = largest.last;
        scratch.of_last(m) = largest.of_last;
    }
    executor.run(parts, 64 * matrices * (elements / parts), [&](index_t part) noexcept {
        const index_t end = first_of_part(elements, part + 1);
        for (index_t m = 0; m < matrices && selects(rule); ++m)
            scratch.seen(part, m) = scratch.before_part(m, part);
        for (index_t first = first_of_part(elements, part); first < end; first += chunk) {
            const index_t count = (std::min)(chunk, end - first);
            A sums[static_cast<std::size_t>(chunk)];
            combine_chunk(
                matrices, rule.election, count,
                [&](index_t m, A* to, bool is_last) {
                    const combined_matrix source = source_of(m);
                    index_t seen = selects(rule) ? scratch.seen(part, m) : 0;
                    pruned_reader<A>{source, rule, selects(rule) ? scratch.last(m) : 0,
                                     selects(rule) ? scratch.of_last(m) : 0}
                        .read(first, count, to, seen);
                    if (selects(rule) && is_last) scratch.seen(part, m) = seen;
                    return static_cast<A>(source.factor);
                },
                sums);
            write_flat(sums, result, first, count);
        }
    });
}

} // namespace combining_details

inline std::size_t combine_matrices_workspace_size(index_t matrices,
                                                   const combining_rule& rule) noexcept {
    workspace meter;
    (void)combining_details::take_pruning(meter, matrices, rule);
    return meter.used();
}

inline void combine_matrices(executor_ref executor, tensor_view<const combined_matrix, 1> matrices,
                             const combining_rule& rule, const tensor_ref<2>& result,
                             workspace scratch) {
    argument_checks checks("combine_matrices");
    checks.numbers("matrices", matrices, {any_extent});
    checks.expect(matrices.extent(0) >= 1, "matrices", "1 or more", matrices.extent(0));
    combining_details::check_rule(checks, rule);
    checks.output("result", result, argument_checks::any_extents<2>());
    element_type sums = result.type();
    for (index_t i = 0; checks.passed() && i < matrices.extent(0); ++i) {
        combining_details::check_source(checks, matrices(i), rule, result.extents(), "matrices",
                                        "matrices.keep");
        sums = sums_of(sums, matrices(i).matrix.type());
    }
    checks.every_part(executor);
    if (checks.passed())
        checks.workspace_size(scratch, combine_matrices_workspace_size(matrices.extent(0), rule));
    checks.raise();
    const auto memory = combining_details::take_pruning(scratch, matrices.extent(0), rule);
    with_sums(sums, [&](auto zero) {
        combining_details::combine<decltype(zero)>(
            executor, matrices.extent(0), [&](index_t i) { return matrices(i); }, rule, result,
            memory);
    });
}

} // namespace MHR_ISA
} // namespace mhr
