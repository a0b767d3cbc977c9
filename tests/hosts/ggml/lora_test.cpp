#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <doctest/doctest.h>

#include <ggml-cpu.h>

#include <mhr/hosts/ggml/lora.hpp>

#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/ggml_layer.hpp"

using namespace mhr;
using namespace mhr::test;
using mhr::ggml::ref_of;

TEST_CASE(
    "one node serves adapters of different ranks, types and scales, on any number of threads") {
    for (const ggml_types& of : all_ggml_types)
        for (const ggml_sizes& s : ggml_shapes) {
            CAPTURE(std::string(name_of(of.x)));
            CAPTURE(std::string(name_of(of.adapters.front())));
            CAPTURE(s.rows_of_sequence);
            CAPTURE(s.in);
            ggml_layer l(s, of);
            CHECK(ggml::why_not(l.base, l.x, l.adapters).empty());
            const auto y = l.run(1);
            CHECK(l.compare_with_oracle());
            for (int threads : {2, 3, 8}) {
                CAPTURE(threads);
                CHECK(compare_bitwise(l.run(threads).view(), y.view()));
            }
        }
}

TEST_CASE("a LoRA node works on tensors of any strides") {
    for (std::size_t of : {0U, 1U, 2U})
        for (memory_order of_rows : memory_orders)
            for (memory_order of_adapters : memory_orders) {
                CAPTURE(static_cast<int>(of_rows));
                CAPTURE(static_cast<int>(of_adapters));
                ggml_layer l(ggml_shapes[0], all_ggml_types[of], of_rows, of_adapters);
                l.run(2);
                CHECK(l.compare_with_oracle());
            }
}

TEST_CASE("rows of no task keep their bits") {
    ggml_layer l(ggml_shapes[0]);
    const auto y = l.run(2);
    const auto none = l.plan.base_rows();
    REQUIRE(none.extent(0) == 18);
    for (index_t i = 0; i < none.extent(0); ++i)
        for (index_t o = 0; o < l.base->ne[0]; ++o)
            CHECK(y(none(i), o) == l.y_before(none(i), o));
}

TEST_CASE("an adapter may leave a layer alone") {
    ggml_layer l(ggml_shapes[0]);
    l.adapters.clear();
    l.a[3] = l.b[3] = nullptr;
    for (std::size_t n = 0; n < l.a.size(); ++n)
        l.adapters.add(l.a[n], l.b[n], l.scales[n]);
    const auto y = l.run(2);
    CHECK(l.compare_with_oracle());
    const auto rows = l.plan.rows_of(2); // those of task 3
    REQUIRE(l.plan.tasks()(2) == 3);
    for (index_t i = 0; i < rows.extent(0); ++i)
        for (index_t o = 0; o < l.base->ne[0]; ++o)
            CHECK(y(rows(i), o) == l.y_before(rows(i), o));
    // All of them: there is nothing to add.
    l.adapters.clear();
    for (std::size_t n = 0; n < l.a.size(); ++n)
        l.adapters.add(nullptr, nullptr, 1);
    CHECK(compare_bitwise(l.run(2).view(), l.y_before.view()));
}

TEST_CASE("a graph serves other tasks, adapters and scales from one computation to the next") {
    ggml_layer l({{0, 1, 2, 3, 4}, 4, 20, 24});
    ggml_cgraph* const graph =
        graph_of(l.memory, ggml::lora_inplace(l.memory, l.base, l.x, l.adapters));
    const std::vector<std::vector<index_t>> batches{
        {4, 4, 1, -1, 1}, {0, -1, 2, 3, 0}, {-1, -1, -1, -1, -1}, {7, 6, 5, 5, 5}};
    for (const auto& adapter_of_sequence : batches) {
        std::vector<std::int64_t> task_of_row;
        for (index_t adapter : adapter_of_sequence)
            task_of_row.insert(task_of_row.end(), 4, adapter);
        l.plan.assign_rows(tensor_view<const std::int64_t, 1>(task_of_row.data(), {l.plan.rows()}));
        l.use_tasks_as_adapters();
        // Other scales, too, and the adapters in another order.
        std::reverse(l.a.begin(), l.a.end());
        std::reverse(l.b.begin(), l.b.end());
        l.adapters.clear();
        for (std::size_t n = 0; n < l.a.size(); ++n) {
            l.scales[n] += 0.25;
            l.adapters.add(l.a[n], l.b[n], l.scales[n]);
        }
        CHECK(ggml::why_not(l.base, l.x, l.adapters).empty());
        l.reset();
        REQUIRE(ggml_graph_compute_with_ctx(l.memory, graph, 2) == GGML_STATUS_SUCCESS);
        CHECK(l.compare_with_oracle());
    }
}

