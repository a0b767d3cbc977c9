#pragma once

#include <cmath>
#include <limits>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/tensor_ref.hpp>

/// \file
/// Gates: how one logit becomes how far a module is switched on. What a head's gates become then is
/// up to the normaliser (routing/normalisers.hpp).
///
/// A gate is a small value with
///   - `value(logit, position)`, the gate s;
///   - `slope(logit, position)`, ds / d logit;
///   - `validate(checks, entries, heads, modules)`, called once by the entry points with their
///     argument_checks,
/// computed in the type of `logit`, which is float or double. The router calls nothing else, so
/// that a gate may wrap another one (routing/gate_wrappers.hpp).

namespace mhr {

/// The position in [entries, heads, modules] that a gate is asked for.
struct gate_position {
    index_t entry;   ///< of the batch, or of whatever the weights are for
    index_t head;    ///< from 0
    index_t module;  ///< from 0
    index_t modules; ///< how many there are
};

inline namespace MHR_ISA {
namespace gate_details {

/// sigmoid(z) without overflow: exp is only taken of numbers that are not positive.
template <class A>
A stable_sigmoid(A z) noexcept {
    const A e = std::exp(-(std::abs)(z));
    return (z >= 0 ? A(1) : e) / (1 + e);
}

/// d sigmoid / dz = s (1 - s), without the cancellation of 1 - s.
template <class A>
A sigmoid_slope(A z) noexcept {
    const A e = std::exp(-(std::abs)(z));
    return e / ((1 + e) * (1 + e));
}

} // namespace gate_details
} // namespace MHR_ISA

/// s = l: for the normalisers that work on logits (softmax, L2).
struct identity_gate {
    /// The functions that every gate has (see the top of this file).
    /// @{
    template <class A>
    MHR_INLINE A value(A logit, const gate_position&) const noexcept {
        return logit;
    }
    template <class A>
    MHR_INLINE A slope(A, const gate_position&) const noexcept {
        return A(1);
    }
    MHR_INLINE void validate(argument_checks&, index_t, index_t, index_t) const noexcept {}
    /// @}
};

/// s = sigmoid(l): the gate of evaluation and of training without noise.
struct sigmoid_gate {
    /// The functions that every gate has (see the top of this file).
    /// @{
    template <class A>
    MHR_INLINE A value(A logit, const gate_position&) const noexcept {
        return gate_details::stable_sigmoid(logit);
    }
    template <class A>
    MHR_INLINE A slope(A logit, const gate_position&) const noexcept {
        return gate_details::sigmoid_slope(logit);
    }
    MHR_INLINE void validate(argument_checks&, index_t, index_t, index_t) const noexcept {}
    /// @}
};

/// s = round(sigmoid(l)), half to even: 1 where sigmoid(l) > 1/2, else 0; NaN stays NaN. The
/// gradient is that of the sigmoid: the straight-through estimator (Bengio et al. 2013, arXiv
/// 1308.3432).
///
/// All gates of a head may be 0. With sum_normaliser its logits then get gradients of order 1e11
/// d_w; with detached_when_off_normaliser{sum_normaliser{}} they get none.
struct straight_through_gate {
    /// The functions that every gate has (see the top of this file).
    /// @{
    template <class A>
    MHR_INLINE A value(A logit, const gate_position&) const noexcept {
        // Not logit > 0: a logit so small that its sigmoid rounds to 1/2 is off, as in PyTorch.
        return std::rint(gate_details::stable_sigmoid(logit));
    }
    template <class A>
    MHR_INLINE A slope(A logit, const gate_position&) const noexcept {
        return gate_details::sigmoid_slope(logit);
    }
    MHR_INLINE void validate(argument_checks&, index_t, index_t, index_t) const noexcept {}
    /// @}
};

/// s = sigmoid((l + log u - log(1 - u)) / temperature): a sample of the relaxed Bernoulli
/// ("Gumbel-sigmoid") distribution (Maddison et al. 2017, arXiv 1611.00712), as Polytropon uses it
/// (Ponti et al. 2023, arXiv 2202.13914).
///
/// `uniforms` is [entries, heads, modules] of any element type, one draw for each weight
/// (routing/noise.hpp draws them); it is moved off 0 and 1 by the machine epsilon of the
/// arithmetic. The logit itself enters, where PyTorch's RelaxedBernoulli clamps sigmoid(l) at the
/// machine epsilon and so cuts logits beyond +-36 (f64) or +-16 (f32): inside those bounds both are
/// the same function.
struct gumbel_sigmoid_gate {
    const_tensor_ref<3> uniforms; ///< [entries, heads, modules], from 0 to 1
    double temperature = 1;       ///< the lower, the closer to 0 or 1 are the samples

    /// The functions that every gate has (see the top of this file).
    /// @{
    template <class A>
    MHR_INLINE A value(A logit, const gate_position& at) const noexcept {
        return gate_details::stable_sigmoid(argument(logit, at));
    }
    template <class A>
    MHR_INLINE A slope(A logit, const gate_position& at) const noexcept {
        return gate_details::sigmoid_slope(argument(logit, at)) / static_cast<A>(temperature);
    }
    MHR_INLINE void validate(argument_checks& checks, index_t entries, index_t heads,
                             index_t modules) const {
        checks.input("gate.uniforms", uniforms, {entries, heads, modules});
        checks.expect(
            // In f32, where it may be used, it must neither vanish nor overflow.
            temperature >= static_cast<double>((std::numeric_limits<float>::min)()) &&
                temperature <= static_cast<double>((std::numeric_limits<float>::max)()),
            "gate.temperature", "a positive number in the normal range of f32", temperature);
    }
    /// @}

  private:
    template <class A>
    MHR_INLINE A argument(A logit, const gate_position& at) const noexcept {
        constexpr A epsilon = std::numeric_limits<A>::epsilon();
        A u = read_number<A>(uniforms.type(), uniforms.address_of(at.entry, at.head, at.module));
        u = u < epsilon ? epsilon : u > 1 - epsilon ? 1 - epsilon : u;
        return (logit + std::log(u) - std::log1p(-u)) / static_cast<A>(temperature);
    }
};

} // namespace mhr
