// Step 5: the benchmark of a kernel, to copy into benchmarks/kernels/.

#include "../support/catch.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

#include "../../tests/skeleton/skeleton.hpp"
#include "../support/aligned_array.hpp"

TEST_CASE("skeleton: 16 gated rows of 2048", "[skeleton]") {
    using mhr::index_t;
    constexpr index_t rows = 16, n = 2048;
    mhr_bench::aligned_array<float> from(rows * n), to(rows * n), gates(rows);
    std::fill(from.begin(), from.end(), 0.5F);
    std::fill(gates.begin(), gates.end(), 0.25F);
    std::vector<index_t> numbers(rows);
    std::iota(numbers.begin(), numbers.end(), 0);
    const mhr::row_set all{numbers.data(), rows};
    const mhr::tensor_ref<2> x(from.data(), {rows, n}), y(to.data(), {rows, n});
    const mhr::tensor_ref<1> g(gates.data(), {rows});

    BENCHMARK_ADVANCED("add gated rows")(Catch::Benchmark::Chronometer meter) {
        meter.measure(
            [&] { mhr::kernels::add_gated_rows<mhr::default_arch, float>(all, x, g, y); });
    };
    BENCHMARK_ADVANCED("add gate gradients")(Catch::Benchmark::Chronometer meter) {
        meter.measure(
            [&] { mhr::kernels::add_gate_gradients<mhr::default_arch, float>(all, x, y, g); });
    };
}
