#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include <mhr/core/executor.hpp>
#include <mhr/hosts/openmp.hpp>

#include "support/random_tensor.hpp"

/// \file
/// Executors of the tests: results must be the same to the last bit with all of them.

namespace mhr::test {

/// Stands for a host's pool: threads that fetch the parts one by one, in a shuffled order.
struct thread_executor {
    int threads = 2;
    std::uint64_t seed = 1;

    void operator()(index_t parts, parallel_body body) const {
        const std::vector<index_t> order = random_source(seed).permutation(parts);
        std::atomic<std::size_t> next{0};
        const auto work = [&] {
            for (std::size_t i = next++; i < order.size(); i = next++)
                body(order[i]);
        };
        std::vector<std::thread> others;
        for (int i = 1; i < threads; ++i)
            others.emplace_back(work);
        work();
        for (std::thread& other : others)
            other.join();
    }
};

/// Calls `f(executor, name)` with every executor that runs all parts: serial, OpenMP and shuffled
/// threads, from 1 thread to more than the machine is likely to have.
template <class F>
void for_each_executor(F&& f) {
    f(executor_ref(serial_executor{}), std::string("serial"));
    for (int threads : {1, 2, 3, 8}) {
        const std::string count = " of " + std::to_string(threads);
        f(executor_ref(openmp_executor{threads}), "OpenMP" + count);
        f(executor_ref(thread_executor{threads, static_cast<std::uint64_t>(threads)}),
          "threads" + count);
    }
}

/// Calls `f(executor)` once for each participant of `nth`, the last one first: for functions
/// documented as one phase, the result is then that of one call with all parts.
template <class F>
void for_each_share(index_t nth, F&& f) {
    for (index_t ith = nth; ith-- > 0;)
        f(executor_ref(share_executor{ith, nth}));
}

} // namespace mhr::test
