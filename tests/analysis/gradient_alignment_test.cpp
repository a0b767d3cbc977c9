#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/analysis/gradient_alignment.hpp>
#include <mhr/reference/gram.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_problem.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using bf16 = Eigen::bfloat16;
using half = Eigen::half;
const serial_executor serial;

/// A random symmetric matrix in a guarded buffer: what is accumulated into.
void fill_symmetric(const tensor_view<double, 2>& gram, std::uint64_t seed = 5) {
    random_source(seed).fill(gram);
    for (index_t s = 0; s < gram.extent(0); ++s)
        for (index_t t = 0; t < s; ++t)
            gram(s, t) = gram(t, s);
}

/// Weights and gradients of blocks, of random values; a quarter of the weights is 0.
template <class W_, class D_>
struct storage {
    using W = W_;
    using D = D_;
};
struct sizes {
    index_t tasks, heads, modules, p, q;
};
template <class T>
struct problem {
    sizes s;
    guarded_buffer<typename T::W, 3> weights;
    guarded_buffer<typename T::D, 4> d_mixed;
    guarded_buffer<double, 2> gram;

    explicit problem(const sizes& s_, layout of_weights = layout::row_major,
                     layout of_gradients = layout::row_major, layout of_gram = layout::row_major)
        : s(s_), weights({s.tasks, s.heads, s.modules}, of_weights),
          d_mixed({s.tasks, s.heads, s.p, s.q}, of_gradients), gram({s.tasks, s.tasks}, of_gram) {
        random_source random(3);
        random.fill(weights.view());
        random.fill(d_mixed.view());
        for_each_position(weights.view().extents(), [&](const position<3>& at) {
            if (random.integer(4) == 0) element(weights.view(), at) = typename T::W(0.F);
        });
        fill_symmetric(gram.view());
    }
    void run(executor_ref executor = serial) {
        routed_gradient_gram(executor, weights.view(), d_mixed.view(), gram.view());
    }
};

/// One rounding for each lane step and chunk of a head's sum, and some to finish.
double roundings(const sizes& s) {
    return 32 + static_cast<double>(s.p * s.q / 128 + s.heads + s.modules);
}

