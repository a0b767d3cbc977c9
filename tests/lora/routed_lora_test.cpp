#include <array>
#include <cmath>
#include <cstddef>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/routed_lora.hpp>

#include "support/adapter_contract.hpp"
#include "support/contract/rank_sums.hpp"
#include "support/contract/routed_lora_page.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const routed_lora_page page;
constexpr std::array results{"y", "gradients.x", "gradients.a", "gradients.b"};

void check_same(adapter_call& got, adapter_call& want) {
    for (const char* result : results) {
        CAPTURE(std::string(result));
        CHECK(same_bits(got, want, result));
    }
}

/// Returns the same elements in the reverse order along an axis.
template <std::size_t Rank>
tensor_ref<Rank> reversed(const tensor_ref<Rank>& tensor, std::size_t axis) {
    auto strides = tensor.strides();
    strides[axis] = -strides[axis];
    return {tensor.block(axis, tensor.extent(axis) - 1, 1).data(), tensor.type(), tensor.extents(),
            strides};
}

} // namespace

TEST_CASE("routed LoRA keeps the contract") {
    check_contract(page);
}

TEST_CASE("ranks that share routed LoRA sum hidden") {
    SUBCASE("between the products") {
        check_rank_sums(page);
    }
    SUBCASE("if it can be summed") {
        check_bad_rank_sums(page);
    }
}

TEST_CASE("an inventory without heads is refused by name") {
    for (const contract_sizes& sizes :
         {contract_sizes{3, 1, 0, 3, 4, 5, 2}, contract_sizes{3, 1, 0, 3, 0, 0, 2}}) {
        refusal_check check(page, call_options{}.with(sizes));
        check.bad_arguments("inventory.a", check.call().given(), true, true);
    }
}

TEST_CASE("the parts of a state have one type") {
    for (element_type sums : sum_types)
        for (const char* part : {"state.mixed.a", "state.mixed.b"}) {
            CAPTURE(std::string(part));
            const element_type other =
                sums == element_type::f32 ? element_type::f64 : element_type::f32;
            refusal_check check(page, call_options{}.with_sums(sums));
            const any_tensor good = check.call()[part].ref();
            check.bad(check.call().spec(part),
                      {good.data(), other, good.extents(), good.strides()});
        }
}

TEST_CASE("the gradient of the weights follows the memory of the inventory, and no other") {
    // Blocks whose rows are dense one behind the other, or are not, or that are one row.
    for (const contract_sizes& sizes : {contract_sizes{}, contract_sizes{9, 2, 1, 3, 32, 48, 5},
                                        contract_sizes{9, 2, 1, 3, 19, 21, 1}})
        for (layout of_inventory : all_layouts) {
            CAPTURE(name_of(of_inventory));
            const call_options dense = call_options{}
                                           .with(sizes)
                                           .in("inventory.a", of_inventory)
                                           .in("inventory.b", of_inventory);
            adapter_call want(page, dense);
            want.run();
            for (layout other : all_layouts)
                for (bool is_wanted : {false, true}) {
                    CAPTURE(name_of(other));
                    CAPTURE(is_wanted);
                    call_options options = dense;
                    for (const tensor_spec& spec : want.specs)
                        if (options.layouts.count(spec.name) == 0) options.in(spec.name, other);
                    adapter_call call(page, options);
                    arguments given = call.given();
                    if (!is_wanted)
                        for (const char* name : {"gradients.a", "gradients.b"})
                            given.leave_out(name);
                    call.forward();
                    page.backward({call.plan}, given, call.scratch());
                    CHECK(same_bits(call, want, "gradients.weights"));
                }
        }
}

TEST_CASE("weights alone are trained: MHR-z") {
    adapter_call want(page), call(page), untouched(page);
    want.run();
    call.forward();
    const routed_lora layer = layer_of(call.given());
    const arguments given = call.given();
    routed_lora_backward({call.plan}, layer, given.get<2>("x"), given.get<2>("d_y"),
                         page.state(given), {{}, {}, {}, given.get<3>("gradients.weights")},
                         call.scratch());
    CHECK(same_bits(call, want, "gradients.weights"));
    for (const char* result : {"gradients.x", "gradients.a", "gradients.b"})
        CHECK(same_bits(call, untouched, result));
}

