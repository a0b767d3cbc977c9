#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/ia3.hpp>
#include <mhr/reference/ia3.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/gradient_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// What is stored how: x, the scales, y (and d_y), and the gradients of the first two.
template <class X_, class P_, class Y_, class DX_ = X_, class DP_ = P_>
struct storage {
    using X = X_;
    using P = P_;
    using Y = Y_;
    using DX = DX_;
    using DP = DP_;
    using S = oracle_t<X, P, Y, DX, DP>;
};

using bf16 = Eigen::bfloat16;
using half = Eigen::half;
#define IA3_STORAGES                                                                               \
    storage<float, float, float>,                                                                  \
        storage<half, bf16, float, float, float> MHR_TEST_ALSO(                                    \
            storage<double, double, double>, storage<bf16, bf16, bf16>, storage<half, half, half>, \
            storage<bf16, float, bf16>, storage<float, half, bf16, half>,                          \
            storage<double, float, double>)

struct sizes {
    index_t rows, tasks, features;
};

// Round the 16 rows of a block and the 128 features of a part; more tasks than rows, one task.
constexpr sizes shapes[] = {{1, 1, 1},  {5, 2, 7},   {40, 1, 9},  {33, 3, 64}, {7, 20, 17},
                            {50, 2, 3}, {6, 2, 257}, {4, 1, 129}, {3, 2, 128}, {100, 2, 127}};

template <class T>
struct problem {
    batch_plan plan;
    sizes s;
    guarded_buffer<typename T::X, 2> x;
    guarded_buffer<typename T::P, 2> scales;
    guarded_buffer<typename T::Y, 2> y, d_y;
    guarded_buffer<typename T::DX, 2> d_x;
    guarded_buffer<typename T::DP, 2> d_scales;

    explicit problem(const sizes& sizes_, layout order = layout::row_major)
        : problem(sizes_, random_plan(sizes_.rows, sizes_.tasks), order, order, order) {}

    problem(const sizes& sizes_, batch_plan plan_, layout of_rows, layout of_scales,
            layout of_gradients)
        : plan(std::move(plan_)), s(sizes_), x({s.rows, s.features}, of_rows),
          scales({plan.entries(), s.features}, of_scales), y({s.rows, s.features}, of_gradients),
          d_y({s.rows, s.features}, of_scales), d_x({s.rows, s.features}, of_gradients),
          d_scales({plan.entries(), s.features}, of_gradients) {
        random_source random(3);
        random.fill(x.view());
        random.fill(scales.view());
        random.fill(d_y.view());
        random.fill(d_x.view());
        random.fill(d_scales.view());
    }

    void forward(executor_ref executor = serial_executor{}) {
        ia3_forward(executor, plan, x.view(), scales.view(), y.view());
    }
    void backward(executor_ref executor = serial_executor{}) {
        ia3_backward(executor, plan, x.view(), scales.view(), d_y.view(), d_x.view(),
                     d_scales.view());
    }
    [[nodiscard]] bool intact() const { return y.intact() && d_x.intact() && d_scales.intact(); }
};

/// The oracle's results and the magnitudes of the gradients.
template <class S>
struct expectation {
    tensor<S, 2> y, d_x, d_x_size, d_scales, d_scales_size;
};

template <class S, class T>
expectation<S> oracle(problem<T>& p) {
    const auto entries = entry_of_row(p.plan);
    expectation<S> e{tensor<S, 2>(p.x.view().extents()), copy_as<S>(p.d_x.view()),
                     magnitudes_as<S>(p.d_x.view()), copy_as<S>(p.d_scales.view()),
                     magnitudes_as<S>(p.d_scales.view())};
    reference::ia3_forward(entries.const_view(), copy_as<S>(p.x.view()).const_view(),
                           copy_as<S>(p.scales.view()).const_view(), e.y.view());
    const auto run = [&](const auto& x, const auto& scales, const auto& d_y, auto& d_x,
                         auto& d_scales) {
        reference::ia3_backward(entries.const_view(), x.const_view(), scales.const_view(),
                                d_y.const_view(), d_x.view(), d_scales.view());
    };
    run(copy_as<S>(p.x.view()), copy_as<S>(p.scales.view()), copy_as<S>(p.d_y.view()), e.d_x,
        e.d_scales);
    run(magnitudes_as<S>(p.x.view()), magnitudes_as<S>(p.scales.view()),
        magnitudes_as<S>(p.d_y.view()), e.d_x_size, e.d_scales_size);
    return e;
}

