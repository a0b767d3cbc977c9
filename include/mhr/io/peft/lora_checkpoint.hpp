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
/// Adapters of PEFT's type LORA, in and out. A layer M has two tensors:
///     base_model.model.M.lora_A.weight [rank, in_features]     our a, transposed
///     base_model.model.M.lora_B.weight [out_features, rank]    our b, transposed
/// An embedding, whose inputs are rows of the identity matrix, has these two in their place:
///     base_model.model.M.lora_embedding_A [rank, vocabulary]   our a, transposed
///     base_model.model.M.lora_embedding_B [features, rank]     our b, transposed
/// Beside them there may be:
///     base_model.model.M.lora_magnitude_vector [out_features]  m of DoRA, with use_dora
///     base_model.model.M.lora_B.bias [out_features]            with lora_bias
/// Names as other programs leave them (tensor_names.hpp) are read, too. Biases of the base model
/// that were trained are among `saved()`. Other variants (aLoRA, convolutions, target_parameters,
/// DoRA of embeddings, ...) are errors.

namespace mhr {
inline namespace MHR_ISA {

/// The configuration of an adapter of type LORA (PEFT's LoraConfig).
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
            {"lora_bias", key_kind::flag},
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
            {"use_dora", key_kind::flag},
            {"use_qalora", key_kind::off},
            {"use_rslora", key_kind::flag},
            {"velora_config", key_kind::any}};
        config_.require_keys("LORA", rules);
        const auto& fields = config_.fields();
        if (config_.has("bias") && fields["bias"] != "none" && fields["bias"] != "all" &&
            fields["bias"] != "lora_only")
            config_.fail("bias", "'none', 'all' or 'lora_only'",
                         peft_details::value_text(fields["bias"]));
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

        /// Returns the rank of the layer of this name.
        [[nodiscard]] index_t rank(std::string_view layer) {
            const auto* found = find("rank_pattern", layer, ranks_);
            return found == nullptr ? config_.count("r", 8) : found->template get<index_t>();
        }
        /// Returns the scale of the layer of this name.
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

/// What a layer of the base model is.
enum class lora_form : unsigned char {
    linear,   ///< x has rows of numbers
    embedding ///< x has ids of tokens: row t of a stands for x a
};

/// The vectors that some variants have beside the two matrices; each may be absent.
///
/// DoRA (Liu et al. 2024, arXiv 2402.09353, equation 5): with V = W + scale (a b)^T, the weight is
/// magnitude[o] / ||V[o, :]|| V[o, :]. The bias is one of the matrix b: the output is
/// scale ((x a) b + bias).
struct lora_vectors {
    const_tensor_ref<1> magnitude{}; ///< [out_features]
    const_tensor_ref<1> bias{};      ///< [out_features]
};

/// One adapted layer of an adapter.
struct lora_layer {
    std::string_view name; ///< such as model.layers.0.self_attn.q_proj
    index_t in_features;   ///< of x
    index_t out_features;  ///< of y
    index_t rank;          ///< by rank_pattern, or r
    double scale;          ///< what x a b is multiplied by
    element_type a_type;   ///< of the matrix a
    element_type b_type;   ///< of the matrix b
    lora_form form;        ///< linear unless it says otherwise
    bool has_magnitude;    ///< DoRA
    bool has_bias;         ///< of the matrix b

    /// True if y += scale (x a) b is all that the layer does.
    [[nodiscard]] bool is_plain() const noexcept { return !has_magnitude && !has_bias; }
};

/// An adapter. Its tensors are shown where they lie in the file, of the file's types.
class lora_checkpoint : public peft_checkpoint<lora_config, lora_layer, 4> {
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
        const bool dora = config_.json().flag("use_dora", false);
        const bool biased = config_.json().flag("lora_bias", false);
        find_layers(parts, [&](std::string_view name, const peft_tensors<4>::of_layer& stored) {
            const index_t rank = values.rank(name);
            constexpr const char* meaning = "as r and rank_pattern of the configuration say";
            const element_type of_a =
                check_adapter_tensor<2>(tensors_, *stored[part_a], {rank, any_extent}, meaning);
            const element_type of_b =
                check_adapter_tensor<2>(tensors_, *stored[part_b], {any_extent, rank}, meaning);
            const index_t out_features = stored[part_b]->second.extents[0];
            const bool embeds =
                stored[part_a]->first.find(".lora_embedding_A") != std::string::npos;
            require_vector(stored, part_magnitude, "use_dora", dora, embeds);
            require_vector(stored, part_bias, "lora_bias", biased, embeds);
            return lora_layer{name,
                              stored[part_a]->second.extents[1],
                              out_features,
                              rank,
                              values.scale(name),
                              of_a,
                              of_b,
                              embeds ? lora_form::embedding : lora_form::linear,
                              stored[part_magnitude] != nullptr,
                              stored[part_bias] != nullptr};
        });
    }

