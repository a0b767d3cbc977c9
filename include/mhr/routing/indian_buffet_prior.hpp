#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
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

namespace prior_details {

/// The logits of all tasks for one column, a module of a head.
template <class A>
element_row<A> column_of(const const_tensor_ref<3>& logits, index_t head, index_t module) noexcept {
    return {logits.type(), logits.address_of(0, head, module), logits.stride(0), logits.extent(0)};
}

/// True if the allocation switches a module of this logit on.
template <class A>
bool is_allocated(A logit) noexcept {
    return !is_exactly(straight_through_gate{}.value(logit, gate_position{0, 0, 0, 1}), 0);
}

/// The number of tasks that use a column. Forward and backward count in the type of the logits, so
/// that they agree.
inline index_t count_users(const const_tensor_ref<3>& logits, index_t head,
                           index_t module) noexcept {
    index_t users = 0;
    with_sums(sums_of(logits.type(), logits.type()), [&](auto zero) {
        const auto column = column_of<decltype(zero)>(logits, head, module);
        for (index_t task = 0; task < logits.extent(0); ++task)
            users += is_allocated(column[task]) ? 1 : 0;
    });
    return users;
}

/// The first of the tasks that use a column; there is one.
inline index_t first_user(const const_tensor_ref<3>& logits, index_t head,
                          index_t module) noexcept {
    index_t first = 0;
    with_sums(sums_of(logits.type(), logits.type()), [&](auto zero) {
        const auto column = column_of<decltype(zero)>(logits, head, module);
        while (!is_allocated(column[first]))
            ++first;
    });
    return first;
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

} // namespace prior_details

/// Returns the bytes of workspace that indian_buffet_prior_forward needs.
inline std::size_t indian_buffet_prior_workspace_size(index_t tasks) noexcept {
    workspace meter;
    (void)meter.take<index_t, 1>({tasks});
    return meter.used();
}

/// -log P(Z) as above, in nats: to be added, with a factor, to the loss.
///
/// logits [tasks, heads, modules]; concentration positive (alpha; 3 in the published code).
///
/// It needs the workspace of `indian_buffet_prior_workspace_size`. These are refused: logits of
/// negative extents or without memory; a concentration that is not positive and finite; less
/// workspace. The cost is tasks heads modules gates.
inline double indian_buffet_prior_forward(const const_tensor_ref<3>& logits, double concentration,
                                          workspace scratch) {
    argument_checks checks("indian_buffet_prior_forward");
    checks.input("logits", logits);
    checks.expect(concentration > 0 && std::isfinite(concentration), "concentration",
                  "a positive number", concentration);
    const index_t tasks = logits.extent(0);
    if (checks.passed()) checks.workspace_size(scratch, indian_buffet_prior_workspace_size(tasks));
    checks.raise();

    const auto first_used = scratch.take<index_t, 1>({tasks}); // columns, by their first user
    std::fill_n(first_used.data(), tasks, index_t{0});
    double result = concentration * prior_details::harmonic_number(tasks);
    const double all = prior_details::log_factorial(tasks);
    for (index_t h = 0; h < logits.extent(1); ++h)
        for (index_t m = 0; m < logits.extent(2); ++m) {
            const index_t users = prior_details::count_users(logits, h, m);
            if (users == 0) continue;
            // The product of 1, 2, .., new_n is new_n!.
            const index_t first = prior_details::first_user(logits, h, m);
            result += std::log(static_cast<double>(++first_used(first)));
            result += all - std::log(concentration) - prior_details::log_factorial(tasks - users) -
                      prior_details::log_factorial(users - 1);
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
/// These are refused: logits of negative extents or without memory; d_logits of another shape, or
/// of which elements overlap. The cost is 2 tasks heads modules gates.
inline void indian_buffet_prior_backward(const const_tensor_ref<3>& logits, double factor,
                                         const tensor_ref<3>& d_logits) {
    argument_checks checks("indian_buffet_prior_backward");
    checks.input("logits", logits);
    checks.output("d_logits", d_logits, logits.extents());
    checks.raise();
    const index_t tasks = logits.extent(0);
    with_sums(sums_of(logits.type(), d_logits.type()), [&](auto zero) {
        using A = decltype(zero);
        for (index_t h = 0; h < logits.extent(1); ++h)
            for (index_t m = 0; m < logits.extent(2); ++m) {
                const index_t users = prior_details::count_users(logits, h, m);
                if (users == 0) continue;
                const auto column = prior_details::column_of<A>(logits, h, m);
                const auto d_use =
                    static_cast<A>(factor * (prior_details::harmonic_number(tasks - users) -
                                             prior_details::harmonic_number(users - 1)));
                const element_row_output<A> d_column(d_logits.type(), d_logits.address_of(0, h, m),
                                                     d_logits.stride(0));
                for (index_t n = 0; n < tasks; ++n)
                    d_column.add(n, d_use * straight_through_gate{}.slope(
                                                column[n], gate_position{n, h, m, 1}));
            }
    });
}

} // namespace MHR_ISA
} // namespace mhr
