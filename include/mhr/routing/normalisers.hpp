#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/routing/kept_modules.hpp>

/// \file
/// Normalisers: how the gates s of one head become its weights w.
///
/// A normaliser is a small value with
///   - `forward<A>(shape, s, put)`: calls `put(module, w)` for each module, s(module) being its
///     gate;
///   - `backward<A>(shape, s, d_w, add)`: calls `add(module, d_s)` for each module that gets a
///     gradient;
///   - `validate(checks, heads, modules)`, called once by the entry points with their
///     argument_checks.
/// A is float or double, the type of sums.
/// `s` and `d_w` are functions that are called as often as need be: nothing is stored. What is
/// multiplied with a gate or weight of 0 is left out of sums: the gradient of a weight that is not
/// used may be one of a module that is not finite.

namespace mhr {

/// The sizes that a normaliser may depend on.
struct routing_shape {
    index_t heads;   ///< of the router
    index_t modules; ///< of each head
};

/// Added to the sum of the gates of a head, as in the code of Polytropon, MHR and PEFT; the least
/// length in the L2 normaliser.
inline constexpr double normaliser_epsilon = 1e-12;

/// w = s / (sum of s + 1e-12). If all gates of a head are 0, so are its weights.
struct sum_normaliser {
    /// Computes the weights of one head.
    template <class A, class S, class Put>
    MHR_INLINE void forward(const routing_shape& shape, S&& s, Put&& put) const noexcept {
        A sum = static_cast<A>(normaliser_epsilon);
        for (index_t m = 0; m < shape.modules; ++m)
            sum += s(m);
        for (index_t m = 0; m < shape.modules; ++m)
            put(m, s(m) / sum);
    }
    /// d_s = (d_w - sum of w d_w) / (sum of s + 1e-12)
    /// Where all gates are 0 that is d_w / 1e-12, as in the published code. Straight-through gates
    /// have a slope there, and so logits get gradients of order 1e11:
    /// detached_when_off_normaliser gives none.
    template <class A, class S, class D, class Add>
    MHR_INLINE void backward(const routing_shape& shape, S&& s, D&& d_w, Add&& add) const noexcept {
        A sum = static_cast<A>(normaliser_epsilon);
        A weighted = 0;
        for (index_t m = 0; m < shape.modules; ++m) {
            const A gate = s(m);
            sum += gate;
            if (!is_exactly(gate, 0)) weighted += gate * d_w(m);
        }
        const A mean = weighted / sum;
        for (index_t m = 0; m < shape.modules; ++m)
            add(m, (d_w(m) - mean) / sum);
    }
    /// Nothing can be wrong.
    MHR_INLINE void validate(argument_checks&, index_t, index_t) const noexcept {}
};

/// w = s sqrt(heads / modules): no normalisation, but the "average correction" of the code of MHR.
struct average_correction_normaliser {
    /// Computes the weights of one head.
    template <class A, class S, class Put>
    MHR_INLINE void forward(const routing_shape& shape, S&& s, Put&& put) const noexcept {
        for (index_t m = 0; m < shape.modules; ++m)
            put(m, s(m) * factor<A>(shape));
    }
    /// d_s = d_w sqrt(heads / modules)
    template <class A, class S, class D, class Add>
    MHR_INLINE void backward(const routing_shape& shape, S&&, D&& d_w, Add&& add) const noexcept {
        for (index_t m = 0; m < shape.modules; ++m)
            add(m, d_w(m) * factor<A>(shape));
    }
    /// Nothing can be wrong.
    MHR_INLINE void validate(argument_checks&, index_t, index_t) const noexcept {}

