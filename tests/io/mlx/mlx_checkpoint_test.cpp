#include <cmath>
#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/mlx/mlx_checkpoint.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>

#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/golden_case.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

std::filesystem::path folder_of_files() {
    return std::filesystem::path(MHR_GOLDEN_DEFAULT_DIR).parent_path() / "io" / "mlx_files";
}

/// The delta and the merged weight of a layer, or of one of its experts.
void check_weights(outcome& result, const mlx_layer& layer, const tensor_view<const double, 2>& a,
                   const tensor_view<const double, 2>& b, const tensor<double, 2>& base,
                   const tensor<double, 2>& want_delta, const tensor<double, 2>& want_merged,
                   double scale, const std::vector<double>& magnitude) {
    const bool embeds = layer.name.find("embed") != std::string_view::npos;
    tensor<double, 2> delta(base.extents()), merged(base.extents());
    for (index_t i = 0; i < base.view().extent(0); ++i) {
        double squares = 0;
        for (index_t j = 0; j < base.view().extent(1); ++j) {
            double sum = 0;
            for (index_t r = 0; r < layer.rank; ++r)
                sum += embeds ? a(i, r) * b(r, j) : a(j, r) * b(r, i);
            delta.view()(i, j) = scale * sum;
            merged.view()(i, j) = base.view()(i, j) + scale * sum;
            squares += merged.view()(i, j) * merged.view()(i, j);
        }
        for (index_t j = 0; !magnitude.empty() && j < base.view().extent(1); ++j)
            merged.view()(i, j) *= magnitude[static_cast<std::size_t>(i)] / std::sqrt(squares);
    }
    result.compare("delta", delta.view(), want_delta, 1e-12);
    result.compare("merged", merged.view(), want_merged, 1e-12);
}

tensor<double, 2> matrix_of(const tensor<double, 3>& all, index_t i) {
    tensor<double, 2> result({all.view().extent(1), all.view().extent(2)});
    for (index_t j = 0; j < all.view().extent(1); ++j)
        for (index_t k = 0; k < all.view().extent(2); ++k)
            result.view()(j, k) = all.view()(i, j, k);
    return result;
}

tensor<double, 2> transposed(const tensor<double, 2>& one) {
    tensor<double, 2> result({one.view().extent(1), one.view().extent(0)});
    for (index_t j = 0; j < one.view().extent(0); ++j)
        for (index_t k = 0; k < one.view().extent(1); ++k)
            result.view()(k, j) = one.view()(j, k);
    return result;
}

mlx_checkpoint open(const std::string& config, const std::string& bytes) {
    return {"some.config", config, safetensors_file("some.file", bytes.data(), bytes.size())};
}

} // namespace

TEST_CASE("mlx_checkpoint: files of every form give the weights that they mean") {
    int folders = 0;
    std::size_t layers = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder_of_files())) {
        if (!entry.is_directory()) continue;
        const std::string folder = entry.path().string();
        CAPTURE(folder);
        ++folders;
        const mlx_checkpoint adapter(entry.path());
        const golden_file want((entry.path() / "expected.safetensors").string());
        CHECK(adapter.scale() == std::stod(want.metadata().at("scale")));
        outcome result;
        for (const mlx_layer& layer : adapter.layers()) {
            ++layers;
            const std::string name(layer.name);
            CAPTURE(name);
            if (layer.experts != 0) {
                tensor<double, 3> a({layer.experts, layer.rank, layer.in_features});
                tensor<double, 3> b({layer.experts, layer.out_features, layer.rank});
                adapter.tensors().read<3>(name + ".lora_a", a.view());
                adapter.tensors().read<3>(name + ".lora_b", b.view());
                const auto base = want.read<double, 3>(name + ".base_weight");
                const auto delta = want.read<double, 3>(name + ".delta_weight");
                const auto merged = want.read<double, 3>(name + ".merged_weight");
                for (index_t e = 0; e < layer.experts; ++e)
                    check_weights(result, layer, transposed(matrix_of(a, e)).const_view(),
                                  transposed(matrix_of(b, e)).const_view(), matrix_of(base, e),
                                  matrix_of(delta, e), matrix_of(merged, e), adapter.scale(), {});
                continue;
            }
            tensor<double, 2> a({layer.in_features, layer.rank});
            tensor<double, 2> b({layer.rank, layer.out_features});
            adapter.read_adapter(layer, {a.view(), b.view()});
            std::vector<double> magnitude(
                layer.has_magnitude ? static_cast<std::size_t>(layer.out_features) : 0);
            if (layer.has_magnitude)
                adapter.read_magnitude(layer, {magnitude.data(), {layer.out_features}});
            check_weights(result, layer, a.const_view(), b.const_view(),
                          want.read<double, 2>(name + ".base_weight"),
                          want.read<double, 2>(name + ".delta_weight"),
                          want.read<double, 2>(name + ".merged_weight"), adapter.scale(),
                          magnitude);
        }
        for (const auto& failure : result.failures)
            FAIL_CHECK(failure);
    }
    CHECK(folders == 6);
    CHECK(layers == 12);
}