    /// The adapter of a layer where it lies in the file: a and b of the file's types, which may
    /// differ, and the scale. Adapters of any files make up a `lora_list`. Refused: data that are
    /// not aligned, which `read_adapter` copies. A layer that is not plain needs its `vectors`,
    /// too.
    [[nodiscard]] lora adapter(const layer& of) const {
        return {tensors_.view<2>(stored_name(of, part_a)).transpose(0, 1),
                tensors_.view<2>(stored_name(of, part_b)).transpose(0, 1), of.scale};
    }

    /// The vectors of a layer where they lie in the file; absent where it has none. Refused: data
    /// that are not aligned.
    [[nodiscard]] lora_vectors vectors(const layer& of) const {
        lora_vectors result;
        if (of.has_magnitude) result.magnitude = tensors_.view<1>(stored_name(of, part_magnitude));
        if (of.has_bias) result.bias = tensors_.view<1>(stored_name(of, part_bias));
        return result;
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
    static constexpr std::size_t part_a = 0, part_b = 1, part_magnitude = 2, part_bias = 3;
    static constexpr std::size_t embedding_parts = 4; // where those of embeddings begin
    static constexpr std::array<peft_details::peft_part, 7> parts{
        {{".lora_A", ".weight", part_a},
         {".lora_B", ".weight", part_b},
         {".lora_magnitude_vector", "", part_magnitude, peft_details::presence::optional},
         {".lora_B", ".bias", part_bias, peft_details::presence::optional},
         {".lora_embedding_A", "", part_a},
         {".lora_embedding_B", "", part_b},
         // PEFT wrote it so before it was a parameter of the layer.
         {".lora_magnitude_vector", ".weight", part_magnitude, peft_details::presence::optional}}};

    /// These are refused: a vector that the configuration does not switch on, or that is missing
    /// though it does; one of an embedding; another shape than [out_features].
    void require_vector(const peft_details::peft_tensors<4>::of_layer& stored, std::size_t part,
                        const char* key, bool is_on, bool embeds) const {
        const auto* vector = stored[part];
        const auto& beside = *stored[part_b];
        if (is_on && embeds && part == part_magnitude)
            tensors_.fail(beside.first, "no embedding beside 'use_dora'",
                          "one, of which DoRA is not read: train without it in 'target_modules'",
                          beside.second.first);
        if (vector == nullptr) {
            if (is_on && !embeds)
                tensors_.fail(beside.first,
                              "a tensor '..." + parts[part].text() + "' beside it, as '" +
                                  std::string(key) + "' of the configuration says",
                              "none", beside.second.first);
            return;
        }
        if (!is_on || embeds)
            tensors_.fail(vector->first,
                          "none, as '" + std::string(key) + "' of the configuration says",
                          embeds ? "one of an embedding" : "one", vector->second.first);
        (void)peft_details::check_adapter_tensor<1>(tensors_, *vector, {beside.second.extents[0]},
                                                    "one for each of the layer's outputs");
    }
};

/// Collects the layers of an adapter and writes the folder that PEFT and other engines read.
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
    /// before; a vector that the configuration does not switch on (use_dora, lora_bias), or lacks
    /// though it does; vectors of an embedding.
    void add_layer(std::string_view name, const lora& adapter, const lora_vectors& vectors = {},
                   lora_form form = lora_form::linear) {
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
        const bool embeds = form == lora_form::embedding;
        const auto check_vector = [&](const char* argument, const const_tensor_ref<1>& vector,
                                      const char* key) {
            const bool is_on = !embeds && config_.json().flag(key, false);
            checks.expect((vector.data() != nullptr) == is_on, argument,
                          [&] {
                              return std::string(is_on ? "one" : "none") + ", as '" + key +
                                     (embeds ? "' is not written of embeddings"
                                             : "' of the configuration says");
                          },
                          [&] { return std::string(is_on ? "none" : "one"); });
            if (vector.data() != nullptr) checks.input(argument, vector, {adapter.b.extent(1)});
        };
        check_vector("vectors.magnitude", vectors.magnitude, "use_dora");
        check_vector("vectors.bias", vectors.bias, "lora_bias");
        checks.raise();
        if (embeds && config_.json().flag("use_dora", false))
            config_.json().fail("use_dora", "false beside an embedding", "true");
        peft_details::layer_rules(config_.json()).require_adapted(name);
        using files = lora_checkpoint;
        const std::size_t first = embeds ? files::embedding_parts : 0;
        add_part(name, files::parts[first + files::part_a], adapter.a.transpose(0, 1));
        add_part(name, files::parts[first + files::part_b], adapter.b.transpose(0, 1));
        if (vectors.magnitude.data() != nullptr)
            add_part(name, files::parts[files::part_magnitude], vectors.magnitude);
        if (vectors.bias.data() != nullptr)
            add_part(name, files::parts[files::part_bias], vectors.bias);
    }
};

} // namespace MHR_ISA
} // namespace mhr
