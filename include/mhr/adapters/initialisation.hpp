#pragma once

#include <cmath>
#include <cstdint>
#include <random>

#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/routing/noise.hpp>

/// \file
/// First values of adapters as PEFT's Poly draws them (the distributions, not the numbers), from a
/// seed, the same on every platform. Those of routers are in routing/logits.hpp.

namespace mhr {
inline namespace MHR_ISA {

/// a: Kaiming-uniform with negative slope sqrt(5) for every module and head, that is uniform in
/// +-1 / sqrt(in_features / heads); b: zeros, so that the adapter changes nothing at first.
/// Shapes as lora_inventory. Errors: a shape; overlapping elements.
/// Cost: one draw for each element of a, in the calling thread.
template <class T>
void initialise_inventory(std::uint64_t seed, lora_inventory<T> inventory) {
    constexpr const char* function = "initialise_inventory";
    const auto& [a, b] = inventory;
    require_output(function, "inventory.a", a, {any_extent, any_extent, any_extent, any_extent});
    require_output(function, "inventory.b", b, {a.extent(0), a.extent(1), a.extent(3), any_extent});
    std::mt19937_64 engine(seed);
    const double fan_in = static_cast<double>(a.extent(2));
    detail::draw_symmetric(engine, fan_in > 0 ? 1 / std::sqrt(fan_in) : 0, a);
    detail::for_each_element(b, [](T& value) { value = store<T>(accumulator_t<T>(0)); });
}

} // namespace MHR_ISA
} // namespace mhr
