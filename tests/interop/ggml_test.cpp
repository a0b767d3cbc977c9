#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <Eigen/Core>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>

#include <mhr/interop/ggml.hpp>

#include "support/allocation_counter.hpp"
#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_oracle.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// A context of ggml with memory for its tensors, or with none for their data.
class context {
  public:
    explicit context(bool no_alloc = false)
        : context_(ggml_init({std::size_t(64) << 20, nullptr, no_alloc})) {}
    ~context() { ggml_free(context_); }
    context(const context&) = delete;
    context& operator=(const context&) = delete;
    operator ggml_context*() const { return context_; } // NOLINT: as ggml's functions take it

  private:
    ggml_context* context_;
};

/// How a tensor of up to three axes lies in memory.
enum class memory_order {
    dense,
    exchanged, ///< the two fastest axes exchanged: ggml_permute of a dense tensor
    cut_out,   ///< a part of the rows and columns of a larger one: ggml_view_3d
};
constexpr memory_order memory_orders[] = {memory_order::dense, memory_order::exchanged,
                                          memory_order::cut_out};

ggml_tensor* new_tensor(ggml_context* context, ggml_type type, index_t e0, index_t e1, index_t e2,
                        memory_order order) {
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

/// What tests read and write tensors of a type as: classes that know their precision.
template <class T>
struct as_known {
    using type = T;
};
template <>
struct as_known<ggml_f16> {
    using type = Eigen::half;
};
template <>
struct as_known<ggml_bf16> {
    using type = Eigen::bfloat16;
};
template <class T>
using known = typename as_known<T>::type;

void compute(ggml_context* context, ggml_tensor* result, int threads) {
    ggml_cgraph* const graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, result);
    REQUIRE(ggml_graph_compute_with_ctx(context, graph, threads) == GGML_STATUS_SUCCESS);
}

template <class X_, class P_, class Y_>
struct storage {
    using X = X_;
    using P = P_;
    using Y = Y_;
};
#define GGML_STORAGES                                                                              \
    storage<float, float, float>, storage<float, ggml_f16, float>,                                 \
        storage<float, ggml_bf16, float>, storage<ggml_f16, ggml_f16, ggml_f16>,                   \
        storage<ggml_bf16, ggml_bf16, ggml_bf16>, storage<ggml_f16, float, ggml_bf16>

struct sizes {
    std::vector<int> task_of_sequence;
    index_t rows_of_sequence, in, out, rank;
};
// Many sequences of several tasks and of none, a single row as when decoding, a batch of no task,
// and one whose blocks are each worth a thread: the others are computed by the first alone.
const sizes shapes[] = {{{3, 0, -1, 3, 2, 0, -1, 5}, 9, 70, 51, 6},
                        {{1}, 1, 130, 257, 17},
                        {{2, -1, 0, 7, 7, 3}, 1, 64, 64, 16},
                        {{4, 4}, 40, 33, 20, 1},
                        {{-1, -1}, 3, 8, 9, 2},
                        {{1, 2, -1, 3}, 24, 600, 640, 4}};

/// base + LoRA in a graph, on memory of the graph's context.
template <class T>
struct layer {
    using X = known<typename T::X>;
    using P = known<typename T::P>;
    using Y = known<typename T::Y>;

    context memory;
    batch_plan plan;
    ggml_lora_batch batch;
    ggml_tensor *x, *a, *b, *base;
    tensor<double, 2> y_before;

