#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/element_type.hpp>
#include <mhr/core/executor.hpp>

#include "support/combinations.hpp"
#include "support/comparison.hpp"
#include "support/contract/adapter.hpp"
#include "support/contract/call.hpp"
#include "support/contract/oracle.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/thread_executor.hpp"

/// \file
/// Calls of every size, element type, layout and executor, and what must be the same in all of
/// them.

namespace mhr::test {

/// Every size once 1; one head, one module, one task, more tasks than rows; features and ranks
/// round the tiles and vectors; batches of several blocks and parts, and of several parts of each
/// task.
inline const std::vector<contract_sizes>& contract_shapes() {
    static const std::vector<contract_sizes> shapes{
        {1, 1, 1, 1, 1, 1, 1},     {9, 2, 3, 4, 3, 5, 2},     {40, 1, 2, 3, 8, 11, 16},
        {5, 9, 1, 4, 17, 6, 3},    {20, 3, 4, 1, 16, 16, 4},  {7, 2, 5, 3, 1, 7, 17},
        {6, 2, 2, 2, 5, 1, 33},    {4, 2, 2, 2, 65, 70, 5},   {3, 1, 1, 2, 257, 3, 1},
        {50, 2, 1, 1, 63, 66, 17}, {17, 1, 1, 2, 8, 130, 15}, {2, 3, 1, 2, 130, 300, 5},
        {7, 2, 1, 30, 3, 7, 17},   {300, 1, 1, 1, 5, 3, 2},   {800, 3, 1, 2, 5, 3, 2}};
    return shapes;
}

/// The bits of one result, which may have no elements.
inline comparison same_bits(adapter_call& got, adapter_call& want, std::string_view result) {
    if (want[result].ref().size() == 0) return {true, 0, 0, "nothing to compare"};
    return compare_bitwise(got[result].const_ref(), want[result].const_ref());
}

/// Checks that all results have the same bits.
inline void check_same_results(adapter_call& got, adapter_call& want) {
    for (const tensor_spec& spec : want.specs) {
        if (!spec.is_written()) continue;
        CAPTURE(spec.name);
        CHECK(same_bits(got, want, spec.name));
    }
    CHECK(got.intact());
}

inline void check_sizes(const adapter& page) {
    using call_of = call_options;
    using type = element_type;
    const std::vector<call_options> kinds{
        call_of{}, call_of{}.of(type::f64).with_sums(type::f64)
                       MHR_TEST_ALSO(call_of{}.of(type::bf16), call_of{}.of(type::f16),
                                     call_of{}.of(type::bf16).with_sums(type::f64),
                                     call_of{}
                                         .of("x", type::f16)
                                         .of("y", type::bf16)
                                         .of("d_y", type::bf16)
                                         .of("gradients.x", type::f16))};
    for (const contract_sizes& sizes : contract_shapes())
        for (call_options kind : kinds) {
            CAPTURE(sizes.rows);
            CAPTURE(sizes.heads);
            CAPTURE(sizes.modules);
            CAPTURE(sizes.in);
            CAPTURE(sizes.out);
            CAPTURE(sizes.rank);
            CAPTURE(std::string(name_of(kind.stored)));
            CAPTURE(std::string(name_of(kind.sums)));
            adapter_call call(page, kind.with(sizes));
            check_against_oracle(call);
        }
}

/// Sums of whole numbers are exact: all results are the oracle's to the last bit.
inline void check_exact_sums(const adapter& page) {
    for (element_type type : sum_types)
        for (const contract_sizes& sizes : contract_shapes()) {
            if (sizes.in > 100 || sizes.rows > 100) continue; // sums beyond 2^24
            if (page.divides_by_modules() && (sizes.modules & (sizes.modules - 1)) != 0) continue;
            CAPTURE(std::string(name_of(type)));
            CAPTURE(sizes.rank);
            adapter_call call(page, call_options{}.with(sizes).of(type).with_sums(type).scaled(2));
            for (const tensor_spec& spec : call.specs) // + 0, so that no zero is negative
                transform_elements(call[spec.name].ref(),
                                   [](double value) { return std::round(2 * value) + 0; });
            const expectation<double> want(call);
            call.run();
            for (const tensor_spec& spec : call.specs) {
                if (!spec.is_written() || call[spec.name].ref().size() == 0) continue;
                CAPTURE(spec.name);
                CHECK(compare(call[spec.name].const_ref(), want.values.tensors.at(spec.name).view(),
                              error_bound{0, 0, 0}));
            }
        }
}

/// Every combination of element types of what is read and of y. The gradients' types are random:
/// they depend on nothing but the sums.
inline void check_element_types(const adapter& page) {
    const contract_sizes sizes{4, 2, 2, 2, 9, 5, 3};
    const std::vector<tensor_spec> specs = page.tensors(sizes, 1);
    std::vector<std::string_view> chosen;
    for (const tensor_spec& spec : specs)
        if (!spec.is_gradient() && spec.part != role::state) chosen.push_back(spec.name);
    random_source random(5);
    for (element_type sums : sum_types) {
        // f64 stands last, and is for sums of f64 alone.
        const auto types =
            static_cast<index_t>(all_element_types.size()) - (sums == element_type::f32 ? 1 : 0);
        const auto type_of = [&](index_t number) {
            return all_element_types[static_cast<std::size_t>(number)];
        };
        index_t combinations = 1;
        for (std::size_t n = 0; n < chosen.size(); ++n)
            combinations *= types;
        const index_t step = MHR_TEST_FEW_COMBINATIONS ? 7 : 1;
        for (index_t combination = 0; combination < combinations; combination += step) {
            call_options options = call_options{}.with(sizes).with_sums(sums);
            index_t left = combination;
            std::string text;
            for (std::string_view name : chosen) {
                options.of(name, type_of(left % types));
                text += std::string(name) + " " + name_of(type_of(left % types)) + ", ";
                left /= types;
            }
            for (const tensor_spec& spec : specs) {
                if (spec.part == role::state || options.types.count(spec.name) != 0) continue;
                options.of(spec.name, type_of(random.integer(types)));
                text += std::string(spec.name) + " " + name_of(options.types[spec.name]) + ", ";
            }
            CAPTURE(text);
            CAPTURE(std::string(name_of(sums)));
            adapter_call call(page, options);
            check_against_oracle(call);
        }
    }
}

/// Every combination of layouts of the rows, the parameters, the state and the gradients; where the
/// layout does not decide the order of a sum, the bits are those of dense memory.
inline void check_layouts(const adapter& page) {
    const contract_sizes sizes{13, 2, 2, 3, 5, 35, 3};
    for (element_type stored : {element_type::f32, element_type::bf16}) {
        adapter_call want(page, call_options{}.with(sizes).of(stored));
        want.run();
        const auto check = [&](const std::array<layout, 4>& layouts) {
            call_options options = call_options{}.with(sizes).of(stored);
            for (const tensor_spec& spec : want.specs)
                options.in(spec.name, layouts[spec.part == role::gradient        ? 3
                                              : spec.part == role::state         ? 2
                                              : spec.first_axis == counted::rows ? 0
                                                                                 : 1]);
            CAPTURE(name_of(layouts[0]));
            CAPTURE(name_of(layouts[1]));
            CAPTURE(name_of(layouts[2]));
            CAPTURE(name_of(layouts[3]));
            adapter_call call(page, options);
            check_against_oracle(call);
            for (const tensor_spec& spec : want.specs)
                if (spec.is_written() && !page.sums_along_memory(spec.name)) {
                    CAPTURE(spec.name);
                    CHECK(same_bits(call, want, spec.name));
                }
        };
        for (layout of_rows : all_layouts)
            for (layout of_parameters : all_layouts)
                for (layout of_state : {layout::row_major, layout::column_major, layout::reversed})
                    for (layout of_gradients : all_layouts)
                        check({of_rows, of_parameters, of_state, of_gradients});
    }
}

/// A stride of 0 repeats an input along an axis, and gives the bits of copies.
inline void check_strides_of_0(const adapter& page) {
    const contract_sizes sizes{9, 2, 2, 3, 5, 35, 3};
    const adapter_call of_specs(page, call_options{}.with(sizes));
    for (const tensor_spec& spec : of_specs.specs) {
        if (spec.is_written()) continue;
        for (std::size_t axis = spec.first(); axis < 4; ++axis) {
            CAPTURE(spec.name);
            CAPTURE(axis);
            adapter_call repeated(page, call_options{}.with(sizes));
            adapter_call copied(page, call_options{}.with(sizes));
            const any_tensor first = copied[spec.name].ref().block(axis, 0, 1);
            const any_tensor all = copied[spec.name].ref();
            for_each_position(all.extents(), [&](const position<4>& at) {
                position<4> of_first = at;
                of_first[axis] = 0;
                set_element(all, at, element(first, of_first));
            });
            arguments given = repeated.given();
            const any_tensor dense = given[spec.name];
            auto strides = dense.strides();
            strides[axis] = 0;
            given[spec.name] = {dense.data(), dense.type(), dense.extents(), strides};
            page.forward({repeated.plan}, given);
            page.backward({repeated.plan}, given, repeated.scratch());
            copied.run();
            for (const tensor_spec& result : copied.specs)
                if (result.is_written() && !page.sums_along_memory(result.name)) {
                    CAPTURE(result.name);
                    CHECK(same_bits(repeated, copied, result.name));
                }
        }
    }
}

/// The results are the same on every executor; shares, where a function is one phase, put them
/// together.
inline void check_executors(const adapter& page) {
    call_options options = call_options{}.with({170, 4, 3, 4, 50, 45, 18});
    for (const tensor_spec& spec : page.tensors(options.sizes, 1))
        if (spec.first_axis == counted::rows) options.of(spec.name, element_type::bf16);
    adapter_call want(page, options);
    want.run();
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        adapter_call call(page, options);
        call.run(executor);
        check_same_results(call, want);
    });
    for (index_t nth : {1, 3, 40}) {
        CAPTURE(nth);
        adapter_call call(page, options);
        if (page.forward_is_one_phase())
            for_each_share(nth, [&](executor_ref executor) { call.forward(executor); });
        else
            call.forward();
        if (page.backward_is_one_phase())
            for_each_share(nth, [&](executor_ref executor) { call.backward(executor); });
        else
            call.backward();
        check_same_results(call, want);
    }
}

