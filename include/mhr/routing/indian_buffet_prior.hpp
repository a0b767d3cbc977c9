#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>

#include <mhr/core/checks.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/routing/gates.hpp>

/// \file
/// The Indian-buffet-process prior that Polytropon may put on its routing (Griffiths & Ghahramani
/// 2011; Ponti et al. 2023, arXiv 2202.13914): few modules for each task, shared by several tasks.
///
/// With the discrete allocation Z (straight_through_gate of the logits) of N tasks to the columns k
/// of all heads and modules, u_k the number of tasks that use column k, K the number of columns in
/// use, and new_n the number of columns of which task n is the first user:
///
///     -log P(Z) = -K log(concentration) + sum over n of log(new_n!) + concentration H_N
///                 - sum over the columns in use of log((N - u_k)! (u_k - 1)! / N!)
///
/// with the harmonic number H_N. The published code means the same, but there new_n is always 0 (it
/// takes what *all* tasks use from what task n uses).

namespace mhr {
inline namespace MHR_ISA {

namespace detail {

/// True if the allocation switches the module on.
template <class L>
bool is_allocated(const tensor_view<L, 3>& logits, index_t task, index_t head,
                  index_t module) noexcept {
    using A = accumulator_t<L>;
    const A gate = straight_through_gate{}.value(
        load<A>(logits(task, head, module)), gate_position{task, head, module, logits.extent(2)});
    return !is_exactly(gate, 0);
}

template <class L>
index_t count_users(const tensor_view<L, 3>& logits, index_t head, index_t module) noexcept {
    index_t users = 0;
    for (index_t task = 0; task < logits.extent(0); ++task)
        users += is_allocated(logits, task, head, module) ? 1 : 0;
    return users;
}

/// H_n = 1 + 1/2 + .. + 1/n
inline double harmonic_number(index_t n) noexcept {
    double sum = 0;
    for (index_t i = n; i >= 1; --i)
        sum += 1 / static_cast<double>(i);
    return sum;
}

/// log(n!), without std::lgamma, which writes to a global variable in some libraries.
inline double log_factorial(index_t n) noexcept {
    double sum = 0;
    for (index_t i = 2; i <= n; ++i)
        sum += std::log(static_cast<double>(i));
    return sum;
}

} // namespace detail

/// Bytes of workspace that indian_buffet_prior_forward needs.
inline std::size_t indian_buffet_prior_workspace_size(index_t tasks) noexcept {
    workspace meter;
    (void)meter.take<index_t, 1>({tasks});
    return meter.used();
}

/// -log P(Z) as above, in nats: to be added, with a factor, to the loss.
///
/// logits [tasks, heads, modules]; concentration positive (alpha; 3 in the published code).
///
/// Needs the workspace of `indian_buffet_prior_workspace_size`. Errors: a shape, the concentration,
/// the workspace. Cost: tasks heads modules gates.
template <class L>
double indian_buffet_prior_forward(tensor_view<L, 3> logits, double concentration,
                                   workspace scratch) {
    constexpr const char* function = "indian_buffet_prior_forward";
    require_input(function, "logits", logits, {any_extent, any_extent, any_extent});
    require_that(
        concentration > 0 && std::isfinite(concentration), function, "concentration",
        [] { return "a positive number"; }, [&] { return std::to_string(concentration); });
    const index_t tasks = logits.extent(0);
    require_workspace(function, scratch, indian_buffet_prior_workspace_size(tasks));

    const auto first_used = scratch.take<index_t, 1>({tasks}); // columns, by their first user
    std::fill_n(first_used.data(), tasks, index_t{0});
    double result = concentration * detail::harmonic_number(tasks);
    const double all = detail::log_factorial(tasks);
    for (index_t h = 0; h < logits.extent(1); ++h)
        for (index_t m = 0; m < logits.extent(2); ++m) {
            const index_t users = detail::count_users(logits, h, m);
            if (users == 0) continue;
            index_t first = 0;
            while (!detail::is_allocated(logits, first, h, m))
                ++first;
            // The product of 1, 2, .., new_n is new_n!.
            result += std::log(static_cast<double>(++first_used(first)));
            result += all - std::log(concentration) - detail::log_factorial(tasks - users) -
                      detail::log_factorial(users - 1);
        }
    return result;
}

/// The backward of indian_buffet_prior_forward, straight through the gate:
/// d_logits[n, h, m] += factor (H_{N - u} - H_{u - 1}) sigmoid'(logits[n, h, m]) for the columns in
/// use. That is the derivative of -log P(Z) by u with Gamma for the factorials; K and new_n, which
/// are counts, have none.
///
/// d_logits [tasks, heads, modules] accumulates; factor is the derivative of the loss by the prior.
///
/// Errors: a shape; overlapping elements of d_logits. Cost: 2 tasks heads modules gates.
template <class L, class DL>
void indian_buffet_prior_backward(tensor_view<L, 3> logits, double factor,
                                  tensor_view<DL, 3> d_logits) {
    constexpr const char* function = "indian_buffet_prior_backward";
    require_input(function, "logits", logits, {any_extent, any_extent, any_extent});
    require_output(function, "d_logits", d_logits, logits.extents());
    using A = accumulator_t<L, DL>;
    const index_t tasks = logits.extent(0);
    for (index_t h = 0; h < logits.extent(1); ++h)
        for (index_t m = 0; m < logits.extent(2); ++m) {
            const index_t users = detail::count_users(logits, h, m);
            if (users == 0) continue;
            const auto d_use = static_cast<A>(factor * (detail::harmonic_number(tasks - users) -
                                                        detail::harmonic_number(users - 1)));
            for (index_t n = 0; n < tasks; ++n) {
                const A slope = straight_through_gate{}.slope(
                    load<A>(logits(n, h, m)), gate_position{n, h, m, logits.extent(2)});
                d_logits(n, h, m) = store<DL>(load<A>(d_logits(n, h, m)) + d_use * slope);
            }
        }
}

} // namespace MHR_ISA
} // namespace mhr
