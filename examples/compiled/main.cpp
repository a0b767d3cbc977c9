// An engine that ships one binary: this file is compiled for every processor of x86-64, the kernels
// are those of the library mhr::compiled, which has them for several instruction sets. The best
// that runs here is chosen; MHR_LEVEL=x86-64 in the environment chooses another. The engine learns
// the element types of a request's adapter at run time, and asks before it relies on being served.

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include <mhr/mhr.hpp>

namespace {

constexpr mhr::index_t rows = 64, width = 1024, rank = 16;

/// Memory of an adapter as a file has it: bytes, and what they are.
struct stored_adapter {
    mhr::element_type type;
    std::vector<unsigned char> a, b; // [width, rank], [rank, width]

    stored_adapter(mhr::element_type type_, float value_of_a, float value_of_b)
        : type(type_), a(filled(value_of_a)), b(filled(value_of_b)) {}

    mhr::lora view() const {
        return {{a.data(), type, {width, rank}}, {b.data(), type, {rank, width}}, 1.0 / rank};
    }

  private:
    std::vector<unsigned char> filled(float value) const {
        const std::size_t size = mhr::size_of(type);
        std::vector<unsigned char> bytes(static_cast<std::size_t>(width * rank) * size);
        const mhr::bf16 half(value);
        for (std::size_t at = 0; at < bytes.size(); at += size)
            std::memcpy(bytes.data() + at,
                        type == mhr::element_type::f32 ? static_cast<const void*>(&value) : &half,
                        size);
        return bytes;
    }
};

} // namespace

int main() {
    // Three requests of 16 rows with adapters of their own, and 16 rows of the base model alone.
    const stored_adapter adapters[] = {{mhr::element_type::f32, 0.5F, 0.25F},
                                       {mhr::element_type::bf16, 0.5F, 0.5F},
                                       {mhr::element_type::f32, 0.25F, 1.0F}};
    const std::vector<mhr::lora> list{adapters[0].view(), adapters[1].view(), adapters[2].view()};
    std::vector<std::int32_t> adapter_of_row(rows);
    for (std::size_t row = 0; row < adapter_of_row.size(); ++row)
        adapter_of_row[row] = static_cast<std::int32_t>(row % 4) - 1;
    mhr::batch_plan plan;
    plan.assign_rows(mhr::tensor_view<const std::int32_t, 1>(adapter_of_row.data(), {rows}));
    const mhr::batch batch{plan};
    const mhr::lora_list layer(list.data(), static_cast<mhr::index_t>(list.size()));

    std::vector<float> x(rows * width, 0.125F), y(rows * width);
    const mhr::tensor_ref<2> x_ref(x.data(), {rows, width}), y_ref(y.data(), {rows, width});
    mhr::owned_workspace memory(mhr::lora_state_size(batch, layer));
    mhr::workspace workspace = memory;
    const mhr::lora_state state = mhr::take_lora_state(workspace, batch, layer);
    const std::string why = mhr::why_not(batch, layer, x_ref, y_ref, state);
    if (!why.empty()) { // an engine would compute this layer in another way
        std::printf("cannot be served: %s\n", why.c_str());
        return 1;
    }
    const auto start = std::chrono::steady_clock::now();
    mhr::lora_forward(batch, layer, x_ref, y_ref, state);
    const std::chrono::duration<double, std::milli> passed =
        std::chrono::steady_clock::now() - start;
    std::printf("kernels: %s, %.2f ms\n", mhr::kernels::architecture(), passed.count());

    // x A = 1024 0.125 a, and (x A) B / rank = 128 a b.
    const float want[] = {0, 128 * 0.5F * 0.25F, 128 * 0.5F * 0.5F, 128 * 0.25F * 1.0F};
    for (std::size_t row = 0; row < adapter_of_row.size(); ++row)
        for (std::size_t i = 0; i < width; ++i)
            if (!(std::abs(y[row * width + i] - want[row % 4]) <= 1e-3F)) {
                std::printf("row %zu is wrong\n", row);
                return 1;
            }
    std::printf("rows of three adapters and of none: right\n");
    return 0;
}
