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
#include <mhr/core/scalar.hpp>
#include <mhr/reference/routing.hpp>
#include <mhr/routing/gate_wrappers.hpp>
#include <mhr/routing/router.hpp>

#include "support/comparison.hpp"
#include "support/guarded_buffer.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/routing_magnitudes.hpp"
#include "support/tensor.hpp"

/// \file
/// One call of the router with all its buffers, for the tests of routing/router.hpp.

namespace mhr::test {

/// Storage types of logits, noise, weights (and their gradients).
template <class Logits, class Noise, class Weights>
struct routing_storage {
    using L = Logits;
    using U = Noise;
    using W = Weights;
};

/// What is gated how: the first two are for the normalisers of logits, the others for those of
/// gates.
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
template <class Types>
struct routing_problem {
    using L = typename Types::L;
    using U = typename Types::U;
    using W = typename Types::W;
    using S = oracle_t<L, W>;

    // Numbers that every type can hold.
    static constexpr double temperature = 0.75;
    static constexpr double noise_scale = -0.5;
    static constexpr double drop_probability = 0.25;

    routing_problem(const std::vector<index_t>& tasks_of_batch, index_t heads, index_t modules,
                    const rule_choice& choice, layout order, double logit_scale = 2)
        : task_list(tasks_of_batch), rule(choice), logits({table_tasks, heads, modules}, order),
          uniforms({entries(), heads, modules}, order), noise({entries(), heads, modules}, order),
          keep({entries(), heads, modules}, order), d_weights({entries(), heads, modules}, order),
          weights({entries(), heads, modules}, order),
          d_logits({table_tasks, heads, modules}, order) {
        random_source random(43);
        random.fill(logits.view(), logit_scale);
        // A head whose gates are all off has gradients of order 1e12, which f16 cannot hold, unless
        // it is detached.
        if (rule.gate == gate_choice::straight_through && !rule.detached_when_off)
            for_each_position(std::array<index_t, 2>{table_tasks, heads}, [&](const auto& at) {
                if (modules > 0) logits(at[0], at[1], at[0] % modules) = L(0.5F);
            });
        random.fill(uniforms.view(), 0.05, 0.95);
        random.fill(d_weights.view());
        random.fill(d_logits.view());
        random.fill(noise.view(), 2);
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
            router_forward(executor, logits.const_view(), tasks(), r, weights.view());
        });
    }
    void backward(executor_ref executor = serial_executor{}) {
        with_rule([&](const auto& r) {
            router_backward(executor, logits.const_view(), tasks(), r, d_weights.const_view(),
                            d_logits.view());
        });
    }

    /// Calls `f` with the routing_rule that was chosen.
    template <class F>
    void with_rule(F&& f) const {
        const sigmoid_gate smooth;
        const straight_through_gate hard;
        const gumbel_sigmoid_gate<const U> relaxed{uniforms.const_view(), temperature};
        switch (rule.gate) {
        case gate_choice::identity:
            return with_logits(identity_gate{}, f);
        case gate_choice::noisy:
            return with_logits(noisy_gate{identity_gate{}, noise.const_view(), noise_scale}, f);
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
            return with_gates(noisy_gate{smooth, noise.const_view(), noise_scale}, f);
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

    /// The same for the oracle, which reads the stored values, one precision higher.
    struct oracle_side {
        tensor<S, 3> logits, uniforms, noise, keep, d_weights;
        reference::routing_options<S> options;
    };
    [[nodiscard]] oracle_side for_oracle() {
        oracle_side o{copy_as<S>(logits.view()),    copy_as<S>(uniforms.view()),
                      copy_as<S>(noise.view()),     tensor<S, 3>(keep.view().extents()),
                      copy_as<S>(d_weights.view()), {}};
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
        const oracle_side o = for_oracle();
        tensor<S, 3> want(weights.view().extents());
        reference::router_forward(o.logits.const_view(), tasks(), o.options, want.view());
        return compare(weights.view(), want.view(),
                       weight_magnitudes(o.logits.const_view(), tasks(), o.options).view(),
                       within<accumulator_t<L, W>>(forward_roundings()));
    }
    [[nodiscard]] comparison check_backward(const tensor<S, 3>& before) {
        const oracle_side o = for_oracle();
        tensor<S, 3> want = before;
        reference::router_backward(o.logits.const_view(), tasks(), o.options,
                                   o.d_weights.const_view(), want.view());
        auto magnitudes = logit_gradient_magnitudes(o.logits.const_view(), tasks(), o.options,
                                                    o.d_weights.const_view());
        for (std::size_t i = 0; i < before.values().size(); ++i)
            magnitudes.values()[i] += std::abs(before.values()[i]);
        // A gradient of a narrower type is rounded every time that its task is added to.
        using A = accumulator_t<L, W>;
        const double widening = epsilon_of<L>() / epsilon_of<A>();
        const double extra = widening > 1 ? (static_cast<double>(entries()) + 1) * widening : 0;
        return compare(d_logits.view(), want.view(), magnitudes.view(),
                       within<A>(backward_roundings() + extra));
    }

    std::vector<index_t> task_list;
    rule_choice rule;
    guarded_buffer<L, 3> logits;
    guarded_buffer<U, 3> uniforms, noise;
    guarded_buffer<std::uint8_t, 3> keep;
    guarded_buffer<W, 3> d_weights;
    guarded_buffer<W, 3> weights;
    guarded_buffer<L, 3> d_logits;

  private:
    // Roundings allowed: one for every module in a sum of gates, and those of gates and quotient.
    [[nodiscard]] double forward_roundings() const {
        return static_cast<double>(logits.const_view().extent(2)) + 10;
    }
    [[nodiscard]] double backward_roundings() const {
        return 2 * static_cast<double>(logits.const_view().extent(2)) + 20 +
               static_cast<double>(entries());
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

} // namespace mhr::test
