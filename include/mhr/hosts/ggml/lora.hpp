#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <ggml.h>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/hosts/ggml/tensors.hpp>
#include <mhr/lora/lora.hpp>

/// \file
/// A node for ggml's graphs: LoRA with an adapter for each request of a batch.
/// Whether a node can be made is a question, so that an engine may fall back to nodes of its own:
///
///     y = ggml_mul_mat(context, w, x);
///     if (mhr::ggml::why_not(y, x, adapters).empty())
///         y = mhr::ggml::lora_inplace(context, y, x, adapters);
///     else
///         y = ... // two products for each adapter
///
/// The nodes run on ggml's processor backend, which calls them from all of its threads: each takes
/// the share that (ith, nth) says, whatever the two are. They neither allocate nor wait. What they
/// add to is on the processor, too.

namespace mhr {
namespace ggml {

inline namespace MHR_ISA {
namespace ggml_details {
std::string add_adapter(const ggml_tensor* a, const ggml_tensor* b, lora& adapter);
} // namespace ggml_details
} // namespace MHR_ISA

/// The batch that the LoRA nodes of a graph share. It is read whenever the graph is computed, so
/// keep it until then. Between computations it may change to other tasks for the same number of
/// rows.
struct lora_batch {
    const batch_plan* plan = nullptr; ///< of the rows
    /// The adapter that each entry of the plan uses. If it is absent, entry g uses adapter g.
    tensor_view<const index_t, 1> adapter_of_entry{};
};

/// The adapters of one layer, as an engine has loaded them: each with its own rank, type and scale.
/// Requests that scale an adapter differently have different adapters of the same tensors. It is
/// read whenever the graph is computed, and so is to be kept, where it is, until then; between
/// computations it may change, to adapters of no larger rank.
class layer_adapters {
  public:
    /// Begins without adapters, for a layer of these features. The batch must outlive this.
    MHR_INLINE layer_adapters(const lora_batch& batch, index_t in_features, index_t out_features)
        : batch_(&batch), in_features_(in_features), out_features_(out_features) {}

    layer_adapters(const layer_adapters&) = delete; // nodes know its address
    layer_adapters& operator=(const layer_adapters&) = delete;

    /// Adds the adapter with the next number: a ne [in_features, rank] and b ne [rank,
    /// out_features], as ggml_mul_mat takes them and as LoRA files have them, which have their
    /// memory already. For an adapter that leaves this layer alone, both are null. What cannot be
    /// served is not refused here: `why_not` tells it.
    MHR_INLINE void add(const ggml_tensor* a, const ggml_tensor* b, double scale) {
        lora adapter{{nullptr, element_type::f32, {in_features_, 0}},
                     {nullptr, element_type::f32, {0, out_features_}},
                     scale};
        if (a != nullptr || b != nullptr) {
            std::string why = ggml_details::add_adapter(a, b, adapter);
            if (why_.empty()) why_ = std::move(why);
        }
        adapters_.push_back(adapter);
    }

    /// Removes all.
    MHR_INLINE void clear() {
        adapters_.clear();
        why_.clear();
    }

    /// The batch and layer that the adapters are for, and the adapters themselves.
    /// @{
    [[nodiscard]] MHR_INLINE const lora_batch& batch() const noexcept { return *batch_; }
    [[nodiscard]] MHR_INLINE const std::vector<lora>& adapters() const noexcept {
        return adapters_;
    }
    [[nodiscard]] MHR_INLINE index_t in_features() const noexcept { return in_features_; }
    [[nodiscard]] MHR_INLINE index_t out_features() const noexcept { return out_features_; }
    /// @}

    /// Why one of the adapters cannot be served, or nothing.
    [[nodiscard]] MHR_INLINE const std::string& why() const noexcept { return why_; }

