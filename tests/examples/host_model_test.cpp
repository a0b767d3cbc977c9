#include "examples/cross_task/host_model.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <utility>
#include <vector>

using namespace cross_task;

namespace {

using matrix = row_matrix<double>;
using model = basic_host_model<double>;

// y_l += x_l M_l
struct toy_adapter {
    std::array<matrix, layer_count> m, d_m;

    explicit toy_adapter(random_engine& random) {
        for (std::size_t l = 0; l < layer_count; ++l) {
            m[l].resize(layer_inputs[l], layer_outputs[l]);
            for (double& value : m[l].reshaped())
                value = 0.02 * random.normal();
            d_m[l].setZero(layer_inputs[l], layer_outputs[l]);
        }
    }

    auto forward() {
        return [this](int l, const auto& x, auto&& y) {
            y.noalias() += x * m[static_cast<std::size_t>(l)];
        };
    }

    auto backward() {
        return [this](int l, const auto& x, const auto& d_y, auto&& d_x) {
            const auto i = static_cast<std::size_t>(l);
            d_m[i].noalias() += x.transpose() * d_y;
            CHECK(d_x.rows() == (l == 0 ? 0 : d_y.rows()));
            if (d_x.rows() > 0) d_x.noalias() += d_y * m[i].transpose();
        };
    }
};

batch random_batch(Eigen::Index rows, random_engine& random) {
    batch result(rows);
    for (int& symbol : result.contexts.reshaped())
        symbol = static_cast<int>(random.integer(27));
    for (int& symbol : result.targets)
        symbol = static_cast<int>(random.integer(27));
    return result;
}

// The derivative of `loss()` by `parameter`.
template <class Loss>
double difference(double& parameter, Loss&& loss) {
    const double at = parameter;
    const double step = 1e-5;
    parameter = at + step;
    const double above = loss();
    parameter = at - step;
    const double below = loss();
    parameter = at;
    return (above - below) / (2.0 * step);
}

} // namespace

TEST_CASE("host model: the forward pass is the model that the comment describes") {
    random_engine random(1);
    const model host(random);
    const batch input = random_batch(9, random);
    basic_activations<double> state;
    const double loss = host.forward(input, state, no_adapter{});

    matrix x0(9, 160);
    for (Eigen::Index r = 0; r < 9; ++r) {
        for (Eigen::Index c = 0; c < 5; ++c)
            x0.row(r).segment(c * 32, 32) = host.embedding().row(input.contexts(r, c));
    }
    const auto linear = [&](int l, const matrix& x) {
        return matrix((x * host.weight(l).transpose()).rowwise() + host.bias(l).row(0));
    };
    const matrix h1 = linear(0, x0).cwiseMax(0.0);
    const matrix h2 = h1 + linear(1, h1).cwiseMax(0.0);
    const matrix logits = linear(2, h2).leftCols(27);
    double expected = 0.0;
    for (Eigen::Index r = 0; r < 9; ++r)
        expected += std::log(logits.row(r).array().exp().sum()) - logits(r, input.targets(r));
    CHECK(loss == doctest::Approx(expected).epsilon(1e-12));
    CHECK(state.y(2, 9).cols() == 64);
}

TEST_CASE("host model: gradients of all parameters are those of finite differences") {
    random_engine random(2);
    model host(random);
    const batch input = random_batch(6, random);
    basic_activations<double> state;
    model::vector gradient;
    host.forward(input, state, no_adapter{});
    host.gradients(input, state, gradient);
    REQUIRE(gradient.size() == model::parameter_count());
    const auto loss = [&] { return host.forward(input, state, no_adapter{}) / 6.0; };
    for (int i = 0; i < 300; ++i) {
        // One in three from the embedding, the smallest part.
        const Eigen::Index count = i % 3 == 0 ? host.embedding().size() : gradient.size();
        const auto at =
            static_cast<Eigen::Index>(random.integer(static_cast<std::uint64_t>(count)));
        const double expected = difference(host.parameters()[at], loss);
        CHECK(std::abs(gradient[at] - expected) < 1e-8 + 1e-5 * std::abs(expected));
    }
}

