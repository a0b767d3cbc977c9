#pragma once

#include <doctest/doctest.h>

#include "support/sanitizers.hpp"

/// \file
/// Which cases are left out under AddressSanitizer.

namespace mhr::test {

/// For cases of great numbers of something, as in TEST_CASE("name" * long_if_checked()): with every
/// access checked they take minutes, of code that others run on less of it.
inline doctest::skip long_if_checked() {
    return doctest::skip(MHR_TEST_HAS_ASAN != 0);
}

} // namespace mhr::test
