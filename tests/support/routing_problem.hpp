#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <mhr/core/executor.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/reference/routing.hpp>
#include <mhr/routing/gate_wrappers.hpp>
#include <mhr/routing/router.hpp>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/routing_magnitudes.hpp"
#include "support/tensor.hpp"

/// \file
/// One call of the router with all its buffers, for the tests of routing/router.hpp.

namespace mhr::test {

/// Element types of logits, noise, weights (and their gradients).
struct routing_types {
    element_type logits, noise, weights;

    [[nodiscard]] element_type sums() const { return sums_of(logits, weights); }
    [[nodiscard]] std::string name() const {
        return std::string(mhr::name_of(logits)) + ", " + mhr::name_of(noise) + ", " +
               mhr::name_of(weights);
    }
};

/// A tensor of one type, for tests that look at single elements of it.
template <class T>
class typed_tensor : public guarded_tensor<3> {
  public:
    typed_tensor(element_type, const std::array<index_t, 3>& extents, layout order)
        : guarded_tensor<3>(element_type_of_v<T>, extents, order) {}

    [[nodiscard]] tensor_view<T, 3> view() { return ref().template as<T>(); }
    [[nodiscard]] tensor_view<const T, 3> const_view() const {
        return const_ref().template as<T>();
    }
    T& operator()(index_t i, index_t j, index_t k) { return view()(i, j, k); }
};

/// The gates that are tried: the first two are for the normalisers of logits, the others for those
/// of gates.
enum class gate_choice {
    identity,
    noisy,
    sigmoid,
    straight_through,
    gumbel,
    noisy_sigmoid,
    dropout,
    shared,
    shared_straight_through,
    shared_dropout_gumbel,
};

struct rule_choice {
    gate_choice gate;
    reference::normaliser_kind normaliser = reference::normaliser_kind::sum;
    double annealing = 1;
    index_t kept = std::numeric_limits<index_t>::max(); ///< of the softmax
    bool detached_when_off = false;                     ///< of straight-through gates, with the sum

    [[nodiscard]] std::string name() const {
        return "gate " + std::to_string(static_cast<int>(gate)) + ", normaliser " +
               std::to_string(static_cast<int>(normaliser)) + ", annealing " +
               std::to_string(annealing) + ", kept " + std::to_string(kept) +
               (detached_when_off ? ", detached when off" : "");
    }
};

inline constexpr rule_choice plain{gate_choice::sigmoid};
inline constexpr rule_choice gumbel{gate_choice::gumbel};

/// Every gate with every normaliser that makes sense of it.
inline std::vector<rule_choice> all_rules(const std::vector<double>& annealings) {
    using reference::normaliser_kind;
    std::vector<rule_choice> rules;
    for (double annealing : annealings) {
        for (gate_choice gate : {gate_choice::identity, gate_choice::noisy}) {
            rules.push_back({gate, normaliser_kind::l2, annealing});
            for (index_t kept : {index_t{1}, index_t{3}, std::numeric_limits<index_t>::max()})
                rules.push_back({gate, normaliser_kind::softmax, annealing, kept});
        }
        for (gate_choice gate :
             {gate_choice::sigmoid, gate_choice::straight_through, gate_choice::gumbel,
              gate_choice::noisy_sigmoid, gate_choice::dropout, gate_choice::shared,
              gate_choice::shared_straight_through, gate_choice::shared_dropout_gumbel})
            for (auto normaliser : {normaliser_kind::sum, normaliser_kind::average_correction})
                rules.push_back({gate, normaliser, annealing});
        rule_choice detached{gate_choice::straight_through, normaliser_kind::sum, annealing};
        detached.detached_when_off = true;
        rules.push_back(detached);
    }
    return rules;
}

/// A table of 5 tasks.
inline constexpr index_t table_tasks = 5;

/// The arguments of both functions, in guarded memory of one layout, and what the oracle says.
/// `Tensor` is guarded_tensor<3>, or typed_tensor.
template <class Tensor>
struct basic_routing_problem {
    // Numbers that every type can hold.
    static constexpr double temperature = 0.75;
    static constexpr double noise_scale = -0.5;
    static constexpr double drop_probability = 0.25;

