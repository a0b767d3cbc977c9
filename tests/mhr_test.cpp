#include <mhr/mhr.hpp>
// Twice: nothing may be defined again.
#include <mhr/mhr.hpp>

#include <array>

#include <doctest/doctest.h>

using namespace mhr;

static_assert(MHR_EXCEPTIONS == 1);                                           // config.hpp
static_assert(MHR_VERSION_MAJOR + MHR_VERSION_MINOR + MHR_VERSION_PATCH > 0); // version.hpp

TEST_CASE("the umbrella header is enough to route") {
    const std::array<float, 2> logits{0, 0};
    const std::array<int, 1> tasks{0};
    std::array<float, 2> weights{};
    mhr::router_forward(serial_executor{}, tensor_view<const float, 3>(logits.data(), {1, 1, 2}),
                        tensor_view<const int, 1>(tasks.data(), {1}), routing_rule{sigmoid_gate{}},
                        tensor_view<float, 3>(weights.data(), {1, 1, 2}));
    CHECK(weights == std::array<float, 2>{0.5F, 0.5F});
}
