#pragma once

#include "positions.hpp"
#include "random.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <vector>

namespace cross_task {

constexpr int layer_count = 3;
constexpr Eigen::Index embedding_width = 32;

/// Widths of the linear layers. The last has more outputs than there are symbols, which keeps it
/// divisible by any number of heads up to 64; only the first `symbol_count` are logits.
constexpr std::array<Eigen::Index, layer_count> layer_inputs{context_length * embedding_width, 256,
                                                             256};
constexpr std::array<Eigen::Index, layer_count> layer_outputs{256, 256, 64};

template <class Scalar>
using row_matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class Scalar>
using matrix_view = Eigen::Map<row_matrix<Scalar>>;
template <class Scalar>
using const_matrix_view = Eigen::Map<const row_matrix<Scalar>>;

/// All that a forward and a backward pass write, kept from step to step: nothing is allocated
/// unless a batch has more rows than any before.
template <class Scalar>
class basic_activations {
  public:
    explicit basic_activations(Eigen::Index rows = 0) { reserve(rows); }

    void reserve(Eigen::Index rows) {
        if (rows <= rows_) return;
        rows_ = rows;
        for (std::size_t l = 0; l < layer_count; ++l) {
            x_[l].resize(rows, layer_inputs[l]);
            d_x_[l].resize(rows, layer_inputs[l]);
            y_[l].resize(rows, layer_outputs[l]);
            d_y_[l].resize(rows, layer_outputs[l]);
        }
    }

    /// The first `rows` rows of layer `l`'s input and output and of the loss's gradients of them.
    matrix_view<Scalar> x(int l, Eigen::Index rows) { return view(x_, l, rows); }
    matrix_view<Scalar> y(int l, Eigen::Index rows) { return view(y_, l, rows); }
    matrix_view<Scalar> d_x(int l, Eigen::Index rows) { return view(d_x_, l, rows); }
    matrix_view<Scalar> d_y(int l, Eigen::Index rows) { return view(d_y_, l, rows); }

  private:
    using layers = std::array<row_matrix<Scalar>, layer_count>;

    static matrix_view<Scalar> view(layers& of, int l, Eigen::Index rows) {
        row_matrix<Scalar>& matrix = of[static_cast<std::size_t>(l)];
        return {matrix.data(), rows, matrix.cols()};
    }

    layers x_, y_, d_x_, d_y_;
    Eigen::Index rows_ = 0;
};

/// Adapts nothing: the host alone.
struct no_adapter {
    template <class... Arguments>
    void operator()(Arguments&&...) const {}
};

/// A small language model: five embeddings side by side, three linear layers, a residual around the
/// second. W is [out, in], a linear layer is y = x W^T + b.
///
///     x0 [rows, 160]   y0 [rows, 256]   h1 = relu(y0)
///     x1 = h1          y1 [rows, 256]   h2 = h1 + relu(y1)
///     x2 = h2          y2 [rows, 64]    softmax over its first 27
template <class Scalar>
class basic_host_model {
  public:
    using vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

    /// Embedding N(0, 1); weights and biases U(-1/sqrt(in), 1/sqrt(in)).
    explicit basic_host_model(random_engine& random) : parameters_(parameter_count()) {
        Eigen::Index next = symbol_count * embedding_width;
        for (Eigen::Index i = 0; i < next; ++i)
            parameters_[i] = static_cast<Scalar>(random.normal());
        for (std::size_t l = 0; l < layer_count; ++l) {
            const double bound = 1.0 / std::sqrt(static_cast<double>(layer_inputs[l]));
            const Eigen::Index end = next + (layer_inputs[l] + 1) * layer_outputs[l];
            for (; next < end; ++next)
                parameters_[next] = static_cast<Scalar>(random.uniform(-bound, bound));
        }
    }

    static constexpr Eigen::Index parameter_count() { return weight_offset(layer_count); }

    /// All parameters, flat: the embedding, then weight and bias of each layer.
    vector& parameters() { return parameters_; }
    const vector& parameters() const { return parameters_; }

    /// [27, 32], [out, in] and [1, out].
    const_matrix_view<Scalar> embedding() const {
        return {parameters_.data(), symbol_count, embedding_width};
    }
    const_matrix_view<Scalar> weight(int l) const {
        return {parameters_.data() + weight_offset(l), outputs(l), inputs(l)};
    }
    const_matrix_view<Scalar> bias(int l) const {
        return {parameters_.data() + bias_offset(l), 1, outputs(l)};
    }

    /// Runs the model on `input`. After each linear layer, before its nonlinearity,
    /// `adapt(l, x_l, y_l)` may add to y_l: x_l is a `const_matrix_view` [rows, in] and y_l a
    /// `matrix_view` [rows, out]. Returns the loss, in nats, summed over the rows; leaves in
    /// `state` the gradient of `loss_weight` times its mean.
    template <class Adapt>
    double forward(const batch& input, basic_activations<Scalar>& state, Adapt&& adapt,
                   double loss_weight = 1.0) const;

    /// Goes back through the model after `forward` on the same `input` and `state`. For l = 2, 1, 0
    /// calls `adapt_backward(l, x_l, d_y_l, d_x_l)`: x_l and d_y_l are read, d_x_l is d_y_l W_l and
    /// may be added to. The gradient of the embeddings is not needed: d_x_0 is empty (no rows).
    template <class AdaptBackward>
    void backward(const batch& input, basic_activations<Scalar>& state,
                  AdaptBackward&& adapt_backward) const;

