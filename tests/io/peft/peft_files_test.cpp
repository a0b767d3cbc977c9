#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <mhr/io/peft/ia3_checkpoint.hpp>
#include <mhr/io/peft/lora_checkpoint.hpp>

#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/golden_case.hpp"
#include "support/tensor.hpp"

// Folders that PEFT wrote, of every form, and what PEFT makes of them (peft_files/README.md).

using namespace mhr;
using namespace mhr::test;
using nlohmann::json;

namespace {

std::filesystem::path folder_of_files() {
    return std::filesystem::path(MHR_GOLDEN_DEFAULT_DIR).parent_path() / "io" / "peft_files";
}

/// max |got - want| <= tolerance max |want|, which must not be 0 everywhere.
bool agree(const std::vector<double>& got, const tensor<double, 2>& want, double tolerance) {
    double largest = 0, error = 0;
    const auto columns = want.view().extent(1);
    for (index_t i = 0; i < want.view().size(); ++i) {
        const double expected = want.view()(i / columns, i % columns);
        largest = larger(largest, std::abs(expected));
        error = larger(error, std::abs(got.at(static_cast<std::size_t>(i)) - expected));
    }
    return largest > 0 && error <= tolerance * largest &&
           got.size() == static_cast<std::size_t>(want.view().size());
}

/// A vector of any type and memory, in f64.
std::vector<double> numbers_of(const safetensors_file& file, const std::string& name) {
    std::vector<double> result(static_cast<std::size_t>(file.tensor(name).extents[0]));
    file.read<1>(name, {result.data(), {static_cast<index_t>(result.size())}});
    return result;
}

/// The weights of a layer that PEFT makes, from the tensors as they are read.
void check_layer(const lora_checkpoint& adapter, const lora_layer& layer, const golden_file& want,
                 bool fan_in_fan_out, double tolerance) {
    const std::string name(layer.name);
    CAPTURE(name);
    tensor<double, 2> a({layer.in_features, layer.rank}), b({layer.rank, layer.out_features});
    adapter.read_adapter(layer, {a.view(), b.view()});
    const bool transposed = layer.form == lora_form::embedding || fan_in_fan_out;
    const auto base = want.read<double, 2>(name + ".base_weight");
    const index_t rows = base.view().extent(0), columns = base.view().extent(1);
    REQUIRE(rows == (transposed ? layer.in_features : layer.out_features));
    REQUIRE(columns == (transposed ? layer.out_features : layer.in_features));
    std::vector<double> delta, merged;
    std::vector<double> magnitude;
    if (layer.has_magnitude)
        magnitude = numbers_of(adapter.tensors(), std::string(adapter.tensor_names(layer)[2]));
    for (index_t i = 0; i < rows; ++i) {
        double squares = 0;
        const auto first = static_cast<std::ptrdiff_t>(merged.size());
        for (index_t j = 0; j < columns; ++j) {
            double sum = 0;
            for (index_t r = 0; r < layer.rank; ++r)
                sum +=
                    transposed ? a.view()(i, r) * b.view()(r, j) : a.view()(j, r) * b.view()(r, i);
            delta.push_back(layer.scale * sum);
            merged.push_back(base.view()(i, j) + delta.back());
            squares += merged.back() * merged.back();
        }
        if (layer.has_magnitude)
            std::for_each(merged.begin() + first, merged.end(), [&](double& number) {
                number *= magnitude[static_cast<std::size_t>(i)] / std::sqrt(squares);
            });
    }
    CHECK(agree(delta, want.read<double, 2>(name + ".delta_weight"), tolerance));
    CHECK(agree(merged, want.read<double, 2>(name + ".merged_weight"), tolerance));
    if (!layer.has_bias) return;
    const auto bias = numbers_of(adapter.tensors(), std::string(adapter.tensor_names(layer)[3]));
    const auto base_bias = want.read<double, 1>(name + ".base_bias");
    const auto merged_bias = want.read<double, 1>(name + ".merged_bias");
    for (std::size_t i = 0; i < bias.size(); ++i) {
        const auto at = static_cast<index_t>(i);
        CHECK(base_bias.view()(at) + layer.scale * bias[i] ==
              doctest::Approx(merged_bias.view()(at)).epsilon(tolerance));
    }
}

/// Written again from what is read, both files are the same, to the byte, where PEFT wrote the
/// names.
void check_round_trip(const lora_checkpoint& adapter, const std::filesystem::path& folder) {
    lora_checkpoint_writer writer(adapter.config());
    for (const auto& layer : adapter.layers())
        writer.add_layer(layer.name, adapter.adapter(layer), adapter.vectors(layer), layer.form);
    for (const auto& saved : adapter.saved())
        writer.add_saved(adapter.tensors(), saved);
    CHECK(writer.tensor_bytes() == read_file(folder / peft_tensors_file));
}

} // namespace