    explicit layer(const sizes& s, memory_order of_rows = memory_order::dense,
                   memory_order of_adapters = memory_order::dense) {
        const auto sequences = static_cast<index_t>(s.task_of_sequence.size());
        std::vector<index_t> rows(s.task_of_sequence.size(), s.rows_of_sequence);
        plan.assign_sequences(tensor_view<const int, 1>(s.task_of_sequence.data(), {sequences}),
                              tensor_view<const index_t, 1>(rows.data(), {sequences}));
        batch.plan = &plan;
        batch.scale = -0.75;
        // Rows of a cut-out are evenly spaced within a sequence only: all of them are one there.
        const bool together = of_rows == memory_order::cut_out;
        const index_t e1 = together ? plan.rows() : s.rows_of_sequence;
        const index_t e2 = together ? 1 : sequences;
        const auto rows_tensor = [&](ggml_type type, index_t features) {
            if (of_rows == memory_order::exchanged)
                return new_tensor(memory, type, features, plan.rows(), 1, of_rows);
            return new_tensor(memory, type, features, e1, e2, of_rows);
        };
        x = rows_tensor(detail::ggml_type_of<X>(), s.in);
        base = rows_tensor(detail::ggml_type_of<Y>(), s.out);
        a = new_tensor(memory, detail::ggml_type_of<P>(), s.in, s.rank, plan.entries(),
                       of_adapters);
        b = new_tensor(memory, detail::ggml_type_of<P>(), s.rank, s.out, plan.entries(),
                       of_adapters);
        random_source random(7);
        random.fill(view_of<X, 2>(x));
        random.fill(view_of<Y, 2>(base));
        random.fill(view_of<P, 3>(a));
        random.fill(view_of<P, 3>(b));
        y_before = copy_as<double>(view_of<Y, 2>(base));
    }

    tensor<Y, 2> run(int threads) {
        transform(y_before.const_view(), view_of<Y, 2>(base),
                  [](double value) { return static_cast<Y>(static_cast<float>(value)); });
        compute(memory,
                ggml_lora_inplace<typename T::X, typename T::P, typename T::Y>(memory, base, x, a,
                                                                               b, &batch),
                threads);
        return copy_as<Y>(view_of<Y, 2>(base));
    }

    /// By the oracle: its sums, or those of magnitudes.
    template <class Copy>
    tensor<double, 2> expect(double scale, Copy&& copy) {
        auto y = copy(y_before.view());
        const auto adapters_a = copy(view_of<P, 3>(a).transpose(1, 2));
        const auto adapters_b = copy(view_of<P, 3>(b).transpose(1, 2));
        const auto inputs = copy(view_of<X, 2>(x));
        const auto entries = entry_of_row(plan);
        reference::lora_forward(entries.const_view(), inputs.const_view(), adapters_a.const_view(),
                                adapters_b.const_view(), scale, y.view());
        return y;
    }
    comparison compare_with_oracle(const tensor<Y, 2>& y) {
        const auto want =
            expect(batch.scale, [](const auto& view) { return copy_as<double>(view); });
        const auto size = expect(std::abs(batch.scale),
                                 [](const auto& view) { return magnitudes_as<double>(view); });
        const auto terms = static_cast<double>(x->ne[0] + a->ne[1]);
        return compare(y.view(), want.view(), size.view(), within<float>(terms / 2 + 3));
    }
};

} // namespace

TEST_CASE("ggml's 16-bit elements convert as ggml does, and their format is recognised") {
    CHECK(detail::format_of<ggml_f16>() == detail::format::f16);
    CHECK(detail::format_of<ggml_bf16>() == detail::format::bf16);
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto stored = static_cast<std::uint16_t>(bits);
        ggml_f16 half;
        ggml_bf16 brain;
        half.bits = stored;
        brain.bits.bits = stored;
        const float from_half = half, from_brain = brain;
        const auto as_known_half = static_cast<float>(Eigen::numext::bit_cast<Eigen::half>(stored));
        const auto as_known_brain =
            static_cast<float>(Eigen::numext::bit_cast<Eigen::bfloat16>(stored));
        REQUIRE((detail::is_exactly(from_half, as_known_half) ||
                 (std::isnan(from_half) && std::isnan(as_known_half))));
        REQUIRE((detail::is_exactly(from_brain, as_known_brain) ||
                 (std::isnan(from_brain) && std::isnan(as_known_brain))));
        if (std::isnan(from_half) || std::isnan(from_brain)) continue;
        REQUIRE(ggml_f16(from_half).bits == stored);
        REQUIRE(ggml_bf16(from_brain).bits.bits == stored);
    }
}

