#pragma once

#include <algorithm>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Ready LoRA adapters: one of them, and the list of those that a batch uses. Each adapter of a
/// list has its own rank, element types and scale, and several entries may use one.

namespace mhr {

/// One adapter (Hu et al. 2022, arXiv 2106.09685, section 4.1): its output is scale (x a) b.
struct lora {
    const_tensor_ref<2> a{}; ///< [in_features, rank]
    const_tensor_ref<2> b{}; ///< [rank, out_features]
    double scale = 1;        ///< 1 / rank, alpha / rank, or any other number
};

/// The two matrices of one adapter where they are written: a mixture, an average, or gradients, of
/// which either may be absent.
struct lora_matrices {
    tensor_ref<2> a{}; ///< [in_features, rank]
    tensor_ref<2> b{}; ///< [rank, out_features]
};

/// The matrices of one adapter for each entry of a batch, or of each adapter of a library, where
/// they are only read; all have one rank.
struct const_stacked_lora_matrices {
    const_tensor_ref<3> a{}; ///< [entries, in_features, rank]
    const_tensor_ref<3> b{}; ///< [entries, rank, out_features]
};

/// A stack of matrices that may be written.
struct stacked_lora_matrices {
    tensor_ref<3> a{}; ///< [entries, in_features, rank]
    tensor_ref<3> b{}; ///< [entries, rank, out_features]

    /// Converts to matrices that are only read.
    MHR_INLINE operator const_stacked_lora_matrices() const noexcept { // NOLINT: implicit
        return {a, b};
    }
};

/// The adapters that the entries of a batch use.
class lora_list {
  public:
    /// Every entry uses this adapter: for a plain adapter, such as the average of an inventory.
    MHR_INLINE lora_list(const lora& adapter) noexcept // NOLINT: implicit
        : form_(form::single), single_(adapter), count_(1) {}

    /// Entry g uses adapters[g], of `count` that there are. The array must outlive the list.
    MHR_INLINE lora_list(const lora* adapters, index_t count) noexcept
        : form_(form::array), adapters_(adapters), count_(count) {}

    /// Entry g uses adapters[adapter_of_entry(g)]: an engine that keeps ready adapters copies none
    /// of them. Both arrays must outlive the list.
    MHR_INLINE lora_list(const lora* adapters, index_t count,
                         tensor_view<const index_t, 1> adapter_of_entry) noexcept
        : form_(form::array), adapters_(adapters), count_(count),
          adapter_of_entry_(adapter_of_entry) {}

    /// Entry g uses a[g] and b[g], of one rank and scale: what mixing makes.
    MHR_INLINE lora_list(const const_tensor_ref<3>& a, const const_tensor_ref<3>& b,
                         double scale) noexcept
        : form_(form::stacked), a_(a), b_(b), scale_(scale), count_(a.extent(0)) {}

    /// Returns the number of adapters.
    [[nodiscard]] MHR_INLINE index_t size() const noexcept { return count_; }

    /// Returns the array that the adapters were given as, or a null pointer.
    [[nodiscard]] MHR_INLINE const lora* array() const noexcept { return adapters_; }

    /// Returns one of the adapters.
    [[nodiscard]] MHR_INLINE lora operator[](index_t adapter) const noexcept {
        switch (form_) {
        case form::single:
            return single_;
        case form::array:
            return adapters_[adapter];
        case form::stacked:
            break;
        }
        return {a_.slice(0, adapter), b_.slice(0, adapter), scale_};
    }

    /// Returns the number of the adapter that an entry uses.
    [[nodiscard]] MHR_INLINE index_t adapter_of(index_t entry) const noexcept {
        return form_ == form::single                 ? 0
               : adapter_of_entry_.data() == nullptr ? entry
                                                     : adapter_of_entry_(entry);
    }

    /// Returns the numbers of the adapters of all entries, or an absent view.
    [[nodiscard]] MHR_INLINE tensor_view<const index_t, 1> adapter_of_entry() const noexcept {
        return adapter_of_entry_;
    }

    /// Returns the a of all entries where they are stacked, else an absent tensor.
    [[nodiscard]] MHR_INLINE const const_tensor_ref<3>& stacked_a() const noexcept { return a_; }
    /// Returns the b of all entries.
    [[nodiscard]] MHR_INLINE const const_tensor_ref<3>& stacked_b() const noexcept { return b_; }

    /// True if entry g uses the matrices g of two stacks.
    [[nodiscard]] MHR_INLINE bool is_stacked() const noexcept { return form_ == form::stacked; }

    /// True if every entry uses the one adapter that there is.
    [[nodiscard]] MHR_INLINE bool is_single() const noexcept { return form_ == form::single; }

  private:
    enum class form { single, array, stacked };

    form form_;
    lora single_{};
    const lora* adapters_ = nullptr;
    const_tensor_ref<3> a_{}, b_{};
    double scale_ = 1;
    index_t count_;
    tensor_view<const index_t, 1> adapter_of_entry_{};
};

/// Gradients of the adapters of a list, one for each of the list's, in its order: those of entries
/// that share an adapter are summed.
class lora_list_gradients {
  public:
    /// No gradient is wanted.
    MHR_INLINE lora_list_gradients() noexcept = default;