    /// The gradient of all parameters after `forward`, laid out as `parameters()`.
    void gradients(const batch& input, basic_activations<Scalar>& state, vector& to) const;

  private:
    static constexpr Eigen::Index inputs(int l) {
        return layer_inputs[static_cast<std::size_t>(l)];
    }
    static constexpr Eigen::Index outputs(int l) {
        return layer_outputs[static_cast<std::size_t>(l)];
    }
    static constexpr Eigen::Index weight_offset(int l) {
        Eigen::Index offset = symbol_count * embedding_width;
        for (int i = 0; i < l; ++i)
            offset += (inputs(i) + 1) * outputs(i);
        return offset;
    }
    static constexpr Eigen::Index bias_offset(int l) {
        return weight_offset(l) + inputs(l) * outputs(l);
    }

    vector parameters_;
};

using activations = basic_activations<float>;
using host_model = basic_host_model<float>;

struct pretraining_options {
    int steps = 1500;
    Eigen::Index rows = 1024; ///< positions of a step, as many of each language
    double learning_rate = 2e-3;
    double weight_decay = 0.01;
    double warm_up = 0.06; ///< fraction of the steps
};

/// Called after each step with the steps done and the steps in all.
using progress_callback = std::function<void(int step, int steps)>;

/// A new model, all of its parameters trained on positions of `languages`, drawn equally.
host_model pretrain(const std::vector<position_list>& languages, random_engine& random,
                    const pretraining_options& options = {},
                    const progress_callback& progress = nullptr);

/// Bits a symbol that `model` with `adapt` needs for all of `positions`.
template <class Scalar, class Adapt = no_adapter>
double bits_per_character(const basic_host_model<Scalar>& model, const position_list& positions,
                          basic_activations<Scalar>& state, Adapt&& adapt = Adapt{},
                          Eigen::Index rows = 1024) {
    batch input;
    double nats = 0.0;
    for (Eigen::Index first = 0; first < positions.size(); first += rows) {
        positions.slice(first, std::min(rows, positions.size() - first), input);
        nats += model.forward(input, state, adapt);
    }
    return nats / (std::log(2.0) * static_cast<double>(positions.size()));
}

template <class Scalar>
template <class Adapt>
double basic_host_model<Scalar>::forward(const batch& input, basic_activations<Scalar>& state,
                                         Adapt&& adapt, double loss_weight) const {
    const Eigen::Index rows = input.rows();
    state.reserve(rows);

    auto x0 = state.x(0, rows);
    const auto embeddings = embedding();
    for (Eigen::Index r = 0; r < rows; ++r) {
        for (Eigen::Index c = 0; c < context_length; ++c) {
            x0.row(r).segment(c * embedding_width, embedding_width) =
                embeddings.row(input.contexts(r, c));
        }
    }

    for (int l = 0; l < layer_count; ++l) {
        const const_matrix_view<Scalar> x(state.x(l, rows).data(), rows, inputs(l));
        auto y = state.y(l, rows);
        y.noalias() = x * weight(l).transpose();
        y.rowwise() += bias(l).row(0);
        adapt(l, x, y);
        if (l == 0) state.x(1, rows) = y.cwiseMax(Scalar{0});
        if (l == 1) state.x(2, rows) = x + y.cwiseMax(Scalar{0});
    }

    const auto y2 = state.y(2, rows);
    auto d_y2 = state.d_y(2, rows);
    d_y2.setZero();
    const Scalar scale = static_cast<Scalar>(loss_weight / static_cast<double>(rows));
    double loss = 0.0;
    for (Eigen::Index r = 0; r < rows; ++r) {
        using logits = Eigen::Array<Scalar, 1, symbol_count>;
        const logits shifted = y2.row(r).template head<symbol_count>().array() -
                               y2.row(r).template head<symbol_count>().maxCoeff();
        const logits exponentials = shifted.exp();
        const Scalar sum = exponentials.sum();
        const int target = input.targets(r);
        loss += static_cast<double>(std::log(sum) - shifted(target));
        d_y2.row(r).template head<symbol_count>() = (exponentials * (scale / sum)).matrix();
        d_y2(r, target) -= scale;
    }
    return loss;
}

template <class Scalar>
template <class AdaptBackward>
void basic_host_model<Scalar>::backward(const batch& input, basic_activations<Scalar>& state,
                                        AdaptBackward&& adapt_backward) const {
    const Eigen::Index rows = input.rows();
    for (int l = layer_count - 1; l >= 0; --l) {
        auto d_y = state.d_y(l, rows);
        // d_y_2 is there since the forward pass; the others come through a ReLU, and the gradient
        // of h1 is the sum of what came through layer 1 and around it.
        if (l == 1) {
            d_y = (state.y(1, rows).array() > Scalar{0}).select(state.d_x(2, rows), Scalar{0});
        }
        if (l == 0) {
            d_y = (state.y(0, rows).array() > Scalar{0})
                      .select(state.d_x(1, rows) + state.d_x(2, rows), Scalar{0});
        }
        auto d_x = state.d_x(l, l == 0 ? 0 : rows);
        if (l > 0) d_x.noalias() = d_y * weight(l);
        adapt_backward(l, const_matrix_view<Scalar>(state.x(l, rows).data(), rows, inputs(l)),
                       const_matrix_view<Scalar>(d_y.data(), rows, outputs(l)), d_x);
    }
}

extern template class basic_host_model<float>;
extern template class basic_host_model<double>;

} // namespace cross_task
