#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include <mhr/batch/growing_list.hpp>
#include <mhr/batch/task_ids.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// The batch plan: which rows of a batch belong to which task. It is made once for a batch and
/// shared by all layers and by forward and backward.

namespace mhr {

namespace batch_details {

/// Rows of one entry: consecutive places of the order of rows.
struct row_range {
    index_t entry; ///< whose rows they are
    index_t first; ///< place of the first one
    index_t count; ///< how many there are
};

/// A row and its task. (A type of ours, so that the sort of it is, too: MHR_ISA of config.hpp.)
struct row_of_task {
    std::int64_t task;
    index_t row;
};

/// The data of a plan.
struct plan_data {
    index_t rows = 0;
    growing_list<std::int64_t> tasks{};
    growing_list<index_t> first_of_entry{0};
    growing_list<index_t> first_part_of_entry{0};
    growing_list<index_t> row_order{};
    growing_list<index_t> base_rows{};
    growing_list<row_range> blocks{}, parts{};
    growing_list<row_of_task> sorted{}; // kept for its capacity

    // These are what the compiler would write, but without a symbol (see MHR_INLINE in config.hpp).
    MHR_INLINE plan_data() = default;
    MHR_INLINE plan_data(const plan_data&) = default;
    MHR_INLINE plan_data(plan_data&&) noexcept = default;
    MHR_INLINE plan_data& operator=(const plan_data&) = default;
    MHR_INLINE plan_data& operator=(plan_data&&) noexcept = default;
    MHR_INLINE ~plan_data() = default;
};

/// Largest count of a block: few enough that a block of rows stays in L2 and the blocks of a small
/// batch keep several threads busy, enough to reuse what is read of the adapter.
inline constexpr index_t rows_per_block = 24;

/// Largest count of a part.
inline constexpr index_t rows_per_part = 264;

/// How many parts a batch of one task is cut into: at least half as many (if it has so many
/// blocks), and no more until parts are longest.
inline constexpr index_t parts_of_batch = 8;

inline namespace MHR_ISA {
void start(plan_data& plan, index_t rows);
void append(plan_data& plan, std::int64_t task, index_t first_row, index_t count);
void group(plan_data& plan);
template <class Id>
void assign_rows(plan_data& plan, tensor_view<Id, 1> task_of_row);
template <class Id, class Count>
void assign_sequences(plan_data& plan, tensor_view<Id, 1> task_of_sequence,
                      tensor_view<Count, 1> rows_of_sequence);
template <class Id>
void assign_single_task(plan_data& plan, index_t rows, Id task);
} // namespace MHR_ISA

} // namespace batch_details

/// Rows of one batch, grouped by task.
///
/// The distinct tasks are in ascending order; *entry* g is the position of a task in that order,
/// and the first index of everything that exists once for each distinct task (weights, mixed
/// adapters). A task id is a label: a host that draws noise for every sequence, as PEFT does,
/// numbers its sequences 0, 1, ... and gives the router the list of their tasks.
///
/// The results of the adapters are *determined* to the last bit, whatever the number of threads and
/// the executor:
///   - The outputs of a row, its d_x and d_hidden depend on the row and its task alone: they are
///     the same in every batch, in every order, and for the row alone. So do a task's weights and
///     mixed adapter depend on that task alone.
///   - Gradients that are sums over rows (of weights, scales, adapters, modules) take the rows of a
///     task in their order in the batch, and tasks in the order of their ids. Rows of different
///     tasks may change places, and rows of no task come and go, without a change of any bit; rows
///     of one task may not.
///   - For the sum over the rows of one task it does not matter what other tasks there are; but
///     LoRA's backward cuts it into parts, of 24 rows in batches of up to 192 rows that have a
///     task, and of more in larger ones. (LoRA with mixed outputs and (IA)3 do not cut it.)
///   - Nor do the addresses, strides and memory orders of arguments matter, but for one thing: the
///     sums of the gradient of routing weights run along the memory of the inventory.
///
/// The assign functions allocate only when a batch is larger than all before; nothing else does.
class batch_plan {
  public:
    /// Makes a plan of no rows.
    MHR_INLINE batch_plan() = default;
    /// Plans are copied and moved as what they hold; one that was moved from may only be assigned
    /// to, or destroyed.
    /// @{
    MHR_INLINE batch_plan(const batch_plan&) = default;
    MHR_INLINE batch_plan(batch_plan&&) noexcept = default;
    MHR_INLINE batch_plan& operator=(const batch_plan&) = default;
    MHR_INLINE batch_plan& operator=(batch_plan&&) noexcept = default;
    MHR_INLINE ~batch_plan() = default;
    /// @}

