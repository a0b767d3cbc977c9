#include <array>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/routed_ia3.hpp>
#include <mhr/reference/ia3.hpp>
#include <mhr/reference/mixing.hpp>

#include "support/allocation_counter.hpp"
#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/gradient_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_ia3_problem.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

template <class... T>
using storage = ia3_storage<T...>;
template <class T>
using all_of = storage<T, T, T, T>;
using plain = all_of<float>;
using bf16 = Eigen::bfloat16;
using half = Eigen::half;
#define ROUTED_STORAGES                                                                            \
    plain, storage<half, bf16, float, half, float, float, float> MHR_TEST_ALSO(                    \
               all_of<double>, all_of<bf16>, all_of<half>, storage<bf16, float, float, bf16>,      \
               storage<float, half, double, float>, storage<float, float, float, double>)

using sizes = ia3_sizes;

// Every size once 1; more tasks than rows; blocks beyond the pieces that kernels sum at a time.
constexpr sizes shapes[] = {{1, 1, 1, 1, 1},  {9, 2, 3, 4, 5}, {40, 1, 2, 3, 8}, {5, 9, 1, 4, 17},
                            {20, 3, 4, 1, 6}, {7, 2, 5, 3, 1}, {6, 2, 2, 2, 65}, {3, 1, 1, 2, 257}};
constexpr sizes usual{21, 3, 2, 4, 5};

template <class T>
using problem = routed_ia3_problem<T>;

/// The oracle, composed of those of mixing and of (IA)3: the results, or their magnitudes.
template <class S>
struct expectation {
    tensor<S, 2> y, d_x;
    tensor<S, 3> d_modules, d_weights;
};

/// [heads, modules, n] as [heads, modules, 1, n], and [entries, features] in blocks.
template <class S>
tensor_view<S, 4> rows_of_blocks(const tensor_view<S, 3>& modules) {
    const auto& e = modules.extents();
    return {modules.data(), {e[0], e[1], 1, e[2]}};
}
template <class S>
tensor_view<S, 4> rows_of_blocks(const tensor_view<S, 2>& scales, index_t heads) {
    const auto& e = scales.extents();
    return {scales.data(), {e[0], heads, 1, e[1] / heads}};
}

template <class S, class T, class Convert>
expectation<S> expect_with(problem<T>& p, Convert&& convert) {
    const auto entries = entry_of_row(p.plan);
    const auto x = convert(p.x);
    const auto modules = convert(p.modules);
    const auto weights = convert(p.weights);
    const auto d_y = convert(p.d_y);
    expectation<S> e{tensor<S, 2>(x.extents()), convert(p.d_x), convert(p.d_modules),
                     convert(p.d_weights)};
    tensor<S, 2> scales({p.plan.entries(), p.s.features()}), d_scales(scales.extents());
    reference::mix_forward(weights.const_view(), rows_of_blocks(modules.const_view()),
                           rows_of_blocks(scales.view(), p.s.heads));
    reference::ia3_forward(entries.const_view(), x.const_view(), scales.const_view(), e.y.view());
    reference::ia3_backward(entries.const_view(), x.const_view(), scales.const_view(),
                            d_y.const_view(), e.d_x.view(), d_scales.view());
    reference::mix_backward(weights.const_view(), rows_of_blocks(modules.const_view()),
                            rows_of_blocks(d_scales.const_view(), p.s.heads),
                            rows_of_blocks(e.d_modules.view()), e.d_weights.view());
    return e;
}
template <class S, class T>
expectation<S> expect(problem<T>& p) {
    return expect_with<S>(p, [](auto& buffer) { return copy_as<S>(buffer.view()); });
}
template <class S, class T>
expectation<S> expect_magnitudes(problem<T>& p) {
    return expect_with<S>(p, [](auto& buffer) { return magnitudes_as<S>(buffer.view()); });
}

/// n products summed one after the other are within n/2 epsilon of their magnitudes; some more for
/// the products with intermediate results.
template <class A>
error_bound sum_of(index_t n) {
    return within<A>(static_cast<double>(n) / 2 + 3);
}