    /// Holds the gradients of a single adapter.
    MHR_INLINE lora_list_gradients(const lora_matrices& gradients) noexcept // NOLINT: implicit
        : single_(gradients), count_(1) {}

    /// Holds the gradients of `count` adapters. The array must outlive this.
    MHR_INLINE lora_list_gradients(const lora_matrices* gradients, index_t count) noexcept
        : gradients_(gradients), count_(count) {}

    /// Holds the gradients of adapters of one rank: adapter n has a[n] and b[n], and either may be
    /// absent.
    MHR_INLINE lora_list_gradients(const stacked_lora_matrices& gradients) noexcept // NOLINT
        : stacked_(gradients),
          count_(gradients.a.absent() ? gradients.b.extent(0) : gradients.a.extent(0)) {}

    /// Returns the number of gradients.
    [[nodiscard]] MHR_INLINE index_t size() const noexcept { return count_; }

    /// Returns the gradients of all adapters where they are stacked, else absent ones.
    [[nodiscard]] MHR_INLINE const stacked_lora_matrices& stacked() const noexcept {
        return stacked_;
    }

    /// Returns the gradient of one adapter, which is absent if it is not wanted.
    [[nodiscard]] MHR_INLINE lora_matrices operator[](index_t adapter) const noexcept {
        if (gradients_ != nullptr) return gradients_[adapter];
        if (stacked_.a.absent() && stacked_.b.absent()) return single_;
        return {stacked_.a.absent() ? tensor_ref<2>{} : stacked_.a.slice(0, adapter),
                stacked_.b.absent() ? tensor_ref<2>{} : stacked_.b.slice(0, adapter)};
    }

  private:
    lora_matrices single_{};
    const lora_matrices* gradients_ = nullptr;
    stacked_lora_matrices stacked_{};
    index_t count_ = 0;
};

inline namespace MHR_ISA {
namespace lora_details {

/// The largest rank of the adapters that the entries use.
inline index_t largest_rank(const batch_plan& plan, const lora_list& adapters) noexcept {
    if (adapters.is_single()) return adapters[0].a.extent(1);
    index_t rank = 0;
    for (index_t entry = 0; entry < plan.entries(); ++entry)
        rank = (std::max)(rank, adapters[adapters.adapter_of(entry)].a.extent(1));
    return rank;
}

/// The number of the adapter that an entry uses: its place, if there are no numbers.
MHR_INLINE index_t number_of(const tensor_view<const index_t, 1>& adapter_of_entry,
                             index_t entry) noexcept {
    return adapter_of_entry.absent() ? entry : adapter_of_entry(entry);
}

/// Checks that each entry has one of the `count` adapters of an array, by number, or by its place
/// if there are no numbers. A batch of the base model alone has no entry and needs neither: an
/// empty list and its numbers may have no memory.
template <class Adapter>
void check_numbers(argument_checks& checks, index_t entries, const Adapter* array, index_t count,
                   const tensor_view<const index_t, 1>& adapter_of_entry) {
    checks.expect(array != nullptr || entries == 0, "adapters", "an array of adapters",
                  "a null pointer");
    if (adapter_of_entry.absent()) {
        checks.expect(
            count == entries || entries == 0, "adapters",
            joined(entries,
                   " adapters, one for each entry of the plan (or numbers of those that the "
                   "entries use)"),
            count);
        return;
    }
    checks.numbers("adapters.adapter_of_entry", adapter_of_entry, {entries});
    for (index_t entry = 0; checks.passed() && entry < entries; ++entry) {
        const index_t number = adapter_of_entry(entry);
        checks.expect(number >= 0 && number < count, "adapters.adapter_of_entry",
                      joined("numbers from 0 to ", count - 1),
                      joined(number, " at position ", entry));
    }
}

/// Checks that each entry has an adapter of these in_features, and returns their out_features,
/// which must be those of the first one: `any_extent` if there is none.
inline index_t check_adapters(argument_checks& checks, const batch_plan& plan,
                              const lora_list& adapters, index_t in_features) {
    const index_t entries = plan.entries();
    if (adapters.is_stacked()) {
        const auto &a = adapters.stacked_a(), &b = adapters.stacked_b();
        checks.input("adapters.a", a, {entries, in_features, any_extent});
        checks.input("adapters.b", b, {entries, a.extent(2), any_extent});
        return b.extent(2);
    }
    if (!adapters.is_single())
        check_numbers(checks, entries, adapters.array(), adapters.size(),
                      adapters.adapter_of_entry());
    const index_t used = adapters.is_single() ? 1 : entries;
    index_t out_features = any_extent;
    for (index_t entry = 0; checks.passed() && entry < used; ++entry) {
        const lora adapter = adapters[adapters.adapter_of(entry)];
        checks.input("adapters.a", adapter.a, {in_features, any_extent});
        checks.input("adapters.b", adapter.b, {adapter.a.extent(1), out_features});
        out_features = adapter.b.extent(1);
    }
    return out_features;
}

} // namespace lora_details
} // namespace MHR_ISA
} // namespace mhr
