#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/lora.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/reference/gram.hpp>
#include <mhr/training/gradient_alignment.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/bad_tensors.hpp"
#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/layer_problem.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const serial_executor serial;

/// A random symmetric matrix: what is accumulated into.
void fill_symmetric(const tensor_view<double, 2>& gram, std::uint64_t seed = 5) {
    random_source(seed).fill(gram);
    for (index_t s = 0; s < gram.extent(0); ++s)
        for (index_t t = 0; t < s; ++t)
            gram(s, t) = gram(t, s);
}

struct sizes {
    index_t tasks, heads, modules, p, q;
};

/// Weights and gradients of blocks, of random values; a quarter of the weights is 0.
struct problem {
    sizes s;
    guarded_tensor<3> weights;
    guarded_tensor<4> d_mixed;
    guarded_buffer<double, 2> gram;

    explicit problem(const sizes& s_, element_type of_weights = element_type::f32,
                     element_type of_gradients = element_type::f32,
                     layout order_of_weights = layout::row_major,
                     layout order_of_gradients = layout::row_major,
                     layout order_of_gram = layout::row_major)
        : s(s_), weights(of_weights, {s.tasks, s.heads, s.modules}, order_of_weights),
          d_mixed(of_gradients, {s.tasks, s.heads, s.p, s.q}, order_of_gradients),
          gram({s.tasks, s.tasks}, order_of_gram) {
        random_source random(3);
        weights.fill(random);
        d_mixed.fill(random);
        transform_elements(weights.ref(),
                           [&](double value) { return random.integer(4) == 0 ? 0 : value; });
        fill_symmetric(gram.view());
    }
    void run(executor_ref executor = serial) {
        routed_gradient_gram(executor, weights.ref(), d_mixed.ref(), gram.view());
    }
};

/// One rounding for each step of the partial sums and each chunk of a head's sum, and some to
/// finish.
double roundings(const sizes& s) {
    return 32 + static_cast<double>(s.p * s.q / 128 + s.heads + s.modules);
}

void check_against_oracle(problem& p) {
    using S = long double;
    auto want = copy_as<S>(p.gram.view());
    auto size = magnitudes_as<S>(p.gram.view());
    reference::routed_gradient_gram(values_as<S>(p.weights.const_ref()).const_view(),
                                    values_as<S>(p.d_mixed.const_ref()).const_view(), want.view());
    reference::routed_gradient_gram(magnitudes_as<S>(p.weights.const_ref()).const_view(),
                                    magnitudes_as<S>(p.d_mixed.const_ref()).const_view(),
                                    size.view());
    p.run();
    CHECK(compare(p.gram.view(), want.view(), size.view(), within<double>(roundings(p.s) / 2)));
    CHECK(compare_bitwise(p.gram.view(), p.gram.view().transpose(0, 1)));
    CHECK(p.gram.intact());
}

// Round the tiles of 8 vectors and the chunks of 128 elements.
constexpr sizes shapes[] = {
    {1, 1, 1, 1, 1},  {2, 3, 2, 4, 5},   {7, 2, 3, 1, 127}, {8, 1, 4, 16, 8},  {9, 2, 2, 129, 1},
    {17, 3, 2, 5, 3}, {16, 1, 1, 2, 64}, {3, 5, 1, 100, 3}, {23, 1, 3, 3, 86}, {5, 2, 0, 2, 3},
};

/// gradient_gram as the oracle sees it: one head, of one module of weight 1.
tensor<long double, 2> gram_of(const tensor_view<const double, 2>& gradients) {
    const index_t tasks = gradients.extent(0);
    tensor<long double, 2> gram({tasks, tasks});
    for (index_t s = 0; s < tasks; ++s)
        for (index_t t = 0; t < tasks; ++t)
            for (index_t i = 0; i < gradients.extent(1); ++i)
                gram(s, t) += static_cast<long double>(gradients(s, i)) * gradients(t, i);
    return gram;
}