    basic_routing_problem(const routing_types& t, const std::vector<index_t>& tasks_of_batch,
                          index_t heads, index_t modules, const rule_choice& choice, layout order,
                          double logit_scale = 2)
        : types(t), task_list(tasks_of_batch), rule(choice),
          logits(t.logits, {table_tasks, heads, modules}, order),
          uniforms(t.noise, {entries(), heads, modules}, order),
          noise(t.noise, {entries(), heads, modules}, order),
          keep({entries(), heads, modules}, order),
          d_weights(t.weights, {entries(), heads, modules}, order),
          weights(t.weights, {entries(), heads, modules}, order),
          d_logits(t.logits, {table_tasks, heads, modules}, order) {
        random_source random(43);
        logits.fill(random, -logit_scale, logit_scale);
        // A head whose gates are all off has gradients of order 1e12, which f16 cannot hold, unless
        // it is detached.
        if (rule.gate == gate_choice::straight_through && !rule.detached_when_off)
            for_each_position(std::array<index_t, 2>{table_tasks, heads}, [&](const auto& at) {
                if (modules > 0) set_element(logits.ref(), {at[0], at[1], at[0] % modules}, 0.5);
            });
        uniforms.fill(random, 0.05, 0.95);
        d_weights.fill(random);
        d_logits.fill(random);
        noise.fill(random, -2, 2);
        for_each_position(keep.view().extents(), [&](const position<3>& at) {
            element(keep.view(), at) = static_cast<std::uint8_t>(random.integer(4) == 0 ? 0 : 3);
        });
    }

    [[nodiscard]] index_t entries() const { return static_cast<index_t>(task_list.size()); }
    [[nodiscard]] tensor_view<const index_t, 1> tasks() const {
        return {task_list.data(), {entries()}};
    }

    void forward(executor_ref executor = serial_executor{}) {
        with_rule([&](const auto& r) {
            router_forward(executor, logits.const_ref(), tasks(), r, weights.ref());
        });
    }
    void backward(executor_ref executor = serial_executor{}) {
        with_rule([&](const auto& r) {
            router_backward(executor, logits.const_ref(), tasks(), r, d_weights.const_ref(),
                            d_logits.ref());
        });
    }

    /// Calls `f` with the routing_rule that was chosen.
    template <class F>
    void with_rule(F&& f) const {
        const sigmoid_gate smooth;
        const straight_through_gate hard;
        const gumbel_sigmoid_gate relaxed{uniforms.const_ref(), temperature};
        switch (rule.gate) {
        case gate_choice::identity:
            return with_logits(identity_gate{}, f);
        case gate_choice::noisy:
            return with_logits(noisy_gate{identity_gate{}, noise.const_ref(), noise_scale}, f);
        case gate_choice::sigmoid:
            return with_gates(smooth, f);
        case gate_choice::straight_through:
            if (rule.detached_when_off)
                return f(routing_rule{hard, detached_when_off_normaliser{sum_normaliser{}},
                                      rule.annealing});
            return with_gates(hard, f);
        case gate_choice::gumbel:
            return with_gates(relaxed, f);
        case gate_choice::noisy_sigmoid:
            return with_gates(noisy_gate{smooth, noise.const_ref(), noise_scale}, f);
        case gate_choice::dropout:
            return with_gates(dropout_gate{smooth, keep.const_view(), drop_probability}, f);
        case gate_choice::shared:
            return with_gates(shared_module_gate{smooth}, f);
        case gate_choice::shared_straight_through:
            return with_gates(shared_module_gate{hard}, f);
        case gate_choice::shared_dropout_gumbel:
            return with_gates(
                shared_module_gate{dropout_gate{relaxed, keep.const_view(), drop_probability}}, f);
        }
    }

    /// Returns the same for the oracle, which reads the stored values, one precision higher.
    template <class S>
    struct oracle_side {
        tensor<S, 3> logits, uniforms, noise, keep, d_weights;
        reference::routing_options<S> options;
    };
    template <class S>
    [[nodiscard]] oracle_side<S> for_oracle() {
        oracle_side<S> o{values_as<S>(logits.ref()),    values_as<S>(uniforms.ref()),
                         values_as<S>(noise.ref()),     tensor<S, 3>(keep.view().extents()),
                         values_as<S>(d_weights.ref()), {}};
        for_each_position(keep.view().extents(), [&](const position<3>& at) {
            element(o.keep.view(), at) = element(keep.view(), at) == 0 ? 0 : 1;
        });
        const auto is = [&](auto... gates) { return ((rule.gate == gates) || ...); };
        if (is(gate_choice::identity, gate_choice::noisy))
            o.options.gate = reference::gate_kind::identity;
        if (is(gate_choice::straight_through, gate_choice::shared_straight_through))
            o.options.gate = reference::gate_kind::straight_through;
        if (is(gate_choice::gumbel, gate_choice::shared_dropout_gumbel))
            o.options.uniforms = o.uniforms.view();
        if (is(gate_choice::noisy, gate_choice::noisy_sigmoid)) o.options.noise = o.noise.view();
        if (is(gate_choice::dropout, gate_choice::shared_dropout_gumbel))
            o.options.keep = o.keep.view();
        o.options.shared_module = is(gate_choice::shared, gate_choice::shared_straight_through,
                                     gate_choice::shared_dropout_gumbel);
        o.options.temperature = S(temperature);
        o.options.noise_scale = S(noise_scale);
        o.options.drop_probability = S(drop_probability);
        o.options.normaliser = rule.normaliser;
        o.options.kept = rule.kept;
        o.options.annealing = S(rule.annealing);
        o.options.detached_when_off = rule.detached_when_off;
        return o;
    }

