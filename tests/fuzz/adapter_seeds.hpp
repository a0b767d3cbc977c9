#pragma once

#include <array>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <mhr/core/element_type.hpp>
#include <mhr/io/peft/peft_checkpoint.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>

#include "fuzz/adapter_input.hpp"
#include "support/file_bytes.hpp"
#include "support/guarded_tensor.hpp"
#include "support/poly_files.hpp"

/// \file
/// Small adapters of every type, and those that PEFT itself wrote.

namespace mhr::test {

/// Adds a tensor [rows, columns] of ones.
inline void add_ones(safetensors_writer& writer, const std::string& name, element_type type,
                     index_t rows, index_t columns) {
    static std::map<element_type, guarded_tensor<1>> ones; // till the writer has written
    guarded_tensor<1>& of_type =
        ones.try_emplace(type, type, std::array<index_t, 1>{64}).first->second;
    of_type.fill(1);
    writer.add<2>(name, {of_type.ref().data(), type, {rows, columns}});
}

/// Two layers of different ranks, a part of the model that was trained whole, and every key that
/// says something of layers.
inline adapter_input lora_seed(element_type type = element_type::f32) {
    safetensors_writer writer;
    for (const auto& [layer, rank] :
         {std::pair{"model.layers.0.q_proj", 2}, {"model.layers.11.v_proj", 3}}) {
        add_ones(writer, peft_details::peft_key(layer, ".lora_A.weight"), type, rank, 2);
        add_ones(writer, peft_details::peft_key(layer, ".lora_B.weight"), type, 3, rank);
    }
    add_ones(writer, "base_model.model.lm_head.weight", type, 1, 1);
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
    add_ones(writer, "q.lora_A.default.weight", element_type::f32, 2, 2);
    add_ones(writer, "_orig_mod.base_model.model.q.lora_B.default.weight", element_type::f64, 3, 2);
    add_ones(writer, "base_model.model.base_model.model.a._orig_mod.v.lora_A.weight",
             element_type::f32, 2, 2);
    add_ones(writer, "base_model.model.a.v.lora_B.weight", element_type::f32, 3, 2);
    add_ones(writer, "base_model.model.lm_head.base_layer.weight", element_type::f32, 1, 1);
    return {R"({"peft_type":"LORA","r":2,"bias":null,"new_key":{},"\u65e5\u672c":null})",
            writer.bytes()};
}

inline adapter_input odd_poly_seed() {
    const std::string good = poly_files(element_type::f32).tensor_bytes();
    const safetensors_file file("good", good.data(), good.size());
    safetensors_writer writer;
    for (const auto& [name, stored] : file.tensors())
        writer.add(file, name, "_orig_mod." + name);
    add_ones(writer, "lm_head.weight", element_type::f32, 1, 1);
    return {poly_files::config_text(), writer.bytes()};
}

inline adapter_input ia3_seed(element_type type) {
    safetensors_writer writer;
    add_ones(writer, "base_model.model.encoder.k.ia3_l", type, 3, 1);
    add_ones(writer, "base_model.model.encoder.wo.ia3_l", type, 1, 2);
    return {R"({"peft_type":"IA3","target_modules":["k","wo"],"feedforward_modules":["wo"]})",
            writer.bytes()};
}

inline std::vector<adapter_input> adapter_seeds() {
    std::vector<adapter_input> seeds{
        lora_seed(element_type::f32),
        lora_seed(element_type::f64),
        lora_seed(element_type::f16),
        {R"({"peft_type":"LORA","r":2,"rank_pattern":{".*v_proj":3},"target_modules":"all-linear",)"
         R"("modules_to_save":["lm_head"]})",
         lora_seed(element_type::bf16).tensors},
        odd_names_seed(),
        odd_poly_seed(),
        ia3_seed(element_type::f32),
        ia3_seed(element_type::bf16),
        {poly_files::config_text(), poly_files(element_type::f32).tensor_bytes()},
        {poly_files::config_text(), poly_files(element_type::f64).tensor_bytes()},
        {poly_files::config_text(), poly_files(element_type::f16).tensor_bytes()},
        {poly_files::config_text(),
         poly_files(element_type::bf16, element_type::f16, element_type::f64).tensor_bytes()}};
    for (const char* type : {"f16", "bf16"}) {
        const auto folder =
            std::filesystem::path(MHR_GOLDEN_DEFAULT_DIR) / "peft_checkpoint" / type;
        seeds.push_back(
            {read_file(folder / peft_config_file), read_file(folder / peft_tensors_file)});
    }
    return seeds;
}

} // namespace mhr::test
