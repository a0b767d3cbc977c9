#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include <doctest/doctest.h>

#include <mhr/training/initialisation.hpp>

#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/tensor.hpp"
#include "support/uniformity.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

// An inventory with sentinels.
struct guarded_inventory {
    guarded_tensor<4> a, b;
    guarded_inventory(element_type type, index_t heads, index_t modules, index_t in, index_t rank,
                      index_t out, layout order = layout::row_major)
        : a(type, {heads, modules, in / heads, rank}, order),
          b(type, {heads, modules, rank, out / heads}, order) {}
    lora_inventory_matrices matrices() { return {a.ref(), b.ref()}; }
};

} // namespace

// Computed once by an independent implementation of std::mt19937_64, from the formula
// bound (2 (k + 1/2) / 2^52 - 1). They must not change: hosts reproduce training runs with them.
TEST_CASE("the first numbers are those of every platform and every later version") {
    guarded_inventory inventory(element_type::f64, 1, 1, 4, 1, 1);
    initialise_inventory(1, inventory.matrices());
    const auto first = [&](index_t i) { return element(inventory.a.const_ref(), {0, 0, i, 0}); };
    CHECK(first(0) == -0x1.76e90a81125e6p-2);
    CHECK(first(1) == -0x1.7451b6bf739c2p-2);
    CHECK(first(2) == -0x1.8fa5c310a3370p-5);
    CHECK(first(3) == -0x1.ea789fea1b28ep-2);
}

TEST_CASE("a is uniform in the bound of its fan-in, b is zero") {
    const index_t in = 48;
    for (element_type type : all_element_types)
        for (index_t heads : {1, 4, 16}) {
            CAPTURE(std::string(name_of(type)));
            CAPTURE(heads);
            guarded_inventory inventory(type, heads, 8, in, 24, 32);
            initialise_inventory(5, inventory.matrices());
            // Kaiming-uniform with slope sqrt(5): 1 / sqrt(rows of a block of A).
            const double bound = 1 / std::sqrt(static_cast<double>(in / heads));
            const auto a = values_as<double>(inventory.a.const_ref());
            const double epsilon = precision_of(type).epsilon;
            check_uniform(a.view(), bound, epsilon);
            // Each module, too: none is drawn from another distribution.
            for (index_t m = 0; m < 8; ++m) {
                const statistics s = statistics_of(a.view().slice(1, m));
                CHECK(s.variance == doctest::Approx(bound * bound / 3).epsilon(0.2));
            }
            const auto b = values_as<double>(inventory.b.const_ref());
            for (double value : b.values())
                CHECK(value == 0);
            CHECK(inventory.a.intact());
            CHECK(inventory.b.intact());
        }
}

TEST_CASE("b is positive zero: hosts may compare it with memory that was cleared") {
    for (element_type type : all_element_types) {
        guarded_inventory inventory(type, 2, 2, 4, 3, 4);
        initialise_inventory(5, inventory.matrices());
        index_t negative = 0;
        const auto b = values_as<double>(inventory.b.const_ref());
        for (double value : b.values())
            negative += std::signbit(value) ? 1 : 0;
        CHECK(negative == 0);
    }
}

TEST_CASE("element types round the same numbers") {
    guarded_inventory wide(element_type::f64, 2, 3, 10, 4, 6);
    initialise_inventory(3, wide.matrices());
    const auto want = values_as<double>(wide.a.const_ref());
    for (element_type type : {element_type::f32, element_type::bf16, element_type::f16}) {
        CAPTURE(std::string(name_of(type)));
        guarded_inventory stored(type, 2, 3, 10, 4, 6);
        initialise_inventory(3, stored.matrices());
        CHECK(compare(stored.a.const_ref(), want.view(), within(element_type::f32, 0.5, 0.5)));
    }
}

TEST_CASE("seeds give different numbers, the same seed the same, in every layout") {
    guarded_inventory want(element_type::f32, 2, 3, 10, 4, 6);
    initialise_inventory(3, want.matrices());
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_inventory got(element_type::f32, 2, 3, 10, 4, 6, order);
        initialise_inventory(3, got.matrices());
        CHECK(compare_bitwise(got.a.ref(), want.a.ref()));
        CHECK(got.a.intact());
        CHECK(got.b.intact());
        initialise_inventory(4, got.matrices());
        CHECK_FALSE(compare_bitwise(got.a.ref(), want.a.ref()));
    }

    // mttl's order: a is [modules, heads, ..] in memory, b [modules, rank, heads, ..].
    guarded_tensor<4> a(element_type::f32, {3, 2, 5, 4});
    guarded_tensor<4> b(element_type::f32, {3, 4, 2, 3});
    initialise_inventory(3, {a.ref().transpose(0, 1), b.ref().transpose(1, 2).transpose(0, 1)});
    CHECK(compare_bitwise(a.ref().transpose(0, 1), want.a.ref()));
    CHECK(a.intact());
    CHECK(b.intact());
}

TEST_CASE("empty inventories are no error") {
    CHECK_NOTHROW(initialise_inventory(1, {}));
    guarded_inventory no_input(element_type::f32, 1, 2, 0, 3, 4);
    CHECK_NOTHROW(initialise_inventory(1, no_input.matrices()));
    CHECK(element(no_input.b.const_ref(), {0, 1, 2, 3}) == 0);
    CHECK_NOTHROW(initialise_ia3({}));
}

TEST_CASE("modules of (IA)3 are ones, of every type and layout") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(std::string(name_of(type)));
            CAPTURE(name_of(order));
            guarded_tensor<3> modules(type, {2, 3, 5}, order);
            initialise_ia3(modules.ref());
            const auto values = values_as<double>(modules.const_ref());
            for (double value : values.values())
                CHECK(value == 1);
            CHECK(modules.intact());
        }
}

TEST_CASE("bad arguments are refused by name, with everything untouched") {
    guarded_inventory inventory(element_type::f32, 2, 3, 10, 4, 6);
    const lora_inventory_matrices good = inventory.matrices();
    const auto refused = [&](const char* argument, const lora_inventory_matrices& bad) {
        return refuses(
            "initialise_inventory", argument, [&] { initialise_inventory(1, bad); }, inventory.a,
            inventory.b);
    };
    for (const auto& bad : bad_as_output(good.a, {0, 1, 2, 3})) {
        CAPTURE(bad.what);
        CHECK(refused("inventory.a", {bad.ref, good.b}));
    }
    // Heads, modules and rank of b are those of a; its last extent is free.
    for (const auto& bad : bad_as_output(good.b, {3})) {
        CAPTURE(bad.what);
        CHECK(refused("inventory.b", {good.a, bad.ref}));
    }
    CHECK(refused("inventory.b", {good.a, {}}));
    CHECK(refused("inventory.b", {good.a.block(3, 0, 3), good.b}));
    guarded_tensor<3> modules(element_type::bf16, {2, 3, 5});
    for (const auto& bad : bad_as_output(modules.ref(), {0, 1, 2})) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "initialise_ia3", "modules", [&] { initialise_ia3(bad.ref); }, modules));
    }
}
