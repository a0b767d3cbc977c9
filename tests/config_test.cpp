#include <mhr/config.hpp>

#include <doctest/doctest.h>

#ifndef MHR_EXCEPTIONS
#error "MHR_EXCEPTIONS is always defined"
#endif

TEST_CASE("errors are thrown where exceptions are switched on, as they are here") {
    CHECK(MHR_EXCEPTIONS == 1);
}
