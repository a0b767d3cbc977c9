#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <mhr/core/error.hpp>
#include <mhr/io/layer_pattern.hpp>
#include <mhr/io/peft_config.hpp>
#include <mhr/io/printable.hpp>
#include <mhr/io/safetensors.hpp>
#include <mhr/io/safetensors_writer.hpp>

/// \file
/// What the adapters of PEFT have in common on disk: the names of tensors, which layers a
/// configuration allows, what is read of the folder and written to it.

namespace mhr {
inline namespace MHR_ISA {

/// The name of the file in an adapter's folder.
inline constexpr const char* peft_tensors_file = "adapter_model.safetensors";

namespace detail {

inline constexpr std::string_view peft_prefix = "base_model.model.";

/// The name of a tensor, as in
/// base_model.model.encoder.block.0.layer.0.SelfAttention.q.poly_lora_A.
inline std::string peft_key(std::string_view layer, std::string_view part) {
    return std::string(peft_prefix) += std::string(layer) += part;
}

inline bool begins_with(std::string_view text, std::string_view with) {
    return text.substr(0, with.size()) == with;
}
inline bool ends_with(std::string_view text, std::string_view with) {
    return text.size() >= with.size() && text.substr(text.size() - with.size()) == with;
}
/// True if a name is the layer's, or the last parts of it.
inline bool is_last_part(std::string_view name, std::string_view layer) {
    return ends_with(layer, name) &&
           (layer.size() == name.size() || layer[layer.size() - name.size() - 1] == '.');
}

/// What a configuration says of layers. Lists are followed; a regular expression in their place is
/// not evaluated, as the tensors tell which layers it chose.
class layer_rules {
  public:
    explicit layer_rules(const peft_config& config)
        : config_(config), targets_(config.matching_of("target_modules")),
          excluded_(config.matching_of("exclude_modules")),
          saved_(config.matching_of("modules_to_save")) {}

    /// Errors: a layer that is not to be adapted.
    void require_adapted(std::string_view layer) {
        const auto is_of = [&](std::string_view name) { return is_last_part(name, layer); };
        const auto& fields = config_.fields();
        if (config_.has("target_modules") && fields["target_modules"].is_array() &&
            !config_.lists("target_modules", targets_, is_of))
            config_.fail("target_modules", "a name of each layer in the file",
                         "none of " + in_quotes(layer));
        if (config_.lists("exclude_modules", excluded_, is_of))
            config_.fail("exclude_modules", "no name of a layer in the file",
                         "one of " + in_quotes(layer));
    }

    /// True of a tensor that belongs to a part of the model that was trained whole.
    bool is_saved(std::string_view key) {
        if (!begins_with(key, peft_prefix)) return false;
        const std::string parts = "." + std::string(key.substr(peft_prefix.size())) + ".";
        return config_.lists("modules_to_save", saved_, [&](std::string_view name) {
            saved_.spend(parts.size() / 8);
            return parts.find("." + std::string(name) + ".") != std::string::npos;
        });
    }

  private:
    const peft_config& config_;
    matching targets_, excluded_, saved_;
};

/// The layer that a tensor's name tells, and the number of its part; no layer for other names.
template <std::size_t Parts>
std::pair<std::string_view, std::size_t>
split_key(std::string_view key, const std::array<std::string_view, Parts>& parts) {
    if (begins_with(key, peft_prefix))
        for (std::size_t i = 0; i < Parts; ++i)
            if (ends_with(key, parts[i]) && key.size() > peft_prefix.size() + parts[i].size()) {
                key.remove_prefix(peft_prefix.size());
                key.remove_suffix(parts[i].size());
                return {key, i};
            }
    return {{}, 0};
}

/// Calls `use(layer, tensors)` for each layer of an adapter, with one tensor for each of `parts`.
/// Returns the names of the tensors that belong to modules_to_save, which are the file's.
///
/// Errors: a layer that lacks a part; a tensor that is no part of a layer, nor of modules_to_save;
/// a layer that the configuration excludes; none at all.
template <std::size_t Parts, class Use>
std::vector<std::string_view>
for_each_adapted_layer(const peft_config& config, const safetensors_file& file,
                       const std::array<std::string_view, Parts>& parts, Use&& use) {
    layer_rules rules(config);
    std::vector<std::string_view> saved;
    bool any = false;
    for (const auto& [key, stored] : file.tensors()) {
        const auto [layer, part] = split_key(key, parts);
        if (layer.empty()) {
            if (!rules.is_saved(key))
                file.fail(key, "a tensor of an adapter of type " + config.type(), "an unknown one",
                          stored.first);
            saved.emplace_back(key);
            continue;
        }
        std::array<const safetensors_tensor*, Parts> tensors{};
        for (std::size_t i = 0; i < Parts; ++i) {
            const auto found = file.tensors().find(peft_key(layer, parts[i]));
            if (found == file.tensors().end())
                file.fail(key, "a tensor '..." + std::string(parts[i]) + "' beside it", "none",
                          stored.first);
            tensors[i] = &found->second;
        }
        if (part != 0) continue; // the layer comes with its first part
        any = true;
        rules.require_adapted(layer);
        use(layer, tensors);
    }
    if (!any)
        raise("peft: " + file.name() + ": tensors: expected those of at least one layer, got none");
    return saved;
}

/// Errors: a tensor without the given extents (any_extent: every number from 1), or of a type
/// without fractions.
template <std::size_t Rank>
void require_adapter_tensor(const safetensors_file& file, std::string_view key,
                            const safetensors_tensor& stored,
                            const std::array<index_t, Rank>& expected, const char* meaning) {
    bool fits = stored.rank == Rank;
    std::string text = "[";
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        const index_t extent = stored.extents[axis];
        fits = fits && (expected[axis] == any_extent ? extent >= 1 : extent == expected[axis]);
        text +=
            (axis == 0 ? "" : ", ") +
            (expected[axis] == any_extent ? std::string("any") : std::to_string(expected[axis]));
    }
    if (!fits)
        file.fail(key, "extents " + text + "], " + meaning, extents_text(stored), stored.first);
    if (!is_floating(stored.type))
        file.fail(key, "F64, F32, F16 or BF16", dtype_name(stored.type), stored.first);
}

/// Writes the two files of an adapter. Errors: they cannot be written.
inline void write_adapter(const std::filesystem::path& folder, const peft_config& config,
                          const safetensors_writer& tensors) {
    std::error_code problem;
    std::filesystem::create_directories(folder, problem);
    if (problem)
        raise("peft: " + printable(folder.string()) +
              ": folder: expected one that can be written to, got " + problem.message());
    tensors.write(folder / peft_tensors_file);
    config.write(folder);
}

} // namespace detail

/// An adapter of PEFT: its configuration, the file of its tensors, and the layers that are in it.
/// What poly_checkpoint, lora_checkpoint and ia3_checkpoint have in common.
template <class Config, class Layer>
class peft_checkpoint {
  public:
    /// One adapted layer.
    using layer = Layer;

