#pragma once

#include <cmath>
#include <limits>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/routing/gates.hpp>

/// \file
/// Gates round another gate: noise before it, dropout after it, a module that is always on. They
/// compose, as in `shared_module_gate{dropout_gate{sigmoid_gate{}, keep, 0.1}}`.

namespace mhr {

/// s = gate(l + scale noise): noisy logits, as mixtures of experts draw them before a softmax.
/// `noise` is [entries, heads, modules] of any element type, usually normal.
template <class Gate>
struct noisy_gate {
    Gate gate;                 ///< that gets the noisy logits
    const_tensor_ref<3> noise; ///< [entries, heads, modules]
    double scale = 1;          ///< of the noise

    /// The functions that every gate has (see gates.hpp).
    /// @{
    template <class A>
    MHR_INLINE A value(A logit, const gate_position& at) const noexcept {
        return gate.value(noisy(logit, at), at);
    }
    template <class A>
    MHR_INLINE A slope(A logit, const gate_position& at) const noexcept {
        return gate.slope(noisy(logit, at), at);
    }
    MHR_INLINE void validate(argument_checks& checks, index_t entries, index_t heads,
                             index_t modules) const {
        gate.validate(checks, entries, heads, modules);
        checks.input("gate.noise", noise, {entries, heads, modules});
        checks.expect(
            // In f32, where it may be used, it must not overflow.
            (std::abs)(scale) <= static_cast<double>((std::numeric_limits<float>::max)()),
            "gate.scale", "a number in the range of f32", scale);
    }
    /// @}

  private:
    template <class A>
    MHR_INLINE A noisy(A logit, const gate_position& at) const noexcept {
        return logit +
               static_cast<A>(scale) *
                   read_number<A>(noise.type(), noise.address_of(at.entry, at.head, at.module));
    }
};

/// The type is that of the gate.
/// @{
template <class Gate>
noisy_gate(Gate, const_tensor_ref<3>, double) -> noisy_gate<Gate>;
template <class Gate>
noisy_gate(Gate, const_tensor_ref<3>) -> noisy_gate<Gate>;
/// @}

/// s = keep gate(l) / (1 - probability): dropout of modules with a given mask, before they are
/// normalised. `keep` is [entries, heads, modules] of any arithmetic type, bool included; 0 drops.
/// A module that is dropped gets no gradient.
template <class Gate, class K>
struct dropout_gate {
    Gate gate;              ///< whose values are dropped
    tensor_view<K, 3> keep; ///< [entries, heads, modules]; 0 drops
    double probability = 0; ///< of being dropped, from 0 to below 1

    /// The functions that every gate has (see gates.hpp).
    /// @{
    template <class A>
    MHR_INLINE A value(A logit, const gate_position& at) const noexcept {
        return kept(at) ? gate.value(logit, at) * factor<A>() : A(0);
    }
    template <class A>
    MHR_INLINE A slope(A logit, const gate_position& at) const noexcept {
        return kept(at) ? gate.slope(logit, at) * factor<A>() : A(0);
    }
    MHR_INLINE void validate(argument_checks& checks, index_t entries, index_t heads,
                             index_t modules) const {
        gate.validate(checks, entries, heads, modules);
        checks.numbers("gate.keep", keep, {entries, heads, modules});
        checks.expect(probability >= 0 && probability < 1, "gate.probability",
                      "a number from 0 to below 1", probability);
    }
    /// @}

  private:
    MHR_INLINE bool kept(const gate_position& at) const noexcept {
        return !is_exactly(keep(at.entry, at.head, at.module), 0);
    }
    template <class A>
    MHR_INLINE A factor() const noexcept {
        return static_cast<A>(1 / (1 - probability));
    }
};

/// Takes both types from the arguments.
template <class Gate, class K>
dropout_gate(Gate, tensor_view<K, 3>, double) -> dropout_gate<Gate, K>;

/// s = 1 for the last module of each head, which all tasks share and which has no gradient; s =
/// gate(l) for the others.
template <class Gate>
struct shared_module_gate {
    Gate gate; ///< of the other modules

    /// The functions that every gate has (see gates.hpp).
    /// @{
    template <class A>
    MHR_INLINE A value(A logit, const gate_position& at) const noexcept {
        return is_shared(at) ? A(1) : gate.value(logit, at);
    }
    template <class A>
    MHR_INLINE A slope(A logit, const gate_position& at) const noexcept {
        return is_shared(at) ? A(0) : gate.slope(logit, at);
    }
    MHR_INLINE void validate(argument_checks& checks, index_t entries, index_t heads,
                             index_t modules) const {
        gate.validate(checks, entries, heads, modules);
    }
    /// @}

  private:
    MHR_INLINE static bool is_shared(const gate_position& at) noexcept {
        return at.module == at.modules - 1;
    }
};

/// The type is that of the argument.
template <class Gate>
shared_module_gate(Gate) -> shared_module_gate<Gate>;

} // namespace mhr
