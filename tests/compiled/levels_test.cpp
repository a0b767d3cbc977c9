#include <string>

#include <doctest/doctest.h>

#include <mhr/compiled/levels.hpp>

#include "support/error_check.hpp"

// tests/dispatch has programs that are compiled for several levels.

using namespace mhr;

namespace {

int first() {
    return 1;
}
int second() {
    return 2;
}
constexpr function_of_level<int()> functions[] = {{"default", first}, {"x86-64-v9", second}};
constexpr function_of_level<int()> twice[] = {{"default", first}, {"default", second}};
constexpr function_of_level<int()> none[] = {{"x86-64-v9", first}};

} // namespace

TEST_CASE("levels contain those below them") {
    CHECK(runs_level("default"));
    CHECK(!runs_level("x86-64-v5"));
    CHECK(!runs_level(""));
    CHECK(!runs_level("x86-64-"));
    const char* const levels[] = {"x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4"};
    for (int i = 1; i < 4; ++i)
        if (runs_level(levels[i])) CHECK(runs_level(levels[i - 1]));
#if defined(__x86_64__)
    CHECK(runs_level("x86-64"));
#else
    CHECK(!runs_level("x86-64"));
#endif
    // This file runs, so that what it was compiled for is there.
#if defined(__AVX2__) && defined(__FMA__) && defined(__BMI2__) && defined(__MOVBE__)
    CHECK(runs_level("x86-64-v3"));
#endif
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512CD__)
    CHECK(runs_level("x86-64-v4"));
#endif
}

// This takes GCC 12, since earlier ones know no levels.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
TEST_CASE("the compiler's own run-time library sees the same levels") {
    CHECK(runs_level("x86-64-v2") == (__builtin_cpu_supports("x86-64-v2") != 0));
    CHECK(runs_level("x86-64-v3") == (__builtin_cpu_supports("x86-64-v3") != 0));
    CHECK(runs_level("x86-64-v4") == (__builtin_cpu_supports("x86-64-v4") != 0));
}
#endif

TEST_CASE("find_level finds what runs here") {
    CHECK((find_level(functions, "default") == first));
    CHECK((find_level(functions, "x86-64-v9") == nullptr)); // there, but no processor runs it
    CHECK((find_level(functions, "x86-64") == nullptr));    // runs, but is not there
}

TEST_CASE("choose_level takes the last that runs here, or the one wanted") {
    CHECK((choose_level(functions, nullptr) == first));
    CHECK((choose_level(functions, "") == first));
    CHECK((choose_level(functions, "default") == first));
    CHECK((choose_level(twice, nullptr) == second));
    CHECK(test::error_of([] { (void)choose_level(functions, "x86-64-v9"); }) ==
          "choose_level: level: expected one of default, x86-64-v9 that this processor runs, got "
          "x86-64-v9");
    CHECK(test::error_of([] { (void)choose_level(none, nullptr); }) ==
          "choose_level: level: expected one of x86-64-v9 that this processor runs, got a "
          "processor that runs none");
}
