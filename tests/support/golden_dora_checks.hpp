#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include <mhr/batch/batch.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/dora/dora.hpp>
#include <mhr/lora/lora.hpp>

#include "support/golden_case.hpp"
#include "support/golden_layers.hpp"
#include "support/tensor.hpp"

/// \file
/// Golden cases of DoRA: LoRA, DoRA in place, and the bias after it, as an engine calls them.

namespace mhr::test {

template <class T>
void check_dora(const golden_case& c, outcome& result) {
    const index_t in = c.size("d_in"), out = c.size("d_out"), rank = c.size("rank");
    const index_t sequences = c.size("batch"), length = c.size("seq"), rows = sequences * length;
    const double tolerance = c.tolerance();
    base_layer<T> base;
    base.weight = c.file.read<T>("base_weight", {out, in});
    tensor<T, 1> bias({out});
    if (c.flag("bias")) bias = c.file.read<T>("base_bias", {out});
    const auto a = c.file.read<T>("lora_A", {rank, in}), b = c.file.read<T>("lora_B", {out, rank});
    const auto magnitude = c.file.read<T>("magnitude", {out});
    const auto x = c.file.read<T>("x", {sequences, length, in});
    const auto d_y = c.file.read<T>("d_y", {sequences, length, out});
    const auto all = [&](const char* name, index_t features) {
        const auto read = c.file.read<T>(name, {sequences, length, features});
        tensor<T, 2> flat({rows, features});
        flat.values() = read.values();
        return flat;
    };
    const double scale = c.flag("use_rslora")
                             ? c.number("lora_alpha") / std::sqrt(static_cast<double>(rank))
                             : c.number("lora_alpha") / static_cast<double>(rank);
    result.require(std::abs(scale - c.number("scaling")) <= 1e-12 * scale,
                   "scaling: not alpha / r");

    const element_type sums = element_type_of_v<T>;
    const lora adapter{a.view().transpose(0, 1), b.view().transpose(0, 1), scale};
    tensor<T, 1> quotient({out}), inverse_norm({out});
    dora_quotient({}, base.weight.view(), adapter, magnitude.view(), quotient.view());
    dora_quotient({}, base.weight.view(), adapter, {}, inverse_norm.view());
    tensor<T, 2> merged({out, in});
    for_each_position(merged.extents(), [&](const position<2>& at) {
        T value = base.weight(at[0], at[1]);
        for (index_t k = 0; k < rank; ++k)
            value += static_cast<T>(scale) * b(at[0], k) * a(k, at[1]);
        merged(at[0], at[1]) = quotient(at[0]) * value;
    });
    result.compare("merged_weight", merged.view(), c.file.read<T>("merged_weight", {out, in}),
                   tolerance);
    if (c.text("variant") == "init") {
        const lora none{a.view().transpose(0, 1), b.view().transpose(0, 1), 0};
        tensor<T, 1> ones({out}), of_base({out});
        std::fill(ones.values().begin(), ones.values().end(), T(1));
        dora_quotient({}, base.weight.view(), none, magnitude.view(), of_base.view());
        result.compare("magnitude / ||W||", of_base.view(), ones, tolerance);
    }

    batch_plan plan;
    plan.assign_single_task(rows);
    const std::array<dora, 1> doras{{{quotient.view(), inverse_norm.view()}}};
    const dora_list list{doras.data(), 1};
    owned_workspace of_state(lora_state_size({plan}, adapter, sums));
    workspace state_memory = of_state;
    const lora_state state = take_lora_state(state_memory, {plan}, adapter, sums);
    auto adapted = base.forward(rows_of(x));
    lora_forward({plan}, adapter, rows_of(x), adapted.view(), state);
    tensor<T, 2> y(adapted.extents());
    dora_forward({plan}, list, adapted.view(), y.view());
    for_each_position(y.extents(), [&](const position<2>& at) { y(at[0], at[1]) += bias(at[1]); });
    result.compare("y", y.view(), all("y", out), tolerance);

    tensor<T, 2> d_adapted(adapted.extents());
    tensor<T, 1> d_magnitude({out});
    const tensor_ref<1> of_magnitude = d_magnitude.view();
    dora_backward({plan}, list, adapted.view(), rows_of(d_y), {d_adapted.view(), &of_magnitude});
    auto d_x = base.backward(d_adapted.const_view());
    tensor<T, 2> d_a({rank, in}), d_b({out, rank});
    owned_workspace scratch(lora_backward_workspace_size({plan}, adapter, sums));
    lora_backward(
        {plan}, adapter, rows_of(x), d_adapted.view(), state,
        {d_x.view(), lora_matrices{d_a.view().transpose(0, 1), d_b.view().transpose(0, 1)}},
        scratch);
    result.compare("d_magnitude", d_magnitude.view(), c.file.read<T>("d_magnitude", {out}),
                   tolerance);
    result.compare("d_x", d_x.view(), all("d_x", in), tolerance);
    result.compare("d_lora_A", d_a.view(), c.file.read<T>("d_lora_A", {rank, in}), tolerance);
    result.compare("d_lora_B", d_b.view(), c.file.read<T>("d_lora_B", {out, rank}), tolerance);
}

} // namespace mhr::test
