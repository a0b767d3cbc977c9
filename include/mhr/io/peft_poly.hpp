#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/dtype.hpp>
#include <mhr/io/mapped_file.hpp>
#include <mhr/io/peft_config.hpp>
#include <mhr/io/peft_layers.hpp>
#include <mhr/io/safetensors.hpp>
#include <mhr/io/safetensors_writer.hpp>

/// \file
/// Adapters of PEFT's type POLY (Poly, and MHR with n_splits > 1), in and out: what Python saved
/// trains on here, and goes back. A layer M has three tensors:
///     base_model.model.M.poly_lora_A [n_splits, n_skills, in_features / n_splits, r]
///     base_model.model.M.poly_lora_B [n_splits, n_skills, r, out_features / n_splits]
///     base_model.model.M.poly_router.module_logits [n_tasks, n_splits n_skills]
/// which are inventory.a, inventory.b and the logits as they lie; the scale is 1 / r. Names as
/// other programs leave them (peft_names.hpp) are read, too.

namespace mhr {
inline namespace MHR_ISA {

/// The configuration of a Poly adapter (PEFT's PolyConfig).
class poly_config {
  public:
    /// Takes one of a file. Errors: another type, unknown keys of a value, values of another kind
    /// (see peft_config.hpp).
    explicit poly_config(peft_config config) : config_(std::move(config)) {
        using detail::key_kind;
        static constexpr detail::key_rule rules[] = {
            {"init_weights", key_kind::flag}, {"n_skills", key_kind::count},
            {"n_splits", key_kind::count},    {"n_tasks", key_kind::count},
            {"poly_type", key_kind::text},    {"r", key_kind::count}};
        config_.require_keys("POLY", rules);
        if (config_.has("poly_type") && config_.fields()["poly_type"] != "poly")
            config_.fail(
                "poly_type", "'poly'",
                detail::in_quotes(config_.fields()["poly_type"].get_ref<const std::string&>()));
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

    /// Sets a key, such as "task_type". Errors: as in a file; it then stays as it was.
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
    std::string_view name; ///< such as encoder.block.0.layer.0.SelfAttention.q
    lora_shape shape;      ///< the same heads, modules and rank for all layers
    dtype modules_type;    ///< of both matrices, or the least that holds both
    dtype logits_type;     ///< of its router
    bool one_type;         ///< both are stored as `modules_type`: only then are there views of them
};

/// A Poly adapter, its tensors views into the file.
class poly_checkpoint : public peft_checkpoint<poly_config, poly_layer, 3> {
  public:
    /// Opens an adapter's folder. Errors: what is unreadable, unknown or contradictory in its two
    /// files; a tensor without fractions.
    explicit poly_checkpoint(const std::filesystem::path& folder,
                             file_access access = file_access::map)
        : poly_checkpoint(poly_config(peft_config::read(folder)),
                          open_peft_tensors(folder, access)) {}

    /// Takes the two from anywhere. The same errors.
    poly_checkpoint(poly_config config, safetensors_file tensors)
        : peft_checkpoint(std::move(config), std::move(tensors)) {
        using namespace detail;
        const index_t heads = config_.heads();
        const index_t modules = config_.modules();
        const index_t rank = config_.rank();
        const index_t columns = saturating_product(heads, modules);
        find_layers(parts, [&](std::string_view name, const peft_tensors<3>::of_layer& stored) {
            constexpr const char* meaning = "as n_splits, n_skills and r of the configuration say";
            require_adapter_tensor<4>(tensors_, *stored[part_a], {heads, modules, any_extent, rank},
                                      meaning);
            require_adapter_tensor<4>(tensors_, *stored[part_b], {heads, modules, rank, any_extent},
                                      meaning);
            require_adapter_tensor<2>(tensors_, *stored[part_logits], {config_.tasks(), columns},
                                      "as n_tasks and n_splits n_skills of the configuration say");
            const safetensors_tensor& a = stored[part_a]->second;
            const safetensors_tensor& b = stored[part_b]->second;
            return poly_layer{name,
                              {heads, modules, heads * a.extents[2], heads * b.extents[3], rank},
                              dtype_of_both(a.type, b.type),
                              stored[part_logits]->second.type,
                              a.type == b.type};
        });
    }

    /// The modules and the logits [tasks, heads, modules] of a layer, where they are in the file.
    /// Errors: another type than they are stored as (safetensors_file::view).
    /// @{
    template <class T>
    [[nodiscard]] lora_inventory<const T> inventory(const layer& of) const {
        return {tensors_.view<T, 4>(stored_name(of, part_a)),
                tensors_.view<T, 4>(stored_name(of, part_b))};
    }
    template <class T>
    [[nodiscard]] tensor_view<const T, 3> logits(const layer& of) const {
        return tensors_.view<T, 2>(stored_name(of, part_logits)).split(1, config_.heads());
    }
    /// @}

    /// Copies of them in any type with fractions, of any strides, rounded to it once: what training
    /// goes on with. Errors: a shape; overlapping elements.
    /// @{
    template <class T>
    void read_inventory(const layer& of, lora_inventory<T> to) const {
        constexpr const char* function = "poly_checkpoint::read_inventory";
        const auto& [heads, modules, in_features, out_features, rank] = of.shape;
        // Both, before either is written.
        require_output(function, "to.a", to.a, {heads, modules, in_features / heads, rank});
        require_output(function, "to.b", to.b, {heads, modules, rank, out_features / heads});
        tensors_.read(stored_name(of, part_a), to.a);
        tensors_.read(stored_name(of, part_b), to.b);
    }
    template <class T>
    void read_logits(const layer& of, tensor_view<T, 3> to) const {
        tensors_.read(stored_name(of, part_logits), to,
                      std::array<index_t, 2>{config_.tasks(), config_.heads() * config_.modules()});
    }
    /// @}

  private:
    friend class poly_checkpoint_writer;
    static constexpr std::size_t part_a = 0, part_b = 1, part_logits = 2;
    static constexpr std::array<detail::peft_part, 3> parts{
        {{".poly_lora_A", ""}, {".poly_lora_B", ""}, {".poly_router", ".module_logits"}}};
};

/// Collects the layers of a Poly adapter and writes the folder that PEFT's `from_pretrained` reads.
/// What it is given are views: their memory must stay till it is written.
class poly_checkpoint_writer : public peft_checkpoint_writer<poly_config> {
  public:
    /// Without layers yet.
    explicit poly_checkpoint_writer(poly_config config)
        : peft_checkpoint_writer(std::move(config)) {}

    /// Adds a layer, of any strides and any of the types of tensors with fractions; layers that
    /// share a router get the same logits, [tasks, heads, modules].
    /// Errors: a shape that is not the configuration's; a layer that target_modules does not name,
    /// or that was added.
    template <class T, class L>
    void add_layer(std::string_view name, const lora_inventory<T>& inventory,
                   const tensor_view<L, 3>& logits) {
        constexpr const char* function = "poly_checkpoint_writer::add_layer";
        const index_t heads = config_.heads();
        const index_t modules = config_.modules();
        require_input(function, "inventory.a", inventory.a,
                      {heads, modules, any_extent, config_.rank()});
        require_input(function, "inventory.b", inventory.b,
                      {heads, modules, config_.rank(), any_extent});
        require_input(function, "logits", logits, {config_.tasks(), heads, modules});
        detail::layer_rules(config_.json()).require_adapted(name);
        using files = poly_checkpoint;
        add_part(name, files::parts[files::part_a], inventory.a);
        add_part(name, files::parts[files::part_b], inventory.b);
        add_part(name, files::parts[files::part_logits], logits,
                 std::array<index_t, 2>{config_.tasks(), heads * modules});
    }
};

} // namespace MHR_ISA
} // namespace mhr
