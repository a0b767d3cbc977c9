#include <type_traits>

#include <doctest/doctest.h>

#include <mhr/core/strided.hpp>

using namespace mhr;

TEST_CASE("a strided run walks by its stride, a dense one by one") {
    int memory[] = {0, 1, 2, 3, 4, 5, 6};
    const detail::strided<int, false> every_second{memory, 2};
    CHECK(every_second[3] == 6);
    const detail::strided<int, false> backwards{memory + 6, -3};
    CHECK(backwards[2] == 0);
    const detail::strided<int, false> repeated{memory + 5, 0};
    CHECK(repeated[100] == 5);
    // A dense run of one element may come with any stride: it is not looked at.
    const detail::strided<const int, true> dense{memory, 99};
    CHECK(dense[4] == 4);
    every_second[1] = 7;
    CHECK(memory[2] == 7);
}

TEST_CASE("specialise passes the condition on as a type") {
    for (bool condition : {true, false}) {
        int calls = 0;
        detail::specialise(condition, [&](auto known) {
            ++calls;
            CHECK(decltype(known)::value == condition);
        });
        CHECK(calls == 1);
    }
}