/// |g_s| |g_t|: what the errors of inner products are measured by.
tensor<long double, 2> products_of_norms(const tensor<long double, 2>& gram) {
    auto result = gram;
    for_each_position(gram.extents(), [&](const position<2>& at) {
        element(result.view(), at) = std::sqrt(gram(at[0], at[0]) * gram(at[1], at[1]));
    });
    return result;
}

double alignment_of(const tensor_view<const double, 2>& gradients) {
    tensor<double, 2> gram({gradients.extent(0), gradients.extent(0)});
    gradient_gram(serial, gradients, gram.view());
    return gradient_alignment(gram.view()).mean;
}

tensor<double, 2> rows_of(index_t rows, const std::vector<double>& values) {
    tensor<double, 2> result({rows, static_cast<index_t>(values.size()) / rows});
    result.values() = values;
    return result;
}

} // namespace

TEST_CASE("Gram matrices of shared modules agree with the oracle") {
    for (element_type of_weights : all_element_types)
        for (element_type of_gradients : all_element_types)
            for (const sizes& s : shapes) {
                CAPTURE(std::string(name_of(of_weights)));
                CAPTURE(std::string(name_of(of_gradients)));
                CAPTURE(s.tasks);
                CAPTURE(s.heads);
                CAPTURE(s.modules);
                CAPTURE(s.p);
                CAPTURE(s.q);
                problem p(s, of_weights, of_gradients);
                check_against_oracle(p);
            }
}

TEST_CASE("Gram matrices of plain gradients agree with the oracle") {
    for (element_type type : all_element_types)
        for (index_t tasks : {1, 2, 8, 9, 17})
            for (index_t n : {1, 2, 127, 128, 129, 1000}) {
                CAPTURE(std::string(name_of(type)));
                CAPTURE(tasks);
                CAPTURE(n);
                guarded_tensor<2> gradients(type, {tasks, n});
                guarded_buffer<double, 2> gram({tasks, tasks});
                gradients.fill(random_source(1));
                fill_symmetric(gram.view());
                const auto values = values_as<double>(gradients.const_ref());
                auto want = gram_of(values.view());
                const auto size = products_of_norms(want);
                for_each_position(want.extents(), [&](const position<2>& at) {
                    element(want.view(), at) += element(gram.view(), at);
                });
                gradient_gram(serial, gradients.ref(), gram.view());
                CHECK(compare(gram.view(), want.view(), size.view(), within<double>(32)));
                CHECK(compare_bitwise(gram.view(), gram.view().transpose(0, 1)));
                CHECK(gram.intact());
            }
}

TEST_CASE("sums do not lose what f32 would") {
    // 2^24 + 1 is no f32: a sum in f32 would stop there.
    const index_t n = 3000;
    tensor<float, 2> gradients({2, n});
    std::fill(gradients.values().begin(), gradients.values().end(), 1.F);
    gradients(0, 0) = 4096;
    gradients(1, 0) = 4096;
    tensor<double, 2> gram({2, 2});
    gradient_gram(serial, gradients.view(), gram.view());
    for (double value : gram.values())
        CHECK(value == 4096.0 * 4096 + n - 1);
}

TEST_CASE("every layout gives the same bits") {
    for (element_type type : {element_type::f32, element_type::bf16})
        for (const sizes& s : {sizes{11, 2, 3, 9, 17}, sizes{3, 2, 2, 50, 3}}) {
            problem want(s, type, type);
            want.run();
            for (layout of_weights : all_layouts)
                for (layout of_gradients : all_layouts)
                    for (layout of_gram : all_layouts) {
                        CAPTURE(name_of(of_weights));
                        CAPTURE(name_of(of_gradients));
                        CAPTURE(name_of(of_gram));
                        problem p(s, type, type, of_weights, of_gradients, of_gram);
                        p.run();
                        CHECK(compare_bitwise(p.gram.view(), want.gram.view()));
                        CHECK(p.gram.intact());
                    }
        }
}

