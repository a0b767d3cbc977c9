#pragma once

#include <cstddef>
#include <vector>

#include <mhr/adapters/lora_shard.hpp>
#include <mhr/adapters/routed_lora_halves.hpp>

#include "support/routed_problem.hpp"

/// \file
/// A routed layer computed as ranks that own its heads compute it, in one process: each calls the
/// halves with its own views, and their hidden are summed in the order of the ranks.

namespace mhr::test {

template <class T>
class sharded_layer {
  public:
    using A = typename T::A;
    using Sum = typename T::Sum;

    sharded_layer(routed_problem<T>& problem, index_t ranks) : p_(problem) {
        for (index_t ith = 0; ith < ranks; ++ith) {
            const lora_shard shard = shard_of_heads(p_.shape(), ith, ranks);
            workspace meter;
            (void)take(meter, shard.shape);
            memory_.emplace_back(meter.used(), std::byte{0xff});
            workspace memory(memory_.back().data(), memory_.back().size());
            const auto [state, d_hidden] = take(memory, shard.shape);
            ranks_.push_back(
                {shard,
                 state,
                 d_hidden,
                 {routed_lora_halves_workspace_size<Sum>(p_.plan, shard.shape), std::byte{0xff}}});
        }
    }

    void forward(executor_ref executor = serial_executor{}) {
        for (rank& r : ranks_)
            routed_lora_project_forward(executor, p_.plan, r.shard.of_inputs(p_.x.view()),
                                        r.shard.of_inventory(p_.inventory()),
                                        r.shard.of_weights(p_.weights.view()), r.state);
        all_reduce([](rank& r) { return r.state.hidden; });
        for (rank& r : ranks_)
            routed_lora_expand_forward(executor, p_.plan, r.shard.of_inventory(p_.inventory()),
                                       r.shard.of_weights(p_.weights.view()), p_.scale,
                                       r.shard.of_outputs(p_.y.view()), r.state);
    }

    void backward(executor_ref executor = serial_executor{}) {
        backward(executor, p_.d_x.view(), p_.d_inventory(), p_.d_weights.view());
    }
    void backward(executor_ref executor, tensor_view<typename T::DX, 2> d_x,
                  lora_inventory<typename T::DM> d_inventory,
                  tensor_view<typename T::DW, 3> d_weights) {
        for (rank& r : ranks_)
            routed_lora_expand_backward(
                executor, p_.plan, r.shard.of_inventory(p_.inventory()),
                r.shard.of_weights(p_.weights.view()), p_.scale, r.state,
                r.shard.of_outputs(p_.y.view()), r.d_hidden, r.shard.of_inventory(d_inventory),
                r.shard.of_weights(d_weights), {r.scratch.data(), r.scratch.size()});
        all_reduce([](rank& r) { return r.d_hidden; });
        for (rank& r : ranks_)
            routed_lora_project_backward(
                executor, p_.plan, r.shard.of_inputs(p_.x.view()),
                r.shard.of_inventory(p_.inventory()), r.shard.of_weights(p_.weights.view()),
                r.state, r.d_hidden, r.shard.of_inputs(d_x), r.shard.of_inventory(d_inventory),
                r.shard.of_weights(d_weights), {r.scratch.data(), r.scratch.size()});
    }

  private:
    struct rank {
        lora_shard shard;
        routed_lora_state<A> state;
        tensor_view<Sum, 2> d_hidden;
        std::vector<std::byte> scratch;
    };
    struct taken {
        routed_lora_state<A> state;
        tensor_view<Sum, 2> d_hidden;
    };

    taken take(workspace& memory, const lora_shape& shape) {
        const auto state = take_routed_lora_state<A>(memory, p_.plan, shape);
        return {state, memory.take<Sum, 2>({p_.plan.rows(), shape.rank})};
    }

    template <class View>
    void all_reduce(View&& view) {
        const auto first = view(ranks_.front());
        for (index_t row = 0; row < first.extent(0); ++row)
            for (index_t k = 0; k < first.extent(1); ++k) {
                auto sum = first(row, k);
                for (std::size_t i = 1; i < ranks_.size(); ++i)
                    sum += view(ranks_[i])(row, k);
                for (rank& r : ranks_)
                    view(r)(row, k) = sum;
            }
    }

    routed_problem<T>& p_;
    std::vector<std::vector<std::byte>> memory_;
    std::vector<rank> ranks_;
};

} // namespace mhr::test
