#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/batch/batch.hpp>

#include "support/comparison.hpp"
#include "support/contract/adapter.hpp"
#include "support/contract/call.hpp"
#include "support/contract/refusals.hpp"
#include "support/contract/variations.hpp"
#include "support/thread_executor.hpp"

/// \file
/// The sum over the ranks of a host, between the two products of LoRA: what adapters whose state is
/// `state.hidden` [rows, rank] do with `batch.sum_over_ranks`.

namespace mhr::test {

/// Stands for a host's sum over ranks: multiplies all values, and keeps what it was given.
struct rank_sum {
    double factor = 1;
    index_t calls = 0;
    tensor<double, 2> values{};

    void operator()(const tensor_ref<2>& given) {
        ++calls;
        CHECK(given.is_contiguous());
        values = values_as<double>(given);
        transform_elements(given, [&](double value) { return factor * value; });
    }
};

/// The rows of no task, which the ranks sum, too, are zeros.
inline void check_base_rows_of_sum(const adapter_call& call, const rank_sum& sum) {
    const auto rows = call.plan.base_rows();
    REQUIRE(rows.extent(0) > 0);
    REQUIRE(sum.values.extents()[0] == call.plan.rows());
    for (index_t i = 0; i < rows.extent(0); ++i)
        for (index_t k = 0; k < sum.values.extents()[1]; ++k)
            CHECK(sum.values(rows(i), k) == 0);
}

inline void check_rank_sums(const adapter& page) {
    const call_options options = call_options{}.with({70, 3, 2, 4, 20, 35, 9});
    adapter_call want(page, options);
    for (const tensor_spec& spec : want.specs)
        if (spec.part == role::gradient) want[spec.name].fill(0);
    want.run();

    // A sum that does nothing changes no bit, on any executor. It is called once a pass.
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        adapter_call call(page, options);
        for (const tensor_spec& spec : call.specs)
            if (spec.part == role::gradient) call[spec.name].fill(0);
        rank_sum forward, backward;
        page.forward({call.plan, executor, forward}, call.given());
        page.backward({call.plan, executor, backward}, call.given(), call.scratch());
        CHECK(forward.calls == 1);
        CHECK(backward.calls == 1);
        check_base_rows_of_sum(call, forward);
        check_base_rows_of_sum(call, backward);
        for (const tensor_spec& spec : call.specs)
            if (spec.part != role::state) {
                CAPTURE(spec.name);
                CHECK(same_bits(call, want, spec.name));
            }
    });

    // One that doubles hidden doubles what comes after it: all that is added to y; and of the
    // gradients those of x and of the first matrix.
    adapter_call doubled(page, options), undoubled(page, options);
    rank_sum doubling{2};
    for (adapter_call* call : {&doubled, &undoubled})
        for (const tensor_spec& spec : call->specs)
            if (spec.part == role::gradient || spec.part == role::output)
                (*call)[spec.name].fill(0);
    undoubled.run();
    page.forward({doubled.plan, {}, doubling}, doubled.given());
    doubled["state.hidden"].fill(0);
    for_each_position(doubled["state.hidden"].extents(), [&](const position<4>& at) {
        set_element(doubled["state.hidden"].ref(), at,
                    element(undoubled["state.hidden"].ref(), at));
    });
    page.backward({doubled.plan, {}, doubling}, doubled.given(), doubled.scratch());
    for (const tensor_spec& spec : doubled.specs) {
        const bool is_twice = spec.part == role::output || spec.variable == "x" ||
                              spec.variable == "adapters.a" || spec.variable == "inventory.a";
        const bool is_same = spec.variable == "adapters.b" || spec.variable == "inventory.b";
        if (!is_twice && !is_same) continue;
        if (spec.part != role::output && spec.part != role::gradient) continue;
        CAPTURE(spec.name);
        if (is_twice)
            transform_elements(undoubled[spec.name].ref(), [](double value) { return 2 * value; });
        CHECK(same_bits(doubled, undoubled, spec.name));
    }

    // Where no d_hidden is wanted, ranks have nothing to sum.
    adapter_call call(page, options);
    call.forward();
    arguments given = call.given();
    for (const tensor_spec& spec : call.specs)
        if (spec.part == role::gradient && spec.variable != "adapters.b" &&
            spec.variable != "inventory.b")
            given.leave_out(spec.name);
    rank_sum none;
    page.backward({call.plan, {}, none}, given, call.scratch());
    CHECK(none.calls == 0);
}

/// The memory that ranks sum is dense and complete.
inline void check_bad_rank_sums(const adapter& page) {
    rank_sum sum;
    for (layout order : {layout::padded, layout::column_major, layout::reversed}) {
        adapter_call call(page, call_options{}.in("state.hidden", order));
        const batch rows{call.plan, {}, sum};
        const auto outcome = refuses(call, page.forward_name(), "state.hidden",
                                     [&] { page.forward(rows, call.given()); });
        CHECK(outcome);
        CHECK(page.why_not(rows, call.given()) == outcome.message);
        CHECK(refuses(call, page.backward_name(), "state.hidden",
                      [&] { page.backward(rows, call.given(), call.scratch()); }));
    }
    adapter_call call(page);
    const batch shares{call.plan, share_executor{0, 2}, sum};
    const auto outcome =
        refuses(call, page.forward_name(), "executor", [&] { page.forward(shares, call.given()); });
    CHECK(outcome);
    CHECK(page.why_not(shares, call.given()) == outcome.message);
    CHECK(sum.calls == 0);
}

} // namespace mhr::test
