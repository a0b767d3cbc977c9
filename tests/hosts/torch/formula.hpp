#pragma once

// Before doctest, whose macros have names that LibTorch's logging takes, too.
#include <torch/csrc/autograd/autograd.h>

#include <mhr/hosts/torch.hpp>

#undef CHECK
#undef CHECK_EQ
#undef CHECK_NE
#undef CHECK_LT
#undef CHECK_LE
#undef CHECK_GT
#undef CHECK_GE

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "support/comparison.hpp"

/// \file
/// Routed LoRA as PEFT writes it, in LibTorch's own functions, which autograd differentiates; and
/// how tensors are compared. A layer to try it on.

namespace mhr::test {

using at::Tensor;
using mhr::torch::const_ref_of;
using mhr::torch::entry_per;
using mhr::torch::routed_batch;

/// The number of each sequence's entry, -1 for none: distinct tasks in ascending order.
inline std::vector<std::int64_t> entries_of(const std::vector<std::int64_t>& tasks,
                                            entry_per entry = entry_per::task) {
    std::map<std::int64_t, std::int64_t> numbers;
    for (std::size_t s = 0; s < tasks.size(); ++s)
        if (tasks[s] >= 0)
            numbers[entry == entry_per::task ? tasks[s] : static_cast<std::int64_t>(s)] = 0;
    std::int64_t next = 0;
    for (auto& [label, number] : numbers)
        number = next++;
    std::vector<std::int64_t> result;
    for (std::size_t s = 0; s < tasks.size(); ++s)
        result.push_back(
            tasks[s] < 0
                ? -1
                : numbers[entry == entry_per::task ? tasks[s] : static_cast<std::int64_t>(s)]);
    return result;
}

inline Tensor ids_of(const std::vector<std::int64_t>& ids) {
    return at::tensor(ids, at::kLong);
}

/// The tasks of the entries that `entries_of` numbers.
inline Tensor tasks_of_entries(const std::vector<std::int64_t>& tasks,
                               entry_per entry = entry_per::task) {
    std::map<std::int64_t, std::int64_t> task_of_entry;
    const auto entries = entries_of(tasks, entry);
    for (std::size_t s = 0; s < tasks.size(); ++s)
        if (entries[s] >= 0) task_of_entry[entries[s]] = tasks[s];
    std::vector<std::int64_t> result;
    for (const auto& [number, task] : task_of_entry)
        result.push_back(task);
    return ids_of(result);
}

/// [n, heads, modules] of each of the tasks [n]; `uniforms`, of that shape, is the noise, if any.
inline Tensor formula_weights(const Tensor& logits, const Tensor& tasks,
                              const Tensor& uniforms = {}, double temperature = 1) {
    Tensor z = logits.index_select(0, tasks);
    if (uniforms.defined()) z = (z + uniforms.log() - (1 - uniforms).log()) / temperature;
    const Tensor gates = z.sigmoid();
    return gates / (gates.sum(-1, true) + 1e-12);
}

/// scale (x A) B for x [sequences, tokens, in_features]: adapters mixed for each sequence.
inline Tensor formula_delta(const Tensor& x, const Tensor& a, const Tensor& b,
                            const Tensor& weights, const std::vector<std::int64_t>& entries,
                            double scale) {
    const Tensor entry = ids_of(entries);
    if (weights.size(0) == 0)
        return at::zeros({x.size(0), x.size(1), b.size(0) * b.size(3)}, x.options());
    const Tensor w = weights.index_select(0, entry.clamp_min(0));
    const std::int64_t n = x.size(0);
    const std::int64_t rank = a.size(3);
    const Tensor mixed_a = at::einsum("bqs,qsdr->bqdr", {w, a}).reshape({n, -1, rank});
    const Tensor mixed_b =
        at::einsum("bqs,qsrd->bqrd", {w, b}).transpose(1, 2).reshape({n, rank, -1});
    const Tensor has_task = entry.ge(0).to(x.dtype()).view({n, 1, 1});
    return x.bmm(mixed_a).bmm(mixed_b) * scale * has_task;
}

/// Numbers in (-1, 1), as a leaf.
inline Tensor random_leaf(at::IntArrayRef sizes, at::ScalarType type = at::kDouble) {
    return (at::rand(sizes, at::kDouble) * 2 - 1).to(type).requires_grad_(true);
}

/// Contiguous, of one dimension, for a comparator.
template <class T>
tensor_view<const T, 1> flat_view(const Tensor& tensor, Tensor& memory) {
    memory = tensor.detach().contiguous().view({-1});
    return mhr::torch::view_of<const T, 1>(memory);
}

/// True if both are the same to 1e-12, which is what f64 numbers of order 1 have to be. Fails as
/// the comparators of support/ do.
inline comparison agree(const Tensor& got, const Tensor& want) {
    if (!got.defined() || !want.defined() || got.sizes() != want.sizes())
        return {false, 0, 0, "undefined, or other sizes"};
    Tensor got_memory, want_memory, ones_memory;
    return compare(flat_view<double>(got, got_memory), flat_view<double>(want, want_memory),
                   flat_view<double>(at::ones_like(want), ones_memory), {1e-12, 1, 0});
}

inline bool same_bits(const Tensor& got, const Tensor& want) {
    return got.defined() && want.defined() && got.dtype() == want.dtype() && got.numel() > 0 &&
           !want.isnan().any().item<bool>() && at::equal(got, want);
}

/// "" if `f` throws mhr::error with the text "function: argument: expected ..., got ...".
template <class F>
std::string refusal(const std::string& start, F&& f) {
    try {
        f();
    } catch (const error& thrown) {
        const std::string text = thrown.what();
        const bool as_documented = text.compare(0, start.size(), start) == 0 &&
                                   text.find(": expected ") != std::string::npos &&
                                   text.find(", got ") != std::string::npos;
        return as_documented ? "" : text;
    } catch (const std::exception& other) {
        return std::string("not an mhr::error: ") + other.what();
    }
    return "nothing was thrown";
}

/// A batch [sequences, tokens, ..] of a layer whose rows are those of many tasks. All are leaves.
struct layer {
    std::vector<std::int64_t> tasks; // of the sequences
    std::int64_t tokens;
    double scale = -0.75;
    Tensor y, x, a, b, weights;