/// n products summed one after the other are within n/2 epsilon of their magnitudes; 1 more for
/// what was there.
template <class A>
error_bound sum_of(index_t n) {
    return within<A>(static_cast<double>(n) / 2 + 1);
}

template <class T>
void check_against_oracle(problem<T>& p) {
    using A = accumulator_t<typename T::X, typename T::P>;
    const auto want = oracle<typename T::S>(p);
    p.forward();
    p.backward();
    CHECK(compare(p.y.view(), want.y.view(), within<A>(1)));
    CHECK(compare(p.d_x.view(), want.d_x.view(), want.d_x_size.view(), within<A>(1.5)));
    if (p.plan.entries() > 0)
        CHECK(compare(p.d_scales.view(), want.d_scales.view(), want.d_scales_size.view(),
                      sum_of<A>(p.s.rows)));
    CHECK(p.intact());
}

using plain = storage<float, float, float>;
constexpr sizes usual{21, 3, 13};

} // namespace

TEST_CASE_TEMPLATE("(IA)3 agrees with the oracle", T, IA3_STORAGES) {
    for (const sizes& s : shapes) {
        CAPTURE(s.rows);
        CAPTURE(s.features);
        problem<T> p(s);
        check_against_oracle(p);
    }
}

TEST_CASE_TEMPLATE("(IA)3 works in every layout, to the same bits", T, plain,
                   storage<bf16, bf16, bf16>) {
    const sizes s{21, 2, 135};
    problem<T> want(s);
    want.forward();
    want.backward();
    for (layout of_rows : all_layouts)
        for (layout of_scales : all_layouts)
            for (layout of_gradients : all_layouts) {
                CAPTURE(name_of(of_rows));
                CAPTURE(name_of(of_scales));
                CAPTURE(name_of(of_gradients));
                problem<T> p(s, random_plan(s.rows, s.tasks), of_rows, of_scales, of_gradients);
                check_against_oracle(p);
                CHECK(compare_bitwise(p.y.view(), want.y.view()));
                CHECK(compare_bitwise(p.d_x.view(), want.d_x.view()));
                CHECK(compare_bitwise(p.d_scales.view(), want.d_scales.view()));
            }
}

TEST_CASE_TEMPLATE("(IA)3 in place gives the same bits", T, MHR_TEST_STORAGE_TYPES) {
    for (layout order : all_layouts)
        for (const sizes& s : shapes) {
            CAPTURE(name_of(order));
            CAPTURE(s.features);
            problem<storage<T, T, T>> p(s, order), q(s, order);
            p.forward();
            ia3_forward(serial_executor{}, q.plan, q.x.const_view(), q.scales.view(), q.x.view());
            CHECK(compare_bitwise(q.x.view(), p.y.view()));
            CHECK(q.x.intact());
        }
}

TEST_CASE("in place, rows of no task are not touched: not even their NaN") {
    // Writing a signalling NaN back makes it quiet. (In memory for 16 bits, since x87 does it,
    // too.)
    guarded_buffer<half, 2> x({20, 5}); // full of signalling NaN
    batch_plan plan;
    plan.assign_single_task(20, no_task);
    const snapshot before = x.take_snapshot();
    const tensor_view<const half, 2> scales(nullptr, {0, 5});
    ia3_forward(serial_executor{}, plan, x.view(), scales, x.view());
    CHECK(x.unchanged_since(before));
}

