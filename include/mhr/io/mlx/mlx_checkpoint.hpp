#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/error.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/files/file_path.hpp>
#include <mhr/io/files/json.hpp>
#include <mhr/io/files/mapped_file.hpp>
#include <mhr/io/files/printable.hpp>
#include <mhr/io/safetensors/dtype.hpp>
#include <mhr/io/safetensors/safetensors_file.hpp>
#include <mhr/lora/adapters.hpp>

/// \file
/// Adapters of mlx-lm (https://github.com/ml-explore/mlx-lm), in: a folder with
/// adapter_config.json and adapters.safetensors. A layer M has
///     M.lora_a [in_features, rank], M.lora_b [rank, out_features]    of a layer or an embedding
///     M.lora_a [experts, rank, in_features],
///     M.lora_b [experts, out_features, rank]                         of experts
///     M.m [out_features]                                             beside those of a layer, with
///     DoRA
/// The scale is the configuration's lora_parameters.scale as it is, whatever the rank. Tensors of
/// these files are often not aligned: then they are copied.

namespace mhr {
inline namespace MHR_ISA {

/// One adapted layer of an adapter of mlx-lm.
struct mlx_layer {
    std::string_view name; ///< such as model.layers.0.self_attn.q_proj
    index_t experts;       ///< number of them; 0 of a layer without experts
    index_t in_features;   ///< of x, or the vocabulary of an embedding
    index_t out_features;  ///< of y
    index_t rank;          ///< of each expert
    element_type a_type;   ///< of the matrix a
    element_type b_type;   ///< of the matrix b
    bool has_magnitude;    ///< DoRA
};

/// An adapter of mlx-lm. Its tensors are shown where they lie in the file, of the file's types.
class mlx_checkpoint {
  public:
    /// Opens an adapter's folder. These are refused: what is unreadable or contradictory in its two
    /// files; whole models (fine_tune_type "full"); DoRA of embeddings or of experts; a tensor that
    /// is no part of an adapted layer.
    explicit mlx_checkpoint(const std::filesystem::path& folder,
                            file_access access = file_access::map)
        : tensors_(folder / "adapters.safetensors", access) {
        const std::filesystem::path path = folder / "adapter_config.json";
        const mapped_file file(path);
        read_config(path_text(path), {reinterpret_cast<const char*>(file.data()), file.size()});
        find_layers();
    }

    /// Takes the text of the configuration, and the tensors, from anywhere; `name` is for messages.
    /// The same is refused.
    mlx_checkpoint(const std::string& name, std::string_view config, safetensors_file tensors)
        : tensors_(std::move(tensors)) {
        read_config(name, config);
        find_layers();
    }

    /// The file of its tensors.
    [[nodiscard]] const safetensors_file& tensors() const noexcept { return tensors_; }

    /// In the order of their names, which are valid as long as this is.
    [[nodiscard]] const std::vector<mlx_layer>& layers() const noexcept { return layers_; }

    /// What x a b is multiplied by, in all layers.
    [[nodiscard]] double scale() const noexcept { return scale_; }

    /// The adapter of a layer, or of one of its experts, where it lies in the file: a and b of the
    /// file's types, and the scale. These are refused: data that are not aligned, which
    /// `read_adapter` copies, or of experts `tensors().read`; an expert that there is not (0 of a
    /// layer without).
    [[nodiscard]] lora adapter(const mlx_layer& of, index_t expert = 0) const {
        require_expert(of, expert);
        if (of.experts == 0)
            return {tensors_.view<2>(key(of, ".lora_a")), tensors_.view<2>(key(of, ".lora_b")),
                    scale_};
        const auto matrix = [&](const char* part) {
            return tensors_.view<3>(key(of, part)).slice(0, expert).transpose(0, 1);
        };
        return {matrix(".lora_a"), matrix(".lora_b"), scale_};
    }

    /// Copies the matrices of a layer without experts into tensors of any types and strides, each
    /// element rounded once. These are refused: a layer of experts, of which `tensors().read`
    /// copies all; shapes that are not the layer's; a tensor two of whose elements overlap.
    void read_adapter(const mlx_layer& of, const lora_matrices& to) const {
        argument_checks checks("mlx_checkpoint::read_adapter"); // both, before either is written
        checks.output("to.a", to.a, {of.in_features, of.rank});
        checks.output("to.b", to.b, {of.rank, of.out_features});
        checks.expect(of.experts == 0, "of", "no layer of experts", joined(of.experts, " experts"));
        checks.raise();
        tensors_.read(key(of, ".lora_a"), to.a);
        tensors_.read(key(of, ".lora_b"), to.b);
    }

    /// Copies the magnitude of DoRA. These are refused: a layer without one; another number of
    /// elements than out_features.
    void read_magnitude(const mlx_layer& of, const tensor_ref<1>& to) const {
        tensors_.read(key(of, ".m"), to);
    }

  private:
    static std::string key(const mlx_layer& of, const char* part) {
        return std::string(of.name) + part;
    }

    static void require_expert(const mlx_layer& of, index_t expert) {
        if (expert < 0 || expert >= (std::max)(of.experts, index_t(1)))
            raise("mlx: " + in_quotes(of.name) + ": expert: expected 0" +
                  (of.experts > 1 ? " to " + std::to_string(of.experts - 1) : std::string()) +
                  ", got " + std::to_string(expert));
    }

    void read_config(const std::string& name, std::string_view text) {
        const json_source source{"mlx: " + name, text};
        bool known = false;
        for_each_json_member(
            source, {std::size_t(1) << 20, 8, 1024},
            [&](const std::string& key, json_details::json&& value, std::size_t offset) {
                if (key == "fine_tune_type") {
                    if (value != "lora" && value != "dora")
                        source.fail("key 'fine_tune_type'", "'lora' or 'dora'",
                                    printable(value.dump(-1, ' ', false, replace), 60), offset);
                    dora_ = value == "dora";
                } else if (key == "lora_parameters") {
                    if (known) source.fail("key 'lora_parameters'", "one", "another", offset);
                    known = true;
                    read_parameters(source, value, offset);
                }
            });
        if (!known)
            raise(source.name + ": key 'lora_parameters': expected an object with 'rank' and "
                                "'scale', got none");
    }

    void read_parameters(const json_source& source, const json_details::json& value,
                         std::size_t offset) {
        const auto number = [&](const char* key) {
            const auto found = value.is_object() ? value.find(key) : value.end();
            if (found == value.end() || !found->is_number() || !std::isfinite(found->get<double>()))
                source.fail("key 'lora_parameters'", std::string("a finite number ") + key,
                            "another value or none", offset);
            return found->get<double>();
        };
        scale_ = number("scale");
        const double rank = number("rank");
        if (!(rank >= 1 && rank < 1e9 && is_exactly(rank, std::floor(rank))))
            source.fail("key 'lora_parameters'", "a rank from 1", std::to_string(rank), offset);
        rank_ = static_cast<index_t>(rank);
    }

    /// Every tensor is a part of a layer, and every layer has all of its parts.
    void find_layers() {
        for (const auto& [name, stored] : tensors_.tensors()) {
            const std::size_t dot = name.rfind('.');
            const std::string_view layer = std::string_view(name).substr(0, dot);
            const std::string_view part =
                dot == std::string::npos ? std::string_view() : std::string_view(name).substr(dot);
            if (part == ".lora_a")
                layers_.push_back(describe(name, layer, stored));
            else if ((part != ".lora_b" && !(dora_ && part == ".m")) ||
                     !tensors_.contains(std::string(layer) + ".lora_a"))
                tensors_.fail(name, "a part of an adapted layer (.lora_a, .lora_b, with DoRA .m)",
                              "another tensor", stored.first);
        }
        if (layers_.empty())
            raise("mlx: " + tensors_.name() +
                  ": tensors: expected those of at least one layer, got none");
    }

    mlx_layer describe(const std::string& name_of_a, std::string_view layer,
                       const safetensors_tensor& a) const {
        const std::string name_of_b = std::string(layer) + ".lora_b";
        const std::string name_of_m = std::string(layer) + ".m";
        if (!tensors_.contains(name_of_b) || (dora_ && !tensors_.contains(name_of_m)))
            tensors_.fail(name_of_a, "all of its layer's tensors beside it", "not all", a.first);
        const safetensors_tensor& b = tensors_.tensor(name_of_b);
        const bool of_experts = a.rank == 3;
        const std::size_t rank_axis = 1, features_axis = of_experts ? 2 : 0;
        const std::size_t b_rank_axis = of_experts ? 2 : 0;
        for (const auto* one : {&a, &b}) {
            const std::string& name = one == &a ? name_of_a : name_of_b;
            const bool fits =
                one->rank == a.rank && (a.rank == 2 || a.rank == 3) &&
                std::all_of(one->extents.begin(),
                            one->extents.begin() + static_cast<std::ptrdiff_t>(one->rank),
                            [](index_t extent) { return extent >= 1; }) &&
                one->extents[one == &a ? rank_axis : b_rank_axis] == rank_ &&
                (!of_experts || one->extents[0] == a.extents[0]);
            if (!fits)
                tensors_.fail(name, "the extents of a layer of rank " + std::to_string(rank_),
                              safetensors_details::extents_text(*one), one->first);
        }
        const index_t out_features = b.extents[1];
        if (dora_) {
            const safetensors_tensor& m = tensors_.tensor(name_of_m);
            if (of_experts || m.rank != 1 || m.extents[0] != out_features)
                tensors_.fail(name_of_m,
                              "a magnitude for each output of a linear layer (DoRA of embeddings "
                              "and of experts is not read)",
                              safetensors_details::extents_text(m), m.first);
            (void)type_of(name_of_m, m);
        }
        return {layer, of_experts ? a.extents[0] : 0, a.extents[features_axis], out_features,
                rank_, type_of(name_of_a, a),         type_of(name_of_b, b),    dora_};
    }

    [[nodiscard]] element_type type_of(const std::string& name,
                                       const safetensors_tensor& stored) const {
        const auto type = to_element_type(stored.type);
        if (!type)
            tensors_.fail(name, "F64, F32, F16 or BF16", dtype_name(stored.type), stored.first);
        return *type;
    }

    static constexpr auto replace = json_details::json::error_handler_t::replace;

    safetensors_file tensors_;
    bool dora_ = false;
    double scale_ = 0;
    index_t rank_ = 0;
    std::vector<mlx_layer> layers_{};
};

} // namespace MHR_ISA
} // namespace mhr