TEST_CASE("an engine learns beforehand what cannot be served, and bad nodes are refused") {
    ggml_layer l({{0, -1, 1}, 4, 10, 12});
    ggml_context* const memory = l.memory;
    const auto tensor_of = [&](ggml_type type, index_t e0, index_t e1, index_t e2 = 1) {
        return ggml_new_tensor_3d(memory, type, e0, e1, e2);
    };
    // A call is refused if and only if `why_not` says so beforehand.
    const auto refused = [&](const char* function, const char* argument, ggml_tensor* base,
                             ggml_tensor* x, const ggml::layer_adapters& adapters) {
        const std::string why = ggml::why_not(base, x, adapters);
        const auto outcome = refuses(function, argument,
                                     [&] { (void)ggml::lora_inplace(memory, base, x, adapters); });
        CHECK((outcome ? outcome.message : std::string()) == why);
        return outcome;
    };
    const auto node_refused = [&](const char* argument, ggml_tensor* base, ggml_tensor* x) {
        return refused("ggml::lora_inplace", argument, base, x, l.adapters);
    };
    CHECK_FALSE(node_refused("x", l.base, l.x));
    CHECK(node_refused("x", l.base, nullptr));
    CHECK(node_refused("base", nullptr, l.x));
    CHECK(node_refused("x", l.base, tensor_of(GGML_TYPE_Q8_0, 32, 12)));
    CHECK(node_refused("x", l.base, tensor_of(GGML_TYPE_F32, 10, 11)));
    CHECK(node_refused("x", l.base, tensor_of(GGML_TYPE_F32, 11, 12)));
    CHECK(node_refused("base", tensor_of(GGML_TYPE_F32, 13, 12), l.x));
    CHECK(node_refused("base", tensor_of(GGML_TYPE_F32, 12, 13), l.x));
    CHECK(node_refused("base", tensor_of(GGML_TYPE_I32, 12, 12), l.x));
    CHECK(node_refused("base", ggml_view_2d(memory, l.base, 12, 12, 0, 0), l.x));

    // Adapters: what is wrong with one of them, however many are good.
    const auto adapter_refused = [&](const char* function, const char* argument, ggml_tensor* a,
                                     ggml_tensor* b) {
        ggml::layer_adapters adapters(l.batch, 10, 12);
        adapters.add(l.a[0], l.b[0], 1);
        adapters.add(a, b, 1);
        adapters.add(l.a[2], l.b[2], 1);
        return refused(function, argument, l.base, l.x, adapters);
    };
    const char* const add = "ggml::layer_adapters::add";
    CHECK_FALSE(adapter_refused(add, "a", l.a[1], l.b[1]));
    CHECK(adapter_refused(add, "a", tensor_of(GGML_TYPE_Q8_0, 32, 3), l.b[1]));
    CHECK(adapter_refused(add, "b", l.a[1], tensor_of(GGML_TYPE_Q4_0, 32, 12)));
    CHECK(adapter_refused(add, "a", nullptr, l.b[1]));
    CHECK(adapter_refused(add, "b", l.a[1], nullptr));
    const char* const node = "ggml::lora_inplace";
    // Two matrices of rank 1 are one of rank 2.
    CHECK(adapter_refused(node, "adapters.b", tensor_of(GGML_TYPE_F32, 10, 1, 2), l.b[1]));
    CHECK(adapter_refused(node, "adapters.a", tensor_of(GGML_TYPE_F32, 11, 3), l.b[1]));
    CHECK(adapter_refused(node, "adapters.b", l.a[1], tensor_of(GGML_TYPE_F32, 2, 12)));
    CHECK(adapter_refused(node, "adapters.b", l.a[1], tensor_of(GGML_TYPE_F32, 1, 13)));
    const ggml_memory without_memory(true);
    CHECK(adapter_refused(add, "a", ggml_new_tensor_2d(without_memory, GGML_TYPE_F32, 10, 1),
                          l.b[1]));

    // The batch.
    const ggml::lora_batch good = l.batch;
    l.batch.plan = nullptr;
    CHECK(node_refused("batch.plan", l.base, l.x));
    const std::vector<index_t> numbers{1, 8};
    l.batch = {&l.plan, {numbers.data(), {2}}};
    CHECK(node_refused("adapters.adapter_of_entry", l.base, l.x));
    l.batch = {&l.plan, {numbers.data(), {1}}};
    CHECK(node_refused("adapters.adapter_of_entry", l.base, l.x));
    l.batch = {&l.plan, {}}; // eight adapters for two entries
    CHECK(node_refused("adapters", l.base, l.x));
    l.batch = good;
    CHECK_FALSE(node_refused("x", l.base, l.x));
}

