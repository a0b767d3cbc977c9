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
#include <mhr/core/tensor_ref.hpp>
#include <mhr/io/files/file_path.hpp>
#include <mhr/io/files/mapped_file.hpp>
#include <mhr/io/peft/layer_tensors.hpp>
#include <mhr/io/peft/peft_config.hpp>
#include <mhr/io/peft/tensor_names.hpp>
#include <mhr/io/safetensors/safetensors_file.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>

/// \file
/// What the adapters of PEFT have in common on disk: the files of the folder, what is read of them
/// and written to them.

namespace mhr {
inline namespace MHR_ISA {

/// The name of the file in an adapter's folder.
inline constexpr const char* peft_tensors_file = "adapter_model.safetensors";

namespace peft_details {

/// Writes the two files of an adapter. Refused: a folder that cannot be written to.
inline void write_adapter(const std::filesystem::path& folder, const peft_config& config,
                          const safetensors_writer& tensors) {
    std::error_code problem;
    std::filesystem::create_directories(folder, problem);
    if (problem)
        raise("peft: " + path_text(folder) + ": folder: expected one that can be written to, got " +
              problem.message());
    tensors.write(folder / peft_tensors_file);
    config.write(folder);
}

} // namespace peft_details

/// Opens the file of tensors in an adapter's folder. These are refused: no folder; the file is not
/// there, which says what is there in its place; as of safetensors_file.
inline safetensors_file open_peft_tensors(const std::filesystem::path& folder,
                                          file_access access = file_access::map) {
    peft_details::require_folder(folder);
    std::error_code ignored;
    const auto is_there = [&](const char* name) {
        return std::filesystem::exists(folder / name, ignored);
    };
    struct other_file {
        const char* name;
        const char* advice;
    };
    if (!is_there(peft_tensors_file))
        for (const auto& [name, advice] :
             {other_file{"adapter_model.bin", "load the adapter in Python and save it again, with "
                                              "save_pretrained(folder, safe_serialization=True)"},
              other_file{"adapter_model.safetensors.index.json",
                         "tensors in several files are not read: save them in one"},
              other_file{"adapters.safetensors", "MLX's format: read it as an mlx_checkpoint"}})
            if (is_there(name))
                raise("peft: " + path_text(folder) + ": folder: expected " + peft_tensors_file +
                      ", got " + name + " alone: " + advice);
    return safetensors_file(folder / peft_tensors_file, access);
}

/// An adapter of PEFT: its configuration, the file of its tensors, and the layers that are in it,
/// of so many tensors each. What poly_checkpoint, lora_checkpoint and ia3_checkpoint have in
/// common.
template <class Config, class Layer, std::size_t Slots>
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

    /// The layer of a name; null if there is none.
    [[nodiscard]] const Layer* find(std::string_view name) const noexcept {
        const auto found = std::lower_bound(
            layers_.begin(), layers_.end(), name,
            [](const Layer& one, std::string_view sought) { return one.name < sought; });
        return found == layers_.end() || found->name != name ? nullptr : &*found;
    }

    /// True if all tensors of a layer can be shown where they lie in the file
    /// (safetensors_file::is_aligned): else they can be copied alone.
    [[nodiscard]] bool is_aligned(const Layer& of) const {
        for (const auto* stored : sorted_.tensors(of.name))
            if (stored != nullptr && !tensors_.is_aligned(stored->second)) return false;
        return true;
    }

    /// Names, in the file, of a layer's tensors, empty for a part that the layer has not; valid as
    /// long. These are refused: no layer of this.
    [[nodiscard]] std::array<std::string_view, Slots> tensor_names(const Layer& of) const {
        std::array<std::string_view, Slots> names;
        const auto& stored = sorted_.tensors(of.name);
        for (std::size_t slot = 0; slot < Slots; ++slot)
            if (stored[slot] != nullptr) names[slot] = stored[slot]->first;
        return names;
    }

    /// Names, in the file, of the tensors that were trained whole and are no part of a layer: those
    /// of modules_to_save, embeddings and heads that PEFT saves by itself, as after the vocabulary
    /// was resized, and biases of the base model where the configuration's `bias` says so. The
    /// adapter was trained with them in the place of the base model's. Valid as long.
    [[nodiscard]] const std::vector<std::string_view>& saved() const noexcept {
        return sorted_.saved();
    }

    /// Sentences to show to whoever loads the adapter: names of tensors that were unusual and how
    /// they were read, whole tensors that the configuration does not name. Mostly none.
    [[nodiscard]] const std::vector<std::string>& notes() const noexcept { return sorted_.notes(); }

  protected:
    /// Without layers yet.
    peft_checkpoint(Config config, safetensors_file tensors)
        : config_(std::move(config)), tensors_(std::move(tensors)) {}

    /// The layers are what `describe(name, tensors)` returns for each, with one tensor for each of
    /// `parts`. The same is refused as by peft_details::peft_tensors and by
    /// `describe`.
    template <std::size_t Parts, class Describe>
    void find_layers(const std::array<peft_details::peft_part, Parts>& parts, Describe&& describe) {
        sorted_ = peft_details::peft_tensors<Slots>(config_.json(), tensors_, parts);
        layers_.reserve(sorted_.layers());
        for (std::size_t i = 0; i < sorted_.layers(); ++i)
            layers_.push_back(describe(sorted_.layer(i), sorted_.tensors(i)));
    }

    /// The name, in the file, of one of a layer's tensors, which it must have.
    [[nodiscard]] const std::string& stored_name(const Layer& of, std::size_t slot) const {
        return sorted_.tensors(of.name)[slot]->first;
    }

    Config config_;            ///< as it was read
    safetensors_file tensors_; ///< all of them

  private:
    peft_details::peft_tensors<Slots> sorted_{};
    std::vector<Layer> layers_{};
};

/// Collects the layers of an adapter and writes the folder that PEFT reads. It copies nothing: the
/// memory of what it is given must stay till it is written.
template <class Config>
class peft_checkpoint_writer {
  public:
    /// Adds a tensor that was trained whole as it is in the file that it came from, under the name
    /// that PEFT gives to it.
    void add_saved(const safetensors_file& file, std::string_view name) {
        tensors_.add(file, std::string(name), peft_details::as_peft_writes(name));
    }

