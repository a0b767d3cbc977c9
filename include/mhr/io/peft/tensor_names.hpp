#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <mhr/config.hpp>

/// \file
/// The names that PEFT's adapters give to tensors, and those that other programs make of them. PEFT
/// writes base_model.model.LAYER.PART. Trainers that wrap models leave names of their wrappers in
/// them, such as _orig_mod of torch.compile; some write the beginning twice, or not at all, or the
/// adapter's name inside of the part. All of them mean the same layer, and are read so.

namespace mhr {
inline namespace MHR_ISA {
namespace peft_details {

inline constexpr std::string_view peft_prefix = "base_model.model.";

inline bool begins_with(std::string_view text, std::string_view with) {
    return text.substr(0, with.size()) == with;
}
inline bool ends_with(std::string_view text, std::string_view with) {
    return text.size() >= with.size() && text.substr(text.size() - with.size()) == with;
}
/// True if a name is the layer's, or the last parts of it.
inline bool is_last_part(std::string_view name, std::string_view layer) {
    return ends_with(layer, name) &&
           (layer.size() == name.size() || layer[layer.size() - name.size() - 1] == '.');
}

/// Whether a layer must have a part.
enum class presence : unsigned char { required, optional };

/// One of the tensors of a layer: what follows the layer's name, in two halves between which the
/// name of the adapter may stand, as in .lora_A[.default].weight. A layer has one tensor for each
/// slot; several parts, of different forms of a layer, may fill the same slot.
struct peft_part {
    std::string_view first;
    std::string_view second;
    std::size_t slot;
    presence is = presence::required;

    [[nodiscard]] std::string text() const { return std::string(first) += second; }
};

/// The name of a tensor as PEFT writes it, as in
/// base_model.model.encoder.block.0.layer.0.SelfAttention.q.poly_lora_A.
inline std::string peft_key(std::string_view layer, std::string_view part = {}) {
    return std::string(peft_prefix) += std::string(layer) += part;
}

/// What the name of a tensor says of a layer.
struct peft_tensor_name {
    std::string_view layer;   ///< empty if it is no part of a layer
    std::size_t part = 0;     ///< its number
    std::string_view adapter; ///< the adapter's name, empty if it is left out
};

/// Takes the name of a tensor, without its beginning, apart.
template <std::size_t Parts>
peft_tensor_name split_name(std::string_view name, const std::array<peft_part, Parts>& parts) {
    for (std::size_t i = 0; i < Parts; ++i) {
        const std::string_view first = parts[i].first, second = parts[i].second;
        if (!ends_with(name, second)) continue;
        const std::string_view before = name.substr(0, name.size() - second.size());
        if (ends_with(before, first) && before.size() > first.size())
            return {before.substr(0, before.size() - first.size()), i, {}};
        const std::size_t dot = (std::min)(before.rfind('.'), before.size());
        const std::string_view up_to_dot = before.substr(0, dot);
        const std::string_view adapter = before.substr((std::min)(dot + 1, before.size()));
        if (!adapter.empty() && adapter != "weight" && adapter != "bias" &&
            ends_with(up_to_dot, first) && up_to_dot.size() > first.size())
            return {up_to_dot.substr(0, dot - first.size()), i, adapter};
    }
    return {};
}

/// This tells what is unusual about the beginning or the middle of a name.
enum class name_oddity : unsigned char { none, no_prefix, doubled_prefix, wrapper };

/// The names of tensors without their beginnings, and what was unusual about them.
class peft_names {
  public:
    /// The name without base_model.model. and without wrappers: a part of `key`, which must outlive
    /// this, or of a copy that this keeps. Then `last_oddity` tells what it was freed of.
    std::string_view plain(std::string_view key) {
        last_ = name_oddity::none;
        std::string_view name = without_wrappers(key);
        if (name.size() != key.size()) last_ = name_oddity::wrapper;
        // What trains data in parallel puts its own name before all.
        if (begins_with(name, "module.") && begins_with(name.substr(7), peft_prefix)) {
            name.remove_prefix(7);
            last_ = name_oddity::wrapper;
        }
        std::size_t prefixes = 0;
        for (; begins_with(name, peft_prefix); ++prefixes)
            name.remove_prefix(peft_prefix.size());
        if (last_ == name_oddity::none && prefixes != 1)
            last_ = prefixes == 0 ? name_oddity::no_prefix : name_oddity::doubled_prefix;
        return name;
    }
    [[nodiscard]] name_oddity last_oddity() const noexcept { return last_; }

    /// Makes room for the copies of names that have wrappers in them; they stay where they are when
    /// this is moved. Every such name has to be told before `plain` is called.
    void expect(std::string_view key) {
        if (wrapper_in(key, 0).second != 0) expected_ += key.size();
    }

  private:
    static constexpr std::array<std::string_view, 3> wrappers{
        "_orig_mod.",                 // torch.compile
        "_fsdp_wrapped_module.",      // FullyShardedDataParallel
        "_checkpoint_wrapped_module." // checkpointing of activations
    };

    /// Where the next wrapper begins, and its length: 0 if there is none.
    static std::pair<std::size_t, std::size_t> wrapper_in(std::string_view key, std::size_t from) {
        while (from < key.size()) {
            for (const std::string_view wrapper : wrappers)
                if (begins_with(key.substr(from), wrapper)) return {from, wrapper.size()};
            const std::size_t dot = key.find('.', from);
            if (dot == std::string_view::npos) break;
            from = dot + 1;
        }
        return {key.size(), 0};
    }

    std::string_view without_wrappers(std::string_view key) {
        auto [at, length] = wrapper_in(key, 0);
        if (length == 0) return key;
        copies_.reserve(expected_); // once: nothing that was handed out moves
        const std::size_t first = copies_.size();
        std::size_t from = 0;
        for (; length != 0; std::tie(at, length) = wrapper_in(key, from)) {
            copies_.insert(copies_.end(), key.data() + from, key.data() + at);
            from = at + length;
        }
        copies_.insert(copies_.end(), key.data() + from, key.data() + key.size());
        return {copies_.data() + first, copies_.size() - first};
    }

    name_oddity last_ = name_oddity::none;
    std::size_t expected_ = 0;
    std::vector<char> copies_{};
};

/// The name of a tensor as PEFT writes it.
inline std::string as_peft_writes(std::string_view key) {
    peft_names names;
    names.expect(key);
    return peft_key(names.plain(key));
}

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
        return ends_with(name, ".bias")
                   ? "a trained bias of the base model: the configuration's 'bias' must say so"
                   : "a part of the base model under an adapter: remove it, or merge the adapter "
                     "in Python and use the whole model";
    if (!module_of(name).empty())
        return "a whole weight of the model: name its module in 'modules_to_save' of the "
               "configuration, or remove it if it was not trained";
    return "an unknown one: remove it, or convert the adapter to PEFT's format";
}

} // namespace peft_details
} // namespace MHR_ISA
} // namespace mhr