template <class T>
void check_against_oracle(problem<T>& p) {
    using S = typename T::S;
    using A = typename T::A;
    const auto want = expect<S>(p);
    const auto size = expect_magnitudes<S>(p);
    p.forward();
    p.backward();
    CHECK(compare(p.y.view(), want.y.view(), size.y.view(), sum_of<A>(p.s.modules)));
    CHECK(compare(p.d_x.view(), want.d_x.view(), size.d_x.view(), sum_of<A>(p.s.modules)));
    CHECK(compare(p.d_modules.view(), want.d_modules.view(), size.d_modules.view(),
                  sum_of<A>(p.s.rows)));
    if (p.plan.entries() > 0)
        CHECK(compare(p.d_weights.view(), want.d_weights.view(), size.d_weights.view(),
                      sum_of<A>(p.s.rows + p.s.block)));
    CHECK(p.intact());
}

template <class T>
void check_same_bits(problem<T>& got, problem<T>& want) {
    CHECK(compare_bitwise(got.y.view(), want.y.view()));
    CHECK(compare_bitwise(got.state.view(), want.state.view()));
    CHECK(compare_bitwise(got.d_x.view(), want.d_x.view()));
    CHECK(compare_bitwise(got.d_modules.view(), want.d_modules.view()));
    CHECK(compare_bitwise(got.d_weights.view(), want.d_weights.view()));
}

} // namespace

TEST_CASE_TEMPLATE("routed (IA)3 agrees with the oracle", T, ROUTED_STORAGES) {
    for (const sizes& s : shapes) {
        CAPTURE(s.rows);
        CAPTURE(s.heads);
        CAPTURE(s.modules);
        CAPTURE(s.block);
        problem<T> p(s);
        check_against_oracle(p);
    }
}

TEST_CASE("routed (IA)3 works in every layout") {
    for (layout of_rows : all_layouts)
        for (layout of_modules : all_layouts)
            for (layout of_gradients : all_layouts) {
                CAPTURE(name_of(of_rows));
                CAPTURE(name_of(of_modules));
                CAPTURE(name_of(of_gradients));
                problem<plain> p(usual, of_rows, of_modules, of_gradients);
                check_against_oracle(p);
            }
}

TEST_CASE("mttl's order is a view, with the same bits") {
    problem<plain> want(usual), p(usual);
    want.forward();
    want.backward();
    guarded_buffer<float, 3> memory({usual.modules, usual.heads, usual.block});
    guarded_buffer<float, 3> gradient(memory.view().extents());
    const auto modules = memory.view().transpose(0, 1);
    const auto d_modules = gradient.view().transpose(0, 1);
    const auto same = [](float value) { return value; };
    transform(p.modules.view(), modules, same);
    transform(p.d_modules.view(), d_modules, same);
    routed_ia3_forward(serial_executor{}, p.plan, p.x.view(), modules, p.weights.view(), p.y.view(),
                       p.state.view());
    routed_ia3_backward(serial_executor{}, p.plan, p.x.view(), modules, p.weights.view(),
                        p.state.view(), p.d_y.view(), p.d_x.view(), d_modules, p.d_weights.view(),
                        p.scratch());
    transform(d_modules, p.d_modules.view(), same);
    check_same_bits(p, want);
    CHECK(gradient.intact());
}

TEST_CASE("routed (IA)3 gives the same bits on every executor") {
    using T = storage<bf16, float, float, bf16>;
    const sizes s{70, 4, 3, 4, 50};
    problem<T> want(s);
    want.forward();
    want.backward();
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        problem<T> p(s);
        p.forward(executor);
        p.backward(executor);
        check_same_bits(p, want);
    });
}

TEST_CASE("mixing and averaging (IA)3 alone accept shares") {
    problem<plain> want(usual), p(usual);
    const index_t features = usual.features();
    tensor<float, 2> d_scales({want.plan.entries(), features});
    random_source(11).fill(d_scales.view());
    tensor<float, 1> average({features}), shared({features});
    problem<plain> of_average(usual), of_shared(usual);
    const auto run = [&](executor_ref executor, problem<plain>& q, tensor<float, 1>& mean) {
        mix_ia3_forward(executor, q.weights.view(), q.modules.view(), q.state.view());
        mix_ia3_backward(executor, q.weights.view(), q.modules.view(), d_scales.view(),
                         q.d_modules.view(), q.d_weights.view());
        average_ia3_forward(executor, q.modules.view(), mean.view());
    };
    run(serial_executor{}, want, average);
    for_each_share(3, [&](executor_ref executor) { run(executor, p, shared); });
    CHECK(compare_bitwise(p.state.view(), want.state.view()));
    CHECK(compare_bitwise(p.d_modules.view(), want.d_modules.view()));
    CHECK(compare_bitwise(p.d_weights.view(), want.d_weights.view()));
    CHECK(compare_bitwise(shared.view(), average.view()));

    average_ia3_backward(serial_executor{}, average.view(), of_average.d_modules.view());
    for_each_share(4, [&](executor_ref executor) {
        average_ia3_backward(executor, average.view(), of_shared.d_modules.view());
    });
    CHECK(compare_bitwise(of_shared.d_modules.view(), of_average.d_modules.view()));
}

