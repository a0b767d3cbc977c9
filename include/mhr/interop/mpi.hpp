#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>
#include <type_traits>

// Only the C interface is used: not the C++ bindings that older headers declare beside it.
#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1
#endif
#ifndef MPICH_SKIP_MPICXX
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/adapters/lora_shard.hpp>
#include <mhr/adapters/routed_lora.hpp>
#include <mhr/adapters/routed_lora_halves.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>

/// \file
/// Hosts with several processes, by MPI. Data-parallel training sums a span of gradients
/// (adapters/parameter_span.hpp) by one `all_reduce`; a tensor-parallel host gives each rank some
/// heads of a layer (adapters/lora_shard.hpp) and calls `sharded_lora_forward` and
/// `sharded_lora_backward`.
///
/// All ranks of a communicator make the same calls, with the same numbers of rows and the same
/// gradients absent. As with all of MPI, a call that one rank alone refuses leaves the others
/// waiting: a host that catches `mhr::error` ends the job (MPI_Abort). MPI's own errors end the
/// program, unless the host has set MPI_ERRORS_RETURN: then they are raised as `mhr::error`.
///
/// MPI is called from the thread that calls these functions (MPI_THREAD_FUNNELED is enough),
/// never from an executor.

namespace mhr {
inline namespace MHR_ISA {
namespace mpi {

namespace detail {

inline void require_success(const char* function, const char* call, int code) {
    require_that(
        code == MPI_SUCCESS, function, "comm", [&] { return std::string("success of ") + call; },
        [&] {
            char text[MPI_MAX_ERROR_STRING] = "";
            int length = 0;
            MPI_Error_string(code, text, &length);
            return std::string(text, static_cast<std::size_t>(length));
        });
}

inline void require_communicator(const char* function, MPI_Comm comm) {
    require_that(
        comm != MPI_COMM_NULL, function, "comm", [] { return "a communicator"; },
        [] { return "MPI_COMM_NULL"; });
}

template <class T>
MPI_Datatype datatype() noexcept {
    static_assert(
        std::is_same_v<T, float> || std::is_same_v<T, double>,
        "mhr: MPI sums float and double: 16-bit values are summed in an accumulator type");
    if constexpr (std::is_same_v<T, double>)
        return MPI_DOUBLE;
    else
        return MPI_FLOAT;
}

/// MPI counts in int: longer spans go in pieces of `most` elements.
template <class T>
void all_reduce(const char* function, MPI_Comm comm, T* values, index_t count, index_t most) {
    for (index_t first = 0; first < count; first += most)
        require_success(function, "MPI_Allreduce",
                        MPI_Allreduce(MPI_IN_PLACE, values + first,
                                      static_cast<int>((std::min)(most, count - first)),
                                      datatype<T>(), MPI_SUM, comm));
}

template <class T, std::size_t Rank>
void require_dense_output(const char* function, const char* argument,
                          const tensor_view<T, Rank>& values) {
    require_output(function, argument, values, values.extents());
    require_that(
        values.is_contiguous(), function, argument, [] { return "dense elements"; },
        [&] { return "strides " + mhr::detail::to_text(values.strides()); });
}

} // namespace detail

/// values = the sum of the values of all ranks, in place: of float or double, dense, of the same
/// extents on every rank.
///
/// Which sums are made in which order is up to MPI: for the same number of ranks it is the same
/// every time with the usual algorithms (no rank's bits differ from another's, either).
/// Errors: no communicator, elements that are not dense, MPI's own. Cost: up to MPI, too.
template <class T, std::size_t Rank>
void all_reduce(MPI_Comm comm, tensor_view<T, Rank> values) {
    constexpr const char* function = "mpi::all_reduce";
    detail::require_communicator(function, comm);
    detail::require_dense_output(function, "values", values);
    detail::all_reduce(function, comm, values.data(), values.size(),
                       (std::numeric_limits<int>::max)());
}

/// The heads of a layer that this rank of `comm` owns. Errors: as of mhr::shard_of_heads.
inline lora_shard shard_of_heads(MPI_Comm comm, const lora_shape& whole) {
    constexpr const char* function = "mpi::shard_of_heads";
    detail::require_communicator(function, comm);
    int rank = 0;
    int size = 0;
    detail::require_success(function, "MPI_Comm_rank", MPI_Comm_rank(comm, &rank));
    detail::require_success(function, "MPI_Comm_size", MPI_Comm_size(comm, &size));
    return mhr::shard_of_heads(whole, rank, size);
}

/// routed_lora_forward of a layer whose heads the ranks of `comm` share. Everything is this rank's
/// (see lora_shard): x [rows, its in_features], its inventory, weights [entries, its heads,
/// modules], y [rows, its out_features], and a state of its shape.
///
/// Sums [rows, rank] over the ranks, once. Needs an executor that runs every part. Errors: as of
/// routed_lora_forward, a hidden that is not dense, MPI's own.
/// Cost: that of routed_lora_forward for this shard, and the sum (see lora_shard).
template <class X, class M, class W, class Y, class A>
void sharded_lora_forward(MPI_Comm comm, executor_ref executor, const batch_plan& plan,
                          tensor_view<X, 2> x, lora_inventory<M> inventory,
                          tensor_view<W, 3> weights, double scale, tensor_view<Y, 2> y,
                          routed_lora_state<A> state) {
    constexpr const char* function = "mpi::sharded_lora_forward";
    // What the halves would notice only after the first one.
    detail::require_communicator(function, comm);
    detail::require_dense_output(function, "state.hidden", state.hidden);
    require_output(function, "y", y, {plan.rows(), shape_of(inventory).out_features});
    require_output(function, "state.mixed.b", state.mixed.b, state.mixed.b.extents());

    routed_lora_project_forward(executor, plan, x, inventory, weights, state);
    all_reduce(comm, state.hidden);
    routed_lora_expand_forward(executor, plan, inventory, weights, scale, y, state);
}

namespace detail {
template <class Sum>
tensor_view<Sum, 2> take_d_hidden(workspace& memory, const batch_plan& plan,
                                  index_t rank) noexcept {
    return memory.take<Sum, 2>({plan.rows(), rank});
}
} // namespace detail

/// Bytes of workspace that sharded_lora_backward needs; `A` is the accumulator type of x,
/// inventory, weights and d_y, `shape` that of this rank's shard.
template <class A>
std::size_t sharded_lora_backward_workspace_size(const batch_plan& plan,
                                                 const lora_shape& shape) noexcept {
    workspace meter;
    (void)detail::take_d_hidden<A>(meter, plan, shape.rank);
    return meter.used() + routed_lora_halves_workspace_size<A>(plan, shape);
}

/// The backward of sharded_lora_forward, with its arguments and the state that it left; what is
/// this rank's is as there. All gradients accumulate, and each may be absent, on all ranks alike.
///
/// Sums [rows, rank] over the ranks, once, unless d_x, d_inventory.a and d_weights are absent.
/// Needs an executor that runs every part, and the workspace of
/// `sharded_lora_backward_workspace_size`. Errors: as of routed_lora_backward, MPI's own.
/// Cost: that of routed_lora_backward for this shard, and the sum.
template <class X, class M, class W, class A, class D, class DX = std::remove_const_t<X>,
          class DM = std::remove_const_t<M>, class DW = std::remove_const_t<W>>
void sharded_lora_backward(MPI_Comm comm, executor_ref executor, const batch_plan& plan,
                           tensor_view<X, 2> x, lora_inventory<M> inventory,
                           tensor_view<W, 3> weights, double scale, routed_lora_state<A> state,
                           tensor_view<D, 2> d_y, tensor_view<DX, 2> d_x,
                           lora_inventory<DM> d_inventory, tensor_view<DW, 3> d_weights,
                           workspace scratch) {
    using Sum = accumulator_t<X, M, W, D>;
    constexpr const char* function = "mpi::sharded_lora_backward";
    detail::require_communicator(function, comm);
    const lora_shape shape = shape_of(inventory);
    require_input(function, "x", x, {plan.rows(), shape.in_features});
    require_optional_output(function, "d_x", d_x, x.extents());
    require_workspace(function, scratch, sharded_lora_backward_workspace_size<Sum>(plan, shape));

    const bool wanted = !d_x.absent() || !d_inventory.a.absent() || !d_weights.absent();
    const auto d_hidden = detail::take_d_hidden<Sum>(scratch, plan, shape.rank);
    routed_lora_expand_backward(executor, plan, inventory, weights, scale, state, d_y,
                                wanted ? d_hidden : tensor_view<Sum, 2>{}, d_inventory, d_weights,
                                scratch);
    if (!wanted) return;
    all_reduce(comm, d_hidden);
    routed_lora_project_backward(executor, plan, x, inventory, weights, state, d_hidden, d_x,
                                 d_inventory, d_weights, scratch);
}

} // namespace mpi
} // namespace MHR_ISA
} // namespace mhr
