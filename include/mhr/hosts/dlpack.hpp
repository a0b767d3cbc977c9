#pragma once

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

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/hosts/merged_axes.hpp>

/// \file
/// DLPack's tensors as tensors of the library, and those as DLPack's: nothing is copied either way.
/// It works with every release of dlpack.h from 0.6 on; `Managed` is DLManagedTensor or, where the
/// header has it, DLManagedTensorVersioned.
///
/// Memory is the CPU's only (kDLCPU). That which others pinned or share with a device (kDLCUDAHost,
/// kDLCUDAManaged, ..) is refused, too: whether a device still writes to it is not for us to know.

namespace mhr {
namespace dlpack {

/// Calls the deleter of a managed tensor, if it has one.
struct deleter {
    /// Calls it.
    template <class Managed>
    MHR_INLINE void operator()(Managed* managed) const noexcept {
        if (managed->deleter != nullptr) managed->deleter(managed);
    }
};

/// A managed tensor that is ours to delete: as an importer got it, or an exporter makes it.
template <class Managed = DLManagedTensor>
using owned = std::unique_ptr<Managed, deleter>;

inline namespace MHR_ISA {

/// True if the elements of a tensor are integers of type T: what a function that takes task ids of
/// several types asks first.
template <class T>
bool holds(const DLTensor& tensor) noexcept;

/// A tensor that somebody else keeps alive, as in `const_ref_of<2>(x, "x")`. `argument` is what
/// messages call it.
///
/// If a tensor has more axes than `Rank`, the leading ones become one: [sequences, rows, features]
/// is seen as [sequences rows, features] at rank 2. If it has fewer, extents of 1 come first.
/// Strides may be anything, also null (row-major). A tensor without elements may have null memory,
/// and then is absent.
///
/// These are refused: memory that is not the CPU's; elements that are not float32, float64,
/// float16 or bfloat16; less than 1 or more than 64 axes; no shape; extents below 0; leading axes
/// that are not evenly spaced; no memory, or not aligned for the elements; offsets, also
/// byte_offset, that overflow.
/// @{
template <std::size_t Rank>
const_tensor_ref<Rank> const_ref_of(const DLTensor& tensor, const char* argument = "tensor");
/// Returns a tensor that may be written.
template <std::size_t Rank>
tensor_ref<Rank> ref_of(const DLTensor& tensor, const char* argument = "tensor");
/// @}

/// Returns a view of integers, such as task ids. T is the type that `holds` was asked for, const or
/// not; elements of another type are refused as well.
template <class T, std::size_t Rank>
tensor_view<T, Rank> view_of(const DLTensor& tensor, const char* argument = "tensor");

/// Does the same for a managed tensor, which has to outlive the result. These are refused as well:
/// another major version of the structure than 1 (of which nothing else is read); a tensor that is
/// read-only, where elements may be written.
/// @{
template <std::size_t Rank, class Managed>
std::enable_if_t<std::is_same_v<decltype(Managed::dl_tensor), DLTensor>, const_tensor_ref<Rank>>
const_ref_of(const Managed& managed, const char* argument = "tensor");
/// Returns a tensor that may be written.
template <std::size_t Rank, class Managed>
std::enable_if_t<std::is_same_v<decltype(Managed::dl_tensor), DLTensor>, tensor_ref<Rank>>
ref_of(const Managed& managed, const char* argument = "tensor");
/// Does so for integers.
template <class T, std::size_t Rank, class Managed>
std::enable_if_t<std::is_same_v<decltype(Managed::dl_tensor), DLTensor>, tensor_view<T, Rank>>
view_of(const Managed& managed, const char* argument = "tensor");
/// @}

/// A managed tensor of the same memory. `owner` is whatever keeps that alive (a shared_ptr, a moved
/// vector, ..): it is destroyed by the deleter. What takes the tensor over gets `release()` of the
/// result.
///
/// Constant elements become read-only tensors, which only the versioned structure can say. Strides
/// are always given; of a tensor without elements, the data is null, as the standard asks.
///
/// These are refused: a tensor without memory, not aligned, of extents below 0, or of offsets that
/// overflow.
/// @{
template <class Managed = DLManagedTensor, class Void, std::size_t Rank, class Owner>
owned<Managed> managed_of(const basic_tensor_ref<Void, Rank>& tensor, Owner owner);
/// Does so for integers.
template <class Managed = DLManagedTensor, class T, std::size_t Rank, class Owner>
owned<Managed> managed_of(const tensor_view<T, Rank>& numbers, Owner owner);
/// @}

namespace dlpack_details {

/// The version of the first versioned release; the structures may change with the next number.
inline constexpr std::uint32_t major_version = 1;
inline constexpr std::uint64_t read_only = 1;

/// More axes than any library's tensors have; those of a tensor that lies are not read.
inline constexpr int most_axes = 64;

template <class Managed, class = void>
inline constexpr bool is_versioned = false;
template <class Managed>
inline constexpr bool is_versioned<Managed, std::void_t<decltype(Managed::flags)>> = true;

inline bool same(const DLDataType& a, const DLDataType& b) noexcept {
    return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

inline DLDataType type_of(element_type type) noexcept {
    const auto code = type == element_type::bf16 ? kDLBfloat : kDLFloat;
    return {static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(8 * size_of(type)), 1};
}

template <class T>
DLDataType type_of_integer() noexcept {
    using V = std::remove_const_t<T>;
    static_assert(std::is_integral_v<V> && !std::is_same_v<V, bool>,
                  "mhr: integers have views; elements have const_ref_of and ref_of");
    return {static_cast<std::uint8_t>(std::is_signed_v<V> ? kDLInt : kDLUInt),
            static_cast<std::uint8_t>(8 * sizeof(V)), 1};
}

inline std::string text_of(const DLDataType& type) {
    const char* const names[] = {"int", "uint", "float", "handle", "bfloat", "complex"};
    std::string text = type.code < std::size(names)
                           ? names[type.code]
                           : "code " + std::to_string(type.code) + " of bits ";
    text += std::to_string(type.bits);
    return type.lanes == 1 ? text : text + " in lanes of " + std::to_string(type.lanes);
}

/// Returns the device type as a number: a tensor made elsewhere may hold a value that our
/// enumeration has no name for.
inline std::int32_t device_of(const DLTensor& tensor) noexcept {
    static_assert(sizeof tensor.device.device_type == sizeof(std::int32_t));
    std::int32_t device;
    std::memcpy(&device, &tensor.device.device_type, sizeof device);
    return device;
}

inline void check_device(argument_checks& checks, const char* argument, const DLTensor& tensor) {
    checks.expect(device_of(tensor) == kDLCPU, argument, "memory of the CPU (device type 1)",
                  joined("device type ", device_of(tensor)));
}

/// The element type of a tensor, if it is one of ours.
inline element_type checked_type(argument_checks& checks, const char* argument,
                                 const DLTensor& tensor) {
    for (element_type type :
         {element_type::f32, element_type::f64, element_type::f16, element_type::bf16})
        if (same(tensor.dtype, type_of(type))) return type;
    checks.expect(false, argument, "elements float32, float64, float16 or bfloat16",
                  [&] { return text_of(tensor.dtype); });
    return {};
}

/// The axes of a tensor, seen as so many.
template <std::size_t Rank>
tensor_axes<Rank> checked_axes(argument_checks& checks, const char* argument,
                               const DLTensor& tensor) {
    checks.expect(tensor.ndim >= 1 && tensor.ndim <= most_axes, argument,
                  joined("1 to ", most_axes, " dimensions"), tensor.ndim);
    checks.expect(tensor.shape != nullptr, argument, "a shape", "null");
    if (!checks.passed()) return {};

    const auto count = static_cast<std::size_t>(tensor.ndim);
    std::array<index_t, most_axes> extents{};
    std::array<index_t, most_axes> strides{};
    const auto copy = [&](const std::int64_t* from, std::array<index_t, most_axes>& to) {
        for (std::size_t axis = 0; axis < count; ++axis) {
            to[axis] = static_cast<index_t>(from[axis]);
            checks.expect(to[axis] == from[axis], argument, "numbers that fit an index",
                          from[axis]);
        }
    };
    copy(tensor.shape, extents);
    if (tensor.strides != nullptr) {
        copy(tensor.strides, strides);
    } else {
        std::size_t stride = 1; // it wraps for absurd extents, which are refused
        for (std::size_t axis = count; axis-- > 0;) {
            strides[axis] = static_cast<index_t>(stride);
            stride *= static_cast<std::size_t>(extents[axis]);
        }
    }
    if (!checks.passed()) return {};
    return host_details::merge_leading_axes<Rank>(
        checks, argument, count, [&](std::size_t axis) { return extents[axis]; },
        [&](std::size_t axis) { return strides[axis]; });
}

/// Returns the address of the first element.
inline void* checked_memory_of(argument_checks& checks, const char* argument,
                               const DLTensor& tensor) {
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
    checks.expect(tensor.byte_offset <= (std::numeric_limits<std::uintptr_t>::max)() - address,
                  argument, "a byte_offset within memory", tensor.byte_offset);
    if (tensor.data == nullptr || !checks.passed()) return nullptr;
    return reinterpret_cast<void*>(address + static_cast<std::uintptr_t>(tensor.byte_offset));
}

template <class Managed>
void check_managed(const char* function, const char* argument, const Managed& managed,
                   bool writes) {
    argument_checks checks(function);
    if constexpr (is_versioned<Managed>) {
        checks.expect(managed.version.major == major_version, argument,
                      joined("version ", major_version, " of DLPack"), managed.version.major);
        checks.expect(!writes || (managed.flags & read_only) == 0, argument, "memory to write to",
                      "a read-only tensor");
    }
    (void)argument;
    (void)managed;
    (void)writes;
    checks.raise();
}

template <std::size_t Rank>
tensor_ref<Rank> checked_ref(const char* function, const char* argument, const DLTensor& tensor) {
    argument_checks checks(function);
    check_device(checks, argument, tensor);
    const element_type type = checked_type(checks, argument, tensor);
    const auto axes = checked_axes<Rank>(checks, argument, tensor);
    const tensor_ref<Rank> ref(axes, checked_memory_of(checks, argument, tensor), type);
    checks.input(argument, const_tensor_ref<Rank>(ref));
    checks.raise();
    return ref;
}

/// The memory that a managed tensor of ours points to.
template <class Managed, std::size_t Rank, class Owner>
struct exported {
    Managed managed{};
    std::array<std::int64_t, Rank> shape{};
    std::array<std::int64_t, Rank> strides{};
    Owner owner;

    static void destroy(Managed* self) { delete static_cast<exported*>(self->manager_ctx); }
};

template <class Managed, std::size_t Rank, class Owner>
owned<Managed> export_memory(const tensor_axes<Rank>& axes, void* data, const DLDataType& type,
                             bool writes, Owner owner) {
    using context = exported<Managed, Rank, Owner>;
    std::unique_ptr<context> made(new context{{}, {}, {}, std::move(owner)});
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        made->shape[axis] = axes.extents[axis];
        made->strides[axis] = axes.strides[axis];
    }
    DLTensor& tensor = made->managed.dl_tensor;
    tensor.data = axes.empty() ? nullptr : data;
    tensor.device = {kDLCPU, 0};
    tensor.ndim = static_cast<int>(Rank);
    tensor.dtype = type;
    tensor.shape = made->shape.data();
    tensor.strides = made->strides.data();
    tensor.byte_offset = 0;
    if constexpr (is_versioned<Managed>) {
        made->managed.version.major = major_version;
        made->managed.version.minor = 0;
        made->managed.flags = writes ? 0 : read_only;
    }
    (void)writes;
    made->managed.manager_ctx = made.get();
    made->managed.deleter = &context::destroy;
    return owned<Managed>(&made.release()->managed);
}

} // namespace dlpack_details

template <class T>
bool holds(const DLTensor& tensor) noexcept {
    return dlpack_details::same(tensor.dtype, dlpack_details::type_of_integer<T>());
}

template <std::size_t Rank>
const_tensor_ref<Rank> const_ref_of(const DLTensor& tensor, const char* argument) {
    return dlpack_details::checked_ref<Rank>("dlpack::const_ref_of", argument, tensor);
}

template <std::size_t Rank>
tensor_ref<Rank> ref_of(const DLTensor& tensor, const char* argument) {
    return dlpack_details::checked_ref<Rank>("dlpack::ref_of", argument, tensor);
}

template <class T, std::size_t Rank>
tensor_view<T, Rank> view_of(const DLTensor& tensor, const char* argument) {
    argument_checks checks("dlpack::view_of");
    dlpack_details::check_device(checks, argument, tensor);
    checks.expect(
        holds<T>(tensor), argument,
        [] { return "elements " + dlpack_details::text_of(dlpack_details::type_of_integer<T>()); },
        [&] { return dlpack_details::text_of(tensor.dtype); });
    const auto axes = dlpack_details::checked_axes<Rank>(checks, argument, tensor);
    const tensor_view<T, Rank> view(
        axes, static_cast<T*>(dlpack_details::checked_memory_of(checks, argument, tensor)));
    checks.numbers(argument, view, argument_checks::any_extents<Rank>());
    checks.raise();
    return view;
}

template <std::size_t Rank, class Managed>
std::enable_if_t<std::is_same_v<decltype(Managed::dl_tensor), DLTensor>, const_tensor_ref<Rank>>
const_ref_of(const Managed& managed, const char* argument) {
    dlpack_details::check_managed("dlpack::const_ref_of", argument, managed, false);
    return const_ref_of<Rank>(managed.dl_tensor, argument);
}

template <std::size_t Rank, class Managed>
std::enable_if_t<std::is_same_v<decltype(Managed::dl_tensor), DLTensor>, tensor_ref<Rank>>
ref_of(const Managed& managed, const char* argument) {
    dlpack_details::check_managed("dlpack::ref_of", argument, managed, true);
    return ref_of<Rank>(managed.dl_tensor, argument);
}

template <class T, std::size_t Rank, class Managed>
std::enable_if_t<std::is_same_v<decltype(Managed::dl_tensor), DLTensor>, tensor_view<T, Rank>>
view_of(const Managed& managed, const char* argument) {
    dlpack_details::check_managed("dlpack::view_of", argument, managed, !std::is_const_v<T>);
    return view_of<T, Rank>(managed.dl_tensor, argument);
}

template <class Managed, class Void, std::size_t Rank, class Owner>
owned<Managed> managed_of(const basic_tensor_ref<Void, Rank>& tensor, Owner owner) {
    constexpr bool writes = !std::is_const_v<Void>;
    static_assert(writes || dlpack_details::is_versioned<Managed>,
                  "mhr: DLManagedTensor cannot say read-only: export DLManagedTensorVersioned");
    argument_checks checks("dlpack::managed_of");
    checks.input("tensor", const_tensor_ref<Rank>(tensor));
    checks.raise();
    return dlpack_details::export_memory<Managed>(tensor.axes(), const_cast<void*>(tensor.data()),
                                                  dlpack_details::type_of(tensor.type()), writes,
                                                  std::move(owner));
}

template <class Managed, class T, std::size_t Rank, class Owner>
owned<Managed> managed_of(const tensor_view<T, Rank>& numbers, Owner owner) {
    if constexpr (!std::is_integral_v<T>) {
        return managed_of<Managed>(
            basic_tensor_ref<std::conditional_t<std::is_const_v<T>, const void, void>, Rank>(
                numbers),
            std::move(owner));
    } else {
        constexpr bool writes = !std::is_const_v<T>;
        static_assert(writes || dlpack_details::is_versioned<Managed>,
                      "mhr: DLManagedTensor cannot say read-only: export DLManagedTensorVersioned");
        argument_checks checks("dlpack::managed_of");
        checks.numbers("numbers", numbers, argument_checks::any_extents<Rank>());
        checks.raise();
        return dlpack_details::export_memory<Managed>(
            numbers.axes(), const_cast<std::remove_const_t<T>*>(numbers.data()),
            dlpack_details::type_of_integer<T>(), writes, std::move(owner));
    }
}

} // namespace MHR_ISA
} // namespace dlpack
} // namespace mhr