TEST_CASE("a view has ggml's axes in reverse, with strides in elements") {
    const context memory;
    ggml_tensor* const dense = ggml_new_tensor_4d(memory, GGML_TYPE_F32, 7, 5, 3, 2);
    const auto all = view_of<float, 4>(dense);
    CHECK(all.data() == dense->data);
    CHECK(all.extents() == std::array<index_t, 4>{2, 3, 5, 7});
    CHECK(all.is_contiguous());
    CHECK(view_of<const float, 2>(dense).extents() == std::array<index_t, 2>{30, 7});
    CHECK(view_of<float, 1>(dense).extents() == std::array<index_t, 1>{210});

    // Element (i0, i1, i2) of ggml is element (i2, i1, i0) of the view, through every view of
    // ggml's.
    all(1, 2, 3, 4) = 42;
    CHECK(ggml_get_f32_nd(dense, 4, 3, 2, 1) == 42);
    ggml_tensor* const permuted = ggml_permute(memory, dense, 2, 0, 1, 3);
    CHECK(view_of<float, 4>(permuted)(1, 4, 2, 3) == ggml_get_f32_nd(permuted, 3, 2, 4, 1));
    CHECK(view_of<float, 4>(permuted)(1, 4, 2, 3) == 42);
    ggml_tensor* const part = ggml_view_2d(memory, dense, 4, 3, 2 * dense->nb[1], dense->nb[0]);
    const auto rows = view_of<float, 2>(part);
    CHECK(rows.extents() == std::array<index_t, 2>{3, 4});
    CHECK(rows.strides() == std::array<index_t, 2>{14, 1});
    CHECK(rows.data() == static_cast<float*>(dense->data) + 1);

    ggml_tensor* const ids = ggml_new_tensor_1d(memory, GGML_TYPE_I32, 6);
    CHECK(view_of<const std::int32_t, 1>(ids).extent(0) == 6);
    ggml_tensor* const halves = ggml_new_tensor_2d(memory, GGML_TYPE_F16, 6, 4);
    CHECK(view_of<ggml_f16, 2>(halves).strides() == std::array<index_t, 2>{6, 1});
    CHECK(view_of<Eigen::half, 2>(halves).data() == halves->data);
}

TEST_CASE("what is not a view of the asked-for elements is refused") {
    const context memory;
    const auto refused = [](ggml_tensor* tensor) {
        return refuses("view_of", "tensor", [&] { (void)view_of<float, 2>(tensor); });
    };
    CHECK(refused(nullptr));
    for (ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_F16,
                           GGML_TYPE_BF16, GGML_TYPE_I32, GGML_TYPE_F64}) {
        CAPTURE(ggml_type_name(type));
        CHECK(refused(ggml_new_tensor_2d(memory, type, 256, 2)));
    }
    ggml_tensor* const floats = ggml_new_tensor_2d(memory, GGML_TYPE_F32, 8, 4);
    ggml_tensor* const halves = ggml_new_tensor_2d(memory, GGML_TYPE_F16, 8, 4);
    ggml_tensor* const brains = ggml_new_tensor_2d(memory, GGML_TYPE_BF16, 8, 4);
    CHECK(refuses("view_of", "tensor", [&] { (void)view_of<ggml_bf16, 2>(halves); }));
    CHECK(refuses("view_of", "tensor", [&] { (void)view_of<ggml_f16, 2>(brains); }));
    CHECK(refuses("view_of", "tensor", [&] { (void)view_of<Eigen::half, 2>(floats); }));

    floats->nb[1] += 2;
    CHECK(refused(floats));
    floats->nb[1] -= 2;
    CHECK_FALSE(refused(floats));
    // Rows of matrices with a gap between are not one axis, though both are views of rank 3.
    ggml_tensor* const gap = ggml_view_3d(memory, floats, 8, 1, 2, floats->nb[1], floats->nb[2], 0);
    CHECK_FALSE(refused(gap));
    ggml_tensor* const apart =
        ggml_view_3d(memory, floats, 4, 2, 2, 4 * floats->nb[0], 24 * floats->nb[0], 0);
    CHECK(refused(apart));
    CHECK(view_of<float, 3>(apart).strides() == std::array<index_t, 3>{24, 4, 1});
}

