#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/MemoryOverlap.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/adapters/routed_lora.hpp>
#include <mhr/interop/torch/views.hpp>
#include <mhr/routing/router.hpp>

/// \file
/// Routed LoRA and the router as functions that LibTorch differentiates. Everything runs on
/// LibTorch's threads and takes its memory from LibTorch's allocator. Gradients that nobody wants
/// are not computed; those of gradients (`create_graph`) are refused when they are asked for.

namespace mhr {
inline namespace MHR_ISA {

/// A batch as routed layers see it: its rows grouped into entries, and the task of each entry.
struct routed_batch {
    batch_plan plan;                 ///< its entries are tasks, or sequences
    std::vector<std::int64_t> tasks; ///< of each entry
};

/// What has weights, noise and mixed adapters of its own: each distinct task, or each sequence, as
/// PEFT has it in training. The latter mixes as often as there are sequences.
enum class entry_per { task, sequence };

/// Made once for a batch and shared by the router and all layers, forward and backward.
///
/// task_ids [sequences] of int64: the task of each sequence, -1 for none. The sequences follow each
/// other in the batch and have `rows_of_sequence` rows each: 1 if the ids are those of rows, the
/// number of tokens for activations [sequences, tokens, features].
///
/// Errors: the tensor, an id below -1, a negative number of rows.
inline std::shared_ptr<const routed_batch> make_routed_batch(const at::Tensor& task_ids,
                                                             std::int64_t rows_of_sequence = 1,
                                                             entry_per entry = entry_per::task) {
    const auto ids =
        detail::checked_view<const std::int64_t, 1>("make_routed_batch", "task_ids", task_ids);
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

namespace detail {

inline void require_batch(const char* function, const std::shared_ptr<const routed_batch>& batch) {
    require_that(
        batch != nullptr, function, "batch", [] { return "one of make_routed_batch"; },
        [] { return "a null pointer"; });
}

/// [.., features] as [rows, features]: a view where strides allow, as those of a gradient that is
/// one number do, or else a copy.
inline at::Tensor flat_rows(const char* function, const char* argument, const at::Tensor& tensor) {
    require_that(
        tensor.defined() && tensor.dim() >= 1, function, argument,
        [] { return "1 dimension or more"; },
        [&] { return tensor.defined() ? "none" : "an undefined tensor"; });
    require_plain_memory(function, argument, tensor);
    const auto leading = tensor.sizes().slice(0, static_cast<std::size_t>(tensor.dim() - 1));
    const std::int64_t rows =
        std::accumulate(leading.begin(), leading.end(), std::int64_t{1}, std::multiplies<>());
    return tensor.reshape({rows, tensor.size(-1)});
}

/// Memory from LibTorch's allocator.
inline at::Tensor allocate_bytes(std::size_t bytes) {
    return at::empty({static_cast<std::int64_t>(bytes)}, at::kByte);
}
inline workspace as_workspace(const at::Tensor& memory) {
    return {memory.data_ptr(), static_cast<std::size_t>(memory.numel())};
}

/// Runs a backward that autograd cannot look into. Where a graph of it is recorded nevertheless, it
/// has an error between the gradients and what they depend on.
template <class F>
::torch::autograd::variable_list
differentiate_once(const char* function, const ::torch::autograd::variable_list& depends_on,
                   F&& backward) {
    ::torch::autograd::variable_list gradients;
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

/// What a call of routed LoRA needs beside tensors.
struct lora_call : ::torch::CustomClassHolder {
    lora_call(std::shared_ptr<const routed_batch> of, double by)
        : batch(std::move(of)), scale(by) {}

    std::shared_ptr<const routed_batch> batch;
    double scale;
};

/// Calls `f` with the tags of the types of x and of the inventory: both f64, or each of f32, bf16
/// and f16.
template <class F>
void with_lora_types(const char* function, const at::Tensor& x, const at::Tensor& a, F&& f) {
    with_storage_type(function, "x", x, [&](auto x_type) {
        with_storage_type(function, "a", a, [&](auto a_type) {
            using X = typename decltype(x_type)::type;
            using M = typename decltype(a_type)::type;
            if constexpr (std::is_same_v<X, double> == std::is_same_v<M, double>)
                f(x_type, a_type);
            else
                raise(std::string(function) + ": a: expected elements of type Double if and only " +
                      "if x has them, got " + at::toString(a.scalar_type()) + " where x is " +
                      at::toString(x.scalar_type()));
        });
    });
}

struct routed_lora_function : ::torch::autograd::Function<routed_lora_function> {
    static constexpr const char* name = "add_routed_lora_";
    using context = ::torch::autograd::AutogradContext;
    using variables = ::torch::autograd::variable_list;

    static at::Tensor forward(context* ctx, const at::Tensor& y, const at::Tensor& x,
                              const at::Tensor& a, const at::Tensor& b, const at::Tensor& weights,
                              const c10::intrusive_ptr<lora_call>& call) {
        const at::Tensor x_rows = flat_rows(name, "x", x);
        const at::Tensor y_rows = flat_rows(name, "y", y);
        require_that(
            y_rows.is_alias_of(y), name, "y", [] { return "strides that rows have in common"; },
            [&] { return c10::str(y.strides(), " with sizes ", y.sizes()); });
        const at::Tensor w = weights.to(sum_type_of(x.scalar_type()));
        at::Tensor state_memory;
        with_lora_types(name, x, a, [&](auto x_type, auto m_type) {
            using X = typename decltype(x_type)::type;
            using M = typename decltype(m_type)::type;
            using A = accumulator_t<X, M>;
            const batch_plan& plan = call->batch->plan;
            const auto x_view = checked_view<const X, 2>(name, "x", x_rows);
            const lora_inventory<const M> inventory{checked_view<const M, 4>(name, "a", a),
                                                    checked_view<const M, 4>(name, "b", b)};
            const auto w_view = checked_view<const A, 3>(name, "weights", w);
            const lora_shape shape = check_routed_lora(name, plan, x_view, inventory, w_view);
            const auto y_view = checked_view<X, 2>(name, "y", y_rows);
            require_output(name, "y", y_view, {plan.rows(), shape.out_features});
            state_memory = allocate_bytes(routed_lora_state_size<A>(plan, shape));
            workspace memory = as_workspace(state_memory);
            routed_lora_forward(torch_executor{}, plan, x_view, inventory, w_view, call->scale,
                                y_view, take_routed_lora_state<A>(memory, plan, shape));
        });
        ctx->saved_data["call"] = at::IValue::make_capsule(call);
        ctx->save_for_backward({x, a, b, weights, x_rows, w, state_memory});
        ctx->mark_dirty({y});
        return y;
    }

    static variables backward(context* ctx, variables d_outputs) {
        const auto capsule = ctx->saved_data["call"].toCapsule();
        const variables saved = ctx->get_saved_variables();
        variables depends_on(saved.begin(), saved.begin() + 4);
        depends_on.push_back(d_outputs.front());
        variables gradients = differentiate_once(name, depends_on, [&] {
            return gradients_of(*ctx, static_cast<const lora_call&>(*capsule), saved,
                                d_outputs.front());
        });
        // y is added to, so that its gradient is the one that comes, and as differentiable.
        gradients.front() = d_outputs.front();
        return gradients;
    }

  private:
    /// For each argument of forward; that of y is left to the caller.
    static variables gradients_of(const context& ctx, const lora_call& call, const variables& saved,
                                  const at::Tensor& d_y) {
        const auto &x = saved[0], &a = saved[1], &b = saved[2], &weights = saved[3];
        const auto &x_rows = saved[4], &w = saved[5], &state = saved[6];
        const auto zeros_if_wanted = [&](std::size_t argument, const at::Tensor& of) {
            return ctx.needs_input_grad(argument) ? at::zeros(of.sizes(), of.options())
                                                  : at::Tensor();
        };
        const at::Tensor d_x = zeros_if_wanted(1, x);
        const at::Tensor d_a = zeros_if_wanted(2, a);
        const at::Tensor d_b = zeros_if_wanted(3, b);
        const at::Tensor d_w = zeros_if_wanted(4, w);
        const at::Tensor d_x_rows = d_x.defined() ? flat_rows(name, "d_x", d_x) : d_x;
        const at::Tensor d_y_rows = flat_rows(name, "d_y", d_y);
        with_lora_types(name, x, a, [&](auto x_type, auto m_type) {
            using X = typename decltype(x_type)::type;
            using M = typename decltype(m_type)::type;
            using A = accumulator_t<X, M>;
            const batch_plan& plan = call.batch->plan;
            const lora_inventory<const M> inventory{view_of<const M, 4>(a), view_of<const M, 4>(b)};
            const lora_shape shape = shape_of(inventory);
            workspace memory = as_workspace(state);
            const at::Tensor scratch =
                allocate_bytes(routed_lora_backward_workspace_size<A>(plan, shape));
            routed_lora_backward(
                torch_executor{}, plan, view_of<const X, 2>(x_rows), inventory,
                view_of<const A, 3>(w), call.scale, take_routed_lora_state<A>(memory, plan, shape),
                checked_view<const X, 2>(name, "d_y", d_y_rows), view_of<X, 2>(d_x_rows),
                lora_inventory<M>{view_of<M, 4>(d_a), view_of<M, 4>(d_b)}, view_of<A, 3>(d_w),
                as_workspace(scratch));
        });
        return {{}, d_x, d_a, d_b, d_w.defined() ? d_w.to(weights.scalar_type()) : d_w, {}};
    }
};

/// What a call of the router needs beside the logits.
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
    static constexpr const char* name = "route";
    using context = ::torch::autograd::AutogradContext;
    using variables = ::torch::autograd::variable_list;

    static at::Tensor forward(context* ctx, const at::Tensor& logits,
                              const c10::intrusive_ptr<route_call<Rule>>& call) {
        at::Tensor weights;
        with_storage_type(name, "logits", logits, [&](auto type) {
            using L = typename decltype(type)::type;
            const auto logits_view = checked_view<const L, 3>(name, "logits", logits);
            weights = at::empty({static_cast<std::int64_t>(call->tasks().extent(0)), logits.size(1),
                                 logits.size(2)},
                                sum_type_of(logits.scalar_type()));
            router_forward(torch_executor{}, logits_view, call->tasks(), call->rule,
                           view_of<accumulator_t<L>, 3>(weights));
        });
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
            with_storage_type(name, "logits", logits, [&](auto type) {
                using L = typename decltype(type)::type;
                router_backward(torch_executor{}, view_of<const L, 3>(logits), call.tasks(),
                                call.rule, view_of<const accumulator_t<L>, 3>(d_outputs.front()),
                                view_of<L, 3>(d_logits));
            });
            return {d_logits, {}};
        });
    }
};

} // namespace detail

/// y += scale (x A) B of each row's task, in place, and returns y; see routed_lora_forward. Rows of
/// no task keep their y.
///
/// y [.., out_features], x [.., in_features], of one type, where the leading dimensions number the
/// rows of the batch; a [heads, modules, in_features / heads, rank], b [heads, modules, rank,
/// out_features / heads], of one type; weights [entries, heads, modules] of any type, from `route`
/// for the same batch. Types: f64, or f32, bf16 and f16, where the inventory's may differ from that
/// of x and y (f32 parameters beside bf16 activations); gradients have the type of what they belong
/// to.
///
/// An x whose leading dimensions cannot be taken together as a view is copied. Kept for the
/// backward, beside the arguments: the mixed adapters, entries rank (in_features + out_features)
/// numbers, and rows rank.
///
/// y must not overlap x. Errors: a tensor that is not on the CPU or not strided, a type, a shape, a
/// y that is no view of rows; those of LibTorch (c10::Error) for a leaf y whose gradient is wanted
/// and, where both are dense, for an overlap. Cost: that of routed_lora_forward.
inline at::Tensor add_routed_lora_(const at::Tensor& y, const at::Tensor& x, const at::Tensor& a,
                                   const at::Tensor& b, const at::Tensor& weights,
                                   const std::shared_ptr<const routed_batch>& batch, double scale) {
    constexpr const char* function = detail::routed_lora_function::name;
    for (const auto& [argument, tensor] : {std::pair("y", y), std::pair("x", x), std::pair("a", a),
                                           std::pair("b", b), std::pair("weights", weights)})
        require_that(
            tensor.defined(), function, argument, [] { return "a tensor"; },
            [] { return "an undefined one"; });
    detail::require_batch(function, batch);
    // Autograd says so only when y has been written.
    TORCH_CHECK(!c10::GradMode::is_enabled() || !y.requires_grad() || !y.is_leaf(), function,
                ": a leaf Variable that requires grad cannot be used in an in-place operation");
    at::assert_no_overlap(y, x);
    return detail::routed_lora_function::apply(
        y, x, a, b, weights, c10::make_intrusive<detail::lora_call>(batch, scale));
}

/// scale (x A) B of each row's task, and zeros for rows of no task: add_routed_lora_ to zeros.
inline at::Tensor routed_lora(const at::Tensor& x, const at::Tensor& a, const at::Tensor& b,
                              const at::Tensor& weights,
                              const std::shared_ptr<const routed_batch>& batch, double scale) {
    require_that(
        x.defined() && x.dim() >= 1 && b.defined() && b.dim() == 4, "routed_lora", "x, b",
        [] { return "tensors of 1 dimension or more, and of 4"; }, [] { return "others"; });
    auto sizes = x.sizes().vec();
    sizes.back() = b.size(0) * b.size(3);
    return add_routed_lora_(at::zeros(sizes, x.options()), x, a, b, weights, batch, scale);
}

/// The weights [entries, heads, modules] that a rule makes of the logits of each entry's task; see
/// router_forward. They are f32, or f64 if the logits are, which are [tasks, heads, modules]
/// (PEFT's module_logits is `.view({tasks, heads, modules})`). `keep_alive` are the tensors that
/// the rule has views of, such as its noise: they are kept until the backward.
///
/// Several layers may use the weights: autograd adds up what they contribute to their gradient.
/// Errors: a tensor that is not on the CPU or not strided, a type, a shape, an id outside the
/// table, the rule's own arguments. Cost: that of router_forward.
template <class Gate, class Normaliser>
at::Tensor route(const at::Tensor& logits, const std::shared_ptr<const routed_batch>& batch,
                 const routing_rule<Gate, Normaliser>& rule,
                 std::vector<at::Tensor> keep_alive = {}) {
    using rule_type = routing_rule<Gate, Normaliser>;
    detail::require_batch("route", batch);
    require_that(
        logits.defined(), "route", "logits", [] { return "a tensor"; },
        [] { return "an undefined one"; });
    return detail::route_function<rule_type>::apply(
        logits,
        c10::make_intrusive<detail::route_call<rule_type>>(batch, rule, std::move(keep_alive)));
}

} // namespace MHR_ISA
} // namespace mhr
