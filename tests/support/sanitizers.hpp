#pragma once

/// \file
/// Which sanitizer the tests are compiled with, under GCC and Clang alike.

#if defined(__has_feature)
#define MHR_TEST_HAS_FEATURE(name) __has_feature(name)
#else
#define MHR_TEST_HAS_FEATURE(name) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || MHR_TEST_HAS_FEATURE(address_sanitizer)
#define MHR_TEST_HAS_ASAN 1
#else
#define MHR_TEST_HAS_ASAN 0
#endif