TEST_CASE("routed (IA)3 in place gives the same bits") {
    problem<plain> want(usual), p(usual);
    want.forward();
    routed_ia3_forward(serial_executor{}, p.plan, p.x.view(), p.modules.view(), p.weights.view(),
                       p.x.view(), p.state.view());
    CHECK(compare_bitwise(p.x.view(), want.y.view()));
}

TEST_CASE("each subset of the gradients of routed (IA)3 gives the same bits") {
    problem<plain> all(usual), none(usual);
    all.forward();
    all.backward();
    for (int wanted = 0; wanted < 8; ++wanted) {
        CAPTURE(wanted); // 4: MHR-z; 1: a frozen adapter
        problem<plain> p(usual);
        p.forward();
        const bool x = (wanted & 1) != 0, m = (wanted & 2) != 0, w = (wanted & 4) != 0;
        const tensor_view<float, 3> absent;
        routed_ia3_backward(
            serial_executor{}, p.plan, p.x.view(), p.modules.view(), p.weights.view(),
            p.state.view(), p.d_y.view(), x ? p.d_x.view() : tensor_view<float, 2>{},
            m ? p.d_modules.view() : absent, w ? p.d_weights.view() : absent, p.scratch());
        CHECK(compare_bitwise(p.d_x.view(), (x ? all : none).d_x.view()));
        CHECK(compare_bitwise(p.d_modules.view(), (m ? all : none).d_modules.view()));
        CHECK(compare_bitwise(p.d_weights.view(), (w ? all : none).d_weights.view()));
    }
}

TEST_CASE("one module of weight 1 is plain (IA)3; new modules change nothing") {
    sizes s = usual;
    s.modules = 1;
    problem<plain> p(s);
    p.weights.fill(1);
    p.forward();
    tensor<float, 2> scales({p.plan.entries(), s.features()}), y({s.rows, s.features()});
    for (index_t g = 0; g < p.plan.entries(); ++g)
        for (index_t i = 0; i < s.features(); ++i)
            scales(g, i) = p.modules(i / s.block, 0, i % s.block);
    ia3_forward(serial_executor{}, p.plan, p.x.view(), scales.view(), y.view());
    CHECK(compare_bitwise(p.y.view(), y.view()));

    problem<plain> q(usual);
    initialise_ia3(q.modules.view());
    q.weights.fill(1.F / 4); // exact
    q.forward();
    CHECK(compare_bitwise(q.y.view(), q.x.view()));
}

TEST_CASE("uniform routing of (IA)3 is the average, to the last bit: MHR-mu") {
    sizes s = usual;
    s.modules = 7; // 1/7 is rounded
    batch_plan plan;
    plan.assign_single_task(s.rows);
    problem<plain> routed(s, plan), averaged(s, plan);
    routed.weights.fill(1.F / 7);
    tensor<float, 1> scales({s.features()}), d_scales({s.features()});
    average_ia3_forward(serial_executor{}, averaged.modules.view(), scales.view());
    ia3_forward(serial_executor{}, plan, averaged.x.view(), scales.view().prepend_axis(),
                averaged.y.view());
    ia3_backward(serial_executor{}, plan, averaged.x.view(), scales.view().prepend_axis(),
                 averaged.d_y.view(), averaged.d_x.view(), d_scales.view().prepend_axis());
    average_ia3_backward(serial_executor{}, d_scales.view(), averaged.d_modules.view());
    routed.forward();
    routed.backward();
    CHECK(compare_bitwise(routed.state.view().slice(0, 0), scales.view()));
    CHECK(compare_bitwise(routed.y.view(), averaged.y.view()));
    CHECK(compare_bitwise(routed.d_x.view(), averaged.d_x.view()));
    CHECK(compare_bitwise(routed.d_modules.view(), averaged.d_modules.view()));
}

