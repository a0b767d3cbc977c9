#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <ostream>
#include <sstream>
#include <string>
#include <type_traits>

#include "support/scalar.hpp"
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>

#include "support/element_access.hpp"
#include "support/positions.hpp"
#include "support/precision.hpp"

/// \file
/// Comparators. They return a result rather than asserting, so that tests can plant bugs and see
/// them reported. All of them fail on NaN, on infinities, on different extents, and if nothing was
/// compared at all.

namespace mhr::test {

/// The outcome of a comparison: `CHECK(compare(...))` prints the message if it fails.
struct comparison {
    bool ok = false;
    std::size_t compared = 0;
    double worst_ratio = 0; ///< of error to bound; NaN counts as infinite
    std::string message;

    explicit operator bool() const { return ok; }
};

inline std::ostream& operator<<(std::ostream& stream, const comparison& result) {
    return stream << result.message;
}

/// How far a result may be from the oracle's:
///     sum_roundings eps(accumulator) sum|terms| + storage_roundings eps(storage) |want|
/// (and as many of the storage type's smallest steps, for results near 0).
struct error_bound {
    double sum_roundings;
    double sum_epsilon;
    double storage_roundings;
};

/// The bound for kernels that sum in a type that is data.
inline error_bound within(element_type sums, double sum_roundings, double storage_roundings = 1) {
    return {sum_roundings, precision_of(sums).epsilon, storage_roundings};
}

/// The bound for kernels that sum in `A`. `storage_roundings` exceeds 1 where a result is rounded
/// to its storage type several times, as gradients that accumulate are.
template <class A>
error_bound within(double sum_roundings, double storage_roundings = 1) {
    return {sum_roundings, epsilon_of<A>(), storage_roundings};
}

namespace comparing {

template <class Got, class Want>
bool same_extents(const Got& got, const Want& want, comparison& result) {
    if (got.extents() == want.extents()) return true;
    result.message =
        "extents " + to_text(got.extents()) + " compared with " + to_text(want.extents());
    return false;
}

inline comparison& finish(comparison& result, std::size_t failures) {
    if (result.compared == 0) {
        result.ok = false;
        result.message = "nothing was compared";
    } else if (failures == 0) {
        result.ok = true;
        result.message = std::to_string(result.compared) + " values agree";
    } else {
        result.ok = false;
        result.message += " (" + std::to_string(failures) + " of " +
                          std::to_string(result.compared) + " values differ)";
    }
    return result;
}

/// `got_at(position)` is a result, stored in a type of this precision, and `magnitude_at(position)`
/// the sum of |terms| of an element.
template <class S, std::size_t Rank, class Got, class Magnitude>
comparison compare_elements(Got&& got_at, const element_precision& stored,
                            const tensor_view<S, Rank>& want, const error_bound& bound,
                            Magnitude&& magnitude_at) {
    using number = std::remove_const_t<S>;
    const auto storage_epsilon = static_cast<number>(stored.epsilon);
    const auto smallest_step = static_cast<number>(stored.smallest_step);
    const auto factor = static_cast<number>(bound.sum_roundings * bound.sum_epsilon);
    const auto roundings = static_cast<number>(bound.storage_roundings);

    comparison result;
    std::size_t failures = 0;
    for_each_position(want.extents(), [&](const position<Rank>& at) {
        ++result.compared;
        const auto g = static_cast<number>(got_at(at));
        const number w = element(want, at);
        const number allowed = factor * static_cast<number>(magnitude_at(at)) +
                               roundings * (storage_epsilon * std::abs(w) + smallest_step);
        const number error = std::abs(g - w);
        const double ratio = is_exactly(error, 0)   ? 0
                             : std::isfinite(error) ? static_cast<double>(error / allowed)
                                                    : std::numeric_limits<double>::infinity();
        if (!(ratio <= result.worst_ratio)) result.worst_ratio = ratio;
        // Every comparison with NaN is false; an infinite bound would allow everything.
        if (error <= allowed && std::isfinite(allowed)) return;
        if (failures++ == 0) {
            std::ostringstream text;
            text.precision(std::numeric_limits<number>::max_digits10);
            text << "at " << to_text(at) << ": got " << g << ", want " << w << ", error " << error
                 << ", allowed " << allowed;
            result.message = text.str();
        }
    });
    return finish(result, failures);
}

} // namespace comparing

/// Compares a kernel's result with the oracle's, element by element. `magnitude` is what the oracle
/// gives on absolute values: the sum of |terms| of each element.
template <class T, class S, class M, std::size_t Rank>
comparison compare(const tensor_view<T, Rank>& got, const tensor_view<S, Rank>& want,
                   const tensor_view<M, Rank>& magnitude, const error_bound& bound) {
    comparison result;
    if (!comparing::same_extents(got, want, result) ||
        !comparing::same_extents(magnitude, want, result))
        return result;
    return comparing::compare_elements(
        [&](const position<Rank>& at) { return load<std::remove_const_t<S>>(element(got, at)); },
        {epsilon_of<T>(), smallest_step_of<T>()}, want, bound,
        [&](const position<Rank>& at) { return element(magnitude, at); });
}

/// Compares as above, with |want| itself as the magnitude: for results without cancellation.
template <class T, class S, std::size_t Rank>
comparison compare(const tensor_view<T, Rank>& got, const tensor_view<S, Rank>& want,
                   const error_bound& bound) {
    comparison result;
    if (!comparing::same_extents(got, want, result)) return result;
    return comparing::compare_elements(
        [&](const position<Rank>& at) { return load<std::remove_const_t<S>>(element(got, at)); },
        {epsilon_of<T>(), smallest_step_of<T>()}, want, bound,
        [&](const position<Rank>& at) { return std::abs(element(want, at)); });
}

/// These compare results whose type is data.
/// @{
template <class Void, class S, class M, std::size_t Rank>
comparison compare(const basic_tensor_ref<Void, Rank>& got, const tensor_view<S, Rank>& want,
                   const tensor_view<M, Rank>& magnitude, const error_bound& bound) {
    comparison result;
    if (!comparing::same_extents(got, want, result) ||
        !comparing::same_extents(magnitude, want, result))
        return result;
    return comparing::compare_elements(
        [&](const position<Rank>& at) { return element(got, at); }, precision_of(got.type()), want,
        bound, [&](const position<Rank>& at) { return element(magnitude, at); });
}
template <class Void, class S, std::size_t Rank>
comparison compare(const basic_tensor_ref<Void, Rank>& got, const tensor_view<S, Rank>& want,
                   const error_bound& bound) {
    comparison result;
    if (!comparing::same_extents(got, want, result)) return result;
    return comparing::compare_elements(
        [&](const position<Rank>& at) { return element(got, at); }, precision_of(got.type()), want,
        bound, [&](const position<Rank>& at) { return std::abs(element(want, at)); });
}
/// @}

/// True if both hold the same bits. NaN is refused even then: two kernels that fail in the same way
/// prove nothing.
template <class T, class S, std::size_t Rank>
comparison compare_bitwise(const tensor_view<T, Rank>& got, const tensor_view<S, Rank>& want) {
    static_assert(std::is_same_v<const T, const S>, "bits are compared of one type");
    comparison result;
    if (!comparing::same_extents(got, want, result)) return result;
    std::size_t failures = 0;
    for_each_position(want.extents(), [&](const position<Rank>& at) {
        ++result.compared;
        const T& g = element(got, at);
        const S& w = element(want, at);
        const bool same_bits = std::memcmp(&g, &w, sizeof(T)) == 0;
        if (same_bits && is_exactly(load<double>(g), load<double>(w))) return;
        result.worst_ratio = std::numeric_limits<double>::infinity();
        if (failures++ == 0) {
            std::ostringstream text;
            text.precision(17);
            text << "at " << to_text(at) << ": got " << load<double>(g) << ", want "
                 << load<double>(w) << (same_bits ? " (NaN)" : ", other bits");
            result.message = text.str();
        }
    });
    return comparing::finish(result, failures);
}

/// Compares tensors whose type is data, which must be equal.
template <class V, class W, std::size_t Rank>
comparison compare_bitwise(const basic_tensor_ref<V, Rank>& got,
                           const basic_tensor_ref<W, Rank>& want) {
    comparison result;
    if (!comparing::same_extents(got, want, result)) return result;
    if (got.type() != want.type()) {
        result.message =
            std::string(name_of(got.type())) + " compared with " + name_of(want.type());
        return result;
    }
    std::size_t failures = 0;
    for_each_position(want.extents(), [&](const position<Rank>& at) {
        ++result.compared;
        const double g = element(got, at);
        const double w = element(want, at);
        const bool same_bits =
            std::memcmp(address_of(got, at), address_of(want, at), size_of(got.type())) == 0;
        if (same_bits && is_exactly(g, w)) return;
        result.worst_ratio = std::numeric_limits<double>::infinity();
        if (failures++ == 0) {
            std::ostringstream text;
            text.precision(17);
            text << "at " << to_text(at) << ": got " << g << ", want " << w
                 << (same_bits ? " (NaN)" : ", other bits");
            result.message = text.str();
        }
    });
    return comparing::finish(result, failures);
}

} // namespace mhr::test
