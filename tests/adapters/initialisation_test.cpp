#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/initialisation.hpp>

#include "support/bad_views.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/scalar_types.hpp"
#include "support/uniformity.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

// An inventory with sentinels.
template <class T>
struct guarded_inventory {
    guarded_buffer<T, 4> a, b;
    guarded_inventory(index_t heads, index_t modules, index_t in, index_t rank, index_t out,
                      layout order = layout::row_major)
        : a({heads, modules, in / heads, rank}, order),
          b({heads, modules, rank, out / heads}, order) {}
    lora_inventory<T> view() { return {a.view(), b.view()}; }
};

} // namespace

// Computed once by an independent implementation of std::mt19937_64, from the formula
// bound (2 (k + 1/2) / 2^52 - 1). They must not change: hosts reproduce training runs with them.
TEST_CASE("the first numbers are those of every platform and every later version") {
    guarded_inventory<double> inventory(1, 1, 4, 1, 1);
    initialise_inventory(1, inventory.view());
    CHECK(inventory.a(0, 0, 0, 0) == -0x1.76e90a81125e6p-2);
    CHECK(inventory.a(0, 0, 1, 0) == -0x1.7451b6bf739c2p-2);
    CHECK(inventory.a(0, 0, 2, 0) == -0x1.8fa5c310a3370p-5);
    CHECK(inventory.a(0, 0, 3, 0) == -0x1.ea789fea1b28ep-2);
}

TEST_CASE_TEMPLATE("a is uniform in the bound of its fan-in, b is zero", T,
                   MHR_TEST_STORAGE_TYPES) {
    const index_t in = 48;
    for (index_t heads : {1, 4, 16}) {
        CAPTURE(heads);
        guarded_inventory<T> inventory(heads, 8, in, 24, 32);
        initialise_inventory(5, inventory.view());
        // Kaiming-uniform with slope sqrt(5): 1 / sqrt(rows of a block of A).
        const double bound = 1 / std::sqrt(static_cast<double>(in / heads));
        check_uniform(inventory.a.view(), bound);
        // Each module, too: none is drawn from another distribution.
        for (index_t m = 0; m < 8; ++m) {
            const statistics s = statistics_of(inventory.a.view().slice(1, m));
            CHECK(s.variance == doctest::Approx(bound * bound / 3).epsilon(0.2));
        }
        for_each_position(inventory.b.view().extents(), [&](const position<4>& at) {
            CHECK(load<float>(element(inventory.b.view(), at)) == 0);
        });
        CHECK(inventory.a.intact());
        CHECK(inventory.b.intact());
    }
}

TEST_CASE("b is positive zero: hosts may compare it with memory that was cleared") {
    guarded_inventory<float> inventory(2, 2, 4, 3, 4);
    initialise_inventory(5, inventory.view());
    index_t negative = 0;
    for_each_position(inventory.b.view().extents(), [&](const position<4>& at) {
        negative += std::signbit(element(inventory.b.view(), at)) ? 1 : 0;
    });
    CHECK(negative == 0);
}

TEST_CASE_TEMPLATE("storage types round the same numbers", T, float, Eigen::bfloat16, Eigen::half) {
    guarded_inventory<double> wide(2, 3, 10, 4, 6);
    guarded_inventory<T> stored(2, 3, 10, 4, 6);
    initialise_inventory(3, wide.view());
    initialise_inventory(3, stored.view());
    CHECK(compare(stored.a.view(), wide.a.const_view(), within<float>(0.5, 0.5)));
}

TEST_CASE("seeds give different numbers, the same seed the same, in every layout") {
    guarded_inventory<float> want(2, 3, 10, 4, 6);
    initialise_inventory(3, want.view());
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_inventory<float> got(2, 3, 10, 4, 6, order);
        initialise_inventory(3, got.view());
        CHECK(compare_bitwise(got.a.view(), want.a.view()));
        CHECK(got.a.intact());
        CHECK(got.b.intact());
        initialise_inventory(4, got.view());
        CHECK_FALSE(compare_bitwise(got.a.view(), want.a.view()));
    }

    // mttl's order: a is [modules, heads, ..] in memory, b [modules, rank, heads, ..].
    guarded_buffer<float, 4> a({3, 2, 5, 4});
    guarded_buffer<float, 4> b({3, 4, 2, 3});
    initialise_inventory(3, lora_inventory<float>{a.view().transpose(0, 1),
                                                  b.view().transpose(1, 2).transpose(0, 1)});
    CHECK(compare_bitwise(a.view().transpose(0, 1), want.a.view()));
    CHECK(a.intact());
    CHECK(b.intact());
}

TEST_CASE("empty inventories are no error") {
    CHECK_NOTHROW(initialise_inventory(1, lora_inventory<float>{}));
    guarded_inventory<float> no_input(1, 2, 0, 3, 4);
    CHECK_NOTHROW(initialise_inventory(1, no_input.view()));
    CHECK(no_input.b(0, 1, 2, 3) == 0);
}

TEST_CASE("bad arguments are refused by name, with everything untouched") {
    guarded_inventory<float> inventory(2, 3, 10, 4, 6);
    const lora_inventory<float> good = inventory.view();
    const auto refused = [&](const char* argument, const lora_inventory<float>& bad) {
        CHECK(refuses(
            "initialise_inventory", argument, [&] { initialise_inventory(1, bad); }, inventory.a,
            inventory.b));
    };
    for (const auto& list : {bad_inputs(good.a), overlapping(good.a)})
        for (const auto& view : list)
            refused("inventory.a", {view, good.b});
    for (const auto& list : {bad_inputs(good.b), overlapping(good.b)})
        for (const auto& view : list)
            refused("inventory.b", {good.a, view});
    // Heads, modules and rank of b are those of a; its last extent is free.
    for (std::size_t axis : {0U, 1U, 2U})
        refused("inventory.b", {good.a, good.b.block(axis, 0, good.b.extent(axis) - 1)});
    refused("inventory.b", {good.a, {}});
    refused("inventory.b", {good.a.block(3, 0, 3), good.b});
}
