#include <mhr/version.hpp>

#include <doctest/doctest.h>

static_assert(MHR_VERSION_MAJOR >= 0 && MHR_VERSION_MINOR >= 0 && MHR_VERSION_PATCH >= 0);
// CMake reads them by a pattern of digits: no expressions, and room for comparisons such as
// MAJOR * 10000 + MINOR * 100 + PATCH.
static_assert(MHR_VERSION_MINOR < 100 && MHR_VERSION_PATCH < 100);

#if MHR_VERSION_MAJOR * 10000 + MHR_VERSION_MINOR * 100 + MHR_VERSION_PATCH < 100
#error "the version can be tested by the preprocessor, and 0.1.0 is the first"
#endif

TEST_CASE("the version is set") {
    CHECK(MHR_VERSION_MAJOR + MHR_VERSION_MINOR + MHR_VERSION_PATCH > 0);
}
