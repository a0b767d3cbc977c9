#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/batch/growing_list.hpp>

#include "support/allocation_counter.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

struct pair_of_numbers {
    std::int64_t a;
    char b;
};

using numbers = batch_details::growing_list<int>;

numbers list_of(int count) {
    numbers list;
    for (int i = 0; i < count; ++i)
        list.push_back(i);
    return list;
}

// The elements, seen in every way.
std::vector<int> values_of(const numbers& list) {
    const std::vector<int> values(list.begin(), list.end());
    CHECK(list.size() == values.size());
    CHECK(list.empty() == values.empty());
    CHECK(list.data() == list.begin());
    for (std::size_t i = 0; i < values.size(); ++i)
        CHECK(list[i] == values[i]);
    if (!values.empty()) CHECK(list.back() == values.back());
    return values;
}

std::vector<int> counted(int count) {
    std::vector<int> values;
    for (int i = 0; i < count; ++i)
        values.push_back(i);
    return values;
}

} // namespace

static_assert(std::is_nothrow_default_constructible_v<numbers>);
static_assert(std::is_nothrow_move_constructible_v<numbers>);
static_assert(std::is_nothrow_move_assignable_v<numbers>);
static_assert(std::is_copy_constructible_v<numbers> && std::is_copy_assignable_v<numbers>);
static_assert(!std::is_convertible_v<int, numbers>);

TEST_CASE("a list has what was put into it") {
    CHECK(values_of(numbers()).empty());
    CHECK(values_of(numbers(7)) == std::vector<int>{7});
    for (int count : {1, 2, 3, 4, 5, 100})
        CHECK(values_of(list_of(count)) == counted(count));
    numbers list = list_of(5);
    for (int& value : list)
        value += 10;
    CHECK(values_of(list) == std::vector<int>{10, 11, 12, 13, 14});
    list.clear();
    CHECK(values_of(list).empty());
    list.push_back(3);
    CHECK(values_of(list) == std::vector<int>{3});

    batch_details::growing_list<pair_of_numbers> pairs;
    for (std::int64_t i = 0; i < 9; ++i)
        pairs.push_back({i, 'x'});
    CHECK(pairs[8].a == 8);
    CHECK(pairs.back().b == 'x');
}

TEST_CASE("an element of the list itself may be added, even when the memory moves") {
    numbers list(42);
    for (int i = 0; i < 100; ++i)
        list.push_back(list[0]);
    CHECK(values_of(list) == std::vector<int>(101, 42));
}

TEST_CASE("a list allocates only when it becomes longer than ever before") {
    CHECK(allocations_of([] { const numbers empty; }) == 0);
    numbers list;
    list.reserve(0);
    CHECK(list.data() == nullptr);
    CHECK(allocations_of([&] { list.reserve(50); }) == 1);
    CHECK(allocations_of([&] {
              for (int round = 0; round < 3; ++round) {
                  list.clear();
                  list.reserve(50);
                  list.reserve(20);
                  for (int i = 0; i < 50; ++i)
                      list.push_back(i);
              }
          }) == 0);
    CHECK(values_of(list) == counted(50));
    CHECK(allocations_of([&] { list.push_back(50); }) == 1);
    CHECK(values_of(list) == counted(51));
    // The elements stay when more room is made.
    list.reserve(1000);
    CHECK(values_of(list) == counted(51));
    // Growth by ones takes as many allocations as there are doublings.
    CHECK(allocations_of([] { (void)list_of(1000); }) == 11);
}

TEST_CASE("copies are apart from what they were copied from") {
    numbers list = list_of(20);
    numbers copy = list;
    CHECK(copy.data() != list.data());
    list.clear();
    list.push_back(-1);
    CHECK(values_of(copy) == counted(20));
    CHECK(values_of(list) == std::vector<int>{-1});

    // Room that is there is used.
    numbers target = list_of(30);
    CHECK(allocations_of([&] { target = copy; }) == 0);
    CHECK(values_of(target) == counted(20));
    CHECK(allocations_of([&] { list = list_of(50), target = list; }) > 0);
    CHECK(values_of(target) == counted(50));
    const numbers& itself = target;
    target = itself;
    CHECK(values_of(target) == counted(50));
    target = numbers();
    copy = target;
    CHECK(values_of(copy).empty());
    const numbers of_none = copy;
    CHECK(of_none.data() == nullptr);
}

TEST_CASE("what was moved from is empty and may be used again") {
    numbers list = list_of(20);
    const int* const memory = list.data();
    numbers moved;
    CHECK(allocations_of([&] { moved = std::move(list); }) == 0);
    CHECK(moved.data() == memory);
    CHECK(values_of(moved) == counted(20));
    CHECK(values_of(list).empty()); // NOLINT: that it is empty is documented
    list.push_back(5);
    CHECK(values_of(list) == std::vector<int>{5});
    numbers again(std::move(moved));
    CHECK(again.data() == memory);
    again = std::move(list);
    CHECK(values_of(again) == std::vector<int>{5});
    CHECK(list.data() == nullptr); // NOLINT
    numbers& itself = again;
    again = std::move(itself);
    CHECK(values_of(again) == std::vector<int>{5});
}
