#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>

// Only the C interface is used: not the C++ bindings that older headers declare beside it.
#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1
#endif
#ifndef MPICH_SKIP_MPICXX
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/lora/inventory.hpp>
#include <mhr/serving/lora_shard.hpp>

/// \file
/// Hosts with several processes, by MPI. Data-parallel training sums a buffer of gradients
/// (training/parameter_layout.hpp) by one `all_reduce`; a tensor-parallel host gives each rank some
/// heads of a layer (serving/lora_shard.hpp) and hands a `rank_sum` to every call on what it owns:
///
///     const mhr::lora_shard shard = mhr::mpi::shard_of_heads(comm, shape);
///     const mhr::mpi::rank_sum sum(comm);
///     mhr::routed_lora_forward({plan, executor, sum}, layer, x, y, state);
///
/// All ranks of a communicator make the same calls, with the same numbers of rows and the same
/// gradients absent. As with all of MPI, a call that one rank alone refuses leaves the others
/// waiting: a host that catches `mhr::error` ends the job (MPI_Abort). MPI's own errors end the
/// program, unless the host has set MPI_ERRORS_RETURN: then they are raised as `mhr::error`.
///
/// MPI is called from the thread that calls these functions or the library with a rank_sum
/// (MPI_THREAD_FUNNELED is enough), never from an executor.

namespace mhr {
namespace mpi {

inline namespace MHR_ISA {
namespace mpi_details {
void check_communicator(const char* function, MPI_Comm comm);
void sum_over_ranks(MPI_Comm comm, const tensor_ref<2>& values);
} // namespace mpi_details
} // namespace MHR_ISA

/// The sum over the ranks of a communicator, as `batch::sum_over_ranks` wants it: every rank gets
/// the sum of what all give. The communicator must outlive it. MPI_COMM_NULL is refused.
class rank_sum {
  public:
    /// Sums over these ranks.
    MHR_INLINE explicit rank_sum(MPI_Comm comm) : comm_(comm) {
        mpi_details::check_communicator("mpi::rank_sum", comm);
    }

    /// Sums dense elements of f32 or f64, of the same extents on every rank; others are refused.
    MHR_INLINE void operator()(const tensor_ref<2>& values) const {
        mpi_details::sum_over_ranks(comm_, values);
    }

  private:
    MPI_Comm comm_;
};

inline namespace MHR_ISA {

/// values = the sum of the values of all ranks, in place: dense, of f32 or f64 and as many on every
/// rank. (Sums of 16-bit values belong into a wider type.)
///
/// MPI chooses the order of the sums. With the usual algorithms it is the same every time for the
/// same number of ranks, and all ranks get the same bits.
///
/// These are refused: no communicator; elements that are not dense, or not of f32 or f64; and what
/// MPI refuses. The cost is up to MPI, too.
inline void all_reduce(MPI_Comm comm, const tensor_ref<1>& values);

/// The heads of a layer that this rank of `comm` owns. These are refused: no communicator, and what
/// mhr::shard_of_heads refuses.
inline lora_shard shard_of_heads(MPI_Comm comm, const lora_shape& whole);

namespace mpi_details {

inline void check_success(argument_checks& checks, const char* call, int code) {
    checks.expect(
        code == MPI_SUCCESS, "comm", [&] { return std::string("success of ") + call; },
        [&] {
            char text[MPI_MAX_ERROR_STRING] = "";
            int length = 0;
            MPI_Error_string(code, text, &length);
            return std::string(text, static_cast<std::size_t>(length));
        });
}

inline void check_communicator(argument_checks& checks, MPI_Comm comm) {
    checks.expect(comm != MPI_COMM_NULL, "comm", "a communicator", "MPI_COMM_NULL");
}
inline void check_communicator(const char* function, MPI_Comm comm) {
    argument_checks checks(function);
    check_communicator(checks, comm);
    checks.raise();
}

/// Sums dense elements. MPI counts in int: more of them go `most` at a time.
inline void sum_elements(argument_checks& checks, MPI_Comm comm, const tensor_ref<1>& values,
                         index_t most) {
    const MPI_Datatype type = values.type() == element_type::f64 ? MPI_DOUBLE : MPI_FLOAT;
    for (index_t first = 0; checks.passed() && first < values.extent(0); first += most) {
        const int count = static_cast<int>((std::min)(most, values.extent(0) - first));
        check_success(
            checks, "MPI_Allreduce",
            MPI_Allreduce(MPI_IN_PLACE, values.address_of(first), count, type, MPI_SUM, comm));
    }
    checks.raise();
}

template <std::size_t Rank>
void check_and_sum(const char* function, MPI_Comm comm, const tensor_ref<Rank>& values) {
    argument_checks checks(function);
    check_communicator(checks, comm);
    checks.output("values", values, argument_checks::any_extents<Rank>());
    checks.sums_type("values", values.type());
    checks.expect(values.is_contiguous(), "values", "dense elements",
                  joined("strides ", values.strides()));
    checks.raise();
    sum_elements(checks, comm, {values.data(), values.type(), {values.size()}},
                 (std::numeric_limits<int>::max)());
}

inline void sum_over_ranks(MPI_Comm comm, const tensor_ref<2>& values) {
    check_and_sum("mpi::rank_sum", comm, values);
}

} // namespace mpi_details

inline void all_reduce(MPI_Comm comm, const tensor_ref<1>& values) {
    mpi_details::check_and_sum("mpi::all_reduce", comm, values);
}

inline lora_shard shard_of_heads(MPI_Comm comm, const lora_shape& whole) {
    argument_checks checks("mpi::shard_of_heads");
    mpi_details::check_communicator(checks, comm);
    int rank = 0;
    int size = 0;
    if (checks.passed())
        mpi_details::check_success(checks, "MPI_Comm_rank", MPI_Comm_rank(comm, &rank));
    if (checks.passed())
        mpi_details::check_success(checks, "MPI_Comm_size", MPI_Comm_size(comm, &size));
    checks.raise();
    return mhr::shard_of_heads(whole, rank, size);
}

} // namespace MHR_ISA
} // namespace mpi
} // namespace mhr