TEST_CASE("layers that share a router add to its gradient") {
    // A second backward adds once more what the first one did: exactly, with whole numbers.
    adapter_call twice(page, call_options{}.scaled(2)), once(page, call_options{}.scaled(2));
    for (adapter_call* each : {&twice, &once})
        for (const tensor_spec& spec : each->specs)
            transform_elements((*each)[spec.name].ref(),
                               [](double value) { return std::round(4 * value) + 0; });
    auto want = values_of<double>(twice);
    for (const tensor_spec& spec : once.specs)
        if (spec.part == role::gradient) once[spec.name].fill(0);
    once.run();
    twice.run();
    twice.backward();
    for (const tensor_spec& spec : once.specs) {
        if (spec.part != role::gradient) continue;
        CAPTURE(spec.name);
        auto& sum = want.tensors.at(spec.name);
        for_each_position(sum.extents(), [&](const position<4>& at) {
            element(sum.view(), at) += 2 * element(once[spec.name].ref(), at);
        });
        CHECK(compare(twice[spec.name].const_ref(), sum.view(), error_bound{0, 0, 0}));
    }
}

TEST_CASE("permuted modules, renamed tasks: nothing else changes") {
    // Sums in another order are the same where they are exact.
    const std::vector<std::int64_t> tasks{4, 0, 4, -1, 2, 2, 0, 4, -1, 0};
    const std::vector<std::int64_t> renamed{1, 9, 1, -1, 3, 3, 9, 1, -1, 9}; // in reverse
    adapter_call p(page, call_options{}.with_tasks(tasks).scaled(2));
    adapter_call q(page, call_options{}.with_tasks(renamed).scaled(2));
    for (adapter_call* each : {&p, &q})
        for (const tensor_spec& spec : each->specs)
            transform_elements((*each)[spec.name].ref(),
                               [](double value) { return std::round(4 * value) + 0; });
    arguments given = q.given();
    for (const char* name : {"inventory.a", "inventory.b", "gradients.a", "gradients.b"}) {
        given[name] = reversed(given[name], 1);
        copy_elements(p[name].ref(), given[name]);
    }
    for (const char* name : {"layer.weights", "gradients.weights"}) {
        given[name] = reversed(reversed(given[name], 1), 3);
        copy_elements(p[name].ref(), given[name]);
    }
    // The entries of q are those of p in reverse, and so are its weights: given as q has them.
    given["layer.weights"] = reversed(given["layer.weights"], 1);
    given["gradients.weights"] = reversed(given["gradients.weights"], 1);
    p.run();
    page.forward({q.plan}, given);
    page.backward({q.plan}, given, q.scratch());
    for (const char* name : {"y", "gradients.x"})
        CHECK(same_bits(q, p, name));
    for (const char* name : {"gradients.a", "gradients.b"})
        CHECK(compare_bitwise(given[name], p[name].ref()));
    CHECK(compare_bitwise(reversed(given["gradients.weights"], 1), p["gradients.weights"].ref()));
}

TEST_CASE("heads of equal weights are one head: MHR contains Poly") {
    const index_t heads = 3;
    adapter_call poly(page, call_options{}.with({12, 2, 1, 4, 6, 9, 2}));
    adapter_call mhr_call(page, poly.options);
    // One head's [1, modules, in, rank] seen as [heads, modules, in / heads, rank], and b likewise.
    const auto split_a = [&](const tensor_ref<4>& a) {
        return a.slice(0, 0).split(1, heads).transpose(0, 1);
    };
    const auto split_b = [&](const tensor_ref<4>& b) {
        return b.slice(0, 0).split(2, heads).transpose(1, 2).transpose(0, 1);
    };
    arguments given = mhr_call.given();
    for (const char* name : {"inventory.a", "gradients.a"})
        given[name] = split_a(given[name]);
    for (const char* name : {"inventory.b", "gradients.b"})
        given[name] = split_b(given[name]);
    const tensor_ref<3> w = given.get<3>("layer.weights");
    given.set("layer.weights", tensor_ref<3>(w.data(), w.type(), {w.extent(0), heads, w.extent(2)},
                                             {w.stride(0), 0, w.stride(2)}));
    given.leave_out("gradients.weights");
    poly.run();
    page.forward({mhr_call.plan}, given);
    page.backward({mhr_call.plan}, given, mhr_call.scratch());
    check_same(mhr_call, poly);
}

