#pragma once

#include <cmath>
#include <vector>

#include <mhr/config.hpp>

/// \file
/// Oracle of the Indian-buffet-process prior: the formula with the Gamma function for the
/// factorials, so that it may be differentiated by the numbers of users. No checks, no speed.

namespace mhr {
inline namespace MHR_ISA {
namespace reference {

/// -log P(Z) = -K log(concentration) + sum over tasks n of log(new_n!) + concentration H_N
///             - sum over columns k of log((N - u_k)! (u_k - 1)! / N!)
/// (Griffiths & Ghahramani 2011) of the K columns in use, with `users` u_k > 0 of each, where task
/// n is the first user of `new_columns[n]` of them; N is the size of new_columns.
template <class S>
S indian_buffet_prior(const std::vector<S>& users, const std::vector<S>& new_columns,
                      const S& concentration) {
    const S tasks = S(new_columns.size());
    S result = -S(users.size()) * std::log(concentration);
    for (const S& count : new_columns)
        result += std::lgamma(count + 1);
    for (S n = 1; n <= tasks; ++n)
        result += concentration / n;
    for (const S& u : users)
        result -= std::lgamma(tasks - u + 1) + std::lgamma(u) - std::lgamma(tasks + 1);
    return result;
}

} // namespace reference
} // namespace MHR_ISA
} // namespace mhr
