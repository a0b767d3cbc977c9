#pragma once

#include <cstddef>
#include <cstring>

#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>

/// \file
/// Elements whose type is data, one by one or a short row at a time: for tables, which are small,
/// and for code that does more with each element than to read it, such as gates of logits. Kernels
/// read and write whole runs of elements.
///
/// Elements are read and written by copies of their bytes, never through a pointer to another type.

namespace mhr {
inline namespace MHR_ISA {

/// Calls `f` with a zero of the class of an element type: a choice made known to the compiler.
/// (Values that are no type were refused before.)
template <class Function>
decltype(auto) with_element_class(element_type type, Function&& f) {
    switch (type) {
    case element_type::f64:
        return f(double(0));
    case element_type::bf16:
        return f(bf16());
    case element_type::f16:
        return f(f16());
    case element_type::f32:
        break;
    }
    return f(float(0));
}

namespace access_details {

template <class A, class T>
A read(const void* from) noexcept {
    T value;
    std::memcpy(&value, from, sizeof value);
    if constexpr (sizeof(T) == 2)
        return static_cast<A>(static_cast<float>(value));
    else
        return static_cast<A>(value);
}

template <class T, class A>
void write(A value, void* to) noexcept {
    T rounded;
    if constexpr (sizeof(T) == 2)
        rounded = T(static_cast<float>(value));
    else
        rounded = static_cast<T>(value);
    std::memcpy(to, &rounded, sizeof rounded);
}

} // namespace access_details

/// The element at an address as an A, which is float or double. It is exact but for f64 as a float.
template <class A>
A read_number(element_type type, const void* from) noexcept {
    // Nearly always.
    if (type == element_type_of_v<A>) return access_details::read<A, A>(from);
    return with_element_class(
        type, [&](auto zero) { return access_details::read<A, decltype(zero)>(from); });
}

/// Rounds a number to the element at an address; to 16 bits it is rounded by way of f32.
template <class A>
void write_number(element_type type, void* to, A value) noexcept {
    if (type == element_type_of_v<A>) return access_details::write<A>(value, to);
    with_element_class(type, [&](auto zero) { access_details::write<decltype(zero)>(value, to); });
}

/// Returns the element at the given indices, exactly.
template <class Void, std::size_t Rank, class... Index>
double read_element(const basic_tensor_ref<Void, Rank>& tensor, Index... index) noexcept {
    return read_number<double>(tensor.type(), tensor.address_of(index...));
}

/// Sets the element at the given indices; 16-bit elements are rounded to f32 and then to their
/// type.
template <std::size_t Rank, class... Index>
void write_element(double value, const tensor_ref<Rank>& tensor, Index... index) noexcept {
    write_number(tensor.type(), tensor.address_of(index...), value);
}

/// A row of elements, to be read as numbers of type A, each of them more than once. Elements of
/// type A are read where they are; up to 64 of another type are converted when this is made; a
/// longer row is converted element by element, as often as it is read.
template <class A>
class element_row {
  public:
    /// Reads `count` elements from `first` on, `stride` elements apart.
    element_row(element_type type, const void* first, index_t stride, index_t count) noexcept
        : first_(static_cast<const std::byte*>(first)), stride_(stride), type_(type) {
        if (type == element_type_of_v<A>) {
            numbers_ = static_cast<const A*>(first);
        } else if (count <= capacity) {
            with_element_class(type, [&](auto zero) {
                using T = decltype(zero);
                const index_t step = stride * static_cast<index_t>(sizeof(T));
                for (index_t i = 0; i < count; ++i)
                    copies_[i] = access_details::read<A, T>(first_ + i * step);
            });
            numbers_ = copies_;
            stride_ = 1;
        }
    }
    element_row(const element_row&) = delete; // numbers_ may point into this
    element_row& operator=(const element_row&) = delete;

    /// Returns the number at a position.
    A operator[](index_t i) const noexcept {
        if (numbers_ != nullptr) return numbers_[i * stride_];
        return read_number<A>(type_, first_ + i * stride_ * static_cast<index_t>(size_of(type_)));
    }

  private:
    static constexpr index_t capacity = 64;

    const std::byte* first_;
    const A* numbers_ = nullptr;
    index_t stride_;
    element_type type_;
    A copies_[static_cast<std::size_t>(capacity)];
};

/// A row of elements that numbers of type A are written to, each of them rounded once.
template <class A>
class element_row_output {
  public:
    /// Writes elements from `first` on, `stride` elements apart.
    element_row_output(element_type type, void* first, index_t stride) noexcept
        : first_(static_cast<std::byte*>(first)),
          step_(stride * static_cast<index_t>(size_of(type))), type_(type) {}

    /// element[i] = value
    void set(index_t i, A value) const noexcept { write_number(type_, first_ + i * step_, value); }

    /// element[i] += value, which is added before it is rounded.
    void add(index_t i, A value) const noexcept {
        std::byte* const to = first_ + i * step_;
        write_number(type_, to, read_number<A>(type_, to) + value);
    }

  private:
    std::byte* first_;
    index_t step_;
    element_type type_;
};

/// Writes dense numbers of type A where they lie; it has the functions of element_row_output.
template <class A>
class dense_row_output {
  public:
    /// Writes numbers from `first` on.
    explicit dense_row_output(A* first) noexcept : first_(first) {}

    /// first[i] = value
    void set(index_t i, A value) const noexcept { first_[i] = value; }

    /// first[i] += value
    void add(index_t i, A value) const noexcept { first_[i] += value; }

  private:
    A* first_;
};

/// Calls `f` with the address of each element, in row-major order of the indices whatever the
/// strides.
template <std::size_t Rank, class Function>
void for_each_element(const tensor_ref<Rank>& tensor, Function&& f) {
    for (index_t i = 0; i < tensor.extent(0); ++i)
        if constexpr (Rank == 1)
            f(tensor.address_of(i));
        else
            for_each_element(tensor.slice(0, i), f);
}

} // namespace MHR_ISA
} // namespace mhr