TEST_CASE("peft files: LoRA of every form gives the weights that PEFT gives") {
    int layers = 0;
    const std::map<std::string, std::string> refused{
        {"lora_future_key_set", "key 'future_rotation'"},
        {"lora_target_one_parameter", "key 'target_parameters'"},
        {"lora_target_parameters", "key 'target_parameters'"},
        {"lora_target_parameters_transposed", "key 'target_parameters'"}};
    std::size_t refusals = 0, folders = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder_of_files())) {
        const std::filesystem::path folder = entry.path();
        const std::string name = folder.filename().string();
        if (!entry.is_directory() || name == "ia3") continue;
        CAPTURE(name);
        ++folders;
        const auto reason = refused.find(name);
        if (reason != refused.end()) {
            ++refusals;
            CHECK(error_of([&] { lora_checkpoint{folder}; }).find(reason->second) !=
                  std::string::npos);
            continue;
        }
        const lora_checkpoint adapter(folder);
        const golden_file want((folder / "expected.safetensors").string());
        const json scales = json::parse(want.metadata().at("scalings"));
        CHECK(adapter.layers().size() == scales.size());
        const double tolerance = std::stod(want.metadata().at("tol"));
        const bool fan_in_fan_out = adapter.config().json().flag("fan_in_fan_out", false);
        for (const auto& layer : adapter.layers()) {
            ++layers;
            CHECK(layer.scale ==
                  doctest::Approx(scales.at(std::string(layer.name)).get<double>()).epsilon(1e-14));
            check_layer(adapter, layer, want, fan_in_fan_out, tolerance);
        }
        if (name.find("lora_keys_") != 0) check_round_trip(adapter, folder);
    }
    CHECK(refusals == refused.size());
    CHECK(folders == 25);
    CHECK(layers > 50);
}

TEST_CASE("peft files: what was trained whole is named and holds PEFT's numbers") {
    std::size_t compared = 0;
    for (const char* name :
         {"lora_base_bias_all", "lora_base_bias_lora_only", "lora_modules_to_save",
          "lora_whole_embeddings", "lora_embedding_targeted"}) {
        CAPTURE(name);
        const lora_checkpoint adapter(folder_of_files() / name);
        const golden_file want((folder_of_files() / name / "expected.safetensors").string());
        CHECK_FALSE(adapter.saved().empty());
        for (const auto& saved : adapter.saved()) {
            std::string module(
                peft_details::module_of(saved.substr(peft_details::peft_prefix.size())));
            const bool bias = peft_details::ends_with(saved, ".bias");
            module += bias ? ".saved_bias" : ".saved_weight";
            CAPTURE(module);
            if (!want.contains(module)) continue;
            ++compared;
            if (bias) {
                const auto expected = want.read<double, 1>(module);
                const auto got = numbers_of(adapter.tensors(), std::string(saved));
                for (std::size_t i = 0; i < got.size(); ++i)
                    CHECK(is_exactly(got[i], expected.view()(static_cast<index_t>(i))));
            } else {
                const auto expected = want.read<double, 2>(module);
                tensor<double, 2> got(expected.extents());
                adapter.tensors().read<2>(std::string(saved), got.view());
                CHECK(got.view().size() > 0);
                for (index_t i = 0; i < got.view().extent(0); ++i)
                    for (index_t j = 0; j < got.view().extent(1); ++j)
                        CHECK(is_exactly(got.view()(i, j), expected.view()(i, j)));
            }
        }
    }
    CHECK(compared >= 8);
}

TEST_CASE("peft files: (IA)3 scales inputs or outputs as PEFT does") {
    const auto folder = folder_of_files() / "ia3";
    const ia3_checkpoint adapter(folder);
    const golden_file want((folder / "expected.safetensors").string());
    CHECK(adapter.layers().size() > 1);
    for (const auto& layer : adapter.layers()) {
        const std::string name(layer.name);
        CAPTURE(name);
        std::vector<double> scales(static_cast<std::size_t>(layer.features));
        adapter.read_scales(layer, {scales.data(), {layer.features}});
        const auto base = want.read<double, 2>(name + ".base_weight");
        std::vector<double> merged;
        for (index_t i = 0; i < base.view().extent(0); ++i)
            for (index_t j = 0; j < base.view().extent(1); ++j)
                merged.push_back(base.view()(i, j) *
                                 scales[static_cast<std::size_t>(layer.scales_inputs ? j : i)]);
        CHECK(agree(merged, want.read<double, 2>(name + ".merged_weight"), 1e-12));
    }
}
