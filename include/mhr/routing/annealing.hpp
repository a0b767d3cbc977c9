#pragma once

#include <cmath>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Annealing to uniform routing: what the last steps do before the modules are averaged, so that
/// the average (MHR-mu) serves tasks that were never trained (Caccia et al. 2023, arXiv
/// 2211.03831).

namespace mhr {
inline namespace MHR_ISA {

/// `routing_rule::annealing` at a step of a training: 1 until the last `annealing_steps` steps,
/// then cos(n / annealing_steps pi / 2), n from 0 to annealing_steps, so that at `total_steps` the
/// routing is uniform (up to cos(pi / 2) = 6e-17). As in the code of MHR, step 0 is not annealed.
///
/// These are refused: annealing_steps below 0; a step outside [0, total_steps].
inline double annealing_at(index_t step, index_t total_steps, index_t annealing_steps) {
    argument_checks checks("annealing_at");
    checks.expect(annealing_steps >= 0, "annealing_steps", "0 or more", annealing_steps);
    checks.expect(step >= 0 && step <= total_steps, "step", joined("0 to ", total_steps), step);
    checks.raise();
    const index_t n = annealing_steps - (total_steps - step);
    if (n < 0 || step == 0 || annealing_steps == 0) return 1;
    constexpr double half_pi = 1.5707963267948966;
    return std::cos(static_cast<double>(n) / static_cast<double>(annealing_steps) * half_pi);
}

} // namespace MHR_ISA
} // namespace mhr
