#pragma once

#include <cmath>
#include <cstdint>
#include <random>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/random.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/lora/inventory.hpp>

/// \file
/// First values of adapters as PEFT draws them (the distributions, not the numbers), from a seed,
/// the same on every platform. Those of routers are in routing/logits.hpp.

namespace mhr {
inline namespace MHR_ISA {

/// Sets a to Kaiming-uniform numbers with negative slope sqrt(5) for every module and head, which
/// are uniform in +-1 / sqrt(in_features / heads), and b to zeros, so that the adapter changes
/// nothing at first (PEFT's Poly).
///
/// inventory.a [heads, modules, in_features / heads, rank] and inventory.b [heads, modules, rank,
/// out_features / heads]. The numbers are drawn in the order of indices, whatever the strides, and
/// rounded to the type of a.
///
/// These are refused: shapes that do not fit; an a or b two of whose elements overlap. The cost is
/// one draw for each element of a, in the calling thread.
inline void initialise_inventory(std::uint64_t seed, const lora_inventory_matrices& inventory) {
    const tensor_ref<4>& a = inventory.a;
    const tensor_ref<4>& b = inventory.b;
    argument_checks checks("initialise_inventory");
    checks.output("inventory.a", a, argument_checks::any_extents<4>());
    checks.output("inventory.b", b, {a.extent(0), a.extent(1), a.extent(3), any_extent});
    checks.raise();
    std::mt19937_64 engine(seed);
    const double fan_in = static_cast<double>(a.extent(2));
    draw_symmetric(engine, fan_in > 0 ? 1 / std::sqrt(fan_in) : 0, a);
    for_each_element(b, [&](void* to) { write_number(b.type(), to, 0.0); });
}

/// Sets the modules of (IA)3 to ones, so that the layer is as it was at first, for every mixture of
/// weights whose sum is 1 (Liu et al. 2022, arXiv 2205.05638, section 3.3).
///
/// modules [heads, modules, features / heads]. These are refused: modules two of whose elements
/// overlap. The cost is one write for each element.
inline void initialise_ia3(const tensor_ref<3>& modules) {
    argument_checks checks("initialise_ia3");
    checks.output("modules", modules, argument_checks::any_extents<3>());
    checks.raise();
    for_each_element(modules, [&](void* to) { write_number(modules.type(), to, 1.0); });
}

} // namespace MHR_ISA
} // namespace mhr
