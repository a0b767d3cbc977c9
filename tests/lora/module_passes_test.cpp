#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/module_passes.hpp>

using namespace mhr;

TEST_CASE("parts of rows cover the order of a plan once, whatever their size") {
    const std::vector<int> tasks{1, 0, -1, 1, 0, 1, 0, -1, 2};
    batch_plan plan;
    plan.assign_rows(tensor_view<const int, 1>(tasks.data(), {9}));
    for (index_t size : {1, 2, 3, 7, 8}) {
        std::vector<index_t> rows;
        for (index_t part = 0; part < lora_details::parts_of_rows(plan, size); ++part) {
            const row_set set = lora_details::part_of_rows(plan, part, size);
            CHECK(set.count >= 1);
            CHECK(set.count <= size);
            rows.insert(rows.end(), set.numbers, set.numbers + set.count);
        }
        CHECK(rows == std::vector<index_t>{1, 4, 6, 0, 3, 5, 8});
    }
}

TEST_CASE("rows_that_use: those whose weight is not 0, NaN included, or the others") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> weights{0, 1, -0.0F, nan, -2, 0};
    const tensor_view<const float, 3> view(weights.data(), {6, 1, 1});
    const std::vector<index_t> numbers{5, 4, 3, 2, 1};
    const auto chosen = [&](bool used) {
        std::vector<index_t> memory(5);
        const row_set set =
            lora_details::rows_that_use({numbers.data(), 5}, view, 0, 0, used, memory.data());
        return std::vector<index_t>(set.numbers, set.numbers + set.count);
    };
    CHECK(chosen(true) == std::vector<index_t>{4, 3, 1});
    CHECK(chosen(false) == std::vector<index_t>{5, 2});
}

TEST_CASE("copy_weights: each row has its own, or its entry's") {
    const std::vector<int> tasks{7, -1, 3, 7};
    batch_plan plan;
    plan.assign_rows(tensor_view<const int, 1>(tasks.data(), {4}));
    const std::vector<float> of_rows{1, 2, 3, 4, 5, 6, 7, 8};
    const auto copied = [&](bool of_entries) {
        std::vector<float> to(8, -1);
        lora_details::copy_weights<float>(
            {plan}, tensor_ref<3>(const_cast<float*>(of_rows.data()), {of_entries ? 2 : 4, 1, 2}),
            of_entries, tensor_ref<3>(to.data(), {4, 1, 2}));
        return to;
    };
    CHECK(copied(false) == std::vector<float>{1, 2, -1, -1, 5, 6, 7, 8});
    CHECK(copied(true) == std::vector<float>{3, 4, -1, -1, 1, 2, 3, 4});
}
