#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/batch/batch_plan.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/error_check.hpp"
#include "support/random_tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

template <class T>
tensor_view<const T, 1> list(const std::vector<T>& values) {
    return {values.data(), {static_cast<index_t>(values.size())}};
}

template <class T>
std::vector<T> values_of(const tensor_view<const T, 1>& view) {
    std::vector<T> values;
    for (index_t i = 0; i < view.extent(0); ++i)
        values.push_back(view(i));
    return values;
}

using ids = std::vector<std::int64_t>;
using numbers = std::vector<index_t>;
using ranges = batch_details::growing_list<batch_details::row_range>;
using batch_details::parts_of_batch;
using batch_details::rows_per_block;
using batch_details::rows_per_part;

index_t first_part_of(const batch_plan& plan, index_t entry) {
    return plan.data().first_part_of_entry[static_cast<std::size_t>(entry)];
}

/// Checks every accessor of a plan against the definition.
void check_plan(const batch_plan& plan, const ids& task_of_row) {
    std::map<std::int64_t, numbers> rows_of_task;
    numbers base_rows;
    for (std::size_t row = 0; row < task_of_row.size(); ++row)
        (task_of_row[row] == no_task ? base_rows : rows_of_task[task_of_row[row]])
            .push_back(static_cast<index_t>(row));

    CHECK(values_of(plan.base_rows()) == base_rows);
    CHECK(plan.rows() == static_cast<index_t>(task_of_row.size()));
    REQUIRE(plan.entries() == static_cast<index_t>(rows_of_task.size()));
    ids tasks;
    numbers order;
    for (const auto& [task, rows] : rows_of_task) {
        CHECK(values_of(plan.rows_of(static_cast<index_t>(tasks.size()))) == rows);
        tasks.push_back(task);
        order.insert(order.end(), rows.begin(), rows.end());
    }
    CHECK(values_of(plan.tasks()) == tasks);
    CHECK(values_of(plan.row_order()) == order);

    // Blocks and parts follow each other, cover everything, and are as large as may be.
    const auto check_ranges = [&](const ranges& all, index_t size) {
        index_t place = 0;
        for (const auto& range : all) {
            CHECK(range.first == place);
            const auto rows = plan.rows_of(range.entry);
            const index_t place_in_entry = place - (rows.data() - plan.row_order().data());
            CHECK(place_in_entry % size == 0);
            CHECK(range.count == std::min(size, rows.extent(0) - place_in_entry));
            CHECK(range.count > 0);
            place += range.count;
        }
        CHECK(place == static_cast<index_t>(order.size()));
    };
    check_ranges(plan.data().blocks, rows_per_block);
    // All parts of a plan have the same size, which is that of some blocks.
    const ranges& parts = plan.data().parts;
    index_t longest = 0;
    for (const auto& part : parts)
        longest = std::max(longest, part.count);
    const index_t size =
        std::max(rows_per_block, (longest + rows_per_block - 1) / rows_per_block * rows_per_block);
    CHECK(longest <= rows_per_part);
    check_ranges(parts, size);
    // Long enough that no batch, of whatever tasks, has many more parts than tasks.
    const index_t rows = static_cast<index_t>(order.size());
    const index_t many = std::max(parts_of_batch, rows / rows_per_part + 1);
    CHECK(static_cast<index_t>(parts.size()) <= plan.entries() + 2 * many);

    // The parts of an entry are those from its first to that of the next.
    CHECK(first_part_of(plan, 0) == 0);
    CHECK(first_part_of(plan, plan.entries()) == static_cast<index_t>(parts.size()));
    for (index_t entry = 0; entry < plan.entries(); ++entry) {
        CHECK(first_part_of(plan, entry) < first_part_of(plan, entry + 1));
        for (index_t p = first_part_of(plan, entry); p < first_part_of(plan, entry + 1); ++p)
            CHECK(parts[static_cast<std::size_t>(p)].entry == entry);
    }
}

} // namespace

TEST_CASE("an empty plan has nothing") {
    batch_plan plan;
    check_plan(plan, {});
    plan.assign_rows(tensor_view<const std::int64_t, 1>{});
    check_plan(plan, {});
    plan.assign_sequences(list(ids{}), list(numbers{}));
    check_plan(plan, {});
    plan.assign_single_task(0);
    check_plan(plan, {});
}