    [[nodiscard]] comparison check_forward() {
        comparison result;
        with_sums(types.sums(), [&](auto zero) {
            using S = oracle_t<decltype(zero)>;
            const oracle_side<S> o = for_oracle<S>();
            tensor<S, 3> want(weights.extents());
            reference::router_forward(o.logits.const_view(), tasks(), o.options, want.view());
            result = compare(weights.ref(), want.view(),
                             weight_magnitudes(o.logits.const_view(), tasks(), o.options).view(),
                             within(types.sums(), forward_roundings()));
        });
        return result;
    }
    [[nodiscard]] comparison check_backward(const tensor<double, 3>& before) {
        comparison result;
        with_sums(types.sums(), [&](auto zero) {
            using S = oracle_t<decltype(zero)>;
            const oracle_side<S> o = for_oracle<S>();
            tensor<S, 3> want = copy_as<S>(before.view());
            reference::router_backward(o.logits.const_view(), tasks(), o.options,
                                       o.d_weights.const_view(), want.view());
            auto magnitudes = logit_gradient_magnitudes(o.logits.const_view(), tasks(), o.options,
                                                        o.d_weights.const_view());
            for (std::size_t i = 0; i < before.values().size(); ++i)
                magnitudes.values()[i] += static_cast<S>(std::abs(before.values()[i]));
            // A gradient of a narrower type is rounded every time that its task is added to.
            const double widening =
                precision_of(types.logits).epsilon / precision_of(types.sums()).epsilon;
            const double extra = widening > 1 ? (static_cast<double>(entries()) + 1) * widening : 0;
            result = compare(d_logits.ref(), want.view(), magnitudes.view(),
                             within(types.sums(), backward_roundings() + extra));
        });
        return result;
    }

    routing_types types;
    std::vector<index_t> task_list;
    rule_choice rule;
    Tensor logits, uniforms, noise;
    guarded_buffer<std::uint8_t, 3> keep;
    Tensor d_weights, weights, d_logits;

  private:
    // Roundings allowed: one for every module in a sum of gates, and those of gates and quotient.
    [[nodiscard]] double forward_roundings() const {
        return static_cast<double>(logits.extents()[2]) + 10;
    }
    [[nodiscard]] double backward_roundings() const {
        return 2 * static_cast<double>(logits.extents()[2]) + 20 + static_cast<double>(entries());
    }

    template <class Gate, class F>
    void with_logits(const Gate& gate, F&& f) const {
        if (rule.normaliser == reference::normaliser_kind::l2)
            f(routing_rule{gate, l2_normaliser{}, rule.annealing});
        else
            f(routing_rule{gate, softmax_normaliser{rule.kept}, rule.annealing});
    }
    template <class Gate, class F>
    void with_gates(const Gate& gate, F&& f) const {
        if (rule.normaliser == reference::normaliser_kind::sum)
            f(routing_rule{gate, sum_normaliser{}, rule.annealing});
        else
            f(routing_rule{gate, average_correction_normaliser{}, rule.annealing});
    }
};

/// These take types that are data, and one type for all.
/// @{
using routing_problem = basic_routing_problem<guarded_tensor<3>>;
template <class T>
struct typed_routing_problem : basic_routing_problem<typed_tensor<T>> {
    typed_routing_problem(const std::vector<index_t>& tasks_of_batch, index_t heads,
                          index_t modules, const rule_choice& choice, layout order,
                          double logit_scale = 2)
        : basic_routing_problem<typed_tensor<T>>(
              {element_type_of_v<T>, element_type_of_v<T>, element_type_of_v<T>}, tasks_of_batch,
              heads, modules, choice, order, logit_scale) {}
};
using f32_problem = typed_routing_problem<float>;
using f64_problem = typed_routing_problem<double>;
/// @}

} // namespace mhr::test
