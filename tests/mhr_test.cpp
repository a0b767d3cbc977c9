#include <mhr/mhr.hpp>
// Twice: nothing may be defined again.
#include <mhr/mhr.hpp>

#include <array>

#include <doctest/doctest.h>

using namespace mhr;

// The umbrella leaves no header out: one name of each.
namespace {
using mhr::accumulator_t;              // core/scalar.hpp
using mhr::any_extent;                 // core/checks.hpp
using mhr::average_forward;            // mixing/average.hpp
using mhr::batch_plan;                 // adapters/batch_plan.hpp
using mhr::draw_uniforms;              // routing/noise.hpp
using mhr::error;                      // core/error.hpp
using mhr::executor_ref;               // core/executor.hpp
using mhr::initialise_inventory;       // adapters/initialisation.hpp
using mhr::lora;                       // adapters/lora.hpp
using mhr::lora_inventory;             // adapters/routed_lora.hpp
using mhr::mix_forward;                // mixing/mix.hpp
using mhr::openmp_executor;            // core/openmp_executor.hpp
using mhr::router_forward;             // routing/router.hpp
using mhr::sigmoid_gate;               // routing/gates.hpp
using mhr::tensor_view;                // core/tensor_view.hpp
using mhr::workspace;                  // core/workspace.hpp
using mhr::detail::project;            // simd/skinny_products.hpp
using mhr::detail::strided;            // core/strided.hpp
using mhr::reference::lora_forward;    // reference/lora.hpp
using mhr::reference::mix_backward;    // reference/mixing.hpp
using mhr::reference::router_backward; // reference/routing.hpp
} // namespace
static_assert(MHR_EXCEPTIONS == 1);                                           // config.hpp
static_assert(MHR_VERSION_MAJOR + MHR_VERSION_MINOR + MHR_VERSION_PATCH > 0); // version.hpp

TEST_CASE("the umbrella header is enough to route") {
    const std::array<float, 2> logits{0, 0};
    const std::array<int, 1> tasks{0};
    std::array<float, 2> weights{};
    mhr::router_forward(serial_executor{}, tensor_view<const float, 3>(logits.data(), {1, 1, 2}),
                        tensor_view<const int, 1>(tasks.data(), {1}), sigmoid_gate{},
                        tensor_view<float, 3>(weights.data(), {1, 1, 2}));
    CHECK(weights == std::array<float, 2>{0.5F, 0.5F});
}
