#include <mhr/mhr.hpp>

#include <array>
#include <cmath>
#include <cstdint>

#include <doctest/doctest.h>

#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

namespace {

using mhr::index_t;
using mhr::test::tensor;
constexpr index_t heads = 2, modules = 4;

/// The weights of one task.
template <class Rule>
tensor<float, 3> weights_of(const tensor<float, 3>& logits, const Rule& rule) {
    const std::array<std::int64_t, 1> tasks{0};
    tensor<float, 3> weights{{1, heads, modules}};
    mhr::router_forward({}, logits.view(),
                        mhr::tensor_view<const std::int64_t, 1>(tasks.data(), {1}), rule,
                        weights.view());
    for (index_t h = 0; h < heads; ++h) {
        float sum = 0;
        for (index_t m = 0; m < modules; ++m)
            sum += weights(0, h, m);
        CHECK(sum == doctest::Approx(1));
    }
    return weights;
}

/// How many weights of the first head are above 0.
index_t switched_on(const tensor<float, 3>& weights) {
    index_t count = 0;
    for (index_t m = 0; m < modules; ++m)
        count += weights(0, 0, m) > 0 ? 1 : 0;
    return count;
}

} // namespace

TEST_CASE("README: routing rules") {
    mhr::test::random_source random(3);
    tensor<float, 3> logits{{1, heads, modules}}, draws{{1, heads, modules}};
    random.fill(logits.view());
    for (index_t h = 0; h < heads; ++h)
        for (index_t m = 0; m < modules; ++m)
            draws(0, h, m) = m % 2 == 0 ? 0.25F : 0.75F;
    const auto uniforms = draws.view();
    const index_t step = 95, steps = 100, last_steps = 10;

#include "readme/routing_rules.inc"

    const auto trained = weights_of(logits, multi_task);
    const auto evaluated = weights_of(logits, evaluation);
    const auto drawn_to_uniform = weights_of(logits, annealed);
    CHECK(switched_on(trained) == modules);
    CHECK(switched_on(evaluated) == modules);
    CHECK(switched_on(weights_of(logits, top_2)) == 2);
    const double kept = std::sqrt(0.5); // cos(pi / 4), in the middle of the last steps
    for (index_t m = 0; m < modules; ++m) {
        CHECK(trained(0, 0, m) != evaluated(0, 0, m));
        CHECK(drawn_to_uniform(0, 0, m) ==
              doctest::Approx(kept * trained(0, 0, m) + (1 - kept) / modules));
    }
}