TEST_CASE_TEMPLATE("a LoRA node agrees with the oracle, on any number of threads", T,
                   GGML_STORAGES) {
    for (const sizes& s : shapes) {
        CAPTURE(s.rows_of_sequence);
        CAPTURE(s.in);
        layer<T> l(s);
        const auto y = l.run(1);
        CHECK(l.compare_with_oracle(y));
        for (int threads : {2, 3, 8}) {
            CAPTURE(threads);
            CHECK(compare_bitwise(l.run(threads).view(), y.view()));
        }
    }
}

TEST_CASE_TEMPLATE("a LoRA node works on views of any strides", T, storage<float, float, float>,
                   storage<float, ggml_bf16, float>, storage<ggml_f16, ggml_f16, ggml_f16>) {
    for (memory_order of_rows : memory_orders)
        for (memory_order of_adapters : memory_orders) {
            CAPTURE(static_cast<int>(of_rows));
            CAPTURE(static_cast<int>(of_adapters));
            layer<T> l(shapes[0], of_rows, of_adapters);
            CHECK(l.compare_with_oracle(l.run(2)));
        }
}

TEST_CASE("rows of no task keep their bits") {
    layer<storage<float, float, float>> l(shapes[0]);
    const auto y = l.run(2);
    const auto none = l.plan.base_rows();
    REQUIRE(none.extent(0) == 18);
    for (index_t i = 0; i < none.extent(0); ++i)
        for (index_t o = 0; o < l.base->ne[0]; ++o)
            CHECK(y(none(i), o) == static_cast<float>(l.y_before(none(i), o)));
}

TEST_CASE("a graph serves other tasks and other slots of a pool from one computation to the next") {
    using T = storage<float, float, float>;
    const sizes s{{0, 1, 2, 3, 4}, 4, 20, 24, 3}; // the adapters of five tasks are the pool
    layer<T> l(s);
    const std::vector<std::vector<index_t>> batches{{4, 4, 1, -1, 1}, {0, -1, 2, 3, 0}};
    ggml_cgraph* graph = nullptr;
    std::vector<index_t> slots;
    for (const auto& adapter_of_sequence : batches) {
        // Tasks are labels: here 10 more than the slot.
        tensor<index_t, 1> task_of_row({l.plan.rows()});
        for (index_t row = 0; row < task_of_row.extents()[0]; ++row) {
            const index_t adapter = adapter_of_sequence[static_cast<std::size_t>(row / 4)];
            task_of_row(row) = adapter < 0 ? no_task : adapter + 10;
        }
        l.plan.assign_rows(task_of_row.const_view());
        slots.clear();
        for (index_t entry = 0; entry < l.plan.entries(); ++entry)
            slots.push_back(l.plan.tasks()(entry) - 10);
        l.batch.slot_of_entry = {slots.data(), {l.plan.entries()}};
        if (graph == nullptr) {
            graph = ggml_new_graph(l.memory);
            ggml_build_forward_expand(graph,
                                      ggml_lora_inplace(l.memory, l.base, l.x, l.a, l.b, &l.batch));
        }
        transform(l.y_before.const_view(), view_of<float, 2>(l.base),
                  [](double value) { return static_cast<float>(value); });
        REQUIRE(ggml_graph_compute_with_ctx(l.memory, graph, 2) == GGML_STATUS_SUCCESS);

        auto want = l.y_before;
        tensor<index_t, 1> adapter_of_row(task_of_row.extents());
        transform(task_of_row.const_view(), adapter_of_row.view(),
                  [](index_t task) { return task < 0 ? index_t(-1) : task - 10; });
        reference::lora_forward(
            adapter_of_row.const_view(), copy_as<double>(view_of<float, 2>(l.x)).const_view(),
            copy_as<double>(view_of<float, 3>(l.a).transpose(1, 2)).const_view(),
            copy_as<double>(view_of<float, 3>(l.b).transpose(1, 2)).const_view(), l.batch.scale,
            want.view());
        tensor<double, 2> size(want.extents());
        for (double& value : size.values())
            value = 20 * 3 + 1; // all terms are below 1
        CHECK(compare(view_of<float, 2>(l.base), want.view(), size.view(), within<float>(4)));
    }
}

