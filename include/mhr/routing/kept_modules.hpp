#pragma once

#include <cmath>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// The modules of a head that a top-k keeps: what the normalisers that keep some have in common.

namespace mhr {
namespace routing_details {

/// The kept modules are those that do not come after the last one, in the order of falling s, of
/// equal ones the first. (No infinities stand for the ends of that order: compilers may be told
/// that there are none.)
template <class A>
struct kept_modules {
    bool has_all;
    A last = 0;
    index_t last_module = -1; // none yet

    /// NaN counts as kept, so that it shows in the weights rather than being lost.
    MHR_INLINE bool has(index_t m, A s) const noexcept {
        if (has_all) return true;
        if (last_module < 0) return std::isnan(s);
        return !(s < last) && !(is_exactly(s, last) && m > last_module);
    }
};

/// The `kept` modules of largest s. The cost is `kept` passes over the modules, unless all are
/// kept: few are, and there is no scratch to ask for.
template <class A, class S>
MHR_INLINE kept_modules<A> largest_modules(index_t kept, index_t modules, S& s) noexcept {
    kept_modules<A> chosen{kept >= modules};
    for (index_t k = 0; k < kept && !chosen.has_all; ++k) {
        index_t next = -1;
        for (index_t m = 0; m < modules; ++m)
            if (!chosen.has(m, s(m)) && (next < 0 || s(m) > s(next))) next = m;
        if (next < 0) break; // what is left is NaN
        chosen.last = s(next);
        chosen.last_module = next;
    }
    return chosen;
}

/// A number of kept modules below 1 is refused.
MHR_INLINE void check_kept(argument_checks& checks, index_t kept) {
    checks.expect(kept >= 1, "normaliser.kept", "1 or more", kept);
}

} // namespace routing_details
} // namespace mhr