    /// Groups rows by `task_of_row` [rows]: ids of any integer type, or no_task. What an id
    /// may be is told by batch/task_ids.hpp; other ids are refused.
    template <class Id>
    MHR_INLINE void assign_rows(tensor_view<Id, 1> task_of_row) {
        batch_details::assign_rows(data_, task_of_row);
    }

    /// Groups the rows of sequences that follow each other in the batch: sequence s has
    /// `rows_of_sequence(s)` rows of the task `task_of_sequence(s)`; both are [sequences]. Ids are
    /// refused as by `assign_rows`; so are numbers below 0, or whose sum does not fit an index.
    template <class Id, class Count>
    MHR_INLINE void assign_sequences(tensor_view<Id, 1> task_of_sequence,
                                     tensor_view<Count, 1> rows_of_sequence) {
        batch_details::assign_sequences(data_, task_of_sequence, rows_of_sequence);
    }

    /// Gives all rows one task, for a single sequence or a plain adapter. Fewer than 0 rows and ids
    /// that `assign_rows` refuses are refused.
    template <class Id = std::int64_t>
    MHR_INLINE void assign_single_task(index_t rows, Id task = 0) {
        batch_details::assign_single_task(data_, rows, task);
    }

    /// Returns the number of rows of the batch, those of no task included.
    [[nodiscard]] MHR_INLINE index_t rows() const noexcept { return data_.rows; }

    /// The distinct tasks, ascending: what the router is asked for. They are valid until the next
    /// assign.
    [[nodiscard]] MHR_INLINE tensor_view<const std::int64_t, 1> tasks() const noexcept {
        return {data_.tasks.data(), {entries()}};
    }

    /// Returns the number of distinct tasks.
    [[nodiscard]] MHR_INLINE index_t entries() const noexcept {
        return static_cast<index_t>(data_.tasks.size());
    }

    /// The rows that have a task, ordered by entry and then by row.
    [[nodiscard]] MHR_INLINE tensor_view<const index_t, 1> row_order() const noexcept {
        return {data_.row_order.data(), {static_cast<index_t>(data_.row_order.size())}};
    }

    /// Returns the rows of an entry, ascending.
    [[nodiscard]] MHR_INLINE tensor_view<const index_t, 1> rows_of(index_t entry) const noexcept {
        const index_t first = data_.first_of_entry[static_cast<std::size_t>(entry)];
        const index_t last = data_.first_of_entry[static_cast<std::size_t>(entry) + 1];
        return {data_.row_order.data() + first, {last - first}};
    }

    /// The rows of no task, ascending: all that `row_order()` lacks.
    [[nodiscard]] MHR_INLINE tensor_view<const index_t, 1> base_rows() const noexcept {
        return {data_.base_rows.data(), {static_cast<index_t>(data_.base_rows.size())}};
    }

    /// How the rows are cut for the kernels: a matter of the library's own, which may change.
    [[nodiscard]] MHR_INLINE const batch_details::plan_data& data() const noexcept { return data_; }

