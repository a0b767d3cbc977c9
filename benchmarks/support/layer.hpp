#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include <mhr/core/random.hpp>
#include <mhr/lora/routed_lora.hpp>

#include "aligned_array.hpp"
#include "layer_case.hpp"

// A routed layer with a batch, in memory of its own: what benchmarks run on.

namespace mhr_bench {

/// All arrays of a case, filled with numbers of the size that training has, and gradients. `T`
/// stores the inventory and what belongs to the host; weights and sums are f32.
template <class T>
class layer {
  public:
    explicit layer(const layer_case& sizes)
        : sizes_(sizes), a_(elements<T>(sizes.modules * sizes.in_features * sizes.rank)),
          b_(elements<T>(sizes.modules * sizes.out_features * sizes.rank)),
          x_(elements<T>(sizes.rows() * sizes.in_features)), y_(sizes.rows() * sizes.out_features),
          d_a_(a_.size()), d_b_(b_.size()), d_x_(x_.size()),
          d_y_(elements<T>(sizes.rows() * sizes.out_features)) {
        std::vector<std::int64_t> task_of_sequence;
        for (index_t s = 0; s < sizes.sequences; ++s)
            task_of_sequence.push_back(sizes.task_of_sequence(s));
        plan_.assign_sequences(
            mhr::tensor_view<const std::int64_t, 1>(task_of_sequence.data(), {sizes.sequences}),
            mhr::tensor_view<const index_t, 1>(&sizes.rows_of_sequence, {sizes.sequences}, {0}));
        weights_ = elements<float>(plan_.entries() * sizes.heads * sizes.modules);
        for (float& weight : weights_)
            weight = weight * weight; // positive, as routing weights are
        d_weights_ = aligned_array<float>(weights_.size());
        const mhr::batch rows = batch();
        state_memory_.reserve(mhr::routed_lora_state_size(rows, adapters()));
        mhr::workspace memory = state_memory_;
        state_ = mhr::take_routed_lora_state(memory, rows, adapters());
        scratch_.reserve(mhr::routed_lora_backward_workspace_size(rows, adapters()));
        // Where the case says so, this is the mixing that was done before.
        mhr::mix_lora_forward(rows.executor, weights(), adapters().inventory(), state_.mixed);
    }

    const layer_case& sizes() const { return sizes_; }
    const mhr::batch_plan& plan() const { return plan_; }
    double scale() const { return 1.0 / static_cast<double>(sizes_.rank); }

    mhr::batch batch(mhr::executor_ref executor = {}) const { return {plan_, executor}; }
    mhr::routed_lora adapters() { return {a(), b(), weights(), scale()}; }
    mhr::tensor_view<T, 4> a() { return view_of_a(a_); }
    mhr::tensor_view<T, 4> b() { return view_of_b(b_); }
    mhr::tensor_view<T, 4> d_a() { return view_of_a(d_a_); }
    mhr::tensor_view<T, 4> d_b() { return view_of_b(d_b_); }
    mhr::tensor_view<float, 3> weights() { return as_weights(weights_); }
    mhr::tensor_view<float, 3> d_weights() { return as_weights(d_weights_); }
    mhr::tensor_view<T, 2> x() { return {x_.data(), {sizes_.rows(), sizes_.in_features}}; }
    mhr::tensor_view<T, 2> d_x() { return {d_x_.data(), {sizes_.rows(), sizes_.in_features}}; }
    mhr::tensor_view<T, 2> y() { return {y_.data(), {sizes_.rows(), sizes_.out_features}}; }
    mhr::tensor_view<T, 2> d_y() { return {d_y_.data(), {sizes_.rows(), sizes_.out_features}}; }
    const mhr::routed_lora_state& state() const { return state_; }

    void forward(mhr::executor_ref executor) {
        if (sizes_.mixed_before())
            mhr::lora_forward(batch(executor), {state_.mixed.a, state_.mixed.b, scale()}, x(), y(),
                              {state_.hidden});
        else
            mhr::routed_lora_forward(batch(executor), adapters(), x(), y(), state_);
    }
    void backward(mhr::executor_ref executor) {
        mhr::routed_lora_backward(batch(executor), adapters(), x(), d_y(), state_,
                                  {d_x(), d_a(), d_b(), d_weights()}, scratch_);
    }
    void backward_to_weights(mhr::executor_ref executor) {
        mhr::routed_lora_backward(batch(executor), adapters(), x(), d_y(), state_,
                                  {{}, {}, {}, d_weights()}, scratch_);
    }

    /// What outputs hold before a result is checked: not zero, as they accumulate.
    static constexpr float start_of_outputs = 1.0F;
    void reset_outputs() {
        for (auto* array : {&y_, &d_x_, &d_a_, &d_b_})
            std::fill(array->begin(), array->end(), T(start_of_outputs));
        std::fill(d_weights_.begin(), d_weights_.end(), start_of_outputs);
    }

  private:
    template <class V>
    aligned_array<V> elements(index_t count) {
        aligned_array<V> result(count);
        for (V& value : result)
            value = V(2 * mhr::draw_uniform<float, 23>(engine_) - 1);
        return result;
    }
    mhr::tensor_view<T, 4> view_of_a(aligned_array<T>& memory) const {
        const auto& c = sizes_;
        return {memory.data(), {c.heads, c.modules, c.in_features / c.heads, c.rank}};
    }
    mhr::tensor_view<T, 4> view_of_b(aligned_array<T>& memory) const {
        const auto& c = sizes_;
        return {memory.data(), {c.heads, c.modules, c.rank, c.out_features / c.heads}};
    }
    mhr::tensor_view<float, 3> as_weights(aligned_array<float>& values) const {
        return {values.data(), {plan_.entries(), sizes_.heads, sizes_.modules}};
    }

    std::mt19937_64 engine_{1};
    layer_case sizes_;
    mhr::batch_plan plan_;
    aligned_array<T> a_, b_, x_, y_, d_a_, d_b_, d_x_, d_y_;
    aligned_array<float> weights_, d_weights_;
    mhr::owned_workspace state_memory_, scratch_;
    mhr::routed_lora_state state_;
};

} // namespace mhr_bench
