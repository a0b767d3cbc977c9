#include <cstddef>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include <ggml-cpu.h>

#include <mhr/hosts/ggml.hpp>

#include "support/allocation_counter.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/ggml_layer.hpp"
#include "support/random_tensor.hpp"

using namespace mhr;
using namespace mhr::test;
using mhr::ggml::ref_of;

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
    constexpr index_t modules = 3, rank = 7;
    ggml_layer l(ggml_shapes[0]);
    ggml_context* const memory = l.memory;
    random_source random(3);
    const ggml::routed_tensors routed{
        ggml_new_tensor_3d(memory, GGML_TYPE_F32, modules, 2, l.plan.entries()),
        ggml_new_tensor_4d(memory, GGML_TYPE_F32, rank, l.x->ne[0] / 2, modules, 2),
        ggml_new_tensor_4d(memory, GGML_TYPE_F32, 17, rank, modules, 2)};
    fill(ref_of<3>(routed.weights), random);
    fill(ref_of<4>(routed.a), random);
    fill(ref_of<4>(routed.b), random);
    ggml_tensor* const base = ggml_new_tensor_2d(memory, GGML_TYPE_F32, 34, l.plan.rows());
    transform_elements(ref_of<2>(base), [](double) { return 0; });
    const ggml::routed_batch batch{&l.plan, 0.5};
    ggml_tensor* const of_adapters = ggml::lora_inplace(memory, l.base, l.x, l.adapters);
    ggml_tensor* const of_mixtures = ggml::routed_lora_inplace(memory, base, l.x, routed, batch);

    // These are the same graphs, but for what their nodes compute. (ggml allocates for its
    // threads.)
    std::vector<float> kept;
    const auto like = [&](const ggml_tensor* node, ggml_custom_op_t compute_node) {
        ggml_tensor* sources[GGML_MAX_SRC] = {};
        int count = 0;
        for (int i = 1; i < GGML_MAX_SRC && node->src[i] != nullptr; ++i) {
            ggml_tensor* source = node->src[i];
            const bool transposed = source->op == GGML_OP_TRANSPOSE;
            const ggml_tensor* const made = transposed ? source->src[0] : source;
            if (made->op == GGML_OP_CUSTOM) {
                source = ggml_custom_4d(memory, made->type, made->ne[0], made->ne[1], made->ne[2],
                                        made->ne[3], const_cast<ggml_tensor**>(made->src), 2,
                                        compute_node, GGML_N_TASKS_MAX, &kept);
                if (transposed) source = ggml_transpose(memory, source);
            }
            sources[count++] = source;
        }
        return graph_of(memory, ggml_custom_inplace(memory, node->src[0], sources, count,
                                                    compute_node, GGML_N_TASKS_MAX, &kept));
    };
    for (ggml_tensor* y : {of_adapters, of_mixtures}) {
        ggml_cgraph* const graph = graph_of(memory, y);
        ggml_cgraph* const idle = like(y, [](ggml_tensor*, int, int, void*) {});
        ggml_cgraph* const allocating = like(y, [](ggml_tensor*, int ith, int, void* data) {
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
}

TEST_CASE("the README's lines serve requests, and fall back where one cannot be served") {
    struct request_of_adapter {
        ggml_tensor *a, *b;
        double scale;
    };
    for (const bool quantised : {false, true}) {
        CAPTURE(quantised);
        ggml_layer l({{0, 1, -1, 1}, 3, 64, 24});
        ggml_context* const context = l.memory;
        ggml_tensor* const x = l.x;
        ggml_tensor* const w = ggml_new_tensor_2d(l.memory, GGML_TYPE_F32, 64, 24);
        transform_elements(ggml::ref_of<2>(w), [](double) { return 0; });
        std::vector<request_of_adapter> requests;
        for (std::size_t n = 0; n < l.a.size(); ++n)
            requests.push_back({l.a[n], l.b[n], l.scales[n]});
        if (quantised) requests[3].a = ggml_new_tensor_2d(l.memory, GGML_TYPE_Q8_0, 64, 4);
        const ggml::lora_batch& batch = l.batch;
        const index_t in_features = 64, out_features = 24;
        bool fell_back = false;
        const auto add_each = [&](ggml_context*, ggml_tensor* base, ggml_tensor*, const auto&) {
            fell_back = true;
            return base;
        };
#include "readme/ggml.inc"
        CHECK(fell_back == quantised);
        REQUIRE(ggml_graph_compute_with_ctx(context, graph_of(context, y), 2) ==
                GGML_STATUS_SUCCESS);
        if (quantised) continue;
        // It adds to 0 what the node of the other tests adds to 0.
        transform_elements(ggml::ref_of<2>(l.base), [](double) { return 0; });
        l.y_before = values_as<double>(ggml::ref_of<2>(l.base));
        CHECK(compare_bitwise(values_as<double>(ggml::ref_of<2>(y)).view(), l.run(1).view()));
    }
}
