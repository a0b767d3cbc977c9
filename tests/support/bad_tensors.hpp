#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>

#include "support/positions.hpp"

/// \file
/// All that one tensor argument of an entry point must be refused for, each with a text to CAPTURE.
/// None of these tensors may ever be read.

namespace mhr::test {

template <class Void, std::size_t Rank>
struct bad_tensor {
    std::string what;
    basic_tensor_ref<Void, Rank> ref;
};

/// For an input: negative extents, no memory, misaligned memory, offsets that overflow, a type that
/// is none, and one element more and one less along each axis but `free_axes`, whose extent the
/// argument itself decides.
template <class Void, std::size_t Rank>
std::vector<bad_tensor<Void, Rank>> bad_as_input(const basic_tensor_ref<Void, Rank>& good,
                                                 const std::set<std::size_t>& free_axes = {}) {
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    const auto size = static_cast<index_t>(size_of(good.type()));
    std::vector<bad_tensor<Void, Rank>> all;
    const auto add = [&](const char* what, const std::array<index_t, Rank>& extents,
                         const std::array<index_t, Rank>& strides) {
        all.push_back({what + (" " + to_text(extents)) + " strides " + to_text(strides),
                       {good.data(), good.type(), extents, strides}});
    };
    all.push_back({"null", {nullptr, good.type(), good.extents(), good.strides()}});
    const auto odd = reinterpret_cast<std::uintptr_t>(good.data()) + 1;
    all.push_back({"misaligned",
                   {reinterpret_cast<Void*>(odd), good.type(), good.extents(), good.strides()}});
    all.push_back(
        {"no type", {good.data(), static_cast<element_type>(77), good.extents(), good.strides()}});
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        auto extents = good.extents();
        extents[axis] = -extents[axis];
        add("negative", extents, good.strides());
        if (free_axes.count(axis) == 0)
            for (index_t change : {-1, 1}) {
                extents[axis] = good.extent(axis) + change;
                add("extents", extents, good.strides());
            }
        if (good.extent(axis) < 2) continue;
        auto strides = good.strides();
        for (index_t stride : {largest, std::numeric_limits<index_t>::min(),
                               largest / size / (good.extent(axis) - 1) + 1}) {
            strides[axis] = stride;
            add("overflow", good.extents(), strides);
        }
    }
    return all;
}

/// For an output: the same, and elements at the same address.
template <std::size_t Rank>
std::vector<bad_tensor<void, Rank>> bad_as_output(const tensor_ref<Rank>& good,
                                                  const std::set<std::size_t>& free_axes = {}) {
    auto all = bad_as_input(good, free_axes);
    const auto add = [&](const std::array<index_t, Rank>& strides) {
        all.push_back({"overlapping, strides " + to_text(strides),
                       {good.data(), good.type(), good.extents(), strides}});
    };
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        if (good.extent(axis) < 2) continue;
        auto strides = good.strides();
        strides[axis] = 0;
        add(strides);
        for (std::size_t other = 0; other < Rank; ++other) {
            if (other == axis || good.extent(other) < 2) continue;
            strides[axis] = good.stride(other);
            add(strides);
        }
    }
    return all;
}

} // namespace mhr::test