TEST_CASE("the gradients of routed (IA)3 agree with finite differences") {
    problem<all_of<double>> p({6, 2, 2, 3, 2});
    p.forget_gradients();
    p.forward();
    p.backward();
    const auto loss = [&] {
        p.forward();
        return contract<double>(p.y.view(), p.d_y.view());
    };
    // Of a function that is linear in each argument; 1e-11 is what the differences lose.
    const auto check = [&](auto& gradient, auto& variable) {
        const auto want = central_difference_gradient(loss, variable.view());
        auto ones = want;
        for (double& value : ones.values())
            value = 1;
        return compare(gradient.view(), want.view(), ones.view(), error_bound{1, 1e-11, 1});
    };
    CHECK(check(p.d_x, p.x));
    CHECK(check(p.d_modules, p.modules));
    CHECK(check(p.d_weights, p.weights));
}

TEST_CASE("routed (IA)3 with an extent of 0 anywhere") {
    for (const sizes& s : {sizes{0, 1, 2, 3, 4}, sizes{3, 1, 2, 0, 4}, sizes{3, 1, 2, 3, 0}}) {
        CAPTURE(s.rows);
        CAPTURE(s.modules);
        problem<plain> p(s);
        const auto d_modules = p.d_modules.take_snapshot();
        p.forward();
        p.backward();
        CHECK(p.d_modules.unchanged_since(d_modules));
        CHECK(p.intact());
        // A sum over no module is 0.
        const auto entries = entry_of_row(p.plan);
        for_each_position(p.y.view().extents(), [&](const position<2>& at) {
            CHECK(p.y(at[0], at[1]) == (entries(at[0]) < 0 ? p.x(at[0], at[1]) : 0));
        });
    }
}

TEST_CASE("the state and the workspace of routed (IA)3 suffice, wherever the memory begins") {
    problem<plain> want(usual);
    want.forward();
    want.backward();
    const std::size_t state_size = routed_ia3_state_size<float>(want.plan, usual.features());
    for (std::size_t start : {0U, 1U, 4U, 63U}) {
        problem<plain> p(usual);
        guarded_buffer<std::byte, 1> memory({static_cast<index_t>(start + state_size)});
        guarded_buffer<std::byte, 1> scratch({static_cast<index_t>(start + p.memory.size())});
        workspace state_memory(memory.view().data() + start, state_size);
        const auto state = take_routed_ia3_state<float>(state_memory, p.plan, usual.features());
        CHECK(state.extents() == std::array<index_t, 2>{p.plan.entries(), usual.features()});
        CHECK(state_memory.available() == 0);
        routed_ia3_forward(serial_executor{}, p.plan, p.x.view(), p.modules.view(),
                           p.weights.view(), p.y.view(), state);
        routed_ia3_backward(serial_executor{}, p.plan, p.x.view(), p.modules.view(),
                            p.weights.view(), state, p.d_y.view(), p.d_x.view(), p.d_modules.view(),
                            p.d_weights.view(),
                            workspace(scratch.view().data() + start, p.memory.size()));
        transform(state, p.state.view(), [](float value) { return value; });
        check_same_bits(p, want);
        CHECK(memory.intact());
        CHECK(scratch.intact());
    }
}

TEST_CASE("routed (IA)3 does not allocate") {
    problem<plain> p(usual);
    tensor<float, 1> average({usual.features()});
    CHECK(allocations_of([&] { p.forward(); }) == 0);
    CHECK(allocations_of([&] { p.backward(); }) == 0);
    CHECK(allocations_of([&] {
              average_ia3_forward(serial_executor{}, p.modules.view(), average.view());
              average_ia3_backward(serial_executor{}, average.view(), p.d_modules.view());
          }) == 0);
}

TEST_CASE_TEMPLATE("new modules of (IA)3 are ones, in every layout", T, MHR_TEST_STORAGE_TYPES) {
    for (layout order : all_layouts) {
        guarded_buffer<T, 3> modules({2, 3, 5}, order);
        initialise_ia3(modules.view());
        for_each_position(modules.view().extents(), [&](const position<3>& at) {
            CHECK(load<float>(element(modules.view(), at)) == 1);
        });
        CHECK(modules.intact());
    }
    CHECK_NOTHROW(initialise_ia3(tensor_view<T, 3>{}));
}
