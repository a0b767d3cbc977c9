#include <stdexcept>
#include <string>
#include <type_traits>

#include <doctest/doctest.h>

#include <mhr/core/error.hpp>

// no_exceptions/error_test.cpp tests what happens without exceptions.

using namespace mhr;

static_assert(MHR_EXCEPTIONS == 1);
static_assert(std::is_base_of_v<std::invalid_argument, error>);

TEST_CASE("raise throws an error with the message") {
    CHECK_THROWS_WITH_AS(raise("what: is wrong"), "what: is wrong", error);
    // Hosts that do not know the library catch what the standard library throws.
    CHECK_THROWS_AS(raise("text"), std::invalid_argument);
}

TEST_CASE("set_error_handler exchanges the handler, which is not called while errors are thrown") {
    static int calls = 0;
    const error_handler counter = [](const char*) { ++calls; };
    const error_handler first = set_error_handler(counter);
    CHECK((first == nullptr));
    CHECK_THROWS_AS(raise("text"), error);
    CHECK(calls == 0);
    CHECK((set_error_handler(first) == counter));
    CHECK((set_error_handler(nullptr) == nullptr));
}
