#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <ggml-backend.h>
#include <ggml.h>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/hosts/merged_axes.hpp>

/// \file
/// ggml's tensors as tensors of the library: nothing is copied.

namespace mhr {
namespace ggml {
inline namespace MHR_ISA {

/// A tensor in memory that the processor can reach. The order of axes is reversed (ggml's ne[0] is
/// the last extent), and those beyond `Rank` are one with the first: [features, rows, sequences] of
/// ggml is as rank 2 [sequences rows, features]. Strides may be any of whole elements. (A tensor is
/// a handle: its own const says nothing of its elements.)
///
/// These are refused: other types than f32, f64, f16 and bf16, such as quantised ones; axes that
/// cannot become one; memory of a device, or none.
template <std::size_t Rank>
tensor_ref<Rank> ref_of(const ggml_tensor* tensor);

/// Returns a view of integers, such as ids: T is std::int32_t or std::int64_t, const or not. A
/// tensor of another type is refused.
template <class T, std::size_t Rank>
tensor_view<T, Rank> view_of(const ggml_tensor* tensor);

namespace ggml_details {

inline ggml_type type_of(element_type type) noexcept {
    switch (type) {
    case element_type::f32:
        return GGML_TYPE_F32;
    case element_type::f64:
        return GGML_TYPE_F64;
    case element_type::bf16:
        return GGML_TYPE_BF16;
    case element_type::f16:
        return GGML_TYPE_F16;
    }
    return GGML_TYPE_COUNT;
}

/// Converts a type that was checked.
inline element_type type_of(ggml_type type) noexcept {
    return type == GGML_TYPE_F64    ? element_type::f64
           : type == GGML_TYPE_BF16 ? element_type::bf16
           : type == GGML_TYPE_F16  ? element_type::f16
                                    : element_type::f32;
}

inline void check_type(argument_checks& checks, const char* argument, ggml_type type) {
    checks.expect(type_of(type_of(type)) == type, argument, "the type f32, f64, f16 or bf16",
                  ggml_type_name(type));
}

/// The axes of a tensor in our order: ggml counts the fastest first.
/// @{
inline index_t extent_of(const ggml_tensor& tensor, std::size_t axis) noexcept {
    return static_cast<index_t>(tensor.ne[GGML_MAX_DIMS - 1 - axis]);
}
inline index_t stride_of(const ggml_tensor& tensor, std::size_t axis, std::size_t size) noexcept {
    return static_cast<index_t>(tensor.nb[GGML_MAX_DIMS - 1 - axis] / size);
}
/// @}

/// The axes of a tensor, if it can be seen so.
template <std::size_t Rank>
tensor_axes<Rank> checked_axes(argument_checks& checks, const char* argument,
                               const ggml_tensor& tensor, std::size_t size) {
    for (const std::size_t bytes : tensor.nb)
        checks.expect(bytes % size == 0, argument,
                      joined("strides of whole elements of ", size, " bytes"),
                      joined(bytes, " bytes"));
    return host_details::merge_leading_axes<Rank>(
        checks, argument, GGML_MAX_DIMS, [&](std::size_t axis) { return extent_of(tensor, axis); },
        [&](std::size_t axis) { return stride_of(tensor, axis, size); });
}

/// Checks that a tensor has memory of the processor, or none yet.
inline void check_memory(argument_checks& checks, const char* argument, const ggml_tensor& tensor) {
    const ggml_backend_buffer_t buffer =
        tensor.view_src != nullptr ? tensor.view_src->buffer : tensor.buffer;
    checks.expect(buffer == nullptr || ggml_backend_buffer_is_host(buffer), argument,
                  "memory that the processor reads as it lies",
                  [&] { return std::string("that of ") + ggml_backend_buffer_name(buffer); });
}

inline void check_tensor(argument_checks& checks, const char* argument, const ggml_tensor* tensor) {
    checks.expect(tensor != nullptr, argument, "a tensor", "a null pointer");
}

/// A tensor at any memory, which is checked but for that.
template <std::size_t Rank>
tensor_ref<Rank> checked_ref_at(argument_checks& checks, const char* argument, void* memory,
                                const ggml_tensor* tensor) {
    check_tensor(checks, argument, tensor);
    if (checks.passed()) check_type(checks, argument, tensor->type);
    if (!checks.passed()) return {};
    const element_type type = type_of(tensor->type);
    return {checked_axes<Rank>(checks, argument, *tensor, size_of(type)), memory, type};
}

/// A tensor that may have no memory yet: for checks, which read none.
template <std::size_t Rank>
tensor_ref<Rank> shape_of(argument_checks& checks, const char* argument,
                          const ggml_tensor* tensor) {
    alignas(64) static std::byte somewhere[64];
    return checked_ref_at<Rank>(checks, argument, somewhere, tensor);
}

/// Returns a tensor that was checked when the node was made.
template <std::size_t Rank>
tensor_ref<Rank> unchecked_ref_of(const ggml_tensor& tensor) noexcept {
    const element_type type = type_of(tensor.type);
    const auto merged = host_details::merge_leading_axes<Rank>(
        GGML_MAX_DIMS, [&](std::size_t axis) { return extent_of(tensor, axis); },
        [&](std::size_t axis) { return stride_of(tensor, axis, size_of(type)); });
    return {merged.axes, tensor.data, type};
}

} // namespace ggml_details

template <std::size_t Rank>
tensor_ref<Rank> ref_of(const ggml_tensor* tensor) {
    argument_checks checks("ggml::ref_of");
    ggml_details::check_tensor(checks, "tensor", tensor);
    if (checks.passed()) ggml_details::check_memory(checks, "tensor", *tensor);
    checks.raise();
    const auto ref = ggml_details::checked_ref_at<Rank>(checks, "tensor", tensor->data, tensor);
    checks.input("tensor", const_tensor_ref<Rank>(ref));
    checks.raise();
    return ref;
}

template <class T, std::size_t Rank>
tensor_view<T, Rank> view_of(const ggml_tensor* tensor) {
    using V = std::remove_const_t<T>;
    static_assert(std::is_same_v<V, std::int32_t> || std::is_same_v<V, std::int64_t>,
                  "mhr: integers of ggml are std::int32_t or std::int64_t; elements have ref_of");
    constexpr ggml_type type = sizeof(V) == 4 ? GGML_TYPE_I32 : GGML_TYPE_I64;
    argument_checks checks("ggml::view_of");
    ggml_details::check_tensor(checks, "tensor", tensor);
    if (checks.passed()) ggml_details::check_memory(checks, "tensor", *tensor);
    checks.raise();
    checks.expect(tensor->type == type, "tensor", joined("the type ", ggml_type_name(type)),
                  ggml_type_name(tensor->type));
    const tensor_view<T, Rank> view(
        ggml_details::checked_axes<Rank>(checks, "tensor", *tensor, sizeof(T)),
        static_cast<T*>(tensor->data));
    checks.numbers("tensor", view, argument_checks::any_extents<Rank>());
    checks.raise();
    return view;
}

} // namespace MHR_ISA
} // namespace ggml
} // namespace mhr
