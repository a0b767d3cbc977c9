#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Tensors of LibTorch as tensors of the library and back, without a copy; and LibTorch's threads.

namespace mhr {

/// LibTorch's 16-bit classes hold the bits of ours.
/// @{
template <>
struct element_type_of<c10::Half> : element_type_constant<element_type::f16> {};
/// c10::BFloat16 holds bf16.
template <>
struct element_type_of<c10::BFloat16> : element_type_constant<element_type::bf16> {};
/// @}

namespace torch {
inline namespace MHR_ISA {

/// LibTorch's threads, as many as `at::get_num_threads()` says; inside of its parallel regions, the
/// calling thread alone. Compile with OpenMP, as LibTorch asks of all who call at::parallel_for: it
/// runs everything in the calling thread otherwise.
struct executor {
    /// Runs them.
    void operator()(index_t parts, parallel_body body) const {
        at::parallel_for(0, parts, 1, [&](index_t first, index_t last) {
            for (index_t part = first; part < last; ++part)
                body(part);
        });
    }
};

/// The memory of a tensor, with its element type and strides, as in `const_ref_of<2>(x, "x")`.
/// `argument` is what messages call it. The caller keeps the tensor alive; an undefined tensor
/// gives the absent one. Autograd does not see what is written.
///
/// These are refused: elements that are not Double, Float, BFloat16 or Half; another number of
/// dimensions than `Rank`; a tensor that is not on the CPU, that is sparse, or that is negated or
/// conjugated lazily.
/// @{
template <std::size_t Rank>
const_tensor_ref<Rank> const_ref_of(const at::Tensor& tensor, const char* argument = "tensor");
template <std::size_t Rank>
tensor_ref<Rank> ref_of(const at::Tensor& tensor, const char* argument = "tensor");
/// @}

/// Returns a view of elements of type T, const or not, such as the std::int64_t of task ids. A
/// tensor of another type is refused as well.
template <class T, std::size_t Rank>
tensor_view<T, Rank> view_of(const at::Tensor& tensor, const char* argument = "tensor");

/// Returns a LibTorch tensor over the same memory. The host keeps that alive, and leaves the tensor
/// of constant elements unchanged; the absent tensor gives an undefined one. A negative stride,
/// which LibTorch does not have, is refused.
/// @{
template <class Void, std::size_t Rank>
at::Tensor tensor_of(const basic_tensor_ref<Void, Rank>& tensor);
template <class T, std::size_t Rank>
at::Tensor tensor_of(const tensor_view<T, Rank>& view);
/// @}

namespace tensor_details {

/// Checks that the memory of a tensor can be read as it lies.
inline void check_memory(argument_checks& checks, const char* argument, const at::Tensor& tensor) {
    const auto expected = [] { return std::string("a strided tensor on the CPU"); };
    checks.expect(tensor.device().is_cpu(), argument, expected,
                  [&] { return tensor.device().str(); });
    checks.expect(tensor.layout() == at::kStrided, argument, expected, "another layout");
    checks.expect(!tensor.is_neg() && !tensor.is_conj(), argument, expected,
                  "a lazy negation or conjugation (resolve_neg and resolve_conj do it)");
}

inline void check_defined(argument_checks& checks, const char* argument, const at::Tensor& tensor) {
    checks.expect(tensor.defined(), argument, "a tensor", "an undefined one");
}

inline at::ScalarType scalar_type_of(element_type type) noexcept {
    switch (type) {
    case element_type::f64:
        return at::kDouble;
    case element_type::bf16:
        return at::kBFloat16;
    case element_type::f16:
        return at::kHalf;
    case element_type::f32:
        break;
    }
    return at::kFloat;
}

/// The element type of a tensor, if it is one of ours.
inline element_type checked_type(argument_checks& checks, const char* argument,
                                 const at::Tensor& tensor) {
    for (element_type type :
         {element_type::f32, element_type::f64, element_type::bf16, element_type::f16})
        if (tensor.scalar_type() == scalar_type_of(type)) return type;
    checks.expect(false, argument, "elements of type Double, Float, BFloat16 or Half",
                  at::toString(tensor.scalar_type()));
    return {};
}

template <std::size_t Rank>
tensor_axes<Rank> checked_axes(argument_checks& checks, const char* argument,
                               const at::Tensor& tensor) {
    check_memory(checks, argument, tensor);
    checks.expect(tensor.dim() == static_cast<std::int64_t>(Rank), argument,
                  joined(Rank, " dimensions"), tensor.dim());
    tensor_axes<Rank> axes;
    if (!checks.passed()) return axes;
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        axes.extents[axis] = static_cast<index_t>(tensor.sizes()[axis]);
        axes.strides[axis] = static_cast<index_t>(tensor.strides()[axis]);
    }
    return axes;
}

/// ref_of among other checks: the result is of use if they passed.
template <std::size_t Rank>
tensor_ref<Rank> checked_ref(argument_checks& checks, const char* argument,
                             const at::Tensor& tensor) {
    if (!tensor.defined() || !checks.passed()) return {};
    const element_type type = checked_type(checks, argument, tensor);
    const auto axes = checked_axes<Rank>(checks, argument, tensor);
    if (!checks.passed()) return {};
    return {axes, tensor.data_ptr(), type};
}

/// view_of among other checks.
template <class T, std::size_t Rank>
tensor_view<T, Rank> checked_view(argument_checks& checks, const char* argument,
                                  const at::Tensor& tensor) {
    if (!tensor.defined() || !checks.passed()) return {};
    constexpr at::ScalarType type = c10::CppTypeToScalarType<std::remove_const_t<T>>::value;
    checks.expect(tensor.scalar_type() == type, argument,
                  joined("elements of type ", at::toString(type)),
                  at::toString(tensor.scalar_type()));
    const auto axes = checked_axes<Rank>(checks, argument, tensor);
    if (!checks.passed()) return {};
    return {axes, static_cast<T*>(tensor.data_ptr())};
}

template <std::size_t Rank>
at::Tensor tensor_over(const tensor_axes<Rank>& axes, void* data, at::ScalarType type) {
    argument_checks checks("torch::tensor_of");
    std::array<std::int64_t, Rank> sizes{};
    std::array<std::int64_t, Rank> strides{};
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        checks.expect(axes.strides[axis] >= 0, "tensor", "strides of 0 and more", axes.strides);
        sizes[axis] = axes.extents[axis];
        strides[axis] = axes.strides[axis];
    }
    checks.raise();
    return at::from_blob(data, sizes, strides, at::TensorOptions().dtype(type));
}

} // namespace tensor_details

template <std::size_t Rank>
const_tensor_ref<Rank> const_ref_of(const at::Tensor& tensor, const char* argument) {
    return checked("torch::const_ref_of", [&](argument_checks& checks) {
        return tensor_details::checked_ref<Rank>(checks, argument, tensor);
    });
}

template <std::size_t Rank>
tensor_ref<Rank> ref_of(const at::Tensor& tensor, const char* argument) {
    return checked("torch::ref_of", [&](argument_checks& checks) {
        return tensor_details::checked_ref<Rank>(checks, argument, tensor);
    });
}

template <class T, std::size_t Rank>
tensor_view<T, Rank> view_of(const at::Tensor& tensor, const char* argument) {
    return checked("torch::view_of", [&](argument_checks& checks) {
        return tensor_details::checked_view<T, Rank>(checks, argument, tensor);
    });
}

template <class Void, std::size_t Rank>
at::Tensor tensor_of(const basic_tensor_ref<Void, Rank>& tensor) {
    if (tensor.absent()) return {};
    return tensor_details::tensor_over(tensor.axes(), const_cast<void*>(tensor.data()),
                                       tensor_details::scalar_type_of(tensor.type()));
}

template <class T, std::size_t Rank>
at::Tensor tensor_of(const tensor_view<T, Rank>& view) {
    if (view.absent()) return {};
    using V = std::remove_const_t<T>;
    return tensor_details::tensor_over(view.axes(), const_cast<V*>(view.data()),
                                       c10::CppTypeToScalarType<V>::value);
}

} // namespace MHR_ISA
} // namespace torch
} // namespace mhr
