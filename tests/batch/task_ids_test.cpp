// These tests say what the plan takes for a task, for no task, and for an error; batch/task_ids.hpp
// has the rule.

#include <mhr/batch/batch_plan.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "support/error_check.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

template <class T>
tensor_view<const T, 1> list(const std::vector<T>& values) {
    return {values.data(), {static_cast<index_t>(values.size())}};
}

std::vector<std::int64_t> tasks_of(const batch_plan& plan) {
    std::vector<std::int64_t> tasks;
    for (index_t entry = 0; entry < plan.entries(); ++entry)
        tasks.push_back(plan.tasks()(entry));
    return tasks;
}

} // namespace

TEST_CASE_TEMPLATE("-1 in an unsigned type is refused, neither a task nor none", T, std::uint8_t,
                   std::uint16_t, std::uint32_t, std::uint64_t) {
    const T minus_one = static_cast<T>(-1);
    const std::vector<T> tasks{1, 0, minus_one}, one_row{1, 1, 1};
    const std::vector<std::int64_t> before{2, 1, 2};
    batch_plan plan;
    plan.assign_rows(list(before));
    CHECK(
        refuses("batch_plan::assign_rows", "task_of_row", [&] { plan.assign_rows(list(tasks)); }));
    CHECK(refuses("batch_plan::assign_sequences", "task_of_sequence",
                  [&] { plan.assign_sequences(list(tasks), list(one_row)); }));
    CHECK(refuses("batch_plan::assign_single_task", "task",
                  [&] { plan.assign_single_task(3, minus_one); }));
    CHECK(tasks_of(plan) == std::vector<std::int64_t>{1, 2});
    CHECK(plan.rows() == 3);
    // The number before it is a task, if an int64_t has it.
    const T next = static_cast<T>(minus_one - 1);
    if (sizeof(T) == 8) {
        CHECK(refuses("batch_plan::assign_single_task", "task",
                      [&] { plan.assign_single_task(3, next); }));
    } else {
        plan.assign_rows(list(std::vector<T>{next, 0}));
        CHECK(tasks_of(plan) == std::vector<std::int64_t>{0, static_cast<std::int64_t>(next)});
        plan.assign_single_task(2, next);
        CHECK(tasks_of(plan) == std::vector<std::int64_t>{static_cast<std::int64_t>(next)});
        CHECK(plan.base_rows().extent(0) == 0);
    }
}

TEST_CASE_TEMPLATE("-1 in every signed type is no task", T, std::int8_t, std::int16_t, std::int32_t,
                   std::int64_t) {
    constexpr T largest = std::numeric_limits<T>::max();
    batch_plan plan;
    plan.assign_rows(list(std::vector<T>{-1, largest, -1}));
    CHECK(tasks_of(plan) == std::vector<std::int64_t>{largest});
    CHECK(plan.base_rows().extent(0) == 2);
    plan.assign_single_task(2, T(-1));
    CHECK(plan.entries() == 0);
    CHECK(plan.base_rows().extent(0) == 2);
    CHECK(refuses("batch_plan::assign_single_task", "task",
                  [&] { plan.assign_single_task(2, std::numeric_limits<T>::min()); }));
}

TEST_CASE("numbers of rows that would become another number in an index are refused") {
    batch_plan plan;
    for (const std::uint64_t rows :
         {std::numeric_limits<std::uint64_t>::max(), std::uint64_t{1} << 63}) {
        const std::vector<std::uint64_t> lengths{rows};
        CHECK(refuses("batch_plan::assign_sequences", "rows_of_sequence", [&] {
            plan.assign_sequences(list(std::vector<std::int64_t>{0}), list(lengths));
        }));
    }
}

TEST_CASE("errors say what ids there are") {
    batch_plan plan;
    const std::vector<std::uint8_t> narrow{0, 255};
    CHECK_THROWS_WITH(plan.assign_rows(list(narrow)),
                      "batch_plan::assign_rows: task_of_row: expected ids from 0 to 254 (no task "
                      "is -1, in a signed type), got 255 at position 1");
    const std::vector<std::uint64_t> large{std::uint64_t{1} << 63};
    CHECK_THROWS_WITH(plan.assign_rows(list(large)),
                      "batch_plan::assign_rows: task_of_row: expected ids from 0 to "
                      "9223372036854775807 (no task is -1, in a signed type), got "
                      "9223372036854775808 at position 0");
    const std::vector<std::int16_t> negative{-2};
    CHECK_THROWS_WITH(plan.assign_rows(list(negative)),
                      "batch_plan::assign_rows: task_of_row: expected ids from 0 to 32767, or -1 "
                      "for no task, got -2 at position 0");
}
