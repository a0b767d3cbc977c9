#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <mhr/core/workspace.hpp>
#include <mhr/serving/combining/combine_lora.hpp>

#include "support/golden_case.hpp"
#include "support/tensor.hpp"

/// \file
/// Golden cases of adapters that are combined, as PEFT's add_weighted_adapter does it.

namespace mhr::test {

/// The rule of a combination type.
inline combining_rule rule_of(const golden_case& c) {
    const std::string type = c.text("combination_type");
    combining_rule rule;
    if (c.has("density")) rule.density = c.number("density");
    if (c.has("majority_sign_method")) {
        const std::string method = c.text("majority_sign_method");
        if (method != "total" && method != "frequency") throw std::runtime_error("unknown method");
        rule.election = method == "total" ? sign_election::total : sign_election::frequency;
    }
    if (type == "ties" || type == "magnitude_prune")
        rule.pruned = pruning::magnitude;
    else if (type == "dare_ties" || type == "dare_linear")
        rule.pruned = pruning::mask;
    else if (type != "linear" && type != "cat")
        throw std::runtime_error("unknown combination type " + type);
    return rule;
}

template <class T>
void check_merge(const golden_case& c, outcome& result) {
    const index_t in = c.size("d_in"), out = c.size("d_out"), count = c.size("n_adapters");
    const auto n = static_cast<std::size_t>(count);
    const combining_rule rule = rule_of(c);
    const auto weights = c.file.read<T>("weights", {count});
    const auto scaling = c.file.read<T>("scaling", {count});
    std::vector<tensor<T, 2>> a(n), b(n);
    std::vector<tensor<std::uint8_t, 2>> keep_a(n), keep_b(n);
    std::vector<weighted_lora> adapters(n);
    for (std::size_t i = 0; i < n; ++i) {
        const std::string at = "." + std::to_string(i);
        a[i] = c.file.read<T, 2>("lora_A" + at);
        b[i] = c.file.read<T, 2>("lora_B" + at);
        const auto place = static_cast<index_t>(i);
        adapters[i].adapter = {a[i].view().transpose(0, 1), b[i].view().transpose(0, 1),
                               static_cast<double>(scaling(place))};
        adapters[i].weight = static_cast<double>(weights(place));
        if (rule.pruned != pruning::mask) continue;
        keep_a[i] = c.file.read<std::uint8_t, 2>("keep_A" + at);
        keep_b[i] = c.file.read<std::uint8_t, 2>("keep_B" + at);
        adapters[i].keep_a = keep_a[i].const_view().transpose(0, 1);
        adapters[i].keep_b = keep_b[i].const_view().transpose(0, 1);
    }
    const index_t rank = c.size("merged_rank");
    std::string ranks;
    for (const auto& matrix : a)
        ranks += (ranks.empty() ? "" : ",") + std::to_string(matrix.extents()[0]);
    result.require(c.text("ranks") == ranks, "ranks: not those of the adapters");
    result.require(c.size("merged_alpha") == rank, "merged_alpha: not the rank");
    tensor<T, 2> merged_a({rank, in}), merged_b({out, rank});
    const lora_matrices merged{merged_a.view().transpose(0, 1), merged_b.view().transpose(0, 1)};
    const tensor_view<const weighted_lora, 1> list(adapters.data(), {count});
    // PEFT combines a single adapter by `linear`, whatever was asked for.
    if (c.text("combination_type") == "cat" && count > 1) {
        concatenate_lora({}, list, merged);
    } else {
        owned_workspace scratch(combine_lora_workspace_size(count, rule));
        combine_lora({}, list, rule, merged, scratch);
    }
    result.compare("merged_A", merged_a.view(), c.file.read<T>("merged_A", {rank, in}),
                   c.tolerance(), 1e-3);
    result.compare("merged_B", merged_b.view(), c.file.read<T>("merged_B", {out, rank}),
                   c.tolerance(), 1e-3);
    // What PEFT then applies.
    const double scale = c.flag("use_rslora") ? scale_of_peft_with_rslora(rank) : 1;
    tensor<double, 1> got({1}), want({1});
    got(0) = scale;
    want(0) = c.number("merged_scaling");
    result.compare("merged_scaling", got.view(), want, 1e-12);
    tensor<T, 2> delta({out, in});
    for_each_position(delta.extents(), [&](const position<2>& at) {
        for (index_t k = 0; k < rank; ++k)
            delta(at[0], at[1]) += static_cast<T>(scale) * merged_b(at[0], k) * merged_a(k, at[1]);
    });
    result.compare("merged_delta", delta.view(), c.file.read<T>("merged_delta", {out, in}),
                   c.tolerance(), 1e-3);
}

} // namespace mhr::test
