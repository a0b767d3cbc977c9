#pragma once

#include <mhr/core/tensor_view.hpp>
#include <mhr/reference/lora.hpp>
#include <mhr/reference/mixing.hpp>

#include "support/tensor.hpp"

/// \file
/// The oracle of routed LoRA, composed of those of mixing and of LoRA; generic in the scalar type.

namespace mhr::test {

/// [entries, heads, p, q] as the rows of one matrix (a), or as its columns (b).
template <class S>
tensor<S, 3> blocks_below_each_other(const tensor<S, 4>& blocks) {
    const auto& e = blocks.extents();
    tensor<S, 3> matrices({e[0], e[1] * e[2], e[3]});
    for_each_position(e, [&](const position<4>& at) {
        matrices(at[0], at[1] * e[2] + at[2], at[3]) = blocks(at[0], at[1], at[2], at[3]);
    });
    return matrices;
}
template <class S>
tensor<S, 3> blocks_beside_each_other(const tensor<S, 4>& blocks) {
    const auto& e = blocks.extents();
    tensor<S, 3> matrices({e[0], e[2], e[1] * e[3]});
    for_each_position(e, [&](const position<4>& at) {
        matrices(at[0], at[2], at[1] * e[3] + at[3]) = blocks(at[0], at[1], at[2], at[3]);
    });
    return matrices;
}

/// One layer on one batch.
template <class S>
struct routed_oracle {
    tensor<index_t, 1> entry_of_row;
    S scale;
    tensor<S, 2> x;
    tensor<S, 4> a, b;
    tensor<S, 3> weights;

    [[nodiscard]] tensor<S, 3> mixed_a() const { return blocks_below_each_other(mix(a)); }
    [[nodiscard]] tensor<S, 3> mixed_b() const { return blocks_beside_each_other(mix(b)); }

    /// Adds to y.
    void forward(tensor<S, 2>& y) const {
        reference::lora_forward(entry_of_row.const_view(), x.const_view(), mixed_a().const_view(),
                                mixed_b().const_view(), scale, y.view());
    }

    /// Adds to the gradients.
    void backward(const tensor<S, 2>& d_y, tensor<S, 2>& d_x, tensor<S, 4>& d_a, tensor<S, 4>& d_b,
                  tensor<S, 3>& d_weights) const {
        const auto matrices_a = mixed_a();
        const auto matrices_b = mixed_b();
        tensor<S, 3> d_matrices_a(matrices_a.extents()), d_matrices_b(matrices_b.extents());
        reference::lora_backward(entry_of_row.const_view(), x.const_view(), matrices_a.const_view(),
                                 matrices_b.const_view(), scale, d_y.const_view(), d_x.view(),
                                 d_matrices_a.view(), d_matrices_b.view());
        tensor<S, 4> d_mixed_a(mixed_extents(a)), d_mixed_b(mixed_extents(b));
        for_each_position(d_mixed_a.extents(), [&](const position<4>& at) {
            d_mixed_a(at[0], at[1], at[2], at[3]) =
                d_matrices_a(at[0], at[1] * a.extents()[2] + at[2], at[3]);
        });
        for_each_position(d_mixed_b.extents(), [&](const position<4>& at) {
            d_mixed_b(at[0], at[1], at[2], at[3]) =
                d_matrices_b(at[0], at[2], at[1] * b.extents()[3] + at[3]);
        });
        reference::mix_backward(weights.const_view(), a.const_view(), d_mixed_a.const_view(),
                                d_a.view(), d_weights.view());
        reference::mix_backward(weights.const_view(), b.const_view(), d_mixed_b.const_view(),
                                d_b.view(), d_weights.view());
    }

  private:
    [[nodiscard]] std::array<index_t, 4> mixed_extents(const tensor<S, 4>& modules) const {
        const auto& e = modules.extents();
        return {weights.extents()[0], e[0], e[2], e[3]};
    }
    [[nodiscard]] tensor<S, 4> mix(const tensor<S, 4>& modules) const {
        tensor<S, 4> mixed(mixed_extents(modules));
        reference::mix_forward(weights.const_view(), modules.const_view(), mixed.view());
        return mixed;
    }
};

} // namespace mhr::test
