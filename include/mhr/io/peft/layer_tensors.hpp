#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/error.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/files/printable.hpp>
#include <mhr/io/peft/layer_pattern.hpp>
#include <mhr/io/peft/peft_config.hpp>
#include <mhr/io/peft/tensor_names.hpp>
#include <mhr/io/safetensors/dtype.hpp>
#include <mhr/io/safetensors/safetensors_file.hpp>

/// \file
/// Which tensors of an adapter's file belong to which layer, and which layers its configuration
/// allows.

namespace mhr {
inline namespace MHR_ISA {
namespace peft_details {

/// What a configuration says of layers. Lists are followed; a regular expression in their place is
/// not evaluated, as the tensors tell which layers it chose.
class layer_rules {
  public:
    explicit layer_rules(const peft_config& config)
        : config_(config), targets_(config.matching_of("target_modules")),
          excluded_(config.matching_of("exclude_modules")),
          saved_(config.matching_of("modules_to_save")) {}

    /// These are refused: a layer that is not to be adapted.
    void require_adapted(std::string_view layer) {
        const auto is_of = [&](std::string_view name) { return is_last_part(name, layer); };
        const auto& fields = config_.fields();
        if (config_.has("target_modules") && fields["target_modules"].is_array() &&
            !config_.lists("target_modules", targets_, is_of))
            config_.fail("target_modules", "a name of each layer in the file",
                         "none of " + in_quotes(layer));
        if (config_.lists("exclude_modules", excluded_, is_of))
            config_.fail("exclude_modules", "no name of a layer in the file",
                         "one of " + in_quotes(layer));
    }

    /// True of a bias of the base model that PEFT stores because the configuration's `bias` is
    /// "all" (that of every module) or "lora_only" (those of adapted modules, which LoRA wraps).
    [[nodiscard]] bool is_trained_bias(std::string_view name) const {
        if (!config_.has("bias") || !ends_with(name, ".bias")) return false;
        const auto& which = config_.fields()["bias"];
        return which == "all" || (which == "lora_only" && ends_with(name, ".base_layer.bias"));
    }

    /// True of a tensor that belongs to a part of the model that was trained whole, by its name
    /// without the beginning: one of a module whose name ends with a listed one, as PEFT compares
    /// them ("classifier" is the end of "pre_classifier", too).
    bool is_saved(std::string_view name) {
        const std::string whole = peft_key(name, ".");
        return config_.lists("modules_to_save", saved_, [&](std::string_view module) {
            saved_.spend(whole.size() / 8);
            // A part of the model, not all of it.
            const std::size_t from =
                peft_prefix.size() - (std::min)(peft_prefix.size(), module.size());
            return !module.empty() &&
                   whole.find(std::string(module) += '.', from) != std::string::npos;
        });
    }

  private:
    const peft_config& config_;
    matching targets_, excluded_, saved_;
};

/// A tensor and its name in the file.
using stored_tensor = std::pair<const std::string, safetensors_tensor>;

/// The tensors of an adapter's file by the layers that they belong to, whatever the names under
/// which they are stored. It shows names and tensors of the file, which must outlive it.
template <std::size_t Slots>
class peft_tensors {
  public:
    /// By slots; null for an optional part that the layer has not.
    using of_layer = std::array<const stored_tensor*, Slots>;

    /// None.
    peft_tensors() = default;

    /// Sorts them out. These are refused: a tensor that is no part of a layer, nor one that was
    /// trained whole; two tensors, after what is unusual in their names was left out, of one name;
    /// those of several adapters; a layer that lacks a part, or that the configuration excludes; no
    /// layer at all.
    template <std::size_t Parts>
    peft_tensors(const peft_config& config, const safetensors_file& file,
                 const std::array<peft_part, Parts>& parts) {
        for (const auto& stored : file.tensors())
            names_.expect(stored.first);
        layer_rules rules(config);
        for (const stored_tensor& stored : file.tensors())
            add(stored, rules, config, file, parts);
        const auto in_order = [](const entry& a, const entry& b) {
            return std::tie(a.name, a.slot) < std::tie(b.name, b.slot);
        };
        std::sort(found_.begin(), found_.end(), in_order);
        std::sort(others_.begin(), others_.end(), in_order);
        require_once(file, found_);
        require_once(file, others_);
        gather_layers(file, parts);
        for (std::size_t i = 0; i < layers(); ++i)
            rules.require_adapted(layer(i));
        if (layers_.empty())
            raise("peft: " + file.name() +
                  ": tensors: expected those of at least one layer, got none");
        for (const entry& other : others_)
            saved_.emplace_back(other.stored->first);
        tell(file.tensors().size());
    }

    /// Number of layers.
    [[nodiscard]] std::size_t layers() const noexcept { return layers_.size(); }

    /// Returns the name of a layer; they come in order.
    [[nodiscard]] std::string_view layer(std::size_t i) const { return layers_[i].first; }

    /// Returns the tensors of a layer.
    [[nodiscard]] const of_layer& tensors(std::size_t i) const { return layers_[i].second; }

    /// Returns the tensors of the layer of this name. A name that is not there is refused.
    [[nodiscard]] const of_layer& tensors(std::string_view name) const {
        const auto found =
            std::lower_bound(layers_.begin(), layers_.end(), name,
                             [](const auto& a, std::string_view b) { return a.first < b; });
        if (found == layers_.end() || found->first != name)
            raise("peft: layer: expected one of the adapter, got " + in_quotes(name));
        return found->second;
    }

    /// Names in the file of the tensors that were trained whole.
    [[nodiscard]] const std::vector<std::string_view>& saved() const noexcept { return saved_; }

    /// What a reader should know.
    [[nodiscard]] const std::vector<std::string>& notes() const noexcept { return notes_; }

  private:
    struct entry {
        std::string_view name; ///< of the layer, or of another tensor without its beginning
        std::size_t slot;
        std::size_t part; ///< its number among those that were asked for
        const stored_tensor* stored;
    };

    /// Tensors of which the same is to be said.
    struct remark {
        std::size_t count = 0;
        std::string_view example{};

        void add(std::string_view key) {
            if (count++ == 0) example = key;
        }
    };

    template <std::size_t Parts>
    void add(const stored_tensor& stored, layer_rules& rules, const peft_config& config,
             const safetensors_file& file, const std::array<peft_part, Parts>& parts) {
        const std::string_view key = stored.first;
        const std::string_view name = names_.plain(key);
        odd_[static_cast<std::size_t>(names_.last_oddity())].add(key);
        const peft_tensor_name split = split_name(name, parts);
        if (!split.layer.empty()) {
            if (!split.adapter.empty()) {
                if (named_.count != 0 && split.adapter != adapter_)
                    file.fail(key, "tensors of one adapter, such as " + in_quotes(named_.example),
                              "one of the adapter " + in_quotes(split.adapter) +
                                  ": save them in folders of their own",
                              stored.second.first);
                adapter_ = split.adapter;
                named_.add(key);
            }
            found_.push_back({split.layer, parts[split.part].slot, split.part, &stored});
            return;
        }
        if (!rules.is_saved(name) && !rules.is_trained_bias(name)) {
            if (!is_embedding_or_head(name))
                file.fail(key, "a tensor of an adapter of type " + config.type(),
                          describe_strange_tensor(name, config.type()), stored.second.first);
            unlisted_.add(key);
        }
        others_.push_back({name, 0, 0, &stored});
    }

    static void require_once(const safetensors_file& file, const std::vector<entry>& entries) {
        for (std::size_t i = 1; i < entries.size(); ++i)
            if (entries[i].name == entries[i - 1].name && entries[i].slot == entries[i - 1].slot)
                file.fail(entries[i].stored->first, "a tensor that comes once",
                          "the same as " + in_quotes(entries[i - 1].stored->first),
                          entries[i].stored->second.first);
    }

    /// Refused: a layer that lacks a part which the first of its parts calls for.
    template <std::size_t Parts>
    void gather_layers(const safetensors_file& file, const std::array<peft_part, Parts>& parts) {
        for (std::size_t i = 0; i < found_.size();) {
            const entry& first = found_[i];
            of_layer its{};
            // Parts of one form follow each other, each form beginning with slot 0. An optional
            // part belongs to any form.
            const std::size_t form =
                parts[first.part].is == presence::required ? first.part - first.slot : 0;
            for (; i < found_.size() && found_[i].name == first.name; ++i) {
                const entry& now = found_[i];
                if (parts[now.part].is == presence::required && now.part - now.slot != form)
                    file.fail(now.stored->first,
                              "a tensor of the same form as " + in_quotes(first.stored->first),
                              "one of another", now.stored->second.first);
                its[now.slot] = now.stored;
            }
            for (std::size_t part = form; part < form + Slots && part < Parts; ++part)
                if (parts[part].is == presence::required && its[parts[part].slot] == nullptr)
                    file.fail(first.stored->first,
                              "a tensor '..." + parts[part].text() + "' beside it", "none",
                              first.stored->second.first);
            layers_.emplace_back(first.name, its);
        }
    }

    /// Makes notes of what was found.
    void tell(std::size_t tensors) {
        const auto note = [&](const remark& what, const std::string& text) {
            if (what.count != 0)
                notes_.push_back(std::to_string(what.count) + " of " + std::to_string(tensors) +
                                 " tensors, such as " + in_quotes(what.example) + ", " + text);
        };
        const auto odd = [&](name_oddity what) { return odd_[static_cast<std::size_t>(what)]; };
        note(odd(name_oddity::no_prefix), "lack the 'base_model.model.' that PEFT begins names "
                                          "with: they are read as if they had it");
        note(odd(name_oddity::doubled_prefix),
             "begin with 'base_model.model.' more than once: they are read as if it were once");
        note(odd(name_oddity::wrapper),
             "have a wrapper's name in theirs, as torch.compile leaves it: it is left out");
        note(named_,
             "have the adapter's name " + in_quotes(adapter_) + " in theirs: it is left out");
        note(unlisted_, "are whole embeddings or heads that 'modules_to_save' does not name: they "
                        "take the place of the base model's");
    }

    peft_names names_{};
    std::array<remark, 4> odd_{}; ///< by name_oddity
    remark named_{}, unlisted_{};
    std::string_view adapter_{};
    std::vector<entry> found_{}; ///< parts of layers, in the order of names and slots
    std::vector<std::pair<std::string_view, of_layer>> layers_{};
    std::vector<entry> others_{};
    std::vector<std::string_view> saved_{};
    std::vector<std::string> notes_{};
};

/// The element type of a tensor of an adapter. These are refused: a tensor without the given
/// extents (any_extent: every number from 1); a type that is no element type here, such as I32.
template <std::size_t Rank>
element_type check_adapter_tensor(const safetensors_file& file, const stored_tensor& named,
                                  const std::array<index_t, Rank>& expected, const char* meaning) {
    const auto& [key, stored] = named;
    bool fits = stored.rank == Rank;
    std::string text = "[";
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        const index_t extent = stored.extents[axis];
        fits = fits && (expected[axis] == any_extent ? extent >= 1 : extent == expected[axis]);
        text +=
            (axis == 0 ? "" : ", ") +
            (expected[axis] == any_extent ? std::string("any") : std::to_string(expected[axis]));
    }
    if (!fits)
        file.fail(key, "extents " + text + "], " + meaning,
                  safetensors_details::extents_text(stored), stored.first);
    const std::optional<element_type> type = to_element_type(stored.type);
    if (!type) file.fail(key, "F64, F32, F16 or BF16", dtype_name(stored.type), stored.first);
    return *type;
}

} // namespace peft_details
} // namespace MHR_ISA
} // namespace mhr
