#include <cstddef>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>

#include <mhr/hosts/ggml/routed_lora.hpp>
#include <mhr/lora/inventory.hpp>
#include <mhr/reference/lora.hpp>
#include <mhr/reference/mixing.hpp>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/ggml_layer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;
using mhr::ggml::ref_of;

namespace {

constexpr index_t heads = 4, modules = 3, in_block = 6, out_block = 5, rank = 7;
constexpr index_t in = heads * in_block, out = heads * out_block;

/// y = x W^T + the routed adapters', by the oracles, or their magnitudes.
template <class Copy>
tensor<double, 2> expect_routed(const batch_plan& plan, double scale, ggml_tensor* x,
                                ggml_tensor* w, const ggml::routed_tensors& layer, Copy&& copy) {
    const auto inputs = copy(const_tensor_ref<2>(ref_of<2>(x)));
    const auto base = copy(const_tensor_ref<2>(ref_of<2>(w)));
    const auto weights = copy(const_tensor_ref<3>(ref_of<3>(layer.weights)));
    const auto a = copy(const_tensor_ref<4>(ref_of<4>(layer.a)));
    const auto b = copy(const_tensor_ref<4>(ref_of<4>(layer.b)));
    tensor<double, 4> mixed_a({plan.entries(), heads, in_block, rank});
    tensor<double, 4> mixed_b({plan.entries(), heads, rank, out_block});
    reference::mix_forward(weights.const_view(), a.const_view(), mixed_a.view());
    reference::mix_forward(weights.const_view(), b.const_view(), mixed_b.view());
    tensor<double, 3> matrices_a({plan.entries(), in, rank}),
        matrices_b({plan.entries(), rank, out});
    for_each_position(mixed_a.extents(), [&](const position<4>& at) {
        matrices_a(at[0], at[1] * in_block + at[2], at[3]) = element(mixed_a.view(), at);
    });
    for_each_position(mixed_b.extents(), [&](const position<4>& at) {
        matrices_b(at[0], at[2], at[1] * out_block + at[3]) = element(mixed_b.view(), at);
    });
    tensor<double, 2> y({plan.rows(), out});
    for_each_position(y.extents(), [&](const position<2>& at) {
        for (index_t i = 0; i < in; ++i)
            y(at[0], at[1]) += inputs(at[0], i) * base(at[1], i);
    });
    std::vector<index_t> entries;
    for (index_t entry = 0; entry < plan.entries(); ++entry)
        entries.push_back(entry);
    reference::lora_forward(adapter_of_row(plan, entries).const_view(), inputs.const_view(),
                            matrices_a.const_view(), matrices_b.const_view(), scale, y.view());
    return y;
}

} // namespace