TEST_CASE_TEMPLATE("a routed layer as a graph: a base product, mixing, LoRA", M, float, ggml_f16,
                   ggml_bf16) {
    using K = known<M>;
    constexpr index_t heads = 4, modules = 3, in_block = 6, out_block = 5, rank = 7;
    constexpr index_t in = heads * in_block, out = heads * out_block;
    const std::vector<int> task_of_row{5, 1, 1, -1, 9, 5, 5, 5, -1, 1, 9};
    const auto rows = static_cast<index_t>(task_of_row.size());
    batch_plan plan;
    plan.assign_rows(tensor_view<const int, 1>(task_of_row.data(), {rows}));
    const ggml_lora_batch batch{&plan, 0.5};

    // Tensors without data: the graph's allocator gives memory to all, and reuses it.
    const context memory(true);
    const ggml_type type = detail::ggml_type_of<K>();
    ggml_tensor* const x = ggml_new_tensor_2d(memory, GGML_TYPE_F32, in, rows);
    ggml_tensor* const w = ggml_new_tensor_2d(memory, GGML_TYPE_F32, in, out);
    ggml_tensor* const weights =
        ggml_new_tensor_3d(memory, GGML_TYPE_F32, modules, heads, plan.entries());
    ggml_tensor* const a = ggml_new_tensor_4d(memory, type, rank, in_block, modules, heads);
    ggml_tensor* const b = ggml_new_tensor_4d(memory, type, out_block, rank, modules, heads);
    for (ggml_tensor* input : {x, w, weights, a, b})
        ggml_set_input(input);
    ggml_tensor* const mixed_a = ggml_mix_lora_a<M>(memory, weights, a);
    ggml_tensor* const mixed_b = ggml_mix_lora_b<M>(memory, weights, b);
    ggml_tensor* const y =
        ggml_lora_inplace(memory, ggml_mul_mat(memory, w, x), x, mixed_a, mixed_b, &batch);
    ggml_set_output(y);
    ggml_cgraph* const graph = ggml_new_graph(memory);
    ggml_build_forward_expand(graph, y);
    const ggml_backend_t backend = ggml_backend_cpu_init();
    const ggml_gallocr_t allocator =
        ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend));
    REQUIRE(ggml_gallocr_alloc_graph(allocator, graph));

    random_source random(11);
    random.fill(view_of<float, 2>(x));
    random.fill(view_of<float, 2>(w));
    random.fill(view_of<float, 3>(weights), 0, 1);
    random.fill(view_of<K, 4>(a));
    random.fill(view_of<K, 4>(b));
    const auto expect = [&](double scale, const auto& copy) {
        const routed_oracle<double> oracle{
            entry_of_row(plan),         scale,
            copy(view_of<float, 2>(x)), copy(view_of<K, 4>(a)),
            copy(view_of<K, 4>(b)),     copy(view_of<float, 3>(weights))};
        const auto base = copy(view_of<float, 2>(w));
        tensor<double, 2> result({rows, out});
        for_each_position(result.extents(), [&](const position<2>& at) {
            for (index_t i = 0; i < in; ++i)
                result(at[0], at[1]) += oracle.x(at[0], i) * base(at[1], i);
        });
        oracle.forward(result);
        return result;
    };
    const auto want = expect(0.5, [](const auto& view) { return copy_as<double>(view); });
    const auto size = expect(0.5, [](const auto& view) { return magnitudes_as<double>(view); });

    tensor<float, 2> first;
    for (int threads : {1, 2, 3}) {
        CAPTURE(threads);
        ggml_backend_cpu_set_n_threads(backend, threads);
        REQUIRE(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS);
        CHECK(compare(view_of<const float, 2>(y), want.view(), size.view(),
                      within<float>(in + modules + rank)));
        if (threads == 1)
            first = copy_as<float>(view_of<float, 2>(y));
        else
            CHECK(compare_bitwise(view_of<float, 2>(y), first.view()));
        // The allocator may have given the memory of inputs to later nodes.
        random = random_source(11);
        random.fill(view_of<float, 2>(x));
        random.fill(view_of<float, 2>(w));
        random.fill(view_of<float, 3>(weights), 0, 1);
        random.fill(view_of<K, 4>(a));
        random.fill(view_of<K, 4>(b));
    }
    ggml_gallocr_free(allocator);
    ggml_backend_free(backend);
}

