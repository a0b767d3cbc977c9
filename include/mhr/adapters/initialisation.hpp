#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>

#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/routing/noise.hpp>

/// \file
/// First values of adapters and routers as PEFT's Poly draws them (the distributions, not the
/// numbers), from a seed, the same on every platform.

namespace mhr {

/// Bound of the first logits: a router starts close to uniform.
inline constexpr double initial_logit_bound = 1e-3;

namespace detail {

/// Calls `f` with each element, in row-major order of the indices whatever the strides.
template <class T, std::size_t Rank, class F>
void for_each_element(tensor_view<T, Rank> view, F&& f) {
    for (index_t i = 0; i < view.extent(0); ++i)
        if constexpr (Rank == 1)
            f(view(i));
        else
            for_each_element(view.slice(0, i), f);
}

/// Fills a view with uniform numbers in (-bound, bound).
template <class Engine, class T, std::size_t Rank>
void draw_symmetric(Engine& engine, double bound, tensor_view<T, Rank> values) {
    for_each_element(values, [&](T& value) {
        value = store<T>(bound * (2 * draw_uniform<double, 52>(engine) - 1));
    });
}

} // namespace detail

/// a: Kaiming-uniform with negative slope sqrt(5) for every module and head, that is uniform in
/// +-1 / sqrt(in_features / heads); b: zeros, so that the adapter changes nothing at first.
/// Shapes as lora_inventory. Errors: a shape; overlapping elements.
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

/// Logits [tasks, heads, modules], uniform in +-1e-3. Errors: a shape; overlapping elements.
template <class T>
void initialise_logits(std::uint64_t seed, tensor_view<T, 3> logits) {
    require_output("initialise_logits", "logits", logits, {any_extent, any_extent, any_extent});
    std::mt19937_64 engine(seed);
    detail::draw_symmetric(engine, initial_logit_bound, logits);
}

} // namespace mhr
