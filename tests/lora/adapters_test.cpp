#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/adapters.hpp>

using namespace mhr;

namespace {

/// Three adapters of ranks 1, 2 and 3, of which nothing but the addresses is looked at.
struct three_adapters {
    std::vector<float> memory = std::vector<float>(100);
    std::vector<lora> all;

    three_adapters() {
        for (index_t rank = 1; rank <= 3; ++rank)
            all.push_back({{memory.data() + 20 * rank, {4, rank}},
                           {memory.data() + 20 * rank + 12, {rank, 2}},
                           1.0 / static_cast<double>(rank)});
    }
};

/// A plan with three entries, of tasks 3, 5 and 8.
batch_plan plan_of_three() {
    const std::vector<int> tasks{5, 3, -1, 8, 3};
    batch_plan plan;
    plan.assign_rows(tensor_view<const int, 1>(tasks.data(), {5}));
    return plan;
}

} // namespace

TEST_CASE("lora_list: a single adapter is that of every entry") {
    const three_adapters adapters;
    const lora_list list(adapters.all[1]);
    CHECK(list.is_single());
    CHECK(list.size() == 1);
    for (const index_t entry : {0, 1, 7})
        CHECK(list.adapter_of(entry) == 0);
    CHECK(list[0].a.data() == adapters.all[1].a.data());
    CHECK(lora_details::largest_rank(plan_of_three(), list) == 2);
}

TEST_CASE("lora_list: one adapter for each entry, or numbers of those that entries use") {
    const three_adapters adapters;
    const lora_list each(adapters.all.data(), 3);
    CHECK(each.size() == 3);
    CHECK_FALSE(each.is_single());
    CHECK_FALSE(each.is_stacked());
    for (index_t entry = 0; entry < 3; ++entry) {
        CHECK(each.adapter_of(entry) == entry);
        CHECK(each[entry].scale == 1.0 / static_cast<double>(entry + 1));
    }
    CHECK(lora_details::largest_rank(plan_of_three(), each) == 3);

    const std::vector<index_t> numbers{1, 0, 1};
    const lora_list some(adapters.all.data(), 3, {numbers.data(), {3}});
    for (index_t entry = 0; entry < 3; ++entry)
        CHECK(some.adapter_of(entry) == numbers[static_cast<std::size_t>(entry)]);
    // The largest is not used.
    CHECK(lora_details::largest_rank(plan_of_three(), some) == 2);
}

TEST_CASE("lora_list: a stack has the matrices of each entry") {
    std::vector<float> a(3 * 4 * 2), b(3 * 2 * 5);
    const lora_list list({a.data(), {3, 4, 2}}, {b.data(), {3, 2, 5}}, 0.5);
    CHECK(list.is_stacked());
    CHECK(list.size() == 3);
    CHECK(list.adapter_of(2) == 2);
    CHECK(list[2].a.data() == a.data() + 2 * 4 * 2);
    CHECK(list[2].b.data() == b.data() + 2 * 2 * 5);
    CHECK(list[2].scale == 0.5);
}

TEST_CASE("lora_list_gradients: none, one, an array, and stacks of which either may be absent") {
    CHECK(lora_list_gradients().size() == 0);

    std::vector<float> memory(60);
    const lora_matrices one{{memory.data(), {4, 2}}, {}};
    CHECK(lora_list_gradients(one).size() == 1);
    CHECK(lora_list_gradients(one)[0].a.data() == memory.data());
    CHECK(lora_list_gradients(one)[0].b.absent());

    const std::vector<lora_matrices> several{one, {}};
    const lora_list_gradients array(several.data(), 2);
    CHECK(array.size() == 2);
    CHECK(array[0].a.data() == memory.data());
    CHECK(array[1].a.absent());

    const lora_list_gradients stack(stacked_lora_matrices{{}, {memory.data(), {3, 2, 5}}});
    CHECK(stack.size() == 3);
    CHECK(stack[1].a.absent());
    CHECK(stack[1].b.data() == memory.data() + 10);
}

TEST_CASE("check_adapters: out_features are those of all, and what does not fit is named") {
    const batch_plan plan = plan_of_three();
    const auto why = [&](const lora_list& list, index_t in_features, index_t out_features) {
        argument_checks checks("call");
        CHECK(lora_details::check_adapters(checks, plan, list, in_features) == out_features);
        return std::move(checks).why();
    };
    three_adapters adapters;
    CHECK(why({adapters.all.data(), 3}, 4, 2) == "");
    CHECK(why(adapters.all[0], 4, 2) == "");
    CHECK(
        why({adapters.all.data(), 2}, 4, any_extent) ==
        "call: adapters: expected 3 adapters, one for each entry of the plan (or numbers of those "
        "that the entries use), got 2");
    const std::vector<index_t> numbers{1, 3, 1};
    CHECK(why({adapters.all.data(), 3, {numbers.data(), {3}}}, 4, any_extent) ==
          "call: adapters.adapter_of_entry: expected numbers from 0 to 2, got 3 at position 1");
    adapters.all[1].b = {adapters.memory.data(), {2, 3}};
    CHECK(why({adapters.all.data(), 3}, 4, 3) ==
          "call: adapters.b: expected extents [2, 2], got [2, 3]");
}