TEST_CASE("host model: gradients of adapters beside the frozen layers") {
    random_engine random(3);
    const model host(random);
    const batch input = random_batch(6, random);
    toy_adapter adapter(random);
    basic_activations<double> state;
    const double weight = 0.25;
    host.forward(input, state, adapter.forward(), weight);
    host.backward(input, state, adapter.backward());
    const auto loss = [&] { return weight * host.forward(input, state, adapter.forward()) / 6.0; };
    for (std::size_t l = 0; l < layer_count; ++l) {
        for (int i = 0; i < 50; ++i) {
            const auto at = static_cast<Eigen::Index>(
                random.integer(static_cast<std::uint64_t>(adapter.m[l].size())));
            const double expected = difference(adapter.m[l].data()[at], loss);
            CHECK(std::abs(adapter.d_m[l].data()[at] - expected) <
                  1e-8 + 1e-5 * std::abs(expected));
        }
    }
}

TEST_CASE("host model: an adapter of zeros changes nothing; outputs that are no logits neither") {
    random_engine random(4);
    const host_model host(random);
    const batch input = random_batch(5, random);
    activations state;
    const double alone = host.forward(input, state, no_adapter{});
    const auto unused = [](int l, const auto&, auto&& y) {
        if (l == 2) y.rightCols(y.cols() - symbol_count).array() += 3.0F;
    };
    CHECK(host.forward(input, state, unused) == alone);
    CHECK(state.d_y(2, 5).rightCols(64 - symbol_count).isZero(0.0F));
}

TEST_CASE("host model: a state made for many rows serves fewer") {
    random_engine random(5);
    const host_model host(random);
    const batch small = random_batch(3, random);
    activations large(100);
    activations fresh;
    const float* data = large.x(0, 1).data();
    CHECK(host.forward(small, large, no_adapter{}) == host.forward(small, fresh, no_adapter{}));
    CHECK(large.x(0, 3).data() == data);
}

TEST_CASE("host model: logits of any size give a finite loss") {
    random_engine random(6);
    const host_model host(random);
    const batch input = random_batch(4, random);
    activations state;
    const auto shift = [](int l, const auto&, auto&& y) {
        if (l == 2) y.array() *= 1e4F;
    };
    CHECK(std::isfinite(host.forward(input, state, shift)));
    CHECK(state.d_y(2, 4).allFinite());
}

TEST_CASE("host model: bits per character is the mean over all positions, whatever the batches") {
    random_engine random(7);
    const host_model host(random);
    const position_list positions({"some", "words", "of", "letters"});
    activations state;
    const double once = bits_per_character(host, positions, state);
    CHECK(bits_per_character(host, positions, state, no_adapter{}, 4) == doctest::Approx(once));
    CHECK(once == doctest::Approx(std::log2(27.0)).epsilon(0.2)); // untrained

    const auto certain = [](int l, const auto&, auto&& y) { // the boundary, always
        if (l != 2) return;
        y.setZero();
        y.col(0).array() = 50.0F;
    };
    const position_list one({"a"}); // an a and a boundary
    CHECK(bits_per_character(host, one, state, certain) ==
          doctest::Approx(0.5 * 50.0 / std::log(2.0)));
}

TEST_CASE("host model: pre-training learns, reports progress and repeats itself") {
    const std::vector<position_list> languages{position_list({"banana", "bandana"}),
                                               position_list({"oxo"})};
    pretraining_options options;
    options.steps = 60;
    options.rows = 33; // no multiple of the languages
    std::vector<std::pair<int, int>> reports;
    random_engine random(8);
    const host_model trained = pretrain(languages, random, options, [&](int step, int steps) {
        reports.emplace_back(step, steps);
    });
    REQUIRE(reports.size() == 60);
    CHECK(reports.front() == std::pair<int, int>{1, 60});
    CHECK(reports.back() == std::pair<int, int>{60, 60});

    activations state;
    for (const position_list& language : languages)
        CHECK(bits_per_character(trained, language, state) < 1.0);

    random_engine same(8);
    CHECK(pretrain(languages, same, options).parameters() == trained.parameters());
    CHECK_THROWS_AS(pretrain({}, random, options), std::invalid_argument);
}