TEST_CASE("mixing nodes write what mix_lora_forward writes, also narrower") {
    // Of a size that is shared out among threads.
    constexpr index_t heads = 2, modules = 3, in_block = 4096, out_block = 4097, rank = 8;
    constexpr index_t entries = 4;
    const context memory;
    ggml_tensor* const weights = ggml_new_tensor_3d(memory, GGML_TYPE_F32, modules, heads, entries);
    ggml_tensor* const a =
        ggml_new_tensor_4d(memory, GGML_TYPE_F32, rank, in_block, modules, heads);
    ggml_tensor* const b =
        ggml_new_tensor_4d(memory, GGML_TYPE_F32, out_block, rank, modules, heads);
    random_source random(2);
    random.fill(view_of<float, 3>(weights));
    random.fill(view_of<float, 4>(a));
    random.fill(view_of<float, 4>(b));
    tensor<Eigen::half, 3> want_a({entries, heads * in_block, rank});
    tensor<Eigen::half, 3> want_b({entries, rank, heads * out_block});
    mix_lora_forward(
        serial_executor{}, view_of<const float, 3>(weights),
        lora_inventory<const float>{view_of<const float, 4>(a), view_of<const float, 4>(b)},
        lora_batch<Eigen::half>{want_a.view(), want_b.view()});
    for (int threads : {1, 2, 3}) {
        ggml_tensor* const mixed_a = ggml_mix_lora_a<float, ggml_f16>(memory, weights, a);
        ggml_tensor* const mixed_b = ggml_mix_lora_b<float, ggml_f16>(memory, weights, b);
        compute(memory, mixed_a, threads);
        compute(memory, mixed_b, threads);
        CHECK(compare_bitwise(view_of<Eigen::half, 3>(mixed_a).transpose(1, 2), want_a.view()));
        CHECK(compare_bitwise(view_of<Eigen::half, 3>(mixed_b).transpose(1, 2), want_b.view()));
    }
}

namespace {

/// How many allocations a computation of a graph makes, ggml's own included.
std::size_t allocations_of_graph(ggml_cgraph* graph, int threads) {
    ggml_cplan plan = ggml_graph_plan(graph, threads, nullptr);
    std::vector<std::uint8_t> work(plan.work_size + 1);
    plan.work_data = work.data();
    REQUIRE(ggml_graph_compute(graph, &plan) == GGML_STATUS_SUCCESS); // makes what is kept
    ggml_status status = GGML_STATUS_FAILED;
    const std::size_t count = allocations_of([&] { status = ggml_graph_compute(graph, &plan); });
    CHECK(status == GGML_STATUS_SUCCESS);
    return count;
}

} // namespace

