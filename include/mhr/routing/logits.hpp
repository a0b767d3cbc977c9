#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/random.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>

/// \file
/// Where a router's logits come from: first values, a row for a task that was not trained, and a
/// table that grows by such rows.

namespace mhr {

/// Bound of the first logits: a router starts close to uniform.
inline constexpr double initial_logit_bound = 1e-3;

inline namespace MHR_ISA {

/// Fills logits [tasks, heads, modules] with uniform numbers in +-1e-3, the same on every platform.
///
/// These are refused: logits of negative extents, without memory, or of which elements overlap.
inline void initialise_logits(std::uint64_t seed, const tensor_ref<3>& logits) {
    argument_checks checks("initialise_logits");
    checks.output("logits", logits, argument_checks::any_extents<3>());
    checks.raise();
    std::mt19937_64 engine(seed);
    draw_symmetric(engine, initial_logit_bound, logits);
}

namespace logits_details {

/// Checks the arguments of a start.
inline void check_row(argument_checks& checks, const const_tensor_ref<3>& trained,
                      const tensor_ref<2>& row) {
    checks.input("trained", trained);
    checks.output("row", row, {trained.extent(1), trained.extent(2)});
}

void fill_row(const tensor_ref<2>& row, double value);
void fill_uniform(std::uint64_t seed, double bound, const tensor_ref<2>& row);
void fill_mean(const const_tensor_ref<3>& trained, const tensor_ref<2>& row);
void copy_row(const const_tensor_ref<2>& from, const tensor_ref<2>& row);

} // namespace logits_details
} // namespace MHR_ISA

// The classes below fill the logits that a new task starts from. Each is called as `start(trained,
// row)` with the table so far, [tasks, heads, modules], and the new row, [heads, modules], which is
// overwritten and is not part of the table. These are refused: tensors of other shapes or without
// memory; a row of which elements overlap.

/// Logits of 0: all modules alike.
struct zero_row {
    /// Fills the row of a new task; it is refused as described above.
    MHR_INLINE void operator()(const const_tensor_ref<3>& trained, const tensor_ref<2>& row) const {
        argument_checks checks("zero_row");
        logits_details::check_row(checks, trained, row);
        checks.raise();
        logits_details::fill_row(row, 0);
    }
};

/// Uniform logits in +-bound: nearly alike. A seed gives one row: take another for each new task.
struct uniform_row {
    std::uint64_t seed = 0;             ///< of the numbers
    double bound = initial_logit_bound; ///< a finite number of 0 or more

    /// Fills the row of a new task. A bound below 0 or not finite is refused, too.
    MHR_INLINE void operator()(const const_tensor_ref<3>& trained, const tensor_ref<2>& row) const {
        argument_checks checks("uniform_row");
        logits_details::check_row(checks, trained, row);
        checks.expect(bound >= 0 && std::isfinite(bound), "bound", "a finite number of 0 or more",
                      bound);
        checks.raise();
        logits_details::fill_uniform(seed, bound, row);
    }
};

/// The mean over the trained rows, which is what most tasks agree on. An empty table gives zeros.
struct mean_row {
    /// Fills the row of a new task; it is refused as described above.
    MHR_INLINE void operator()(const const_tensor_ref<3>& trained, const tensor_ref<2>& row) const {
        argument_checks checks("mean_row");
        logits_details::check_row(checks, trained, row);
        checks.raise();
        logits_details::fill_mean(trained, row);
    }
};

/// The row of a related task.
struct copied_row {
    std::int64_t task = 0; ///< a row of the trained table