    /// The configuration.
    [[nodiscard]] const Config& config() const noexcept { return config_; }

    /// The file of its tensors.
    [[nodiscard]] const safetensors_file& tensors() const noexcept { return tensors_; }

    /// In the order of their names, which are valid as long as this is.
    [[nodiscard]] const std::vector<Layer>& layers() const noexcept { return layers_; }

    /// Names of the tensors of modules_to_save, which are no part of a layer; valid as long.
    [[nodiscard]] const std::vector<std::string_view>& saved() const noexcept { return saved_; }

  protected:
    /// Without layers yet.
    peft_checkpoint(Config config, safetensors_file tensors)
        : config_(std::move(config)), tensors_(std::move(tensors)) {}

    /// The layers are what `describe(name, tensors)` returns for each, with one tensor for each of
    /// `parts`. Errors: as of for_each_adapted_layer, and those of `describe`.
    template <std::size_t Parts, class Describe>
    void find_layers(const std::array<std::string_view, Parts>& parts, Describe&& describe) {
        saved_ = detail::for_each_adapted_layer(
            config_.json(), tensors_, parts,
            [&](std::string_view name, const std::array<const safetensors_tensor*, Parts>& stored) {
                layers_.push_back(describe(name, stored));
            });
        // Names of tensors sort otherwise, as in "a-b.weight", "a.weight".
        std::sort(layers_.begin(), layers_.end(),
                  [](const Layer& a, const Layer& b) { return a.name < b.name; });
    }

    Config config_;            ///< as it was read
    safetensors_file tensors_; ///< all of them

  private:
    std::vector<Layer> layers_;
    std::vector<std::string_view> saved_;
};

/// Collects the layers of an adapter and writes the folder that PEFT reads. What it is given are
/// views: their memory must stay till it is written.
template <class Config>
class peft_checkpoint_writer {
  public:
    /// Adds a tensor of modules_to_save as it is in the file that it came from.
    void add_saved(const safetensors_file& file, std::string_view name) {
        tensors_.add(file, std::string(name));
    }

    /// Writes both files, in place of those that are there. Errors: they cannot be written.
    void write(const std::filesystem::path& folder) const {
        detail::write_adapter(folder, config_.json(), tensors_);
    }

    /// The bytes of the file of tensors; the other one is config.json().text().
    [[nodiscard]] std::string tensor_bytes() const { return tensors_.bytes(); }

  protected:
    /// Without layers yet.
    explicit peft_checkpoint_writer(Config config) : config_(std::move(config)) {
        tensors_.set_metadata("format", "pt"); // as PEFT does
    }

    Config config_;              ///< of the adapter
    safetensors_writer tensors_; ///< those that were added
};

} // namespace MHR_ISA
} // namespace mhr