template <class T>
void check_against_oracle(problem<T>& p) {
    using S = long double;
    auto want = copy_as<S>(p.gram.view());
    auto size = magnitudes_as<S>(p.gram.view());
    reference::routed_gradient_gram(copy_as<S>(p.weights.view()).const_view(),
                                    copy_as<S>(p.d_mixed.view()).const_view(), want.view());
    reference::routed_gradient_gram(magnitudes_as<S>(p.weights.view()).const_view(),
                                    magnitudes_as<S>(p.d_mixed.view()).const_view(), size.view());
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

TEST_CASE_TEMPLATE("Gram matrices of shared modules agree with the oracle", T,
                   storage<float, float>,
                   storage<float, bf16> MHR_TEST_ALSO(storage<double, double>, storage<bf16, bf16>,
                                                      storage<half, half>,
                                                      storage<double, float>)) {
    for (const sizes& s : shapes) {
        CAPTURE(s.tasks);
        CAPTURE(s.heads);
        CAPTURE(s.modules);
        CAPTURE(s.p);
        CAPTURE(s.q);
        problem<T> p(s);
        check_against_oracle(p);
    }
}

TEST_CASE_TEMPLATE("Gram matrices of plain gradients agree with the oracle", T,
                   MHR_TEST_STORAGE_TYPES) {
    for (index_t tasks : {1, 2, 8, 9, 17})
        for (index_t n : {1, 2, 127, 128, 129, 1000}) {
            CAPTURE(tasks);
            CAPTURE(n);
            guarded_buffer<T, 2> gradients({tasks, n});
            guarded_buffer<double, 2> gram({tasks, tasks});
            random_source(1).fill(gradients.view());
            fill_symmetric(gram.view());
            auto want = gram_of(copy_as<double>(gradients.view()).view());
            const auto size = products_of_norms(want);
            for_each_position(want.extents(), [&](const position<2>& at) {
                element(want.view(), at) += element(gram.view(), at);
            });
            gradient_gram(serial, gradients.view(), gram.view());
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
    using T = storage<float, float>;
    for (const sizes& s : {sizes{11, 2, 3, 9, 17}, sizes{3, 2, 2, 50, 3}}) {
        problem<T> want(s);
        want.run();
        for (layout of_weights : all_layouts)
            for (layout of_gradients : all_layouts)
                for (layout of_gram : all_layouts) {
                    CAPTURE(name_of(of_weights));
                    CAPTURE(name_of(of_gradients));
                    CAPTURE(name_of(of_gram));
                    problem<T> p(s, of_weights, of_gradients, of_gram);
                    p.run();
                    CHECK(compare_bitwise(p.gram.view(), want.gram.view()));
                    CHECK(p.gram.intact());
                }
    }
}

TEST_CASE("gradients of stride 0 are broadcast") {
    const double value = 3;
    const tensor_view<const double, 2> gradients(&value, {9, 200}, {0, 0});
    tensor<double, 2> gram({9, 9});
    gradient_gram(serial, gradients, gram.view());
    for (double product : gram.values())
        CHECK(product == 1800);
}

TEST_CASE("Gram matrices have the same bits on every executor, and accept shares") {
    using T = storage<float, bf16>;
    const sizes s{37, 2, 3, 10, 30};
    problem<T> want(s);
    want.run();
    const index_t in = 12, rank = 5, out = 14;
    guarded_buffer<float, 3> a({s.tasks, in, rank}), b({s.tasks, rank, out});
    random_source(1).fill(a.view());
    random_source(2).fill(b.view());
    const lora_batch<float> adapters{a.view(), b.view()};
    tensor<double, 2> lora({s.tasks, s.tasks}), routed({s.tasks, s.tasks});
    lora_gradient_gram(serial, adapters, lora.view());
    routed_lora_gradient_gram(serial, want.weights.view(), adapters, routed.view());
    const auto check = [&](auto&& run) {
        problem<T> p(s);
        run([&](executor_ref executor) { p.run(executor); });
        CHECK(compare_bitwise(p.gram.view(), want.gram.view()));
        tensor<double, 2> l({s.tasks, s.tasks}), r({s.tasks, s.tasks});
        run([&](executor_ref executor) { lora_gradient_gram(executor, adapters, l.view()); });
        run([&](executor_ref executor) {
            routed_lora_gradient_gram(executor, p.weights.view(), adapters, r.view());
        });
        CHECK(compare_bitwise(l.view(), lora.view()));
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
    // Of whole numbers every sum is exact: the same bits.
    transform(gradients.view(), gradients.view(),
              [](double value) { return std::round(100 * value); });
    tensor<double, 2> exact({tasks, tasks});
    gradient_gram(serial, gradients.view(), exact.view());
    for (index_t longest : {1, 10, 100, 700})
        CHECK(compare_bitwise(in_pieces(gradients.view(), longest).view(), exact.view()));
}

TEST_CASE("the Gram matrix of adapters is that of all their numbers") {
    const index_t tasks = 9, in = 13, rank = 3, out = 6;
    for (layout order : all_layouts) {
        guarded_buffer<double, 3> a({tasks, in, rank}, order), b({tasks, rank, out}, order);
        random_source(1).fill(a.view());
        random_source(2).fill(b.view());
        tensor<double, 2> all({tasks, (in + out) * rank});
        for (index_t t = 0; t < tasks; ++t) {
            index_t i = 0;
            const auto append = [&](const auto& matrix) {
                for_each_position(matrix.extents(), [&](const position<2>& at) {
                    all(t, i++) = element(matrix, at);
                });
            };
            append(a.view().slice(0, t));
            append(b.view().slice(0, t));
        }
        const auto want = gram_of(all.view());
        guarded_buffer<double, 2> gram({tasks, tasks}), parts({tasks, tasks});
        gram.fill(0);
        parts.fill(0);
        lora_gradient_gram(serial, lora_batch<double>{a.view(), b.view()}, gram.view());
        CHECK(
            compare(gram.view(), want.view(), products_of_norms(want).view(), within<double>(16)));
        // A frozen matrix has no gradient.
        lora_gradient_gram(serial, lora_batch<double>{a.view(), {}}, parts.view());
        CHECK(parts(0, 1) != gram(0, 1));
        lora_gradient_gram(serial, lora_batch<double>{{}, b.view()}, parts.view());
        CHECK(compare_bitwise(parts.view(), gram.view()));
    }
}

TEST_CASE_TEMPLATE("the tasks of a batch: as from one backward for each task", T,
                   routed_storage<double, double, double, double>,
                   routed_storage<float, float, float, float>) {
    using M = typename T::M;
    using A = typename T::A;
    for (const routed_sizes& s :
         {routed_sizes{40, 5, 2, 4, 5, 7, 3}, routed_sizes{60, 11, 3, 2, 4, 3, 2},
          routed_sizes{20, 3, 1, 3, 9, 6, 4}, routed_sizes{9, 1, 2, 2, 3, 3, 1}}) {
        CAPTURE(s.tasks);
        routed_problem<T> p(s);
        p.prepare_backward();
        const index_t tasks = p.plan.entries();
        const index_t n_a = p.a.view().size(), n_b = p.b.view().size();

        // Each task's gradient to the whole inventory, the rows of the others being nobody's.
        tensor<double, 2> gradients({tasks, n_a + n_b});
        const auto entries = entry_of_row(p.plan);
        for (index_t t = 0; t < tasks; ++t) {
            tensor<std::int64_t, 1> task_of_row({s.rows});
            for (index_t row = 0; row < s.rows; ++row)
                task_of_row(row) = entries(row) == t ? 0 : no_task;
            batch_plan plan;
            plan.assign_rows(task_of_row.view());
            const auto weights = p.weights.view().block(0, t, 1);
            owned_workspace memory(routed_lora_state_size<A>(plan, p.shape()));
            owned_workspace scratch(
                routed_lora_backward_workspace_size<typename T::Sum>(plan, p.shape()));
            workspace of_state = memory;
            const auto state = take_routed_lora_state<A>(of_state, plan, p.shape());
            tensor<typename T::Y, 2> y({s.rows, s.out()});
            routed_lora_forward(serial, plan, p.x.view(), p.inventory(), weights, p.scale, y.view(),
                                state);
            tensor<M, 4> d_a(p.a.view().extents()), d_b(p.b.view().extents());
            routed_lora_backward(serial, plan, p.x.view(), p.inventory(), weights, p.scale, state,
                                 p.y.view(), tensor_view<typename T::DX, 2>{},
                                 lora_inventory<M>{d_a.view(), d_b.view()},
                                 tensor_view<typename T::DW, 3>{}, scratch);
            for (index_t i = 0; i < n_a; ++i)
                gradients(t, i) = static_cast<double>(d_a.values()[static_cast<std::size_t>(i)]);
            for (index_t i = 0; i < n_b; ++i)
                gradients(t, n_a + i) =
                    static_cast<double>(d_b.values()[static_cast<std::size_t>(i)]);
        }
        const auto want = gram_of(gradients.view());

        // One backward to the mixed adapters.
        for (layout order : all_layouts) {
            CAPTURE(name_of(order));
            guarded_buffer<A, 3> d_a({tasks, s.in(), s.rank}, order);
            guarded_buffer<A, 3> d_b({tasks, s.rank, s.out()}, order);
            d_a.fill(0);
            d_b.fill(0);
            const lora_batch<A> d_mixed{d_a.view(), d_b.view()};
            owned_workspace scratch(
                lora_backward_workspace_size<typename T::Sum>(p.plan, s.in(), s.out(), s.rank));
            lora_backward(serial, p.plan, p.x.view(), p.state().mixed, p.scale, p.state().hidden,
                          p.y.view(), tensor_view<typename T::DX, 2>{}, d_mixed, scratch);
            guarded_buffer<double, 2> gram({tasks, tasks}, order);
            gram.fill(0);
            routed_lora_gradient_gram(serial, p.weights.view(), d_mixed, gram.view());
            CHECK(compare(gram.view(), want.view(), products_of_norms(want).view(), within<A>(16)));
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
    guarded_buffer<float, 3> weights({tasks, heads, 3}), a({tasks, 6, 2}), b({tasks, 2, 8});
    random_source random(1);
    random.fill(weights.view());
    random.fill(a.view());
    random.fill(b.view());
    tensor<double, 2> both({tasks, tasks}), parts({tasks, tasks}), none({tasks, tasks});
    const auto run = [&](const tensor_view<float, 3>& d_a, const tensor_view<float, 3>& d_b,
                         tensor<double, 2>& gram) {
        routed_lora_gradient_gram(serial, weights.view(), lora_batch<float>{d_a, d_b}, gram.view());
    };
    run(a.view(), b.view(), both);
    run(a.view(), {}, parts);
    CHECK(parts(0, 1) != both(0, 1));
    run({}, b.view(), parts);
    CHECK(compare_bitwise(parts.view(), both.view()));
    run({}, {}, none);
    for (double value : none.values())
        CHECK(value == 0);
}

TEST_CASE("heads without a common module add nothing, not even what is not finite") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    tensor<float, 3> weights({2, 2, 2});
    tensor<float, 4> d_mixed({2, 2, 1, 2});
    weights.values() = {1, 0, 1, 1, 0, 1, 1, 1}; // head 0: disjoint
    d_mixed.values() = {nan, 1, 2, 3, 1, 1, 4, 5};
    tensor<double, 2> gram({2, 2});
    routed_gradient_gram(serial, weights.view(), d_mixed.view(), gram.view());
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
        problem<storage<float, float>> p(s);
        const auto before = p.gram.take_snapshot();
        p.run();
        CHECK(p.gram.unchanged_since(before));
    }
    gradient_gram(serial, tensor_view<float, 2>(nullptr, {0, 7}), tensor_view<double, 2>{});
    lora_gradient_gram(serial, lora_batch<float>{}, tensor_view<double, 2>{});
}

TEST_CASE("Gram matrices are made without allocation") {
    problem<storage<float, float>> p({20, 2, 3, 8, 9});
    tensor<float, 3> a({20, 6, 2}), b({20, 2, 8});
    const lora_batch<float> adapters{a.view(), b.view()};
    CHECK(allocations_of([&] {
              p.run();
              gradient_gram(serial, a.view().slice(2, 0), p.gram.view());
              lora_gradient_gram(serial, adapters, p.gram.view());
              routed_lora_gradient_gram(serial, p.weights.view(), adapters, p.gram.view());
              (void)gradient_alignment(p.gram.view());
          }) == 0);
}

TEST_CASE("bad input of the Gram matrices") {
    const index_t tasks = 3, heads = 2, modules = 4;
    guarded_buffer<double, 2> gram({tasks, tasks});
    guarded_buffer<float, 2> gradients({tasks, 10});
    guarded_buffer<float, 3> weights({tasks, heads, modules}), a({tasks, 6, 2}), b({tasks, 2, 8});
    guarded_buffer<float, 4> d_mixed({tasks, heads, 3, 5});
    gram.fill(1);
    const auto g = gram.view();
    const auto w = weights.view();

    for (const auto& bad : bad_as_input(gradients.view(), {1})) {
        CAPTURE(bad.what);
        // One task more or less is found out at the gram.
        const bool free = bad.view.extent(0) >= 0 && bad.view.extent(0) != tasks;
        CHECK(refuses(
            "gradient_gram", free ? "gram" : "gradients",
            [&] { gradient_gram(serial, bad.view, g); }, gram));
    }
    for (const auto& bad : bad_as_input(w, {0, 1, 2})) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "routed_gradient_gram", "weights",
            [&] { routed_gradient_gram(serial, bad.view, d_mixed.view(), g); }, gram));
        CHECK(refuses(
            "routed_lora_gradient_gram", "weights",
            [&] {
                routed_lora_gradient_gram(serial, bad.view, lora_batch<float>{a.view(), b.view()},
                                          g);
            },
            gram));
    }
    for (const auto& bad : bad_as_input(d_mixed.view(), {2, 3})) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "routed_gradient_gram", "d_mixed",
            [&] { routed_gradient_gram(serial, w, bad.view, g); }, gram));
    }
    const auto lora = [&](const tensor_view<float, 3>& d_a, const tensor_view<float, 3>& d_b,
                          const tensor_view<double, 2>& to) {
        lora_gradient_gram(serial, lora_batch<float>{d_a, d_b}, to);
    };
    const auto routed = [&](const tensor_view<float, 3>& d_a, const tensor_view<float, 3>& d_b,
                            const tensor_view<double, 2>& to) {
        routed_lora_gradient_gram(serial, w, lora_batch<float>{d_a, d_b}, to);
    };
    for (const auto& bad : bad_as_input(a.view(), {1, 2})) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "lora_gradient_gram", "d_adapters.a", [&] { lora(bad.view, b.view(), g); }, gram));
        CHECK(refuses(
            "routed_lora_gradient_gram", "d_mixed.a", [&] { routed(bad.view, b.view(), g); },
            gram));
    }
    for (const auto& bad : bad_as_input(b.view(), {2})) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "lora_gradient_gram", "d_adapters.b", [&] { lora(a.view(), bad.view, g); }, gram));
        CHECK(refuses(
            "routed_lora_gradient_gram", "d_mixed.b", [&] { routed(a.view(), bad.view, g); },
            gram));
    }
    // Features that two heads do not divide, and no head at all.
    CHECK(refuses(
        "routed_lora_gradient_gram", "d_mixed.a",
        [&] { routed(a.view().block(1, 0, 5), b.view(), g); }, gram));
    CHECK(refuses(
        "routed_lora_gradient_gram", "d_mixed.b",
        [&] { routed(a.view(), b.view().block(2, 0, 7), g); }, gram));
    CHECK(refuses(
        "routed_lora_gradient_gram", "weights",
        [&] {
            routed_lora_gradient_gram(serial, w.block(1, 0, 0),
                                      lora_batch<float>{a.view(), b.view()}, g);
        },
        gram));

    for (const auto& bad : bad_as_output(g)) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "gradient_gram", "gram", [&] { gradient_gram(serial, gradients.view(), bad.view); },
            gram));
        CHECK(refuses(
            "lora_gradient_gram", "gram", [&] { lora(a.view(), b.view(), bad.view); }, gram));
        CHECK(refuses(
            "routed_gradient_gram", "gram",
            [&] { routed_gradient_gram(serial, w, d_mixed.view(), bad.view); }, gram));
        CHECK(refuses(
            "routed_lora_gradient_gram", "gram", [&] { routed(a.view(), b.view(), bad.view); },
            gram));
    }
    for (const auto& bad : bad_as_input(g)) {
        CAPTURE(bad.what);
        CHECK(refuses("gradient_alignment", "gram", [&] { (void)gradient_alignment(bad.view); }));
    }
    gram(1, 1) = -1;
    CHECK(refuses("gradient_alignment", "gram", [&] { (void)gradient_alignment(g); }));
}

TEST_CASE("gradients have no slots") {
    const std::array<index_t, 2> slots{1, 0};
    tensor<float, 3> a({2, 4, 1}), b({2, 1, 2}), weights({2, 1, 3});
    tensor<double, 2> gram({2, 2});
    const lora_batch<float> bad{a.view(), b.view(), {slots.data(), {2}}};
    CHECK(refuses("lora_gradient_gram", "d_adapters.slot_of_entry",
                  [&] { lora_gradient_gram(serial, bad, gram.view()); }));
    CHECK(refuses("routed_lora_gradient_gram", "d_mixed.slot_of_entry",
                  [&] { routed_lora_gradient_gram(serial, weights.view(), bad, gram.view()); }));
}