    explicit layer(const std::vector<std::int64_t>& tasks_of_sequences, std::int64_t tokens_of_each,
                   entry_per entry = entry_per::task, std::int64_t heads = 2,
                   std::int64_t modules = 3, std::int64_t in = 6, std::int64_t out = 10,
                   std::int64_t rank = 4)
        : tasks(tasks_of_sequences), tokens(tokens_of_each) {
        const auto n = static_cast<std::int64_t>(tasks.size());
        const auto entries = tasks_of_entries(tasks, entry).size(0);
        y = random_leaf({n, tokens, out});
        x = random_leaf({n, tokens, in});
        a = random_leaf({heads, modules, in / heads, rank});
        b = random_leaf({heads, modules, rank, out / heads});
        weights = random_leaf({entries, heads, modules});
    }

    [[nodiscard]] std::vector<Tensor> leaves() const { return {y, x, a, b, weights}; }
    [[nodiscard]] std::shared_ptr<const routed_batch>
    batch(entry_per entry = entry_per::task) const {
        return mhr::torch::make_routed_batch(ids_of(tasks), tokens, entry);
    }
    /// y itself is a leaf, which must not be changed in place.
    [[nodiscard]] Tensor ours(entry_per entry = entry_per::task) const {
        return mhr::torch::add_routed_lora_(y * 1, x, a, b, weights, batch(entry), scale);
    }
    [[nodiscard]] Tensor formula(entry_per entry = entry_per::task) const {
        return y + formula_delta(x, a, b, weights, entries_of(tasks, entry), scale);
    }
};

inline const std::array<std::string, 5> names{"y", "x", "a", "b", "weights"};

/// The gradients of sum(output cotangent) to the leaves.
inline std::vector<Tensor> gradients(const Tensor& output, const Tensor& cotangent,
                                     const std::vector<Tensor>& leaves) {
    return ::torch::autograd::grad({output}, leaves, {cotangent});
}

// Tasks that repeat, are not in order and have gaps; sequences of no task.
inline const std::vector<std::int64_t> mixed_tasks{3, 0, 3, -1, 5, 3, 0, -1};

/// Compares with f64 numbers a result of the type that is said.
inline comparison near(const Tensor& got, at::ScalarType type, const Tensor& want,
                       const Tensor& magnitude, const error_bound& bound) {
    if (!got.defined() || got.sizes() != want.sizes() || got.scalar_type() != type)
        return {false, 0, 0, "undefined, or another type or size"};
    Tensor got_memory = got.detach().contiguous().view({-1}), want_memory, magnitude_memory;
    return compare(const_ref_of<1>(got_memory), flat_view<double>(want, want_memory),
                   flat_view<double>(magnitude, magnitude_memory), bound);
}

} // namespace mhr::test
