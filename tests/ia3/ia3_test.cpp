#include <cmath>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/ia3/ia3.hpp>

#include "support/adapter_contract.hpp"
#include "support/contract/ia3_pages.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const ia3_page page;

} // namespace

TEST_CASE("(IA)3 keeps the contract") {
    check_contract(page);
}

TEST_CASE("(IA)3 in place gives the same bits") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts)
            for (const contract_sizes& sizes : contract_shapes()) {
                CAPTURE(std::string(name_of(type)));
                CAPTURE(name_of(order));
                CAPTURE(sizes.in);
                const call_options options = call_options{}.with(sizes).of(type).in("x", order);
                adapter_call want(page, options), call(page, options);
                want.forward();
                arguments given = call.given();
                given["y"] = given["x"];
                page.forward({call.plan}, given);
                CHECK(compare_bitwise(call["x"].const_ref(), want["y"].const_ref()));
                CHECK(call.intact());
            }
}

TEST_CASE("in place, rows of no task are not touched: not even their NaN") {
    // Writing a signalling NaN back makes it quiet. (In memory for 16 bits, since x87 does it,
    // too.)
    guarded_tensor<2> x(element_type::f16, {20, 5}); // full of signalling NaN
    batch_plan plan;
    plan.assign_single_task(20, no_task);
    const snapshot before = x.take_snapshot();
    const const_tensor_ref<2> scales(nullptr, element_type::f16, {0, 5});
    ia3_forward({plan}, {scales}, x, x);
    CHECK(x.unchanged_since(before));
}

TEST_CASE("rows of no task pass as they are") {
    for (element_type type : all_element_types) {
        adapter_call call(page, call_options{}.of(type)), before(page, call_options{}.of(type));
        const auto entries = entry_of_row(call.plan);
        REQUIRE(call.plan.base_rows().extent(0) > 0);
        call.run();
        for (index_t row = 0; row < call.plan.rows(); ++row) {
            if (entries(row) >= 0) continue;
            const auto of = [&](adapter_call& each, const char* name) {
                return row_of(each.spec(name), each[name].ref(), row);
            };
            CHECK(compare_bitwise(of(call, "y"), of(call, "x")));
            copy_elements(of(before, "gradients.x"), of(before, "y"));
            for_each_position(of(call, "y").extents(), [&](const position<4>& at) {
                const any_tensor sum = of(before, "y");
                set_element(sum, at, element(sum, at) + element(of(before, "d_y"), at));
            });
            CHECK(compare_bitwise(of(call, "gradients.x"), of(before, "y")));
        }
    }
}

TEST_CASE("scales of 1 change nothing, powers of two are exact") {
    adapter_call call(page, call_options{}.of(element_type::f64));
    const auto entries = entry_of_row(call.plan);
    for (int power : {-30, 0, 1, 30}) {
        call["layer.scales"].fill(std::ldexp(1.0, power));
        call.forward();
        for_each_position(call["x"].extents(), [&](const position<4>& at) {
            const double factor = entries(at[2]) < 0 ? 1 : std::ldexp(1.0, power);
            CHECK(element(call["y"].ref(), at) == factor * element(call["x"].ref(), at));
        });
    }
}

TEST_CASE("without the gradient of scales x is not read, and may be y") {
    adapter_call call(page), want(page);
    want.run();
    call["x"].fill(std::numeric_limits<double>::quiet_NaN());
    arguments given = call.given();
    given.leave_out("gradients.scales");
    page.backward({call.plan}, given, {});
    CHECK(same_bits(call, want, "gradients.x"));
    // A host that works in place calls it so.
    adapter_call in_place(page);
    given = in_place.given();
    given["y"] = given["x"];
    given.leave_out("gradients.scales");
    page.forward({in_place.plan}, given);
    page.backward({in_place.plan}, given, {});
    CHECK(same_bits(in_place, want, "gradients.x"));
}

TEST_CASE("a vector is the scales of a plan of one task") {
    batch_plan plan;
    plan.assign_single_task(3);
    const std::vector<float> x{1, 2, 3, 4, 5, 6}, scales{2, -1};
    std::vector<float> y(6);
    const const_tensor_ref<1> vector(scales.data(), {2});
    ia3_forward({plan}, {vector.prepend_axis()}, {x.data(), {3, 2}}, {y.data(), {3, 2}});
    CHECK(y == std::vector<float>{2, -2, 6, -4, 10, -6});
}
