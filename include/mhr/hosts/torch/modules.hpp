#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include <torch/arg.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/hosts/torch/lora.hpp>
#include <mhr/hosts/torch/routing.hpp>
#include <mhr/hosts/torch/tensors.hpp>
#include <mhr/routing/gates.hpp>
#include <mhr/routing/logits.hpp>
#include <mhr/routing/router.hpp>
#include <mhr/training/initialisation.hpp>

/// \file
/// Modules of LibTorch: a linear layer with routed LoRA and its router. Their parameters have the
/// names and shapes of PEFT's Poly.

namespace mhr {
namespace torch {

/// TORCH_MODULE needs this name, `torch::nn`.
namespace nn = ::torch::nn;

inline namespace MHR_ISA {

/// Sizes of a router; PEFT's names are n_tasks, n_skills and n_splits.
class RouterOptions {
  public:
    /// Makes options with one head, in f32.
    RouterOptions(std::int64_t tasks, std::int64_t modules) : tasks_(tasks), modules_(modules) {}

    /// The number of rows of the table.
    TORCH_ARG(std::int64_t, tasks);
    /// The number of modules that there are to choose from.
    TORCH_ARG(std::int64_t, modules);
    /// The number of heads, which choose on their own.
    TORCH_ARG(std::int64_t, heads) = 1;
    /// The temperature of the noise while training.
    TORCH_ARG(double, temperature) = 1;
    /// The type of the logits.
    TORCH_ARG(at::ScalarType, dtype) = at::kFloat;
};

/// Sizes of an adapted layer; PEFT's names are n_skills, r and n_splits.
class RoutedLoraOptions {
  public:
    /// Makes options with one head.
    RoutedLoraOptions(std::int64_t modules, std::int64_t rank) : modules_(modules), rank_(rank) {}

    /// The number of modules of the inventory.
    TORCH_ARG(std::int64_t, modules);
    /// The rank of each module.
    TORCH_ARG(std::int64_t, rank);
    /// The number of heads, which choose on their own; they divide the features.
    TORCH_ARG(std::int64_t, heads) = 1;
    /// The factor of the adapter; 0, which would switch it off, stands for 1 / rank.
    TORCH_ARG(double, scale) = 0;
};

namespace module_details {

inline void check_at_least_1(argument_checks& checks, const char* argument, std::int64_t number) {
    checks.expect(number >= 1, argument, "1 or more", number);
}

/// A seed from LibTorch's generator, so that torch::manual_seed decides.
inline std::uint64_t draw_seed() {
    return static_cast<std::uint64_t>(
        at::randint(std::int64_t{1} << 62, {1}, at::kLong).item<std::int64_t>());
}

} // namespace module_details

/// The table of logits, one row for each task, and the rule of Poly and MHR: a sigmoid, while
/// training with Gumbel noise, divided by its sum over the modules. A model may have one router
/// for all layers (register it once, in the model), one for some of them, or one for each.
class RouterImpl : public ::torch::nn::Module {
  public:
    /// These are refused: a number below 1; a type that is no element type.
    explicit RouterImpl(const RouterOptions& options_) : options(options_) {
        argument_checks checks("torch::Router");
        module_details::check_at_least_1(checks, "tasks", options.tasks());
        module_details::check_at_least_1(checks, "modules", options.modules());
        module_details::check_at_least_1(checks, "heads", options.heads());
        checks.raise();
        module_logits = register_parameter(
            "module_logits",
            at::empty({options.tasks(), options.heads() * options.modules()}, options.dtype()));
        reset_parameters();
    }

    /// Draws uniform logits in +-1e-3 by LibTorch's generator.
    void reset_parameters() {
        const c10::AutoGradMode no_graph(false);
        const at::Tensor table = logits();
        initialise_logits(module_details::draw_seed(), ref_of<3>(table, "dtype"));
    }

    /// The weights of a batch, [entries, heads, modules]: computed once and given to every layer
    /// that shares this router. `uniforms`, of the same shape, is the noise of training (numbers
    /// in (0, 1)); if undefined, LibTorch's generator draws it. What `route` refuses is refused.
    at::Tensor forward(const std::shared_ptr<const routed_batch>& batch,
                       const at::Tensor& uniforms = {}) {
        if (!is_training()) return route(logits(), batch, routing_rule{sigmoid_gate{}});
        argument_checks checks("torch::Router");
        autograd_details::check_batch(checks, batch.get());
        checks.raise();
        const at::Tensor noise = uniforms.defined() ? uniforms.detach() : draw_noise(*batch);
        const auto numbers = tensor_details::checked_ref<3>(checks, "uniforms", noise);
        checks.raise();
        return route(logits(), batch,
                     routing_rule{gumbel_sigmoid_gate{numbers, options.temperature()}}, {noise});
    }

    RouterOptions options;    ///< as it was made
    at::Tensor module_logits; ///< [tasks, heads modules]

  private:
    [[nodiscard]] at::Tensor logits() const {
        return module_logits.view({options.tasks(), options.heads(), options.modules()});
    }

    [[nodiscard]] at::Tensor draw_noise(const routed_batch& batch) const {
        const bool wide = module_logits.scalar_type() == at::kDouble;
        return at::rand(
            {static_cast<std::int64_t>(batch.tasks.size()), options.heads(), options.modules()},
            wide ? at::kDouble : at::kFloat);
    }
};
/// `Router`, what holds a RouterImpl, as LibTorch's modules are held.
TORCH_MODULE(Router);

/// A linear layer, whose parameters are frozen, and an inventory of LoRA modules beside it:
/// y = base_layer(x) + scale (x A) B of each row's task. Until they are trained, the modules change
/// nothing.
class RoutedLoraLinearImpl : public ::torch::nn::Module {
  public:
    /// The parameters get the type of the layer's. These are refused: no layer; a number below 1;
    /// features that are not divisible by the heads; a type that is no element type.
    RoutedLoraLinearImpl(::torch::nn::Linear base, const RoutedLoraOptions& options_)
        : options(options_) {
        argument_checks checks("torch::RoutedLoraLinear");
        checks.expect(!base.is_empty(), "base", "a layer", "an empty holder");
        module_details::check_at_least_1(checks, "modules", options.modules());
        module_details::check_at_least_1(checks, "rank", options.rank());
        module_details::check_at_least_1(checks, "heads", options.heads());
        checks.raise();
        const std::int64_t heads = options.heads();
        const std::int64_t in = base->options.in_features();
        const std::int64_t out = base->options.out_features();
        checks.expect(in % heads == 0 && out % heads == 0, "heads",
                      joined("a divisor of ", in, " and ", out), heads);
        checks.raise();
        base_layer = register_module("base_layer", std::move(base));
        for (at::Tensor& parameter : base_layer->parameters())
            parameter.set_requires_grad(false);
        const auto type = base_layer->weight.options().requires_grad(false);
        poly_lora_A = register_parameter(
            "poly_lora_A", at::empty({heads, options.modules(), in / heads, options.rank()}, type));
        poly_lora_B = register_parameter(
            "poly_lora_B",
            at::empty({heads, options.modules(), options.rank(), out / heads}, type));
        reset_parameters();
    }

    /// The values that PEFT starts from, drawn by LibTorch's generator; see initialise_inventory.
    void reset_parameters() {
        initialise_inventory(module_details::draw_seed(),
                             {ref_of<4>(poly_lora_A, "base"), ref_of<4>(poly_lora_B, "base")});
    }

    /// x [.., in_features], with as many rows as the batch; weights [entries, heads, modules], from
    /// a router for the same batch. What `why_not` of add_routed_lora_ tells is refused.
    at::Tensor forward(const at::Tensor& x, const at::Tensor& weights,
                       const std::shared_ptr<const routed_batch>& batch) {
        // The base layer's output is then memory of its own rather than a view, so that autograd
        // need not copy its gradient when the adapter is added in place.
        argument_checks checks("torch::RoutedLoraLinear");
        const at::Tensor rows = autograd_details::flat_rows(checks, "x", x);
        checks.raise();
        const double scale = is_exactly(options.scale(), 0)
                                 ? 1 / static_cast<double>(options.rank())
                                 : options.scale();
        const at::Tensor y = add_routed_lora_(base_layer->forward(rows), rows, poly_lora_A,
                                              poly_lora_B, weights, batch, scale);
        auto sizes = x.sizes().vec();
        sizes.back() = y.size(1);
        return y.view(sizes);
    }

    RoutedLoraOptions options;               ///< as it was made
    ::torch::nn::Linear base_layer{nullptr}; ///< frozen
    at::Tensor poly_lora_A;                  ///< [heads, modules, in_features / heads, rank]
    at::Tensor poly_lora_B;                  ///< [heads, modules, rank, out_features / heads]
};
/// `RoutedLoraLinear`, what holds a RoutedLoraLinearImpl.
TORCH_MODULE(RoutedLoraLinear);

} // namespace MHR_ISA
} // namespace torch
} // namespace mhr