    /// Writes both files, in place of those that are there. Refused: a folder that
    /// cannot be written to.
    void write(const std::filesystem::path& folder) const {
        peft_details::write_adapter(folder, config_.json(), tensors_);
    }

    /// The bytes of the file of tensors; the other one is config.json().text().
    [[nodiscard]] std::string tensor_bytes() const { return tensors_.bytes(); }

  protected:
    /// Without layers yet.
    explicit peft_checkpoint_writer(Config config) : config_(std::move(config)) {
        tensors_.set_metadata("format", "pt"); // as PEFT does
    }

    /// Adds one of a layer's tensors under PEFT's name for it, as a tensor of the given extents, as
    /// safetensors_writer::add does.
    template <std::size_t Rank, std::size_t FileRank>
    void add_part(std::string_view layer, const peft_details::peft_part& part,
                  const const_tensor_ref<Rank>& tensor,
                  const std::array<index_t, FileRank>& extents) {
        tensors_.add(peft_details::peft_key(layer, part.text()), tensor, extents);
    }

    /// The same, of its own extents.
    template <std::size_t Rank>
    void add_part(std::string_view layer, const peft_details::peft_part& part,
                  const const_tensor_ref<Rank>& tensor) {
        add_part(layer, part, tensor, tensor.extents());
    }

    Config config_;                ///< of the adapter
    safetensors_writer tensors_{}; ///< those that were added
};

} // namespace MHR_ISA
} // namespace mhr
