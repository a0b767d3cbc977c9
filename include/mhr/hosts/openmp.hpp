#pragma once

#include <mhr/core/executor.hpp>

/// \file
/// The executor for hosts that use OpenMP. Compile with `-fopenmp`.

namespace mhr {
inline namespace MHR_ISA {

/// Runs the parts on `threads` OpenMP threads (fewer than 1 counts as 1). Compiled without OpenMP,
/// the parts run in the calling thread; the results are the same to the last bit.
struct openmp_executor {
    int threads = 1; ///< the most that are used

    /// Runs them; a thread that is done takes the next one.
    void operator()(index_t parts, parallel_body body) const {
        const int team = parts < threads ? static_cast<int>(parts) : threads;
        // Even a team of one takes longer to set up than small layers to compute.
        if (team <= 1) return serial_executor{}(parts, body);
#ifdef _OPENMP
#pragma omp parallel for num_threads(team) schedule(dynamic, 1)
#endif
        for (index_t part = 0; part < parts; ++part)
            body(part);
    }
};

} // namespace MHR_ISA
} // namespace mhr
