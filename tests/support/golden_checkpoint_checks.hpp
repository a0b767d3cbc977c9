#pragma once

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include <Eigen/Core>
#include <nlohmann/json.hpp>

#include <mhr/core/executor.hpp>
#include <mhr/routing/router.hpp>

#include "support/golden_case.hpp"
#include "support/golden_layers.hpp"
#include "support/golden_lora_checks.hpp"
#include "support/tensor.hpp"

/// \file
/// Golden cases of adapter directories as PEFT writes them.

namespace mhr::test {

/// The sizes in the metadata of a case are those of its adapter's configuration.
inline void check_config(const golden_case& c, const nlohmann::json& config, outcome& result) {
    result.require(config.at("peft_type") == "POLY" && config.at("poly_type") == "poly",
                   "config: not of PEFT's Poly");
    for (const auto& [key, name] : {std::pair{"r", "rank"},
                                    {"n_tasks", "n_tasks"},
                                    {"n_splits", "n_splits"},
                                    {"n_skills", "n_skills"}})
        result.require(config.at(key) == c.size(name), std::string("config: another ") + key);
}

/// Every layer of the checkpoint, its modules and logits stored as `M`, computed in `T`.
template <class T, class M>
void check_checkpoint_in(const golden_case& c, const std::string& suffix, double tolerance,
                         const golden_file& inputs, const golden_file& adapter,
                         const nlohmann::json& config, outcome& result) {
    const index_t heads = c.size("n_splits");
    const index_t modules = c.size("n_skills");
    const index_t rank = c.size("rank");
    const auto tasks = inputs.read<std::int64_t>("task_ids", {c.size("batch")});
    const grouping group(tasks, c.size("seq"));
    result.require(c.text("scaling_rule") == "1/rank", "another scaling_rule");
    std::istringstream names(c.text("modules"));
    for (std::string name; std::getline(names, name, ',');) {
        const std::string last = name.substr(name.rfind('.') + 1);
        const auto& targets = config.at("target_modules");
        result.require(std::count(targets.begin(), targets.end(), last) == 1,
                       name + ": not one of the configuration's target_modules");

        lora_layer<T, M> layer;
        layer.base.weight = inputs.read<T, 2>(name + ".base_weight");
        const index_t out_features = layer.base.weight.extents()[0];
        const index_t in_features = layer.base.weight.extents()[1];
        if (inputs.contains(name + ".base_bias"))
            layer.base.bias = inputs.read<T>(name + ".base_bias", {out_features});
        layer.x = inputs.read<T>(name + ".x", {c.size("batch"), c.size("seq"), in_features});
        const std::string prefix = "base_model.model." + name + ".";
        layer.a =
            adapter.read<M>(prefix + "poly_lora_A", {heads, modules, in_features / heads, rank});
        layer.b =
            adapter.read<M>(prefix + "poly_lora_B", {heads, modules, rank, out_features / heads});
        layer.scale = 1 / static_cast<double>(rank);
        const auto logits = adapter.read<M>(prefix + "poly_router.module_logits",
                                            {c.size("n_tasks"), heads * modules});

        tensor<T, 3> weights({group.plan().entries(), heads, modules});
        router_forward(serial_executor{}, logits.view().split(1, heads), group.plan().tasks(),
                       routing_rule{sigmoid_gate{}}, weights.view());
        const auto got = run_routed<T, M>(layer, group.plan(), weights.view(), memory_order::peft);
        const auto want =
            c.file.read<T>(name + suffix, {c.size("batch"), c.size("seq"), out_features});
        result.compare(name + suffix, got.y.view(), copy_as<T>(rows_of(want)), tolerance);
    }
}

/// `M` is the storage type of the checkpoint.
template <class M>
void check_checkpoint_of(const golden_case& c, outcome& result) {
    const golden_file inputs(c.path("inputs"));
    const golden_file adapter(c.path("adapter"));
    std::ifstream config_file(c.path("config"));
    const auto config = nlohmann::json::parse(config_file);
    check_config(c, config, result);
    check_checkpoint_in<float, M>(c, ".y", c.tolerance(), inputs, adapter, config, result);
    check_checkpoint_in<double, M>(c, ".y64", c.tolerance("tol_y64"), inputs, adapter, config,
                                   result);
    result.require_all_read(inputs);
    result.require_all_read(adapter);
}

inline void check_checkpoint(const golden_case& c, outcome& result) {
    const std::string stored = c.text("stored_dtype");
    if (stored == "f32")
        check_checkpoint_of<float>(c, result);
    else if (stored == "f16")
        check_checkpoint_of<Eigen::half>(c, result);
    else if (stored == "bf16")
        check_checkpoint_of<Eigen::bfloat16>(c, result);
    else
        throw std::runtime_error("unknown stored_dtype '" + stored + "'");
}

} // namespace mhr::test
