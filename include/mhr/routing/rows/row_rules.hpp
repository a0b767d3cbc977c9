#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/routing/gates.hpp>
#include <mhr/routing/kept_modules.hpp>
#include <mhr/routing/normalisers.hpp>

/// \file
/// Gates and normalisers that routers of rows have beside those of routing/gates.hpp and
/// routing/normalisers.hpp, with which they compose. As rules of row_weights_forward:
///
///     Arrow:       routing_rule{tempered_gate{magnitude_gate{}, t}, softmax_normaliser{k}}
///     MixLoRA:     routing_rule{identity_gate{}, softmax_normaliser{k}}
///     Switch:      routing_rule{identity_gate{}, softmax_of_all_normaliser{1}}
///     Phatgoose:   routing_rule{tempered_gate{identity_gate{}, t}, softmax_normaliser{k}}, whose
///                  prototypes are trained with routing_rule{sigmoid_gate{}, kept_normaliser{}}
///     X-LoRA:      routing_rule{identity_gate{}, scaled_normaliser{kept_normaliser{k}, g}}, or
///                  softmax_of_nonzero_normaliser{k} in place of kept_normaliser{k}
///
/// A softmax over all modules of which the k largest are divided by their sum, as MixLoRA writes
/// it, is the softmax over those k.

namespace mhr {

/// s = |l|: the gate of Arrow (Ostapenko et al. 2024, arXiv 2405.11157, section 4.1), for which the
/// sign of a prototype says nothing. The slope at 0 is 0.
struct magnitude_gate {
    /// What every gate has (see gates.hpp).
    /// @{
    template <class A>
    MHR_INLINE A value(A logit, const gate_position&) const noexcept {
        return (std::abs)(logit);
    }
    template <class A>
    MHR_INLINE A slope(A logit, const gate_position&) const noexcept {
        return static_cast<A>(static_cast<int>(logit > 0) - static_cast<int>(logit < 0));
    }
    MHR_INLINE void validate(argument_checks&, index_t, index_t, index_t) const noexcept {}
    /// @}
};

/// s = gate(l) / temperature. A temperature below the smallest normal f32 or above the largest is
/// refused. (A temperature of 0 or less means
/// sqrt(features) to mttl: that is the host's to write.)
template <class Gate>
struct tempered_gate {
    Gate gate;              ///< whose values are divided
    double temperature = 1; ///< above 0

    /// What every gate has (see gates.hpp).
    /// @{
    template <class A>
    MHR_INLINE A value(A logit, const gate_position& at) const noexcept {
        return gate.value(logit, at) / static_cast<A>(temperature);
    }
    template <class A>
    MHR_INLINE A slope(A logit, const gate_position& at) const noexcept {
        return gate.slope(logit, at) / static_cast<A>(temperature);
    }
    MHR_INLINE void validate(argument_checks& checks, index_t entries, index_t heads,
                             index_t modules) const {
        gate.validate(checks, entries, heads, modules);
        // In f32, where it may be used, it must neither vanish nor overflow.
        checks.expect(temperature >= static_cast<double>((std::numeric_limits<float>::min)()) &&
                          temperature <= static_cast<double>((std::numeric_limits<float>::max)()),
                      "gate.temperature", "a number above 0 in the range of f32", temperature);
    }
    /// @}
};

/// The type is that of the gate.
template <class Gate>
tempered_gate(Gate, double) -> tempered_gate<Gate>;

/// w = s for the `kept` modules of largest s, of equal ones the first, and 0 for the others, which
/// get no gradient: a top-k that is not normalised. By default all are kept. The order is that of
/// the numbers, not of their magnitudes: negative weights go first. A number of kept modules below
/// 1 is refused.
struct kept_normaliser {
    index_t kept = (std::numeric_limits<index_t>::max)(); ///< of each head

    /// What every normaliser has (see normalisers.hpp); d_s = d_w where s is kept.
    /// @{
    template <class A, class S, class Put>
    MHR_INLINE void forward(const routing_shape& shape, S&& s, Put&& put) const noexcept {
        const auto chosen = routing_details::largest_modules<A>(kept, shape.modules, s);
        for (index_t m = 0; m < shape.modules; ++m)
            put(m, chosen.has(m, s(m)) ? s(m) : A(0));
    }
    template <class A, class S, class D, class Add>
    MHR_INLINE void backward(const routing_shape& shape, S&& s, D&& d_w, Add&& add) const noexcept {
        const auto chosen = routing_details::largest_modules<A>(kept, shape.modules, s);
        for (index_t m = 0; m < shape.modules; ++m)
            if (chosen.has(m, s(m))) add(m, d_w(m));
    }
    MHR_INLINE void validate(argument_checks& checks, index_t, index_t) const {
        routing_details::check_kept(checks, kept);
    }
    /// @}
};

/// The softmax over *all* modules, of which the `kept` largest keep their weight and the others get
/// 0 (Fedus et al. 2022, arXiv 2101.03961, equations 1 and 2, with one kept). The weights of a row
/// then sum to less than 1, and a module that is not kept still gets a gradient:
/// d_s = p (d_w' - sum of p d_w'), with p the softmax and d_w' that of the kept, else 0. A number
/// of kept modules below 1 is refused.
struct softmax_of_all_normaliser {
    index_t kept = (std::numeric_limits<index_t>::max)(); ///< of each head