  private:
    template <class A>
    MHR_INLINE static A factor(const routing_shape& shape) noexcept {
        return std::sqrt(static_cast<A>(shape.heads) / static_cast<A>(shape.modules));
    }
};

/// w = s / max(||s||, 1e-12), ||s|| the Euclidean length over the modules: for logits
/// (identity_gate), which must be finite. Below that length the divisor is a constant, and so
/// d_s = d_w / 1e-12, also where all logits are 0 (detached_when_off_normaliser gives none there).
struct l2_normaliser {
    /// Computes the weights of one head.
    template <class A, class S, class Put>
    MHR_INLINE void forward(const routing_shape& shape, S&& s, Put&& put) const noexcept {
        const A length = (std::max)(length_of<A>(shape, s), static_cast<A>(normaliser_epsilon));
        for (index_t m = 0; m < shape.modules; ++m)
            put(m, s(m) / length);
    }
    /// d_s = (d_w - w sum of w d_w) / ||s||
    template <class A, class S, class D, class Add>
    MHR_INLINE void backward(const routing_shape& shape, S&& s, D&& d_w, Add&& add) const noexcept {
        constexpr A epsilon = static_cast<A>(normaliser_epsilon);
        const A length = length_of<A>(shape, s);
        const bool is_short = length < epsilon;
        A along = 0;
        for (index_t m = 0; m < shape.modules && !is_short; ++m)
            if (!is_exactly(s(m), 0)) along += s(m) / length * d_w(m);
        for (index_t m = 0; m < shape.modules; ++m)
            add(m, is_short ? d_w(m) / epsilon : (d_w(m) - s(m) / length * along) / length);
    }
    /// Nothing can be wrong.
    MHR_INLINE void validate(argument_checks&, index_t, index_t) const noexcept {}

  private:
    /// Computes the length of s over a power of two near its largest element, so that squares
    /// neither overflow nor vanish. (scalbn is used because a compiler that may regroup sums would
    /// turn two divisions into one division of squares.)
    template <class A, class S>
    MHR_INLINE static A length_of(const routing_shape& shape, S& s) noexcept {
        A largest = 0;
        for (index_t m = 0; m < shape.modules; ++m)
            largest = (std::max)(largest, (std::abs)(s(m)));
        // Subnormal numbers may be taken for 0 on the way; their length is below the least one
        // anyway.
        if (largest < (std::numeric_limits<A>::min)()) return 0;
        const int exponent = std::ilogb(largest);
        A sum = 0;
        for (index_t m = 0; m < shape.modules; ++m) {
            const A scaled = std::scalbn(s(m), -exponent);
            sum += scaled * scaled;
        }
        return std::scalbn(std::sqrt(sum), exponent);
    }
};

namespace routing_details {

/// Lets every module into a softmax, or those whose number is not exactly 0.
/// @{
struct any_number {
    template <class A>
    MHR_INLINE bool operator()(A) const noexcept {
        return true;
    }
};
struct any_but_zero {
    template <class A>
    MHR_INLINE bool operator()(A s) const noexcept {
        return !is_exactly(s, 0);
    }
};
/// @}

/// w = exp(s) / sum of exp(s) over those of the `kept` modules of largest s that are let in; the
/// others get weight 0 and no gradient.
template <class A, class LetsIn>
struct softmax {
    kept_modules<A> modules;
    A largest = 0;
    A sum = 0;

    template <class S>
    MHR_INLINE softmax(index_t kept, index_t count, S& s) noexcept
        : modules(largest_modules<A>(kept, count, s)) {
        bool is_first = true;
        for (index_t m = 0; m < count; ++m) {
            if (!LetsIn{}(s(m))) continue;
            largest = is_first ? s(m) : (std::max)(largest, s(m));
            is_first = false;
        }
        for (index_t m = 0; m < count; ++m)
            if (has(m, s(m))) sum += exponential(s(m));
    }

