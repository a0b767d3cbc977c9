#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <mhr/batch/task_ids.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/routing/gates.hpp>
#include <mhr/routing/normalisers.hpp>

/// \file
/// The router: from a table of logits to the weights with which modules are mixed, and back.
/// One router may serve a layer, a block or the whole model: run the forward once, let every layer
/// add to the same d_weights, run the backward once.
///
/// It sums in f64 if one of the tensors of the call is f64, else in f32. What a gate holds, such as
/// noise, is converted to that.

namespace mhr {

/// How logits become weights: a gate for each module, a normaliser for each head, then annealing
/// to uniform, w = annealing w' + (1 - annealing) / modules, with 1 for none (routing/annealing.hpp
/// has the schedule). `routing_rule{sigmoid_gate{}}` is that of Poly and MHR.
template <class Gate, class Normaliser = sum_normaliser>
struct routing_rule {
    Gate gate;               ///< from a logit to how far a module is switched on
    Normaliser normaliser{}; ///< from the gates of a head to its weights
    double annealing = 1;    ///< from 1 (none) to 0 (uniform)
};

/// Takes the types from the arguments.
/// @{
template <class Gate>
routing_rule(Gate) -> routing_rule<Gate>;
template <class Gate, class Normaliser>
routing_rule(Gate, Normaliser) -> routing_rule<Gate, Normaliser>;
template <class Gate, class Normaliser>
routing_rule(Gate, Normaliser, double) -> routing_rule<Gate, Normaliser>;
/// @}

inline namespace MHR_ISA {
namespace router_details {

/// Checks ids into a table of so many tasks, by the rule of batch/task_ids.hpp.
template <class Id>
void check_tasks(argument_checks& checks, const tensor_view<Id, 1>& tasks, index_t table_tasks) {
    using V = std::remove_const_t<Id>;
    const auto largest = (std::min)(std::int64_t{table_tasks} - 1, task_details::largest_task<V>());
    checks.numbers("tasks", tasks, {any_extent});
    for (index_t entry = 0; checks.passed() && entry < tasks.extent(0); ++entry)
        checks.expect(task_details::is_task<V>(tasks(entry)) &&
                          static_cast<std::int64_t>(tasks(entry)) <= largest,
                      "tasks", joined("ids from 0 to ", largest),
                      [&] { return task_details::task_id_text(tasks, entry); });
}

template <class Id, class Gate, class Normaliser>
void check_router(argument_checks& checks, const const_tensor_ref<3>& logits,
                  const tensor_view<Id, 1>& tasks, const routing_rule<Gate, Normaliser>& rule) {
    checks.input("logits", logits);
    check_tasks(checks, tasks, logits.extent(0));
    rule.gate.validate(checks, tasks.extent(0), logits.extent(1), logits.extent(2));
    rule.normaliser.validate(checks, logits.extent(1), logits.extent(2));
    checks.expect(rule.annealing >= 0 && rule.annealing <= 1, "rule.annealing",
                  "a number from 0 to 1", rule.annealing);
}

/// Shows the modules of one head as numbers of the type of sums.
/// @{
template <class A>
element_row<A> head_of(const const_tensor_ref<3>& tensor, index_t row, index_t head) noexcept {
    return {tensor.type(), tensor.address_of(row, head, 0), tensor.stride(2), tensor.extent(2)};
}
template <class A>
element_row_output<A> head_of(const tensor_ref<3>& tensor, index_t row, index_t head) noexcept {
    return {tensor.type(), tensor.address_of(row, head, 0), tensor.stride(2)};
}
/// @}

/// True if the modules of every head are dense numbers of the type of sums, as they nearly always
/// are.
template <class A, class Void>
bool has_dense_heads(const basic_tensor_ref<Void, 3>& tensor) noexcept {
    return tensor.type() == element_type_of_v<A> && tensor.stride(2) == 1;
}

/// The modules of one head where they are such numbers.
/// @{
template <class A>
const A* dense_head_of(const const_tensor_ref<3>& tensor, index_t row, index_t head) noexcept {
    return static_cast<const A*>(tensor.address_of(row, head, 0));
}
template <class A>
dense_row_output<A> dense_head_of(const tensor_ref<3>& tensor, index_t row, index_t head) noexcept {
    return dense_row_output<A>(static_cast<A*>(tensor.address_of(row, head, 0)));
}
/// @}

/// Annealing, in the type of sums.
template <class A>
struct annealing_of {
    bool is_annealed;
    A kept;
    A uniform;

    annealing_of(double annealing, index_t modules) noexcept
        : is_annealed(annealing < 1), kept(static_cast<A>(annealing)),
          uniform(static_cast<A>((1 - annealing) / static_cast<double>(modules))) {}
};

/// Computes the weights of one head. The gates are computed as often as the normaliser asks rather
/// than kept: there is no scratch to ask for, and rounding them to the type of the weights would
/// lose precision.
template <class A, class Rule, class Logits, class Weights>
void forward_head(const Rule& rule, const gate_position& head, const routing_shape& shape,
                  annealing_of<A> annealing, const Logits& logits,
                  const Weights& weights) noexcept {
    rule.normaliser.template forward<A>(
        shape,
        [&](index_t m) {
            return rule.gate.value(logits[m],
                                   gate_position{head.entry, head.head, m, shape.modules});
        },
        [&](index_t m, A weight) {
            weights.set(m, annealing.is_annealed ? annealing.kept * weight + annealing.uniform
                                                 : weight);
        });
}

/// Adds the gradients of the logits of one head.
template <class A, class Rule, class Logits, class Weights, class Gradients>
void backward_head(const Rule& rule, const gate_position& head, const routing_shape& shape,
                   const Logits& logits, const Weights& d_weights,
                   const Gradients& d_logits) noexcept {
    const auto kept = static_cast<A>(rule.annealing);
    const auto at = [&](index_t m) {
        return gate_position{head.entry, head.head, m, shape.modules};
    };
    rule.normaliser.template backward<A>(
        shape, [&](index_t m) { return rule.gate.value(logits[m], at(m)); },
        [&](index_t m) { return kept * d_weights[m]; },
        [&](index_t m, A d_gate) {
            const A slope = rule.gate.slope(logits[m], at(m));
            // Whatever d_gate is, a gate that is flat keeps the gradient's bits.
            if (!is_exactly(slope, 0)) d_logits.add(m, slope * d_gate);
        });
}

} // namespace router_details

/// weights[n, h, .] = normaliser(gate(logits[tasks[n], h, .])), annealed to uniform as the rule
/// says. With the rule of Polytropon (Ponti et al. 2023, arXiv 2202.13914), which MHR applies to
/// each head (Caccia et al. 2023, arXiv 2211.03831, section 3), a sigmoid or Gumbel-sigmoid gate:
/// w[n, h, m] = s[n, h, m] / (sum over modules of s[n, h, .] + 1e-12).
///
/// logits [tasks of the table, heads, modules]; tasks [n], ids of any integer type that may repeat;
/// weights [n, heads, modules], overwritten.
///
/// It has one phase. These are refused: tensors of other shapes or without memory; weights of which
/// elements overlap; an id outside the table, no_task, or the largest value of an unsigned type
/// (batch/task_ids.hpp); what the gate and the normaliser refuse; annealing outside [0, 1].
/// With the sum, the cost is 2 n h m gates (an exp each).
template <class Id, class Gate, class Normaliser>
void router_forward(executor_ref executor, const const_tensor_ref<3>& logits,
                    tensor_view<Id, 1> tasks, const routing_rule<Gate, Normaliser>& rule,
                    const tensor_ref<3>& weights) {
    argument_checks checks("router_forward");
    router_details::check_router(checks, logits, tasks, rule);
    checks.output("weights", weights, {tasks.extent(0), logits.extent(1), logits.extent(2)});
    checks.raise();

    const routing_shape shape{logits.extent(1), logits.extent(2)};
    with_sums(sums_of(logits.type(), weights.type()), [&](auto zero) {
        using A = decltype(zero);
        const router_details::annealing_of<A> annealing(rule.annealing, shape.modules);
        const bool dense = router_details::has_dense_heads<A>(logits) &&
                           router_details::has_dense_heads<A>(weights);
        executor.run(tasks.extent(0), [&](index_t n) noexcept {
            using namespace router_details;
            const auto task = static_cast<index_t>(tasks(n));
            for (index_t h = 0; h < shape.heads; ++h) {
                const gate_position head{n, h, 0, shape.modules};
                if (dense)
                    forward_head(rule, head, shape, annealing, dense_head_of<A>(logits, task, h),
                                 dense_head_of<A>(weights, n, h));
                else
                    forward_head(rule, head, shape, annealing, head_of<A>(logits, task, h),
                                 head_of<A>(weights, n, h));
            }
        });
    });
}

/// The backward of router_forward, with its logits, tasks and rule (and so its noise):
/// d_logits[tasks[n], h, m] += gate'(l) d_s[m], where d_s is the normaliser's backward of
/// annealing d_weights[n, h, .]; for the rule of Polytropon
/// d_s[m] = (d_weights[n, h, m] - sum over modules of w d_weights) / (sum of s + 1e-12).
///
/// d_weights [n, heads, modules]; d_logits [tasks of the table, heads, modules] accumulates: a task
/// that repeats gets every contribution, a task that is absent is not touched. A logit at which the
/// gate's slope is 0 keeps its gradient as it is, even if that of its weight is not finite, and so
/// do the other logits of its head if the gate is 0, too.
///
/// It has one phase. These are refused: what the forward refuses; d_weights of another shape than
/// the weights; d_logits of another shape than the logits, or of which elements overlap. With the
/// sum, the cost is 2 n h m gates.
template <class Id, class Gate, class Normaliser>
void router_backward(executor_ref executor, const const_tensor_ref<3>& logits,
                     tensor_view<Id, 1> tasks, const routing_rule<Gate, Normaliser>& rule,
                     const const_tensor_ref<3>& d_weights, const tensor_ref<3>& d_logits) {
    argument_checks checks("router_backward");
    router_details::check_router(checks, logits, tasks, rule);
    checks.input("d_weights", d_weights, {tasks.extent(0), logits.extent(1), logits.extent(2)});
    checks.output("d_logits", d_logits, logits.extents());
    checks.raise();

    const routing_shape shape{logits.extent(1), logits.extent(2)};
    const element_type sums = sums_of(sums_of(logits.type(), d_weights.type()), d_logits.type());
    with_sums(sums, [&](auto zero) {
        using A = decltype(zero);
        const bool dense = router_details::has_dense_heads<A>(logits) &&
                           router_details::has_dense_heads<A>(d_weights) &&
                           router_details::has_dense_heads<A>(d_logits);
        // Parts are heads: a task that repeats is then added up by one thread, in the order of
        // `tasks`.
        executor.run(shape.heads, [&](index_t h) noexcept {
            using namespace router_details;
            for (index_t n = 0; n < tasks.extent(0); ++n) {
                const auto task = static_cast<index_t>(tasks(n));
                const gate_position head{n, h, 0, shape.modules};
                if (dense)
                    backward_head<A>(rule, head, shape, dense_head_of<A>(logits, task, h),
                                     dense_head_of<A>(d_weights, n, h),
                                     dense_head_of<A>(d_logits, task, h));
                else
                    backward_head<A>(rule, head, shape, head_of<A>(logits, task, h),
                                     head_of<A>(d_weights, n, h), head_of<A>(d_logits, task, h));
            }
        });
    });
}

} // namespace MHR_ISA
} // namespace mhr
