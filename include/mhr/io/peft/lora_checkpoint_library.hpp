#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/error.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/files/printable.hpp>
#include <mhr/io/peft/lora_checkpoint.hpp>
#include <mhr/lora/adapters.hpp>
#include <mhr/serving/lora_library.hpp>

/// \file
/// Several plain adapters of PEFT together: as a list of adapters, for an engine that serves them,
/// or as one inventory, the modules of a library for MHR-z (serving/lora_library.hpp).

namespace mhr {
inline namespace MHR_ISA {

/// What becomes of tensors that an adapter has beside its layers, such as a head that was trained
/// with it: an inventory has no place for them.
enum class saved_tensors {
    refuse,   ///< they are an error
    leave_out ///< the caller knows of them
};

/// Plain adapters of one base model, of whatever ranks, scales, types and layers, seen layer by
/// layer. The adapters must outlive it.
class lora_checkpoint_library {
  public:
    /// A layer that any of the adapters has.
    struct layer {
        std::string_view name; ///< as in lora_checkpoint
        index_t in_features;   ///< of x
        index_t out_features;  ///< of y
        index_t rank;          ///< the greatest among the adapters
        index_t adapters;      ///< how many of them have it: zeros stand for the others
    };

    /// These are refused: no adapter; adapters that differ in the features of a layer; a layer of
    /// an embedding, or with DoRA's magnitude or a bias; one with tensors beside its layers
    /// (lora_checkpoint::saved), unless `beside` says that they may be left out.
    explicit lora_checkpoint_library(const std::vector<lora_checkpoint>& adapters,
                                     saved_tensors beside = saved_tensors::refuse)
        : adapters_(adapters) {
        if (adapters.empty()) raise("lora_checkpoint_library: adapters: expected one, got none");
        std::map<std::string_view, layer> by_name;
        for (const lora_checkpoint& adapter : adapters) {
            if (beside == saved_tensors::refuse && !adapter.saved().empty())
                raise("lora_checkpoint_library: adapters: expected no tensors beside their layers, "
                      "or saved_tensors::leave_out from a host that takes care of them, got " +
                      in_quotes(adapter.saved().front()) + " in " + adapter.tensors().name());
            for (const auto& one : adapter.layers()) {
                if (!one.is_plain() || one.form != lora_form::linear)
                    raise("lora_checkpoint_library: adapters: expected layers that are y += scale "
                          "(x a) b, got " +
                          in_quotes(one.name) +
                          (one.has_magnitude ? " with DoRA's magnitude"
                           : one.has_bias    ? " with a bias"
                                             : ", an embedding,") +
                          " in " + adapter.tensors().name());
                layer& all = by_name
                                 .emplace(one.name, layer{one.name, one.in_features,
                                                          one.out_features, one.rank, 0})
                                 .first->second;
                if (one.in_features != all.in_features || one.out_features != all.out_features)
                    raise(
                        "lora_checkpoint_library: adapters: expected the same features of layer " +
                        in_quotes(one.name) + ", got others in " + adapter.tensors().name());
                all.rank = (std::max)(all.rank, one.rank);
                ++all.adapters;
            }
        }
        for (const auto& [name, all] : by_name)
            layers_.push_back(all);
        for (const lora_checkpoint& adapter : adapters)
            tell_of(adapter);
    }

    /// Number of adapters.
    [[nodiscard]] index_t modules() const noexcept {
        return static_cast<index_t>(adapters_.size());
    }

    /// The layers that any of the adapters has, in the order of their names.
    [[nodiscard]] const std::vector<layer>& layers() const noexcept { return layers_; }

    /// Sentences to show to whoever made the library: layers that an adapter lacks, and adapters of
    /// another base model than the first that names one. Mostly none, at most two an adapter.
    [[nodiscard]] const std::vector<std::string>& notes() const noexcept { return notes_; }

    /// One layer of all adapters, each where it lies in its file, with its own rank, element types
    /// and scale: for a `lora_list`. An adapter without that layer has rank 0 and changes nothing.
    /// Refused: data that are not aligned, which `gather` copies.
    [[nodiscard]] std::vector<lora> adapters(const layer& of) const {
        std::vector<lora> result;
        for (const lora_checkpoint& adapter : adapters_) {
            const auto* const found = adapter.find(of.name);
            result.push_back(found == nullptr ? without_rank(of) : adapter.adapter(*found));
        }
        return result;
    }

    /// Copies one layer of all adapters into a pool as gather_lora_library does: padded with zeros
    /// up to the pool's rank, the scale of each in its b, zeros for an adapter without that layer.
    /// `as_inventory(pool, heads)` is the inventory, its scale 1.
    ///
    /// pool.a [modules, in_features, rank], pool.b [modules, rank, out_features], overwritten, of
    /// any types and of any rank from the layer's. What is not aligned in its file is copied first,
    /// which allocates. These are refused: a shape; a rank below the layer's; a pool two of whose
    /// elements overlap.
    void gather(executor_ref executor, const layer& of, const stacked_lora_matrices& pool) const {
        argument_checks checks("lora_checkpoint_library::gather");
        checks.output("pool.a", pool.a, {modules(), of.in_features, any_extent});
        checks.output("pool.b", pool.b, {modules(), pool.a.extent(2), of.out_features});
        checks.expect(
            pool.a.extent(2) >= of.rank, "pool.a",
            [&] { return "a rank from " + std::to_string(of.rank); },
            [&] { return std::to_string(pool.a.extent(2)); });
        checks.raise();
        std::deque<std::vector<double>> copies;
        std::vector<lora> all;
        for (const lora_checkpoint& adapter : adapters_) {
            const auto* const found = adapter.find(of.name);
            all.push_back(found == nullptr             ? without_rank(of)
                          : adapter.is_aligned(*found) ? adapter.adapter(*found)
                                                       : copy_of(adapter, *found, copies));
        }
        gather_lora_library(executor, tensor_view<const lora, 1>(all.data(), {modules()}), pool);
    }

  private:
    /// Notes what is unusual about an adapter among the others.
    void tell_of(const lora_checkpoint& adapter) {
        const std::string file = adapter.tensors().name();
        const auto& its = adapter.layers();
        if (its.size() != layers_.size()) {
            // Both are in order: the first one where they part.
            std::size_t i = 0;
            while (i < its.size() && its[i].name == layers_[i].name)
                ++i;
            notes_.push_back(file + ": lacks " + std::to_string(layers_.size() - its.size()) +
                             " of the library's " + std::to_string(layers_.size()) +
                             " layers, such as " + in_quotes(layers_[i].name) +
                             ": zeros stand for them");
        }
        constexpr const char* key = "base_model_name_or_path";
        const peft_config& config = adapter.config().json();
        if (!config.has(key)) return;
        const auto& base = config.fields()[key].get_ref<const std::string&>();
        if (base_model_.empty()) base_model_ = base;
        if (base != base_model_)
            notes_.push_back(file + ": is of the base model " + in_quotes(base) + ", others of " +
                             in_quotes(base_model_));
    }

    static lora without_rank(const layer& of) {
        return {{nullptr, element_type::f32, {of.in_features, 0}},
                {nullptr, element_type::f32, {0, of.out_features}}};
    }

    /// A copy in the types of the file. Memory of double is aligned for all of them.
    static lora copy_of(const lora_checkpoint& adapter, const lora_checkpoint::layer& of,
                        std::deque<std::vector<double>>& copies) {
        const auto memory = [&](index_t elements) -> void* {
            return copies.emplace_back(static_cast<std::size_t>(elements)).data();
        };
        const lora_matrices copy{
            {memory(of.in_features * of.rank), of.a_type, {of.in_features, of.rank}},
            {memory(of.rank * of.out_features), of.b_type, {of.rank, of.out_features}}};
        adapter.read_adapter(of, copy);
        return {copy.a, copy.b, of.scale};
    }

    const std::vector<lora_checkpoint>& adapters_;
    std::vector<layer> layers_{};
    std::vector<std::string> notes_{};
    std::string_view base_model_{}; ///< of the first adapter that names one
};

} // namespace MHR_ISA
} // namespace mhr
