#include <initializer_list>

#include <doctest/doctest.h>

#include <mhr/core/sums.hpp>

using namespace mhr;

TEST_CASE("with_sums calls once, with a zero of the type") {
    for (element_type sums : {element_type::f32, element_type::f64}) {
        int calls = 0;
        with_sums(sums, [&](auto zero) {
            CHECK(element_type_of_v<decltype(zero)> == sums);
            CHECK(zero == 0);
            ++calls;
        });
        CHECK(calls == 1);
    }
}
