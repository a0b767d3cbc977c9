#pragma once

#include <doctest/doctest.h>

#include "support/contract/adapter.hpp"
#include "support/contract/batches.hpp"
#include "support/contract/call.hpp"
#include "support/contract/oracle.hpp"
#include "support/contract/refusals.hpp"
#include "support/contract/variations.hpp"

/// \file
/// The contract of all adapters. A page (tests/lora, tests/ia3) describes an adapter, checks the
/// contract, and goes on with what is special about it:
///
///     TEST_CASE("LoRA keeps the contract") { check_contract(lora_page{}); }

namespace mhr::test {

inline void check_contract(const adapter& page) {
    SUBCASE("it agrees with the oracle at every size") {
        check_sizes(page);
    }
    SUBCASE("it is exact where sums are") {
        check_exact_sums(page);
    }
    SUBCASE("each tensor has an element type of its own") {
        check_element_types(page);
    }
    SUBCASE("it works in every layout") {
        check_layouts(page);
    }
    SUBCASE("inputs may have strides of 0") {
        check_strides_of_0(page);
    }
    SUBCASE("it gives the same bits on every executor") {
        check_executors(page);
    }
    SUBCASE("results are linear, by powers of two exactly") {
        check_powers_of_two(page);
    }
    SUBCASE("gradients agree with complex steps") {
        check_against_complex_steps(page);
    }
    SUBCASE("each subset of the gradients has the same bits") {
        check_absent_gradients(page);
    }
    SUBCASE("rows of no task take no part") {
        check_base_rows(page);
    }
    SUBCASE("any extent may be 0") {
        check_empty_extents(page);
    }
    SUBCASE("a row alone is what it is in a batch") {
        check_rows_alone(page);
    }
    SUBCASE("the order of the tasks does not matter") {
        check_order_of_tasks(page);
    }
    SUBCASE("it does not allocate") {
        check_allocations(page);
    }
    SUBCASE("it stays in the memory that it asks for") {
        check_workspaces(page);
    }
    SUBCASE("bad tensors are refused by name") {
        check_bad_tensors(page);
    }
    SUBCASE("types that the sums cannot hold are refused") {
        check_types_of_sums(page);
    }
    SUBCASE("shares and small workspaces are refused") {
        check_bad_execution(page);
    }
    SUBCASE("plans of other batches are refused") {
        check_other_plans(page);
    }
    SUBCASE("mistakes would be noticed") {
        check_that_mistakes_are_noticed(page);
    }
}

} // namespace mhr::test
