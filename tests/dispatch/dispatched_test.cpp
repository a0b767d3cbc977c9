#include <cstdlib>
#include <string>

#include <doctest/doctest.h>

#include <mhr/compiled/levels.hpp>

#include "dispatch/plain_checks.hpp"
#include "test_kernels_levels.hpp"

using namespace mhr;
using namespace mhr::test;

// Run for every level, each of which MHR_LEVEL names, and for none.

namespace {

std::size_t vector_bytes_of(const std::string& level) {
    return level == "x86-64-v4" ? 64 : level == "x86-64-v3" ? 32 : 16;
}

/// Returns the level that has to be chosen.
std::string level_wanted() {
    const char* forced = std::getenv("MHR_LEVEL");
    if (forced != nullptr) return forced;
    std::string best;
    for (const char* level : test_kernels_levels)
        if (runs_level(level)) best = level;
    return best;
}

} // namespace

TEST_CASE("the level that is named, or else the highest that runs here, is chosen") {
    const std::string level = level_wanted();
    CAPTURE(level);
    REQUIRE((test_kernels_for(level.c_str()) != nullptr));
    CHECK(&test_kernels() == &test_kernels_for(level.c_str())());
    if (level != "default") CHECK(test_kernels().vector_bytes == vector_bytes_of(level));
}

TEST_CASE("the chosen kernels agree with the oracle") {
    check_against_oracle(test_kernels());
}

TEST_CASE("the chosen kernels' errors are caught") {
    check_errors(test_kernels());
}

TEST_CASE("each level that runs here is itself; others are not to be had") {
    int run = 0;
    for (const char* level : test_kernels_levels) {
        CAPTURE(level);
        const auto kernels = test_kernels_for(level);
        CHECK((kernels != nullptr) == runs_level(level));
        if (kernels == nullptr) continue;
        ++run;
        if (std::string(level) != "default")
            CHECK(kernels().vector_bytes == vector_bytes_of(level));
        check_against_oracle(kernels());
        check_errors(kernels());
    }
    CHECK(run > 0);
    CHECK((test_kernels_for("x86-64-v5") == nullptr));
    CHECK((test_kernels_for("") == nullptr));
}
