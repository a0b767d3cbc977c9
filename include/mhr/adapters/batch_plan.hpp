#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <mhr/core/checks.hpp>
#include <mhr/core/task_ids.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// The batch plan: which rows of a batch belong to which task. Made once for a batch and shared by
/// all layers and by forward and backward.

namespace mhr {
inline namespace MHR_ISA {

/// Rows of one batch, grouped by task.
///
/// The distinct tasks are in ascending order; *entry* g is the position of a task in that order,
/// and the first index of everything that exists once for each distinct task (weights, mixed
/// adapters). A task id is a label of any integer type (core/task_ids.hpp has the rule): a host
/// that draws noise for every sequence, as PEFT does, numbers its sequences 0, 1, ... and gives the
/// router the list of their tasks.
///
/// What the adapters make of a batch is *determined* as follows, to the last bit, whatever the
/// number of threads and the executor:
///   - The outputs of a row, its d_x and d_hidden depend on the row and its task alone: they are
///     the same in every batch, in every order, and for the row alone. So do a task's weights and
///     mixed adapter depend on that task alone.
///   - Gradients that are sums over rows (of weights, scales, adapters, modules) take the rows of a
///     task in their order in the batch, and tasks in the order of their ids. Rows of different
///     tasks may change places, and rows of no task come and go, without a change of any bit; rows
///     of one task may not.
///   - For the sum over the rows of one task it does not matter what other tasks there are; but
///     LoRA's backward cuts it into spans, of 24 rows in batches of up to 192 rows that have a
///     task, and of more in larger ones. (LoRA with mixed outputs and (IA)3 have no spans.)
///   - Nor do the addresses, strides and memory orders of arguments matter, but for one thing: the
///     sums of the gradient of routing weights run along the memory of the inventory.
///
/// The assign functions allocate only when a batch is larger than all before; nothing else does.
class batch_plan {
  public:
    /// Rows of one task that a kernel takes at a time: consecutive places of `row_order()`.
    struct row_block {
        index_t entry; ///< whose rows they are
        index_t first; ///< place in `row_order()`
        index_t count; ///< of rows, rows_per_block at most
    };

    /// Largest count of a block: few enough that a block of rows stays in L2 and the blocks of a
    /// small batch keep several threads busy, enough to reuse what is read of the adapter.
    static constexpr index_t rows_per_block = 24;

    /// Largest count of a span.
    static constexpr index_t rows_per_span = 264;

    /// How many spans a batch of one task is cut into: at least half as many (if it has so many
    /// blocks), and no more until spans are longest.
    static constexpr index_t spans_of_batch = 8;

    /// Groups rows by `task_of_row` [rows]: ids of 0 and more, or no_task, which takes a signed
    /// type. Errors: other ids, among them the largest value of an unsigned type, which is what -1
    /// becomes there.
    template <class Id>
    void assign_rows(tensor_view<Id, 1> task_of_row) {
        check_tasks("batch_plan::assign_rows", "task_of_row", task_of_row);
        start(task_of_row.extent(0));
        for (index_t row = 0; row < task_of_row.extent(0); ++row)
            append(static_cast<std::int64_t>(task_of_row(row)), row, 1);
        group();
    }

    /// Groups the rows of sequences that follow each other in the batch: sequence s has
    /// `rows_of_sequence(s)` rows of the task `task_of_sequence(s)`; both are [sequences].
    template <class Id, class Count>
    void assign_sequences(tensor_view<Id, 1> task_of_sequence,
                          tensor_view<Count, 1> rows_of_sequence) {
        constexpr const char* function = "batch_plan::assign_sequences";
        static_assert(std::is_integral_v<std::remove_const_t<Count>>,
                      "mhr: numbers of rows are integers");
        check_tasks(function, "task_of_sequence", task_of_sequence);
        require_input(function, "rows_of_sequence", rows_of_sequence, task_of_sequence.extents());
        index_t rows = 0;
        for (index_t s = 0; s < rows_of_sequence.extent(0); ++s) {
            // A number that the index type cannot hold becomes another one.
            const auto count = static_cast<index_t>(rows_of_sequence(s));
            require_that(
                static_cast<std::remove_const_t<Count>>(count) == rows_of_sequence(s) &&
                    count >= 0 && count <= (std::numeric_limits<index_t>::max)() - rows,
                function, "rows_of_sequence",
                [] { return "numbers of 0 and more, whose sum fits an index"; },
                [&] {
                    return std::to_string(rows_of_sequence(s)) + " at position " +
                           std::to_string(s);
                });
            rows += count;
        }
        start(rows);
        index_t row = 0;
        for (index_t s = 0; s < task_of_sequence.extent(0); ++s) {
            const auto count = static_cast<index_t>(rows_of_sequence(s));
            append(static_cast<std::int64_t>(task_of_sequence(s)), row, count);
            row += count;
        }
        group();
    }

    /// One task for all rows: for a single sequence, or a plain adapter. Errors: a number of rows
    /// below 0; an id, as of assign_rows.
    template <class Id = std::int64_t>
    void assign_single_task(index_t rows, Id task = 0) {
        constexpr const char* function = "batch_plan::assign_single_task";
        require_that(
            rows >= 0, function, "rows", [] { return "0 or more"; },
            [&] { return std::to_string(rows); });
        check_tasks(function, "task", tensor_view<const Id, 1>(&task, {1}));
        start(rows);
        append(static_cast<std::int64_t>(task), 0, rows);
        group();
    }

    /// Rows of the batch, those of no task included.
    [[nodiscard]] index_t rows() const noexcept { return rows_; }

    /// The distinct tasks, ascending: what the router is asked for. Valid until the next assign.
    [[nodiscard]] tensor_view<const std::int64_t, 1> tasks() const noexcept {
        return {tasks_.data(), {static_cast<index_t>(tasks_.size())}};
    }

    /// Number of distinct tasks.
    [[nodiscard]] index_t entries() const noexcept { return static_cast<index_t>(tasks_.size()); }

    /// The rows that have a task, ordered by entry and then by row.
    [[nodiscard]] tensor_view<const index_t, 1> row_order() const noexcept {
        return {row_order_.data(), {static_cast<index_t>(row_order_.size())}};
    }

    /// The rows of an entry, ascending: a part of `row_order()`.
    [[nodiscard]] tensor_view<const index_t, 1> rows_of(index_t entry) const noexcept {
        const index_t first = first_of_entry_[static_cast<std::size_t>(entry)];
        const index_t last = first_of_entry_[static_cast<std::size_t>(entry) + 1];
        return {row_order_.data() + first, {last - first}};
    }

    /// The rows of no task, ascending: all that `row_order()` lacks.
    [[nodiscard]] tensor_view<const index_t, 1> base_rows() const noexcept {
        return {base_rows_.data(), {static_cast<index_t>(base_rows_.size())}};
    }

    /// `row_order()` cut into blocks of one task each: the parts of a forward.
    [[nodiscard]] const std::vector<row_block>& blocks() const noexcept { return blocks_; }

    /// `row_order()` cut into longer pieces of one task each: the parts of a backward, each of
    /// which sums a gradient of the adapter on its own. Those of an entry follow each other.
    [[nodiscard]] const std::vector<row_block>& spans() const noexcept { return spans_; }

    /// The number of the first span of an entry, or, for `entries()`, of spans.
    [[nodiscard]] index_t first_span_of(index_t entry) const noexcept {
        return first_span_of_entry_[static_cast<std::size_t>(entry)];
    }

  private:
    /// A type of ours, so that the sort of it is, too (MHR_ISA of config.hpp).
    struct row_of_task {
        std::int64_t task;
        index_t row;
    };

    template <class Id>
    static void check_tasks(const char* function, const char* argument, tensor_view<Id, 1> tasks) {
        using V = std::remove_const_t<Id>;
        constexpr std::int64_t largest = detail::largest_task<V>();
        require_input(function, argument, tasks, {any_extent});
        for (index_t i = 0; i < tasks.extent(0); ++i)
            require_that(
                detail::is_task<V>(tasks(i)) || detail::is_no_task<V>(tasks(i)), function, argument,
                [] {
                    return "ids from 0 to " + std::to_string(largest) +
                           (std::is_signed_v<V> ? ", or -1 for no task"
                                                : " (no task is -1, in a signed type)");
                },
                [&] { return detail::task_id_text(tasks, i); });
    }

    void start(index_t rows) {
        rows_ = rows;
        // Room for the worst case, so that no later batch of this size allocates.
        const auto empty = [size = static_cast<std::size_t>(rows)](auto& list) {
            list.clear();
            list.reserve(size);
        };
        empty(tasks_);
        empty(row_order_);
        empty(base_rows_);
        empty(blocks_);
        empty(spans_);
        empty(sorted_);
        for (auto* list : {&first_of_entry_, &first_span_of_entry_}) {
            list->clear();
            list->reserve(static_cast<std::size_t>(rows) + 1);
        }
    }

    void append(std::int64_t task, index_t first_row, index_t count) {
        for (index_t row = first_row; row < first_row + count; ++row)
            if (task == no_task)
                base_rows_.push_back(row);
            else
                sorted_.push_back({task, row});
    }

    void group() {
        std::sort(sorted_.begin(), sorted_.end(), [](const row_of_task& a, const row_of_task& b) {
            return a.task != b.task ? a.task < b.task : a.row < b.row;
        });
        for (const auto& [task, row] : sorted_) {
            const auto place = static_cast<index_t>(row_order_.size());
            if (tasks_.empty() || tasks_.back() != task) {
                tasks_.push_back(task);
                first_of_entry_.push_back(place);
            }
            row_order_.push_back(row);
        }
        first_of_entry_.push_back(static_cast<index_t>(row_order_.size()));
        cut();
    }

    void cut() {
        // Depends on the batch alone: neither on the host's threads nor on a layer.
        const auto rows = static_cast<index_t>(row_order_.size());
        const index_t share = (rows + spans_of_batch - 1) / spans_of_batch;
        const index_t blocks_of_share = (share + rows_per_block - 1) / rows_per_block;
        const index_t span = (std::min)(rows_per_span, blocks_of_share * rows_per_block);
        for (index_t entry = 0; entry < entries(); ++entry) {
            first_span_of_entry_.push_back(static_cast<index_t>(spans_.size()));
            cut_entry(entry, rows_per_block, blocks_);
            cut_entry(entry, span, spans_);
        }
        first_span_of_entry_.push_back(static_cast<index_t>(spans_.size()));
    }

    void cut_entry(index_t entry, index_t size, std::vector<row_block>& pieces) const {
        const index_t last = first_of_entry_[static_cast<std::size_t>(entry) + 1];
        for (index_t first = first_of_entry_[static_cast<std::size_t>(entry)]; first < last;
             first += size)
            pieces.push_back({entry, first, (std::min)(size, last - first)});
    }

    index_t rows_ = 0;
    std::vector<std::int64_t> tasks_{};
    std::vector<index_t> first_of_entry_{0};
    std::vector<index_t> first_span_of_entry_{0};
    std::vector<index_t> row_order_{};
    std::vector<index_t> base_rows_{};
    std::vector<row_block> blocks_{}, spans_{};
    std::vector<row_of_task> sorted_{}; // kept for its capacity
};

} // namespace MHR_ISA
} // namespace mhr
