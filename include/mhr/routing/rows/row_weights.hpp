#pragma once

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/routing/router.hpp>
#include <mhr/routing/rows/row_rules.hpp>

/// \file
/// From the logits of rows to row weights, and back: what router_forward is for tasks. The logits
/// come from a gate (routing/rows/row_gate.hpp) or from the host, as X-LoRA's scalings do.
///
/// Logits and weights are [rows, heads, modules]; those without heads, [rows, modules], are
/// `.split(1, 1)` of them. X-LoRA's classifier, which gives the weights of all layers at once, has
/// its layers where the heads are: layer l then uses `.slice(1, l)`.

namespace mhr {
inline namespace MHR_ISA {
namespace row_weights_details {

template <class Gate, class Normaliser>
void check_arguments(argument_checks& checks, const const_tensor_ref<3>& logits,
                     const routing_rule<Gate, Normaliser>& rule) {
    checks.input("logits", logits);
    if (!checks.passed()) return;
    rule.gate.validate(checks, logits.extent(0), logits.extent(1), logits.extent(2));
    rule.normaliser.validate(checks, logits.extent(1), logits.extent(2));
    checks.expect(rule.annealing >= 0 && rule.annealing <= 1, "rule.annealing",
                  "a number from 0 to 1", rule.annealing);
}

/// What a row costs, in multiply-adds of a kernel: a gate may be an exp, and is asked for several
/// times.
inline index_t cost_of_row(const const_tensor_ref<3>& logits) noexcept {
    return 1024 * logits.extent(1) * logits.extent(2);
}

} // namespace row_weights_details

/// weights[row, h, .] = normaliser(gate(logits[row, h, .])), annealed to uniform as the rule says.
/// routing/rows/row_rules.hpp lists the rules of Arrow, MixLoRA, Switch, Phatgoose and X-LoRA. The
/// sums are f64 if a tensor is, else f32.
///
/// logits [rows, heads, modules]; weights [rows, heads, modules], overwritten. What a gate holds
/// for each entry, such as noise, it holds here for each row.
///
/// It has one phase. These are refused: tensors of other shapes or without memory; weights of which
/// elements overlap; what the gate and the normaliser refuse; annealing outside [0, 1]. The cost is
/// rows heads modules gates, as often as the normaliser asks for each.
template <class Gate, class Normaliser>
void row_weights_forward(executor_ref executor, const const_tensor_ref<3>& logits,
                         const routing_rule<Gate, Normaliser>& rule, const tensor_ref<3>& weights) {
    argument_checks checks("row_weights_forward");
    row_weights_details::check_arguments(checks, logits, rule);
    checks.output("weights", weights, logits.extents());
    checks.raise();

    const routing_shape shape{logits.extent(1), logits.extent(2)};
    with_sums(sums_of(logits.type(), weights.type()), [&](auto zero) {
        using A = decltype(zero);
        const router_details::annealing_of<A> annealing(rule.annealing, shape.modules);
        executor.run(
            logits.extent(0), row_weights_details::cost_of_row(logits), [&](index_t row) noexcept {
                using router_details::head_of;
                for (index_t h = 0; h < shape.heads; ++h)
                    router_details::forward_head(rule, gate_position{row, h, 0, shape.modules},
                                                 shape, annealing, head_of<A>(logits, row, h),
                                                 head_of<A>(weights, row, h));
            });
    });
}

/// The backward of row_weights_forward, with its logits and rule (and so its noise):
/// d_logits[row, h, m] += gate'(l) d_s[m], where d_s is the normaliser's backward of
/// annealing d_weights[row, h, .].
///
/// d_weights [rows, heads, modules]; d_logits [rows, heads, modules] accumulates. A logit at which
/// the gate's slope is 0, and one that a top-k leaves out, keeps its gradient to the bit.
///
/// It has one phase. These are refused: what the forward refuses; d_weights or d_logits of another
/// shape than the logits; d_logits of which elements overlap. The cost is that of the forward.
template <class Gate, class Normaliser>
void row_weights_backward(executor_ref executor, const const_tensor_ref<3>& logits,
                          const routing_rule<Gate, Normaliser>& rule,
                          const const_tensor_ref<3>& d_weights, const tensor_ref<3>& d_logits) {
    argument_checks checks("row_weights_backward");
    row_weights_details::check_arguments(checks, logits, rule);
    checks.input("d_weights", d_weights, logits.extents());
    checks.output("d_logits", d_logits, logits.extents());
    checks.raise();

    const routing_shape shape{logits.extent(1), logits.extent(2)};
    const element_type sums = sums_of(sums_of(logits.type(), d_weights.type()), d_logits.type());
    with_sums(sums, [&](auto zero) {
        using A = decltype(zero);
        executor.run(
            logits.extent(0), row_weights_details::cost_of_row(logits), [&](index_t row) noexcept {
                using router_details::head_of;
                for (index_t h = 0; h < shape.heads; ++h)
                    router_details::backward_head<A>(rule, gate_position{row, h, 0, shape.modules},
                                                     shape, head_of<A>(logits, row, h),
                                                     head_of<A>(d_weights, row, h),
                                                     head_of<A>(d_logits, row, h));
            });
    });
}

} // namespace MHR_ISA
} // namespace mhr
