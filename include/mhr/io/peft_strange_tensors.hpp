#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include <mhr/config.hpp>
#include <mhr/io/peft_names.hpp>

/// \file
/// Tensors in the file of an adapter that are no part of its layers: those that PEFT adds without a
/// word in the configuration, and what messages say of those that nobody expects.

namespace mhr {
inline namespace MHR_ISA {
namespace detail {

/// The module that a whole weight or bias belongs to, without the wrapper that LoRA puts round it;
/// empty for other tensors. `name` is without its beginning (peft_names).
inline std::string_view module_of(std::string_view name) {
    for (const std::string_view end : {".weight", ".bias"})
        if (ends_with(name, end)) {
            name.remove_suffix(end.size());
            constexpr std::string_view wrapped = ".base_layer";
            if (ends_with(name, wrapped)) name.remove_suffix(wrapped.size());
            return name;
        }
    return {};
}

/// True of the input embeddings and the heads of language models, by the names that models give to
/// them: PEFT saves both by itself when the vocabulary was resized, and where they are adapted.
inline bool is_embedding_or_head(std::string_view name) {
    constexpr std::array<std::string_view, 9> modules{
        "embed_tokens",    "lm_head",        "wte",
        "shared",          "embed_in",       "embed_out",
        "word_embeddings", "tok_embeddings", "predictions.decoder"};
    const std::string_view module = module_of(name);
    return std::any_of(modules.begin(), modules.end(),
                       [&](std::string_view known) { return is_last_part(known, module); });
}

/// What a tensor is that does not belong to an adapter of that type, and what to do about it.
inline std::string describe_strange_tensor(std::string_view name, std::string_view type) {
    struct sort {
        std::string_view part; ///< of the name, with dots at both ends
        const char* what;
    };
    constexpr sort sorts[] = {
        {".lora_embedding_A.",
         "LoRA of an embedding, which is not read: train without it in 'target_modules'"},
        {".lora_embedding_B.",
         "LoRA of an embedding, which is not read: train without it in 'target_modules'"},
        {".lora_magnitude_vector.",
         "a magnitude of DoRA, which is not read: train without 'use_dora'"},
        {".alpha.", "a scale of another format: PEFT's is 'lora_alpha' in the configuration; "
                    "remove the tensor if it says the same"},
        {".lora_down.", "a name of another format: convert the adapter to PEFT's"},
        {".lora_up.", "a name of another format: convert the adapter to PEFT's"},
        {".lora_a.", "a name of another format (MLX): convert the adapter to PEFT's"},
        {".lora_b.", "a name of another format (MLX): convert the adapter to PEFT's"}};
    const std::string parts = "." + std::string(name) + ".";
    const auto has = [&](std::string_view part) { return parts.find(part) != std::string::npos; };
    for (const auto& [part, what] : sorts)
        if (has(part)) return what;

    if (has(".lora_B.") && ends_with(name, ".bias"))
        return "a bias of LoRA, which is not read: train without 'lora_bias'";
    struct owner {
        std::string_view part;
        std::string_view type;
    };
    for (const auto& [part, of] :
         {owner{".lora_A.", "LORA"}, owner{".lora_B.", "LORA"}, owner{".poly_lora_A.", "POLY"},
          owner{".poly_lora_B.", "POLY"}, owner{".poly_router.", "POLY"}, owner{".ia3_l.", "IA3"}})
        if (of != type && has(part))
            return "one of type " + std::string(of) + ": correct 'peft_type' in the configuration";
    if (has(".base_layer."))
        return "a part of the base model under an adapter: remove it, or merge the adapter in "
               "Python and use the whole model";
    if (!module_of(name).empty())
        return "a whole weight of the model: name its module in 'modules_to_save' of the "
               "configuration, or remove it if it was not trained";
    return "an unknown one: remove it, or convert the adapter to PEFT's format";
}

} // namespace detail
} // namespace MHR_ISA
} // namespace mhr
