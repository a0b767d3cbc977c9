#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <doctest/doctest.h>

#include <mhr/core/workspace.hpp>

#include "support/error_check.hpp"

using namespace mhr;

namespace {

template <class T, std::size_t Rank>
std::uintptr_t address_of(const tensor_view<T, Rank>& view) {
    return reinterpret_cast<std::uintptr_t>(view.data());
}

// What a kernel might take: sizes that are no multiples of the alignment, and nothing at all.
template <class F>
void take_several(workspace& scratch, F&& check) {
    check(scratch.take<float, 2>({3, 5}));
    check(scratch.take<char, 1>({1}));
    check(scratch.take<double, 3>({2, 0, 4}));
    check(scratch.take<double, 1>({8}));
    check(scratch.take<std::int16_t, 1>({33}));
}

} // namespace

TEST_CASE("what is taken is aligned, apart, inside the memory and as large as was counted") {
    workspace meter;
    take_several(meter, [](const auto& view) { CHECK(view.data() == nullptr); });

    alignas(64) std::array<std::byte, 2048> memory{};
    for (std::size_t offset = 0; offset < 66; ++offset) {
        CAPTURE(offset);
        std::byte* const start = memory.data() + offset;
        workspace scratch(start, meter.used());
        std::uintptr_t end = reinterpret_cast<std::uintptr_t>(start);
        take_several(scratch, [&](const auto& view) {
            CHECK(address_of(view) % workspace_alignment == 0);
            CHECK(address_of(view) >= end);
            CHECK(view.is_contiguous());
            end = address_of(view) + static_cast<std::size_t>(view.size()) * sizeof(view.data()[0]);
        });
        CHECK(end <= reinterpret_cast<std::uintptr_t>(start) + meter.used());
        CHECK(scratch.used() == meter.used());
        CHECK(scratch.available() == 0);
    }
}

TEST_CASE("extents are kept") {
    workspace meter;
    const auto view = meter.take<float, 3>({2, 3, 4});
    CHECK(view.extents() == std::array<index_t, 3>{2, 3, 4});
    CHECK(meter.used() == 24 * sizeof(float) + workspace_alignment);
}

TEST_CASE("sizes that overflow are told as the largest, and never fit") {
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    constexpr std::size_t largest_size = std::numeric_limits<std::size_t>::max();
    workspace product;
    (void)product.take<double, 2>({largest, 8});
    workspace sum;
    (void)sum.take<char, 1>({largest});
    (void)sum.take<char, 1>({largest});
    (void)sum.take<char, 1>({1});
    CHECK(product.used() == largest_size);
    CHECK(sum.used() == largest_size);
    std::byte memory[64];
    CHECK(test::refuses("f", "workspace", [&] {
        require_workspace("f", workspace(memory, sizeof memory), largest_size);
    }));
}

TEST_CASE("one byte less is refused, and says how much there is") {
    std::byte memory[256];
    const workspace scratch(memory, sizeof memory);
    CHECK(test::error_of([&] { require_workspace("f", scratch, 0); }).empty());
    CHECK(test::error_of([&] { require_workspace("f", scratch, 256); }).empty());
    CHECK(test::refuses("f", "workspace", [&] { require_workspace("f", scratch, 257); }));
    CHECK(test::error_of([&] { require_workspace("f", scratch, 257); }) ==
          "f: workspace: expected at least 257 bytes, got 256");
    CHECK(test::error_of([] { require_workspace("f", workspace(), 1); }) ==
          "f: workspace: expected at least 1 bytes, got 0");
}

TEST_CASE("a copy goes its own way") {
    std::byte memory[512];
    workspace scratch(memory, sizeof memory);
    workspace copy = scratch;
    const auto first = scratch.take<int, 1>({4});
    CHECK(copy.available() == 512);
    CHECK(address_of(copy.take<int, 1>({4})) == address_of(first));
    CHECK(address_of(scratch.take<int, 1>({4})) > address_of(first));
}

TEST_CASE("an owned workspace grows when told to, and never shrinks") {
    owned_workspace owner;
    CHECK(workspace(owner).available() == 0);
    owner.reserve(100);
    CHECK(workspace(owner).available() == 100);
    owner.reserve(10);
    CHECK(workspace(owner).available() == 100);
    workspace scratch = owner;
    const auto bytes = scratch.take<unsigned char, 1>({36});
    for (index_t i = 0; i < 36; ++i)
        bytes(i) = 1;
    CHECK(scratch.available() == 0);
    CHECK(workspace(owner).available() == 100); // a fresh one each time
    CHECK(workspace(owned_workspace(7)).available() == 7);
}