TEST_CASE("uniform routing is the average, to the last bit: MHR-mu") {
    contract_sizes sizes;
    sizes.modules = 7; // 1/7 is rounded
    const call_options options =
        call_options{}.with(sizes).with_tasks(std::vector<std::int64_t>(21, 0));
    adapter_call routed(page, options), averaged(page, options);
    routed["layer.weights"].fill(1.F / 7);
    guarded_tensor<2> a(element_type::f32, {sizes.in_features(), sizes.rank});
    guarded_tensor<2> b(element_type::f32, {sizes.rank, sizes.out_features()});
    guarded_tensor<2> d_a(element_type::f32, a.extents()), d_b(element_type::f32, b.extents());
    d_a.fill(0);
    d_b.fill(0);
    const arguments given = averaged.given();
    average_lora_forward({}, layer_of(given).inventory(), {a, b});
    const lora average{a, b, given.scale};
    const lora_state state{given.get<2>("state.hidden")};
    lora_forward({averaged.plan}, average, given.get<2>("x"), given.get<2>("y"), state);
    std::vector<std::byte> memory(lora_backward_workspace_size({averaged.plan}, average));
    lora_backward({averaged.plan}, average, given.get<2>("x"), given.get<2>("d_y"), state,
                  {given.get<2>("gradients.x"), lora_matrices{d_a, d_b}},
                  {memory.data(), memory.size()});
    average_lora_backward({}, d_a, d_b, {given.get<4>("gradients.a"), given.get<4>("gradients.b")});
    routed.run();
    const arguments of_routed = routed.given();
    CHECK(compare_bitwise(of_routed.get<3>("state.mixed.a").slice(0, 0), a.ref()));
    CHECK(compare_bitwise(of_routed.get<3>("state.mixed.b").slice(0, 0), b.ref()));
    CHECK(same_bits(averaged, routed, "state.hidden"));
    check_same(averaged, routed);
}

TEST_CASE("sequences by themselves or grouped by task: the same outputs") {
    // Noise for every sequence makes each an entry; here the entries of a task have equal weights.
    const std::vector<std::int64_t> grouped{3, 3, 0, 3, 3, 3, -1, -1, 5, 3, 0, 0};
    const std::vector<std::int64_t> apart{0, 0, 1, 2, 2, 2, -1, -1, 3, 4, 5, 5};
    const std::vector<index_t> entry_of_sequence{1, 0, 1, 2, 1, 0}; // of the tasks 0, 3, 5
    const call_options options = call_options{}.of(element_type::f64).with_sums(element_type::f64);
    adapter_call want(page, call_options(options).with_tasks(grouped));
    adapter_call call(page, call_options(options).with_tasks(apart));
    REQUIRE(call.plan.entries() == 6);
    for (index_t sequence = 0; sequence < 6; ++sequence)
        copy_elements(want["layer.weights"].ref().block(
                          1, entry_of_sequence[static_cast<std::size_t>(sequence)], 1),
                      call["layer.weights"].ref().block(1, sequence, 1));
    call["gradients.weights"].fill(0);
    want["gradients.weights"].fill(0);
    call.run();
    want.run();
    for (const char* result : {"y", "gradients.x"})
        CHECK(same_bits(call, want, result));
    const auto agree = [](adapter_call& got, const any_tensor& expected, const char* name) {
        auto ones = values_as<double>(expected);
        for (double& value : ones.values())
            value = 1;
        return compare(got[name].const_ref(), values_as<double>(expected).const_view(),
                       ones.const_view(), within(element_type::f64, 100));
    };
    CHECK(agree(call, want["gradients.a"].ref(), "gradients.a"));
    CHECK(agree(call, want["gradients.b"].ref(), "gradients.b"));
    // The gradient of a task's weights is the sum of its sequences'.
    guarded_tensor<4> sums(element_type::f64, want["gradients.weights"].extents());
    sums.fill(0);
    for_each_position(call["gradients.weights"].extents(), [&](const position<4>& at) {
        position<4> of_task = at;
        of_task[1] = entry_of_sequence[static_cast<std::size_t>(at[1])];
        set_element(sums.ref(), of_task,
                    element(sums.ref(), of_task) + element(call["gradients.weights"].ref(), at));
    });
    CHECK(agree(want, sums.ref(), "gradients.weights"));
}

TEST_CASE("shapes and sizes of a state") {
    adapter_call call(page);
    const lora_shape shape = shape_of(layer_of(call.given()).inventory());
    CHECK(shape.heads == 2);
    CHECK(shape.modules == 4);
    CHECK(shape.in_features == 10);
    CHECK(shape.out_features == 14);
    CHECK(shape.rank == 3);
    workspace meter;
    const auto state = take_routed_lora_state(meter, {call.plan}, layer_of(call.given()));
    const index_t entries = call.plan.entries();
    CHECK(state.mixed.a.extents() == std::array<index_t, 3>{entries, 10, 3});
    CHECK(state.mixed.b.extents() == std::array<index_t, 3>{entries, 3, 14});
    CHECK(state.hidden.extents() == std::array<index_t, 2>{21, 3});
    CHECK(state.hidden.type() == element_type::f32);
    CHECK(routed_lora_state_size({call.plan}, layer_of(call.given()), element_type::f64) >
          meter.used());
}
