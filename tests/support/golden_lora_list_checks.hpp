#pragma once

#include <cmath>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include <mhr/batch/batch.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/lora/lora.hpp>
#include <mhr/serving/merge.hpp>

#include "support/golden_case.hpp"
#include "support/golden_layers.hpp"
#include "support/tensor.hpp"

/// \file
/// Golden cases of plain adapters with a bias on B, and of a batch whose rows have adapters of
/// their own.

namespace mhr::test {

template <class T>
void check_lora_bias(const golden_case& c, outcome& result) {
    const index_t in = c.size("d_in"), out = c.size("d_out"), rank = c.size("rank");
    const index_t sequences = c.size("batch"), length = c.size("seq"), rows = sequences * length;
    const double tolerance = c.tolerance(), root = std::sqrt(static_cast<double>(rank));
    const base_layer<T> base = read_base<T>(c);
    const auto a = c.file.read<T>("lora_A", {rank, in}), b = c.file.read<T>("lora_B", {out, rank});
    const auto bias = c.file.read<T>("lora_B_bias", {out});
    const auto x = c.file.read<T>("x", {sequences, length, in});
    const auto d_y = c.file.read<T>("d_y", {sequences, length, out});
    const double scale =
        c.number("lora_alpha") / (c.flag("use_rslora") ? root : static_cast<double>(rank));
    result.require(std::abs(scale - c.number("scaling")) <= 1e-12 * scale,
                   "scaling: not alpha / r");

    batch_plan plan;
    plan.assign_single_task(rows);
    const lora adapter{a.view().transpose(0, 1), b.view().transpose(0, 1), scale};
    const lora_bias of_adapter{bias.view(), scale};
    const lora_bias_list biases{&of_adapter, 1};
    owned_workspace of_state(lora_state_size({plan}, adapter, element_type_of_v<T>));
    workspace memory = of_state;
    const lora_state state = take_lora_state(memory, {plan}, adapter, element_type_of_v<T>);
    auto y = base.forward(rows_of(x));
    lora_forward({plan}, adapter, rows_of(x), y.view(), state);
    lora_bias_forward({plan}, biases, y.view());
    const auto flat = [&](const char* name, index_t features) {
        tensor<T, 2> values({rows, features});
        values.values() = c.file.read<T>(name, {sequences, length, features}).values();
        return values;
    };
    result.compare("y", y.view(), flat("y", out), tolerance);

    auto d_x = base.backward(rows_of(d_y));
    tensor<T, 2> d_a({rank, in}), d_b({out, rank});
    tensor<T, 1> d_bias({out});
    const tensor_ref<1> gradient = d_bias.view();
    owned_workspace scratch(lora_backward_workspace_size({plan}, adapter, element_type_of_v<T>));
    lora_backward(
        {plan}, adapter, rows_of(x), rows_of(d_y), state,
        {d_x.view(), lora_matrices{d_a.view().transpose(0, 1), d_b.view().transpose(0, 1)}},
        scratch);
    lora_bias_backward({plan}, biases, rows_of(d_y), &gradient);
    result.compare("d_x", d_x.view(), flat("d_x", in), tolerance);
    result.compare("d_lora_A", d_a.view(), c.file.read<T>("d_lora_A", {rank, in}), tolerance);
    result.compare("d_lora_B", d_b.view(), c.file.read<T>("d_lora_B", {out, rank}), tolerance);
    result.compare("d_lora_B_bias", d_bias.view(), c.file.read<T>("d_lora_B_bias", {out}),
                   tolerance);
    if (!c.flag("bias")) return; // PEFT merges a bias into a bias only
    auto merged = base.weight;
    merge_lora({}, adapter, merged.view());
    result.compare("merged_weight", merged.view(), c.file.read<T>("merged_weight", {out, in}),
                   tolerance);
    auto merged_bias = base.bias;
    batch_plan one_row;
    one_row.assign_single_task(1);
    lora_bias_forward({one_row}, biases, merged_bias.view().prepend_axis());
    result.compare("merged_bias", merged_bias.view(), c.file.read<T>("merged_bias", {out}),
                   tolerance);
}

/// What stands between commas.
inline std::vector<std::string> parts_of(const std::string& text) {
    std::istringstream stream(text);
    std::vector<std::string> parts;
    for (std::string part; std::getline(stream, part, ',');)
        parts.push_back(part);
    return parts;
}

template <class T>
void check_mixed_batch(const golden_case& c, outcome& result) {
    const index_t in = c.size("d_in"), out = c.size("d_out"), count = c.size("n_adapters");
    const index_t sequences = c.size("batch"), length = c.size("seq"), rows = sequences * length;
    const auto n = static_cast<std::size_t>(count);
    base_layer<T> base;
    base.weight = c.file.read<T>("base_weight", {out, in});
    if (c.file.contains("base_bias")) base.bias = c.file.read<T>("base_bias", {out});
    const auto ids = c.file.read<std::int64_t>("adapter_ids", {sequences});
    const auto scaling = c.file.read<T>("scaling", {count});
    const auto ranks = parts_of(c.text("ranks")), alphas = parts_of(c.text("alphas"));
    const auto rslora = parts_of(c.text("use_rslora"));
    std::vector<tensor<T, 2>> a(n), b(n);
    std::vector<tensor<T, 1>> biases(n);
    std::vector<lora> adapters(n);
    std::vector<lora_bias> of_adapters(n);
    for (std::size_t i = 0; i < n; ++i) {
        const std::string at = "." + std::to_string(i);
        const index_t rank = std::stoi(ranks.at(i));
        a[i] = c.file.read<T>("lora_A" + at, {rank, in});
        b[i] = c.file.read<T>("lora_B" + at, {out, rank});
        const double divisor = rslora.at(i) == "True" ? std::sqrt(static_cast<double>(rank))
                                                      : static_cast<double>(rank);
        const double scale = std::stod(alphas.at(i)) / divisor;
        const auto given = static_cast<double>(scaling(static_cast<index_t>(i)));
        result.require(std::abs(scale - given) <= c.tolerance() * scale, "scaling: not alpha / r");
        adapters[i] = {a[i].view().transpose(0, 1), b[i].view().transpose(0, 1), scale};
        if (!c.file.contains("lora_B_bias" + at)) continue;
        biases[i] = c.file.read<T>("lora_B_bias" + at, {out});
        of_adapters[i] = {biases[i].view(), scale};
    }

    const grouping groups(ids, length);
    const batch_plan& plan = groups.plan();
    std::vector<index_t> numbers; // a task is an adapter
    for (index_t entry = 0; entry < plan.entries(); ++entry)
        numbers.push_back(static_cast<index_t>(plan.tasks()(entry)));
    const tensor_view<const index_t, 1> adapter_of_entry(numbers.data(), {plan.entries()});
    const lora_list list(adapters.data(), count, adapter_of_entry);
    tensor<T, 2> x({rows, in}), want({rows, out});
    const bool has_sequences = c.file.tensors().at("x").rank == 3;
    x.values() = has_sequences ? c.file.read<T>("x", {sequences, length, in}).values()
                               : c.file.read<T>("x", {sequences, in}).values();
    want.values() = has_sequences ? c.file.read<T>("y", {sequences, length, out}).values()
                                  : c.file.read<T>("y", {sequences, out}).values();
    owned_workspace of_state(lora_state_size({plan}, list, element_type_of_v<T>));
    workspace memory = of_state;
    const lora_state state = take_lora_state(memory, {plan}, list, element_type_of_v<T>);
    auto y = base.forward(x.const_view());
    lora_forward({plan}, list, x.view(), y.view(), state);
    lora_bias_forward({plan}, {of_adapters.data(), count, adapter_of_entry}, y.view());
    result.compare("y", y.view(), want, c.tolerance());
}

} // namespace mhr::test