TEST_CASE("a routed layer as a graph: a base product, mixing, LoRA") {
    for (element_type type : all_element_types) {
        CAPTURE(std::string(name_of(type)));
        const std::vector<int> task_of_row{5, 1, 1, -1, 9, 5, 5, 5, -1, 1, 9};
        const auto rows = static_cast<index_t>(task_of_row.size());
        batch_plan plan;
        plan.assign_rows(tensor_view<const int, 1>(task_of_row.data(), {rows}));
        const ggml::routed_batch batch{&plan, 0.5};

        // Tensors without data: the graph's allocator gives memory to all, and reuses it.
        const ggml_memory memory(true);
        const ggml_type of_modules = type_in_ggml(type);
        ggml_tensor* const x = ggml_new_tensor_2d(memory, GGML_TYPE_F32, in, rows);
        ggml_tensor* const w = ggml_new_tensor_2d(memory, GGML_TYPE_F32, in, out);
        const ggml::routed_tensors layer{
            ggml_new_tensor_3d(memory, GGML_TYPE_F32, modules, heads, plan.entries()),
            ggml_new_tensor_4d(memory, of_modules, rank, in_block, modules, heads),
            ggml_new_tensor_4d(memory, of_modules, out_block, rank, modules, heads)};
        for (ggml_tensor* input : {x, w, layer.weights, layer.a, layer.b})
            ggml_set_input(input);
        ggml_tensor* const base = ggml_mul_mat(memory, w, x);
        CHECK(ggml::why_not(base, x, layer, batch).empty());
        ggml_tensor* const y = ggml::routed_lora_inplace(memory, base, x, layer, batch);
        ggml_set_output(y);
        ggml_cgraph* const graph = graph_of(memory, y);
        const ggml_backend_t backend = ggml_backend_cpu_init();
        const ggml_gallocr_t allocator =
            ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend));
        REQUIRE(ggml_gallocr_alloc_graph(allocator, graph));

        // The allocator may have given the memory of inputs to later nodes.
        const auto set_inputs = [&] {
            random_source random(11);
            fill(ref_of<2>(x), random);
            fill(ref_of<2>(w), random);
            fill(ref_of<3>(layer.weights), random, 0, 1);
            fill(ref_of<4>(layer.a), random);
            fill(ref_of<4>(layer.b), random);
        };
        set_inputs();
        const auto want = expect_routed(plan, batch.scale, x, w, layer,
                                        [](const auto& ref) { return values_as<double>(ref); });
        const auto size = expect_routed(plan, batch.scale, x, w, layer,
                                        [](const auto& ref) { return magnitudes_as<double>(ref); });
        tensor<double, 2> first;
        for (int threads : {1, 2, 3}) {
            CAPTURE(threads);
            set_inputs();
            ggml_backend_cpu_set_n_threads(backend, threads);
            REQUIRE(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS);
            CHECK(
                compare(ref_of<2>(y), want.view(), size.view(), within(f32, in + modules + rank)));
            if (threads == 1) first = values_as<double>(ref_of<2>(y));
            CHECK(compare_bitwise(values_as<double>(ref_of<2>(y)).view(), first.view()));
        }
        ggml_gallocr_free(allocator);
        ggml_backend_free(backend);
    }
}

TEST_CASE("mixing nodes write what mix_lora_forward writes, also narrower") {
    // The sizes are large enough to be shared out among threads.
    constexpr index_t two_heads = 2, in_of_head = 4096, out_of_head = 4097, ranks = 8, entries = 4;
    const ggml_memory memory;
    ggml_tensor* const weights =
        ggml_new_tensor_3d(memory, GGML_TYPE_F32, modules, two_heads, entries);
    ggml_tensor* const a =
        ggml_new_tensor_4d(memory, GGML_TYPE_F32, ranks, in_of_head, modules, two_heads);
    ggml_tensor* const b =
        ggml_new_tensor_4d(memory, GGML_TYPE_F32, out_of_head, ranks, modules, two_heads);
    random_source random(2);
    fill(ref_of<3>(weights), random);
    fill(ref_of<4>(a), random);
    fill(ref_of<4>(b), random);
    for (element_type type : {f32, f16_type}) {
        guarded_tensor<3> want_a(type, {entries, two_heads * in_of_head, ranks});
        guarded_tensor<3> want_b(type, {entries, ranks, two_heads * out_of_head});
        mix_lora_forward({}, ref_of<3>(weights), {ref_of<4>(a), ref_of<4>(b)},
                         {want_a.ref(), want_b.ref()});
        for (int threads : {1, 2, 3}) {
            ggml_tensor* const mixed_a = ggml::mix_lora_a(memory, weights, a, type_in_ggml(type));
            ggml_tensor* const mixed_b = ggml::mix_lora_b(memory, weights, b, type_in_ggml(type));
            compute_graph(memory, mixed_a, threads);
            compute_graph(memory, mixed_b, threads);
            CHECK(compare_bitwise(ref_of<3>(mixed_a).transpose(1, 2), want_a.ref()));
            CHECK(compare_bitwise(ref_of<3>(mixed_b).transpose(1, 2), want_b.ref()));
        }
    }
}

