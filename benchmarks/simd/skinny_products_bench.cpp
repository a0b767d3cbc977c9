#include "../support/catch.hpp"

#include <numeric>
#include <vector>

#include <mhr/simd/skinny_products.hpp>

#include "../support/aligned_array.hpp"

TEST_CASE("skinny products, 16 rows of 2048", "[skinny_products]") {
    using mhr::index_t;
    const auto rank = GENERATE(index_t{1}, index_t{4}, index_t{16}, index_t{64});
    constexpr index_t rows = 16, n = 2048;
    mhr_bench::aligned_array<float> wide(rows * n), narrow(rows * rank), matrix(rank * n);
    std::fill(wide.begin(), wide.end(), 0.5F);
    std::fill(matrix.begin(), matrix.end(), 0.25F);
    std::vector<index_t> numbers(rows);
    std::iota(numbers.begin(), numbers.end(), 0);
    const mhr::detail::row_set all{numbers.data(), rows};
    const mhr::tensor_view<float, 2> w(wide.data(), {rows, n}), z(narrow.data(), {rows, rank}),
        m(matrix.data(), {rank, n});
    const std::string name = ", rank " + std::to_string(rank);

    BENCHMARK_ADVANCED("project" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure(
            [&] { mhr::detail::project(all, as_const(w), as_const(m.transpose(0, 1)), 1, z); });
    };
    BENCHMARK_ADVANCED("expand" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] { mhr::detail::expand(all, as_const(z), as_const(m), 1, w); });
    };
    BENCHMARK_ADVANCED("outer products" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure(
            [&] { mhr::detail::add_outer_products(all, as_const(w), as_const(z), 1, m, true); });
    };
}
