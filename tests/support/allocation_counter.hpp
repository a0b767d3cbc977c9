#pragma once

#include <cstddef>
#include <cstdlib> // says whose C library it is

#include "support/sanitizers.hpp"

/// \file
/// Counts the allocations of the whole program (allocation_counter.cpp): kernels must not allocate.
/// Every operator new is replaced, everywhere. malloc and its kin are counted where the C library
/// is glibc, whose own functions these are put in front of, and under AddressSanitizer, which calls
/// a hook. Elsewhere (other C libraries; ThreadSanitizer, whose hook leaves some out) malloc alone
/// goes unseen, and counts_malloc says so.

#if defined(__GLIBC__) && !MHR_TEST_HAS_ASAN && !defined(__SANITIZE_THREAD__) &&                   \
    !MHR_TEST_HAS_FEATURE(thread_sanitizer) && !MHR_TEST_HAS_FEATURE(memory_sanitizer)
#define MHR_TEST_GLIBC_HOOKS 1
#else
#define MHR_TEST_GLIBC_HOOKS 0
#endif

namespace mhr::test {

/// True if malloc, calloc, realloc, aligned_alloc, posix_memalign, memalign and what calls them are
/// counted, too.
inline constexpr bool counts_malloc = MHR_TEST_HAS_ASAN || MHR_TEST_GLIBC_HOOKS;

/// Allocations so far, of all threads. One that new takes from malloc counts once.
std::size_t allocation_count() noexcept;

/// How many allocations a call makes.
template <class F>
std::size_t allocations_of(F&& f) {
    const std::size_t before = allocation_count();
    f();
    return allocation_count() - before;
}

} // namespace mhr::test