    MHR_INLINE bool has(index_t m, A s) const noexcept { return LetsIn{}(s) && modules.has(m, s); }
    // Not s - largest alone, which is NaN for two infinities.
    MHR_INLINE A exponential(A s) const noexcept {
        return is_exactly(s, largest) ? A(1) : std::exp(s - largest);
    }
    MHR_INLINE A weight(index_t m, A s) const noexcept {
        return has(m, s) ? exponential(s) / sum : A(0);
    }
};

template <class A, class LetsIn, class S, class Put>
MHR_INLINE void softmax_forward(index_t kept, index_t modules, S& s, Put& put) noexcept {
    const softmax<A, LetsIn> of(kept, modules, s);
    for (index_t m = 0; m < modules; ++m)
        put(m, of.weight(m, s(m)));
}

/// d_s = w (d_w - sum of w d_w)
template <class A, class LetsIn, class S, class D, class Add>
MHR_INLINE void softmax_backward(index_t kept, index_t modules, S& s, D& d_w, Add& add) noexcept {
    const softmax<A, LetsIn> of(kept, modules, s);
    A mean = 0;
    for (index_t m = 0; m < modules; ++m) {
        const A weight = of.weight(m, s(m));
        if (!is_exactly(weight, 0)) mean += weight * d_w(m);
    }
    for (index_t m = 0; m < modules; ++m) {
        const A weight = of.weight(m, s(m));
        if (!is_exactly(weight, 0)) add(m, weight * (d_w(m) - mean));
    }
}

} // namespace routing_details

/// w = exp(s) / sum of exp(s) over the `kept` modules of largest s, of equal ones the first; the
/// others get weight 0 and no gradient. For logits (identity_gate, or noisy_gate round it). By
/// default all modules are kept.
///
/// The cost is `kept` passes over the modules (one if all are kept).
struct softmax_normaliser {
    index_t kept = (std::numeric_limits<index_t>::max)(); ///< of each head

    /// Computes the weights of one head.
    template <class A, class S, class Put>
    MHR_INLINE void forward(const routing_shape& shape, S&& s, Put&& put) const noexcept {
        routing_details::softmax_forward<A, routing_details::any_number>(kept, shape.modules, s,
                                                                         put);
    }
    /// d_s = w (d_w - sum of w d_w)
    template <class A, class S, class D, class Add>
    MHR_INLINE void backward(const routing_shape& shape, S&& s, D&& d_w, Add&& add) const noexcept {
        routing_details::softmax_backward<A, routing_details::any_number>(kept, shape.modules, s,
                                                                          d_w, add);
    }
    /// This is refused: a number of kept modules below 1.
    MHR_INLINE void validate(argument_checks& checks, index_t, index_t) const {
        routing_details::check_kept(checks, kept);
    }
};

/// Gives the weights of `normaliser`, and its gradient except for heads whose gates are all 0:
/// these get no gradient, where the sum and L2 normalisers give d_w / 1e-12. It is meant for
/// straight-through gates, all of which may round to 0, and for the lengths of logits that are all
/// 0.
///
/// A head that is off stays off, then, until something else moves its logits (weight decay, a
/// prior) or its gates (noise round the gate).
template <class Normaliser>
struct detached_when_off_normaliser {
    Normaliser normaliser{}; ///< of heads that are not off

    /// The functions that every normaliser has (see the top of this file).
    /// @{
    template <class A, class S, class Put>
    MHR_INLINE void forward(const routing_shape& shape, S&& s, Put&& put) const noexcept {
        normaliser.template forward<A>(shape, s, put);
    }
    template <class A, class S, class D, class Add>
    MHR_INLINE void backward(const routing_shape& shape, S&& s, D&& d_w, Add&& add) const noexcept {
        bool is_off = true;
        for (index_t m = 0; m < shape.modules && is_off; ++m)
            is_off = is_exactly(s(m), 0);
        if (!is_off) normaliser.template backward<A>(shape, s, d_w, add);
    }
    MHR_INLINE void validate(argument_checks& checks, index_t heads, index_t modules) const {
        normaliser.validate(checks, heads, modules);
    }
    /// @}
};

/// The type is that of the argument.
template <class Normaliser>
detached_when_off_normaliser(Normaliser) -> detached_when_off_normaliser<Normaliser>;

} // namespace mhr
