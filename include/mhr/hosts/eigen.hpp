#pragma once

#include <type_traits>
#include <utility>

#include <Eigen/Core>

#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Eigen's objects as views, and views as Eigen's maps: nothing is copied either way. Every view is
/// a `tensor_ref` where a function takes one.

namespace mhr {

/// Eigen's 16-bit classes hold the bits of ours.
/// @{
template <>
struct element_type_of<Eigen::half> : element_type_constant<element_type::f16> {};
/// Eigen::bfloat16 holds bf16.
template <>
struct element_type_of<Eigen::bfloat16> : element_type_constant<element_type::bf16> {};
/// @}

namespace eigen {
inline namespace MHR_ISA {

namespace eigen_details {

/// The class by which Eigen knows an object: a part of a vector is a block, and a host's class that
/// is derived from a matrix is that matrix.
template <class Derived>
Derived eigen_class(const Eigen::DenseBase<Derived>&);
template <class M>
using eigen_class_t = decltype(eigen_class(std::declval<M>()));

template <class M, class = void>
inline constexpr bool is_eigen = false;
template <class M>
inline constexpr bool is_eigen<M, std::void_t<eigen_class_t<M>>> = true;

/// Objects whose memory goes with them. (A Ref to const elements may have evaluated an expression.)
template <class Object>
inline constexpr bool owns_memory = std::is_base_of_v<Eigen::PlainObjectBase<Object>, Object>;
template <class Object, int Options, class Stride>
inline constexpr bool owns_memory<Eigen::Ref<const Object, Options, Stride>> = true;

/// `M` as a forwarding reference deduces it: a reference unless the argument is a temporary.
template <class M>
constexpr bool shows_memory() noexcept {
    if constexpr (is_eigen<M>) {
        using object = eigen_class_t<M>;
        return (object::Flags & Eigen::DirectAccessBit) != 0 &&
               (std::is_lvalue_reference_v<M> || !owns_memory<object>);
    }
    return false;
}

} // namespace eigen_details

/// The view of a matrix or an array: of rank 1 for what is a vector at compile time (a batch of one
/// row is `view_of(x).prepend_axis()`), else [rows, cols]. Any storage order and strides, fixed or
/// dynamic sizes are taken: Matrix, Array, Map, Ref, and parts of them such as blocks, rows,
/// columns, diagonals and transposes. What Eigen lets nobody write to (a const object, a map of
/// const elements) becomes a view of const elements. A matrix without elements has no memory, so
/// that its view is absent.
///
/// The view is valid as long as the memory is: resizing a matrix or assigning to it may move that.
template <class M, std::enable_if_t<eigen_details::shows_memory<M>(), int> = 0>
auto view_of(M&& matrix) noexcept {
    using element = std::remove_pointer_t<decltype(matrix.data())>;
    if constexpr (std::remove_reference_t<M>::IsVectorAtCompileTime)
        return tensor_view<element, 1>(matrix.data(), {matrix.size()}, {matrix.innerStride()});
    else
        return tensor_view<element, 2>(matrix.data(), {matrix.rows(), matrix.cols()},
                                       {matrix.rowStride(), matrix.colStride()});
}

/// An expression has no memory, and that of a temporary ends before the view is used: evaluate it
/// into a matrix, and keep that.
template <class M, std::enable_if_t<eigen_details::is_eigen<M> && !eigen_details::shows_memory<M>(),
                                    int> = 0>
void view_of(M&& expression_or_temporary) = delete;

/// The map of a vector, with the view's stride. A `tensor_ref` tells its type first:
/// `map_of(hidden.as<float>())`.
template <class T>
auto map_of(const tensor_view<T, 1>& view) noexcept {
    using vector = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, 1>;
    using target = std::conditional_t<std::is_const_v<T>, const vector, vector>;
    return Eigen::Map<target, Eigen::Unaligned, Eigen::InnerStride<>>(
        view.data(), view.extent(0), Eigen::InnerStride<>(view.stride(0)));
}

/// The map of a matrix, with the view's strides, whatever these are. Eigen vectorises only what it
/// knows at compile time to be dense: where rows are, map them without an inner stride.
template <class T>
auto map_of(const tensor_view<T, 2>& view) noexcept {
    using matrix =
        Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    using target = std::conditional_t<std::is_const_v<T>, const matrix, matrix>;
    using strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
    return Eigen::Map<target, Eigen::Unaligned, strides>(
        view.data(), view.extent(0), view.extent(1), strides(view.stride(0), view.stride(1)));
}

} // namespace MHR_ISA
} // namespace eigen
} // namespace mhr
