#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <mhr/core/tensor_view.hpp>
#include <mhr/io/dtype.hpp>
#include <mhr/io/mapped_file.hpp>
#include <mhr/io/peft_config.hpp>
#include <mhr/io/peft_layers.hpp>
#include <mhr/io/safetensors.hpp>

/// \file
/// Adapters of PEFT's type IA3, in. A layer M has one tensor, base_model.model.M.ia3_l: [features,
/// 1] where the layer's outputs are scaled, [1, features] where its inputs are
/// (feedforward_modules). Names as other programs leave them (peft_names.hpp) are read, too.

namespace mhr {
inline namespace MHR_ISA {

/// The configuration of an (IA)3 adapter (PEFT's IA3Config).
class ia3_config {
  public:
    /// Takes one of a file. Errors: another type, unknown keys of a value, values of another kind.
    explicit ia3_config(peft_config config) : config_(std::move(config)) {
        using detail::key_kind;
        static constexpr detail::key_rule rules[] = {{"fan_in_fan_out", key_kind::flag},
                                                     {"feedforward_modules", key_kind::names},
                                                     {"init_ia3_weights", key_kind::flag}};
        config_.require_keys("IA3", rules);
        const auto& fields = config_.fields();
        if (!config_.has("target_modules") || !fields["target_modules"].is_array()) return;
        auto budget = config_.matching_of("feedforward_modules");
        (void)config_.lists("feedforward_modules", budget, [&](std::string_view name) {
            if (!config_.lists("target_modules", budget,
                               [&](std::string_view target) { return target == name; }))
                config_.fail("feedforward_modules", "names that 'target_modules' has, too",
                             detail::in_quotes(name));
            return false;
        });
    }

    /// Every key.
    [[nodiscard]] const peft_config& json() const noexcept { return config_; }

  private:
    peft_config config_;
};

/// One adapted layer of an (IA)3 adapter.
struct ia3_layer {
    std::string_view name; ///< such as encoder.block.0.layer.0.SelfAttention.k
    index_t features;      ///< that are scaled
    bool scales_inputs;    ///< or else outputs
    dtype type;            ///< of the scales
};

/// An (IA)3 adapter, its tensors views into the file.
class ia3_checkpoint : public peft_checkpoint<ia3_config, ia3_layer, 1> {
  public:
    /// Opens an adapter's folder. Errors: what is unreadable, unknown or contradictory in its two
    /// files; a tensor without fractions.
    explicit ia3_checkpoint(const std::filesystem::path& folder,
                            file_access access = file_access::map)
        : ia3_checkpoint(ia3_config(peft_config::read(folder)), open_peft_tensors(folder, access)) {
    }

    /// Takes the two from anywhere. The same errors.
    ia3_checkpoint(ia3_config config, safetensors_file tensors)
        : peft_checkpoint(std::move(config), std::move(tensors)) {
        using namespace detail;
        const peft_config& json = config_.json();
        auto budget = json.matching_of("feedforward_modules");
        find_layers(parts, [&](std::string_view name, const peft_tensors<1>::of_layer& stored) {
            const safetensors_tensor& scales = stored[0]->second;
            bool inputs = scales.rank == 2 && scales.extents[0] == 1;
            const bool listed = json.lists("feedforward_modules", budget, [&](auto part) {
                return ends_with(name, part); // PEFT asks for no '.' before it here
            });
            // A single feature fits both.
            if (inputs && scales.extents[1] == 1) inputs = listed;
            if (!json.has("feedforward_modules") || json.fields()["feedforward_modules"].is_array())
                if (inputs != listed)
                    json.fail("feedforward_modules",
                              "names of the layers whose tensors are [1, features]",
                              std::string(listed ? "the name of " : "none of ") + in_quotes(name) +
                                  " with " + extents_text(scales));
            require_adapter_tensor<2>(tensors_, *stored[0],
                                      inputs ? std::array<index_t, 2>{1, any_extent}
                                             : std::array<index_t, 2>{any_extent, 1},
                                      "as 'feedforward_modules' of the configuration says");
            return ia3_layer{name, scales.extents[inputs ? 1 : 0], inputs, scales.type};
        });
    }

    /// The scales [features] of a layer where they are in the file. Errors: another type than they
    /// are stored as (safetensors_file::view).
    template <class T>
    [[nodiscard]] tensor_view<const T, 1> scales(const layer& of) const {
        return tensors_.view<T, 2>(stored_name(of, 0)).slice(of.scales_inputs ? 0 : 1, 0);
    }

    /// A copy of them in any type with fractions, rounded to it once. Errors: a shape; overlapping
    /// elements.
    template <class T>
    void read(const layer& of, tensor_view<T, 1> to) const {
        const auto& stored = tensors_.tensor(stored_name(of, 0));
        tensors_.read(stored_name(of, 0), to,
                      std::array<index_t, 2>{stored.extents[0], stored.extents[1]});
    }

  private:
    static constexpr std::array<detail::peft_part, 1> parts{{{".ia3_l", ""}}};
};

} // namespace MHR_ISA
} // namespace mhr
