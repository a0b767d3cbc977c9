#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include "support/allocation_counter.hpp"
#include "support/comparison.hpp"
#include "support/contract/adapter.hpp"
#include "support/contract/call.hpp"
#include "support/contract/oracle.hpp"
#include "support/contract/variations.hpp"
#include "support/guarded_buffer.hpp"

/// \file
/// Rows of no task, empty batches, rows by themselves, absent gradients and memory: what an adapter
/// must do about each.

namespace mhr::test {

/// Row `row` of a tensor of rows.
inline any_tensor row_of(const tensor_spec& spec, const any_tensor& tensor, index_t row) {
    return tensor.block(spec.first(), row, 1);
}

/// Copies the elements of one tensor to another of its type.
inline void copy_elements(const any_tensor& from, const any_tensor& to) {
    for_each_position(from.extents(),
                      [&](const position<4>& at) { set_element(to, at, element(from, at)); });
}

/// Rows of no task change nothing in others' results, whatever they hold, and are left alone
/// unless the adapter passes them on.
inline void check_base_rows(const adapter& page) {
    adapter_call spoilt(page), want(page), before(page);
    REQUIRE(spoilt.plan.base_rows().extent(0) > 0);
    for (const tensor_spec& spec : spoilt.specs) {
        if (spec.first_axis != counted::rows || spec.is_written()) continue;
        for (index_t i = 0; i < spoilt.plan.base_rows().extent(0); ++i)
            transform_elements(row_of(spec, spoilt[spec.name].ref(), spoilt.plan.base_rows()(i)),
                               [](double) { return std::numeric_limits<double>::quiet_NaN(); });
    }
    want.run();
    spoilt.run();
    const auto entries = entry_of_row(want.plan);
    for (const tensor_spec& spec : want.specs) {
        if (!spec.is_written()) continue;
        CAPTURE(spec.name);
        if (spec.first_axis != counted::rows) {
            CHECK(same_bits(spoilt, want, spec.name));
            continue;
        }
        for (index_t row = 0; row < want.plan.rows(); ++row) {
            const auto of = [&](adapter_call& call) {
                return row_of(spec, call[spec.name].ref(), row);
            };
            if (entries(row) >= 0)
                CHECK(compare_bitwise(of(spoilt), of(want)));
            else if (!page.writes_without_tasks())
                CHECK(compare_bitwise(of(spoilt), of(before)));
        }
    }
    CHECK(spoilt.intact());

    // A batch of rows of no task.
    adapter_call nobody(page, call_options{}.with_tasks(std::vector<std::int64_t>(40, no_task)));
    const auto untouched = nobody.take_snapshots();
    if (page.writes_without_tasks()) {
        check_against_oracle(nobody);
    } else {
        nobody.run();
        CHECK(nobody.take_snapshots() == untouched);
    }
}

/// Any extent but that of heads may be 0. Nothing needs memory then.
inline void check_empty_extents(const adapter& page) {
    const auto without = [](index_t contract_sizes::*size) {
        contract_sizes sizes;
        sizes.*size = 0;
        return sizes;
    };
    for (const auto size : {&contract_sizes::rows, &contract_sizes::modules, &contract_sizes::in,
                            &contract_sizes::out, &contract_sizes::rank}) {
        const contract_sizes sizes = without(size);
        CAPTURE(sizes.rows);
        CAPTURE(sizes.modules);
        CAPTURE(sizes.in);
        CAPTURE(sizes.out);
        CAPTURE(sizes.rank);
        adapter_call call(page, call_options{}.with(sizes)), null(page, call_options{}.with(sizes));
        check_against_oracle(call);
        arguments given = null.given();
        for (const tensor_spec& spec : null.specs) {
            const any_tensor tensor = given[spec.name];
            if (tensor.size() == 0)
                given[spec.name] = {nullptr, tensor.type(), tensor.extents(), tensor.strides()};
        }
        CHECK(page.why_not({null.plan}, given).empty());
        page.forward({null.plan}, given);
        page.backward({null.plan}, given, null.scratch());
        check_same_results(null, call);
    }
}

/// A row, and a gradient of it, is the same alone and in a batch, to the last bit.
inline void check_rows_alone(const adapter& page) {
    if (page.needs_all_gradients()) return; // one of all rows
    adapter_call all(page, call_options{}.with({29, 3, 2, 4, 20, 35, 9}));
    adapter_call alone(page, all.options);
    all.run();
    const auto entries = entry_of_row(all.plan);
    batch_plan plan;
    plan.assign_single_task(1);
    for (index_t row = 0; row < all.plan.rows(); ++row) {
        if (entries(row) < 0) continue;
        arguments given = alone.given();
        for (const tensor_spec& spec : all.specs) {
            if (spec.part == role::gradient && spec.first_axis != counted::rows)
                given.leave_out(spec.name);
            else if (spec.first_axis == counted::rows)
                given[spec.name] = row_of(spec, given[spec.name], row);
            else if (spec.first_axis == counted::entries)
                given[spec.name] = given[spec.name].block(spec.first(), entries(row), 1);
        }
        page.forward({plan}, given);
        page.backward({plan}, given, alone.scratch());
    }
    for (const tensor_spec& spec : all.specs) {
        if (!spec.is_written() || (spec.part == role::gradient && spec.first_axis != counted::rows))
            continue;
        CAPTURE(spec.name);
        for (index_t row = 0; row < all.plan.rows(); ++row) {
            if (spec.first_axis == counted::rows && entries(row) < 0) continue;
            const auto of = [&](adapter_call& call) {
                const any_tensor tensor = call[spec.name].ref();
                return spec.first_axis == counted::rows ? row_of(spec, tensor, row) : tensor;
            };
            CHECK(compare_bitwise(of(alone), of(all)));
        }
    }
}

/// Rows of different tasks may change places, and rows of no task come and go.
inline void check_order_of_tasks(const adapter& page) {
    const std::vector<std::int64_t> tasks{4, 0, 4, -1, 2, 2, 0, 4, -1, 0};
    const std::vector<index_t> order{4, 0, 1, 2, 5, 8, 6, 7, 9}; // rows of the first batch
    std::vector<std::int64_t> moved_tasks;
    for (index_t row : order)
        moved_tasks.push_back(tasks[static_cast<std::size_t>(row)]);
    adapter_call want(page, call_options{}.with_tasks(tasks));
    adapter_call moved(page, call_options{}.with_tasks(moved_tasks));
    const auto for_each_row = [&](const tensor_spec& spec, auto&& f) {
        for (std::size_t i = 0; i < order.size(); ++i)
            f(row_of(spec, want[spec.name].ref(), order[i]),
              row_of(spec, moved[spec.name].ref(), static_cast<index_t>(i)));
    };
    for (const tensor_spec& spec : want.specs)
        if (spec.first_axis == counted::rows) for_each_row(spec, copy_elements);
    want.run();
    moved.run();
    for (const tensor_spec& spec : want.specs) {
        if (!spec.is_written()) continue;
        CAPTURE(spec.name);
        if (spec.first_axis == counted::rows)
            for_each_row(spec, [](const any_tensor& from, const any_tensor& to) {
                CHECK(compare_bitwise(to, from));
            });
        else
            CHECK(same_bits(moved, want, spec.name));
    }
}

/// Each subset of the gradients has the bits that all of them have; the others are left alone.
inline void check_absent_gradients(const adapter& page) {
    adapter_call all(page), none(page);
    all.run();
    if (page.needs_all_gradients()) return;
    std::vector<std::string_view> gradients;
    for (const tensor_spec& spec : all.specs)
        if (spec.part == role::gradient) gradients.push_back(spec.name);
    for (unsigned wanted = 0; wanted < 1U << gradients.size(); ++wanted) {
        CAPTURE(wanted);
        adapter_call call(page);
        arguments given = call.given();
        for (std::size_t n = 0; n < gradients.size(); ++n)
            if ((wanted >> n & 1U) == 0) given.leave_out(gradients[n]);
        call.forward();
        page.backward({call.plan}, given, call.scratch());
        for (std::size_t n = 0; n < gradients.size(); ++n) {
            CAPTURE(gradients[n]);
            CHECK(same_bits(call, (wanted >> n & 1U) != 0 ? all : none, gradients[n]));
        }
        CHECK(call.intact());
    }
}

inline void check_allocations(const adapter& page) {
    for (element_type type : all_element_types) {
        CAPTURE(std::string(name_of(type)));
        const auto sums = sums_of(type, element_type::f32);
        adapter_call call(page,
                          call_options{}.with({70, 3, 2, 4, 40, 70, 18}).of(type).with_sums(sums));
        const arguments given = call.given();
        const workspace scratch = call.scratch();
        CHECK(allocations_of([&] { page.forward({call.plan}, given); }) == 0);
        CHECK(allocations_of([&] { page.backward({call.plan}, given, scratch); }) == 0);
    }
}

/// A state and a workspace of the sizes that are told suffice, wherever the memory begins, and are
/// not left.
inline void check_workspaces(const adapter& page) {
    for (element_type sums : sum_types) {
        const call_options options = call_options{}.with_sums(sums);
        adapter_call want(page, options);
        want.run();
        const std::size_t state_size = page.state_size({want.plan}, want.given(), sums);
        const std::size_t scratch_size = want.scratch().available();
        for (std::size_t start : {0U, 1U, 4U, 63U}) {
            CAPTURE(start);
            adapter_call call(page, options);
            guarded_buffer<std::byte, 1> state({static_cast<index_t>(start + state_size)});
            guarded_buffer<std::byte, 1> scratch({static_cast<index_t>(start + scratch_size)});
            workspace memory(state.view().data() + start, state_size);
            arguments given = call.given();
            page.take_state(memory, {call.plan}, given, sums);
            CHECK(memory.available() == 0);
            page.forward({call.plan}, given);
            page.backward({call.plan}, given, {scratch.view().data() + start, scratch_size});
            CHECK(state.intact());
            CHECK(scratch.intact());
            for (const tensor_spec& spec : want.specs) {
                if (spec.part != role::output && spec.part != role::gradient) continue;
                CAPTURE(spec.name);
                CHECK(same_bits(call, want, spec.name));
            }
        }
    }
}

} // namespace mhr::test
