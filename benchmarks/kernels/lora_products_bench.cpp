#include "../support/catch.hpp"

#include <numeric>
#include <vector>

#include <mhr/kernels/kernels.hpp>

#include "../support/aligned_array.hpp"

TEST_CASE("products of LoRA, 16 rows of 2048", "[lora_products]") {
    using mhr::index_t;
    const auto rank = GENERATE(index_t{1}, index_t{4}, index_t{16}, index_t{64});
    constexpr index_t rows = 16, n = 2048;
    mhr_bench::aligned_array<float> wide(rows * n), narrow(rows * rank), matrix(rank * n);
    std::fill(wide.begin(), wide.end(), 0.5F);
    std::fill(matrix.begin(), matrix.end(), 0.25F);
    std::vector<index_t> numbers(rows);
    std::iota(numbers.begin(), numbers.end(), 0);
    const mhr::row_set all{numbers.data(), rows};
    const mhr::tensor_ref<2> w(wide.data(), {rows, n}), z(narrow.data(), {rows, rank}),
        m(matrix.data(), {rank, n});
    const std::string name = ", rank " + std::to_string(rank);

    BENCHMARK_ADVANCED("shrink" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] { mhr::kernels::shrink(all, w, m.transpose(0, 1), 1, z); });
    };
    BENCHMARK_ADVANCED("expand" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] { mhr::kernels::expand(all, z, m, 1, w); });
    };
    BENCHMARK_ADVANCED("outer products" + name)(Catch::Benchmark::Chronometer meter) {
        meter.measure([&] { mhr::kernels::add_outer_products(all, w, z, 1, m, true, {}); });
    };
}
