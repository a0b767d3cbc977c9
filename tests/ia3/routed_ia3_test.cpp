#include <cstddef>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/ia3/routed_ia3.hpp>

#include "support/adapter_contract.hpp"
#include "support/contract/ia3_pages.hpp"
#include "support/contract/mixing_pages.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const routed_ia3_page page;

} // namespace

TEST_CASE("routed (IA)3 keeps the contract") {
    check_contract(page);
}
TEST_CASE("mixing (IA)3 keeps the contract") {
    check_contract(mix_ia3_page{});
}
TEST_CASE("the average of (IA)3 keeps the contract") {
    check_contract(average_ia3_page{});
}

TEST_CASE("an inventory of (IA)3 without heads is refused by name") {
    const call_options none = call_options{}.with({3, 1, 0, 3, 4, 5, 2});
    refusal_check routed(page, none);
    routed.bad_arguments("layer.inventory", routed.call().given(), true, true);
    const mix_ia3_page mixing;
    refusal_check mixed(mixing, none);
    mixed.bad_arguments("inventory", mixed.call().given(), true, true);
    const average_ia3_page averaging;
    refusal_check averaged(averaging, none);
    averaged.bad_arguments("inventory", averaged.call().given(), true, false);
    averaged.bad_arguments("d_inventory", averaged.call().given(), false, true);
}

TEST_CASE("mttl's order is a view, with the same bits") {
    adapter_call want(page), call(page);
    want.run();
    const contract_sizes& s = call.options.sizes;
    arguments given = call.given();
    guarded_tensor<3> inventory(element_type::f32, {s.modules, s.heads, s.in});
    guarded_tensor<3> gradient(element_type::f32, inventory.extents());
    const auto put = [&](const char* name, guarded_tensor<3>& memory) {
        given.set(name, memory.ref().transpose(0, 1));
        copy_elements(call[name].ref(), given[name]);
    };
    put("layer.inventory", inventory);
    put("gradients.inventory", gradient);
    page.forward({call.plan}, given);
    page.backward({call.plan}, given, call.scratch());
    copy_elements(given["gradients.inventory"], call["gradients.inventory"].ref());
    check_same_results(call, want);
    CHECK(gradient.intact());
}

TEST_CASE("routed (IA)3 in place gives the same bits") {
    for (element_type type : all_element_types) {
        const call_options options =
            call_options{}.of(type).with_sums(sums_of(type, element_type::f32));
        adapter_call want(page, options), call(page, options);
        want.forward();
        arguments given = call.given();
        given["y"] = given["x"];
        page.forward({call.plan}, given);
        CHECK(compare_bitwise(call["x"].const_ref(), want["y"].const_ref()));
    }
}

TEST_CASE("one module of weight 1 is plain (IA)3; modules of ones change nothing") {
    contract_sizes s;
    s.modules = 1;
    adapter_call call(page, call_options{}.with(s));
    call["layer.weights"].fill(1);
    call.forward();
    const arguments given = call.given();
    guarded_tensor<2> y(element_type::f32, {s.rows, s.in_features()});
    guarded_tensor<2> scales(element_type::f32, {call.plan.entries(), s.in_features()});
    for_each_position(scales.extents(), [&](const position<2>& at) {
        set_element(scales.ref(), at,
                    element(given.get<3>("layer.inventory"), {at[1] / s.in, 0, at[1] % s.in}));
    });
    ia3_forward({call.plan}, {scales}, given.get<2>("x"), y);
    CHECK(compare_bitwise(given.get<2>("y"), y.ref()));

    adapter_call ones(page);
    ones["layer.inventory"].fill(1);
    ones["layer.weights"].fill(0.25); // exact for 4 modules
    ones.forward();
    CHECK(compare_bitwise(ones["y"].const_ref(), ones["x"].const_ref()));
}

TEST_CASE("uniform routing of (IA)3 is the average, to the last bit: MHR-mu") {
    contract_sizes s;
    s.modules = 7; // 1/7 is rounded
    const call_options options =
        call_options{}.with(s).with_tasks(std::vector<std::int64_t>(21, 0));
    adapter_call routed(page, options), averaged(page, options);
    routed["layer.weights"].fill(1.F / 7);
    routed.run();
    const arguments given = averaged.given();
    guarded_tensor<1> scales(element_type::f32, {s.in_features()});
    guarded_tensor<1> d_scales(element_type::f32, {s.in_features()});
    d_scales.fill(0);
    average_ia3_forward({}, given.get<3>("layer.inventory"), scales);
    const ia3 layer{scales.const_ref().prepend_axis()};
    ia3_forward({averaged.plan}, layer, given.get<2>("x"), given.get<2>("y"));
    ia3_backward({averaged.plan}, layer, given.get<2>("x"), given.get<2>("d_y"),
                 {given.get<2>("gradients.x"), d_scales.ref().prepend_axis()});
    average_ia3_backward({}, d_scales, given.get<3>("gradients.inventory"));
    CHECK(compare_bitwise(routed.given().get<2>("state.scales").slice(0, 0), scales.ref()));
    for (const char* name : {"y", "gradients.x", "gradients.inventory"}) {
        CAPTURE(std::string(name));
        CHECK(same_bits(routed, averaged, name));
    }
}
