#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include <mhr/core/workspace.hpp>
#include <mhr/routing/rows/row_gate.hpp>
#include <mhr/routing/rows/row_norm.hpp>
#include <mhr/routing/rows/row_weights.hpp>

#include "support/golden_case.hpp"
#include "support/golden_row_layers.hpp"
#include "support/tensor.hpp"

/// \file
/// Golden cases of routers of rows: gates, norms, X-LoRA's scalings and its classifier.

namespace mhr::test {

/// The number of modules that a top-k keeps; a case without one keeps all.
inline index_t kept_of(const golden_case& c) {
    const double kept = c.number_or("top_k", -1);
    return kept > 0 ? static_cast<index_t>(kept) : c.size("n_adapters");
}

/// x G + bias, and its backward.
/// @{
template <class T>
tensor<T, 2> run_gate(const row_gate& gate, const tensor<T, 2>& x) {
    tensor<T, 2> logits({x.extents()[0], gate.matrix.extent(1)});
    row_gate_forward({}, gate, x.view(), logits.view());
    return logits;
}
template <class T>
void run_gate_backward(const row_gate& gate, const tensor<T, 2>& x, const tensor<T, 2>& d_logits,
                       const row_gate_gradients& gradients) {
    owned_workspace scratch(
        row_gate_backward_workspace_size(gate, gradients, element_type_of_v<T>));
    row_gate_backward({}, gate, x.view(), d_logits.view(), gradients, scratch);
}
/// @}

/// Row weights and the gradient of their logits.
/// @{
template <class T, class Rule>
tensor<T, 2> run_weights(const Rule& rule, const tensor<T, 2>& logits) {
    tensor<T, 2> weights(logits.extents());
    row_weights_forward({}, with_one_head(logits.view()), rule, with_one_head(weights.view()));
    return weights;
}
template <class T, class Rule>
tensor<T, 2> run_weights_backward(const Rule& rule, const tensor<T, 2>& logits,
                                  const tensor<T, 2>& d_weights) {
    tensor<T, 2> d_logits(logits.extents());
    row_weights_backward({}, with_one_head(logits.view()), rule, with_one_head(d_weights.view()),
                         with_one_head(d_logits.view()));
    return d_logits;
}
/// @}

/// A gate [modules, features] with a rule: weights, d_x and d_gate.
template <class T, class Rule>
void check_gate(const golden_case& c, const Rule& rule, outcome& result) {
    const index_t modules = c.size("n_adapters");
    const auto x = read_row_matrix<T>(c, "x", c.size("d_in"));
    const auto gate = c.file.read<T>("gate", {modules, c.size("d_in")});
    const auto d_weights = read_row_matrix<T>(c, "d_weights", modules);
    const row_gate parameters{gate.view().transpose(0, 1)};
    const auto logits = run_gate(parameters, x);
    result.compare("weights", run_weights(rule, logits).view(),
                   read_row_matrix<T>(c, "weights", modules), c.tolerance());
    const auto d_logits = run_weights_backward(rule, logits, d_weights);
    tensor<T, 2> d_x(x.extents()), d_gate(gate.extents());
    run_gate_backward(parameters, x, d_logits, {d_x.view(), d_gate.view().transpose(0, 1)});
    const double floor = outcome::largest(d_weights.view());
    result.compare("d_x", d_x.view(), read_row_matrix<T>(c, "d_x", c.size("d_in")), c.tolerance(),
                   floor);
    result.compare("d_gate", d_gate.view(), c.file.read<T, 2>("d_gate"), c.tolerance(), floor);
}

/// The kernel router of mttl: hidden states and embeddings of experts, each through a linear layer.
template <class T>
void check_rkhs_gate(const golden_case& c, outcome& result) {
    const auto read = [&](const char* name) { return c.file.read<T, 2>(name); };
    const auto x = read_row_matrix<T>(c, "x", c.size("d_in"));
    const auto hidden_weight = read("hidden_weight"), expert_weight = read("expert_weight");
    const auto hidden_bias = c.file.read<T, 1>("hidden_bias");
    const auto expert_bias = c.file.read<T, 1>("expert_bias");
    const auto keys =
        run_gate({expert_weight.view().transpose(0, 1), expert_bias.view()}, read("embeddings"));
    const auto hidden = run_gate({hidden_weight.view().transpose(0, 1), hidden_bias.view()}, x);
    const auto logits = run_gate<T>({keys.view().transpose(0, 1)}, hidden);
    const routing_rule rule{identity_gate{}, softmax_of_all_normaliser{kept_of(c)}};
    result.compare("weights", run_weights(rule, logits).view(),
                   read_row_matrix<T>(c, "weights", c.size("n_adapters")), c.tolerance());
}

/// A matrix with rows normalised as mttl names it, and its backward.
template <class T>
struct named_norm {
    std::string name;

