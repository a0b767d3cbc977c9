// Adapters that each request combines as it likes: "A at 0.7 and B at -0.2", another one "B alone",
// a third the base model. No adapter is merged or mixed; each is read once for the whole batch.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <mhr/mhr.hpp>

int main() {
    constexpr mhr::index_t rows = 4, in = 8, out = 6, adapters = 2, rank = 2;

    // The rows of requests 0 and 1; -1 is served by the base model alone.
    const std::int32_t request_of_row[rows] = {0, 0, 1, -1};
    mhr::batch_plan plan;
    plan.assign_rows(mhr::tensor_view<const std::int32_t, 1>(request_of_row, {rows}));
    const mhr::batch batch{plan};

    // The adapters, each with x A B = 8 * 1 * .5 * 2 * value for an x of ones.
    std::vector<float> a(adapters * in * rank, 0.5F), b(adapters * rank * out);
    for (std::size_t i = 0; i < b.size(); ++i)
        b[i] = i < b.size() / 2 ? 1.0F : 10.0F;
    std::vector<float> x(rows * in, 1.0F), y(rows * out);

    // [rows, 1, adapters]: any numbers, and the scale of a request may be among them.
    const float weights[] = {0.7F, -0.2F, 0.7F, -0.2F, 0, 1, 0, 0};

    const mhr::row_routed_lora layer{{a.data(), {1, adapters, in, rank}},
                                     {b.data(), {1, adapters, rank, out}},
                                     {weights, {rows, 1, adapters}},
                                     /*scale=*/1.0,
                                     mhr::mixture::of_outputs};
    mhr::owned_workspace memory(mhr::row_routed_lora_state_size(batch, layer));
    mhr::workspace workspace = memory;
    const auto state = mhr::take_row_routed_lora_state(workspace, batch, layer);
    mhr::row_routed_lora_forward(batch, layer, {x.data(), {rows, in}}, {y.data(), {rows, out}},
                                 state);

    // x A B is 8 of adapter A and 80 of adapter B.
    const double want[rows] = {0.7 * 8 - 0.2 * 80, 0.7 * 8 - 0.2 * 80, 80, 0};
    bool right = true;
    for (mhr::index_t row = 0; row < rows; ++row) {
        const auto got = static_cast<double>(y[static_cast<std::size_t>(row * out)]);
        std::printf("row %d of request %2d: %6.2f\n", static_cast<int>(row),
                    static_cast<int>(request_of_row[row]), got);
        right = right && std::abs(got - want[row]) < 1e-4;
    }
    return right ? EXIT_SUCCESS : EXIT_FAILURE;
}