TEST_CASE("gradients of stride 0 are broadcast") {
    const double value = 3;
    tensor<double, 2> gram({9, 9});
    gradient_gram(serial, {&value, {9, 200}, {0, 0}}, gram.view());
    for (double product : gram.values())
        CHECK(product == 1800);
}

TEST_CASE("Gram matrices have the same bits on every executor, and accept shares") {
    const sizes s{37, 2, 3, 10, 30};
    problem want(s, element_type::f32, element_type::bf16);
    want.run();
    const index_t in = 12, rank = 5, out = 14;
    guarded_tensor<3> a(element_type::f32, {s.tasks, in, rank});
    guarded_tensor<3> b(element_type::f32, {s.tasks, rank, out});
    a.fill(random_source(1));
    b.fill(random_source(2));
    const const_stacked_lora_matrices adapters{a.const_ref(), b.const_ref()};
    tensor<double, 2> plain({s.tasks, s.tasks}), routed({s.tasks, s.tasks});
    lora_gradient_gram(serial, adapters, plain.view());
    routed_lora_gradient_gram(serial, want.weights.const_ref(), adapters, routed.view());
    const auto check = [&](auto&& run) {
        problem p(s, element_type::f32, element_type::bf16);
        run([&](executor_ref executor) { p.run(executor); });
        CHECK(compare_bitwise(p.gram.view(), want.gram.view()));
        tensor<double, 2> l({s.tasks, s.tasks}), r({s.tasks, s.tasks});
        run([&](executor_ref executor) { lora_gradient_gram(executor, adapters, l.view()); });
        run([&](executor_ref executor) {
            routed_lora_gradient_gram(executor, p.weights.const_ref(), adapters, r.view());
        });
        CHECK(compare_bitwise(l.view(), plain.view()));
        CHECK(compare_bitwise(r.view(), routed.view()));
    };
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        check([&](auto&& call) { call(executor); });
    });
    for (index_t nth : {1, 2, 5, 100})
        check([&](auto&& call) { for_each_share(nth, call); });
}

TEST_CASE("any cut of the parameters gives the whole") {
    const index_t tasks = 10, n = 700;
    tensor<double, 2> gradients({tasks, n});
    random_source random(8);
    random.fill(gradients.view());
    const auto in_pieces = [&](const auto& view, index_t longest) {
        tensor<double, 2> gram({tasks, tasks});
        for (index_t first = 0; first < n;) {
            const index_t count = std::min(1 + random.integer(longest), n - first);
            gradient_gram(serial, view.block(1, first, count), gram.view());
            first += count;
        }
        return gram;
    };
    tensor<double, 2> whole({tasks, tasks});
    gradient_gram(serial, gradients.view(), whole.view());
    const auto want = gram_of(gradients.view());
    for (index_t longest : {1, 10, 100, 700})
        CHECK(compare(in_pieces(gradients.view(), longest).view(), want.view(),
                      products_of_norms(want).view(), within<double>(64)));
    // Every sum of whole numbers is exact, so the bits are the same.
    transform(gradients.view(), gradients.view(),
              [](double value) { return std::round(100 * value); });
    tensor<double, 2> exact({tasks, tasks});
    gradient_gram(serial, gradients.view(), exact.view());
    for (index_t longest : {1, 10, 100, 700})
        CHECK(compare_bitwise(in_pieces(gradients.view(), longest).view(), exact.view()));
}

