#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/files/mapped_file.hpp>
#include <mhr/io/peft/peft_checkpoint.hpp>
#include <mhr/io/peft/peft_config.hpp>
#include <mhr/io/safetensors/safetensors_file.hpp>

/// \file
/// Adapters of PEFT's type IA3, in. A layer M has one tensor, base_model.model.M.ia3_l: [features,
/// 1] where the layer's outputs are scaled, [1, features] where its inputs are
/// (feedforward_modules). Names as other programs leave them (tensor_names.hpp) are read, too.

namespace mhr {
inline namespace MHR_ISA {

/// The configuration of an (IA)3 adapter (PEFT's IA3Config).
class ia3_config {
  public:
    /// Takes one of a file. These are refused: another type, unknown keys of a value, values of
    /// another kind.
    explicit ia3_config(peft_config config) : config_(std::move(config)) {
        using peft_details::key_kind;
        static constexpr peft_details::key_rule rules[] = {{"fan_in_fan_out", key_kind::flag},
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
                             in_quotes(name));
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
    element_type type;     ///< of the scales
};

/// An (IA)3 adapter. Its tensors are shown where they lie in the file, of the file's type.
class ia3_checkpoint : public peft_checkpoint<ia3_config, ia3_layer, 1> {
  public:
    /// Opens an adapter's folder. These are refused: what is unreadable, unknown or contradictory
    /// in its two files; a tensor without fractions.
    explicit ia3_checkpoint(const std::filesystem::path& folder,
                            file_access access = file_access::map)
        : ia3_checkpoint(ia3_config(peft_config::read(folder)), open_peft_tensors(folder, access)) {
    }

    /// Takes the two from anywhere. The same is refused.
    ia3_checkpoint(ia3_config config, safetensors_file tensors)
        : peft_checkpoint(std::move(config), std::move(tensors)) {
        using namespace peft_details;
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
                                  " with " + safetensors_details::extents_text(scales));
            const element_type type =
                check_adapter_tensor<2>(tensors_, *stored[0],
                                        inputs ? std::array<index_t, 2>{1, any_extent}
                                               : std::array<index_t, 2>{any_extent, 1},
                                        "as 'feedforward_modules' of the configuration says");
            return ia3_layer{name, scales.extents[inputs ? 1 : 0], inputs, type};
        });
    }

    /// The scales [features] of a layer where they lie in the file, of its type: `prepend_axis()`
    /// makes them `ia3::scales` of a plan of one task. Refused: data that are not aligned, which
    /// `read_scales` copies.
    [[nodiscard]] const_tensor_ref<1> scales(const layer& of) const {
        return tensors_.view<2>(stored_name(of, 0)).slice(of.scales_inputs ? 0 : 1, 0);
    }

    /// Copies them into a tensor of any type and stride, rounded to the type once. These are
    /// refused: another number of features; a tensor two of whose elements overlap.
    void read_scales(const layer& of, const tensor_ref<1>& to) const {
        const auto& stored = tensors_.tensor(stored_name(of, 0));
        argument_checks checks("ia3_checkpoint::read_scales");
        checks.output("to", to, {of.features});
        checks.raise();
        tensors_.read(stored_name(of, 0), to,
                      std::array<index_t, 2>{stored.extents[0], stored.extents[1]});
    }

  private:
    static constexpr std::array<peft_details::peft_part, 1> parts{{{".ia3_l", "", 0}}};
};

} // namespace MHR_ISA
} // namespace mhr
