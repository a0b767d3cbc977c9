#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/output_mixed_lora.hpp>
#include <mhr/lora/row_routed_lora.hpp>

#include "support/adapter_contract.hpp"
#include "support/contract/rank_sums.hpp"
#include "support/contract/row_routed_lora_page.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const row_routed_lora_page parameters(mixture::of_parameters);
const row_routed_lora_page outputs(mixture::of_outputs);
const routed_lora_by_module_page by_module;

/// Results of two calls of the same shapes, rounded in another order.
void check_near(const tensor_ref<2>& got, const tensor_ref<2>& want) {
    auto ones = values_as<double>(want);
    for (double& value : ones.values())
        value = 1;
    CHECK(compare(got, values_as<double>(want).view(), ones.view(), within(element_type::f64, 50)));
}

} // namespace

TEST_CASE("routed LoRA with weights of each row keeps the contract") {
    check_contract(parameters);
}

TEST_CASE("output-mixed LoRA with weights of each row keeps the contract") {
    check_contract(outputs);
}

TEST_CASE("routed LoRA by module keeps the contract") {
    check_contract(by_module);
}

TEST_CASE("by module and by entry are one function") {
    const routed_lora_page by_entry;
    const call_options options = call_options{}.of(element_type::f64).with_sums(element_type::f64);
    adapter_call got(by_module, options), want(by_entry, options);
    got.run();
    want.run();
    for (const char* name : {"y", "gradients.x"})
        check_near(got.given().get<2>(name), want.given().get<2>(name));
    CHECK_FALSE(same_bits(got, want, "y"));
}

TEST_CASE("automatic is one of the two, by rows an entry and modules") {
    std::vector<float> memory(64 * 64);
    const auto is_by_module = [&](index_t modules, index_t rows, index_t tasks) {
        std::vector<std::int64_t> ids;
        for (index_t row = 0; row < rows; ++row)
            ids.push_back(row % tasks);
        const batch_plan plan = plan_of(ids);
        const routed_lora layer{{memory.data(), {1, modules, 2, 1}},
                                {memory.data(), {1, modules, 1, 2}},
                                {memory.data(), {tasks, 1, modules}}};
        const auto size = [&](evaluation way) {
            batch batch_of{plan};
            batch_of.mixtures = way;
            return std::vector<std::size_t>{routed_lora_state_size(batch_of, layer),
                                            routed_lora_backward_workspace_size(batch_of, layer)};
        };
        const bool by = size(evaluation::automatic) == size(evaluation::by_module);
        CHECK(by != (size(evaluation::automatic) == size(evaluation::by_entry)));
        return by;
    };
    CHECK(is_by_module(8, 32, 32));
    CHECK(is_by_module(8, 64, 32));
    CHECK_FALSE(is_by_module(8, 96, 32));
    CHECK(is_by_module(4, 128, 32));
    CHECK_FALSE(is_by_module(4, 160, 32));
    CHECK(is_by_module(32, 32, 32));
    CHECK_FALSE(is_by_module(32, 33, 32));
}

TEST_CASE("a weight of NaN, and an x of NaN, stay with their row") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (const row_routed_lora_page* page : {&parameters, &outputs}) {
        for (const char* spoilt : {"layer.weights", "x"}) {
            CAPTURE(std::string(spoilt));
            adapter_call call(*page, call_options{}.with_tasks({0, 1, 0, 1, 0})),
                want(*page, call.options);
            const bool is_x = std::string(spoilt) == "x";
            set_element(call[spoilt].ref(),
                        is_x ? position<4>{0, 0, 2, 1} : position<4>{0, 2, 0, 1}, nan);
            call.forward();
            want.forward();
            for (index_t row = 0; row < 5; ++row)
                CHECK(is_exactly(element(call["y"].ref(), {0, 0, row, 0}),
                                 element(want["y"].ref(), {0, 0, row, 0})) == (row != 2));
        }
    }
}

TEST_CASE("a module that no row uses is not read") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (const row_routed_lora_page* page : {&parameters, &outputs}) {
        adapter_call spoilt(*page), want(*page);
        for (adapter_call* each : {&spoilt, &want})
            transform_elements((*each)["layer.weights"].ref().block(3, 1, 1),
                               [](double) { return 0; });
        for (const char* name : {"inventory.a", "inventory.b"})
            transform_elements(spoilt[name].ref().block(1, 1, 1), [&](double) { return nan; });
        const auto run = [&](adapter_call& call) {
            const arguments given = call.given();
            call.forward();
            row_routed_lora_backward({call.plan}, page->layer(given), given.get<2>("x"),
                                     given.get<2>("d_y"), page->state(given),
                                     {given.get<2>("gradients.x"), given.get<4>("gradients.a"),
                                      given.get<4>("gradients.b"),
                                      given.get<3>("gradients.weights"), true},
                                     call.scratch());
        };
        run(spoilt);
        run(want);
        for (const char* name :
             {"y", "gradients.x", "gradients.a", "gradients.b", "gradients.weights"}) {
            CAPTURE(std::string(name));
            CHECK(same_bits(spoilt, want, name));
        }
    }
}