TEST_CASE("rows are grouped by task") {
    batch_plan plan;
    const ids tasks{7, no_task, 2, 7, 2, 2, no_task, 0};
    plan.assign_rows(list(tasks));
    CHECK(plan.rows() == 8);
    CHECK(values_of(plan.tasks()) == ids{0, 2, 7});
    CHECK(values_of(plan.row_order()) == numbers{7, 2, 4, 5, 0, 3});
    CHECK(values_of(plan.rows_of(1)) == numbers{2, 4, 5});
    CHECK(values_of(plan.base_rows()) == numbers{1, 6});
    REQUIRE(plan.data().blocks.size() == 3);
    CHECK(plan.data().blocks[2].entry == 2);
    CHECK(plan.data().blocks[2].first == 4);
    CHECK(plan.data().blocks[2].count == 2);
    check_plan(plan, tasks);
    // Rows of no task only.
    plan.assign_rows(list(ids{no_task, no_task}));
    check_plan(plan, {no_task, no_task});
}

TEST_CASE("sequences are so many rows of their tasks") {
    batch_plan plan;
    plan.assign_sequences(list(ids{4, no_task, 1, 4, 9}), list(numbers{2, 1, 3, 1, 0}));
    check_plan(plan, {4, 4, no_task, 1, 1, 1, 4}); // task 9 has no rows, and so no entry
    plan.assign_single_task(40, 3);
    check_plan(plan, ids(40, 3));
    plan.assign_single_task(5);
    check_plan(plan, ids(5, 0));
    plan.assign_single_task(5, no_task);
    check_plan(plan, ids(5, no_task));
}

TEST_CASE("plans of random batches") {
    random_source random(23);
    batch_plan rows, sequences;
    for (int round = 0; round < 60; ++round) {
        CAPTURE(round);
        const index_t tasks = 1 + random.integer(5);
        ids of_row, of_sequence;
        numbers lengths;
        for (index_t s = random.integer(9); s-- > 0;) {
            of_sequence.push_back(random.integer(tasks + 1) - 1);
            lengths.push_back(random.integer(37));
            of_row.insert(of_row.end(), static_cast<std::size_t>(lengths.back()),
                          of_sequence.back());
        }
        sequences.assign_sequences(list(of_sequence), list(lengths));
        check_plan(sequences, of_row);
        std::vector<index_t> shuffled = random.permutation(static_cast<index_t>(of_row.size()));
        ids in_disorder;
        for (index_t row : shuffled)
            in_disorder.push_back(of_row[static_cast<std::size_t>(row)]);
        rows.assign_rows(list(in_disorder));
        check_plan(rows, in_disorder);
    }
}

TEST_CASE("a batch of one task is cut into several parts, however few rows it has") {
    batch_plan plan;
    for (index_t rows = 1; rows < 5000; rows += rows < 1000 ? 1 : 97) {
        CAPTURE(rows);
        plan.assign_single_task(rows);
        const auto blocks = static_cast<index_t>(plan.data().blocks.size());
        const auto parts = static_cast<index_t>(plan.data().parts.size());
        CHECK(2 * parts >= std::min(parts_of_batch, blocks));
        CHECK(parts <= blocks);
        if (rows % 31 == 0) check_plan(plan, ids(static_cast<std::size_t>(rows), 0));
    }
    // Rows of no task do not count.
    plan.assign_single_task(1000);
    const std::size_t alone = plan.data().parts.size();
    plan.assign_sequences(list(ids{no_task, 3}), list(numbers{5000, 1000}));
    CHECK(plan.data().parts.size() == alone);
}

TEST_CASE("parts of tasks of very different sizes") {
    batch_plan plan;
    const ids tasks{5, 1, 9, no_task, 2};
    const numbers lengths{1, 700, 30, 400, 2};
    plan.assign_sequences(list(tasks), list(lengths));
    ids task_of_row;
    for (std::size_t s = 0; s < tasks.size(); ++s)
        task_of_row.insert(task_of_row.end(), static_cast<std::size_t>(lengths[s]), tasks[s]);
    check_plan(plan, task_of_row);
    // A task of few rows is one part.
    CHECK(first_part_of(plan, 2) - first_part_of(plan, 1) == 1);
    CHECK(first_part_of(plan, 3) - first_part_of(plan, 2) == 1);
    CHECK(first_part_of(plan, 1) > 1);
}

TEST_CASE_TEMPLATE("ids and counts of every integer type, in every stride", T, std::int8_t,
                   std::uint8_t, std::int32_t, std::uint32_t, std::int64_t, std::uint64_t) {
    const std::vector<T> values{1, 9, 100, 9, 1, 9};
    batch_plan plan;
    plan.assign_rows(list(values));
    check_plan(plan, {1, 9, 100, 9, 1, 9});
    plan.assign_rows(tensor_view<const T, 1>(values.data(), {3}, {2}));
    check_plan(plan, {1, 100, 1});
    plan.assign_rows(tensor_view<const T, 1>(values.data() + 5, {6}, {-1}));
    check_plan(plan, {9, 1, 9, 100, 9, 1});
    plan.assign_rows(tensor_view<const T, 1>(values.data() + 2, {20}, {0}));
    check_plan(plan, ids(20, 100));
    plan.assign_sequences(tensor_view<const T, 1>(values.data(), {2}),
                          tensor_view<const T, 1>(values.data(), {2}, {0}));
    check_plan(plan, {1, 9});
}