    [[nodiscard]] row_norm kind() const {
        if (name != "norm_d" && name != "norm_p" && name != "unit")
            throw std::runtime_error("unknown norm " + name);
        return name == "unit" ? row_norm::unit : row_norm::layer;
    }
    /// norm_p normalises each feature across the rows.
    template <class View>
    auto oriented(const View& view) const {
        return name == "norm_p" ? view.transpose(0, 1) : view;
    }
    tensor<T, 2> forward(const tensor<T, 2>& x) const {
        if (name == "id") return x;
        tensor<T, 2> y(x.extents());
        row_norm_forward({}, kind(), oriented(x.view()), oriented(y.view()));
        return y;
    }
    tensor<T, 2> backward(const tensor<T, 2>& x, const tensor<T, 2>& d_y) const {
        if (name == "id") return d_y;
        tensor<T, 2> d_x(x.extents());
        row_norm_backward({}, kind(), oriented(x.view()), oriented(d_y.view()),
                          oriented(d_x.view()));
        return d_x;
    }
};

/// mttl's PerTokenSelector with the layer that uses its weights.
template <class T, class Rule>
void check_selector(const golden_case& c, const Rule& rule, outcome& result) {
    const index_t modules = c.size("n_adapters"), in = c.size("d_in"), out = c.size("d_out");
    // The softmax of some cases is in f32, whatever the dtype.
    const double tolerance = c.flag("float32_softmax") ? c.tolerance("tol_weights") : c.tolerance();
    (void)c.tolerance();
    result.require(mhr::is_exactly(c.number("layer_norm_eps"), layer_norm_epsilon), "another eps");
    const named_norm<T> of_rows{c.text("input_norm")}, of_prototypes{c.text("proto_norm")};
    const auto x = read_row_matrix<T>(c, "x", in);
    const auto prototypes = c.file.read<T>("prototypes", {modules, in});
    const auto d_weights = read_row_matrix<T>(c, "d_weights", modules);
    const auto want_weights = read_row_matrix<T>(c, "weights", modules);

    const auto rows = of_rows.forward(x);
    const auto normalised = of_prototypes.forward(prototypes);
    const row_gate gate{normalised.view().transpose(0, 1)};
    const auto logits = run_gate(gate, rows);
    const auto weights = run_weights(rule, logits);
    result.compare("weights", weights.view(), want_weights, tolerance);

    const auto d_logits = run_weights_backward(rule, logits, d_weights);
    tensor<T, 2> d_rows(x.extents()), d_normalised(prototypes.extents());
    run_gate_backward(gate, rows, d_logits, {d_rows.view(), d_normalised.view().transpose(0, 1)});
    const double floor = outcome::largest(d_weights.view());
    result.compare("d_x", of_rows.backward(x, d_rows).view(), read_row_matrix<T>(c, "d_x", in),
                   tolerance, floor);
    result.compare("d_prototypes", of_prototypes.backward(prototypes, d_normalised).view(),
                   c.file.read<T, 2>("d_prototypes"), tolerance, floor);

    row_layer<T> layer;
    layer.base = read_base_of_rows<T>(c);
    const index_t rank = c.size("rank");
    layer.scale = c.number("scaling");
    layer.a = tensor<T, 4>({1, modules, in, rank});
    layer.b = tensor<T, 4>({1, modules, rank, out});
    layer.a.values() = c.file.read<T>("lora_A", {modules, in, rank}).values();
    layer.b.values() = c.file.read<T>("lora_B", {modules, rank, out}).values();
    const auto d_y = read_row_matrix<T>(c, "d_y", out);
    const auto got = run_row_layer(layer, x, weights, d_y);
    result.compare("y", got.y.view(), read_row_matrix<T>(c, "y", out), tolerance);
    result.compare("layer_d_x", got.d_x.view(), read_row_matrix<T>(c, "layer_d_x", in), tolerance);
    result.compare("layer_d_weights", got.d_weights.view(),
                   read_row_matrix<T>(c, "layer_d_weights", modules), tolerance);
    result.compare("d_lora_A", got.d_a.view().slice(0, 0), c.file.read<T, 3>("d_lora_A"),
                   tolerance);
    result.compare("d_lora_B", got.d_b.view().slice(0, 0), c.file.read<T, 3>("d_lora_B"),
                   tolerance);
    auto y_mixed = layer.base.forward(x.view());
    const auto mixed = run_mixed_matrices(layer, x, weights);
    for_each_position(mixed.extents(), [&](const position<2>& at) {
        element(y_mixed.view(), at) += element(mixed.view(), at);
    });
    result.compare("y_mixed", y_mixed.view(), read_row_matrix<T>(c, "y_mixed", out), tolerance);
}

/// Calls `f` with PEFT's rule for given scalings.
template <class F>
void with_xlora_rule(const golden_case& c, F&& f) {
    if (c.flag("softmax_topk"))
        f(softmax_of_nonzero_normaliser{kept_of(c)});
    else
        f(kept_normaliser{kept_of(c)});
}

/// X-LoRA's layer, with the scalings of all layers given.
template <class T>
void check_xlora(const golden_case& c, outcome& result) {
    const index_t modules = c.size("n_adapters"), layers = c.size("n_layers");
    const index_t number = c.size("layer_number"), rows = c.size("batch") * c.size("seq");
    const auto all =
        c.file.read<T>("scalings_in", {c.size("batch"), c.size("seq"), layers, modules});
    const tensor_view<const T, 3> of_layers(all.values().data(), {rows, layers, modules});
    const auto scalings = copy_as<T>(of_layers.slice(1, number));
    const auto scaling = c.file.read<T>("scaling", {modules});
    const double global = c.number("global_scaling_weight");
    const auto x = read_row_matrix<T>(c, "x", c.size("d_in"));
    const auto d_y = read_row_matrix<T>(c, "d_y", c.size("d_out"));
    const auto layer = read_row_layer<T>(c);
    with_xlora_rule(c, [&](const auto& normaliser) {
        const auto want = read_row_matrix<T>(c, "weights", modules);
        result.compare("weights",
                       run_weights(routing_rule{identity_gate{}, normaliser}, scalings).view(),
                       want, c.tolerance(), 1e-3);
        // The layer has one scale; those of the modules are factors of the weights.
        const routing_rule rule{identity_gate{},
                                scaled_normaliser{normaliser, global, scaling.view()}};
        const auto got = run_row_layer(layer, x, run_weights(rule, scalings), d_y);
        auto y = got.y;
        if (c.flag("lora_bias"))
            for (index_t m = 0; m < modules; ++m) {
                // The bias on B is the host's: no weight enters.
                const auto name = "lora_B_bias." + std::to_string(m);
                const auto bias = c.file.read<T>(name, {c.size("d_out")});
                tensor<T, 1> d_bias(bias.extents());
                for_each_position(y.extents(), [&](const position<2>& at) {
                    y(at[0], at[1]) += static_cast<T>(global) * scaling(m) * bias(at[1]);
                    d_bias(at[1]) += static_cast<T>(global) * scaling(m) * d_y(at[0], at[1]);
                });
                result.compare("d_" + name, d_bias.view(), c.file.read<T, 1>("d_" + name),
                               c.tolerance());
            }
        result.compare("y", y.view(), read_row_matrix<T>(c, "y", c.size("d_out")), c.tolerance());
        result.compare("d_x", got.d_x.view(), read_row_matrix<T>(c, "d_x", c.size("d_in")),
                       c.tolerance());
        const double floor = outcome::largest(d_y.view());
        for (index_t m = 0; m < modules; ++m) {
            const auto at = "." + std::to_string(m);
            compare_module("d_lora_A" + at, got.d_a, m, c.file.read<T, 2>("d_lora_A" + at),
                           c.tolerance(), floor, result);
            compare_module("d_lora_B" + at, got.d_b, m, c.file.read<T, 2>("d_lora_B" + at),
                           c.tolerance(), floor, result);
        }
        tensor<T, 3> d_scalings({rows, layers, modules});
        const auto d_of_layer = run_weights_backward(rule, scalings, got.d_weights);
        for_each_position(d_of_layer.extents(), [&](const position<2>& at) {
            d_scalings(at[0], number, at[1]) = d_of_layer(at[0], at[1]);
        });
        const auto d_want = c.file.read<T, 4>("d_scalings_in");
        const tensor_view<const T, 3> d_all(d_want.values().data(), d_scalings.extents());
        result.compare("d_scalings_in", d_scalings.view(), copy_as<T>(d_all), c.tolerance(), floor);
    });
    result.require(c.text("ranks").size() >= static_cast<std::size_t>(2 * modules - 1),
                   "ranks: not one for each module");
}

/// X-LoRA's classifier: linear layers with ReLU between them, the host's, and a softmax.
template <class T>
void check_xlora_classifier(const golden_case& c, outcome& result) {
    const index_t modules = c.size("n_adapters"), layers = c.size("n_layers");
    const index_t rows = c.size("batch") * c.size("seq"), depth = c.size("depth");
    std::vector<tensor<T, 2>> weights, inputs, d_weights;
    std::vector<tensor<T, 1>> biases, d_biases;
    auto values = read_row_matrix<T>(c, "hidden", c.size("hidden_size"));
    const auto parameters = [&](index_t i) {
        const auto at = static_cast<std::size_t>(i);
        return row_gate{weights[at].view().transpose(0, 1), biases[at].view()};
    };
    for (index_t i = 0; i < depth; ++i) {
        const auto name = "layer." + std::to_string(i);
        weights.push_back(c.file.read<T, 2>(name + ".weight"));
        biases.push_back(c.file.read<T, 1>(name + ".bias"));
        inputs.push_back(values);
        values = run_gate(parameters(i), values);
        for (T& value : values.values())
            if (i + 1 < depth) value = std::max(value, T(0));
    }
    const bool layerwise = c.flag("layerwise_scalings");
    const tensor_view<const T, 3> logits(
        values.values().data(), {rows, layers, modules},
        {layerwise ? layers * modules : modules, layerwise ? modules : 0, 1});
    const auto d_scalings =
        c.file.read<T>("d_scalings", {c.size("batch"), c.size("seq"), layers, modules});
    const tensor_view<const T, 3> d_view(d_scalings.values().data(), logits.extents());
    tensor<T, 3> scalings(logits.extents()), d_logits(logits.extents());
    const auto run = [&](const auto& rule) {
        row_weights_forward({}, logits, rule, scalings.view());
        row_weights_backward({}, logits, rule, d_view, d_logits.view());
    };
    if (c.flag("enable_softmax"))
        run(routing_rule{tempered_gate{identity_gate{}, c.number("temperature")},
                         softmax_normaliser{}});
    else
        run(routing_rule{identity_gate{}, kept_normaliser{}});
    (void)c.number("temperature");
    const auto want = c.file.read<T, 4>("scalings");
    result.compare("scalings", scalings.view(),
                   copy_as<T>(tensor_view<const T, 3>(want.values().data(), scalings.extents())),
                   c.tolerance());
    // Logits that all layers share get the gradients of all.
    tensor<T, 2> d_values(values.extents());
    for_each_position(d_logits.extents(), [&](const position<3>& at) {
        d_values(at[0], layerwise ? at[1] * modules + at[2] : at[2]) +=
            element(d_logits.view(), at);
    });
    const double floor = outcome::largest(d_scalings.view());
    for (index_t i = depth - 1; i >= 0; --i) {
        const auto at = static_cast<std::size_t>(i);
        const auto name = "d_layer." + std::to_string(i);
        tensor<T, 2> d_input(inputs[at].extents()), d_weight(weights[at].extents());
        tensor<T, 1> d_bias(biases[at].extents());
        run_gate_backward(parameters(i), inputs[at], d_values,
                          {d_input.view(), d_weight.view().transpose(0, 1), d_bias.view()});
        result.compare(name + ".weight", d_weight.view(), c.file.read<T, 2>(name + ".weight"),
                       c.tolerance(), floor);
        result.compare(name + ".bias", d_bias.view(), c.file.read<T, 1>(name + ".bias"),
                       c.tolerance(), floor);
        for_each_position(d_input.extents(), [&](const position<2>& p) {
            if (i > 0 && !(element(inputs[at].view(), p) > 0)) element(d_input.view(), p) = 0;
        });
        d_values = d_input;
    }
    result.compare("d_hidden", d_values.view(),
                   read_row_matrix<T>(c, "d_hidden", c.size("hidden_size")), c.tolerance(), floor);
}

template <class T>
void check_row_routing(const golden_case& c, outcome& result) {
    const std::string variant = c.text("variant");
    const auto temperature = [&] {
        const double given = c.number("temperature");
        return given > 0 ? given : std::sqrt(c.number("d_in"));
    };
    if (variant == "gate_mixlora")
        check_gate<T>(c, routing_rule{identity_gate{}, softmax_normaliser{kept_of(c)}}, result);
    else if (variant == "mttl_phatgoose_gate")
        check_gate<T>(c, routing_rule{sigmoid_gate{}, kept_normaliser{}}, result);
    else if (variant == "gate_mttl_rkhs")
        check_rkhs_gate<T>(c, result);
    else if (variant == "mttl_arrow")
        check_selector<T>(c,
                          routing_rule{tempered_gate{magnitude_gate{}, temperature()},
                                       softmax_normaliser{kept_of(c)}},
                          result);
    else if (variant == "mttl_phatgoose")
        check_selector<T>(c,
                          routing_rule{tempered_gate{identity_gate{}, temperature()},
                                       softmax_normaliser{kept_of(c)}},
                          result);
    else if (variant == "xlora_classifier")
        check_xlora_classifier<T>(c, result);
    else
        check_xlora<T>(c, result);
}

} // namespace mhr::test
