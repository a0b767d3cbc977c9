#pragma once

#include <string>
#include <utility>

#include <ggml.h>

#include <mhr/batch/batch_plan.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/hosts/ggml/lora.hpp>
#include <mhr/hosts/ggml/tensors.hpp>
#include <mhr/lora/lora.hpp>
#include <mhr/lora/mixing.hpp>

/// \file
/// Nodes for ggml's graphs: the modules of a layer mixed for each entry of a plan, and LoRA with
/// what was mixed. Of these, too, `why_not` tells whether they can be made.

namespace mhr {
namespace ggml {

/// The batch that the nodes of routed layers share. Keep it as long as a lora_batch. If its tasks
/// change, their number must stay the same.
struct routed_batch {
    const batch_plan* plan = nullptr; ///< of the rows
    double scale = 1;                 ///< on x A B
};

/// Adapters that were mixed for each entry of a plan, or other ones of one rank: tensors of the
/// graph.
struct mixed_tensors {
    ggml_tensor* a; ///< ne [in_features, rank, entries]
    ggml_tensor* b; ///< ne [rank, out_features, entries]
};

/// An inventory as PEFT stores it, and the weights with which its modules are mixed for each entry
/// of a plan (routing itself is a few of ggml's own operators): tensors of the graph.
struct routed_tensors {
    ggml_tensor* weights; ///< ne [modules, heads, entries]
    ggml_tensor* a;       ///< ne [rank, in_features / heads, modules, heads]
    ggml_tensor* b;       ///< ne [out_features / heads, rank, modules, heads]
};

inline namespace MHR_ISA {

/// These do what why_not and lora_inplace of hosts/ggml/lora.hpp do, for adapters that are tensors
/// of the graph: entry g of the plan uses a[g] and b[g].
/// @{
inline std::string why_not(const ggml_tensor* base, const ggml_tensor* x,
                           const mixed_tensors& adapters, const routed_batch& batch);
/// Makes the node.
inline ggml_tensor* mixed_lora_inplace(ggml_context* context, ggml_tensor* base, ggml_tensor* x,
                                       const mixed_tensors& adapters, const routed_batch& batch);
/// @}

/// These serve a routed layer, by nodes that mix its modules for each entry of the plan and one
/// that adds the outputs.
/// @{
inline std::string why_not(const ggml_tensor* base, const ggml_tensor* x,
                           const routed_tensors& layer, const routed_batch& batch);
/// Makes the nodes.
inline ggml_tensor* routed_lora_inplace(ggml_context* context, ggml_tensor* base, ggml_tensor* x,
                                        const routed_tensors& layer, const routed_batch& batch);
/// @}

/// Nodes that mix the modules of an inventory, `layer.a` or `layer.b` of routed_tensors, into the a
/// and b of mixed_tensors, one for each entry of `weights`: mix_forward. `type` is that of the
/// result. That of b is the transpose of a tensor with dense rows, which LoRA reads fastest.
///
/// These are refused: types that are not those of ref_of; shapes that do not fit.
/// @{
inline ggml_tensor* mix_lora_a(ggml_context* context, ggml_tensor* weights, ggml_tensor* modules,
                               ggml_type type = GGML_TYPE_F32);
/// Mixes b.
inline ggml_tensor* mix_lora_b(ggml_context* context, ggml_tensor* weights, ggml_tensor* modules,
                               ggml_type type = GGML_TYPE_F32);
/// @}

namespace ggml_details {

inline std::string why_not(const char* function, const ggml_tensor* base, const ggml_tensor* x,
                           const mixed_tensors& adapters, const routed_batch& batch) {
    argument_checks checks(function);
    check_plan(checks, batch.plan);
    const node_rows rows = node_rows::of(checks, base, x);
    const tensor_ref<3> a = shape_of<3>(checks, "adapters.a", adapters.a);
    const tensor_ref<3> b = shape_of<3>(checks, "adapters.b", adapters.b);
    if (!checks.passed()) return std::move(checks).why();
    const index_t entries = batch.plan->entries();
    checks.input("adapters.a", const_tensor_ref<3>(a), {entries, any_extent, any_extent});
    checks.input("adapters.b", const_tensor_ref<3>(b), {entries, any_extent, a.extent(1)});
    rows.check_rows(checks, *batch.plan, a.extent(2), b.extent(1));
    return std::move(checks).why();
}

inline std::string why_not(const char* function, const ggml_tensor* base, const ggml_tensor* x,
                           const routed_tensors& layer, const routed_batch& batch) {
    argument_checks checks(function);
    check_plan(checks, batch.plan);
    const node_rows rows = node_rows::of(checks, base, x);
    const tensor_ref<3> weights = shape_of<3>(checks, "layer.weights", layer.weights);
    const tensor_ref<4> a = shape_of<4>(checks, "layer.a", layer.a);
    const tensor_ref<4> b = shape_of<4>(checks, "layer.b", layer.b);
    if (!checks.passed()) return std::move(checks).why();
    checks.input("layer.weights", const_tensor_ref<3>(weights),
                 {batch.plan->entries(), any_extent, any_extent});
    checks.input("layer.a", const_tensor_ref<4>(a),
                 {weights.extent(1), weights.extent(2), any_extent, any_extent});
    checks.input("layer.b", const_tensor_ref<4>(b),
                 {weights.extent(1), weights.extent(2), a.extent(3), any_extent});
    rows.check_rows(checks, *batch.plan, a.extent(0) * a.extent(2), b.extent(0) * b.extent(3));
    return std::move(checks).why();
}

inline lora_list list_of(const const_tensor_ref<3>& a, const const_tensor_ref<3>& b,
                         double scale) noexcept {
    return {a.transpose(1, 2), b.transpose(1, 2), scale};
}

inline void compute_mixed_lora(ggml_tensor* y, int ith, int nth, void* batch) noexcept {
    run_or_abort([&] {
        const auto& [plan, scale] = *static_cast<const routed_batch*>(batch);
        argument_checks checks("ggml::mixed_lora_inplace");
        check_plan(checks, plan);
        checks.raise();
        compute(*y, {ith, nth}, plan,
                list_of(unchecked_ref_of<3>(*y->src[2]), unchecked_ref_of<3>(*y->src[3]), scale),
                *y->src[4]);
    });
}

/// A node of the mixtures [entries, rows, columns] of `modules` by the heads of `weights`.
inline ggml_tensor* new_mixture(argument_checks& checks, ggml_context* context,
                                ggml_tensor* weights, ggml_tensor* modules, ggml_type type,
                                bool of_a) {
    check_type(checks, "type", type);
    const tensor_ref<3> w = shape_of<3>(checks, "weights", weights);
    const tensor_ref<4> m = shape_of<4>(checks, "modules", modules);
    checks.input("weights", const_tensor_ref<3>(w));
    checks.input("modules", const_tensor_ref<4>(m),
                 {w.extent(1), w.extent(2), any_extent, any_extent});
    checks.raise();
    const ggml_custom_op_t compute = [](ggml_tensor* mixed, int ith, int nth, void* kind) {
        run_or_abort([&] {
            const auto matrices = unchecked_ref_of<3>(*mixed);
            const auto inventory = unchecked_ref_of<4>(*mixed->src[1]);
            // The matrices are [entries, rank, in_features] for a and [entries, rank, out_features]
            // for b.
            const auto of_heads = matrices.split(2, inventory.extent(0)).transpose(1, 2);
            mix_forward(share_executor{ith, nth}, unchecked_ref_of<3>(*mixed->src[0]), inventory,
                        kind != nullptr ? of_heads.transpose(2, 3) : of_heads);
        });
    };
    static constexpr char kind_a = 'a';
    ggml_tensor* sources[] = {weights, modules};
    return ggml_custom_4d(context, type, m.extent(0) * m.extent(of_a ? 2 : 3),
                          m.extent(of_a ? 3 : 2), w.extent(0), 1, sources, 2, compute,
                          GGML_N_TASKS_MAX, of_a ? const_cast<char*>(&kind_a) : nullptr);
}

} // namespace ggml_details

inline std::string why_not(const ggml_tensor* base, const ggml_tensor* x,
                           const mixed_tensors& adapters, const routed_batch& batch) {
    return ggml_details::why_not("ggml::mixed_lora_inplace", base, x, adapters, batch);
}

inline ggml_tensor* mixed_lora_inplace(ggml_context* context, ggml_tensor* base, ggml_tensor* x,
                                       const mixed_tensors& adapters, const routed_batch& batch) {
    ggml_details::raise_unless_empty(why_not(base, x, adapters, batch));
    const auto type = [](const ggml_tensor* tensor) { return ggml_details::type_of(tensor->type); };
    const element_type sums =
        sums_of(sums_of(type(base), type(x)), sums_of(type(adapters.a), type(adapters.b)));
    ggml_tensor* sources[] = {
        x, adapters.a, adapters.b,
        ggml_details::new_hidden(context, sums, adapters.b->ne[0], batch.plan->rows())};
    return ggml_custom_inplace(context, base, sources, 4, ggml_details::compute_mixed_lora,
                               GGML_N_TASKS_MAX, const_cast<routed_batch*>(&batch));
}

inline std::string why_not(const ggml_tensor* base, const ggml_tensor* x,
                           const routed_tensors& layer, const routed_batch& batch) {
    return ggml_details::why_not("ggml::routed_lora_inplace", base, x, layer, batch);
}

inline ggml_tensor* routed_lora_inplace(ggml_context* context, ggml_tensor* base, ggml_tensor* x,
                                        const routed_tensors& layer, const routed_batch& batch) {
    ggml_details::raise_unless_empty(why_not(base, x, layer, batch));
    return mixed_lora_inplace(
        context, base, x,
        {mix_lora_a(context, layer.weights, layer.a), mix_lora_b(context, layer.weights, layer.b)},
        batch);
}

inline ggml_tensor* mix_lora_a(ggml_context* context, ggml_tensor* weights, ggml_tensor* modules,
                               ggml_type type) {
    argument_checks checks("ggml::mix_lora_a");
    return ggml_details::new_mixture(checks, context, weights, modules, type, true);
}

inline ggml_tensor* mix_lora_b(ggml_context* context, ggml_tensor* weights, ggml_tensor* modules,
                               ggml_type type) {
    argument_checks checks("ggml::mix_lora_b");
    return ggml_transpose(
        context, ggml_details::new_mixture(checks, context, weights, modules, type, false));
}

} // namespace MHR_ISA
} // namespace ggml
} // namespace mhr
