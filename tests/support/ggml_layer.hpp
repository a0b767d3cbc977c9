#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ggml-cpu.h>
#include <ggml.h>

#include <mhr/hosts/ggml/lora.hpp>
#include <mhr/reference/lora.hpp>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

/// \file
/// Tensors and graphs of ggml, and a layer with adapters in one, for the tests of hosts/ggml/.

namespace mhr::test {

/// A context of ggml with memory for its tensors, or with none for their data.
class ggml_memory {
  public:
    explicit ggml_memory(bool no_alloc = false)
        : context_(ggml_init({std::size_t(64) << 20, nullptr, no_alloc})) {}
    ~ggml_memory() { ggml_free(context_); }
    ggml_memory(const ggml_memory&) = delete;
    ggml_memory& operator=(const ggml_memory&) = delete;
    operator ggml_context*() const { return context_; } // NOLINT: as ggml's functions take it

  private:
    ggml_context* context_;
};

/// By ggml's own documentation, not by ours.
inline ggml_type type_in_ggml(element_type type) {
    switch (type) {
    case element_type::f32:
        return GGML_TYPE_F32;
    case element_type::f64:
        return GGML_TYPE_F64;
    case element_type::bf16:
        return GGML_TYPE_BF16;
    case element_type::f16:
        return GGML_TYPE_F16;
    }
    return GGML_TYPE_COUNT;
}

/// How a tensor of up to three axes lies in memory.
enum class memory_order {
    dense,
    exchanged, ///< the two fastest axes exchanged: ggml_permute of a dense tensor
    cut_out,   ///< a part of the rows and columns of a larger one: ggml_view_3d
};
inline constexpr memory_order memory_orders[] = {memory_order::dense, memory_order::exchanged,
                                                 memory_order::cut_out};

inline ggml_tensor* new_tensor(ggml_context* context, element_type of, index_t e0, index_t e1,
                               index_t e2, memory_order order) {
    const ggml_type type = type_in_ggml(of);
    switch (order) {
    case memory_order::dense:
        return ggml_new_tensor_3d(context, type, e0, e1, e2);
    case memory_order::exchanged:
        return ggml_permute(context, ggml_new_tensor_3d(context, type, e1, e0, e2), 1, 0, 2, 3);
    case memory_order::cut_out: {
        ggml_tensor* const all = ggml_new_tensor_3d(context, type, e0 + 5, e1 + 2, e2);
        return ggml_view_3d(context, all, e0, e1, e2, all->nb[1], all->nb[2], 3 * all->nb[0]);
    }
    }
    return nullptr;
}

template <std::size_t Rank>
void fill(const tensor_ref<Rank>& ref, random_source& random, double low = -1, double high = 1) {
    transform_elements(ref, [&](double) { return random.uniform(low, high); });
}

inline ggml_cgraph* graph_of(ggml_context* context, ggml_tensor* result) {
    ggml_cgraph* const graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, result);
    return graph;
}

inline void compute_graph(ggml_context* context, ggml_tensor* result, int threads) {
    REQUIRE(ggml_graph_compute_with_ctx(context, graph_of(context, result), threads) ==
            GGML_STATUS_SUCCESS);
}

/// The adapter of each row, where entry g uses adapter_of_entry[g]; -1 for none.
inline tensor<index_t, 1> adapter_of_row(const batch_plan& plan,
                                         const std::vector<index_t>& adapter_of_entry) {
    tensor<index_t, 1> result({plan.rows()});
    for (index_t& adapter : result.values())
        adapter = -1;
    for (index_t entry = 0; entry < plan.entries(); ++entry) {
        const auto rows = plan.rows_of(entry);
        for (index_t i = 0; i < rows.extent(0); ++i)
            result(rows(i)) = adapter_of_entry[static_cast<std::size_t>(entry)];
    }
    return result;
}

struct ggml_sizes {
    std::vector<int> task_of_sequence; ///< the numbers of their adapters
    index_t rows_of_sequence, in, out;
};
// Many sequences of several tasks and of none, a single row as when decoding, a batch of no task,
// and one whose blocks are each worth a thread: the others are computed by the first alone.
inline const ggml_sizes ggml_shapes[] = {{{3, 0, -1, 3, 2, 0, -1, 5}, 9, 70, 51},
                                         {{1}, 1, 130, 257},
                                         {{2, -1, 0, 7, 7, 3}, 1, 64, 64},
                                         {{4, 4}, 40, 33, 20},
                                         {{-1, -1}, 3, 8, 9},
                                         {{1, 2, -1, 3}, 24, 600, 640}};

/// The element types of x, of base, and of the adapters one after the other.
struct ggml_types {
    element_type x = element_type::f32, base = element_type::f32;
    std::vector<element_type> adapters{element_type::f32};

    [[nodiscard]] element_type sums() const {
        element_type result = sums_of(x, base);
        for (element_type type : adapters)
            result = sums_of(result, type);
        return result;
    }
};
inline constexpr auto f32 = element_type::f32, f64 = element_type::f64,
                      bf16_type = element_type::bf16, f16_type = element_type::f16;
inline const ggml_types all_ggml_types[] = {
    {},
    {f32, f32, {f16_type, bf16_type, f32}},
    {f16_type, f16_type, {f16_type}},
    {bf16_type, bf16_type, {bf16_type, f16_type}},
    {f16_type, bf16_type, {f32}},
    {f32, f32, {f32, f64}},
    {f64, f64, {f64, f16_type}},
};

