#pragma once

#include <cstddef>
#include <cstring>
#include <limits>

#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>

#include "support/positions.hpp"
#include "support/tensor.hpp"

/// \file
/// Elements of tensors whose type is data, one by one: what tests need and no kernel.

namespace mhr::test {

/// The numbers that are known of an element type.
struct element_precision {
    double epsilon;       ///< the spacing of numbers just above 1
    double smallest_step; ///< the spacing of numbers next to 0
};

inline element_precision precision_of(element_type type) {
    switch (type) {
    case element_type::f64:
        return {0x1p-52, std::numeric_limits<double>::denorm_min()};
    case element_type::f32:
        return {0x1p-23, static_cast<double>(std::numeric_limits<float>::denorm_min())};
    case element_type::bf16:
        return {0x1p-7, 0x1p-133};
    case element_type::f16:
        return {0x1p-10, 0x1p-24};
    }
    return {};
}

template <class T>
T element_as(const void* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

/// The element at an address, exactly.
inline double read_element(element_type type, const void* at) {
    switch (type) {
    case element_type::f64:
        return element_as<double>(at);
    case element_type::f32:
        return static_cast<double>(element_as<float>(at));
    case element_type::bf16:
        return static_cast<double>(static_cast<float>(element_as<bf16>(at)));
    case element_type::f16:
        return static_cast<double>(static_cast<float>(element_as<f16>(at)));
    }
    return 0;
}

/// Rounds a number to the element at an address.
inline void write_element(double value, element_type type, void* at) {
    const auto single = static_cast<float>(value);
    switch (type) {
    case element_type::f64:
        std::memcpy(at, &value, sizeof value);
        return;
    case element_type::f32:
        std::memcpy(at, &single, sizeof single);
        return;
    case element_type::bf16: {
        const bf16 rounded(single);
        std::memcpy(at, &rounded, sizeof rounded);
        return;
    }
    case element_type::f16: {
        const f16 rounded(single);
        std::memcpy(at, &rounded, sizeof rounded);
        return;
    }
    }
}

/// Where an element lies.
template <class Void, std::size_t Rank>
Void* address_of(const basic_tensor_ref<Void, Rank>& tensor, const position<Rank>& at) {
    using byte = std::conditional_t<std::is_const_v<Void>, const std::byte, std::byte>;
    return static_cast<byte*>(tensor.data()) +
           offset_of(at, tensor.strides()) * static_cast<index_t>(size_of(tensor.type()));
}

/// The element at a position.
template <std::size_t Rank>
double element(const const_tensor_ref<Rank>& tensor, const position<Rank>& at) {
    return read_element(tensor.type(), address_of(tensor, at));
}
template <std::size_t Rank>
double element(const tensor_ref<Rank>& tensor, const position<Rank>& at) {
    return read_element(tensor.type(), address_of(tensor, at));
}

/// Sets the element at a position, rounded.
template <std::size_t Rank>
void set_element(const tensor_ref<Rank>& tensor, const position<Rank>& at, double value) {
    write_element(value, tensor.type(), address_of(tensor, at));
}

/// Sets every element to `f(what it was)`, rounded.
template <std::size_t Rank, class Function>
void transform_elements(const tensor_ref<Rank>& tensor, Function&& f) {
    for_each_position(tensor.extents(), [&](const position<Rank>& at) {
        set_element(tensor, at, f(element(tensor, at)));
    });
}

/// The values in another type, such as the oracle's: exact when that is wider.
template <class S, class Void, std::size_t Rank>
tensor<S, Rank> values_as(const basic_tensor_ref<Void, Rank>& from) {
    tensor<S, Rank> result(from.extents());
    for_each_position(from.extents(), [&](const position<Rank>& at) {
        element(result.view(), at) = static_cast<S>(element(from, at));
    });
    return result;
}

/// The absolute values: what an oracle is run on to get the summed magnitudes of its terms.
template <class S, class Void, std::size_t Rank>
tensor<S, Rank> magnitudes_as(const basic_tensor_ref<Void, Rank>& from) {
    tensor<S, Rank> result = values_as<S>(from);
    for (S& value : result.values())
        if (value < 0) value = -value;
    return result;
}

} // namespace mhr::test