TEST_CASE("the Gram matrix of adapters is that of all their numbers") {
    const index_t tasks = 9, in = 13, rank = 3, out = 6;
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(std::string(name_of(type)));
            CAPTURE(name_of(order));
            guarded_tensor<3> a(type, {tasks, in, rank}, order), b(type, {tasks, rank, out}, order);
            a.fill(random_source(1));
            b.fill(random_source(2));
            tensor<double, 2> all({tasks, (in + out) * rank});
            for (index_t t = 0; t < tasks; ++t) {
                index_t i = 0;
                const auto append = [&](const const_tensor_ref<2>& matrix) {
                    for_each_position(matrix.extents(), [&](const position<2>& at) {
                        all(t, i++) = element(matrix, at);
                    });
                };
                append(a.const_ref().slice(0, t));
                append(b.const_ref().slice(0, t));
            }
            const auto want = gram_of(all.view());
            guarded_buffer<double, 2> gram({tasks, tasks}), parts({tasks, tasks});
            gram.fill(0);
            parts.fill(0);
            lora_gradient_gram(serial, {a.ref(), b.ref()}, gram.view());
            CHECK(compare(gram.view(), want.view(), products_of_norms(want).view(),
                          within<double>(16)));
            // A frozen matrix has no gradient.
            lora_gradient_gram(serial, {a.ref(), {}}, parts.view());
            CHECK(parts(0, 1) != gram(0, 1));
            lora_gradient_gram(serial, {{}, b.ref()}, parts.view());
            CHECK(compare_bitwise(parts.view(), gram.view()));
        }
}

TEST_CASE("the tasks of a batch: as from one backward for each task") {
    for (element_type type : sum_types)
        for (const layer_sizes& s :
             {layer_sizes{40, 5, 2, 4, 5, 7, 3}, layer_sizes{60, 11, 3, 2, 4, 3, 2},
              layer_sizes{20, 3, 1, 3, 9, 6, 4}, layer_sizes{9, 1, 2, 2, 3, 3, 1}}) {
            CAPTURE(std::string(name_of(type)));
            CAPTURE(s.tasks);
            layer_problem p(s, all_of(type));
            const index_t tasks = p.plan.entries();
            const index_t n_a = p.a.const_ref().size(), n_b = p.b.const_ref().size();

            // Each task's gradient to the whole inventory, the rows of the others being nobody's.
            tensor<double, 2> gradients({tasks, n_a + n_b});
            for (index_t t = 0; t < tasks; ++t) {
                std::vector<std::int64_t> task_of_row(static_cast<std::size_t>(s.rows), no_task);
                for (index_t i = 0; i < p.plan.rows_of(t).extent(0); ++i)
                    task_of_row[static_cast<std::size_t>(p.plan.rows_of(t)(i))] = 0;
                layer_problem alone(s, plan_of(task_of_row), all_of(type));
                for_each_position(alone.weights.extents(), [&](const position<3>& at) {
                    set_element(alone.weights.ref(), at,
                                element(p.weights.const_ref(), {t, at[1], at[2]}));
                });
                alone.d_a.fill(0);
                alone.d_b.fill(0);
                alone.run();
                index_t i = 0;
                const auto append = [&](const const_tensor_ref<4>& gradient) {
                    for_each_position(gradient.extents(), [&](const position<4>& at) {
                        gradients(t, i++) = element(gradient, at);
                    });
                };
                append(alone.d_a.const_ref());
                append(alone.d_b.const_ref());
            }
            const auto want = gram_of(gradients.view());

            // One backward to the mixed adapters.
            const batch rows{p.plan};
            poisoned_memory of_state(routed_lora_state_size(rows, p.layer(), type));
            workspace memory = of_state;
            const auto state = take_routed_lora_state(memory, rows, p.layer(), type);
            routed_lora_forward(rows, p.layer(), p.x.ref(), p.y.ref(), state);
            for (layout order : all_layouts) {
                CAPTURE(name_of(order));
                guarded_tensor<3> d_a(type, {tasks, s.in(), s.rank}, order);
                guarded_tensor<3> d_b(type, {tasks, s.rank, s.out()}, order);
                d_a.fill(0);
                d_b.fill(0);
                const stacked_lora_matrices d_mixed{d_a.ref(), d_b.ref()};
                const lora_list mixed{state.mixed.a, state.mixed.b, p.scale};
                poisoned_memory scratch(lora_backward_workspace_size(rows, mixed, type));
                lora_backward(rows, mixed, p.x.ref(), p.d_y.ref(), {state.hidden}, {{}, d_mixed},
                              scratch);
                guarded_buffer<double, 2> gram({tasks, tasks}, order);
                gram.fill(0);
                routed_lora_gradient_gram(serial, p.weights.ref(), d_mixed, gram.view());
                CHECK(compare(gram.view(), want.view(), products_of_norms(want).view(),
                              within(type, 16)));
                CHECK(gram.intact());
                tensor<double, 2> cosines({tasks, tasks});
                gram_cosines(gram.view(), cosines.view());
                for (index_t t = 0; t < tasks; ++t)
                    CHECK(cosines(t, t) == 1); // so every gradient was something
            }
        }
}

