#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>

#include "support/element_access.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"

/// \file
/// The same numbers in every element type: what a kernel makes of them must not depend on the type
/// that they are stored in.

namespace mhr::test {

/// The types whose elements may come beside sums of a type.
inline std::vector<element_type> types_beside(element_type sums) {
    std::vector<element_type> types;
    for (element_type type : all_element_types)
        if (type != element_type::f64 || sums == element_type::f64) types.push_back(type);
    return types;
}

/// Sets all elements to numbers that every type holds, the same in every layout. Their magnitudes
/// are so different that the order of a sum of products is seen in its last bits.
template <std::size_t Rank>
void fill_exactly(const tensor_ref<Rank>& tensor, random_source& random) {
    transform_elements(tensor, [&](double) {
        const auto fraction = static_cast<double>(random.integer(511) - 255);
        return std::ldexp(fraction, -static_cast<int>(random.integer(12)) - 6);
    });
}
template <std::size_t Rank>
void fill_exactly(const tensor_ref<Rank>& tensor, random_source&& random) {
    fill_exactly(tensor, random);
}

/// Sets all elements to those of another tensor, each rounded once.
template <std::size_t Rank>
void round_to(const tensor_ref<Rank>& to, const tensor_ref<Rank>& from) {
    for_each_position(to.extents(),
                      [&](const position<Rank>& at) { set_element(to, at, element(from, at)); });
}

} // namespace mhr::test
