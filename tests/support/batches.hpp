#pragma once

#include <cstdint>
#include <vector>

#include <mhr/batch/batch_plan.hpp>
#include <mhr/core/tensor_view.hpp>

#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

/// \file
/// Batches of many tasks, for the tests of adapters.

namespace mhr::test {

/// Random tasks 0 .. tasks - 1, and no task, for rows.
inline std::vector<std::int64_t> random_tasks(index_t rows, index_t tasks, std::uint64_t seed = 1) {
    random_source random(seed);
    std::vector<std::int64_t> result;
    for (index_t row = 0; row < rows; ++row)
        result.push_back(random.integer(tasks + 1) - 1);
    return result;
}

/// A plan of these tasks of rows.
inline batch_plan plan_of(const std::vector<std::int64_t>& task_of_row) {
    batch_plan plan;
    plan.assign_rows(tensor_view<const std::int64_t, 1>(
        task_of_row.data(), {static_cast<index_t>(task_of_row.size())}));
    return plan;
}

/// A plan of rows of random tasks 0 .. tasks - 1, and of no task.
inline batch_plan random_plan(index_t rows, index_t tasks, std::uint64_t seed = 1) {
    return plan_of(random_tasks(rows, tasks, seed));
}

/// Returns what the oracle is asked for: the entry of each row, or -1.
inline tensor<index_t, 1> entry_of_row(const batch_plan& plan) {
    tensor<index_t, 1> result({plan.rows()});
    for (index_t& entry : result.values())
        entry = -1;
    for (index_t entry = 0; entry < plan.entries(); ++entry) {
        const auto rows = plan.rows_of(entry);
        for (index_t i = 0; i < rows.extent(0); ++i)
            result(rows(i)) = entry;
    }
    return result;
}

} // namespace mhr::test