TEST_CASE("either matrix of a routed layer may be absent") {
    const index_t tasks = 4, heads = 2;
    guarded_tensor<3> weights(element_type::f32, {tasks, heads, 3});
    guarded_tensor<3> a(element_type::f32, {tasks, 6, 2}), b(element_type::f32, {tasks, 2, 8});
    random_source random(1);
    weights.fill(random);
    a.fill(random);
    b.fill(random);
    tensor<double, 2> both({tasks, tasks}), parts({tasks, tasks}), none({tasks, tasks});
    const auto run = [&](const const_stacked_lora_matrices& d_mixed, tensor<double, 2>& gram) {
        routed_lora_gradient_gram(serial, weights.ref(), d_mixed, gram.view());
    };
    run({a.ref(), b.ref()}, both);
    run({a.ref(), {}}, parts);
    CHECK(parts(0, 1) != both(0, 1));
    run({{}, b.ref()}, parts);
    CHECK(compare_bitwise(parts.view(), both.view()));
    run({}, none);
    for (double value : none.values())
        CHECK(value == 0);
}

TEST_CASE("heads without a common module add nothing, not even what is not finite") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> weights{1, 0, 1, 1, 0, 1, 1, 1}; // head 0: disjoint
    const std::vector<float> d_mixed{nan, 1, 2, 3, 1, 1, 4, 5};
    tensor<double, 2> gram({2, 2});
    routed_gradient_gram(serial, {weights.data(), {2, 2, 2}}, {d_mixed.data(), {2, 2, 1, 2}},
                         gram.view());
    CHECK(gram(0, 1) == 2 * (8 + 15));
    CHECK(gram(1, 0) == 46);
    CHECK(gram(1, 1) == 2 + 2 * 41);
    CHECK(std::isnan(gram(0, 0)));
}

TEST_CASE("alignment of known gradients") {
    CHECK(alignment_of(rows_of(2, {1, 2, 3, 1, 2, 3}).view()) == doctest::Approx(1).epsilon(1e-15));
    CHECK(alignment_of(rows_of(2, {1, 2, -1, -2}).view()) == doctest::Approx(-1).epsilon(1e-15));
    CHECK(alignment_of(rows_of(2, {3, 0, 0, 5}).view()) == 0);
    // Two that agree and one across: 1, 0, 0.
    CHECK(alignment_of(rows_of(3, {3, 0, 2, 0, 0, 1}).view()) == doctest::Approx(1.0 / 3));
    // The upper triangle is what is read.
    const auto gram = rows_of(2, {4, 3, 77, 9});
    const task_alignment result = gradient_alignment(gram.view());
    CHECK(result.mean == 0.5);
    CHECK(result.pairs == 1);
}

TEST_CASE("alignment at a minimum of the sum: -1 / (tasks - 1)") {
    // Gradients of equal length that cancel: the corners of a regular simplex.
    for (index_t tasks : {2, 3, 5, 20}) {
        tensor<double, 2> gradients({tasks, tasks});
        for (index_t t = 0; t < tasks; ++t)
            for (index_t i = 0; i < tasks; ++i)
                gradients(t, i) = (t == i ? 1.0 : 0.0) - 1 / static_cast<double>(tasks);
        CHECK(alignment_of(gradients.view()) ==
              doctest::Approx(-1 / static_cast<double>(tasks - 1)).epsilon(1e-12));
    }
}

