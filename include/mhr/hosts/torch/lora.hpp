#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

#include <ATen/MemoryOverlap.h>
#include <torch/csrc/autograd/custom_function.h>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/hosts/torch/routing.hpp>
#include <mhr/hosts/torch/tensors.hpp>
#include <mhr/lora/routed_lora.hpp>

/// \file
/// Routed LoRA as a function that LibTorch differentiates. It runs on LibTorch's threads and takes
/// its memory from LibTorch's allocator. Gradients that nobody wants are not computed; those of
/// gradients (`create_graph`) are refused when they are asked for.

namespace mhr {
namespace torch {
inline namespace MHR_ISA {

/// y += scale (x A) B of each row's task, in place, and returns y; see routed_lora_forward. Rows of
/// no task keep their y.
///
/// y [.., out_features], x [.., in_features], whose leading dimensions number the rows of the
/// batch; a [heads, modules, in_features / heads, rank]; b [heads, modules, rank, out_features /
/// heads]; weights [entries, heads, modules], from `route` for the same batch. Each has a type of
/// its own, of f64, f32, bf16 and f16 (f32 parameters beside bf16 activations), and its gradient
/// has the same. Sums are f64 if one of the five is, else f32.
///
/// An x whose leading dimensions cannot be taken together as a view is copied. The backward needs,
/// beside the arguments, the mixed adapters, which are entries rank (in_features + out_features)
/// numbers, and rows rank numbers; these are kept.
///
/// It refuses what `why_not` tells, before anything is written. The cost is that of
/// routed_lora_forward.
inline at::Tensor add_routed_lora_(const at::Tensor& y, const at::Tensor& x, const at::Tensor& a,
                                   const at::Tensor& b, const at::Tensor& weights,
                                   const std::shared_ptr<const routed_batch>& batch, double scale);

/// Why add_routed_lora_ would refuse these arguments, or nothing: for models that fall back.
///
/// These are refused: a tensor that is undefined, not on the CPU, not strided, or of another type;
/// shapes that do not fit each other and the batch; a y that is no view of rows, two of whose
/// elements overlap, or that overlaps x (where both are dense); a y that is a leaf whose gradient
/// is wanted; no batch.
inline std::string why_not(const at::Tensor& y, const at::Tensor& x, const at::Tensor& a,
                           const at::Tensor& b, const at::Tensor& weights,
                           const std::shared_ptr<const routed_batch>& batch);

/// scale (x A) B of each row's task, and zeros for rows of no task: add_routed_lora_ to zeros of
/// the type of x. What that refuses is refused.
inline at::Tensor routed_lora(const at::Tensor& x, const at::Tensor& a, const at::Tensor& b,
                              const at::Tensor& weights,
                              const std::shared_ptr<const routed_batch>& batch, double scale);

namespace autograd_details {

/// [.., features] as [rows, features]: a view where strides allow, as those of a gradient that is
/// one number do, or else a copy. Undefined if a check failed.
inline at::Tensor flat_rows(argument_checks& checks, const char* argument,
                            const at::Tensor& tensor) {
    tensor_details::check_defined(checks, argument, tensor);
    if (!checks.passed()) return {};
    tensor_details::check_memory(checks, argument, tensor);
    checks.expect(tensor.dim() >= 1, argument, "1 dimension or more", "none");
    if (!checks.passed()) return {};
    const auto leading = tensor.sizes().slice(0, static_cast<std::size_t>(tensor.dim() - 1));
    const std::int64_t rows =
        std::accumulate(leading.begin(), leading.end(), std::int64_t{1}, std::multiplies<>());
    return tensor.reshape({rows, tensor.size(-1)});
}

/// Takes memory from LibTorch's allocator.
inline at::Tensor allocate_bytes(std::size_t bytes) {
    return at::empty({static_cast<std::int64_t>(bytes)}, at::kByte);
}
inline workspace as_workspace(const at::Tensor& memory) {
    return {memory.data_ptr(), static_cast<std::size_t>(memory.numel())};
}

/// Zeros for a gradient, if it is wanted: for the argument of this number, and of this type.
inline at::Tensor zeros_if_wanted(const context& ctx, std::size_t argument, const at::Tensor& of,
                                  at::ScalarType type) {
    if (!ctx.needs_input_grad(argument)) return {};
    return at::zeros(of.sizes(), of.options().dtype(type));
}

inline constexpr const char* add_name = "torch::add_routed_lora_";

/// The data that a backward of routed LoRA needs beside tensors.
struct lora_call : ::torch::CustomClassHolder {
    lora_call(std::shared_ptr<const routed_batch> of, double by, element_type in)
        : batch(std::move(of)), scale(by), sums(in) {}

    std::shared_ptr<const routed_batch> batch;
    double scale;
    element_type sums;
};

/// The layer of these tensors; of use if the checks passed.
inline mhr::routed_lora layer_of(argument_checks& checks, const at::Tensor& a, const at::Tensor& b,
                                 const at::Tensor& weights, double scale) {
    using tensor_details::checked_ref;
    return {checked_ref<4>(checks, "a", a), checked_ref<4>(checks, "b", b),
            checked_ref<3>(checks, "weights", weights), scale};
}

/// True if LibTorch knows that both have an element in common: where both are dense.
inline bool overlap(const at::Tensor& a, const at::Tensor& b) {
    try {
        at::assert_no_overlap(a, b);
    } catch (const c10::Error&) {
        return true;
    }
    return false;
}

/// The arguments of routed_lora_forward, which are of use if `why_not` is empty.
struct lora_arguments {
    std::string why_not;
    at::Tensor x_rows, state_memory;
    const_tensor_ref<2> x{};
    tensor_ref<2> y{};
    mhr::routed_lora layer{};
    element_type sums = element_type::f32;
    routed_lora_state state{};

    lora_arguments(const at::Tensor& y_tensor, const at::Tensor& x_tensor, const at::Tensor& a,
                   const at::Tensor& b, const at::Tensor& weights, const routed_batch* batch,
                   double scale) {
        using namespace tensor_details;
        const bool records_graph = c10::GradMode::is_enabled();
        const c10::AutoGradMode no_graph(false);
        argument_checks checks(add_name);
        check_batch(checks, batch);
        x_rows = flat_rows(checks, "x", x_tensor);
        const at::Tensor y_rows = flat_rows(checks, "y", y_tensor);
        for (const auto& [argument, tensor] :
             {std::pair("a", a), std::pair("b", b), std::pair("weights", weights)})
            check_defined(checks, argument, tensor);
        if (checks.passed()) check_in_place(checks, y_tensor, y_rows, x_tensor, records_graph);
        x = checked_ref<2>(checks, "x", x_rows);
        y = checked_ref<2>(checks, "y", y_rows);
        layer = layer_of(checks, a, b, weights, scale);
        why_not = checks.passed() ? take_state(*batch) : std::move(checks).why();
    }

  private:
    static void check_in_place(argument_checks& checks, const at::Tensor& y,
                               const at::Tensor& y_rows, const at::Tensor& x, bool records_graph) {
        checks.expect(y_rows.is_alias_of(y), "y", "strides that rows have in common",
                      [&] { return c10::str(y.strides(), " with sizes ", y.sizes()); });
        // Autograd says so only when y has been written.
        checks.expect(!records_graph || !y.requires_grad() || !y.is_leaf(), "y",
                      "what autograd may change in place", "a leaf whose gradient is wanted");
        checks.expect(!overlap(y, x), "y", "memory of its own", "some that x has, too");
    }

    /// Allocates the state, and asks the library.
    std::string take_state(const routed_batch& batch) {
        for (element_type type :
             {x.type(), y.type(), layer.a.type(), layer.b.type(), layer.weights.type()})
            sums = sums_of(sums, type);
        const torch::executor threads;
        const mhr::batch rows{batch.plan, threads};
        state_memory = allocate_bytes(routed_lora_state_size(rows, layer, sums));
        workspace memory = as_workspace(state_memory);
        state = take_routed_lora_state(memory, rows, layer, sums);
        return mhr::why_not(rows, layer, x, y, state);
    }
};

struct routed_lora_function : ::torch::autograd::Function<routed_lora_function> {
    static at::Tensor forward(context* ctx, const at::Tensor& y, const at::Tensor& x,
                              const at::Tensor& a, const at::Tensor& b, const at::Tensor& weights,
                              const lora_arguments* with,
                              const c10::intrusive_ptr<lora_call>& call) {
        const torch::executor threads;
        routed_lora_forward({call->batch->plan, threads}, with->layer, with->x, with->y,
                            with->state);
        ctx->saved_data["call"] = at::IValue::make_capsule(call);
        ctx->save_for_backward({x, a, b, weights, with->x_rows, with->state_memory});
        ctx->mark_dirty({y});
        return y;
    }

    static variables backward(context* ctx, variables d_outputs) {
        const auto capsule = ctx->saved_data["call"].toCapsule();
        const variables saved = ctx->get_saved_variables();
        variables depends_on(saved.begin(), saved.begin() + 4);
        depends_on.push_back(d_outputs.front());
        variables gradients = differentiate_once(add_name, depends_on, [&] {
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
        using namespace tensor_details;
        const auto &x = saved[0], &a = saved[1], &b = saved[2], &weights = saved[3];
        const auto &x_rows = saved[4], &state_memory = saved[5];
        const at::Tensor d_x = zeros_if_wanted(ctx, 1, x, x.scalar_type());
        const at::Tensor d_a = zeros_if_wanted(ctx, 2, a, a.scalar_type());
        const at::Tensor d_b = zeros_if_wanted(ctx, 3, b, b.scalar_type());
        // Both matrices add to it: in the type of sums, so that it is rounded once, by autograd.
        const at::Tensor d_weights = zeros_if_wanted(ctx, 4, weights, scalar_type_of(call.sums));

        argument_checks checks(add_name);
        const at::Tensor d_y_rows = flat_rows(checks, "d_y", d_y);
        const at::Tensor d_x_rows = d_x.defined() ? flat_rows(checks, "d_x", d_x) : d_x;
        const auto layer = layer_of(checks, a, b, weights, call.scale);
        const auto x_ref = checked_ref<2>(checks, "x", x_rows);
        const auto d_y_ref = checked_ref<2>(checks, "d_y", d_y_rows);
        const routed_lora_gradients gradients{
            checked_ref<2>(checks, "d_x", d_x_rows), checked_ref<4>(checks, "d_a", d_a),
            checked_ref<4>(checks, "d_b", d_b), checked_ref<3>(checks, "d_weights", d_weights)};
        checks.raise();
        const torch::executor threads;
        const mhr::batch rows{call.batch->plan, threads};
        workspace memory = as_workspace(state_memory);
        const auto state = take_routed_lora_state(memory, rows, layer, call.sums);
        const at::Tensor scratch =
            allocate_bytes(routed_lora_backward_workspace_size(rows, layer, call.sums));
        routed_lora_backward(rows, layer, x_ref, d_y_ref, state, gradients, as_workspace(scratch));
        return {{}, d_x, d_a, d_b, d_weights, {}, {}};
    }
};

} // namespace autograd_details

inline std::string why_not(const at::Tensor& y, const at::Tensor& x, const at::Tensor& a,
                           const at::Tensor& b, const at::Tensor& weights,
                           const std::shared_ptr<const routed_batch>& batch) {
    return autograd_details::lora_arguments(y, x, a, b, weights, batch.get(), 1).why_not;
}

inline at::Tensor add_routed_lora_(const at::Tensor& y, const at::Tensor& x, const at::Tensor& a,
                                   const at::Tensor& b, const at::Tensor& weights,
                                   const std::shared_ptr<const routed_batch>& batch, double scale) {
    using namespace autograd_details;
    const lora_arguments with(y, x, a, b, weights, batch.get(), scale);
    if (!with.why_not.empty()) raise(with.why_not);
    return routed_lora_function::apply(y, x, a, b, weights, &with,
                                       c10::make_intrusive<lora_call>(batch, scale, with.sums));
}

inline at::Tensor routed_lora(const at::Tensor& x, const at::Tensor& a, const at::Tensor& b,
                              const at::Tensor& weights,
                              const std::shared_ptr<const routed_batch>& batch, double scale) {
    argument_checks checks("torch::routed_lora");
    checks.expect(x.defined() && x.dim() >= 1 && b.defined() && b.dim() == 4, "x, b",
                  "tensors of 1 dimension or more, and of 4", "others");
    checks.raise();
    auto sizes = x.sizes().vec();
    sizes.back() = b.size(0) * b.size(3);
    return add_routed_lora_(at::zeros(sizes, x.options()), x, a, b, weights, batch, scale);
}

} // namespace MHR_ISA
} // namespace torch
} // namespace mhr
