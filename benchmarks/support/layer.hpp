#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <mhr/mhr.hpp>

// A routed layer with a batch, in memory of its own: what benchmarks run on.

namespace mhr_bench {

using mhr::index_t;

/// Sizes of a benchmark case: `sequences` of `rows_of_sequence` rows each, dealt to `tasks` in
/// turn.
struct layer_case {
    std::string name;
    index_t in_features, out_features, rank, heads, modules, sequences, rows_of_sequence, tasks;

    index_t rows() const { return sequences * rows_of_sequence; }
};

/// The cases that stand for the uses of the library: decoding, prefill, training.
inline std::vector<layer_case> standard_cases() {
    return {
        {"decode-1", 4096, 4096, 16, 8, 8, 1, 1, 1},
        {"decode-32", 4096, 4096, 16, 8, 8, 32, 1, 8},
        {"decode-32-routed", 4096, 4096, 16, 8, 8, 32, 1, 32},
        {"prefill", 4096, 4096, 16, 8, 8, 1, 512, 1},
        {"batch", 2048, 2048, 16, 8, 8, 32, 64, 8},
        {"paper-t5xl", 2048, 2048, 1, 64, 8, 32, 64, 8},
        {"wide-rank", 2048, 2048, 64, 8, 8, 8, 256, 8},
        {"ffn", 2048, 5120, 8, 8, 8, 32, 64, 8},
        {"small", 128, 128, 4, 4, 8, 32, 1, 4},
    };
}

/// All arrays of a case in f32, filled with numbers of the size that training has, and gradients.
class layer {
  public:
    explicit layer(const layer_case& sizes)
        : sizes_(sizes), a_(elements(sizes.modules * sizes.in_features * sizes.rank)),
          b_(elements(sizes.modules * sizes.out_features * sizes.rank)),
          x_(elements(sizes.rows() * sizes.in_features)),
          y_(static_cast<std::size_t>(sizes.rows() * sizes.out_features)), d_a_(a_.size()),
          d_b_(b_.size()), d_x_(x_.size()), d_y_(elements(sizes.rows() * sizes.out_features)) {
        std::vector<std::int64_t> task_of_sequence;
        for (index_t s = 0; s < sizes.sequences; ++s)
            task_of_sequence.push_back(s % sizes.tasks);
        plan_.assign_sequences(
            mhr::tensor_view<const std::int64_t, 1>(task_of_sequence.data(), {sizes.sequences}),
            mhr::tensor_view<const index_t, 1>(&sizes.rows_of_sequence, {sizes.sequences}, {0}));
        weights_ = elements(plan_.entries() * sizes.heads * sizes.modules);
        for (float& weight : weights_)
            weight = weight * weight; // positive, as routing weights are
        d_weights_.resize(weights_.size());
        const auto shape = mhr::shape_of(inventory());
        state_memory_.reserve(mhr::routed_lora_state_size<float>(plan_, shape));
        mhr::workspace memory = state_memory_;
        state_ = mhr::take_routed_lora_state<float>(memory, plan_, shape);
        scratch_.reserve(mhr::routed_lora_backward_workspace_size<float>(plan_, shape));
    }

    const layer_case& sizes() const { return sizes_; }
    const mhr::batch_plan& plan() const { return plan_; }
    double scale() const { return 1.0 / static_cast<double>(sizes_.rank); }

    mhr::lora_inventory<float> inventory() { return as_inventory(a_, b_); }
    mhr::lora_inventory<float> d_inventory() { return as_inventory(d_a_, d_b_); }
    mhr::tensor_view<float, 3> weights() { return as_weights(weights_); }
    mhr::tensor_view<float, 3> d_weights() { return as_weights(d_weights_); }
    mhr::tensor_view<float, 2> x() { return {x_.data(), {sizes_.rows(), sizes_.in_features}}; }
    mhr::tensor_view<float, 2> d_x() { return {d_x_.data(), {sizes_.rows(), sizes_.in_features}}; }
    mhr::tensor_view<float, 2> y() { return {y_.data(), {sizes_.rows(), sizes_.out_features}}; }
    mhr::tensor_view<float, 2> d_y() { return {d_y_.data(), {sizes_.rows(), sizes_.out_features}}; }

    void forward(mhr::executor_ref executor) {
        mhr::routed_lora_forward(executor, plan_, x(), inventory(), weights(), scale(), y(),
                                 state_);
    }
    void backward(mhr::executor_ref executor) {
        mhr::routed_lora_backward(executor, plan_, x(), inventory(), weights(), scale(), state_,
                                  d_y(), d_x(), d_inventory(), d_weights(), scratch_);
    }
    void backward_to_weights(mhr::executor_ref executor) {
        mhr::routed_lora_backward(executor, plan_, x(), inventory(), weights(), scale(), state_,
                                  d_y(), mhr::tensor_view<float, 2>{}, mhr::lora_inventory<float>{},
                                  d_weights(), scratch_);
    }

  private:
    std::vector<float> elements(index_t count) {
        std::vector<float> result(static_cast<std::size_t>(count));
        for (float& value : result)
            value = 2 * mhr::detail::draw_uniform<float, 23>(engine_) - 1;
        return result;
    }
    mhr::lora_inventory<float> as_inventory(std::vector<float>& a, std::vector<float>& b) const {
        const auto& c = sizes_;
        return {{a.data(), {c.heads, c.modules, c.in_features / c.heads, c.rank}},
                {b.data(), {c.heads, c.modules, c.rank, c.out_features / c.heads}}};
    }
    mhr::tensor_view<float, 3> as_weights(std::vector<float>& values) const {
        return {values.data(), {plan_.entries(), sizes_.heads, sizes_.modules}};
    }

    std::mt19937_64 engine_{1};
    layer_case sizes_;
    mhr::batch_plan plan_;
    std::vector<float> a_, b_, x_, y_, d_a_, d_b_, d_x_, d_y_, weights_, d_weights_;
    mhr::owned_workspace state_memory_, scratch_;
    mhr::routed_lora_state<float> state_;
};

} // namespace mhr_bench