TEST_CASE("rows of no task pass as they are") {
    problem<plain> p(usual);
    const auto entries = entry_of_row(p.plan);
    const auto d_x = copy_as<float>(p.d_x.view());
    p.forward();
    p.backward();
    index_t none = 0;
    for (index_t row = 0; row < usual.rows; ++row) {
        if (entries(row) >= 0) continue;
        ++none;
        CHECK(compare_bitwise(p.y.view().slice(0, row), p.x.view().slice(0, row)));
        for (index_t i = 0; i < usual.features; ++i)
            CHECK(p.d_x(row, i) == d_x(row, i) + p.d_y(row, i));
    }
    REQUIRE(none > 0);

    // Their NaN spoils nobody else.
    problem<plain> spoilt(usual), want(usual);
    for (index_t row = 0; row < usual.rows; ++row)
        for (index_t i = 0; entries(row) < 0 && i < usual.features; ++i)
            spoilt.x(row, i) = std::numeric_limits<float>::quiet_NaN();
    spoilt.backward();
    want.backward();
    CHECK(compare_bitwise(spoilt.d_scales.view(), want.d_scales.view()));

    // A batch of nobody's rows.
    batch_plan nobody;
    nobody.assign_single_task(40, no_task);
    problem<plain> q({40, 1, 3}, nobody, layout::row_major, layout::row_major, layout::row_major);
    q.forward();
    CHECK(compare_bitwise(q.y.view(), q.x.view()));
}

TEST_CASE("scales of 1 change nothing, powers of two are exact") {
    problem<storage<double, double, double>> p(usual);
    for (int power : {-30, 0, 1, 30}) {
        p.scales.fill(std::ldexp(1.0, power));
        p.forward();
        const auto entries = entry_of_row(p.plan);
        for_each_position(p.x.view().extents(), [&](const position<2>& at) {
            const double factor = entries(at[0]) < 0 ? 1 : std::ldexp(1.0, power);
            CHECK(p.y(at[0], at[1]) == factor * p.x(at[0], at[1]));
        });
    }
}

TEST_CASE("(IA)3 gives the same bits on every executor") {
    using T = storage<bf16, float, float>;
    const sizes s{170, 3, 300};
    problem<T> want(s);
    want.forward();
    want.backward();
    const auto check = [&](problem<T>& p) {
        CHECK(compare_bitwise(p.y.view(), want.y.view()));
        CHECK(compare_bitwise(p.d_x.view(), want.d_x.view()));
        CHECK(compare_bitwise(p.d_scales.view(), want.d_scales.view()));
    };
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        problem<T> p(s);
        p.forward(executor);
        p.backward(executor);
        check(p);
    });
    for (index_t nth : {1, 3, 40}) {
        CAPTURE(nth);
        problem<T> p(s);
        for_each_share(nth, [&](executor_ref executor) { p.forward(executor); });
        for_each_share(nth, [&](executor_ref executor) { p.backward(executor); });
        check(p);
    }
}

TEST_CASE("each subset of the gradients of (IA)3 gives the same bits") {
    problem<plain> all(usual), none(usual);
    all.backward();
    for (int wanted = 0; wanted < 4; ++wanted) {
        CAPTURE(wanted);
        problem<plain> p(usual);
        const bool d_x = (wanted & 1) != 0, d_scales = (wanted & 2) != 0;
        const tensor_view<float, 2> absent;
        ia3_backward(serial_executor{}, p.plan, p.x.view(), p.scales.view(), p.d_y.view(),
                     d_x ? p.d_x.view() : absent, d_scales ? p.d_scales.view() : absent);
        CHECK(compare_bitwise(p.d_x.view(), (d_x ? all : none).d_x.view()));
        CHECK(compare_bitwise(p.d_scales.view(), (d_scales ? all : none).d_scales.view()));
    }
}

TEST_CASE("without d_scales x is not read") {
    problem<plain> p(usual), want(usual);
    p.x.fill(std::numeric_limits<float>::quiet_NaN());
    ia3_backward(serial_executor{}, p.plan, p.x.view(), p.scales.view(), p.d_y.view(), p.d_x.view(),
                 tensor_view<float, 2>{});
    want.backward();
    CHECK(compare_bitwise(p.d_x.view(), want.d_x.view()));
}

TEST_CASE("inputs of (IA)3 with strides of 0") {
    problem<plain> dense(usual), broadcast(usual);
    dense.x.fill(0.75F);
    dense.scales.fill(-2.F);
    dense.d_y.fill(0.5F);
    dense.forward();
    dense.backward();
    const float x = 0.75F;
    const float scale = -2;
    const float d_y = 0.5F;
    const auto repeat = [](const float& value, index_t rows) {
        return tensor_view<const float, 2>(&value, {rows, usual.features}, {0, 0});
    };
    const index_t entries = broadcast.plan.entries();
    ia3_forward(serial_executor{}, broadcast.plan, repeat(x, usual.rows), repeat(scale, entries),
                broadcast.y.view());
    ia3_backward(serial_executor{}, broadcast.plan, repeat(x, usual.rows), repeat(scale, entries),
                 repeat(d_y, usual.rows), broadcast.d_x.view(), broadcast.d_scales.view());
    CHECK(compare_bitwise(broadcast.y.view(), dense.y.view()));
    CHECK(compare_bitwise(broadcast.d_x.view(), dense.d_x.view()));
    CHECK(compare_bitwise(broadcast.d_scales.view(), dense.d_scales.view()));
}

