#include <mhr/mhr.hpp>

#include <array>
#include <cstddef>
#include <vector>

#include <doctest/doctest.h>

using mhr::index_t;

TEST_CASE("README: adapters of their own for the rows of an engine with raw memory") {
    constexpr index_t rows = 6, in = 24, out = 12;
    const int adapter_of_row[rows] = {1, -1, 0, 1, 0, 0};
    const mhr::serial_executor executor;
    const std::vector<float> x_values(rows * in, 0.5F), a0_values(in * 8, 0.25F),
        b0_values(8 * out, 0.125F);
    const std::vector<mhr::f16> a1_values(in * 64, mhr::f16(0.5F)),
        b1_values(64 * out, mhr::f16(0.25F));
    std::vector<mhr::bf16> y_values(rows * out, mhr::bf16(1));
    std::vector<float> hidden_values(rows * 64);
    std::array<index_t, 2> of_entries{};
    index_t* const adapter_of_entry = of_entries.data();
    const float* const x = x_values.data();
    const float* const a0 = a0_values.data();
    const float* const b0 = b0_values.data();
    const void* const a1 =
        a1_values.data(); // memory of which only the element type says what it holds
    const void* const b1 = b1_values.data();
    void* const y = y_values.data();
    float* const hidden = hidden_values.data();

#include "readme/raw_memory.inc"

    CHECK(plan.entries() == 2);
    // 1 + 2 (24 0.5 0.25) (8 0.125), and 1 + 0.25 (24 0.5 0.5) (64 0.25)
    const float want[] = {7, 25};
    for (index_t row = 0; row < rows; ++row)
        for (index_t i = 0; i < out; ++i) {
            const int adapter = adapter_of_row[row];
            CHECK(static_cast<float>(y_values[static_cast<std::size_t>(row * out + i)]) ==
                  doctest::Approx(adapter < 0 ? 1 : want[adapter]));
        }
}
