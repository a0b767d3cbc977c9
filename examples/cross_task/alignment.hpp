#pragma once

#include "adapters.hpp"
#include "host_model.hpp"
#include "positions.hpp"
#include "results.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace cross_task {

/// Gradient alignment over a training: the mean cosine between the gradients of each pair of tasks
/// to the parameters that they share.
class alignment_meter {
  public:
    /// For batches of so many tasks.
    explicit alignment_meter(mhr::index_t tasks) : tasks_(tasks) {
        curve_.of_layers.resize(layer_count);
    }

    /// Measures at a step, without noise in the routing, on `input`, whose rows belong to tasks as
    /// `rows` says. The adapters' parameters and gradients stay as they are.
    template <class Adapters>
    void measure(int step, const host_model& host, Adapters& adapters, const batch& input,
                 const task_rows& rows) {
        const auto count = static_cast<std::size_t>(tasks_ * tasks_);
        std::vector<double> overall(count, 0.0);
        curve_.step.push_back(step);
        adapters.begin_alignment(rows);
        host.forward(input, state_,
                     [&](int l, const auto& x, auto& y) { adapters.forward(l, x, y); });
        host.backward(input, state_, [&](int l, const auto& x, const auto& d_y, auto& d_x) {
            std::vector<double> of_layer(count, 0.0);
            adapters.add_gram(l, x, d_y, d_x, view(of_layer));
            curve_.of_layers[static_cast<std::size_t>(l)].push_back(mean_cosine(of_layer));
            // Inner products of whole gradients are the sums of those of their parts.
            std::transform(of_layer.begin(), of_layer.end(), overall.begin(), overall.begin(),
                           [](double a, double b) { return a + b; });
        });
        curve_.overall.push_back(mean_cosine(overall));
    }

    const alignment_curve& curve() const { return curve_; }

  private:
    mhr::tensor_view<double, 2> view(std::vector<double>& gram) const {
        return {gram.data(), {tasks_, tasks_}};
    }
    double mean_cosine(std::vector<double>& gram) const {
        return mhr::gradient_alignment(view(gram)).mean;
    }

    mhr::index_t tasks_;
    activations state_;
    alignment_curve curve_;
};

} // namespace cross_task
