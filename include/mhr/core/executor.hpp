#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>

#include <mhr/core/tensor_view.hpp>

/// \file
/// How kernels reach the host's threads. A kernel cuts its work into parts that never write to the
/// same address and whose results do not depend on who runs them; an executor runs them.

namespace mhr {

/// A non-owning reference to the work of a kernel: call it once with each part's number. Calls of
/// different parts may run at the same time. It does not throw.
class parallel_body {
  public:
    /// Refers to a callable `void(index_t part)`, which must outlive this.
    template <class F, std::enable_if_t<!std::is_same_v<std::decay_t<F>, parallel_body>, int> = 0>
    MHR_INLINE parallel_body(F& body) noexcept
        : object_(const_cast<void*>(static_cast<const void*>(std::addressof(body)))),
          call_([](void* object, index_t part) { (*static_cast<F*>(object))(part); }) {}

    /// Does one part.
    MHR_INLINE void operator()(index_t part) const { call_(object_, part); }

  private:
    void* object_;
    void (*call_)(void*, index_t);
};

inline namespace MHR_ISA {

/// Runs all parts in the calling thread.
struct serial_executor {
    /// Runs them, in their order.
    void operator()(index_t parts, parallel_body body) const {
        for (index_t part = 0; part < parts; ++part)
            body(part);
    }
};

namespace executor_details {

struct share {
    index_t first;
    index_t count;
};

/// The share of participant `ith` of `nth`, in order: the first ones have one more where that does
/// not come out even.
constexpr share share_of(index_t parts, index_t ith, index_t nth) noexcept {
    const index_t quotient = parts / nth;
    const index_t remainder = parts % nth;
    return {quotient * ith + (ith < remainder ? ith : remainder),
            quotient + (ith < remainder ? 1 : 0)};
}

/// Multiply-adds for which waking a thread pays: some microseconds.
inline constexpr index_t worth_a_thread = index_t(1) << 18;

} // namespace executor_details

/// Runs only the share of participant `ith` of `nth` (1 or more, ith below it), in the calling
/// thread: for hosts that call an operator from every thread at once, as ggml does. All
/// participants must make the same call, and the result is complete when the last one is done.
/// Nothing here waits for the others, so only functions documented as "one phase" accept it.
struct share_executor {
    static constexpr bool runs_every_part = false; ///< any executor that has this may say so

    index_t ith = 0; ///< which share
    index_t nth = 1; ///< of how many

    /// Runs those of this share: consecutive parts, as many as others have or one more.
    void operator()(index_t parts, parallel_body body) const {
        const auto [first, count] = executor_details::share_of(parts, ith, nth);
        for (index_t part = first; part < first + count; ++part)
            body(part);
    }
};

namespace executor_details {
template <class E, class = void>
struct runs_every_part : std::true_type {};
template <class E>
struct runs_every_part<E, std::void_t<decltype(E::runs_every_part)>>
    : std::bool_constant<E::runs_every_part> {};
} // namespace executor_details
} // namespace MHR_ISA

/// A reference to an executor, as entry points take it. It does not own the executor, which is any
/// callable `void(index_t parts, parallel_body body)` that calls `body(part)` exactly once for each
/// part in [0, parts), on whatever threads it likes, and returns when all calls have. A host wraps
/// its pool in a lambda:
///
///     auto executor = [&](mhr::index_t parts, mhr::parallel_body body) {
///         pool.for_each(parts, [&](std::size_t part) { body(static_cast<mhr::index_t>(part)); });
///     };
///     mhr::routed_lora_forward(executor, ...);
class executor_ref {
  public:
    /// Refers to a serial_executor.
    MHR_INLINE executor_ref() noexcept : executor_ref(one_after_the_other) {}

    /// Refers to an executor, which must outlive this.
    template <class E, std::enable_if_t<!std::is_same_v<std::decay_t<E>, executor_ref>, int> = 0>
    MHR_INLINE
    executor_ref(E&& executor) noexcept // NOLINT: implicit, and refers to temporaries of the call
        : object_(const_cast<void*>(static_cast<const void*>(std::addressof(executor)))),
          call_([](void* object, index_t parts, parallel_body body) {
              (*static_cast<std::remove_reference_t<E>*>(object))(parts, body);
          }),
          runs_every_part_(executor_details::runs_every_part<std::decay_t<E>>::value) {}

    /// Runs `body(part)` for each part.
    template <class F>
    MHR_INLINE void run(index_t parts, F&& body) const {
        if (parts > 0) call_(object_, parts, parallel_body(body));
    }

    /// Runs `body(part)` for each part where one takes about `cost` multiply-adds. Several parts
    /// are handed out together if a single one is not worth waking a thread for.
    template <class F>
    MHR_INLINE void run(index_t parts, index_t cost, F&& body) const {
        const index_t together =
            (std::max)(index_t(1), executor_details::worth_a_thread / (std::max)(cost, index_t(1)));
        auto several = [&](index_t group) {
            const index_t first = group * together;
            const index_t last = together < parts - first ? first + together : parts;
            for (index_t part = first; part < last; ++part)
                body(part);
        };
        if (parts > 0) run((parts + together - 1) / together, several);
    }

    /// False for an executor that runs a share only (see share_executor).
    [[nodiscard]] MHR_INLINE bool runs_every_part() const noexcept { return runs_every_part_; }

  private:
    static constexpr serial_executor one_after_the_other{};

    void* object_;
    void (*call_)(void*, index_t, parallel_body);
    bool runs_every_part_;
};

} // namespace mhr