    /// What every normaliser has (see normalisers.hpp).
    /// @{
    template <class A, class S, class Put>
    MHR_INLINE void forward(const routing_shape& shape, S&& s, Put&& put) const noexcept {
        const auto chosen = routing_details::largest_modules<A>(kept, shape.modules, s);
        softmax_normaliser{}.forward<A>(
            shape, s, [&](index_t m, A p) { put(m, chosen.has(m, s(m)) ? p : A(0)); });
    }
    template <class A, class S, class D, class Add>
    MHR_INLINE void backward(const routing_shape& shape, S&& s, D&& d_w, Add&& add) const noexcept {
        const auto chosen = routing_details::largest_modules<A>(kept, shape.modules, s);
        softmax_normaliser{}.backward<A>(
            shape, s, [&](index_t m) { return chosen.has(m, s(m)) ? d_w(m) : A(0); }, add);
    }
    MHR_INLINE void validate(argument_checks& checks, index_t, index_t) const {
        routing_details::check_kept(checks, kept);
    }
    /// @}
};

/// The softmax over those of the `kept` modules of largest s whose s is not 0; the others get
/// weight 0 and no gradient, and a row of zeros stays one. It is X-LoRA's `softmax_topk` as PEFT
/// computes it: on scalings that are a softmax already it is a softmax of probabilities, and a
/// scaling of exactly 0 is dropped even if it is among the k. A number of kept modules below 1 is
/// refused.
struct softmax_of_nonzero_normaliser {
    index_t kept = (std::numeric_limits<index_t>::max)(); ///< of each head

    /// What every normaliser has (see normalisers.hpp).
    /// @{
    template <class A, class S, class Put>
    MHR_INLINE void forward(const routing_shape& shape, S&& s, Put&& put) const noexcept {
        routing_details::softmax_forward<A, routing_details::any_but_zero>(kept, shape.modules, s,
                                                                           put);
    }
    template <class A, class S, class D, class Add>
    MHR_INLINE void backward(const routing_shape& shape, S&& s, D&& d_w, Add&& add) const noexcept {
        routing_details::softmax_backward<A, routing_details::any_but_zero>(kept, shape.modules, s,
                                                                            d_w, add);
    }
    MHR_INLINE void validate(argument_checks& checks, index_t, index_t) const {
        routing_details::check_kept(checks, kept);
    }
    /// @}
};

/// w = factor factors[m] times the weight of `normaliser`: X-LoRA's `global_scaling_weight`, and
/// scales of the modules where these differ (a layer has one scale for all). Negative factors are
/// as good as others. These are refused: a factor that is no number in the range of f32; factors of
/// another shape than [modules].
template <class Normaliser>
struct scaled_normaliser {
    Normaliser normaliser{};       ///< whose weights are multiplied
    double factor = 1;             ///< of all modules, finite in f32
    const_tensor_ref<1> factors{}; ///< [modules], or absent for 1

    /// What every normaliser has (see normalisers.hpp).
    /// @{
    template <class A, class S, class Put>
    MHR_INLINE void forward(const routing_shape& shape, S&& s, Put&& put) const noexcept {
        normaliser.template forward<A>(shape, s, [&](index_t m, A w) { put(m, of<A>(m) * w); });
    }
    template <class A, class S, class D, class Add>
    MHR_INLINE void backward(const routing_shape& shape, S&& s, D&& d_w, Add&& add) const noexcept {
        normaliser.template backward<A>(
            shape, s, [&](index_t m) { return of<A>(m) * d_w(m); }, add);
    }
    MHR_INLINE void validate(argument_checks& checks, index_t heads, index_t modules) const {
        normaliser.validate(checks, heads, modules);
        checks.expect((std::abs)(factor) <=
                          static_cast<double>((std::numeric_limits<float>::max)()),
                      "normaliser.factor", "a number in the range of f32", factor);
        if (!factors.absent()) checks.input("normaliser.factors", factors, {modules});
    }
    /// @}

  private:
    template <class A>
    MHR_INLINE A of(index_t m) const noexcept {
        const A all = static_cast<A>(factor);
        return factors.absent() ? all : all * read_number<A>(factors.type(), factors.address_of(m));
    }
};

/// The type is that of the normaliser.
/// @{
template <class Normaliser>
scaled_normaliser(Normaliser, double) -> scaled_normaliser<Normaliser>;
template <class Normaliser>
scaled_normaliser(Normaliser, double, const_tensor_ref<1>) -> scaled_normaliser<Normaliser>;
/// @}

} // namespace mhr