  private:
    batch_details::plan_data data_{};
};

namespace batch_details {
inline namespace MHR_ISA {

template <class Id>
void check_tasks(argument_checks& checks, const char* argument, tensor_view<Id, 1> tasks) {
    using V = std::remove_const_t<Id>;
    constexpr std::int64_t largest = task_details::largest_task<V>();
    checks.numbers(argument, tasks, {any_extent});
    for (index_t i = 0; checks.passed() && i < tasks.extent(0); ++i)
        checks.expect(
            task_details::is_task<V>(tasks(i)) || task_details::is_no_task<V>(tasks(i)), argument,
            [] {
                return "ids from 0 to " + std::to_string(largest) +
                       (std::is_signed_v<V> ? ", or -1 for no task"
                                            : " (no task is -1, in a signed type)");
            },
            [&] { return task_details::task_id_text(tasks, i); });
}

template <class Id>
void assign_rows(plan_data& plan, tensor_view<Id, 1> task_of_row) {
    argument_checks checks("batch_plan::assign_rows");
    check_tasks(checks, "task_of_row", task_of_row);
    checks.raise();
    start(plan, task_of_row.extent(0));
    for (index_t row = 0; row < task_of_row.extent(0); ++row)
        append(plan, static_cast<std::int64_t>(task_of_row(row)), row, 1);
    group(plan);
}

template <class Id, class Count>
void assign_sequences(plan_data& plan, tensor_view<Id, 1> task_of_sequence,
                      tensor_view<Count, 1> rows_of_sequence) {
    static_assert(std::is_integral_v<std::remove_const_t<Count>>,
                  "mhr: numbers of rows are integers");
    argument_checks checks("batch_plan::assign_sequences");
    check_tasks(checks, "task_of_sequence", task_of_sequence);
    checks.numbers("rows_of_sequence", rows_of_sequence, task_of_sequence.extents());
    index_t rows = 0;
    for (index_t s = 0; checks.passed() && s < rows_of_sequence.extent(0); ++s) {
        // A number that the index type cannot hold becomes another one.
        const auto count = static_cast<index_t>(rows_of_sequence(s));
        checks.expect(static_cast<std::remove_const_t<Count>>(count) == rows_of_sequence(s) &&
                          count >= 0 && count <= (std::numeric_limits<index_t>::max)() - rows,
                      "rows_of_sequence", "numbers of 0 and more, whose sum fits an index",
                      joined(rows_of_sequence(s), " at position ", s));
        if (checks.passed()) rows += count;
    }
    checks.raise();
    start(plan, rows);
    index_t row = 0;
    for (index_t s = 0; s < task_of_sequence.extent(0); ++s) {
        const auto count = static_cast<index_t>(rows_of_sequence(s));
        append(plan, static_cast<std::int64_t>(task_of_sequence(s)), row, count);
        row += count;
    }
    group(plan);
}

template <class Id>
void assign_single_task(plan_data& plan, index_t rows, Id task) {
    argument_checks checks("batch_plan::assign_single_task");
    checks.expect(rows >= 0, "rows", "0 or more", rows);
    check_tasks(checks, "task", tensor_view<const Id, 1>(&task, {1}));
    checks.raise();
    start(plan, rows);
    append(plan, static_cast<std::int64_t>(task), 0, rows);
    group(plan);
}

inline void start(plan_data& plan, index_t rows) {
    plan.rows = rows;
    // Room for the worst case, so that no later batch of this size allocates.
    const auto empty = [size = static_cast<std::size_t>(rows)](auto& list, std::size_t more = 0) {
        list.clear();
        list.reserve(size + more);
    };
    empty(plan.tasks);
    empty(plan.row_order);
    empty(plan.base_rows);
    empty(plan.blocks);
    empty(plan.parts);
    empty(plan.sorted);
    empty(plan.first_of_entry, 1);
    empty(plan.first_part_of_entry, 1);
}

inline void append(plan_data& plan, std::int64_t task, index_t first_row, index_t count) {
    for (index_t row = first_row; row < first_row + count; ++row)
        if (task == no_task)
            plan.base_rows.push_back(row);
        else
            plan.sorted.push_back({task, row});
}

/// Cuts the rows of an entry into ranges of `size` rows.
inline void cut_entry(const plan_data& plan, index_t entry, index_t size,
                      growing_list<row_range>& ranges) {
    const index_t last = plan.first_of_entry[static_cast<std::size_t>(entry) + 1];
    for (index_t first = plan.first_of_entry[static_cast<std::size_t>(entry)]; first < last;
         first += size)
        ranges.push_back({entry, first, (std::min)(size, last - first)});
}

/// Cuts the order of rows into blocks and parts. It depends on the batch alone: neither on the
/// host's threads nor on a layer.
inline void cut(plan_data& plan) {
    const auto rows = static_cast<index_t>(plan.row_order.size());
    const index_t share = (rows + parts_of_batch - 1) / parts_of_batch;
    const index_t blocks_of_share = (share + rows_per_block - 1) / rows_per_block;
    const index_t rows_of_part = (std::min)(rows_per_part, blocks_of_share * rows_per_block);
    for (index_t entry = 0; entry < static_cast<index_t>(plan.tasks.size()); ++entry) {
        plan.first_part_of_entry.push_back(static_cast<index_t>(plan.parts.size()));
        cut_entry(plan, entry, rows_per_block, plan.blocks);
        cut_entry(plan, entry, rows_of_part, plan.parts);
    }
    plan.first_part_of_entry.push_back(static_cast<index_t>(plan.parts.size()));
}

inline void group(plan_data& plan) {
    std::sort(plan.sorted.begin(), plan.sorted.end(),
              [](const row_of_task& a, const row_of_task& b) {
                  return a.task != b.task ? a.task < b.task : a.row < b.row;
              });
    for (const auto& [task, row] : plan.sorted) {
        const auto place = static_cast<index_t>(plan.row_order.size());
        if (plan.tasks.empty() || plan.tasks.back() != task) {
            plan.tasks.push_back(task);
            plan.first_of_entry.push_back(place);
        }
        plan.row_order.push_back(row);
    }
    plan.first_of_entry.push_back(static_cast<index_t>(plan.row_order.size()));
    cut(plan);
}

} // namespace MHR_ISA
} // namespace batch_details
} // namespace mhr
