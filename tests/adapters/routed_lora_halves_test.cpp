// With nothing in between. Halves that sum over ranks: lora_shard_test.cpp; bad input:
// routed_lora_errors_test.cpp.

#include <doctest/doctest.h>

#include <mhr/adapters/routed_lora.hpp>
#include <mhr/adapters/routed_lora_halves.hpp>

#include "support/comparison.hpp"
#include "support/routed_checks.hpp"
#include "support/routed_problem.hpp"
#include "support/sharded_layer.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

TEST_CASE_TEMPLATE("routed LoRA by halves is routed LoRA, to the last bit", T,
                   MHR_TEST_ROUTED_STORAGES) {
    for (const routed_sizes& s : routed_shapes) {
        CAPTURE(s.rows);
        CAPTURE(s.rank);
        routed_problem<T> p(s), want(s);
        sharded_layer<T> layer(p, 1); // one rank, which owns all heads
        const auto d_y = copy_as<typename T::Y>(p.y.view());
        layer.forward();
        want.forward();
        CHECK(compare_bitwise(p.y.view(), want.y.view()));
        for (auto* q : {&p, &want})
            transform(d_y.view(), q->y.view(), [](const auto& value) { return value; });
        layer.backward();
        want.backward();
        CHECK(compare_bitwise(p.d_x.view(), want.d_x.view()));
        CHECK(compare_bitwise(p.d_a.view(), want.d_a.view()));
        CHECK(compare_bitwise(p.d_b.view(), want.d_b.view()));
        // d_weights is added to in another order: the oracle has seen it.
    }
}