TEST_CASE("the largest label") {
    const std::int64_t largest = std::numeric_limits<std::int64_t>::max();
    batch_plan plan;
    plan.assign_rows(list(ids{largest, 0, largest}));
    check_plan(plan, {largest, 0, largest});
}

TEST_CASE("a plan allocates only for a batch that is larger than all before") {
    batch_plan plan;
    ids one_task(64, 3), many_tasks;
    for (std::int64_t row = 0; row < 64; ++row)
        many_tasks.push_back(row);
    plan.assign_rows(list(one_task));
    CHECK(allocations_of([&] { plan.assign_rows(list(one_task)); }) == 0);
    CHECK(allocations_of([&] { plan.assign_single_task(64); }) == 0);
    CHECK(allocations_of([&] { plan.assign_single_task(17); }) == 0);
    // There are as many rows, although of more tasks.
    CHECK(allocations_of([&] { plan.assign_rows(list(many_tasks)); }) == 0);
    check_plan(plan, many_tasks);
    // There are as many rows of no task, and of tasks after those.
    CHECK(allocations_of([&] { plan.assign_single_task(64, no_task); }) == 0);
    check_plan(plan, ids(64, no_task));
    batch_plan other;
    other.assign_single_task(64, no_task);
    CHECK(allocations_of([&] { other.assign_rows(list(many_tasks)); }) == 0);
    check_plan(other, many_tasks);
    const ids two_tasks{no_task, 2};
    const numbers lengths{40, 24};
    CHECK(allocations_of([&] { other.assign_sequences(list(two_tasks), list(lengths)); }) == 0);
    CHECK(other.base_rows().extent(0) == 40);
}

TEST_CASE("a plan can be copied and moved") {
    batch_plan plan;
    plan.assign_rows(list(ids{2, 1, 2}));
    const batch_plan copy = plan;
    batch_plan assigned;
    assigned = copy;
    plan.assign_single_task(1);
    check_plan(copy, {2, 1, 2});
    check_plan(assigned, {2, 1, 2});
    batch_plan moved = std::move(assigned);
    check_plan(moved, {2, 1, 2});
    assigned = std::move(moved);
    check_plan(assigned, {2, 1, 2});
    moved.assign_rows(list(ids{4})); // what was moved from may be used again
    check_plan(moved, {4});
    check_plan(assigned, {2, 1, 2});
}

TEST_CASE("bad input of a plan leaves it as it was") {
    const ids before{2, 1, 2};
    batch_plan plan;
    plan.assign_rows(list(before));
    const ids tasks{0, 1, 2};
    const numbers lengths{1, 2, 3};
    constexpr const char* rows = "batch_plan::assign_rows";
    constexpr const char* sequences = "batch_plan::assign_sequences";

    for (const auto& bad : bad_as_input(list(tasks), {0})) {
        CAPTURE(bad.what);
        const auto view = bad.view;
        CHECK(refuses(rows, "task_of_row", [&] { plan.assign_rows(view); }));
        CHECK(refuses(sequences, "task_of_sequence",
                      [&] { plan.assign_sequences(view, list(lengths)); }));
    }
    for (const auto& bad : bad_as_input(list(lengths))) {
        CAPTURE(bad.what);
        const auto view = bad.view;
        CHECK(refuses(sequences, "rows_of_sequence",
                      [&] { plan.assign_sequences(list(tasks), view); }));
    }
    for (const ids& bad : {ids{-2, 0, 0}, ids{0, 0, std::numeric_limits<std::int64_t>::min()}}) {
        CHECK(refuses(rows, "task_of_row", [&] { plan.assign_rows(list(bad)); }));
        CHECK(refuses(sequences, "task_of_sequence",
                      [&] { plan.assign_sequences(list(bad), list(lengths)); }));
        CHECK(refuses(sequences, "rows_of_sequence",
                      [&] { plan.assign_sequences(list(tasks), list(bad)); }));
    }
    check_plan(plan, before);
}

