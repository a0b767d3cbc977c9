// Sizes at the ends of what models have: every rank, very wide layers, as many heads as features,
// many tasks, many modules.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/routing.hpp>
#include <mhr/routing/router.hpp>

#include "support/batches.hpp"
#include "support/combinations.hpp"
#include "support/comparison.hpp"
#include "support/contract/oracle.hpp"
#include "support/contract/routed_lora_page.hpp"
#include "support/long_cases.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// Activations and modules in 16 bits; weights, gradients and sums in f32.
call_options of_16_bits() {
    call_options options;
    for (const char* name : {"x", "y", "d_y"})
        options.of(name, element_type::f16);
    for (const char* name : {"inventory.a", "inventory.b"})
        options.of(name, element_type::bf16);
    return options;
}

void check_sizes(const contract_sizes& s, call_options options = {}) {
    CAPTURE(s.in_features());
    CAPTURE(s.out_features());
    CAPTURE(s.rank);
    CAPTURE(s.heads);
    const routed_lora_page page;
    adapter_call call(page, options.with(s));
    check_against_oracle(call);
}

} // namespace

TEST_CASE("every rank from 1 to 256") {
    for (index_t rank = 1; rank <= 256; rank += MHR_TEST_FEW_COMBINATIONS ? 15 : 1)
        check_sizes({4, 2, 1, 2, 5, 9, rank});
}

TEST_CASE("every rank from 1 to 256, in 16 bits") {
    // Odd and even ones, and all multiples of the tiles.
    const auto step = [](index_t rank) {
        return MHR_TEST_FEW_COMBINATIONS ? 17 : rank % 8 == 1 ? 7 : 1;
    };
    for (index_t rank = 1; rank <= 256; rank += step(rank))
        check_sizes({3, 1, 2, 2, 3, 4, rank}, of_16_bits());
}

TEST_CASE("layers of up to 65,536 features" * long_if_checked()) {
    for (const call_options& options : {call_options{} MHR_TEST_ALSO(of_16_bits())}) {
        for (index_t width : {65537 MHR_TEST_ALSO(4096, 65535, 65536)}) {
            check_sizes({2, 2, 1, 2, width, 3, 2}, options);
            check_sizes({2, 2, 1, 2, 3, width, 2}, options);
        }
        check_sizes({3, 1, 4, 3, 16384, 2, 1}, options);
        check_sizes({3, 1, 4, 3, 2, 16384, 1}, options);
    }
}

TEST_CASE("as many heads as features") {
    for (index_t heads : {2, 15, 64, 257}) {
        check_sizes({5, 2, heads, 3, 1, 1, 2});
        check_sizes({5, 2, heads, 2, 1, 3, 3});
    }
}

TEST_CASE("1,024 modules") {
    check_sizes({5, 2, 2, 1024, 3, 2, 2});
    // More entries than are mixed at a time.
    check_sizes({60, 40, 1, 1024, 2, 3, 1});
}

TEST_CASE("10,000 tasks in one batch" * long_if_checked()) {
    constexpr index_t tasks = 10000;
    constexpr index_t rows = 12500; // some tasks have two, and some rows have none
    std::vector<std::int64_t> task_of_row;
    random_source random(71);
    for (index_t row : random.permutation(rows))
        task_of_row.push_back(row % 5 == 4 ? no_task : row * 7 % tasks);
    const batch_plan plan = plan_of(task_of_row);
    REQUIRE(plan.entries() > tasks / 2);
    index_t found = 0;
    for (index_t entry = 0; entry < plan.entries(); ++entry)
        for (index_t i = 0; i < plan.rows_of(entry).extent(0); ++i, ++found) {
            const auto row = static_cast<std::size_t>(plan.rows_of(entry)(i));
            REQUIRE(task_of_row[row] == plan.tasks()(entry));
        }
    CHECK(found + plan.base_rows().extent(0) == rows);
    CHECK(plan.base_rows().extent(0) == rows / 5);

    check_sizes({rows, tasks, 2, 3, 2, 3, 2}, call_options{}.with_tasks(task_of_row));
}

TEST_CASE("a router of 10,000 tasks and 1,024 modules" * long_if_checked()) {
    // All tasks, of few modules; few tasks, of all modules.
    struct sizes {
        index_t entries, heads, modules;
    };
    for (const sizes& s : {sizes{10000, 2, 3}, sizes{5, 1, 1024}}) {
        CAPTURE(s.modules);
        constexpr index_t tasks = 10000;
        tensor<float, 3> logits({tasks, s.heads, s.modules}), d_logits(logits.extents());
        tensor<float, 3> weights({s.entries, s.heads, s.modules}), d_weights(weights.extents());
        std::vector<index_t> of_entry = random_source(3).permutation(tasks);
        of_entry.resize(static_cast<std::size_t>(s.entries));
        of_entry.front() = tasks - 1;
        const tensor_view<const index_t, 1> ids(of_entry.data(), {s.entries});
        random_source random(7);
        for (index_t task : of_entry)
            random.fill(logits.view().slice(0, task), 3);
        random.fill(d_weights.view());
        router_forward({}, logits.view(), ids, routing_rule{sigmoid_gate{}}, weights.view());
        router_backward({}, logits.view(), ids, routing_rule{sigmoid_gate{}}, d_weights.view(),
                        d_logits.view());

        const auto wide = copy_as<double>(logits.view());
        const auto d_wide = copy_as<double>(d_weights.view());
        tensor<double, 3> want(weights.extents()), d_want(logits.extents());
        reference::router_forward(wide.const_view(), ids, {}, want.view());
        reference::router_backward(wide.const_view(), ids, {}, d_wide.const_view(), d_want.view());
        const auto n = static_cast<double>(s.modules);
        CHECK(compare(weights.view(), want.view(), within<float>(n / 2 + 8)));
        // d_s is of the order of 1 / sum of s, and its terms cancel.
        tensor<double, 3> size(logits.extents());
        transform(d_want.view(), size.view(),
                  [](double d) { return is_exactly(d, 0) ? 0 : 8 + std::abs(d); });
        CHECK(compare(d_logits.view(), d_want.view(), size.view(), within<float>(n / 2 + 16)));
    }
}
