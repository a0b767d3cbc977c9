#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "examples/cross_task/adapters.hpp"
#include "examples/cross_task/alignment.hpp"
#include "examples/cross_task/random.hpp"

namespace {

using namespace cross_task;

constexpr Eigen::Index rows_of_task = 12;

struct batch_of_tasks {
    std::vector<std::int64_t> ids{0, 1, 2};
    batch input{3 * rows_of_task};

    explicit batch_of_tasks(random_engine& random) {
        const std::vector<position_list> tasks{position_list({"banana", "ananas", "cabana"}),
                                               position_list({"street", "tree", "reset"}),
                                               position_list({"oslo", "solo", "polo"})};
        for (std::size_t t = 0; t < tasks.size(); ++t)
            tasks[t].sample(random, input, static_cast<Eigen::Index>(t) * rows_of_task,
                            rows_of_task);
    }
    task_rows rows() const { return {{ids.data(), {3}}, rows_of_task}; }
};

template <class Adapters>
void fill(Adapters& adapters, random_engine& random) {
    for (float& value : adapters.modules().values)
        value = static_cast<float>(random.uniform(-0.3, 0.3));
}

/// The gradient to the modules from the rows of one task alone: the others go to waste.
template <class Adapters>
std::vector<double> gradient_of_task(const host_model& host, Adapters& adapters,
                                     const batch_of_tasks& all, std::int64_t task) {
    batch input(rows_of_task);
    input.contexts = all.input.contexts.middleRows(task * rows_of_task, rows_of_task);
    input.targets = all.input.targets.segment(task * rows_of_task, rows_of_task);
    activations state;
    auto gradients = adapters.modules().gradients;
    gradients.setZero();
    adapters.begin({{&task, {1}}, rows_of_task});
    host.forward(input, state, [&](int l, const auto& x, auto& y) { adapters.forward(l, x, y); });
    host.backward(input, state, [&](int l, const auto& x, const auto& d_y, auto& d_x) {
        adapters.backward(l, x, d_y, d_x);
    });
    adapters.end();
    return {gradients.begin(), gradients.end()};
}

double inner_product(const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
        sum += a[i] * b[i];
    return sum;
}

/// The mean cosine from whole gradients, one task at a time.
template <class Adapters>
double expected_alignment(const host_model& host, Adapters& adapters, const batch_of_tasks& all) {
    std::vector<std::vector<double>> gradients;
    for (const std::int64_t task : all.ids)
        gradients.push_back(gradient_of_task(host, adapters, all, task));
    double sum = 0;
    for (std::size_t s = 0; s < 3; ++s)
        for (std::size_t t = s + 1; t < 3; ++t)
            sum += inner_product(gradients[s], gradients[t]) /
                   std::sqrt(inner_product(gradients[s], gradients[s]) *
                             inner_product(gradients[t], gradients[t]));
    return sum / 3;
}

template <class Adapters>
void check(Adapters adapters) {
    random_engine random(2);
    const host_model host(random);
    const batch_of_tasks all(random);
    fill(adapters, random);
    const Eigen::ArrayXf before = adapters.modules().values;

    alignment_meter meter(3);
    meter.measure(10, host, adapters, all.input, all.rows());
    meter.measure(20, host, adapters, all.input, all.rows());
    CHECK((adapters.modules().values == before).all());
    CHECK(meter.curve().step == std::vector<int>{10, 20});
    const double got = meter.curve().overall[0];
    CHECK(meter.curve().overall[1] == got); // nothing is left over from the first
    const double want = expected_alignment(host, adapters, all);
    CHECK(std::abs(want) > 0.01); // or the comparison would say nothing
    CHECK(std::abs(got - want) < 1e-4);
    for (const auto& of_layer : meter.curve().of_layers) {
        REQUIRE(of_layer.size() == 2);
        CHECK(std::abs(of_layer[0]) <= 1);
        CHECK(std::abs(of_layer[0] - got) > 1e-6);
    }
}

} // namespace

TEST_CASE("alignment is the mean cosine of the gradients that single tasks give") {
    check(plain_adapters(4, 1));
    check(routed_adapters({3, 1, 4, 4, routing::learned}, 1));
    check(routed_adapters({3, 8, 4, 2, routing::learned}, 1));
    check(routed_adapters({3, 4, 3, 2, routing::random}, 4));
}
