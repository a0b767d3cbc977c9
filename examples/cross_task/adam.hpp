#pragma once

#include <Eigen/Core>

#include <algorithm>
#include <cmath>

namespace cross_task {

struct adam_options {
    float beta1 = 0.9F;
    float beta2 = 0.999F;
    float epsilon = 1e-8F;
    float weight_decay = 0.0F;
};

/// AdamW (decoupled weight decay) on a flat span of `size` floats.
class adam {
  public:
    explicit adam(Eigen::Index size, const adam_options& options = {})
        : options_(options), mean_(Eigen::ArrayXf::Zero(size)),
          square_(Eigen::ArrayXf::Zero(size)) {}

    Eigen::Index size() const { return mean_.size(); }

    /// One step. `parameters` [size] is updated in place, `gradients` [size] is read.
    void step(float* parameters, const float* gradients, double learning_rate) {
        Eigen::Map<Eigen::ArrayXf> p(parameters, size());
        const Eigen::Map<const Eigen::ArrayXf> g(gradients, size());
        ++steps_;
        mean_ += (1.0F - options_.beta1) * (g - mean_);
        square_ += (1.0F - options_.beta2) * (g.square() - square_);

        // The bias corrections go into the step size and epsilon: no copy of the moments is made.
        const double correction1 = 1.0 - std::pow(static_cast<double>(options_.beta1), steps_);
        const double correction2 = 1.0 - std::pow(static_cast<double>(options_.beta2), steps_);
        const double root = std::sqrt(correction2);
        const float rate = static_cast<float>(learning_rate * root / correction1);
        const float epsilon = static_cast<float>(options_.epsilon * root);
        const float keep = static_cast<float>(1.0 - learning_rate * options_.weight_decay);
        p = keep * p - rate * mean_ / (square_.sqrt() + epsilon);
    }

  private:
    adam_options options_;
    Eigen::ArrayXf mean_;
    Eigen::ArrayXf square_;
    int steps_ = 0;
};

/// Factor of the learning rate at `step` (0 .. steps - 1): rises linearly to 1 over the first
/// `warm_up` (a fraction of the steps), then falls linearly towards 0.
inline double linear_schedule(int step, int steps, double warm_up = 0.06) {
    const double rising = std::max(1.0, std::ceil(warm_up * steps));
    if (step < rising) return (step + 1) / rising;
    return (steps - step) / std::max(1.0, steps - rising + 1);
}

} // namespace cross_task
