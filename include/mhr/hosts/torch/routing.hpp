#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>

#include <mhr/batch/batch_plan.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/hosts/torch/tensors.hpp>
#include <mhr/routing/router.hpp>

/// \file
/// Batches of many tasks, and the router as a function that LibTorch differentiates. It runs on
/// LibTorch's threads. Gradients of gradients (`create_graph`) are refused when they are asked for.

namespace mhr {
namespace torch {

/// A batch as routed layers see it: its rows grouped into entries, and the task of each entry.
struct routed_batch {
    batch_plan plan;                 ///< its entries are tasks, or sequences
    std::vector<std::int64_t> tasks; ///< of each entry
};

/// The unit that has its own weights, noise and mixed adapters: each distinct task, or each
/// sequence, as in PEFT's training. The latter mixes as often as there are sequences.
enum class entry_per { task, sequence };

inline namespace MHR_ISA {

/// It is made once for a batch and shared by the router and all layers, forward and backward.
///
/// task_ids [sequences] of int64: the task of each sequence, -1 for none. The sequences follow each
/// other in the batch and have `rows_of_sequence` rows each: 1 if the ids are those of rows, the
/// number of tokens for activations [sequences, tokens, features].
///
/// These are refused: a tensor of another type, number of dimensions or device; an id below -1; a
/// negative number of rows.
inline std::shared_ptr<const routed_batch> make_routed_batch(const at::Tensor& task_ids,
                                                             std::int64_t rows_of_sequence = 1,
                                                             entry_per entry = entry_per::task);

/// The weights [entries, heads, modules] that a rule makes of the logits of each entry's task; see
/// router_forward. They are f32, or f64 if the logits are, which are [tasks, heads, modules]
/// (PEFT's module_logits is `.view({tasks, heads, modules})`). `keep_alive` are the tensors whose
/// memory the rule refers to, such as its noise: they are kept until the backward.
///
/// Several layers may use the weights: autograd adds up what they contribute to their gradient.
/// These are refused: logits that are undefined, not on the CPU, not strided, or of another type
/// or number of dimensions; no batch; what router_forward refuses, an id outside the table among
/// them. The cost is that of router_forward.
template <class Gate, class Normaliser>
at::Tensor route(const at::Tensor& logits, const std::shared_ptr<const routed_batch>& batch,
                 const routing_rule<Gate, Normaliser>& rule,
                 std::vector<at::Tensor> keep_alive = {});

namespace autograd_details {

using variables = ::torch::autograd::variable_list;
using context = ::torch::autograd::AutogradContext;

inline void check_batch(argument_checks& checks, const routed_batch* batch) {
    checks.expect(batch != nullptr, "batch", "one of make_routed_batch", "a null pointer");
}

/// Runs a backward that autograd cannot look into. Where a graph of it is recorded nevertheless, it
/// has an error between the gradients and what they depend on.
template <class Backward>
variables differentiate_once(const char* function, const variables& depends_on,
                             Backward&& backward) {
    variables gradients;
    {
        const c10::AutoGradMode no_graph(false);
        gradients = backward();
    }
    if (!c10::GradMode::is_enabled()) return gradients;
    const auto refusal = std::make_shared<::torch::autograd::Error>(
        std::string(function) + ": gradients: expected to be differentiated no further, got a " +
            "second derivative",
        ::torch::autograd::collect_next_edges(depends_on));
    for (at::Tensor& gradient : gradients)
        if (gradient.defined()) ::torch::autograd::create_gradient_edge(gradient, refusal);
    return gradients;
}

/// The data that a call of the router needs beside the logits.
template <class Rule>
struct route_call : ::torch::CustomClassHolder {
    route_call(std::shared_ptr<const routed_batch> of, const Rule& by,
               std::vector<at::Tensor> keep_alive)
        : batch(std::move(of)), rule(by), kept_alive(std::move(keep_alive)) {}

    [[nodiscard]] tensor_view<const std::int64_t, 1> tasks() const {
        return {batch->tasks.data(), {static_cast<index_t>(batch->tasks.size())}};
    }

    std::shared_ptr<const routed_batch> batch;
    Rule rule;
    std::vector<at::Tensor> kept_alive;
};

template <class Rule>
struct route_function : ::torch::autograd::Function<route_function<Rule>> {
    static constexpr const char* name = "torch::route";

    static at::Tensor forward(context* ctx, const at::Tensor& logits,
                              const c10::intrusive_ptr<route_call<Rule>>& call) {
        using namespace tensor_details;
        argument_checks checks(name);
        const auto logits_ref = checked_ref<3>(checks, "logits", logits);
        checks.raise();
        const element_type sums = sums_of(logits_ref.type(), logits_ref.type());
        const at::Tensor weights = at::empty(
            {static_cast<std::int64_t>(call->tasks().extent(0)), logits.size(1), logits.size(2)},
            scalar_type_of(sums));
        router_forward(torch::executor{}, logits_ref, call->tasks(), call->rule,
                       ref_of<3>(weights, "weights"));
        ctx->saved_data["call"] = at::IValue::make_capsule(call);
        ctx->save_for_backward({logits});
        return weights;
    }

    static variables backward(context* ctx, variables d_outputs) {
        const auto capsule = ctx->saved_data["call"].toCapsule();
        const auto& call = static_cast<const route_call<Rule>&>(*capsule);
        const at::Tensor logits = ctx->get_saved_variables().front();
        return differentiate_once(name, {logits, d_outputs.front()}, [&]() -> variables {
            const at::Tensor d_logits = at::zeros(logits.sizes(), logits.options());
            router_backward(torch::executor{}, const_ref_of<3>(logits, "logits"), call.tasks(),
                            call.rule, const_ref_of<3>(d_outputs.front(), "d_weights"),
                            ref_of<3>(d_logits, "d_logits"));
            return {d_logits, {}};
        });
    }
};

} // namespace autograd_details

inline std::shared_ptr<const routed_batch>
make_routed_batch(const at::Tensor& task_ids, std::int64_t rows_of_sequence, entry_per entry) {
    argument_checks checks("torch::make_routed_batch");
    tensor_details::check_defined(checks, "task_ids", task_ids);
    const auto ids =
        tensor_details::checked_view<const std::int64_t, 1>(checks, "task_ids", task_ids);
    checks.raise();
    const tensor_view<const std::int64_t, 1> rows(&rows_of_sequence, ids.extents(), {0});
    auto batch = std::make_shared<routed_batch>();
    auto& [plan, tasks] = *batch;
    plan.assign_sequences(ids, rows);
    if (entry == entry_per::sequence) {
        std::vector<std::int64_t> labels(static_cast<std::size_t>(ids.extent(0)));
        for (index_t s = 0; s < ids.extent(0); ++s)
            labels[static_cast<std::size_t>(s)] = ids(s) == no_task ? no_task : std::int64_t{s};
        plan.assign_sequences(tensor_view<const std::int64_t, 1>(labels.data(), ids.extents()),
                              rows);
    }
    for (index_t g = 0; g < plan.entries(); ++g) {
        const std::int64_t label = plan.tasks()(g);
        tasks.push_back(entry == entry_per::task ? label : ids(static_cast<index_t>(label)));
    }
    return batch;
}

template <class Gate, class Normaliser>
at::Tensor route(const at::Tensor& logits, const std::shared_ptr<const routed_batch>& batch,
                 const routing_rule<Gate, Normaliser>& rule, std::vector<at::Tensor> keep_alive) {
    using namespace autograd_details;
    using rule_type = routing_rule<Gate, Normaliser>;
    argument_checks checks("torch::route");
    check_batch(checks, batch.get());
    tensor_details::check_defined(checks, "logits", logits);
    checks.raise();
    return route_function<rule_type>::apply(
        logits, c10::make_intrusive<route_call<rule_type>>(batch, rule, std::move(keep_alive)));
}

} // namespace MHR_ISA
} // namespace torch
} // namespace mhr
