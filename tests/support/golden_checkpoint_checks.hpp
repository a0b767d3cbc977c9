#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <sstream>
#include <string>

#include <nlohmann/json.hpp>

#include <mhr/batch/batch.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/io/peft/poly_checkpoint.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/routing/router.hpp>

#include "support/file_bytes.hpp"
#include "support/golden_case.hpp"
#include "support/golden_layers.hpp"
#include "support/tensor.hpp"

/// \file
/// Golden cases of adapter directories as PEFT writes them, through the library's own reader and
/// writer.

namespace mhr::test {

/// The sizes in the metadata of a case are those of its adapter's configuration.
inline void check_config(const golden_case& c, const poly_config& config, outcome& result) {
    result.require(config.rank() == c.size("rank"), "config: another r");
    result.require(config.tasks() == c.size("n_tasks"), "config: another n_tasks");
    result.require(config.heads() == c.size("n_splits"), "config: another n_splits");
    result.require(config.modules() == c.size("n_skills"), "config: another n_skills");
    result.require(c.text("scaling_rule") == "1/rank", "another scaling_rule");
}

/// Every layer of the checkpoint where it lies in the file, computed in `T`.
template <class T>
void check_checkpoint_in(const golden_case& c, const std::string& suffix, double tolerance,
                         const golden_file& inputs, const poly_checkpoint& adapter,
                         outcome& result) {
    const auto tasks = inputs.read<std::int64_t>("task_ids", {c.size("batch")});
    const grouping group(tasks, c.size("seq"));
    for (const auto& stored : adapter.layers()) {
        const std::string name(stored.name);
        base_layer<T> base;
        base.weight = inputs.read<T>(name + ".base_weight",
                                     {stored.shape.out_features, stored.shape.in_features});
        if (inputs.contains(name + ".base_bias"))
            base.bias = inputs.read<T>(name + ".base_bias", {stored.shape.out_features});
        const auto sequences =
            inputs.read<T>(name + ".x", {c.size("batch"), c.size("seq"), stored.shape.in_features});
        const tensor_view<const T, 2> x = rows_of(sequences);

        tensor<T, 3> weights({group.plan().entries(), stored.shape.heads, stored.shape.modules});
        router_forward(serial_executor{}, adapter.logits(stored), group.plan().tasks(),
                       routing_rule{sigmoid_gate{}}, weights.view());
        const auto [a, b] = adapter.inventory(stored);
        const routed_lora layer{a, b, weights.const_view(), adapter.config().scale()};
        const batch rows{group.plan()};
        constexpr element_type sums = element_type_of_v<T>;
        owned_workspace memory(routed_lora_state_size(rows, layer, sums));
        workspace of_state = memory;
        tensor<T, 2> y = base.forward(x);
        routed_lora_forward(rows, layer, x, y.view(),
                            take_routed_lora_state(of_state, rows, layer, sums));
        const auto want = c.file.read<T>(
            name + suffix, {c.size("batch"), c.size("seq"), stored.shape.out_features});
        result.compare(name + suffix, y.view(), copy_as<T>(rows_of(want)), tolerance);
    }
}

/// Read and written again, both files are the same, to the byte.
inline void check_round_trip(const std::filesystem::path& folder, const poly_checkpoint& adapter,
                             outcome& result) {
    poly_checkpoint_writer writer(adapter.config());
    for (const auto& layer : adapter.layers())
        writer.add_layer(layer.name, adapter.inventory(layer), adapter.logits(layer));
    result.require(writer.tensor_bytes() == read_file(folder / peft_tensors_file),
                   "written again, the tensors are others");
    const std::string config = read_file(folder / peft_config_file);
    const std::string written = adapter.config().json().text();
    result.require(nlohmann::json::parse(written) == nlohmann::json::parse(config),
                   "written again, the configuration is another");
    result.require(written == config, "written again, the configuration has other bytes");
}

inline void check_checkpoint(const golden_case& c, outcome& result) {
    const golden_file inputs(c.path("inputs"));
    const std::filesystem::path folder = std::filesystem::path(c.path("adapter")).parent_path();
    result.require(folder / peft_tensors_file == c.path("adapter") &&
                       folder / peft_config_file == c.path("config"),
                   "other files than PEFT's");
    const poly_checkpoint adapter(folder);
    check_config(c, adapter.config(), result);

    std::set<std::string> names;
    std::istringstream list(c.text("modules"));
    for (std::string name; std::getline(list, name, ',');)
        names.insert(name);
    for (const auto& layer : adapter.layers())
        result.require(names.erase(std::string(layer.name)) == 1,
                       std::string(layer.name) + ": not a layer of the case");
    result.require(names.empty(), "layers of the case are missing in the adapter");

    const std::string stored = c.text("stored_dtype");
    for (const auto& layer : adapter.layers())
        for (const element_type type : {layer.a_type, layer.b_type, layer.logits_type})
            result.require(name_of(type) == stored, "not of the stored_dtype");

    check_checkpoint_in<float>(c, ".y", c.tolerance(), inputs, adapter, result);
    check_checkpoint_in<double>(c, ".y64", c.tolerance("tol_y64"), inputs, adapter, result);
    check_round_trip(folder, adapter, result);
    result.require_all_read(inputs);
}

} // namespace mhr::test