TEST_CASE("computing the nodes allocates no more than nodes that do nothing") {
    constexpr index_t heads = 2, modules = 3, rank = 4;
    layer<storage<float, float, float>> l(shapes[0]);
    ggml_context* const memory = l.memory;
    ggml_tensor* const weights =
        ggml_new_tensor_3d(memory, GGML_TYPE_F32, modules, heads, l.plan.entries());
    ggml_tensor* const a =
        ggml_new_tensor_4d(memory, GGML_TYPE_F32, rank, l.x->ne[0] / heads, modules, heads);
    ggml_tensor* const b = ggml_new_tensor_4d(memory, GGML_TYPE_F32, 51, rank, modules, 1);
    ggml_tensor* const b_of_heads =
        ggml_view_4d(memory, b, 17, rank, modules, heads, b->nb[1], b->nb[2], 17 * b->nb[0], 0);
    random_source random(3);
    random.fill(view_of<float, 3>(weights));
    random.fill(view_of<float, 4>(a));
    random.fill(view_of<float, 4>(b));
    ggml_tensor* const base = ggml_new_tensor_2d(memory, GGML_TYPE_F32, 34, l.plan.rows());
    view_of<float, 2>(base)(0, 0) = 0;
    ggml_tensor* const mixed_a = ggml_mix_lora_a(memory, weights, a);
    ggml_tensor* const mixed_b = ggml_mix_lora_b(memory, weights, b_of_heads);
    ggml_tensor* const y = ggml_lora_inplace(memory, base, l.x, mixed_a, mixed_b, &l.batch);
    const auto graph_of = [&](ggml_tensor* result) {
        ggml_cgraph* const graph = ggml_new_graph(memory);
        ggml_build_forward_expand(graph, result);
        return graph;
    };
    ggml_cgraph* const graph = graph_of(y);

    // The same graph, but for what its nodes compute. (ggml allocates for its threads.)
    std::vector<float> kept;
    const auto graph_of_others = [&](ggml_custom_op_t compute_node) {
        const auto like = [&](ggml_tensor* node) {
            return ggml_custom_4d(memory, node->type, node->ne[0], node->ne[1], node->ne[2],
                                  node->ne[3], node->src, 2, compute_node, GGML_N_TASKS_MAX, &kept);
        };
        ggml_tensor* sources[] = {l.x, like(mixed_a), ggml_transpose(memory, like(mixed_b->src[0])),
                                  ggml_dup_tensor(memory, y->src[4])};
        return graph_of(
            ggml_custom_inplace(memory, base, sources, 4, compute_node, GGML_N_TASKS_MAX, &kept));
    };
    ggml_cgraph* const idle = graph_of_others([](ggml_tensor*, int, int, void*) {});
    ggml_cgraph* const allocating = graph_of_others([](ggml_tensor*, int ith, int, void* data) {
        if (ith == 0) *static_cast<std::vector<float>*>(data) = std::vector<float>(1000);
    });
    REQUIRE(ggml_graph_n_nodes(idle) == ggml_graph_n_nodes(graph));
    for (int threads : {1, 2, 3}) {
        CAPTURE(threads);
        const std::size_t of_ggml = allocations_of_graph(idle, threads);
        CHECK(allocations_of_graph(graph, threads) == of_ggml);
        CHECK(allocations_of_graph(allocating, threads) > of_ggml); // it would be seen
    }
}