TEST_CASE("bad nodes of routed layers are refused") {
    ggml_layer l({{0, -1, 1, 2, 5, 6}, 4, 24, 20});
    ggml_context* const memory = l.memory;
    const ggml::routed_batch batch{&l.plan, 0.5};
    const auto tensor_of = [&](ggml_type type, index_t e0, index_t e1, index_t e2, index_t e3 = 1) {
        return ggml_new_tensor_4d(memory, type, e0, e1, e2, e3);
    };
    const ggml::routed_tensors good{tensor_of(GGML_TYPE_F32, 3, 4, 5),
                                    tensor_of(GGML_TYPE_F32, 7, 6, 3, 4),
                                    tensor_of(GGML_TYPE_F32, 5, 7, 3, 4)};
    const auto refused = [&](const char* argument, const ggml::routed_tensors& layer,
                             const ggml::routed_batch& of) {
        const std::string why = ggml::why_not(l.base, l.x, layer, of);
        const auto outcome = refuses("ggml::routed_lora_inplace", argument, [&] {
            (void)ggml::routed_lora_inplace(memory, l.base, l.x, layer, of);
        });
        CHECK((outcome ? outcome.message : std::string()) == why);
        return outcome;
    };
    const auto with = [&](ggml_tensor* weights, ggml_tensor* a, ggml_tensor* b) {
        return ggml::routed_tensors{weights, a, b};
    };
    CHECK_FALSE(refused("x", good, batch));
    CHECK(refused("batch.plan", good, {}));
    CHECK(refused("layer.weights", with(nullptr, good.a, good.b), batch));
    CHECK(refused("layer.weights", with(tensor_of(GGML_TYPE_F32, 3, 4, 4), good.a, good.b), batch));
    CHECK(refused("layer.a", with(good.weights, tensor_of(GGML_TYPE_Q4_0, 32, 6, 3, 4), good.b),
                  batch));
    CHECK(refused("layer.a", with(good.weights, tensor_of(GGML_TYPE_F32, 7, 6, 4, 4), good.b),
                  batch));
    CHECK(refused("layer.b", with(good.weights, good.a, tensor_of(GGML_TYPE_F32, 5, 6, 3, 4)),
                  batch));
    CHECK(refused("x", with(good.weights, tensor_of(GGML_TYPE_F32, 7, 5, 3, 4), good.b), batch));
    CHECK(refused("base", with(good.weights, good.a, tensor_of(GGML_TYPE_F32, 6, 7, 3, 4)), batch));

    const ggml::mixed_tensors mixed{tensor_of(GGML_TYPE_F32, 24, 7, 5),
                                    tensor_of(GGML_TYPE_F16, 7, 20, 5)};
    const auto mixed_refused = [&](const char* argument, ggml_tensor* a, ggml_tensor* b) {
        const std::string why = ggml::why_not(l.base, l.x, ggml::mixed_tensors{a, b}, batch);
        const auto outcome = refuses("ggml::mixed_lora_inplace", argument, [&] {
            (void)ggml::mixed_lora_inplace(memory, l.base, l.x, {a, b}, batch);
        });
        CHECK((outcome ? outcome.message : std::string()) == why);
        return outcome;
    };
    CHECK_FALSE(mixed_refused("x", mixed.a, mixed.b));
    CHECK(mixed_refused("adapters.a", tensor_of(GGML_TYPE_F32, 24, 7, 4), mixed.b));
    CHECK(mixed_refused("adapters.b", mixed.a, tensor_of(GGML_TYPE_F32, 6, 20, 5)));
    CHECK(mixed_refused("adapters.b", mixed.a, tensor_of(GGML_TYPE_Q8_0, 32, 20, 5)));
    CHECK(mixed_refused("x", tensor_of(GGML_TYPE_F32, 25, 7, 5), mixed.b));
    CHECK(mixed_refused("base", mixed.a, tensor_of(GGML_TYPE_F32, 7, 21, 5)));

    const auto mixing_refused = [&](const char* argument, ggml_tensor* w, ggml_tensor* m,
                                    ggml_type type = GGML_TYPE_F32) {
        return refuses("ggml::mix_lora_a", argument,
                       [&] { (void)ggml::mix_lora_a(memory, w, m, type); }) &&
               refuses("ggml::mix_lora_b", argument,
                       [&] { (void)ggml::mix_lora_b(memory, w, m, type); });
    };
    CHECK_FALSE(mixing_refused("modules", good.weights, good.a));
    CHECK(mixing_refused("type", good.weights, good.a, GGML_TYPE_Q8_0));
    CHECK(mixing_refused("weights", tensor_of(GGML_TYPE_I32, 3, 4, 5), good.a));
    CHECK(mixing_refused("modules", tensor_of(GGML_TYPE_F32, 4, 4, 5), good.a));
    CHECK(mixing_refused("modules", tensor_of(GGML_TYPE_F32, 3, 1, 5), good.a));
    CHECK(mixing_refused("modules", good.weights, nullptr));
}
