#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mhr/core/tensor_view.hpp>

namespace mhr_bench {

using mhr::index_t;

/// What a case includes in its forward.
enum class mixing { included, done_before };

/// Which sequences have a task.
enum class service { all, every_other };

/// Sizes of a benchmark case: `sequences` of `rows_of_sequence` rows each, dealt to `tasks` in
/// turn.
struct layer_case {
    std::string name;
    index_t in_features, out_features, rank, heads, modules, sequences, rows_of_sequence, tasks;
    mixing mixed = mixing::included;
    service served = service::all;
    /// So many layers of these sizes take turns, as in a model, so that each finds its memory cold.
    index_t layers = 1;

    bool is_cold() const { return layers > 1; }
    index_t rows() const { return sequences * rows_of_sequence; }
    bool mixed_before() const { return mixed == mixing::done_before; }
    std::int64_t task_of_sequence(index_t s) const {
        if (served == service::all) return s % tasks;
        return s % 2 == 0 ? s / 2 % tasks : -1;
    }
};

/// The cases that stand for the uses of the library: decoding, prefill, training.
inline std::vector<layer_case> standard_cases() {
    return {
        {"decode-1", 4096, 4096, 16, 8, 8, 1, 1, 1, mixing::done_before},
        {"decode-32", 4096, 4096, 16, 8, 8, 32, 1, 8, mixing::done_before},
        // As an engine sees them: what a cache holds is of other layers.
        {"decode-1-cold", 4096, 4096, 16, 1, 1, 1, 1, 1, mixing::done_before, service::all, 128},
        {"decode-32-cold", 4096, 4096, 16, 1, 1, 32, 1, 8, mixing::done_before, service::all, 32},
        {"decode-32-routed", 4096, 4096, 16, 8, 8, 32, 1, 32},
        {"prefill", 4096, 4096, 16, 8, 8, 1, 512, 1},
        {"batch", 2048, 2048, 16, 8, 8, 32, 64, 8},
        {"paper-t5xl", 2048, 2048, 1, 64, 8, 32, 64, 8},
        {"wide-rank", 2048, 2048, 64, 8, 8, 8, 256, 8},
        {"ffn", 2048, 5120, 8, 8, 8, 32, 64, 8},
        {"small", 128, 128, 4, 4, 8, 32, 1, 4},
    };
}

} // namespace mhr_bench
