#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include <dlpack/dlpack.h>

#include <mhr/core/checks.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/simd/conversion.hpp>

/// \file
/// DLPack's tensors as views, and views as DLPack's tensors: nothing is copied either way. For
/// every release of dlpack.h from 0.6 on; `Managed` is DLManagedTensor or, where the header has it,
/// DLManagedTensorVersioned.
///
/// Memory of the CPU only (kDLCPU). That which others pinned or share with a device (kDLCUDAHost,
/// kDLCUDAManaged, ..) is refused, too: whether a device still writes to it is not for us to know.

namespace mhr {
inline namespace MHR_ISA {

namespace detail {

/// Of the first versioned release; the structures may change with the next number.
inline constexpr std::uint32_t dlpack_major_version = 1;
inline constexpr std::uint64_t dlpack_read_only = 1;

template <class Managed, class = void>
inline constexpr bool is_versioned = false;
template <class Managed>
inline constexpr bool is_versioned<Managed, std::void_t<decltype(Managed::flags)>> = true;

template <class T>
DLDataType dlpack_type_of() noexcept {
    using V = std::remove_const_t<T>;
    constexpr auto bits = static_cast<std::uint8_t>(8 * sizeof(V));
    if constexpr (std::is_integral_v<V>) {
        static_assert(!std::is_same_v<V, bool>, "mhr: no kernel takes bool");
        return {std::is_signed_v<V> ? kDLInt : kDLUInt, bits, 1};
    } else if constexpr (sizeof(V) == 2) {
        const format of = format_of<V>();
        const auto code = of == format::bf16  ? kDLBfloat
                          : of == format::f16 ? kDLFloat
                                              : kDLOpaqueHandle;
        return {static_cast<std::uint8_t>(code), bits, 1};
    } else {
        static_assert(std::is_same_v<V, float> || std::is_same_v<V, double>,
                      "mhr: DLPack has no such type");
        return {kDLFloat, bits, 1};
    }
}

inline std::string to_text(const DLDataType& type) {
    const char* const names[] = {"int", "uint", "float", "handle", "bfloat", "complex"};
    std::string text = type.code < std::size(names)
                           ? names[type.code]
                           : "code " + std::to_string(type.code) + " of bits ";
    text += std::to_string(type.bits);
    return type.lanes == 1 ? text : text + " in lanes of " + std::to_string(type.lanes);
}

/// As a number: the enumeration of a tensor made elsewhere may hold what ours has no name for.
inline std::int32_t device_of(const DLTensor& tensor) noexcept {
    static_assert(sizeof tensor.device.device_type == sizeof(std::int32_t));
    std::int32_t device;
    std::memcpy(&device, &tensor.device.device_type, sizeof device);
    return device;
}

} // namespace detail

/// True if the elements of a tensor are of type T: what a function for several types asks first.
template <class T>
bool holds(const DLTensor& tensor) noexcept {
    const DLDataType type = detail::dlpack_type_of<T>();
    return tensor.dtype.code == type.code && tensor.dtype.bits == type.bits &&
           tensor.dtype.lanes == type.lanes;
}

/// The view of a tensor that somebody else keeps alive, as in `view_of<const float, 2>(tensor)`.
/// `argument` is what messages call it.
///
/// T is double, float, a class of bf16 or f16 numbers, or an integer (task ids), const or not.
/// Strides may be anything, also null (row-major). A tensor without elements may have null memory,
/// and then is absent.
///
/// Errors: memory that is not the CPU's; another type or number of dimensions; no shape; extents
/// that are negative; no memory, or not aligned for T; offsets, also byte_offset, that overflow.
template <class T, std::size_t Rank>
tensor_view<T, Rank> view_of(const DLTensor& tensor, const char* argument = "tensor") {
    constexpr const char* function = "view_of";
    const auto number = [](auto n) { return [n] { return std::to_string(n); }; };
    const auto text = [](const char* words) { return [words] { return words; }; };
    require_that(detail::device_of(tensor) == kDLCPU, function, argument,
                 text("memory of the CPU (device type 1)"),
                 [&] { return "device type " + std::to_string(detail::device_of(tensor)); });
    require_that(
        holds<T>(tensor), function, argument,
        [] { return "elements " + detail::to_text(detail::dlpack_type_of<T>()); },
        [&] { return detail::to_text(tensor.dtype); });
    require_that(
        tensor.ndim == static_cast<int>(Rank), function, argument,
        [] { return std::to_string(Rank) + " dimensions"; }, number(tensor.ndim));
    require_that(tensor.shape != nullptr, function, argument, text("a shape"), text("null"));

    std::array<index_t, Rank> extents{};
    std::array<index_t, Rank> strides{};
    const auto copy = [&](const std::int64_t* from, std::array<index_t, Rank>& to) {
        for (std::size_t axis = 0; axis < Rank; ++axis) {
            to[axis] = static_cast<index_t>(from[axis]);
            require_that(to[axis] == from[axis], function, argument,
                         text("numbers that fit an index"), number(from[axis]));
        }
    };
    copy(tensor.shape, extents);
    if (tensor.strides != nullptr)
        copy(tensor.strides, strides);
    else
        strides = tensor_view<T, Rank>(nullptr, extents).strides();

    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
    require_that(tensor.byte_offset <= (std::numeric_limits<std::uintptr_t>::max)() - address,
                 function, argument, text("a byte_offset within memory"),
                 number(tensor.byte_offset));
    auto* const data =
        tensor.data == nullptr
            ? nullptr
            : reinterpret_cast<T*>(address + static_cast<std::uintptr_t>(tensor.byte_offset));
    const tensor_view<T, Rank> view(data, extents, strides);
    require_input(function, argument, view);
    return view;
}

/// The view of a managed tensor, which has to outlive it.
///
/// Errors: as above; another major version of the structure than 1 (of which nothing else is read);
/// a tensor that is read-only, where T is not const.
template <class T, std::size_t Rank, class Managed,
          std::enable_if_t<std::is_same_v<decltype(Managed::dl_tensor), DLTensor>, int> = 0>
tensor_view<T, Rank> view_of(const Managed& managed, const char* argument = "tensor") {
    if constexpr (detail::is_versioned<Managed>) {
        require_that(
            managed.version.major == detail::dlpack_major_version, "view_of", argument,
            [] { return "version " + std::to_string(detail::dlpack_major_version) + " of DLPack"; },
            [&] { return std::to_string(managed.version.major); });
        require_that(
            std::is_const_v<T> || (managed.flags & detail::dlpack_read_only) == 0, "view_of",
            argument, [] { return "memory to write to"; }, [] { return "a read-only tensor"; });
    }
    return view_of<T, Rank>(managed.dl_tensor, argument);
}

/// Calls the deleter of a managed tensor, if it has one.
struct dlpack_deleter {
    /// Calls it.
    template <class Managed>
    void operator()(Managed* managed) const noexcept {
        if (managed->deleter != nullptr) managed->deleter(managed);
    }
};

/// A managed tensor that is ours to delete: as an importer got it, or an exporter makes it.
template <class Managed = DLManagedTensor>
using owned_dlpack = std::unique_ptr<Managed, dlpack_deleter>;

namespace detail {

template <class Managed, std::size_t Rank, class Owner>
struct exported {
    Managed managed{};
    std::array<std::int64_t, Rank> shape{};
    std::array<std::int64_t, Rank> strides{};
    Owner owner;

    static void destroy(Managed* self) { delete static_cast<exported*>(self->manager_ctx); }
};

} // namespace detail

/// A managed tensor of the view's memory. `owner` is whatever keeps that alive (a shared_ptr, a
/// moved vector, ..): it is destroyed by the deleter. What takes the tensor over gets `release()`
/// of the result.
///
/// Views of const elements become read-only tensors, which only the versioned structure can say.
/// Strides are always given; of a tensor without elements, the data is null, as the standard asks.
///
/// Errors: a view that is none (see require_input).
template <class Managed = DLManagedTensor, class T, std::size_t Rank, class Owner>
owned_dlpack<Managed> to_dlpack(const tensor_view<T, Rank>& view, Owner owner) {
    static_assert(!std::is_const_v<T> || detail::is_versioned<Managed>,
                  "mhr: DLManagedTensor cannot say read-only: export DLManagedTensorVersioned");
    require_input("to_dlpack", "view", view);

    using context = detail::exported<Managed, Rank, Owner>;
    std::unique_ptr<context> made(new context{{}, {}, {}, std::move(owner)});
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        made->shape[axis] = view.extent(axis);
        made->strides[axis] = view.stride(axis);
    }
    DLTensor& tensor = made->managed.dl_tensor;
    const auto& extents = view.extents();
    const bool empty = std::find(extents.begin(), extents.end(), 0) != extents.end();
    tensor.data = empty ? nullptr : const_cast<std::remove_const_t<T>*>(view.data());
    tensor.device = {kDLCPU, 0};
    tensor.ndim = static_cast<int>(Rank);
    tensor.dtype = detail::dlpack_type_of<T>();
    tensor.shape = made->shape.data();
    tensor.strides = made->strides.data();
    tensor.byte_offset = 0;
    if constexpr (detail::is_versioned<Managed>) {
        made->managed.version.major = detail::dlpack_major_version;
        made->managed.version.minor = 0;
        made->managed.flags = std::is_const_v<T> ? detail::dlpack_read_only : 0;
    }
    made->managed.manager_ctx = made.get();
    made->managed.deleter = &context::destroy;
    return owned_dlpack<Managed>(&made.release()->managed);
}

} // namespace MHR_ISA
} // namespace mhr
