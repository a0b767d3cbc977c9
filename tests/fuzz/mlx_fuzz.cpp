// The input is an adapter of mlx-lm: see adapter_input.hpp.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <mhr/core/sums.hpp>
#include <mhr/io/mlx/mlx_checkpoint.hpp>

#include "fuzz/adapter_input.hpp"
#include "fuzz/file_checks.hpp"
#include "fuzz/fuzz_target.hpp"
#include "support/file_bytes.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// A copy of a matrix of the file, in f64.
lora_matrices matrices(std::vector<double>& a, std::vector<double>& b, const mlx_layer& layer) {
    a.assign(static_cast<std::size_t>(layer.in_features * layer.rank), 1);
    b.assign(static_cast<std::size_t>(layer.rank * layer.out_features), 1);
    return {{a.data(), {layer.in_features, layer.rank}},
            {b.data(), {layer.rank, layer.out_features}}};
}

void check_layer(const mlx_checkpoint& adapter, const mlx_layer& layer) {
    must(layer.rank >= 1 && std::isfinite(adapter.scale()), "a rank and a scale are numbers");
    must(!accepted([&] { (void)adapter.adapter(layer, layer.experts + 1); }),
         "an expert that there is not has no adapter");
    const index_t last = layer.experts == 0 ? 0 : layer.experts - 1;
    std::vector<double> a, b;
    const lora_matrices copies = matrices(a, b, layer);
    must(accepted([&] { adapter.read_adapter(layer, copies); }) == (layer.experts == 0),
         "layers without experts are copied, and no others");
    // This refuses data that are not aligned.
    (void)accepted([&] {
        const lora shown = adapter.adapter(layer, last);
        must(shown.a.extents() == copies.a.extents() && shown.b.extents() == copies.b.extents() &&
                 shown.a.type() == layer.a_type && shown.b.type() == layer.b_type &&
                 is_exactly(shown.scale, adapter.scale()),
             "a layer's adapter has its shapes, types and scale");
        for (const const_tensor_ref<2>& view : {shown.a, shown.b})
            for (index_t i = 0; i < view.extent(0); ++i)
                for (index_t j = 0; j < view.extent(1); ++j)
                    touch(view.address_of(i, j), size_of(view.type()));
    });
    std::vector<double> magnitude(static_cast<std::size_t>(layer.out_features));
    must(accepted([&] {
             adapter.read_magnitude(layer, {magnitude.data(), {layer.out_features}});
         }) == layer.has_magnitude,
         "a layer has the magnitude that it tells of");
}

} // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const adapter_input input = split_adapter_input(data, size);
    // Memory of its own, as a mapped file has.
    const std::vector<char> memory(input.tensors.begin(), input.tensors.end());
    std::optional<mlx_checkpoint> adapter;
    if (!accepted([&] {
            adapter.emplace("some.file", input.config,
                            safetensors_file("some.file", memory.data(), memory.size()));
        }))
        return 0;
    for (const mlx_layer& layer : adapter->layers())
        check_layer(*adapter, layer);
    ++good_inputs;
    return 0;
}

std::vector<std::string> mhr::test::fuzz_seeds() {
    const auto folder =
        std::filesystem::path(MHR_GOLDEN_DEFAULT_DIR).parent_path() / "io" / "mlx_files";
    std::vector<std::string> seeds;
    for (const char* name : {"lora_f16", "dora_f32", "embedding_f32", "experts_f32"})
        seeds.push_back(join_adapter_input({read_file(folder / name / "adapter_config.json"),
                                            read_file(folder / name / "adapters.safetensors")}));
    return seeds;
}
