#pragma once

#include <cstddef>

/// \file
/// Counts the allocations of the whole program, by replacing the global operator new
/// (allocation_counter.cpp): kernels must not allocate.

namespace mhr::test {

/// Calls of any operator new so far, of all threads.
std::size_t allocation_count() noexcept;

/// How many allocations a call makes.
template <class F>
std::size_t allocations_of(F&& f) {
    const std::size_t before = allocation_count();
    f();
    return allocation_count() - before;
}

} // namespace mhr::test
