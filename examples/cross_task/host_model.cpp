#include "host_model.hpp"

#include "adam.hpp"

#include <stdexcept>

namespace cross_task {

template <class Scalar>
void basic_host_model<Scalar>::gradients(const batch& input, basic_activations<Scalar>& state,
                                         vector& to) const {
    to.setZero(parameter_count());
    const auto accumulate = [&](int l, const auto& x, const auto& d_y, const auto&) {
        matrix_view<Scalar> d_weight(to.data() + weight_offset(l), outputs(l), inputs(l));
        matrix_view<Scalar> d_bias(to.data() + bias_offset(l), 1, outputs(l));
        d_weight.noalias() = d_y.transpose() * x;
        d_bias = d_y.colwise().sum();
    };
    backward(input, state, accumulate);

    // Only here do the embeddings need a gradient.
    const Eigen::Index rows = input.rows();
    auto d_x = state.d_x(0, rows);
    d_x.noalias() = state.d_y(0, rows) * weight(0);
    matrix_view<Scalar> d_embedding(to.data(), symbol_count, embedding_width);
    for (Eigen::Index r = 0; r < rows; ++r) {
        for (Eigen::Index c = 0; c < context_length; ++c) {
            d_embedding.row(input.contexts(r, c)) +=
                d_x.row(r).segment(c * embedding_width, embedding_width);
        }
    }
}

template class basic_host_model<float>;
template class basic_host_model<double>;

host_model pretrain(const std::vector<position_list>& languages, random_engine& random,
                    const pretraining_options& options, const progress_callback& progress) {
    if (languages.empty()) throw std::invalid_argument("pretrain: no languages");

    host_model model(random);
    activations state(options.rows);
    batch input(options.rows);
    host_model::vector gradient;
    adam_options optimiser;
    optimiser.weight_decay = static_cast<float>(options.weight_decay);
    adam adam_w(host_model::parameter_count(), optimiser);

    const auto count = static_cast<Eigen::Index>(languages.size());
    for (int step = 0; step < options.steps; ++step) {
        for (Eigen::Index i = 0; i < count; ++i) {
            const Eigen::Index first = i * options.rows / count;
            const Eigen::Index end = (i + 1) * options.rows / count;
            languages[static_cast<std::size_t>(i)].sample(random, input, first, end - first);
        }
        model.forward(input, state, no_adapter{});
        model.gradients(input, state, gradient);
        const double rate =
            options.learning_rate * linear_schedule(step, options.steps, options.warm_up);
        adam_w.step(model.parameters().data(), gradient.data(), rate);
        if (progress) progress(step + 1, options.steps);
    }
    return model;
}

} // namespace cross_task
