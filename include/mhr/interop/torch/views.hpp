#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Tensors of LibTorch as views and views as tensors, without a copy; and its threads.

namespace mhr {
inline namespace MHR_ISA {

/// LibTorch's threads, as many as `at::get_num_threads()` says; inside of its parallel regions, the
/// calling thread alone. Compile with OpenMP, as LibTorch asks of all who call at::parallel_for: it
/// runs everything in the calling thread otherwise.
struct torch_executor {
    /// Runs them.
    void operator()(index_t parts, parallel_body body) const {
        at::parallel_for(0, parts, 1, [&](std::int64_t first, std::int64_t last) {
            for (std::int64_t part = first; part < last; ++part)
                body(static_cast<index_t>(part));
        });
    }
};

namespace detail {

/// Checks that the memory of a tensor can be read as it lies.
inline void require_plain_memory(const char* function, const char* argument,
                                 const at::Tensor& tensor) {
    const auto expected = [] { return "a strided tensor on the CPU"; };
    require_that(tensor.device().is_cpu(), function, argument, expected,
                 [&] { return tensor.device().str(); });
    require_that(tensor.layout() == at::kStrided, function, argument, expected,
                 [] { return "another layout"; });
    require_that(!tensor.is_neg() && !tensor.is_conj(), function, argument, expected, [] {
        return "a lazy negation or conjugation (resolve_neg and resolve_conj do it)";
    });
}

/// view_of with the names for its errors.
template <class T, std::size_t Rank>
tensor_view<T, Rank> checked_view(const char* function, const char* argument,
                                  const at::Tensor& tensor) {
    if (!tensor.defined()) return {};
    require_plain_memory(function, argument, tensor);
    constexpr at::ScalarType type = c10::CppTypeToScalarType<std::remove_const_t<T>>::value;
    require_that(
        tensor.scalar_type() == type, function, argument,
        [] { return std::string("elements of type ") + at::toString(type); },
        [&] { return at::toString(tensor.scalar_type()); });
    require_that(
        tensor.dim() == static_cast<std::int64_t>(Rank), function, argument,
        [] { return std::to_string(Rank) + " dimensions"; },
        [&] { return std::to_string(tensor.dim()); });
    std::array<index_t, Rank> extents{};
    std::array<index_t, Rank> strides{};
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        extents[axis] = static_cast<index_t>(tensor.sizes()[axis]);
        strides[axis] = static_cast<index_t>(tensor.strides()[axis]);
    }
    return {tensor.data_ptr<std::remove_const_t<T>>(), extents, strides};
}

template <class T>
struct type_tag {
    using type = T;
};

/// Calls `f` with the tag of the C++ type in which a tensor of numbers is stored.
template <class F>
decltype(auto) with_storage_type(const char* function, const char* argument,
                                 const at::Tensor& tensor, F&& f) {
    require_that(
        tensor.defined(), function, argument, [] { return "a tensor"; },
        [] { return "an undefined one"; });
    switch (tensor.scalar_type()) {
    case at::kDouble:
        return f(type_tag<double>{});
    case at::kFloat:
        return f(type_tag<float>{});
    case at::kBFloat16:
        return f(type_tag<at::BFloat16>{});
    case at::kHalf:
        return f(type_tag<at::Half>{});
    default:
        raise(std::string(function) + ": " + argument +
              ": expected elements of type Double, Float, BFloat16 or Half, got " +
              at::toString(tensor.scalar_type()));
    }
}

/// The type in which tensors of that type are summed.
inline at::ScalarType sum_type_of(at::ScalarType type) noexcept {
    return type == at::kDouble ? at::kDouble : at::kFloat;
}

} // namespace detail

/// The memory of a tensor, with its strides. `T` is that of its elements (double, float,
/// at::BFloat16, at::Half, or std::int64_t for ids), const where the tensor is only read. The
/// caller keeps the tensor alive; an undefined tensor gives the absent view. Autograd does not see
/// what is written through the view.
///
/// Errors: another type of elements or number of dimensions; a tensor that is not on the CPU, is
/// sparse, or is negated or conjugated lazily; `argument` is its name there.
template <class T, std::size_t Rank>
tensor_view<T, Rank> view_of(const at::Tensor& tensor, const char* argument = "tensor") {
    return detail::checked_view<T, Rank>("view_of", argument, tensor);
}

/// A tensor over the memory of a view, with its strides. The host keeps the memory alive, and
/// leaves the tensor of a view of constant elements unchanged; the absent view gives an undefined
/// tensor. Errors: a negative stride, which LibTorch does not have.
template <class T, std::size_t Rank>
at::Tensor torch_tensor_of(const tensor_view<T, Rank>& view) {
    if (view.absent()) return {};
    std::array<std::int64_t, Rank> sizes{};
    std::array<std::int64_t, Rank> strides{};
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        require_that(
            view.stride(axis) >= 0, "torch_tensor_of", "view",
            [] { return "strides of 0 and more"; },
            [&] { return detail::to_text(view.strides()); });
        sizes[axis] = static_cast<std::int64_t>(view.extent(axis));
        strides[axis] = static_cast<std::int64_t>(view.stride(axis));
    }
    using V = std::remove_const_t<T>;
    return at::from_blob(const_cast<V*>(view.data()), sizes, strides,
                         at::TensorOptions().dtype(c10::CppTypeToScalarType<V>::value));
}

} // namespace MHR_ISA
} // namespace mhr
