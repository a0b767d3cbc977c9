#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <ggml.h>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/adapters/lora.hpp>
#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/merged_axes.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/mixing/mix.hpp>
#include <mhr/simd/conversion.hpp>

/// \file
/// ggml's tensors as views, and nodes for its graphs: LoRA with an adapter for each task of a
/// batch, and the mixing of those adapters. A graph of a routed layer is
///
///     y = ggml_mul_mat(context, w, x);
///     a = mhr::ggml_mix_lora_a(context, weights, modules_a);
///     b = mhr::ggml_mix_lora_b(context, weights, modules_b);
///     y = mhr::ggml_lora_inplace(context, y, x, a, b, &batch);
///
/// The nodes run on ggml's processor backend, which calls them from all of its threads: each takes
/// the share that (ith, nth) says, whatever the two are. They neither allocate nor wait.

namespace mhr {
inline namespace MHR_ISA {

/// An element of GGML_TYPE_F16. (ggml's own type for it is an integer.)
struct ggml_f16 {
    ggml_fp16_t bits; ///< as ggml stores it

    /// Whatever the memory holds.
    ggml_f16() = default;
    /// Rounded.
    explicit ggml_f16(float value) noexcept : bits(ggml_fp32_to_fp16(value)) {}
    /// Exact.
    operator float() const noexcept { return ggml_fp16_to_fp32(bits); } // NOLINT: implicit
};

/// An element of GGML_TYPE_BF16. (ggml's own type for it converts by functions alone.)
struct ggml_bf16 {
    ggml_bf16_t bits; ///< as ggml stores it

    /// Whatever the memory holds.
    ggml_bf16() = default;
    /// Rounded.
    explicit ggml_bf16(float value) noexcept : bits(ggml_fp32_to_bf16(value)) {}
    /// Exact.
    operator float() const noexcept { return ggml_bf16_to_fp32(bits); } // NOLINT: implicit
};

namespace detail {

/// The type of tensors that have elements of type T: of a 16-bit class, whatever it is called, that
/// which means the same by its bits. GGML_TYPE_COUNT if there is none.
template <class T>
ggml_type ggml_type_of() noexcept {
    if constexpr (std::is_same_v<T, float>) return GGML_TYPE_F32;
    if constexpr (std::is_same_v<T, double>) return GGML_TYPE_F64;
    if constexpr (std::is_same_v<T, std::int32_t>) return GGML_TYPE_I32;
    if constexpr (std::is_same_v<T, std::int64_t>) return GGML_TYPE_I64;
    if constexpr (sizeof(T) == 2 && !std::is_integral_v<T>) {
        if (format_of<T>() == format::f16) return GGML_TYPE_F16;
        if (format_of<T>() == format::bf16) return GGML_TYPE_BF16;
    }
    return GGML_TYPE_COUNT;
}

/// The axes of a tensor in the order of views: ggml counts the fastest first.
template <class T, std::size_t Rank>
merged_axes<Rank> axes_of(const ggml_tensor& tensor) noexcept {
    const auto from_last = [](std::size_t axis) { return GGML_MAX_DIMS - 1 - axis; };
    return merge_leading_axes<Rank>(
        GGML_MAX_DIMS,
        [&](std::size_t axis) { return static_cast<index_t>(tensor.ne[from_last(axis)]); },
        [&](std::size_t axis) {
            return static_cast<index_t>(tensor.nb[from_last(axis)] / sizeof(T));
        });
}

/// The view, unchecked, at any memory.
template <class T, std::size_t Rank>
tensor_view<T, Rank> view_at(void* memory, const ggml_tensor& tensor) noexcept {
    const auto axes = axes_of<std::remove_const_t<T>, Rank>(tensor);
    return {static_cast<T*>(memory), axes.extents, axes.strides};
}
template <class T, std::size_t Rank>
tensor_view<T, Rank> unchecked_view_of(const ggml_tensor* tensor) noexcept {
    return view_at<T, Rank>(tensor->data, *tensor);
}

/// Checks that a tensor can be seen as a view of T.
template <class T, std::size_t Rank>
void require_viewable(const char* function, const char* argument, const ggml_tensor* tensor) {
    require_that(
        tensor != nullptr, function, argument, [] { return "a tensor"; },
        [] { return "a null pointer"; });
    require_that(
        tensor->type == ggml_type_of<T>(), function, argument,
        [] {
            const ggml_type type = ggml_type_of<T>();
            return std::string("the type ") +
                   (type == GGML_TYPE_COUNT ? "of its elements" : ggml_type_name(type));
        },
        [&] { return std::string(ggml_type_name(tensor->type)); });
    const auto text_of = [](const auto(&numbers)[GGML_MAX_DIMS]) {
        std::array<index_t, GGML_MAX_DIMS> all;
        for (std::size_t axis = 0; axis < all.size(); ++axis)
            all[axis] = static_cast<index_t>(numbers[axis]);
        return to_text(all);
    };
    const auto strides = [&] { return "nb " + text_of(tensor->nb); };
    for (std::size_t axis = 0; axis < GGML_MAX_DIMS; ++axis)
        require_that(
            tensor->nb[axis] % sizeof(T) == 0, function, argument,
            [] { return "strides of whole elements of " + std::to_string(sizeof(T)) + " bytes"; },
            strides);
    require_that(
        axes_of<T, Rank>(*tensor).evenly_spaced, function, argument,
        [] { return "elements spaced evenly, to be seen as " + std::to_string(Rank) + " axes"; },
        [&] { return strides() + " with ne " + text_of(tensor->ne); });
}

} // namespace detail

/// The view of a tensor in memory that the processor can reach. The order of axes is reversed
/// (ggml's ne[0] is the last extent), and those beyond `Rank` are one with the first: [features,
/// rows, sequences] of ggml is as rank 2 [sequences rows, features].
///
/// T is float, double, ggml_f16, ggml_bf16, any other 16-bit class of one of these two formats, or
/// for ids std::int32_t or std::int64_t; const or not (a tensor is a handle: its own const says
/// nothing of its elements). Any strides of whole elements.
///
/// Errors: a tensor of another type, such as a quantised one; axes that cannot become one.
template <class T, std::size_t Rank>
tensor_view<T, Rank> view_of(const ggml_tensor* tensor) {
    detail::require_viewable<std::remove_const_t<T>, Rank>("view_of", "tensor", tensor);
    return detail::unchecked_view_of<T, Rank>(tensor);
}

/// What the LoRA nodes of a graph have in common: read whenever the graph is computed, and so to be
/// kept until then. Between computations it may change (other tasks for the same number of rows).
struct ggml_lora_batch {
    const batch_plan* plan = nullptr; ///< of the rows
    double scale = 1;                 ///< on x A B
    /// As in lora_batch: which adapter each entry uses, if they are a pool.
    tensor_view<const index_t, 1> slot_of_entry{};
};

namespace detail {

template <class X, class P, class Y>
void compute_ggml_lora(ggml_tensor* y, int ith, int nth, void* batch) noexcept {
    using A = accumulator_t<X, P>;
    const auto& [plan, scale, slot_of_entry] = *static_cast<const ggml_lora_batch*>(batch);
    const lora_batch<const P> adapters{unchecked_view_of<const P, 3>(y->src[2]).transpose(1, 2),
                                       unchecked_view_of<const P, 3>(y->src[3]).transpose(1, 2),
                                       slot_of_entry};
    lora_forward(share_executor{ith, nth}, *plan, unchecked_view_of<const X, 2>(y->src[1]),
                 adapters, scale, unchecked_view_of<Y, 2>(y), unchecked_view_of<A, 2>(y->src[4]));
}

template <class M, class Y>
void compute_ggml_mixed_a(ggml_tensor* mixed, int ith, int nth, void*) noexcept {
    const auto modules = unchecked_view_of<const M, 4>(mixed->src[1]);
    mix_forward(share_executor{ith, nth}, unchecked_view_of<const float, 3>(mixed->src[0]), modules,
                blocks_of_a(unchecked_view_of<Y, 3>(mixed).transpose(1, 2), modules.extent(0)));
}
template <class M, class Y>
void compute_ggml_mixed_b(ggml_tensor* mixed, int ith, int nth, void*) noexcept {
    const auto modules = unchecked_view_of<const M, 4>(mixed->src[1]);
    mix_forward(share_executor{ith, nth}, unchecked_view_of<const float, 3>(mixed->src[0]), modules,
                blocks_of_b(unchecked_view_of<Y, 3>(mixed), modules.extent(0)));
}

/// The view of a tensor that has no memory yet, for checks, which read none.
template <class T, std::size_t Rank>
tensor_view<T, Rank> shape_view_of(const char* function, const char* argument,
                                   const ggml_tensor* tensor) {
    require_viewable<std::remove_const_t<T>, Rank>(function, argument, tensor);
    alignas(64) static std::byte somewhere[64];
    return view_at<T, Rank>(somewhere, *tensor);
}

/// A node of the mixtures [entries, rows, columns] of `modules` by the heads of `weights`.
template <class M, class Y>
ggml_tensor* make_mixing_node(const char* function, ggml_context* context, ggml_tensor* weights,
                              ggml_tensor* modules, index_t rows, index_t columns,
                              ggml_custom_op_t compute) {
    const auto shape = shape_view_of<const float, 3>(function, "weights", weights).extents();
    require_input(function, "modules", shape_view_of<const M, 4>(function, "modules", modules),
                  {shape[1], shape[2], any_extent, any_extent});
    ggml_tensor* sources[] = {weights, modules};
    return ggml_custom_4d(context, ggml_type_of<Y>(), columns, rows, shape[0], 1, sources, 2,
                          compute, GGML_N_TASKS_MAX, nullptr);
}

} // namespace detail

/// A node that adds to `base`, in place, the output of each row's adapter: lora_forward. The result
/// is a view of `base`, which has changed for whoever else reads it after this node.
///
/// base, of elements Y, is ne [out_features, rows ..], and x, of X, ne [in_features, rows ..], with
/// the rows of batch->plan in ne[1] and beyond; a ne [in_features, rank, entries or slots] and
/// b ne [rank, out_features, entries or slots], of P, are as ggml_mul_mat takes them and as LoRA
/// files have them. All of these may be views with any strides. `hidden` of lora_forward is a
/// tensor of the graph, so that ggml gives it memory.
///
/// Fastest are dense columns of a and, other than in those files, rows of b: see ggml_mix_lora_b.
///
/// Errors: a type; a shape; a slot that is not in the pool; overlapping elements of base. What
/// `batch` becomes later is checked by each computation, where an error ends the program, as ggml's
/// own do: its threads cannot pass one on.
template <class X = float, class P = float, class Y = float>
ggml_tensor* ggml_lora_inplace(ggml_context* context, ggml_tensor* base, ggml_tensor* x,
                               ggml_tensor* a, ggml_tensor* b, const ggml_lora_batch* batch) {
    constexpr const char* function = "ggml_lora_inplace";
    using A = accumulator_t<X, P>;
    require_that(
        batch != nullptr && batch->plan != nullptr, function, "batch",
        [] { return "a batch with a plan"; }, [] { return "a null pointer"; });
    const batch_plan& plan = *batch->plan;
    const auto x_view = detail::shape_view_of<const X, 2>(function, "x", x);
    const lora_batch<const P> adapters{
        detail::shape_view_of<const P, 3>(function, "a", a).transpose(1, 2),
        detail::shape_view_of<const P, 3>(function, "b", b).transpose(1, 2), batch->slot_of_entry};
    detail::check_lora(function, plan, x_view, adapters);
    require_output(function, "base", detail::shape_view_of<Y, 2>(function, "base", base),
                   {plan.rows(), adapters.b.extent(2)});
    ggml_tensor* const hidden =
        ggml_new_tensor_2d(context, detail::ggml_type_of<A>(), adapters.a.extent(2), plan.rows());
    ggml_tensor* sources[] = {x, a, b, hidden};
    return ggml_custom_inplace(context, base, sources, 4, detail::compute_ggml_lora<X, P, Y>,
                               GGML_N_TASKS_MAX, const_cast<ggml_lora_batch*>(batch));
}

/// Nodes that mix the modules of an inventory into the a and b of ggml_lora_inplace, one for each
/// entry of `weights`: mix_forward. Routing itself is a few of ggml's own operators.
///
/// weights, of f32, ne [modules, heads, entries]; modules, of elements M, as PEFT stores them: of a
/// ne [rank, in_features / heads, modules, heads], of b ne [out_features / heads, rank, modules,
/// heads]; results of Y. That of b is the transpose of a tensor with dense rows, which
/// ggml_lora_inplace reads fastest.
///
/// Errors: a type; a shape.
/// @{
template <class M = float, class Y = float>
ggml_tensor* ggml_mix_lora_a(ggml_context* context, ggml_tensor* weights, ggml_tensor* modules) {
    constexpr const char* function = "ggml_mix_lora_a";
    const auto shape = detail::shape_view_of<const M, 4>(function, "modules", modules).extents();
    return detail::make_mixing_node<M, Y>(function, context, weights, modules, shape[3],
                                          shape[0] * shape[2], detail::compute_ggml_mixed_a<M, Y>);
}
template <class M = float, class Y = float>
ggml_tensor* ggml_mix_lora_b(ggml_context* context, ggml_tensor* weights, ggml_tensor* modules) {
    constexpr const char* function = "ggml_mix_lora_b";
    const auto shape = detail::shape_view_of<const M, 4>(function, "modules", modules).extents();
    ggml_tensor* const rows =
        detail::make_mixing_node<M, Y>(function, context, weights, modules, shape[2],
                                       shape[0] * shape[3], detail::compute_ggml_mixed_b<M, Y>);
    return ggml_transpose(context, rows);
}
/// @}

} // namespace MHR_ISA
} // namespace mhr
