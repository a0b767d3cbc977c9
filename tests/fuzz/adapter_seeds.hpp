#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <mhr/core/tensor_view.hpp>
#include <mhr/io/peft_layers.hpp>
#include <mhr/io/safetensors_writer.hpp>

#include "fuzz/adapter_input.hpp"
#include "support/file_bytes.hpp"
#include "support/poly_files.hpp"

/// \file
/// Small adapters of every type, and those that PEFT itself wrote.

namespace mhr::test {

/// Adds a tensor [rows, columns] of ones.
template <class T>
void add_ones(safetensors_writer& writer, const std::string& name, index_t rows, index_t columns) {
    static const std::vector<T> ones(64, T(1));
    writer.add(name, tensor_view<const T, 2>(ones.data(), {rows, columns}));
}

/// Two layers of different ranks, a part of the model that was trained whole, and every key that
/// says something of layers.
template <class T = float>
adapter_input lora_seed() {
    safetensors_writer writer;
    for (const auto& [layer, rank] :
         {std::pair{"model.layers.0.q_proj", 2}, {"model.layers.11.v_proj", 3}}) {
        add_ones<T>(writer, detail::peft_key(layer, ".lora_A.weight"), rank, 2);
        add_ones<T>(writer, detail::peft_key(layer, ".lora_B.weight"), 3, rank);
    }
    add_ones<T>(writer, "base_model.model.lm_head.weight", 1, 1);
    return {R"({"peft_type":"LORA","r":2,"lora_alpha":4,"use_rslora":true,"bias":"none",)"
            R"("modules_to_save":["lm_head"],"target_modules":["q_proj","v_proj"],)"
            R"("exclude_modules":["k_proj"],"init_lora_weights":"gaussian",)"
            R"("rank_pattern":{"k.proj":5,"layers\\.1[0-9]\\.(v|o)_proj":3},)"
            R"("alpha_pattern":{"^model\\.layers\\.\\d{1,2}\\.v_\\w+?":1.5,"[^0]*":2}})",
            writer.bytes()};
}

/// Names as other programs leave them, matrices of two types, a head that no key names.
inline adapter_input odd_names_seed() {
    safetensors_writer writer;
    add_ones<float>(writer, "q.lora_A.default.weight", 2, 2);
    add_ones<double>(writer, "_orig_mod.base_model.model.q.lora_B.default.weight", 3, 2);
    add_ones<float>(writer, "base_model.model.base_model.model.a._orig_mod.v.lora_A.weight", 2, 2);
    add_ones<float>(writer, "base_model.model.a.v.lora_B.weight", 3, 2);
    add_ones<float>(writer, "base_model.model.lm_head.base_layer.weight", 1, 1);
    return {R"({"peft_type":"LORA","r":2,"bias":null,"new_key":{},"\u65e5\u672c":null})",
            writer.bytes()};
}

inline adapter_input odd_poly_seed() {
    const std::string good = poly_files<float>().tensor_bytes();
    const safetensors_file file("good", good.data(), good.size());
    safetensors_writer writer;
    for (const auto& [name, stored] : file.tensors())
        writer.add(file, name, "_orig_mod." + name);
    add_ones<float>(writer, "lm_head.weight", 1, 1);
    return {poly_files<float>::config_text(), writer.bytes()};
}

template <class T>
adapter_input ia3_seed() {
    safetensors_writer writer;
    add_ones<T>(writer, "base_model.model.encoder.k.ia3_l", 3, 1);
    add_ones<T>(writer, "base_model.model.encoder.wo.ia3_l", 1, 2);
    return {R"({"peft_type":"IA3","target_modules":["k","wo"],"feedforward_modules":["wo"]})",
            writer.bytes()};
}

inline std::vector<adapter_input> adapter_seeds() {
    std::vector<adapter_input> seeds{
        lora_seed<float>(),
        lora_seed<double>(),
        lora_seed<Eigen::half>(),
        {R"({"peft_type":"LORA","r":2,"rank_pattern":{".*v_proj":3},"target_modules":"all-linear",)"
         R"("modules_to_save":["lm_head"]})",
         lora_seed<Eigen::bfloat16>().tensors},
        odd_names_seed(),
        odd_poly_seed(),
        ia3_seed<float>(),
        ia3_seed<Eigen::bfloat16>(),
        {poly_files<float>::config_text(), poly_files<float>().tensor_bytes()},
        {poly_files<double>::config_text(), poly_files<double>().tensor_bytes()},
        {poly_files<Eigen::half>::config_text(), poly_files<Eigen::half>().tensor_bytes()}};
    for (const char* type : {"f16", "bf16"}) {
        const auto folder =
            std::filesystem::path(MHR_GOLDEN_DEFAULT_DIR) / "peft_checkpoint" / type;
        seeds.push_back(
            {read_file(folder / peft_config_file), read_file(folder / peft_tensors_file)});
    }
    return seeds;
}

} // namespace mhr::test
