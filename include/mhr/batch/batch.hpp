#pragma once

#include <memory>
#include <type_traits>

#include <mhr/batch/batch_plan.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>

/// \file
/// What every call on a batch has in common: its rows, the threads that compute it, and the ranks
/// that share its layers.

namespace mhr {

/// A non-owning reference to a callable `void(tensor_ref<2> values)` that replaces the values, on
/// every rank of a tensor-parallel host, by their sum over the ranks. It is called from the thread
/// that calls the library, never from an executor, with dense elements of f32 or f64.
class rank_sum_ref {
  public:
    /// One rank has everything: there is nothing to sum.
    MHR_INLINE rank_sum_ref() noexcept : object_(nullptr), call_(nullptr) {}

    /// Refers to a callable, which must outlive this.
    template <class Sum,
              std::enable_if_t<!std::is_same_v<std::decay_t<Sum>, rank_sum_ref>, int> = 0>
    MHR_INLINE
    rank_sum_ref(Sum&& sum) noexcept // NOLINT: implicit, refers to temporaries of the call
        : object_(const_cast<void*>(static_cast<const void*>(std::addressof(sum)))),
          call_([](void* object, const tensor_ref<2>& values) {
              (*static_cast<std::remove_reference_t<Sum>*>(object))(values);
          }) {}

    /// True unless there is nothing to sum.
    [[nodiscard]] MHR_INLINE explicit operator bool() const noexcept { return call_ != nullptr; }

    /// Sums.
    MHR_INLINE void operator()(const tensor_ref<2>& values) const { call_(object_, values); }

  private:
    void* object_;
    void (*call_)(void*, const tensor_ref<2>&);
};

/// How routed LoRA computes the mixtures of a batch, which is the same function, rounded in another
/// order. (LoRA with mixed outputs is another function, and has one way.) Each way gives the same
/// bits for every number of threads and executor.
enum class evaluation {
    /// The adapter of each entry is mixed, written and applied to the rows of the entry: that
    /// pays for many rows an entry. What a row becomes does not depend on the batch
    /// that it is in, and sums over rows are as batch_plan promises.
    by_entry,
    /// Each module is applied to the rows that use it, and no mixed adapter is written: small
    /// batches of many tasks. What a row becomes does not depend on the batch that it is in, but it
    /// is rounded otherwise than by entry. Gradients of modules are sums over all rows that use
    /// them, 48 at a time, so that their bits depend on which tasks a batch has.
    by_module,
    /// The batch is computed in the way that is faster for it and the layer. The batch decides, so
    /// that the last bits of a
    /// row may depend on the batch that it is in.
    automatic,
};

/// A batch, as every entry point takes it: `batch{plan}`, `batch{plan, executor}`. What it refers
/// to must outlive it.
struct batch {
    const batch_plan& plan;  ///< the tasks of the rows
    executor_ref executor{}; ///< the host's threads; by default the calling one alone

    /// A host whose ranks have some heads of each layer sums [rows, rank] over the ranks with this,
    /// between the two products of LoRA, forward and backward (serving/lora_shard.hpp).
    rank_sum_ref sum_over_ranks{};

    /// How routed LoRA is computed; forward and backward must agree.
    evaluation mixtures = evaluation::by_entry;
};

} // namespace mhr
