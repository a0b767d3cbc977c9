#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <vector>

#include <mhr/core/tensor_view.hpp>

#include "support/bad_views.hpp"
#include "support/positions.hpp"

/// \file
/// All that one argument of an entry point must be refused for, each with a text to CAPTURE.

namespace mhr::test {

template <class T, std::size_t Rank>
struct bad_argument {
    std::string what;
    tensor_view<T, Rank> view;
};

/// For an input. `free_axes` are those whose extent the argument itself decides: there, no number
/// of elements is wrong.
template <class T, std::size_t Rank>
std::vector<bad_argument<T, Rank>> bad_as_input(const tensor_view<T, Rank>& good,
                                                const std::set<std::size_t>& free_axes = {}) {
    std::vector<bad_argument<T, Rank>> all;
    const auto add = [&](const tensor_view<T, Rank>& view) {
        const char* memory = view.data() == nullptr       ? "null"
                             : view.data() != good.data() ? "misaligned"
                                                          : "";
        all.push_back({memory + (" extents " + to_text(view.extents())) + " strides " +
                           to_text(view.strides()),
                       view});
    };
    for (const auto& view : bad_inputs(good))
        add(view);
    for (const auto& view : wrong_extents(good)) {
        bool wrong = false;
        for (std::size_t axis = 0; axis < Rank; ++axis)
            wrong = wrong || (view.extent(axis) != good.extent(axis) && free_axes.count(axis) == 0);
        if (wrong && !view.absent()) add(view);
    }
    return all;
}

/// For an output, which may be absent or not.
template <class T, std::size_t Rank>
std::vector<bad_argument<T, Rank>> bad_as_output(const tensor_view<T, Rank>& good,
                                                 const std::set<std::size_t>& free_axes = {}) {
    auto all = bad_as_input(good, free_axes);
    for (const auto& view : overlapping(good))
        all.push_back({"strides " + to_text(view.strides()), view});
    return all;
}

} // namespace mhr::test
