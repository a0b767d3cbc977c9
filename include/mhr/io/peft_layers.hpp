#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <mhr/core/error.hpp>
#include <mhr/io/file_path.hpp>
#include <mhr/io/mapped_file.hpp>
#include <mhr/io/peft_config.hpp>
#include <mhr/io/peft_names.hpp>
#include <mhr/io/peft_tensors.hpp>
#include <mhr/io/safetensors.hpp>
#include <mhr/io/safetensors_writer.hpp>

/// \file
/// What the adapters of PEFT have in common on disk: the files of the folder, what is read of them
/// and written to them.

namespace mhr {
inline namespace MHR_ISA {

/// The name of the file in an adapter's folder.
inline constexpr const char* peft_tensors_file = "adapter_model.safetensors";

namespace detail {

/// Writes the two files of an adapter. Errors: they cannot be written.
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

} // namespace detail

/// Opens the file of tensors in an adapter's folder. Errors: no folder; the file is not there,
/// which says what is there in its place; as of safetensors_file.
inline safetensors_file open_peft_tensors(const std::filesystem::path& folder,
                                          file_access access = file_access::map) {
    detail::require_folder(folder);
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
              other_file{"adapters.safetensors",
                         "MLX's format is not read: convert the adapter to PEFT's"}})
            if (is_there(name))
                raise("peft: " + path_text(folder) + ": folder: expected " + peft_tensors_file +
                      ", got " + name + " alone: " + advice);
    return safetensors_file(folder / peft_tensors_file, access);
}

/// An adapter of PEFT: its configuration, the file of its tensors, and the layers that are in it,
/// of so many tensors each. What poly_checkpoint, lora_checkpoint and ia3_checkpoint have in
/// common.
template <class Config, class Layer, std::size_t Parts>
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

    /// Names, in the file, of a layer's tensors; valid as long. Errors: no layer of this.
    [[nodiscard]] std::array<std::string_view, Parts> tensor_names(const Layer& of) const {
        std::array<std::string_view, Parts> names;
        const auto stored = sorted_.tensors(of.name);
        for (std::size_t part = 0; part < Parts; ++part)
            names[part] = stored[part]->first;
        return names;
    }

    /// Names, in the file, of the tensors that were trained whole and are no part of a layer: those
    /// of modules_to_save, and embeddings and heads that PEFT saves by itself, as after the
    /// vocabulary was resized. The adapter was trained with them in the place of the base model's.
    /// Valid as long.
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
    /// `parts`. Errors: as of detail::peft_tensors, and those of `describe`.
    template <class Describe>
    void find_layers(const std::array<detail::peft_part, Parts>& parts, Describe&& describe) {
        sorted_ = detail::peft_tensors<Parts>(config_.json(), tensors_, parts);
        layers_.reserve(sorted_.layers());
        for (std::size_t i = 0; i < sorted_.layers(); ++i)
            layers_.push_back(describe(sorted_.layer(i), sorted_.tensors(i)));
    }

    /// The name, in the file, of one of a layer's tensors.
    [[nodiscard]] const std::string& stored_name(const Layer& of, std::size_t part) const {
        return sorted_.tensors(of.name)[part]->first;
    }

    Config config_;            ///< as it was read
    safetensors_file tensors_; ///< all of them

  private:
    detail::peft_tensors<Parts> sorted_{};
    std::vector<Layer> layers_{};
};

/// Collects the layers of an adapter and writes the folder that PEFT reads. What it is given are
/// views: their memory must stay till it is written.
template <class Config>
class peft_checkpoint_writer {
  public:
    /// Adds a tensor that was trained whole as it is in the file that it came from, under the name
    /// that PEFT gives to it.
    void add_saved(const safetensors_file& file, std::string_view name) {
        tensors_.add(file, std::string(name), detail::as_peft_writes(name));
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

    /// Adds one of a layer's tensors under PEFT's name for it, as safetensors_writer::add does.
    template <class... View>
    void add_part(std::string_view layer, const detail::peft_part& part, const View&... view) {
        tensors_.add(detail::peft_key(layer, part.text()), view...);
    }

    Config config_;                ///< of the adapter
    safetensors_writer tensors_{}; ///< those that were added
};

} // namespace MHR_ISA
} // namespace mhr