  private:
    const lora_batch* batch_;
    index_t in_features_, out_features_;
    std::vector<lora> adapters_{};
    std::string why_{};
};

inline namespace MHR_ISA {

/// Why lora_inplace would refuse these arguments, or nothing. An engine asks when it makes a graph,
/// and may ask again when adapters or tasks have changed.
inline std::string why_not(const ggml_tensor* base, const ggml_tensor* x,
                           const layer_adapters& adapters);

/// A node that adds to `base`, in place, the output of each row's adapter: lora_forward. The result
/// is a view of `base`, which has changed for whoever else reads it after this node.
///
/// base is ne [out_features, rows ..] and x ne [in_features, rows ..], with the rows of the plan in
/// ne[1] and beyond; both may be views with any strides. `hidden` of lora_forward is a tensor of
/// the graph, so that ggml gives it memory. All types are those of ref_of, and may differ; sums are
/// f64 if one of them is, else f32.
///
/// These are refused: types that are not those of ref_of, shapes that do not fit, memory of a
/// device, a number of an adapter that there is not, overlapping elements of base. What batch and
/// adapters become later is checked by each computation, where an error ends the program by
/// ggml_abort, as ggml's own do: its threads cannot pass one on. Dense columns of a and dense rows
/// of b are fastest; files have the columns of b dense.
inline ggml_tensor* lora_inplace(ggml_context* context, ggml_tensor* base, ggml_tensor* x,
                                 const layer_adapters& adapters);

namespace ggml_details {

inline std::string add_adapter(const ggml_tensor* a, const ggml_tensor* b, lora& adapter) {
    argument_checks checks("ggml::layer_adapters::add");
    const auto add = [&](const char* argument, const ggml_tensor* tensor) -> const_tensor_ref<2> {
        check_tensor(checks, argument, tensor);
        if (checks.passed()) check_memory(checks, argument, *tensor);
        if (!checks.passed()) return {};
        const const_tensor_ref<2> ref =
            checked_ref_at<2>(checks, argument, tensor->data, tensor).transpose(0, 1);
        checks.input(argument, ref);
        return ref;
    };
    const lora added{add("a", a), add("b", b), adapter.scale};
    if (checks.passed()) adapter = added;
    return std::move(checks).why();
}

/// The adapters as the entries use them.
inline lora_list list_of(const layer_adapters& adapters) noexcept {
    static constexpr index_t none = 0;
    const auto& [plan, adapter_of_entry] = adapters.batch();
    const auto count = static_cast<index_t>(adapters.adapters().size());
    // Where there are no entries, a map of none of them has no memory, and is not absent for that.
    if (plan->entries() == 0) return {adapters.adapters().data(), count, {&none, {0}}};
    return {adapters.adapters().data(), count, adapter_of_entry};
}

inline void check_plan(argument_checks& checks, const batch_plan* plan) {
    checks.expect(plan != nullptr, "batch.plan", "a plan", "a null pointer");
}

/// The rows that a node reads and adds to.
struct node_rows {
    tensor_ref<2> x, base;

    static node_rows of(argument_checks& checks, const ggml_tensor* base, const ggml_tensor* x) {
        const node_rows rows{shape_of<2>(checks, "x", x), shape_of<2>(checks, "base", base)};
        if (checks.passed()) check_memory(checks, "base", *base);
        return rows;
    }

    void check_rows(argument_checks& checks, const batch_plan& plan, index_t in_features,
                    index_t out_features) const {
        checks.input("x", const_tensor_ref<2>(x), {plan.rows(), in_features});
        checks.output("base", base, {plan.rows(), out_features});
    }
};

inline std::string why_not(const char* function, const ggml_tensor* base, const ggml_tensor* x,
                           const layer_adapters& adapters) {
    if (!adapters.why().empty()) return adapters.why();
    argument_checks checks(function);
    const batch_plan* const plan = adapters.batch().plan;
    check_plan(checks, plan);
    const node_rows rows = node_rows::of(checks, base, x);
    if (!checks.passed()) return std::move(checks).why();
    rows.check_rows(checks, *plan, adapters.in_features(), adapters.out_features());
    for (const lora& adapter : adapters.adapters()) { // those, too, that no entry uses yet
        checks.input("adapters.a", adapter.a, {adapters.in_features(), any_extent});
        checks.input("adapters.b", adapter.b, {adapter.a.extent(1), adapters.out_features()});
    }
    lora_details::check_adapters(checks, *plan, list_of(adapters), adapters.in_features());
    return std::move(checks).why();
}

inline void raise_unless_empty(const std::string& why) {
    if (!why.empty()) raise(why);
}

/// Ends the program where `f` reports an error: nobody could catch it in ggml's threads.
template <class Function>
void run_or_abort(Function&& f) noexcept {
#if MHR_EXCEPTIONS
    try {
        f();
    } catch (const error& reported) {
        GGML_ABORT("%s", reported.what());
    }
#else
    f();
#endif
}

/// Computes a LoRA node, whose last source is `hidden`.
inline void compute(const ggml_tensor& y, const share_executor& executor, const batch_plan* plan,
                    const lora_list& adapters, const ggml_tensor& hidden) {
    lora_forward({*plan, executor}, adapters, unchecked_ref_of<2>(*y.src[1]),
                 unchecked_ref_of<2>(y), {unchecked_ref_of<2>(hidden)});
}
inline void compute_lora(ggml_tensor* y, int ith, int nth, void* adapters) noexcept {
    run_or_abort([&] {
        const auto& layer = *static_cast<const layer_adapters*>(adapters);
        raise_unless_empty(layer.why());
        argument_checks checks("ggml::lora_inplace");
        check_plan(checks, layer.batch().plan);
        checks.raise();
        compute(*y, {ith, nth}, layer.batch().plan, list_of(layer), *y->src[2]);
    });
}
/// Makes the tensor `hidden` of a node.
inline ggml_tensor* new_hidden(ggml_context* context, element_type sums, index_t rank,
                               index_t rows) {
    return ggml_new_tensor_2d(context, type_of(sums), (std::max)(rank, index_t(1)), rows);
}

} // namespace ggml_details

inline std::string why_not(const ggml_tensor* base, const ggml_tensor* x,
                           const layer_adapters& adapters) {
    return ggml_details::why_not("ggml::lora_inplace", base, x, adapters);
}

inline ggml_tensor* lora_inplace(ggml_context* context, ggml_tensor* base, ggml_tensor* x,
                                 const layer_adapters& adapters) {
    ggml_details::raise_unless_empty(why_not(base, x, adapters));
    element_type sums = sums_of(ggml_details::type_of(base->type), ggml_details::type_of(x->type));
    index_t rank = 0;
    for (const lora& adapter : adapters.adapters()) {
        sums = sums_of(sums, sums_of(adapter.a.type(), adapter.b.type()));
        rank = (std::max)(rank, adapter.a.extent(1));
    }
    ggml_tensor* sources[] = {
        x, ggml_details::new_hidden(context, sums, rank, adapters.batch().plan->rows())};
    return ggml_custom_inplace(context, base, sources, 2, ggml_details::compute_lora,
                               GGML_N_TASKS_MAX, const_cast<layer_adapters*>(&adapters));
}

} // namespace MHR_ISA
} // namespace ggml
} // namespace mhr
