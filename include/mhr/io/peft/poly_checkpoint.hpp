#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/files/mapped_file.hpp>
#include <mhr/io/peft/peft_checkpoint.hpp>
#include <mhr/io/peft/peft_config.hpp>
#include <mhr/io/safetensors/safetensors_file.hpp>
#include <mhr/lora/inventory.hpp>

/// \file
/// Adapters of PEFT's type POLY (Poly, and MHR with n_splits > 1), in and out: what Python saved
/// trains on here, and goes back. A layer M has three tensors:
///     base_model.model.M.poly_lora_A [n_splits, n_skills, in_features / n_splits, r]
///     base_model.model.M.poly_lora_B [n_splits, n_skills, r, out_features / n_splits]
///     base_model.model.M.poly_router.module_logits [n_tasks, n_splits n_skills]
/// which are inventory.a, inventory.b and the logits as they lie; the scale is 1 / r. Names as
/// other programs leave them (tensor_names.hpp) are read, too.

namespace mhr {
inline namespace MHR_ISA {

/// The configuration of a Poly adapter (PEFT's PolyConfig).
class poly_config {
  public:
    /// Takes one of a file. These are refused: another type, unknown keys of a value, values of
    /// another kind (see peft_config.hpp).
    explicit poly_config(peft_config config) : config_(std::move(config)) {
        using peft_details::key_kind;
        static constexpr peft_details::key_rule rules[] = {
            {"init_weights", key_kind::flag}, {"n_skills", key_kind::count},
            {"n_splits", key_kind::count},    {"n_tasks", key_kind::count},
            {"poly_type", key_kind::text},    {"r", key_kind::count}};
        config_.require_keys("POLY", rules);
        if (config_.has("poly_type") && config_.fields()["poly_type"] != "poly")
            config_.fail("poly_type", "'poly'",
                         in_quotes(config_.fields()["poly_type"].get_ref<const std::string&>()));
    }

    /// A new one, with PEFT's other defaults; target_modules are layers or last parts of their
    /// names.
    poly_config(index_t tasks, index_t heads, index_t modules, index_t rank,
                const std::vector<std::string>& target_modules)
        : poly_config(peft_config(nlohmann::ordered_json{{"auto_mapping", nullptr},
                                                         {"base_model_name_or_path", nullptr},
                                                         {"exclude_modules", nullptr},
                                                         {"inference_mode", true},
                                                         {"init_weights", true},
                                                         {"modules_to_save", nullptr},
                                                         {"n_skills", modules},
                                                         {"n_splits", heads},
                                                         {"n_tasks", tasks},
                                                         {"peft_type", "POLY"},
                                                         {"poly_type", "poly"},
                                                         {"r", rank},
                                                         {"revision", nullptr},
                                                         {"target_modules", target_modules},
                                                         {"task_type", nullptr}})) {}

    /// n_tasks, n_splits, n_skills and r; PEFT's defaults stand for keys that are missing.
    /// @{
    [[nodiscard]] index_t tasks() const { return config_.count("n_tasks", 1); }
    [[nodiscard]] index_t heads() const { return config_.count("n_splits", 1); }
    [[nodiscard]] index_t modules() const { return config_.count("n_skills", 4); }
    [[nodiscard]] index_t rank() const { return config_.count("r", 8); }
    /// @}

    /// What x a b is multiplied by: 1 / rank.
    [[nodiscard]] double scale() const { return 1 / static_cast<double>(rank()); }

    /// Every key.
    [[nodiscard]] const peft_config& json() const noexcept { return config_; }

    /// Sets a key, such as "task_type". The same is refused as in a file; it then stays as it was.
    void set(const std::string& key, nlohmann::ordered_json value) {
        peft_config changed = config_;
        changed.set(key, std::move(value));
        *this = poly_config(std::move(changed));
    }

  private:
    peft_config config_;
};

/// One adapted layer of a Poly adapter.
struct poly_layer {
    std::string_view name;    ///< such as encoder.block.0.layer.0.SelfAttention.q
    lora_shape shape;         ///< the same heads, modules and rank for all layers
    element_type a_type;      ///< of the matrices a of all modules
    element_type b_type;      ///< of the matrices b
    element_type logits_type; ///< of its router
};

/// A Poly adapter. Its tensors are shown where they lie in the file, of the file's types.
class poly_checkpoint : public peft_checkpoint<poly_config, poly_layer, 3> {
  public:
    /// Opens an adapter's folder. These are refused: what is unreadable, unknown or contradictory
    /// in its two files; a tensor without fractions.
    explicit poly_checkpoint(const std::filesystem::path& folder,
                             file_access access = file_access::map)
        : poly_checkpoint(poly_config(peft_config::read(folder)),
                          open_peft_tensors(folder, access)) {}

    /// Takes the two from anywhere. The same is refused.
    poly_checkpoint(poly_config config, safetensors_file tensors)
        : peft_checkpoint(std::move(config), std::move(tensors)) {
        using namespace peft_details;
        const index_t heads = config_.heads();
        const index_t modules = config_.modules();
        const index_t rank = config_.rank();
        const index_t columns = check_details::saturating_product(heads, modules);
        find_layers(parts, [&](std::string_view name, const peft_tensors<3>::of_layer& stored) {
            constexpr const char* meaning = "as n_splits, n_skills and r of the configuration say";
            const element_type of_a = check_adapter_tensor<4>(
                tensors_, *stored[part_a], {heads, modules, any_extent, rank}, meaning);
            const element_type of_b = check_adapter_tensor<4>(
                tensors_, *stored[part_b], {heads, modules, rank, any_extent}, meaning);
            const element_type of_logits = check_adapter_tensor<2>(
                tensors_, *stored[part_logits], {config_.tasks(), columns},
                "as n_tasks and n_splits n_skills of the configuration say");
            const index_t in_features = heads * stored[part_a]->second.extents[2];
            const index_t out_features = heads * stored[part_b]->second.extents[3];
            return poly_layer{
                name, {heads, modules, in_features, out_features, rank}, of_a, of_b, of_logits};
        });
    }

    /// The modules of a layer where they lie in the file, of its types, a and b each of its own;
    /// the scale is config().scale(). Refused: data that are not aligned, which `read_inventory`
    /// copies.
    [[nodiscard]] lora_inventory inventory(const layer& of) const {
        return {tensors_.view<4>(stored_name(of, part_a)),
                tensors_.view<4>(stored_name(of, part_b))};
    }

    /// The logits [tasks, heads, modules] of a layer in the same way. Refused: data that are not
    /// aligned, which `read_logits` copies.
    [[nodiscard]] const_tensor_ref<3> logits(const layer& of) const {
        return tensors_.view<2>(stored_name(of, part_logits)).split(1, config_.heads());
    }

    /// Copies the modules into tensors of any types and strides, each element rounded once: what
    /// training goes on with. These are refused: shapes that are not the layer's; a tensor two of
    /// whose elements overlap.
    void read_inventory(const layer& of, const lora_inventory_matrices& to) const {
        const auto& [heads, modules, in_features, out_features, rank] = of.shape;
        argument_checks checks("poly_checkpoint::read_inventory"); // both, before either is written
        checks.output("to.a", to.a, {heads, modules, in_features / heads, rank});
        checks.output("to.b", to.b, {heads, modules, rank, out_features / heads});
        checks.raise();
        tensors_.read(stored_name(of, part_a), to.a);
        tensors_.read(stored_name(of, part_b), to.b);
    }

    /// Copies the logits in the same way into `to` [tasks, heads, modules]. The same is refused.
    void read_logits(const layer& of, const tensor_ref<3>& to) const {
        const index_t heads = config_.heads();
        const index_t modules = config_.modules();
        argument_checks checks("poly_checkpoint::read_logits");
        checks.output("to", to, {config_.tasks(), heads, modules});
        checks.raise();
        tensors_.read(stored_name(of, part_logits), to,
                      std::array<index_t, 2>{config_.tasks(), heads * modules});
    }

  private:
    friend class poly_checkpoint_writer;
    static constexpr std::size_t part_a = 0, part_b = 1, part_logits = 2;
    static constexpr std::array<peft_details::peft_part, 3> parts{
        {{".poly_lora_A", "", part_a},
         {".poly_lora_B", "", part_b},
         {".poly_router", ".module_logits", part_logits}}};
};

/// Collects the layers of a Poly adapter and writes the folder that PEFT's `from_pretrained` reads.
/// It copies nothing: the memory of what it is given must stay till it is written.
class poly_checkpoint_writer : public peft_checkpoint_writer<poly_config> {
  public:
    /// Without layers yet.
    explicit poly_checkpoint_writer(poly_config config)
        : peft_checkpoint_writer(std::move(config)) {}

    /// Adds a layer, of any strides and element types; layers that share a router get the same
    /// logits, [tasks, heads, modules].
    ///
    /// These are refused: a shape that is not the configuration's; a layer that target_modules does
    /// not name, or that was added before.
    void add_layer(std::string_view name, const lora_inventory& inventory,
                   const const_tensor_ref<3>& logits) {
        const index_t heads = config_.heads();
        const index_t modules = config_.modules();
        argument_checks checks("poly_checkpoint_writer::add_layer");
        checks.input("inventory.a", inventory.a, {heads, modules, any_extent, config_.rank()});
        checks.input("inventory.b", inventory.b, {heads, modules, config_.rank(), any_extent});
        checks.input("logits", logits, {config_.tasks(), heads, modules});
        checks.raise();
        peft_details::layer_rules(config_.json()).require_adapted(name);
        using files = poly_checkpoint;
        add_part(name, files::parts[files::part_a], inventory.a);
        add_part(name, files::parts[files::part_b], inventory.b);
        add_part(name, files::parts[files::part_logits], logits,
                 std::array<index_t, 2>{config_.tasks(), heads * modules});
    }
};

} // namespace MHR_ISA
} // namespace mhr