TEST_CASE("mlx_checkpoint: what is not such an adapter is refused") {
    const std::vector<float> numbers(64, 0.5F);
    const auto bytes_of = [&](index_t rank_b, const char* other) {
        safetensors_writer writer;
        writer.add<2>("a.q.lora_a", {numbers.data(), {5, 2}});
        writer.add<2>("a.q.lora_b", {numbers.data(), {rank_b, 4}});
        if (other != nullptr) writer.add<1>(other, {numbers.data(), {4}});
        return writer.bytes();
    };
    const std::string good = R"({"fine_tune_type":"lora","lora_parameters":{"rank":2,"scale":3}})";
    const std::string dora = R"({"fine_tune_type":"dora","lora_parameters":{"rank":2,"scale":3}})";
    const std::string bytes = bytes_of(2, nullptr);
    const mlx_checkpoint read = open(good, bytes);
    const lora adapter = read.adapter(read.layers().at(0));
    CHECK(adapter.scale == 3);
    CHECK(adapter.a.extents() == std::array<index_t, 2>{5, 2});
    CHECK(adapter.b.extents() == std::array<index_t, 2>{2, 4});
    for (const index_t expert : {-1, 1})
        CHECK_THROWS_AS((void)read.adapter(read.layers()[0], expert), error);
    CHECK(open(dora, bytes_of(2, "a.q.m")).layers()[0].has_magnitude);

    const auto refuses_tensor = [&](const std::string& config, const std::string& file,
                                    const char* tensor) {
        return refuses("safetensors: some.file", std::string("'") + tensor + "'",
                       [&] { (void)open(config, file); });
    };
    CHECK(refuses_tensor(good, bytes_of(3, nullptr), "a.q.lora_b"));
    CHECK(refuses_tensor(dora, bytes, "a.q.lora_a"));
    CHECK(refuses_tensor(good, bytes_of(2, "a.q.m"), "a.q.m"));
    CHECK(refuses_tensor(good, bytes_of(2, "a.k.weight"), "a.k.weight"));
    CHECK(refuses_tensor(good, bytes_of(2, "a.k.lora_b"), "a.k.lora_b"));
    CHECK(refuses_tensor(good, bytes_of(2, "bare"), "bare"));
    for (const char* config :
         {"{}", R"({"lora_parameters":{"rank":2}})", R"({"lora_parameters":{"scale":2}})",
          R"({"lora_parameters":{"rank":0,"scale":2}})", R"({"lora_parameters":[1,2]})",
          R"({"lora_parameters":{"rank":2.5,"scale":2}})",
          R"({"lora_parameters":{"rank":2,"scale":"2"}})"})
        CHECK(refuses("mlx: some.config", "key 'lora_parameters'",
                      [&] { (void)open(config, bytes); }));
    CHECK(refuses("mlx: some.config", "key 'fine_tune_type'", [&] {
        (void)open(R"({"fine_tune_type":"full","lora_parameters":{"rank":2,"scale":3}})", bytes);
    }));
}

TEST_CASE("mlx_checkpoint: a file cut off anywhere, or with a bit flipped, is read or refused") {
    const auto folder = folder_of_files() / "lora_f16";
    const std::string config = read_file(folder / "adapter_config.json");
    const std::string bytes = read_file(folder / "adapters.safetensors");
    REQUIRE(open(config, bytes).layers().size() == 1);
    for (std::size_t size = 0; size < bytes.size(); ++size)
        CHECK_THROWS_AS((void)open(config, bytes.substr(0, size)), error);
    int refused = 0;
    for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
        std::string changed = bytes;
        changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << (bit % 8)));
        try {
            const mlx_checkpoint checkpoint = open(config, changed);
            for (const auto& layer : checkpoint.layers())
                CHECK(layer.rank == 1);
        } catch (const error&) {
            ++refused;
        }
    }
    CHECK(refused > 500);
}
