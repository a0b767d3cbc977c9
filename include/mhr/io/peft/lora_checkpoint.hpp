#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/files/mapped_file.hpp>
#include <mhr/io/peft/layer_pattern.hpp>
#include <mhr/io/peft/peft_checkpoint.hpp>
#include <mhr/io/peft/peft_config.hpp>
#include <mhr/io/safetensors/safetensors_file.hpp>
#include <mhr/lora/adapters.hpp>

/// \file
/// Plain adapters of PEFT's type LORA, in and out. A layer M has two tensors:
///     base_model.model.M.lora_A.weight [rank, in_features]     our a, transposed
///     base_model.model.M.lora_B.weight [out_features, rank]    our b, transposed
/// Names as other programs leave them (tensor_names.hpp) are read, too.
/// Variants that compute something else (DoRA, aLoRA, biases, convolutions, ...) are errors.

namespace mhr {
inline namespace MHR_ISA {

/// The configuration of a plain adapter (PEFT's LoraConfig).
class lora_config {
  public:
    /// Takes one of a file. These are refused: another type, unknown keys of a value, values of
    /// another kind, variants that are not known here, initialisations that change the base weights
    /// as well (pissa, olora, corda, loftq, ...).
    explicit lora_config(peft_config config) : config_(std::move(config)) {
        using peft_details::key_kind;
        static constexpr peft_details::key_rule rules[] = {
            {"alora_invocation_tokens", key_kind::off},
            {"alpha_pattern", key_kind::patterns},
            {"arrow_config", key_kind::off},
            {"bias", key_kind::text},
            {"corda_config", key_kind::any},
            {"ensure_weight_tying", key_kind::flag},
            {"eva_config", key_kind::any},
            {"fan_in_fan_out", key_kind::flag},
            {"init_lora_weights", key_kind::any},
            {"kasa_config", key_kind::off},
            {"layer_replication", key_kind::off},
            {"layers_pattern", key_kind::names},
            {"layers_to_transform", key_kind::any},
            {"loftq_config", key_kind::any},
            {"lora_alpha", key_kind::number},
            {"lora_bias", key_kind::off},
            {"lora_dropout", key_kind::number},
            {"lora_ga_config", key_kind::any},
            {"megatron_config", key_kind::off},
            {"megatron_core", key_kind::any},
            {"monteclora_config", key_kind::off},
            {"qalora_group_size", key_kind::any},
            {"r", key_kind::count},
            {"rank_pattern", key_kind::patterns},
            {"runtime_config", key_kind::any},
            {"target_parameters", key_kind::off},
            {"trainable_token_indices", key_kind::off},
            {"use_bdlora", key_kind::off},
            {"use_dora", key_kind::off},
            {"use_qalora", key_kind::off},
            {"use_rslora", key_kind::flag},
            {"velora_config", key_kind::any}};
        config_.require_keys("LORA", rules);
        const auto& fields = config_.fields();
        if (config_.has("bias") && fields["bias"] != "none")
            config_.fail("bias", "'none'", peft_details::value_text(fields["bias"]));
        if (config_.has("init_lora_weights")) {
            const auto& start = fields["init_lora_weights"];
            if (!start.is_boolean() && start != "gaussian" && start != "eva" &&
                start != "orthogonal" && start != "mica")
                config_.fail("init_lora_weights",
                             "true, false, null, 'gaussian', 'eva', 'orthogonal' or 'mica' (others "
                             "change the base weights)",
                             peft_details::value_text(start));
        }
        if (config_.has("rank_pattern"))
            for (const auto& rank : fields["rank_pattern"])
                if (!peft_details::fits(rank, key_kind::count))
                    config_.fail("rank_pattern", peft_details::describe(key_kind::count),
                                 peft_details::value_text(rank));
        const bool regular = config_.has("target_modules") && fields["target_modules"].is_string();
        for (const char* key : {"layers_to_transform", "layers_pattern"})
            if (regular && config_.has(key))
                config_.fail(key, "null beside a regular expression in 'target_modules'",
                             peft_details::value_text(fields[key]));
    }

    /// A new one, with PEFT's other defaults; the scale is alpha / rank.
    lora_config(index_t rank, double alpha, nlohmann::ordered_json target_modules)
        : lora_config(peft_config(
              nlohmann::ordered_json{{"alpha_pattern", nlohmann::ordered_json::object()},
                                     {"auto_mapping", nullptr},
                                     {"base_model_name_or_path", nullptr},
                                     {"bias", "none"},
                                     {"exclude_modules", nullptr},
                                     {"fan_in_fan_out", false},
                                     {"inference_mode", true},
                                     {"init_lora_weights", true},
                                     {"layers_pattern", nullptr},
                                     {"layers_to_transform", nullptr},
                                     {"lora_alpha", as_number(alpha)},
                                     {"lora_dropout", 0.0},
                                     {"modules_to_save", nullptr},
                                     {"peft_type", "LORA"},
                                     {"r", rank},
                                     {"rank_pattern", nlohmann::ordered_json::object()},
                                     {"revision", nullptr},
                                     {"target_modules", std::move(target_modules)},
                                     {"task_type", nullptr},
                                     {"use_rslora", false}})) {}

    /// The rank and the scale of layers, by rank_pattern and alpha_pattern (the first pattern that
    /// finds the layer, see layer_pattern.hpp), else by r and lora_alpha: alpha / rank, or with
    /// use_rslora alpha / sqrt(rank).
    class layer_values {
      public:
        /// The configuration must outlive this.
        explicit layer_values(const lora_config& config)
            : config_(config.config_), ranks_(config_.matching_of("rank_pattern")),
              alphas_(config_.matching_of("alpha_pattern")) {}

        /// Of a layer, by its name.
        [[nodiscard]] index_t rank(std::string_view layer) {
            const auto* found = find("rank_pattern", layer, ranks_);
            return found == nullptr ? config_.count("r", 8) : found->template get<index_t>();
        }
        /// Of a layer, by its name.
        [[nodiscard]] double scale(std::string_view layer) {
            const auto* found = find("alpha_pattern", layer, alphas_);
            const double alpha =
                found == nullptr ? config_.number("lora_alpha", 8) : found->template get<double>();
            const auto of_rank = static_cast<double>(rank(layer));
            return alpha / (config_.flag("use_rslora", false) ? std::sqrt(of_rank) : of_rank);
        }

      private:
        const nlohmann::ordered_json* find(const char* key, std::string_view layer,
                                           peft_details::matching& budget) const {
            if (!config_.has(key)) return nullptr;
            for (const auto& [pattern, value] : config_.fields()[key].items())
                if (peft_details::matches_layer(pattern, layer, budget)) return &value;
            return nullptr;
        }

        const peft_config& config_;
        peft_details::matching ranks_, alphas_;
    };

    /// Every key.
    [[nodiscard]] const peft_config& json() const noexcept { return config_; }

    /// Sets a key, such as "task_type". The same is refused as in a file; it then stays as it was.
    void set(const std::string& key, nlohmann::ordered_json value) {
        peft_config changed = config_;
        changed.set(key, std::move(value));
        *this = lora_config(std::move(changed));
    }

  private:
    /// PEFT declares lora_alpha as an integer.
    static nlohmann::ordered_json as_number(double number) {
        if (is_exactly(number, std::floor(number)) && (std::abs)(number) < 1e9)
            return static_cast<std::int64_t>(number);
        return number;
    }

    peft_config config_;
};

/// One adapted layer of a plain adapter.
struct lora_layer {
    std::string_view name; ///< such as model.layers.0.self_attn.q_proj
    index_t in_features;   ///< of x
    index_t out_features;  ///< of y
    index_t rank;          ///< by rank_pattern, or r
    double scale;          ///< what x a b is multiplied by
    element_type a_type;   ///< of the matrix a
    element_type b_type;   ///< of the matrix b
};

/// A plain adapter. Its tensors are shown where they lie in the file, of the file's types.
class lora_checkpoint : public peft_checkpoint<lora_config, lora_layer, 2> {
  public:
    /// Opens an adapter's folder. These are refused: what is unreadable, unknown or contradictory
    /// in its two files; a tensor without fractions.
    explicit lora_checkpoint(const std::filesystem::path& folder,
                             file_access access = file_access::map)
        : lora_checkpoint(lora_config(peft_config::read(folder)),
                          open_peft_tensors(folder, access)) {}

    /// Takes the two from anywhere. The same is refused.
    lora_checkpoint(lora_config config, safetensors_file tensors)
        : peft_checkpoint(std::move(config), std::move(tensors)) {
        using namespace peft_details;
        lora_config::layer_values values(config_);
        find_layers(parts, [&](std::string_view name, const peft_tensors<2>::of_layer& stored) {
            const index_t rank = values.rank(name);
            constexpr const char* meaning = "as r and rank_pattern of the configuration say";
            const element_type of_a =
                check_adapter_tensor<2>(tensors_, *stored[part_a], {rank, any_extent}, meaning);
            const element_type of_b =
                check_adapter_tensor<2>(tensors_, *stored[part_b], {any_extent, rank}, meaning);
            return lora_layer{name,
                              stored[part_a]->second.extents[1],
                              stored[part_b]->second.extents[0],
                              rank,
                              values.scale(name),
                              of_a,
                              of_b};
        });
    }

    /// The adapter of a layer where it lies in the file: a and b of the file's types, which may
    /// differ, and the scale. Adapters of any files make up a `lora_list`. Refused: data that are
    /// not aligned, which `read_adapter` copies.
    [[nodiscard]] lora adapter(const layer& of) const {
        return {tensors_.view<2>(stored_name(of, part_a)).transpose(0, 1),
                tensors_.view<2>(stored_name(of, part_b)).transpose(0, 1), of.scale};
    }

    /// Copies its matrices into tensors of any types and strides, each element rounded once. These
    /// are refused: shapes that are not the layer's; a tensor two of whose elements overlap.
    void read_adapter(const layer& of, const lora_matrices& to) const {
        argument_checks checks("lora_checkpoint::read_adapter"); // both, before either is written
        checks.output("to.a", to.a, {of.in_features, of.rank});
        checks.output("to.b", to.b, {of.rank, of.out_features});
        checks.raise();
        tensors_.read(stored_name(of, part_a), to.a.transpose(0, 1));
        tensors_.read(stored_name(of, part_b), to.b.transpose(0, 1));
    }

  private:
    friend class lora_checkpoint_writer;
    static constexpr std::size_t part_a = 0, part_b = 1;
    static constexpr std::array<peft_details::peft_part, 2> parts{
        {{".lora_A", ".weight"}, {".lora_B", ".weight"}}};
};

/// Collects the layers of a plain adapter and writes the folder that PEFT and other engines read.
/// It copies nothing: the memory of what it is given must stay till it is written.
class lora_checkpoint_writer : public peft_checkpoint_writer<lora_config> {
  public:
    /// Without layers yet.
    explicit lora_checkpoint_writer(lora_config config)
        : peft_checkpoint_writer(std::move(config)) {}

    /// Adds a layer, of any strides and element types, a and b each of its own.
    ///
    /// These are refused: a shape; another rank or scale than the configuration's (the file has no
    /// place for a scale of its own); a layer that target_modules does not name, or that was added
    /// before.
    void add_layer(std::string_view name, const lora& adapter) {
        lora_config::layer_values values(config_);
        const index_t rank = values.rank(name);
        const double scale = values.scale(name);
        argument_checks checks("lora_checkpoint_writer::add_layer");
        checks.input("adapter.a", adapter.a, {any_extent, rank});
        checks.input("adapter.b", adapter.b, {rank, any_extent});
        // Whoever computed it in f32 means the same.
        checks.expect((std::abs)(adapter.scale - scale) <= 1e-6 * (std::abs)(scale),
                      "adapter.scale",
                      [&] { return std::to_string(scale) + ", which the configuration says"; },
                      [&] { return std::to_string(adapter.scale); });
        checks.raise();
        peft_details::layer_rules(config_.json()).require_adapted(name);
        using files = lora_checkpoint;
        add_part(name, files::parts[files::part_a], adapter.a.transpose(0, 1));
        add_part(name, files::parts[files::part_b], adapter.b.transpose(0, 1));
    }
};

} // namespace MHR_ISA
} // namespace mhr