    /// Fills the row of a new task. A task that the table does not have is refused, too.
    MHR_INLINE void operator()(const const_tensor_ref<3>& trained, const tensor_ref<2>& row) const {
        argument_checks checks("copied_row");
        logits_details::check_row(checks, trained, row);
        checks.expect(task >= 0 && task < trained.extent(0), "task",
                      joined("an id from 0 to ", trained.extent(0) - 1), task);
        checks.raise();
        logits_details::copy_row(trained.slice(0, static_cast<index_t>(task)), row);
    }
};

/// A table of logits [tasks, heads, modules] that owns its memory and grows: for hosts that do not
/// keep the logits among their own parameters. Only `add_task` (and a copy) allocates.
class logits_table {
  public:
    /// Makes a table without tasks. These are refused: less than 1 of either, or more than can be
    /// addressed; a value that is no element type.
    MHR_INLINE logits_table(index_t heads, index_t modules, element_type type = element_type::f32)
        : heads_(heads), modules_(modules), type_(type) {
        argument_checks checks("logits_table");
        checks.element("type", type);
        checks.expect(heads >= 1 && modules >= 1 &&
                          check_details::is_addressable(check_details::memory_of(
                              tensor_ref<2>(nullptr, type, {heads, modules}))),
                      "heads, modules", "1 or more of each, that fit an index",
                      joined(heads, ", ", modules));
        checks.raise();
    }

    /// Number of tasks. (The memory tells it, so that a table that was moved from is empty.)
    [[nodiscard]] MHR_INLINE index_t tasks() const noexcept {
        return static_cast<index_t>(bytes_.size() / bytes_of_row());
    }

    /// The logits, row-major; valid until the next task is added.
    /// @{
    [[nodiscard]] MHR_INLINE tensor_ref<3> view() noexcept {
        return {bytes_.data(), type_, {tasks(), heads_, modules_}};
    }
    [[nodiscard]] MHR_INLINE const_tensor_ref<3> view() const noexcept {
        return {bytes_.data(), type_, {tasks(), heads_, modules_}};
    }
    /// @}

    /// Appends a row and returns its task id; `start` is one of those above, or any callable like
    /// them. The other rows keep their values, to the bit; if `start` throws, the table is as
    /// before.
    template <class Start>
    MHR_INLINE index_t add_task(Start&& start) {
        const index_t task = tasks();
        std::vector<std::byte> row(bytes_of_row());
        const const_tensor_ref<3> trained = view();
        start(trained, tensor_ref<2>(row.data(), type_, {heads_, modules_}));
        bytes_.insert(bytes_.end(), row.begin(), row.end());
        return task;
    }

  private:
    [[nodiscard]] MHR_INLINE std::size_t bytes_of_row() const noexcept {
        return static_cast<std::size_t>(heads_ * modules_) * size_of(type_);
    }

    index_t heads_;
    index_t modules_;
    element_type type_;
    std::vector<std::byte> bytes_{};
};

inline namespace MHR_ISA {
namespace logits_details {

inline void fill_row(const tensor_ref<2>& row, double value) {
    for_each_element(row, [&](void* to) { write_number(row.type(), to, value); });
}

inline void fill_uniform(std::uint64_t seed, double bound, const tensor_ref<2>& row) {
    std::mt19937_64 engine(seed);
    draw_symmetric(engine, bound, row);
}

inline void fill_mean(const const_tensor_ref<3>& trained, const tensor_ref<2>& row) {
    const index_t tasks = trained.extent(0);
    with_sums(sums_of(trained.type(), row.type()), [&](auto zero) {
        using A = decltype(zero);
        for (index_t h = 0; h < row.extent(0); ++h)
            for (index_t m = 0; m < row.extent(1); ++m) {
                A sum = 0;
                for (index_t t = 0; t < tasks; ++t)
                    sum += read_number<A>(trained.type(), trained.address_of(t, h, m));
                write_number(row.type(), row.address_of(h, m),
                             tasks == 0 ? A(0) : sum / static_cast<A>(tasks));
            }
    });
}

inline void copy_row(const const_tensor_ref<2>& from, const tensor_ref<2>& row) {
    for (index_t h = 0; h < row.extent(0); ++h)
        for (index_t m = 0; m < row.extent(1); ++m)
            write_number(row.type(), row.address_of(h, m),
                         read_number<double>(from.type(), from.address_of(h, m)));
}

} // namespace logits_details
} // namespace MHR_ISA
} // namespace mhr