/// base + LoRA in a graph, on memory of the graph's context: eight adapters of all ranks.
struct ggml_layer {
    ggml_memory memory;
    batch_plan plan;
    std::vector<index_t> adapter_of_entry;
    ggml::lora_batch batch;
    ggml::layer_adapters adapters;
    ggml_types of;
    ggml_tensor *x, *base;
    std::vector<ggml_tensor*> a, b;
    std::vector<double> scales;
    tensor<double, 2> y_before;

    explicit ggml_layer(const ggml_sizes& s, ggml_types of_tensors = {},
                        memory_order of_rows = memory_order::dense,
                        memory_order of_adapters = memory_order::dense)
        : adapters(batch, s.in, s.out), of(std::move(of_tensors)) {
        const auto sequences = static_cast<index_t>(s.task_of_sequence.size());
        const std::vector<index_t> rows(s.task_of_sequence.size(), s.rows_of_sequence);
        plan.assign_sequences(tensor_view<const int, 1>(s.task_of_sequence.data(), {sequences}),
                              tensor_view<const index_t, 1>(rows.data(), {sequences}));
        use_tasks_as_adapters();
        // Rows of a cut-out are evenly spaced within a sequence only: all of them are one there.
        const bool together = of_rows == memory_order::cut_out;
        const index_t e1 = together ? plan.rows() : s.rows_of_sequence;
        const index_t e2 = together ? 1 : sequences;
        const auto rows_tensor = [&](element_type type, index_t features) {
            if (of_rows == memory_order::exchanged)
                return new_tensor(memory, type, features, plan.rows(), 1, of_rows);
            return new_tensor(memory, type, features, e1, e2, of_rows);
        };
        random_source random(7);
        x = rows_tensor(of.x, s.in);
        base = rows_tensor(of.base, s.out);
        fill(ggml::ref_of<2>(x), random);
        fill(ggml::ref_of<2>(base), random);
        for (const index_t rank : {6, 1, 17, 4, 16, 33, 2, 8}) {
            const element_type type = of.adapters[a.size() % of.adapters.size()];
            a.push_back(new_tensor(memory, type, s.in, rank, 1, of_adapters));
            b.push_back(new_tensor(memory, type, rank, s.out, 1, of_adapters));
            scales.push_back(1.25 - 0.5 * static_cast<double>(scales.size()));
            fill(ggml::ref_of<2>(a.back()), random);
            fill(ggml::ref_of<2>(b.back()), random);
            adapters.add(a.back(), b.back(), scales.back());
        }
        y_before = values_as<double>(ggml::ref_of<2>(base));
    }

    void use_tasks_as_adapters() {
        adapter_of_entry.clear();
        for (index_t entry = 0; entry < plan.entries(); ++entry)
            adapter_of_entry.push_back(static_cast<index_t>(plan.tasks()(entry)));
        batch = {&plan, {adapter_of_entry.data(), {plan.entries()}}};
    }

    void reset() {
        for_each_position(y_before.extents(), [&](const position<2>& at) {
            set_element(ggml::ref_of<2>(base), at, element(y_before.view(), at));
        });
    }

    /// The values that a computation of the graph leaves.
    tensor<double, 2> run(int threads) {
        reset();
        compute_graph(memory, ggml::lora_inplace(memory, base, x, adapters), threads);
        return values_as<double>(ggml::ref_of<2>(base));
    }

    /// By the oracle: its sums, or those of magnitudes.
    template <class Copy>
    tensor<double, 2> expect(bool magnitudes, Copy&& copy) {
        tensor<double, 2> y = copy(const_tensor_ref<2>(y_before.view()));
        const auto inputs = copy(const_tensor_ref<2>(ggml::ref_of<2>(x)));
        const auto numbers = adapter_of_row(plan, adapter_of_entry);
        for (std::size_t n = 0; n < a.size(); ++n) {
            if (a[n] == nullptr) continue;
            tensor<index_t, 1> uses_it(numbers.extents());
            for (index_t row = 0; row < plan.rows(); ++row)
                uses_it(row) = numbers(row) == static_cast<index_t>(n) ? 0 : -1;
            const auto of_a = copy(const_tensor_ref<2>(ggml::ref_of<2>(a[n]).transpose(0, 1)));
            const auto of_b = copy(const_tensor_ref<2>(ggml::ref_of<2>(b[n]).transpose(0, 1)));
            reference::lora_forward(uses_it.const_view(), inputs.const_view(),
                                    of_a.const_view().prepend_axis(),
                                    of_b.const_view().prepend_axis(),
                                    magnitudes ? std::abs(scales[n]) : scales[n], y.view());
        }
        return y;
    }
    comparison compare_with_oracle() {
        const auto want = expect(false, [](const auto& ref) { return values_as<double>(ref); });
        const auto size = expect(true, [](const auto& ref) { return magnitudes_as<double>(ref); });
        // The oracle itself sums in f64.
        const auto terms = static_cast<double>(x->ne[0] + 33) * (of.sums() == f64 ? 2 : 1);
        return compare(ggml::ref_of<2>(base), want.view(), size.view(),
                       within(of.sums(), terms / 2 + 3));
    }
};

} // namespace mhr::test
