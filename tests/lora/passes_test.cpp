#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/passes.hpp>

using namespace mhr;

namespace {

/// A plan of so many rows of each task, in turn.
batch_plan plan_of(index_t rows, index_t tasks) {
    std::vector<int> task_of_row;
    for (index_t row = 0; row < rows; ++row)
        task_of_row.push_back(static_cast<int>(row % tasks));
    batch_plan plan;
    plan.assign_rows(tensor_view<const int, 1>(task_of_row.data(), {rows}));
    return plan;
}

} // namespace

TEST_CASE("rows_of_backward: whole steps of twelve rows, as many as half a mebibyte holds") {
    using lora_details::rows_of_backward;
    CHECK(rows_of_backward(element_type::f32, 0) == 48);
    CHECK(rows_of_backward(element_type::f32, 2048) == 48);
    CHECK(rows_of_backward(element_type::f32, 4096) == 24);
    CHECK(rows_of_backward(element_type::f64, 4096) == 12);
    CHECK(rows_of_backward(element_type::bf16, 4096) == 48);
    CHECK(rows_of_backward(element_type::f32, index_t(1) << 30) == 12);
}

TEST_CASE("clear: rows whose elements are dense, whatever lies between the rows") {
    std::vector<float> memory(3 * 5, 7);
    lora_details::clear(tensor_ref<2>(memory.data(), {3, 4}, {5, 1}));
    for (std::size_t at = 0; at < memory.size(); ++at)
        CHECK(memory[at] == doctest::Approx(at % 5 == 4 ? 7 : 0));
}

TEST_CASE("wanted_of: a sum is wanted if the gradient of any adapter is") {
    std::vector<float> memory(8);
    const lora_matrices only_a{{memory.data(), {4, 2}}, {}}, only_b{{}, {memory.data(), {2, 4}}};
    const auto wanted = [](const std::vector<lora_matrices>& gradients) {
        const auto of =
            lora_details::wanted_of({gradients.data(), static_cast<index_t>(gradients.size())});
        return std::vector<bool>{of.a, of.b};
    };
    CHECK(wanted({{}, {}}) == std::vector<bool>{false, false});
    CHECK(wanted({{}, only_a}) == std::vector<bool>{true, false});
    CHECK(wanted({only_b, {}}) == std::vector<bool>{false, true});
    CHECK(wanted({only_b, only_a}) == std::vector<bool>{true, true});
}

TEST_CASE("backward_scratch: room for the sums of every part, and no more than is taken") {
    std::vector<float> a(4 * 3), b(3 * 5);
    const lora adapters[] = {{{a.data(), {4, 3}}, {b.data(), {3, 5}}},
                             {{a.data(), {4, 1}}, {b.data(), {1, 5}}}};
    const lora_list list(adapters, 2);
    const batch_plan plan = plan_of(1000, 2); // more rows of a task than one part takes
    const auto& first_part = plan.data().first_part_of_entry;
    REQUIRE(first_part[2] > 2);

    const std::size_t bytes = lora_details::backward_scratch::size(plan, list, element_type::f32);
    std::vector<std::byte> memory(bytes);
    workspace space(memory.data(), memory.size());
    const auto scratch = lora_details::backward_scratch::take(space, plan, list, element_type::f32);
    CHECK(space.used() == bytes);
    CHECK(scratch.d_hidden.extents() == std::array<index_t, 2>{1000, 3});
    const index_t parts_of_first = first_part[1] - first_part[0];
    const index_t parts_of_second = first_part[2] - first_part[1];
    CHECK(scratch.first_rank(0) == 0);
    CHECK(scratch.first_rank(1) == 3 * parts_of_first);
    CHECK(scratch.first_rank(2) == 3 * parts_of_first + parts_of_second);
    CHECK(scratch.sums.a.extents() == std::array<index_t, 2>{scratch.first_rank(2), 4});
    CHECK(scratch.sums.b.extents() == std::array<index_t, 2>{scratch.first_rank(2), 5});
}

TEST_CASE("add_up_parts: the sums of an entry's parts, moved together") {
    std::vector<float> a(1 * 2), b(2 * 600);
    const lora adapter{{a.data(), {1, 2}}, {b.data(), {2, 600}}};
    const std::vector<lora> adapters{adapter, adapter};
    const lora_list list(adapters.data(), 2);
    const batch_plan plan = plan_of(1000, 2);
    const auto& first_part = plan.data().first_part_of_entry;
    const index_t parts = first_part[2];
    REQUIRE(parts > 2);

    std::vector<index_t> first_rank{0, 2 * first_part[1], 2 * parts};
    std::vector<float> sums(static_cast<std::size_t>(2 * parts * 600));
    const tensor_ref<2> ref(sums.data(), {2 * parts, 600});
    for (index_t part = 0; part < parts; ++part) // each rank of a part has its own small number
        for (index_t k = 0; k < 2; ++k)
            std::fill_n(sums.data() + (2 * part + k) * 600, 600,
                        static_cast<float>(100 * k + part + 1));
    lora_details::add_up_parts({plan}, list, {first_rank.data(), {3}}, ref);
    for (index_t entry = 0; entry < 2; ++entry)
        for (index_t k = 0; k < 2; ++k) {
            float want = 0;
            for (index_t part = first_part[static_cast<std::size_t>(entry)];
                 part < first_part[static_cast<std::size_t>(entry) + 1]; ++part)
                want += static_cast<float>(100 * k + part + 1);
            const float* row = sums.data() + (2 * entry + k) * 600;
            CHECK(std::count(row, row + 600, want) == 600);
        }
}
