#pragma once

#include "adam.hpp"
#include "adapters.hpp"
#include "alignment.hpp"
#include "host_model.hpp"
#include "positions.hpp"
#include "results.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace cross_task {

/// How long and how fast adapters are trained. Modules and logits learn at two speeds.
struct training_settings {
    int steps = 0;
    double module_rate = 0;
    double logit_rate = 0;
};

/// One AdamW for each group of parameters that the adapters train.
template <class Adapters>
class optimiser {
  public:
    optimiser(Adapters& adapters, const training_settings& settings)
        : adapters_(adapters), settings_(settings) {
        if (adapters.trains_modules()) modules_.emplace(adapters.modules().size());
        if constexpr (has_logits)
            if (adapters.trains_logits()) logits_.emplace(adapters.logits().size());
    }

    /// One step on `input`, whose rows belong to tasks as `rows` says. Returns the loss in nats,
    /// summed over the rows.
    double step(const host_model& host, const batch& input, const task_rows& rows,
                activations& state, const routing_mode& mode = {}) {
        const double loss = differentiate(host, input, rows, state, mode);
        update();
        return loss;
    }

    /// The first half of a step: leaves in the adapters the gradient of `loss_weight` times the
    /// mean loss.
    double differentiate(const host_model& host, const batch& input, const task_rows& rows,
                         activations& state, const routing_mode& mode, double loss_weight = 1) {
        zero(modules_, adapters_.modules());
        if constexpr (has_logits) zero(logits_, adapters_.logits());

        adapters_.begin(rows, mode);
        const double loss = host.forward(
            input, state, [&](int l, const auto& x, auto& y) { adapters_.forward(l, x, y); },
            loss_weight);
        host.backward(input, state, [&](int l, const auto& x, const auto& d_y, auto& d_x) {
            adapters_.backward(l, x, d_y, d_x);
        });
        adapters_.end();
        return loss;
    }

    /// The second half: follows the gradient.
    void update() {
        const double factor = linear_schedule(steps_done_++, settings_.steps);
        update(modules_, adapters_.modules(), settings_.module_rate * factor);
        if constexpr (has_logits)
            update(logits_, adapters_.logits(), settings_.logit_rate * factor);
    }

  private:
    static constexpr bool has_logits = std::is_same_v<Adapters, routed_adapters>;

    static void zero(const std::optional<adam>& trained, parameter_group group) {
        if (trained) group.gradients.setZero();
    }
    static void update(std::optional<adam>& trained, parameter_group group, double rate) {
        if (trained) trained->step(group.values.data(), group.gradients.data(), rate);
    }

    Adapters& adapters_;
    training_settings settings_;
    std::optional<adam> modules_;
    std::optional<adam> logits_;
    int steps_done_ = 0;
};

/// A training on all tasks at once: each step takes `rows_of_task` positions of each task, and the
/// routing is noisy (Gumbel-sigmoid).
struct multi_task_settings {
    training_settings speed;
    Eigen::Index rows_of_task = 0;
    int annealing_steps = 0; ///< the last steps, over which the routing becomes uniform
    int alignment_measures = 0;
    Eigen::Index alignment_rows = 0; ///< positions of each task in a measure
};

/// The curves of a training.
struct multi_task_curves {
    learning_curve learning;
    alignment_curve alignment;
};

/// Trains adapters on all tasks at once. `progress` is called after each step.
template <class Adapters>
multi_task_curves train_multi_task(const host_model& host, Adapters& adapters,
                                   const std::vector<position_list>& tasks,
                                   const multi_task_settings& how, std::uint64_t seed,
                                   const std::function<void()>& progress) {
    random_engine random(seed);
    random_engine random_of_meter(seed + 1); // measuring must not change what is measured
    const training_settings& settings = how.speed;
    const auto count = static_cast<Eigen::Index>(tasks.size());
    std::vector<std::int64_t> ids(tasks.size());
    for (std::size_t t = 0; t < ids.size(); ++t)
        ids[t] = static_cast<std::int64_t>(t);
    batch input;
    activations state;
    optimiser<Adapters> optimise(adapters, settings);
    const auto sample = [&](random_engine& from, Eigen::Index rows_of_task) {
        input.resize(count * rows_of_task);
        for (Eigen::Index t = 0; t < count; ++t)
            tasks[static_cast<std::size_t>(t)].sample(from, input, t * rows_of_task, rows_of_task);
        return task_rows{{ids.data(), {count}}, rows_of_task};
    };

    learning_curve curve;
    alignment_meter meter(count);
    const int interval = std::max(1, settings.steps / 50);
    const int meter_interval = std::max(1, settings.steps / std::max(1, how.alignment_measures));
    double nats = 0;
    int steps_in_sum = 0;
    for (int step = 1; step <= settings.steps; ++step) {
        if (how.alignment_measures > 0 && step % meter_interval == 0) {
            const task_rows rows = sample(random_of_meter, how.alignment_rows);
            meter.measure(step, host, adapters, input, rows);
        }
        const task_rows rows = sample(random, how.rows_of_task);
        const double annealing = mhr::annealing_at(step, settings.steps, how.annealing_steps);
        nats += optimise.step(host, input, rows, state, {&random, annealing});
        ++steps_in_sum;
        if (step % interval == 0 || step == settings.steps) {
            curve.step.push_back(step);
            curve.bits_per_character.push_back(
                nats / (std::log(2.0) * steps_in_sum * static_cast<double>(input.rows())));
            nats = 0;
            steps_in_sum = 0;
        }
        progress();
    }
    return {std::move(curve), meter.curve()};
}

/// Adapts to the positions of one new task, without noise.
template <class Adapters>
void train_few_shot(const host_model& host, Adapters& adapters, const position_list& positions,
                    Eigen::Index rows, const training_settings& settings, std::uint64_t seed) {
    random_engine random(seed);
    const std::int64_t task = 0;
    batch input(rows);
    activations state;
    optimiser<Adapters> optimise(adapters, settings);
    for (int step = 0; step < settings.steps; ++step) {
        positions.sample(random, input);
        optimise.step(host, input, {{&task, {1}}, rows}, state);
    }
}

/// Bits per character of `positions` as a task of the adapters' table, without noise.
template <class Adapters>
double evaluate(const host_model& host, Adapters& adapters, std::int64_t task,
                const position_list& positions) {
    activations state;
    Eigen::Index prepared = 0;
    return bits_per_character(host, positions, state, [&](int l, const auto& x, auto& y) {
        if (l == 0 && x.rows() != prepared) {
            prepared = x.rows();
            adapters.begin({{&task, {1}}, prepared});
        }
        adapters.forward(l, x, y);
    });
}

} // namespace cross_task
