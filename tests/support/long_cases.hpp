#pragma once

#include <doctest/doctest.h>

/// \file
/// Which cases are left out under AddressSanitizer.

namespace mhr::test {

#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool has_address_sanitizer = true;
#elif defined(__has_feature)
inline constexpr bool has_address_sanitizer = __has_feature(address_sanitizer);
#else
inline constexpr bool has_address_sanitizer = false;
#endif

/// For cases of great numbers of something, as in TEST_CASE("name" * long_if_checked()): with every
/// access checked they take minutes, of code that others run on less of it.
inline doctest::skip long_if_checked() {
    return doctest::skip(has_address_sanitizer);
}

} // namespace mhr::test
