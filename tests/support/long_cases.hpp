#pragma once

#include <doctest/doctest.h>

#include "support/sanitizers.hpp"

/// \file
/// Which cases are left out under AddressSanitizer, or under an emulator.

namespace mhr::test {

/// For cases of great numbers of something, as in TEST_CASE("name" * long_if_checked()): with every
/// access checked they take minutes, of code that others run on less of it.
inline doctest::skip long_if_checked() {
    return doctest::skip(MHR_TEST_HAS_ASAN != 0);
}

/// For cases that take terabytes of addresses: emulators keep books of every page, in memory.
inline doctest::skip left_out_if_emulated() {
    return doctest::skip(MHR_TEST_EMULATED != 0);
}

} // namespace mhr::test
