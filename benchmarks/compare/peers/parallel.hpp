#pragma once

#include "../../support/layer_case.hpp"

namespace mhr_bench {

/// Calls `f(i)` for each item, which are split over the threads by number. The peers' products are
/// too small to be split inside the libraries, so it is their rows, tasks and features that are.
template <class F>
void for_each_item(int threads, index_t items, F&& f) {
    if (threads == 1 || items == 1) {
        for (index_t i = 0; i < items; ++i)
            f(i);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (index_t i = 0; i < items; ++i)
        f(i);
}

} // namespace mhr_bench
