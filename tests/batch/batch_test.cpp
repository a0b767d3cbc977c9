#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/batch/batch.hpp>

using namespace mhr;

static_assert(std::is_trivially_copyable_v<rank_sum_ref>);
static_assert(std::is_nothrow_default_constructible_v<rank_sum_ref>);
static_assert(std::is_constructible_v<bool, rank_sum_ref>);
static_assert(!std::is_convertible_v<rank_sum_ref, bool>);

namespace {

// A host's own callable, which doubles: the sum over two ranks that hold the same.
struct doubling {
    int calls = 0;
    void operator()(const tensor_ref<2>& values) {
        ++calls;
        const auto view = values.as<float>();
        for (index_t i = 0; i < view.extent(0); ++i)
            for (index_t j = 0; j < view.extent(1); ++j)
                view(i, j) *= 2;
    }
};

bool has_sum(const batch& b) {
    return static_cast<bool>(b.sum_over_ranks);
}

// Does what an entry point does with a batch that is made where it is called.
std::array<index_t, 2> rows_and_parts(const batch& b) {
    std::array<index_t, 2> result{b.plan.rows(), 0};
    b.executor.run(3, [&](index_t) { ++result[1]; });
    return result;
}

} // namespace

TEST_CASE("nothing is summed over one rank") {
    const rank_sum_ref none;
    CHECK_FALSE(static_cast<bool>(none));
    const rank_sum_ref copy = none; // NOLINT: the copy is what is tested
    CHECK_FALSE(static_cast<bool>(copy));
}

TEST_CASE("a callable is referred to, and gets the values themselves") {
    std::vector<float> values{1, 2, 3, 4, 5, 6};
    doubling sum;
    const rank_sum_ref reference(sum);
    const rank_sum_ref copy = reference; // NOLINT: the copy is what is tested
    CHECK(static_cast<bool>(reference));
    reference({values.data(), {2, 3}});
    copy({values.data(), {1, 2}});
    CHECK(sum.calls == 2);
    CHECK(values == std::vector<float>{4, 8, 6, 8, 10, 12});

    // A lambda, const and with any parameter that a tensor_ref converts to.
    element_type seen = element_type::f32;
    const auto look = [&](const const_tensor_ref<2>& of) { seen = of.type(); };
    std::array<double, 2> doubles{};
    const rank_sum_ref looking(look);
    looking({doubles.data(), {1, 2}});
    CHECK(seen == element_type::f64);
}

TEST_CASE("a batch is a plan, and perhaps an executor and a sum over ranks") {
    batch_plan plan;
    plan.assign_single_task(5, 3);

    const batch alone{plan};
    CHECK(&alone.plan == &plan);
    CHECK(alone.executor.runs_every_part());
    CHECK_FALSE(has_sum(alone));
    CHECK(rows_and_parts(alone) == std::array<index_t, 2>{5, 3});

    int calls = 0;
    const auto executor = [&](index_t parts, parallel_body body) {
        ++calls;
        for (index_t part = 0; part < parts; ++part)
            body(part);
    };
    CHECK(rows_and_parts({plan, executor}) == std::array<index_t, 2>{5, 3});
    CHECK(calls == 1);
    CHECK_FALSE(has_sum({plan, executor}));
    CHECK_FALSE(batch{plan, share_executor{0, 2}}.executor.runs_every_part());

    doubling sum;
    CHECK(has_sum({plan, {}, sum}));
    CHECK(rows_and_parts({plan, {}, sum}) == std::array<index_t, 2>{5, 3});
    float value = 1.5F;
    const batch ranks{plan, executor, sum};
    ranks.sum_over_ranks({&value, {1, 1}});
    CHECK(value == 3);
}