TEST_CASE("only_used_weights leaves the gradient of a weight of 0 alone, and changes no other") {
    for (const row_routed_lora_page* page : {&parameters, &outputs}) {
        adapter_call before(*page), all(*page), used(*page);
        all.run();
        const arguments given = used.given();
        used.forward();
        row_routed_lora_backward({used.plan}, page->layer(given), given.get<2>("x"),
                                 given.get<2>("d_y"), page->state(given),
                                 {{}, {}, {}, given.get<3>("gradients.weights"), true},
                                 used.scratch());
        index_t zeros = 0;
        const auto entries = entry_of_row(used.plan);
        for_each_position(used["gradients.weights"].extents(), [&](const position<4>& at) {
            const bool zero = is_exactly(element(used["layer.weights"].ref(), at), 0);
            zeros += zero && entries(at[1]) >= 0 ? 1 : 0;
            CHECK(is_exactly(element(used["gradients.weights"].ref(), at),
                             element((zero ? before : all)["gradients.weights"].ref(), at)));
        });
        CHECK(zeros > 0);
        CHECK_FALSE(same_bits(used, all, "gradients.weights"));
    }
}

TEST_CASE("a row's own weights below 0, and those of its entry: one adapter at .7, one at -.2") {
    // The sum of two calls of one module each, scaled by the weights.
    const call_options options = call_options{}
                                     .with({6, 2, 1, 2, 8, 5, 3})
                                     .of(element_type::f64)
                                     .with_sums(element_type::f64);
    adapter_call both(outputs, options), one(outputs, options);
    const auto weigh = [](adapter_call& call, double first, double second) {
        for (index_t row = 0; row < 6; ++row) {
            set_element(call["layer.weights"].ref(), {0, row, 0, 0}, first);
            set_element(call["layer.weights"].ref(), {0, row, 0, 1}, second);
        }
    };
    weigh(both, 0.7, -0.2);
    both.forward();
    weigh(one, 0.7, 0);
    one.forward();
    weigh(one, 0, -0.2);
    one.forward();
    check_near(both.given().get<2>("y"), one.given().get<2>("y"));
}

TEST_CASE("several heads, and ranks that share the layer, are refused where outputs are mixed") {
    adapter_call call(parameters);
    const arguments given = call.given();
    row_routed_lora layer = parameters.layer(given);
    layer.mixes = mixture::of_outputs;
    const auto why =
        why_not({call.plan}, layer, given.get<2>("x"), given.get<2>("y"), parameters.state(given));
    CHECK(why.find("layer.a: expected one head") != std::string::npos);
    adapter_call other(outputs);
    rank_sum sum;
    CHECK(outputs.why_not({other.plan, {}, sum}, other.given()).find("batch.sum_over_ranks") !=
          std::string::npos);
}

TEST_CASE("ranks that share modules with weights of each row, or by module, sum hidden") {
    for (const adapter* page :
         {static_cast<const adapter*>(&parameters), static_cast<const adapter*>(&by_module)}) {
        CAPTURE(page->forward_name());
        check_rank_sums(*page);
        check_bad_rank_sums(*page);
    }
}

TEST_CASE("a mixture, or an evaluation, that is none is refused") {
    adapter_call call(parameters);
    const arguments given = call.given();
    row_routed_lora layer = parameters.layer(given);
    layer.mixes = static_cast<mixture>(7);
    const auto outcome = refuses(call, "row_routed_lora_forward", "layer.mixes", [&] {
        row_routed_lora_forward({call.plan}, layer, given.get<2>("x"), given.get<2>("y"),
                                parameters.state(given));
    });
    CHECK(outcome);
    CHECK(why_not({call.plan}, layer, given.get<2>("x"), given.get<2>("y"),
                  parameters.state(given)) == outcome.message);

    const routed_lora_page by_entry;
    adapter_call routed(by_entry);
    batch rows{routed.plan};
    rows.mixtures = static_cast<evaluation>(7);
    const auto refused = refuses(routed, "routed_lora_forward", "batch.mixtures",
                                 [&] { by_entry.forward(rows, routed.given()); });
    CHECK(refused);
    CHECK(by_entry.why_not(rows, routed.given()) == refused.message);
    CHECK(refuses(routed, "routed_lora_backward", "batch.mixtures",
                  [&] { by_entry.backward(rows, routed.given(), routed.scratch()); }));
}

TEST_CASE("automatic counts without overflow, before anything is checked") {
    constexpr index_t huge = (std::numeric_limits<index_t>::max)() / 8;
    const batch_plan plan = plan_of(std::vector<std::int64_t>(32, 0));
    batch rows{plan};
    rows.mixtures = evaluation::automatic;
    float number = 0;
    const routed_lora layer{{&number, {1, huge, 1, 0}}, {&number, {1, huge, 0, 1}}, {}};
    CHECK_FALSE(lora_details::goes_by_module(rows, shape_of(layer.inventory())));
}