#if defined(__unix__)

namespace {

int told_to = -1;

/// Returns what ggml says when a computation ends the program, in a process of its own.
template <class Function>
std::string last_words_of(Function&& f) {
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    std::fflush(stdout); // else the child tells it again
    const pid_t child = fork();
    if (child == 0) {
        told_to = ends[1];
        ggml_set_abort_callback([](const char* message) {
            const std::string text = message;
            if (write(told_to, text.data(), text.size()) < 0) std::_Exit(2);
            std::_Exit(42);
        });
        f();
        std::_Exit(0);
    }
    close(ends[1]);
    std::string text(4096, ' ');
    const auto size = read(ends[0], &text[0], text.size());
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    text.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 42 ? text : "it did not end by ggml_abort";
}

} // namespace

TEST_CASE("what has become bad by the time of a computation ends it with a message") {
    ggml_layer l({{0, 1, 2}, 4, 10, 12});
    ggml_cgraph* const graph =
        graph_of(l.memory, ggml::lora_inplace(l.memory, l.base, l.x, l.adapters));
    const auto words = [&] {
        return last_words_of([&] { (void)ggml_graph_compute_with_ctx(l.memory, graph, 1); });
    };
    const auto says = [](const std::string& text, const char* what) {
        INFO(text);
        CHECK(text.find(what) != std::string::npos);
    };
    const std::vector<int> fewer(11, 1);
    l.plan.assign_rows(tensor_view<const int, 1>(fewer.data(), {11}));
    l.use_tasks_as_adapters();
    says(words(), "lora_forward: x: expected extents [11, any], got [12, 10]");
    CHECK_FALSE(ggml::why_not(l.base, l.x, l.adapters).empty()); // the host could have asked

    const std::vector<int> unknown(12, 8);
    l.plan.assign_rows(tensor_view<const int, 1>(unknown.data(), {12}));
    l.use_tasks_as_adapters();
    says(words(), "adapters.adapter_of_entry: expected numbers from 0 to 7, got 8 at position 0");

    l.plan.assign_single_task(12, 2);
    l.use_tasks_as_adapters();
    l.adapters.clear();
    l.adapters.add(l.a[0], l.b[0], 1);
    l.adapters.add(ggml_new_tensor_2d(l.memory, GGML_TYPE_Q8_0, 32, 3), l.b[1], 1);
    says(words(),
         "ggml::layer_adapters::add: a: expected the type f32, f64, f16 or bf16, got q8_0");
    l.batch.plan = nullptr;
    l.adapters.clear();
    says(words(), "ggml::lora_inplace: batch.plan: expected a plan, got a null pointer");
}

#endif