TEST_CASE("bad nodes are refused when they are made") {
    using T = storage<float, float, float>;
    layer<T> l(sizes{{0, -1, 1}, 4, 10, 12, 3});
    ggml_context* const memory = l.memory;
    const auto tensor_of = [&](ggml_type type, index_t e0, index_t e1, index_t e2) {
        return ggml_new_tensor_3d(memory, type, e0, e1, e2);
    };
    const auto refused = [&](const char* argument, ggml_tensor* base, ggml_tensor* x,
                             ggml_tensor* a, ggml_tensor* b, const ggml_lora_batch* batch) {
        return refuses("ggml_lora_inplace", argument,
                       [&] { (void)ggml_lora_inplace(memory, base, x, a, b, batch); });
    };
    const ggml_lora_batch without_plan;
    CHECK(refused("batch", l.base, l.x, l.a, l.b, nullptr));
    CHECK(refused("batch", l.base, l.x, l.a, l.b, &without_plan));
    CHECK(refused("x", l.base, tensor_of(GGML_TYPE_F16, 10, 12, 1), l.a, l.b, &l.batch));
    CHECK(refused("x", l.base, tensor_of(GGML_TYPE_F32, 10, 11, 1), l.a, l.b, &l.batch));
    CHECK(refused("a", l.base, l.x, tensor_of(GGML_TYPE_Q8_0, 32, 3, 2), l.b, &l.batch));
    CHECK(refused("adapters.a", l.base, l.x, tensor_of(GGML_TYPE_F32, 11, 3, 2), l.b, &l.batch));
    CHECK(refused("adapters.a", l.base, l.x, tensor_of(GGML_TYPE_F32, 10, 3, 1), l.b, &l.batch));
    CHECK(refused("b", l.base, l.x, l.a, tensor_of(GGML_TYPE_BF16, 3, 12, 2), &l.batch));
    CHECK(refused("adapters.b", l.base, l.x, l.a, tensor_of(GGML_TYPE_F32, 4, 12, 2), &l.batch));
    CHECK(refused("base", tensor_of(GGML_TYPE_F32, 13, 12, 1), l.x, l.a, l.b, &l.batch));
    CHECK(refused("base", tensor_of(GGML_TYPE_F32, 12, 13, 1), l.x, l.a, l.b, &l.batch));
    CHECK(refused("base", tensor_of(GGML_TYPE_F64, 12, 12, 1), l.x, l.a, l.b, &l.batch));
    CHECK(refused("base", ggml_view_2d(memory, l.base, 12, 12, 0, 0), l.x, l.a, l.b, &l.batch));
    const std::vector<index_t> slots{1, 2};
    ggml_lora_batch with_slots = l.batch;
    with_slots.slot_of_entry = {slots.data(), {2}};
    CHECK(refused("adapters.slot_of_entry", l.base, l.x, l.a, l.b, &with_slots));
    with_slots.slot_of_entry = {slots.data(), {1}};
    CHECK(refused("adapters.slot_of_entry", l.base, l.x, l.a, l.b, &with_slots));

    ggml_tensor* const weights = tensor_of(GGML_TYPE_F32, 3, 2, 5);
    const auto mixing_refused = [&](const char* argument, ggml_tensor* w, ggml_tensor* modules) {
        return refuses("ggml_mix_lora_a", argument,
                       [&] { (void)ggml_mix_lora_a(memory, w, modules); }) &&
               refuses("ggml_mix_lora_b", argument,
                       [&] { (void)ggml_mix_lora_b(memory, w, modules); });
    };
    ggml_tensor* const modules = ggml_new_tensor_4d(memory, GGML_TYPE_F32, 4, 6, 3, 2);
    CHECK_FALSE(mixing_refused("modules", weights, modules));
    CHECK(mixing_refused("weights", tensor_of(GGML_TYPE_F16, 3, 2, 5), modules));
    CHECK(mixing_refused("modules", tensor_of(GGML_TYPE_F32, 4, 2, 5), modules));
    CHECK(mixing_refused("modules", tensor_of(GGML_TYPE_F32, 3, 1, 5), modules));
    CHECK(mixing_refused("modules", weights,
                         ggml_new_tensor_4d(memory, GGML_TYPE_Q4_0, 32, 6, 3, 2)));
}
