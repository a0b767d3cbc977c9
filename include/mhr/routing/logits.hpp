#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <mhr/core/checks.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/routing/noise.hpp>

/// \file
/// Where a router's logits come from: first values, a row for a task that was not trained, and a
/// table that grows by such rows.

namespace mhr {
inline namespace MHR_ISA {

/// Bound of the first logits: a router starts close to uniform.
inline constexpr double initial_logit_bound = 1e-3;

/// Logits [tasks, heads, modules], uniform in +-1e-3, the same numbers on every platform.
/// Errors: a shape; overlapping elements.
template <class T>
void initialise_logits(std::uint64_t seed, tensor_view<T, 3> logits) {
    require_output("initialise_logits", "logits", logits, {any_extent, any_extent, any_extent});
    std::mt19937_64 engine(seed);
    detail::draw_symmetric(engine, initial_logit_bound, logits);
}

// What a new task starts from. Each is called as `start(trained, row)` with the table so far,
// [tasks, heads, modules], and the new row, [heads, modules], which is overwritten and is not part
// of it. Errors: a shape; overlapping elements of row.

/// Logits of 0: all modules alike.
struct zero_row {
    /// Fills the row of a new task. Errors: a shape; overlapping elements of row.
    template <class L, class R>
    void operator()(tensor_view<L, 3> trained, tensor_view<R, 2> row) const {
        constexpr const char* function = "zero_row";
        require_input(function, "trained", trained, {any_extent, any_extent, any_extent});
        require_output(function, "row", row, {trained.extent(1), trained.extent(2)});
        detail::for_each_element(row, [](R& logit) { logit = store<R>(accumulator_t<R>(0)); });
    }
};

/// Uniform logits in +-bound: nearly alike. A seed gives one row: take another for each new task.
struct uniform_row {
    std::uint64_t seed = 0;             ///< of the numbers
    double bound = initial_logit_bound; ///< a finite number of 0 or more

    /// Fills the row of a new task. Errors: a shape; overlapping elements of row; a number above
    /// that does not fit.
    template <class L, class R>
    void operator()(tensor_view<L, 3> trained, tensor_view<R, 2> row) const {
        constexpr const char* function = "uniform_row";
        require_input(function, "trained", trained, {any_extent, any_extent, any_extent});
        require_output(function, "row", row, {trained.extent(1), trained.extent(2)});
        require_that(
            bound >= 0 && std::isfinite(bound), function, "bound",
            [] { return "a finite number of 0 or more"; }, [&] { return std::to_string(bound); });
        std::mt19937_64 engine(seed);
        detail::draw_symmetric(engine, bound, row);
    }
};

/// The mean over the trained rows: what most tasks agree on. Of an empty table, zeros.
struct mean_row {
    /// Fills the row of a new task. Errors: a shape; overlapping elements of row.
    template <class L, class R>
    void operator()(tensor_view<L, 3> trained, tensor_view<R, 2> row) const {
        constexpr const char* function = "mean_row";
        require_input(function, "trained", trained, {any_extent, any_extent, any_extent});
        require_output(function, "row", row, {trained.extent(1), trained.extent(2)});
        using A = accumulator_t<L, R>;
        const index_t tasks = trained.extent(0);
        for (index_t h = 0; h < row.extent(0); ++h)
            for (index_t m = 0; m < row.extent(1); ++m) {
                A sum = 0;
                for (index_t t = 0; t < tasks; ++t)
                    sum += load<A>(trained(t, h, m));
                row(h, m) = store<R>(tasks == 0 ? A(0) : sum / static_cast<A>(tasks));
            }
    }
};

/// The row of a related task.
struct copied_row {
    std::int64_t task = 0; ///< a row of the trained table

    /// Fills the row of a new task. Errors: a shape; overlapping elements of row; a number above
    /// that does not fit.
    template <class L, class R>
    void operator()(tensor_view<L, 3> trained, tensor_view<R, 2> row) const {
        constexpr const char* function = "copied_row";
        require_input(function, "trained", trained, {any_extent, any_extent, any_extent});
        require_output(function, "row", row, {trained.extent(1), trained.extent(2)});
        require_that(
            task >= 0 && task < trained.extent(0), function, "task",
            [&] { return "an id from 0 to " + std::to_string(trained.extent(0) - 1); },
            [&] { return std::to_string(task); });
        for (index_t h = 0; h < row.extent(0); ++h)
            for (index_t m = 0; m < row.extent(1); ++m)
                row(h, m) =
                    store<R>(load<accumulator_t<L, R>>(trained(static_cast<index_t>(task), h, m)));
    }
};

/// A table of logits [tasks, heads, modules] that owns its memory and grows: for hosts that do not
/// keep the logits among their own parameters. Only `add_task` (and a copy) allocates.
template <class T>
class logits_table {
  public:
    /// A table without tasks. Errors: less than 1 of either, or more than can be addressed.
    logits_table(index_t heads, index_t modules) : heads_(heads), modules_(modules) {
        require_that(
            heads >= 1 && modules >= 1 &&
                detail::is_addressable(
                    detail::memory_of(tensor_view<T, 2>(nullptr, {heads, modules}))),
            "logits_table", "heads, modules", [] { return "1 or more of each, that fit an index"; },
            [&] { return std::to_string(heads) + ", " + std::to_string(modules); });
    }

    /// Number of tasks. (Told by the memory rather than counted, so that a table that was moved
    /// from is empty.)
    [[nodiscard]] index_t tasks() const noexcept {
        return static_cast<index_t>(logits_.size()) / (heads_ * modules_);
    }

    /// The logits, row-major; valid until the next task is added.
    /// @{
    [[nodiscard]] tensor_view<T, 3> view() noexcept {
        return {logits_.data(), {tasks(), heads_, modules_}};
    }
    [[nodiscard]] tensor_view<const T, 3> view() const noexcept {
        return {logits_.data(), {tasks(), heads_, modules_}};
    }
    /// @}

    /// Appends a row and returns its task id; `start` is one of those above, or any callable like
    /// them. The other rows keep their values, to the bit; if `start` throws, the table is as
    /// before.
    template <class Start>
    index_t add_task(Start&& start) {
        const index_t task = tasks();
        std::vector<T> row(static_cast<std::size_t>(heads_ * modules_));
        const tensor_view<const T, 3> trained = view();
        start(trained, tensor_view<T, 2>(row.data(), {heads_, modules_}));
        logits_.insert(logits_.end(), row.begin(), row.end());
        return task;
    }

  private:
    index_t heads_;
    index_t modules_;
    std::vector<T> logits_;
};

} // namespace MHR_ISA
} // namespace mhr