TEST_CASE("alignment does not depend on the tasks' order, nor on the lengths") {
    const index_t tasks = 12, n = 40;
    tensor<double, 2> gradients({tasks, n}), other({tasks, n});
    random_source random(2);
    random.fill(gradients.view());
    const auto order = random.permutation(tasks);
    for (index_t t = 0; t < tasks; ++t) {
        const double length = random.uniform(0.1, 10);
        for (index_t i = 0; i < n; ++i)
            other(t, i) = length * gradients(order[static_cast<std::size_t>(t)], i);
    }
    const double want = alignment_of(gradients.view());
    CHECK(std::abs(alignment_of(other.view()) - want) < 1e-14);
    CHECK(std::abs(want) < 0.2); // random directions hardly meet
}

TEST_CASE("pairs with a gradient of 0 are left out") {
    const auto three = rows_of(3, {1, 1, 0, 0, 2, 2});
    tensor<double, 2> gram({3, 3});
    gradient_gram(serial, three.view(), gram.view());
    const task_alignment result = gradient_alignment(gram.view());
    CHECK(result.pairs == 1);
    CHECK(result.mean == doctest::Approx(1).epsilon(1e-15));
    for (index_t tasks : {0, 1, 2, 3}) {
        tensor<double, 2> zeros({tasks, tasks});
        const task_alignment none = gradient_alignment(zeros.view());
        CHECK(none.pairs == 0);
        CHECK(std::isnan(none.mean));
    }
    gram(0, 2) = std::numeric_limits<double>::infinity();
    CHECK_FALSE(std::isfinite(gradient_alignment(gram.view()).mean));
    gram(0, 0) = std::numeric_limits<double>::quiet_NaN();
    CHECK(std::isnan(gradient_alignment(gram.view()).mean));
}

TEST_CASE("an extent of 0 anywhere adds nothing") {
    for (const sizes& s : {sizes{0, 2, 3, 4, 5}, sizes{3, 0, 3, 4, 5}, sizes{3, 2, 0, 4, 5},
                           sizes{3, 2, 3, 0, 5}, sizes{3, 2, 3, 4, 0}}) {
        problem p(s);
        const auto before = p.gram.take_snapshot();
        p.run();
        CHECK(p.gram.unchanged_since(before));
    }
    gradient_gram(serial, {static_cast<float*>(nullptr), {0, 7}}, {});
    lora_gradient_gram(serial, {}, {});
}

TEST_CASE("Gram matrices are made without allocation") {
    problem p({20, 2, 3, 8, 9});
    tensor<float, 3> a({20, 6, 2}), b({20, 2, 8});
    const const_stacked_lora_matrices adapters{a.const_view(), b.const_view()};
    CHECK(allocations_of([&] {
              p.run();
              gradient_gram(serial, a.view().slice(2, 0), p.gram.view());
              lora_gradient_gram(serial, adapters, p.gram.view());
              routed_lora_gradient_gram(serial, p.weights.ref(), adapters, p.gram.view());
              (void)gradient_alignment(p.gram.view());
          }) == 0);
}

