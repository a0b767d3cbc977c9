#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

#include <mhr/batch/batch.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/serving/lora_shard.hpp>

#include "support/layer_problem.hpp"

/// \file
/// Ranks that own the heads of a layer, played by threads of one process: each calls the library
/// with what it owns, and the sum over ranks waits until all have come.

namespace mhr::test {

/// Sums tensors of several threads element by element, in the order of the ranks.
class rank_barrier {
  public:
    explicit rank_barrier(index_t ranks) : given_(static_cast<std::size_t>(ranks)) {}

    /// Gives every rank the sum of what all give; returns when it is there.
    void sum(index_t rank, const tensor_ref<2>& values) {
        std::unique_lock<std::mutex> lock(mutex_);
        given_[static_cast<std::size_t>(rank)] = values;
        const std::size_t round = rounds_;
        if (++arrived_ == given_.size()) {
            if (values.type() == element_type::f64)
                sum_as<double>();
            else
                sum_as<float>();
            arrived_ = 0;
            ++rounds_;
            all_there_.notify_all();
        }
        all_there_.wait(lock, [&] { return rounds_ != round; });
    }

    /// How many sums there have been.
    [[nodiscard]] std::size_t rounds() const { return rounds_; }

  private:
    template <class A>
    void sum_as() {
        const auto first = given_.front().as<A>();
        for_each_position(first.extents(), [&](const position<2>& at) {
            A total = element(first, at);
            for (std::size_t rank = 1; rank < given_.size(); ++rank)
                total += element(given_[rank].template as<A>(), at);
            for (const tensor_ref<2>& values : given_)
                element(values.template as<A>(), at) = total;
        });
    }

    std::mutex mutex_;
    std::condition_variable all_there_;
    std::vector<tensor_ref<2>> given_;
    std::size_t arrived_ = 0;
    std::size_t rounds_ = 0;
};

/// Calls `f(ith, sum)` for each rank on a thread of its own, where `sum` is the rank's hook; gives
/// how many sums there were.
template <class Function>
std::size_t run_ranks(index_t ranks, Function&& f) {
    rank_barrier barrier(ranks);
    std::vector<std::thread> threads;
    for (index_t ith = 0; ith < ranks; ++ith)
        threads.emplace_back([&, ith] {
            const auto sum = [&](const tensor_ref<2>& values) { barrier.sum(ith, values); };
            f(ith, rank_sum_ref(sum));
        });
    for (std::thread& thread : threads)
        thread.join();
    return barrier.rounds();
}

/// A forward and a backward of a layer as ranks do them that own its heads; the gradients may be
/// some of the problem's.
inline std::size_t run_sharded(layer_problem& p, index_t ranks,
                               const routed_lora_gradients& gradients, executor_ref executor = {}) {
    return run_ranks(ranks, [&](index_t ith, rank_sum_ref sum) {
        const lora_shard shard = shard_of_heads(p.s.shape(), ith, ranks);
        const batch rows{p.plan, executor, sum};
        const routed_lora layer = shard.of_layer(p.layer());
        poisoned_memory of_state(routed_lora_state_size(rows, layer, p.types.sums));
        poisoned_memory scratch(routed_lora_backward_workspace_size(rows, layer, p.types.sums));
        workspace memory = of_state;
        const auto state = take_routed_lora_state(memory, rows, layer, p.types.sums);
        const auto x = shard.of_x(p.x.const_ref());
        routed_lora_forward(rows, layer, x, shard.of_y(p.y.ref()), state);
        routed_lora_backward(rows, layer, x, shard.of_d_y(p.d_y.const_ref()), state,
                             shard.of_gradients(gradients), scratch);
    });
}
inline std::size_t run_sharded(layer_problem& p, index_t ranks, executor_ref executor = {}) {
    return run_sharded(p, ranks, p.gradients(), executor);
}

} // namespace mhr::test
