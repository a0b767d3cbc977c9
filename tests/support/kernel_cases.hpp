#pragma once

#include <array>
#include <cstddef>

#include <mhr/core/element_type.hpp>

#include "support/guarded_tensor.hpp"
#include "support/scalar_types.hpp"

// The types and layouts in which the tests of a kernel with three tensors try its cases.

namespace mhr {
namespace test {

// Calls f(case, three types, four layouts) for each case with every combination of types beside
// sums of this type. The layouts change from call to call, each at a pace of its own.
template <class Cases, class F>
void for_each_type_of_three(element_type sums, const Cases& cases, F&& f) {
    std::size_t number = 0;
    for (element_type a : types_beside(sums))
        for (element_type b : types_beside(sums))
            for (element_type c : types_beside(sums))
                for (const auto& one : cases) {
                    ++number;
                    const auto layout_of = [&](std::size_t pace) {
                        return all_layouts[number / pace % all_layouts.size()];
                    };
                    f(one, std::array<element_type, 3>{a, b, c},
                      std::array<layout, 4>{layout_of(1), layout_of(2), layout_of(3),
                                            layout_of(5)});
                }
}

// Calls f with every combination of three layouts.
template <class F>
void for_each_layout_of_three(F&& f) {
    for (layout a : all_layouts)
        for (layout b : all_layouts)
            for (layout c : all_layouts)
                f(a, b, c);
}

} // namespace test
} // namespace mhr