TEST_CASE("bad input of the Gram matrices") {
    const index_t tasks = 3, heads = 2, modules = 4;
    guarded_buffer<double, 2> gram({tasks, tasks});
    guarded_tensor<2> gradients(element_type::f32, {tasks, 10});
    guarded_tensor<3> weights(element_type::f32, {tasks, heads, modules});
    guarded_tensor<3> a(element_type::f32, {tasks, 6, 2}), b(element_type::bf16, {tasks, 2, 8});
    guarded_tensor<4> d_mixed(element_type::f32, {tasks, heads, 3, 5});
    gram.fill(1);
    const auto g = gram.view();
    const auto w = weights.const_ref();

    for (const auto& bad : bad_as_input(gradients.const_ref(), {1})) {
        CAPTURE(bad.what);
        // One task more or less is found out at the gram.
        const bool free = bad.ref.extent(0) >= 0 && bad.ref.extent(0) != tasks;
        CHECK(refuses(
            "gradient_gram", free ? "gram" : "gradients",
            [&] { gradient_gram(serial, bad.ref, g); }, gram));
    }
    for (const auto& bad : bad_as_input(w, {0, 1, 2})) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "routed_gradient_gram", "weights",
            [&] { routed_gradient_gram(serial, bad.ref, d_mixed.ref(), g); }, gram));
        CHECK(refuses(
            "routed_lora_gradient_gram", "weights",
            [&] {
                routed_lora_gradient_gram(serial, bad.ref, {a.ref(), b.ref()}, g);
            },
            gram));
    }
    for (const auto& bad : bad_as_input(d_mixed.const_ref(), {2, 3})) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "routed_gradient_gram", "d_mixed", [&] { routed_gradient_gram(serial, w, bad.ref, g); },
            gram));
    }
    const auto plain = [&](const const_tensor_ref<3>& d_a, const const_tensor_ref<3>& d_b,
                           const tensor_view<double, 2>& to) {
        lora_gradient_gram(serial, {d_a, d_b}, to);
    };
    const auto routed = [&](const const_tensor_ref<3>& d_a, const const_tensor_ref<3>& d_b,
                            const tensor_view<double, 2>& to) {
        routed_lora_gradient_gram(serial, w, {d_a, d_b}, to);
    };
    for (const auto& bad : bad_as_input(a.const_ref(), {1, 2})) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "lora_gradient_gram", "gradients.a", [&] { plain(bad.ref, b.ref(), g); }, gram));
        CHECK(refuses(
            "routed_lora_gradient_gram", "d_mixed.a", [&] { routed(bad.ref, b.ref(), g); }, gram));
    }
    for (const auto& bad : bad_as_input(b.const_ref(), {2})) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "lora_gradient_gram", "gradients.b", [&] { plain(a.ref(), bad.ref, g); }, gram));
        CHECK(refuses(
            "routed_lora_gradient_gram", "d_mixed.b", [&] { routed(a.ref(), bad.ref, g); }, gram));
    }
    // Features that two heads do not divide, and no head at all.
    CHECK(refuses(
        "routed_lora_gradient_gram", "d_mixed.a",
        [&] { routed(a.const_ref().block(1, 0, 5), b.ref(), g); }, gram));
    CHECK(refuses(
        "routed_lora_gradient_gram", "d_mixed.b",
        [&] { routed(a.ref(), b.const_ref().block(2, 0, 7), g); }, gram));
    CHECK(refuses(
        "routed_lora_gradient_gram", "weights",
        [&] {
            routed_lora_gradient_gram(serial, w.block(1, 0, 0), {a.ref(), b.ref()}, g);
        },
        gram));

    for (const auto& bad : bad_as_output(g)) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "gradient_gram", "gram", [&] { gradient_gram(serial, gradients.ref(), bad.view); },
            gram));
        CHECK(refuses(
            "lora_gradient_gram", "gram", [&] { plain(a.ref(), b.ref(), bad.view); }, gram));
        CHECK(refuses(
            "routed_gradient_gram", "gram",
            [&] { routed_gradient_gram(serial, w, d_mixed.ref(), bad.view); }, gram));
        CHECK(refuses(
            "routed_lora_gradient_gram", "gram", [&] { routed(a.ref(), b.ref(), bad.view); },
            gram));
    }
    for (const auto& bad : bad_as_input(const_tensor_ref<2>(g))) {
        CAPTURE(bad.what);
        CHECK(refuses("gradient_alignment", "gram", [&] { (void)gradient_alignment(bad.ref); }));
    }
    gram(1, 1) = -1;
    CHECK(refuses("gradient_alignment", "gram", [&] { (void)gradient_alignment(g); }));
}
