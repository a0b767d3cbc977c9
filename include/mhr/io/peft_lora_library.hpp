#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <mhr/adapters/lora_library.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/peft_lora.hpp>
#include <mhr/io/printable.hpp>

/// \file
/// Several plain adapters of PEFT as one inventory: the modules of a library, for MHR-z
/// (adapters/lora_library.hpp).

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

    /// Errors: no adapter; adapters that differ in the features of a layer; one with tensors beside
    /// its layers (lora_checkpoint::saved), unless `beside` says that they may be left out.
    explicit lora_checkpoint_library(const std::vector<lora_checkpoint>& adapters,
                                     saved_tensors beside = saved_tensors::refuse)
        : adapters_(adapters) {
        if (adapters.empty()) raise("lora_checkpoint_library: adapters: expected one, got none");
        std::map<std::string_view, layer> by_name;
        for (const lora_checkpoint& adapter : adapters) {
            if (beside == saved_tensors::refuse && !adapter.saved().empty())
                raise("lora_checkpoint_library: adapters: expected no tensors beside their layers, "
                      "or saved_tensors::leave_out from a host that takes care of them, got " +
                      detail::in_quotes(adapter.saved().front()) + " in " +
                      adapter.tensors().name());
            for (const auto& one : adapter.layers()) {
                layer& all = by_name
                                 .emplace(one.name, layer{one.name, one.in_features,
                                                          one.out_features, one.rank, 0})
                                 .first->second;
                if (one.in_features != all.in_features || one.out_features != all.out_features)
                    raise(
                        "lora_checkpoint_library: adapters: expected the same features of layer " +
                        detail::in_quotes(one.name) + ", got others in " +
                        adapter.tensors().name());
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

    /// Copies one layer of all adapters into a pool, padded with zeros up to the pool's rank, the
    /// scale of each in its b; an adapter without that layer changes nothing of it: zeros.
    /// `as_inventory(pool, heads)` is the inventory, its scale 1.
    ///
    /// pool.a [modules, in_features, rank], pool.b [modules, rank, out_features], overwritten, of
    /// any rank from the layer's. Allocates one adapter's matrices at a time. Errors: a shape; a
    /// rank below the layer's; overlapping elements of the pool.
    template <class M>
    void gather(executor_ref executor, const layer& of, lora_batch<M> pool) const {
        constexpr const char* function = "lora_checkpoint_library::gather";
        require_output(function, "pool.a", pool.a, {modules(), of.in_features, any_extent});
        require_output(function, "pool.b", pool.b, {modules(), pool.a.extent(2), of.out_features});
        detail::require_no_slots(function, "pool.slot_of_entry", pool);
        require_that(
            pool.a.extent(2) >= of.rank, function, "pool.a",
            [&] { return "a rank from " + std::to_string(of.rank); },
            [&] { return std::to_string(pool.a.extent(2)); });
        for (index_t i = 0; i < modules(); ++i) {
            const lora_checkpoint& adapter = adapters_[static_cast<std::size_t>(i)];
            const lora_batch<M> slot{pool.a.block(0, i, 1), pool.b.block(0, i, 1)};
            const auto& its = adapter.layers();
            const auto found = std::lower_bound(
                its.begin(), its.end(), of.name,
                [](const auto& one, std::string_view name) { return one.name < name; });
            if (found == its.end() || found->name != of.name)
                copy_one(executor, adapter, nullptr, of, M(), slot);
            else if (found->type == dtype::f64)
                copy_one(executor, adapter, &*found, of, double(), slot);
            else
                copy_one(executor, adapter, &*found, of, accumulator_t<M>(), slot);
        }
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
                             " layers, such as " + detail::in_quotes(layers_[i].name) +
                             ": zeros stand for them");
        }
        constexpr const char* key = "base_model_name_or_path";
        const peft_config& config = adapter.config().json();
        if (!config.has(key)) return;
        const auto& base = config.fields()[key].get_ref<const std::string&>();
        if (base_model_.empty()) base_model_ = base;
        if (base != base_model_)
            notes_.push_back(file + ": is of the base model " + detail::in_quotes(base) +
                             ", others of " + detail::in_quotes(base_model_));
    }

    /// By way of a copy in a type that holds what is stored, so that a product with the scale is
    /// rounded once. Without `stored`, an adapter of rank 0: zeros.
    template <class T, class M>
    static void copy_one(executor_ref executor, const lora_checkpoint& adapter,
                         const lora_checkpoint::layer* stored, const layer& of, T,
                         const lora_batch<M>& slot) {
        const index_t rank = stored == nullptr ? 0 : stored->rank;
        std::vector<T> a(static_cast<std::size_t>(rank * of.in_features));
        std::vector<T> b(static_cast<std::size_t>(rank * of.out_features));
        const lora<T> copy{tensor_view<T, 2>(a.data(), {rank, of.in_features}).transpose(0, 1),
                           {b.data(), {rank, of.out_features}}};
        if (stored != nullptr) adapter.read(*stored, copy);
        const lora<const T> one{copy.a, copy.b};
        const double scale = stored == nullptr ? 0 : stored->scale;
        gather_lora_library(executor, tensor_view<const lora<const T>, 1>(&one, {1}),
                            tensor_view<const double, 1>(&scale, {1}), slot);
    }

    const std::vector<lora_checkpoint>& adapters_;
    std::vector<layer> layers_{};
    std::vector<std::string> notes_{};
    std::string_view base_model_{}; ///< of the first adapter that names one
};

} // namespace MHR_ISA
} // namespace mhr
