#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <doctest/doctest.h>

#include <mhr/core/workspace.hpp>

using namespace mhr;

namespace {

template <class T, std::size_t Rank>
std::uintptr_t address_of(const tensor_view<T, Rank>& view) {
    return reinterpret_cast<std::uintptr_t>(view.data());
}

// Takes what a kernel might take: sizes that are no multiples of the alignment, and nothing at all.
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

TEST_CASE("sizes that overflow are told as the largest") {
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
    // This holds for an element type, too, and for rows that are padded.
    workspace of_type, of_rows;
    (void)of_type.take<2>(element_type::bf16, {largest, 8});
    (void)of_rows.take_rows<2>(element_type::f64, {8, largest});
    CHECK(of_type.used() == largest_size);
    CHECK(of_rows.used() == largest_size);
}

namespace {

// The two kinds of memory of one size, each from a workspace of its own.
template <class T, class Taken>
void check_taken(const Taken& taken, const tensor_view<T, 2>& view, std::size_t used,
                 std::size_t used_by_view) {
    CHECK(taken.type() == element_type_of_v<T>);
    CHECK(taken.extents() == view.extents());
    CHECK(taken.strides() == view.strides());
    CHECK(taken.data() == view.data());
    CHECK(used == used_by_view);
}

template <class T>
void check_type() {
    constexpr element_type type = element_type_of_v<T>;
    alignas(64) static std::array<std::byte, 1 << 16> memory;
    for (std::byte* start : {static_cast<std::byte*>(nullptr), memory.data() + 2})
        for (index_t rows : {0, 1, 3})
            for (index_t columns : {0, 1, 31, 32, 33, 256, 512, 513, 1024, 2048}) {
                CAPTURE(rows);
                CAPTURE(columns);
                const std::size_t bytes = start == nullptr ? 0 : memory.size() - 2;
                workspace typed(start, bytes), erased(start, bytes);
                for (int round = 0; round < 2; ++round) {
                    const auto view = typed.take<T, 2>({rows, columns});
                    const auto taken = erased.take<2>(type, {rows, columns});
                    check_taken(taken, view, erased.used(), typed.used());
                    const auto view_of_rows = typed.take_rows<T, 2>({rows, columns});
                    const auto taken_rows = erased.take_rows<2>(type, {rows, columns});
                    check_taken(taken_rows, view_of_rows, erased.used(), typed.used());
                    // Each row begins at a multiple of the alignment, and rows do not overlap.
                    const index_t pitch = taken_rows.stride(0) * index_t(sizeof(T));
                    CHECK(taken_rows.stride(1) == 1);
                    CHECK(taken_rows.stride(0) >= columns);
                    CHECK(pitch % index_t(workspace_alignment) == 0);
                    CHECK((pitch == 0 || pitch % 2048 != 0));
                    if (start == nullptr) CHECK(taken_rows.data() == nullptr);
                    if (start != nullptr && rows != 0 && columns != 0)
                        CHECK(reinterpret_cast<std::uintptr_t>(taken_rows.data()) %
                                  workspace_alignment ==
                              0);
                }
            }
}

} // namespace

TEST_CASE("elements of a type that is data lie as those of its C++ type") {
    check_type<float>();
    check_type<double>();
    check_type<bf16>();
    check_type<f16>();
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