/// Results are linear in the outputs' gradients and in the scale, by powers of two exactly.
inline void check_powers_of_two(const adapter& page) {
    for (element_type type : sum_types)
        for (bool by_scale : {false, true})
            for (int power : {-20, -1, 1, 20}) {
                if (by_scale && !page.has_scale()) continue;
                CAPTURE(power);
                CAPTURE(by_scale);
                const auto multiply = [&](adapter_call& call, std::string_view name) {
                    transform_elements(call[name].ref(),
                                       [&](double value) { return std::ldexp(value, power); });
                };
                call_options options = call_options{}.of(type).with_sums(type);
                adapter_call want(page, options);
                if (by_scale) options.scaled(std::ldexp(options.scale, power));
                adapter_call call(page, options);
                for (const tensor_spec& spec : call.specs)
                    if (!by_scale && spec.part == role::output_gradient) multiply(call, spec.name);
                for (adapter_call* each : {&want, &call}) {
                    for (const tensor_spec& spec : each->specs)
                        if (spec.is_written()) (*each)[spec.name].fill(0);
                    each->run();
                }
                for (const tensor_spec& spec : want.specs) {
                    const bool is_multiplied =
                        spec.part == role::gradient || (by_scale && spec.part == role::output);
                    if (!is_multiplied) continue;
                    CAPTURE(spec.name);
                    multiply(want, spec.name);
                    CHECK(same_bits(call, want, spec.name));
                }
            }
}

} // namespace mhr::test