TEST_CASE("the gradients of (IA)3 agree with finite differences") {
    problem<storage<double, double, double>> p({6, 2, 5});
    p.d_x.fill(0);
    p.d_scales.fill(0);
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
    CHECK(check(p.d_scales, p.scales));
}

TEST_CASE("(IA)3 with an extent of 0 anywhere") {
    for (const sizes& s : {sizes{0, 1, 4}, sizes{3, 1, 0}, sizes{0, 1, 0}}) {
        problem<plain> p(s);
        const auto d_scales = p.d_scales.take_snapshot();
        p.forward();
        p.backward();
        CHECK(p.d_scales.unchanged_since(d_scales));
        CHECK(p.intact());
    }
    // Null pointers where there is nothing.
    const batch_plan plan;
    const tensor_view<float, 2> none(nullptr, {0, 4});
    ia3_forward(serial_executor{}, plan, none, none, none);
    ia3_backward(serial_executor{}, plan, none, none, none, none, none);
}

TEST_CASE("(IA)3 does not allocate") {
    problem<plain> p({40, 3, 150});
    CHECK(allocations_of([&] { p.forward(); }) == 0);
    CHECK(allocations_of([&] { p.backward(); }) == 0);
}

TEST_CASE("bad input of ia3_forward") {
    problem<plain> p(usual);
    const auto x = p.x.view();
    const auto scales = p.scales.view();
    const auto y = p.y.view();
    const auto refused = [&](const char* argument, auto x_, auto scales_, auto y_) {
        return refuses(
            "ia3_forward", argument,
            [&] { ia3_forward(serial_executor{}, p.plan, x_, scales_, y_); }, p.y);
    };
    for (const auto& bad : bad_as_input(x, {1})) {
        CAPTURE(bad.what);
        CHECK(refused("x", bad.view, scales, y));
    }
    for (const auto& bad : bad_as_input(scales)) {
        CAPTURE(bad.what);
        CHECK(refused("scales", x, bad.view, y));
    }
    for (const auto& bad : bad_as_output(y)) {
        CAPTURE(bad.what);
        CHECK(refused("y", x, scales, bad.view));
    }
    CHECK(refused("y", x, scales, tensor_view<float, 2>{}));
}

TEST_CASE("bad input of ia3_backward") {
    problem<plain> p(usual);
    const auto x = p.x.view();
    const auto scales = p.scales.view();
    const auto d_y = p.d_y.view();
    const auto d_x = p.d_x.view();
    const auto d_scales = p.d_scales.view();
    const auto refused = [&](const char* argument, auto x_, auto scales_, auto d_y_, auto d_x_,
                             auto d_scales_) {
        return refuses(
            "ia3_backward", argument,
            [&] { ia3_backward(serial_executor{}, p.plan, x_, scales_, d_y_, d_x_, d_scales_); },
            p.d_x, p.d_scales);
    };
    for (const auto& bad : bad_as_input(x, {1})) {
        CAPTURE(bad.what);
        CHECK(refused("x", bad.view, scales, d_y, d_x, d_scales));
    }
    for (const auto& bad : bad_as_input(scales)) {
        CAPTURE(bad.what);
        CHECK(refused("scales", x, bad.view, d_y, d_x, d_scales));
    }
    for (const auto& bad : bad_as_input(d_y)) {
        CAPTURE(bad.what);
        CHECK(refused("d_y", x, scales, bad.view, d_x, d_scales));
    }
    for (const auto& bad : bad_as_output(d_x)) {
        CAPTURE(bad.what);
        CHECK(refused("d_x", x, scales, d_y, bad.view, d_scales));
    }
    for (const auto& bad : bad_as_output(d_scales)) {
        CAPTURE(bad.what);
        CHECK(refused("d_scales", x, scales, d_y, d_x, bad.view));
    }
}