TEST_CASE("messages say what is wrong with tasks and rows") {
    batch_plan plan;
    CHECK(error_of([&] { plan.assign_single_task(-1); }) ==
          "batch_plan::assign_single_task: rows: expected 0 or more, got -1");
    CHECK(error_of([&] {
              plan.assign_sequences(list(ids{1, 2}), list(numbers{3, -4}));
          }) ==
          "batch_plan::assign_sequences: rows_of_sequence: expected numbers of 0 and more, whose "
          "sum fits an index, got -4 at position 1");
    CHECK(error_of([&] {
              plan.assign_sequences(list(ids{1, 2}), list(numbers{3}));
          }) == "batch_plan::assign_sequences: rows_of_sequence: expected extents [2], got [1]");
    check_plan(plan, {});
}

TEST_CASE("assign_single_task names itself in errors") {
    batch_plan plan;
    CHECK(refuses("batch_plan::assign_single_task", "rows", [&] { plan.assign_single_task(-1); }));
    CHECK(
        refuses("batch_plan::assign_single_task", "task", [&] { plan.assign_single_task(1, -2); }));
}

TEST_CASE("numbers of rows that do not fit an index are refused") {
    const index_t largest = std::numeric_limits<index_t>::max();
    batch_plan plan;
    CHECK(refuses("batch_plan::assign_sequences", "rows_of_sequence", [&] {
        plan.assign_sequences(list(ids{no_task, no_task}), list(numbers{largest, 1}));
    }));
    // Those that would become another number in an index.
    for (const std::uint64_t rows :
         {std::numeric_limits<std::uint64_t>::max(), static_cast<std::uint64_t>(largest) + 1}) {
        const std::vector<std::uint64_t> lengths{rows};
        CHECK(refuses("batch_plan::assign_sequences", "rows_of_sequence",
                      [&] { plan.assign_sequences(list(ids{0}), list(lengths)); }));
    }
}

TEST_CASE_TEMPLATE("-1 in an unsigned type is refused, neither a task nor none", T, std::uint8_t,
                   std::uint16_t, std::uint32_t, std::uint64_t) {
    const T minus_one = static_cast<T>(-1);
    const std::vector<T> tasks{1, 0, minus_one}, one_row{1, 1, 1};
    const ids before{2, 1, 2};
    batch_plan plan;
    plan.assign_rows(list(before));
    CHECK(
        refuses("batch_plan::assign_rows", "task_of_row", [&] { plan.assign_rows(list(tasks)); }));
    CHECK(refuses("batch_plan::assign_sequences", "task_of_sequence",
                  [&] { plan.assign_sequences(list(tasks), list(one_row)); }));
    CHECK(refuses("batch_plan::assign_single_task", "task",
                  [&] { plan.assign_single_task(3, minus_one); }));
    check_plan(plan, before);
    // The number before it is a task, if an int64_t has it.
    const T next = static_cast<T>(minus_one - 1);
    if (sizeof(T) == 8) {
        CHECK(refuses("batch_plan::assign_single_task", "task",
                      [&] { plan.assign_single_task(3, next); }));
    } else {
        plan.assign_rows(list(std::vector<T>{next, 0}));
        check_plan(plan, {static_cast<std::int64_t>(next), 0});
        plan.assign_single_task(2, next);
        check_plan(plan, ids(2, static_cast<std::int64_t>(next)));
    }
}

TEST_CASE_TEMPLATE("-1 in every signed type is no task", T, std::int8_t, std::int16_t, std::int32_t,
                   std::int64_t) {
    batch_plan plan;
    plan.assign_rows(list(std::vector<T>{-1, std::numeric_limits<T>::max(), -1}));
    check_plan(plan, {no_task, std::numeric_limits<T>::max(), no_task});
    plan.assign_single_task(2, T(-1));
    check_plan(plan, {no_task, no_task});
    CHECK(refuses("batch_plan::assign_single_task", "task",
                  [&] { plan.assign_single_task(2, std::numeric_limits<T>::min()); }));
}

TEST_CASE("errors say what ids there are") {
    batch_plan plan;
    const std::vector<std::uint8_t> small{0, 255};
    CHECK(error_of([&] { plan.assign_rows(list(small)); }) ==
          "batch_plan::assign_rows: task_of_row: expected ids from 0 to 254 (no task "
          "is -1, in a signed type), got 255 at position 1");
    const std::vector<std::uint64_t> large{std::uint64_t{1} << 63};
    CHECK(error_of([&] { plan.assign_rows(list(large)); }) ==
          "batch_plan::assign_rows: task_of_row: expected ids from 0 to "
          "9223372036854775807 (no task is -1, in a signed type), got "
          "9223372036854775808 at position 0");
    const std::vector<std::int16_t> negative{-2};
    CHECK(error_of([&] { plan.assign_rows(list(negative)); }) ==
          "batch_plan::assign_rows: task_of_row: expected ids from 0 to 32767, or -1 "
          "for no task, got -2 at position 0");
}
