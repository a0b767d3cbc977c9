#pragma once

#include <cstddef>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/random.hpp>
#include <mhr/core/tensor_ref.hpp>

/// \file
/// Noise of the Gumbel-sigmoid gate.

namespace mhr {
inline namespace MHR_ISA {

/// Fills a tensor with uniform numbers inside (0, 1), never 0 or 1, in row-major order of its
/// indices whatever the strides: (k + 1/2) / 2^n, where a draw takes n = 52 bits for f64, 23 for
/// f32, and 7 for bf16 and f16 alike. They are the same with every standard library.
///
/// `engine` is any uniform random bit generator, such as std::mt19937_64. The rank is told where
/// the tensor is written in braces or is a view: `draw_uniforms<3>(engine, {u, {n, heads,
/// modules}})`.
///
/// These are refused: uniforms of negative extents, without memory, or of which elements overlap.
template <std::size_t Rank, class Engine>
void draw_uniforms(Engine& engine, const tensor_ref<Rank>& uniforms) {
    argument_checks checks("draw_uniforms");
    checks.output("uniforms", uniforms, argument_checks::any_extents<Rank>());
    checks.raise();
    const element_type type = uniforms.type();
    for_each_element(uniforms, [&](void* to) {
        switch (type) {
        case element_type::f64:
            return write_number(type, to, draw_uniform<double, 52>(engine));
        case element_type::f32:
            return write_number(type, to, draw_uniform<float, 23>(engine));
        case element_type::bf16:
        case element_type::f16:
            return write_number(type, to, draw_uniform<float, 7>(engine));
        }
    });
}

} // namespace MHR_ISA
} // namespace mhr
