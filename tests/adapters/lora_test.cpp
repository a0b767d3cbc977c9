#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/lora.hpp>
#include <mhr/reference/lora.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/gradient_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/lora_problem.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

template <class X, class P, class Y, class DX = X, class DP = P>
using storage = lora_storage<X, P, Y, DX, DP>;
using sizes = lora_sizes;
template <class T>
using problem = lora_problem<T>;

using bf16 = Eigen::bfloat16;
using half = Eigen::half;
#define LORA_STORAGES                                                                              \
    storage<float, float, float>,                                                                  \
        storage<half, bf16, float, float, float> MHR_TEST_ALSO(                                    \
            storage<double, double, double>, storage<bf16, bf16, bf16>, storage<half, half, half>, \
            storage<bf16, float, bf16>, storage<float, half, bf16, half>,                          \
            storage<double, float, double>)

// Round the tiles of 8, 16 and 64, the 16 rows of a block and the 128 features of a part; more
// tasks than rows, one task, spans of more rows than are taken at a time, several tasks of several
// spans each, and rows that nobody asked for.
constexpr sizes shapes[] = {{1, 1, 1, 1, 1},     {5, 2, 7, 3, 2},     {40, 1, 9, 65, 16},
                            {33, 3, 64, 64, 15}, {7, 20, 17, 5, 3},   {50, 2, 63, 66, 17},
                            {6, 2, 257, 1, 1},   {4, 1, 1, 129, 33},  {3, 2, 128, 8, 4},
                            {17, 1, 8, 130, 32}, {2, 3, 130, 300, 5}, {800, 1, 5, 3, 2},
                            {800, 3, 5, 3, 2}};

/// The oracle's results and their magnitudes.
template <class S>
struct expectation {
    tensor<S, 2> y, y_size, hidden, hidden_size, d_x, d_x_size;
    tensor<S, 3> d_a, d_a_size, d_b, d_b_size;
};

template <class S, class T>
expectation<S> oracle(problem<T>& p) {
    const auto entries = entry_of_row(p.plan);
    const auto run = [&](const auto& x, const auto& a, const auto& b, const auto& d_y, S scale,
                         auto& y, auto& hidden, auto& d_x, auto& d_a, auto& d_b) {
        reference::lora_forward(entries.const_view(), x.const_view(), a.const_view(),
                                b.const_view(), scale, y.view());
        for_each_position<2>({p.s.rows, p.s.rank}, [&](const position<2>& at) {
            if (entries(at[0]) < 0) return;
            hidden(at[0], at[1]) = S(0);
            for (index_t i = 0; i < p.s.in; ++i)
                hidden(at[0], at[1]) += x(at[0], i) * a(entries(at[0]), i, at[1]);
        });
        reference::lora_backward(entries.const_view(), x.const_view(), a.const_view(),
                                 b.const_view(), scale, d_y.const_view(), d_x.view(), d_a.view(),
                                 d_b.view());
    };
    const auto scale = static_cast<S>(p.scale);
    expectation<S> e{copy_as<S>(p.y.view()),      magnitudes_as<S>(p.y.view()),
                     copy_as<S>(p.hidden.view()), magnitudes_as<S>(p.hidden.view()),
                     copy_as<S>(p.d_x.view()),    magnitudes_as<S>(p.d_x.view()),
                     copy_as<S>(p.d_a.view()),    magnitudes_as<S>(p.d_a.view()),
                     copy_as<S>(p.d_b.view()),    magnitudes_as<S>(p.d_b.view())};
    run(copy_as<S>(p.x.view()), copy_as<S>(p.a.view()), copy_as<S>(p.b.view()),
        copy_as<S>(p.y.view()), scale, e.y, e.hidden, e.d_x, e.d_a, e.d_b);
    run(magnitudes_as<S>(p.x.view()), magnitudes_as<S>(p.a.view()), magnitudes_as<S>(p.b.view()),
        magnitudes_as<S>(p.y.view()), std::abs(scale), e.y_size, e.hidden_size, e.d_x_size,
        e.d_a_size, e.d_b_size);
    return e;
}

/// n products summed one after the other are within n/2 epsilon of their magnitudes; 3 more for
/// the scale and the products with intermediate results.
template <class A>
error_bound sum_of(index_t n) {
    return within<A>(static_cast<double>(n) / 2 + 3);
}

template <class T>
void check_against_oracle(problem<T>& p) {
    using S = typename T::S;
    using A = accumulator_t<typename T::A>;
    const auto want = oracle<S>(p);
    p.prepare_backward();
    CHECK(compare(p.hidden.view(), want.hidden.view(), want.hidden_size.view(), sum_of<A>(p.s.in)));
    p.backward();
    CHECK(compare(p.d_x.view(), want.d_x.view(), want.d_x_size.view(),
                  sum_of<A>(p.s.out + p.s.rank)));
    if (p.plan.entries() > 0) {
        CHECK(compare(p.d_a.view(), want.d_a.view(), want.d_a_size.view(),
                      sum_of<A>(p.s.out + p.s.rows)));
        CHECK(compare(p.d_b.view(), want.d_b.view(), want.d_b_size.view(),
                      sum_of<A>(p.s.in + p.s.rows)));
    }
    p.forward();
    CHECK(compare(p.y.view(), want.y.view(), want.y_size.view(), sum_of<A>(p.s.in + p.s.rank)));
    CHECK(p.y.intact());
    CHECK(p.hidden.intact());
    CHECK(p.d_x.intact());
    CHECK(p.d_a.intact());
    CHECK(p.d_b.intact());
}

using plain = storage<float, float, float>;

/// Everything that a call wrote, of two problems.
template <class T>
void check_same_bits(problem<T>& got, problem<T>& want) {
    CHECK(compare_bitwise(got.y.view(), want.y.view()));
    CHECK(compare_bitwise(got.hidden.view(), want.hidden.view()));
    CHECK(compare_bitwise(got.d_x.view(), want.d_x.view()));
    CHECK(compare_bitwise(got.d_a.view(), want.d_a.view()));
    CHECK(compare_bitwise(got.d_b.view(), want.d_b.view()));
}

} // namespace

TEST_CASE_TEMPLATE("LoRA agrees with the oracle", T, LORA_STORAGES) {
    for (const sizes& s : shapes) {
        CAPTURE(s.rows);
        CAPTURE(s.in);
        CAPTURE(s.out);
        CAPTURE(s.rank);
        problem<T> p(s);
        check_against_oracle(p);
    }
}

TEST_CASE_TEMPLATE("LoRA works in every layout", T, plain, storage<bf16, bf16, bf16>) {
    const sizes s{21, 2, 19, 70, 18};
    for (layout of_rows : all_layouts)
        for (layout of_adapters : all_layouts)
            for (layout of_gradients : all_layouts) {
                CAPTURE(name_of(of_rows));
                CAPTURE(name_of(of_adapters));
                CAPTURE(name_of(of_gradients));
                problem<T> p(s, random_plan(s.rows, s.tasks), of_rows, of_adapters, of_gradients,
                             of_gradients);
                check_against_oracle(p);
            }
}

TEST_CASE_TEMPLATE("the results scale with the inputs, by powers of two exactly", T, double,
                   float) {
    using type = storage<T, T, T>;
    const sizes s{9, 2, 10, 11, 5};
    problem<type> want(s);
    want.y.fill(0);
    want.forward();
    for (int power : {-20, -1, 1, 20}) {
        const T factor = std::ldexp(T(1), power);
        const auto multiply = [&](const auto& view) {
            transform(view, view, [&](T value) { return factor * value; });
        };
        for (bool by_scale : {false, true}) {
            problem<type> p(s);
            p.y.fill(0);
            if (by_scale)
                p.scale *= std::ldexp(1.0, power);
            else
                multiply(p.x.view());
            p.forward();
            tensor<T, 2> expected = copy_as<T>(want.y.view());
            multiply(expected.view());
            CHECK(compare_bitwise(p.y.const_view(), expected.const_view()));
        }
    }
}

TEST_CASE("rows of no task are neither read nor written") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const sizes s{30, 2, 9, 10, 3};
    problem<plain> p(s), want(s);
    const auto entries = entry_of_row(p.plan);
    index_t none = 0;
    for (index_t row = 0; row < s.rows; ++row) {
        if (entries(row) >= 0) continue;
        ++none;
        for (index_t i = 0; i < s.in; ++i)
            p.x(row, i) = nan;
        for (index_t o = 0; o < s.out; ++o)
            p.y(row, o) = nan;
    }
    REQUIRE(none > 0);
    const tensor<float, 2> d_x = copy_as<float>(p.d_x.view());
    const tensor<float, 2> hidden = copy_as<float>(p.hidden.view());
    p.prepare_backward();
    p.backward();
    want.prepare_backward();
    want.backward();
    CHECK(compare_bitwise(p.d_a.view(), want.d_a.view()));
    CHECK(compare_bitwise(p.d_b.view(), want.d_b.view()));
    CHECK(compare_bitwise(p.d_x.view(), want.d_x.view()));
    const tensor<float, 2> y = copy_as<float>(want.y.view());
    want.forward();
    for (index_t row = 0; row < s.rows; ++row) {
        if (entries(row) >= 0) continue;
        CHECK(compare_bitwise(p.d_x.const_view().slice(0, row), d_x.view().slice(0, row)));
        CHECK(compare_bitwise(p.hidden.const_view().slice(0, row), hidden.view().slice(0, row)));
        CHECK(compare_bitwise(want.y.const_view().slice(0, row), y.view().slice(0, row)));
    }
}

TEST_CASE("LoRA gives the same bits on every executor") {
    using T = storage<bf16, float, float>;
    const sizes s{70, 3, 150, 140, 18};
    problem<T> want(s);
    want.prepare_backward();
    want.backward();
    want.forward();
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        problem<T> p(s);
        p.prepare_backward();
        p.backward(executor);
        p.hidden.fill(-1);
        const auto hidden_of_nobody = entry_of_row(p.plan);
        p.forward(executor);
        for (index_t row = 0; row < s.rows; ++row) // those start with other values here
            if (hidden_of_nobody(row) < 0)
                for (index_t k = 0; k < s.rank; ++k)
                    p.hidden(row, k) = want.hidden(row, k);
        check_same_bits(p, want);
    });
    for (index_t nth : {1, 3, 40}) {
        problem<T> p(s), serial(s);
        serial.forward();
        for_each_share(nth, [&](executor_ref executor) { p.forward(executor); });
        check_same_bits(p, serial);
    }
}

TEST_CASE("a row alone gives what it gives in a batch") {
    const sizes s{37, 2, 40, 70, 9};
    problem<plain> batch(s);
    const auto y = copy_as<float>(batch.y.view());
    batch.forward();
    const auto entries = entry_of_row(batch.plan);
    for (index_t row = 0; row < s.rows; ++row) {
        if (entries(row) < 0) continue;
        CAPTURE(row);
        batch_plan plan;
        plan.assign_single_task(1);
        tensor<float, 2> alone({1, s.out}), hidden({1, s.rank});
        transform(y.view().block(0, row, 1), alone.view(), [](float value) { return value; });
        const lora<float> adapter{batch.a.view().slice(0, entries(row)),
                                  batch.b.view().slice(0, entries(row))};
        lora_forward(serial_executor{}, plan, batch.x.view().block(0, row, 1), as_batch(adapter),
                     batch.scale, alone.view(), hidden.view());
        CHECK(compare_bitwise(alone.view(), batch.y.view().block(0, row, 1)));
        CHECK(compare_bitwise(hidden.view(), batch.hidden.view().block(0, row, 1)));
    }
}

TEST_CASE("each subset of LoRA's gradients gives the same bits") {
    const sizes s{20, 2, 9, 10, 3};
    problem<plain> all(s), none(s);
    all.prepare_backward();
    all.backward();
    for (int wanted = 0; wanted < 8; ++wanted) {
        CAPTURE(wanted);
        problem<plain> p(s);
        p.prepare_backward();
        const bool d_x = (wanted & 1) != 0, d_a = (wanted & 2) != 0, d_b = (wanted & 4) != 0;
        lora_backward(serial_executor{}, p.plan, p.x.view(), p.adapters(), p.scale, p.hidden.view(),
                      p.y.view(), d_x ? p.d_x.view() : tensor_view<float, 2>{},
                      lora_batch<float>{d_a ? p.d_a.view() : tensor_view<float, 3>{},
                                        d_b ? p.d_b.view() : tensor_view<float, 3>{}},
                      p.scratch());
        CHECK(compare_bitwise(p.d_x.view(), (d_x ? all : none).d_x.view()));
        CHECK(compare_bitwise(p.d_a.view(), (d_a ? all : none).d_a.view()));
        CHECK(compare_bitwise(p.d_b.view(), (d_b ? all : none).d_b.view()));
    }
}

TEST_CASE("gradients of stride 0 are broadcast") {
    // The gradient of sum(y) is one number.
    const sizes s{10, 2, 6, 7, 3};
    problem<plain> dense(s), broadcast(s);
    dense.prepare_backward();
    broadcast.prepare_backward();
    dense.y.fill(0.5F);
    dense.backward();
    const float half_of_one = 0.5F;
    const tensor_view<const float, 2> d_y(&half_of_one, {s.rows, s.out}, {0, 0});
    lora_backward(serial_executor{}, broadcast.plan, broadcast.x.view(), broadcast.adapters(),
                  broadcast.scale, broadcast.hidden.view(), d_y, broadcast.d_x.view(),
                  broadcast.d_adapters(), broadcast.scratch());
    CHECK(compare_bitwise(broadcast.d_x.view(), dense.d_x.view()));
    CHECK(compare_bitwise(broadcast.d_a.view(), dense.d_a.view()));
    CHECK(compare_bitwise(broadcast.d_b.view(), dense.d_b.view()));
}

TEST_CASE("the gradients of LoRA agree with finite differences") {
    problem<storage<double, double, double>> p({6, 2, 4, 5, 3});
    p.prepare_backward();
    const auto cotangent = copy_as<double>(p.y.view());
    p.d_x.fill(0);
    p.d_a.fill(0);
    p.d_b.fill(0);
    p.backward();
    const auto loss = [&] {
        p.y.fill(0);
        p.forward();
        return contract<double>(p.y.view(), cotangent.view());
    };
    // Of a function that is linear in each argument; 1e-11 is what the differences lose.
    const auto check = [&](auto& gradient, auto& variable) {
        const auto want = central_difference_gradient(loss, variable.view());
        auto ones = want;
        for (double& value : ones.values())
            value = 1;
        return compare(gradient.view(), want.view(), ones.view(),
                       within<double>(1e-11 / epsilon_of<double>()));
    };
    CHECK(check(p.d_x, p.x));
    CHECK(check(p.d_a, p.a));
    CHECK(check(p.d_b, p.b));
}

TEST_CASE("LoRA with an extent of 0 anywhere") {
    for (const sizes& s : {sizes{0, 1, 4, 5, 2}, sizes{3, 1, 0, 5, 2}, sizes{3, 1, 4, 0, 2},
                           sizes{3, 1, 4, 5, 0}, sizes{0, 1, 0, 0, 0}}) {
        CAPTURE(s.in);
        CAPTURE(s.out);
        problem<plain> p(s);
        const auto y = p.y.take_snapshot();
        const auto d_x = p.d_x.take_snapshot();
        const auto d_b = p.d_b.take_snapshot();
        p.forward();
        CHECK(p.y.unchanged_since(y)); // + scale * 0
        p.backward();
        CHECK(p.d_x.unchanged_since(d_x));
        CHECK(p.d_b.unchanged_since(d_b));
    }
    // Null pointers where there is nothing.
    batch_plan plan;
    std::vector<std::byte> memory(lora_backward_workspace_size<float>(plan, 4, 5, 2));
    const tensor_view<float, 2> x(nullptr, {0, 4}), y(nullptr, {0, 5}), hidden(nullptr, {0, 2});
    const lora_batch<float> adapters{{nullptr, {0, 4, 2}}, {nullptr, {0, 2, 5}}};
    lora_forward(serial_executor{}, plan, x, adapters, 1, y, hidden);
    lora_backward(serial_executor{}, plan, x, adapters, 1, hidden, y, x, adapters,
                  workspace(memory.data(), memory.size()));
}

TEST_CASE("LoRA does not allocate") {
    problem<plain> p({40, 3, 30, 40, 18});
    CHECK(allocations_of([&] { p.forward(); }) == 0);
    CHECK(allocations_of([&] { p.backward(); }) == 0);
}

TEST_CASE("LoRA stays inside the workspace that it asked for, wherever that begins") {
    const sizes s{5, 1, 6, 7, 3};
    problem<plain> want(s);
    want.prepare_backward();
    want.backward();
    const std::size_t size = want.memory.size();
    for (std::size_t start : {0U, 1U, 4U, 63U}) {
        problem<plain> p(s);
        p.prepare_backward();
        guarded_buffer<std::byte, 1> memory({static_cast<index_t>(start + size)});
        lora_backward(serial_executor{}, p.plan, p.x.view(), p.adapters(), p.scale, p.hidden.view(),
                      p.y.view(), p.d_x.view(), p.d_adapters(),
                      workspace(memory.view().data() + start, size));
        CHECK(memory.intact());
        CHECK(compare_bitwise(p.d_x.view(), want.d_x.view()));
    }
}

TEST_CASE("planted bugs of LoRA are found") {
    const sizes s{30, 2, 10, 11, 5};
    problem<plain> p(s);
    const auto want = oracle<double>(p);
    const auto y = copy_as<float>(p.y.view());
    const auto good = [&](double scale, const lora_batch<float>& adapters) {
        transform(y.view(), p.y.view(), [](float value) { return value; });
        lora_forward(serial_executor{}, p.plan, p.x.view(), adapters, scale, p.y.view(),
                     p.hidden.view());
        return compare(p.y.view(), want.y.view(), want.y_size.view(), sum_of<float>(s.in + s.rank))
            .ok;
    };
    CHECK(good(p.scale, p.adapters()));
    CHECK_FALSE(good(1, p.adapters()));
    CHECK_FALSE(good(p.scale * (1 + 1e-4), p.adapters()));
    // The adapters of each other's tasks.
    REQUIRE(p.plan.entries() == 2);
    const auto reversed = [](const tensor_view<float, 3>& view) {
        return tensor_view<float, 3>(view.data() + view.stride(0), view.extents(),
                                     {-view.stride(0), view.stride(1), view.stride(2)});
    };
    CHECK_FALSE(good(p.scale, {reversed(p.a.view()), p.b.view()}));
    CHECK_FALSE(good(p.scale, {p.a.view(), reversed(p.b.view())}));
}

TEST_CASE("bad input of lora_forward") {
    problem<plain> p({20, 2, 5, 6, 3});
    const auto x = p.x.view();
    const auto a = p.a.view();
    const auto b = p.b.view();
    const auto y = p.y.view();
    const auto hidden = p.hidden.view();
    const auto refused = [&](const char* argument, auto x_, auto a_, auto b_, auto y_, auto h_) {
        return refuses(
            "lora_forward", argument,
            [&] {
                lora_forward(serial_executor{}, p.plan, x_, lora_batch<float>{a_, b_}, 1, y_, h_);
            },
            p.y, p.hidden);
    };
    for (const auto& bad : bad_as_input(x, {1})) {
        CAPTURE(bad.what);
        CHECK(refused("x", bad.view, a, b, y, hidden));
    }
    for (const auto& bad : bad_as_input(a, {2})) {
        CAPTURE(bad.what);
        CHECK(refused("adapters.a", x, bad.view, b, y, hidden));
    }
    for (const auto& bad : bad_as_input(b, {2})) {
        CAPTURE(bad.what);
        CHECK(refused("adapters.b", x, a, bad.view, y, hidden));
    }
    for (const auto& bad : bad_as_output(y)) {
        CAPTURE(bad.what);
        CHECK(refused("y", x, a, b, bad.view, hidden));
    }
    for (const auto& bad : bad_as_output(hidden)) {
        CAPTURE(bad.what);
        CHECK(refused("hidden", x, a, b, y, bad.view));
    }
}

TEST_CASE("bad input of lora_backward") {
    problem<plain> p({20, 2, 5, 6, 3});
    const auto x = p.x.view();
    const auto a = p.a.view();
    const auto b = p.b.view();
    const auto hidden = p.hidden.view();
    const auto d_y = p.y.view();
    const auto d_x = p.d_x.view();
    const auto d_a = p.d_a.view();
    const auto d_b = p.d_b.view();
    const auto refused_by = [&](executor_ref executor, workspace scratch, const char* argument,
                                auto x_, auto a_, auto b_, auto h_, auto dy_, auto dx_, auto da_,
                                auto db_) {
        return refuses(
            "lora_backward", argument,
            [&] {
                lora_backward(executor, p.plan, x_, lora_batch<float>{a_, b_}, 1, h_, dy_, dx_,
                              lora_batch<float>{da_, db_}, scratch);
            },
            p.d_x, p.d_a, p.d_b);
    };
    const auto refused = [&](const char* argument, auto... arguments) {
        return refused_by(serial_executor{}, p.scratch(), argument, arguments...);
    };
    for (const auto& bad : bad_as_input(x, {1})) {
        CAPTURE(bad.what);
        CHECK(refused("x", bad.view, a, b, hidden, d_y, d_x, d_a, d_b));
    }
    for (const auto& bad : bad_as_input(a, {2})) {
        CAPTURE(bad.what);
        CHECK(refused("adapters.a", x, bad.view, b, hidden, d_y, d_x, d_a, d_b));
    }
    for (const auto& bad : bad_as_input(b, {2})) {
        CAPTURE(bad.what);
        CHECK(refused("adapters.b", x, a, bad.view, hidden, d_y, d_x, d_a, d_b));
    }
    for (const auto& bad : bad_as_input(hidden)) {
        CAPTURE(bad.what);
        CHECK(refused("hidden", x, a, b, bad.view, d_y, d_x, d_a, d_b));
    }
    for (const auto& bad : bad_as_input(d_y)) {
        CAPTURE(bad.what);
        CHECK(refused("d_y", x, a, b, hidden, bad.view, d_x, d_a, d_b));
    }
    for (const auto& bad : bad_as_output(d_x)) {
        CAPTURE(bad.what);
        CHECK(refused("d_x", x, a, b, hidden, d_y, bad.view, d_a, d_b));
    }
    for (const auto& bad : bad_as_output(d_a)) {
        CAPTURE(bad.what);
        CHECK(refused("d_adapters.a", x, a, b, hidden, d_y, d_x, bad.view, d_b));
    }
    for (const auto& bad : bad_as_output(d_b)) {
        CAPTURE(bad.what);
        CHECK(refused("d_adapters.b", x, a, b, hidden, d_y, d_x, d_a, bad.view));
    }
    CHECK(refused_by(share_executor{0, 2}, p.scratch(), "executor", x, a, b, hidden, d_y, d_x, d_a,
                     d_b));
    CHECK(refused_by(serial_executor{}, {p.memory.data(), p.memory.size() - 1}, "workspace", x, a,
                     b, hidden, d_y, d_x, d_a, d_b));
}

TEST_CASE_TEMPLATE("adapters in slots of a pool are the adapters copied out of it", T, plain,
                   storage<bf16, float, bf16>, storage<half, half, half>) {
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        const sizes s{40, 5, 18, 70, 18};
        const auto plan = random_plan(s.rows, s.tasks);
        const layout of_rows = layout::row_major;
        problem<T> want(s, plan, of_rows, order, of_rows, of_rows);
        problem<T> got(s, plan, of_rows, order, of_rows, of_rows);
        REQUIRE(plan.entries() == 5);
        pooled_adapters<T> pool(got, 3, order); // the spare ones are NaN
        REQUIRE_FALSE(std::is_sorted(pool.slot_of_entry.begin(), pool.slot_of_entry.end()));
        const auto d_y = copy_as<typename T::Y>(got.y.view());
        lora_forward(serial_executor{}, got.plan, got.x.view(), pool.batch(), got.scale,
                     got.y.view(), got.hidden.view());
        lora_backward(serial_executor{}, got.plan, got.x.view(), pool.batch(), got.scale,
                      got.hidden.view(), d_y.view(), got.d_x.view(), got.d_adapters(),
                      got.scratch());
        want.prepare_backward();
        want.backward();
        want.forward();
        check_same_bits(got, want);
    }
}

TEST_CASE("entries that share a slot have equal adapters, and gradients of their own") {
    using T = storage<double, double, double>;
    const sizes s{30, 3, 9, 10, 3};
    problem<T> want(s), got(s);
    REQUIRE(want.plan.entries() == 3);
    const std::vector<index_t> shared{1, 0, 1};
    for (std::size_t entry = 0; entry < 3; ++entry) {
        const auto at = static_cast<index_t>(entry);
        const auto same = [](double value) { return value; };
        transform(got.a.view().slice(0, shared[entry]), want.a.view().slice(0, at), same);
        transform(got.b.view().slice(0, shared[entry]), want.b.view().slice(0, at), same);
    }
    // Fewer matrices than entries; every second number of a list of slots.
    const std::vector<index_t> spread{1, -7, 0, -7, 1};
    const lora_batch<double> pool{
        got.a.view().block(0, 0, 2), got.b.view().block(0, 0, 2), {spread.data(), {3}, {2}}};
    const auto d_y = copy_as<double>(got.y.view());
    lora_forward(serial_executor{}, got.plan, got.x.view(), pool, got.scale, got.y.view(),
                 got.hidden.view());
    lora_backward(serial_executor{}, got.plan, got.x.view(), pool, got.scale, got.hidden.view(),
                  d_y.view(), got.d_x.view(), got.d_adapters(), got.scratch());
    want.prepare_backward();
    want.backward();
    want.forward();
    check_same_bits(got, want);

    // One slot for all, by a stride of 0.
    const index_t second = 1;
    problem<T> one(s), copies(s);
    const lora_batch<double> same_for_all{one.a.view(), one.b.view(), {&second, {3}, {0}}};
    for (index_t entry : {0, 2}) {
        const auto same = [](double value) { return value; };
        transform(copies.a.view().slice(0, 1), copies.a.view().slice(0, entry), same);
        transform(copies.b.view().slice(0, 1), copies.b.view().slice(0, entry), same);
    }
    lora_forward(serial_executor{}, one.plan, one.x.view(), same_for_all, one.scale, one.y.view(),
                 one.hidden.view());
    copies.forward();
    check_same_bits(one, copies);
}

TEST_CASE("a batch without entries takes any pool, with slots or without") {
    const sizes s{3, 1, 4, 5, 2};
    batch_plan plan;
    const std::vector<int> nobody{-1, -1, -1};
    plan.assign_rows(tensor_view<const int, 1>(nobody.data(), {3}));
    const index_t unused = 99;
    const tensor_view<const index_t, 1> no_slots(&unused, {0});
    for (const auto& slots : {no_slots, tensor_view<const index_t, 1>{}}) {
        problem<plain> p(s, plan, layout::row_major, layout::row_major, layout::row_major,
                         layout::row_major);
        guarded_buffer<float, 3> a({4, s.in, s.rank}), b({4, s.rank, s.out});
        const lora_batch<float> pool{a.view(), b.view(), slots};
        const auto y = p.y.take_snapshot();
        const auto d_x = p.d_x.take_snapshot();
        lora_forward(serial_executor{}, plan, p.x.view(), pool, 1, p.y.view(), p.hidden.view());
        lora_backward(serial_executor{}, plan, p.x.view(), pool, 1, p.hidden.view(), p.y.view(),
                      p.d_x.view(), p.d_adapters(), p.scratch());
        CHECK(p.y.unchanged_since(y));
        CHECK(p.d_x.unchanged_since(d_x));
    }
}

TEST_CASE("bad slots") {
    problem<plain> p({20, 3, 5, 6, 3});
    REQUIRE(p.plan.entries() == 3);
    pooled_adapters<plain> pool(p, 1, layout::row_major);
    const auto forward_refused = [&](const char* argument, const auto& adapters) {
        return refuses(
            "lora_forward", argument,
            [&] {
                lora_forward(serial_executor{}, p.plan, p.x.view(), adapters, 1, p.y.view(),
                             p.hidden.view());
            },
            p.y, p.hidden);
    };
    const auto backward_refused = [&](const char* argument, const auto& adapters,
                                      const lora_batch<float>& d_adapters) {
        return refuses(
            "lora_backward", argument,
            [&] {
                lora_backward(serial_executor{}, p.plan, p.x.view(), adapters, 1, p.hidden.view(),
                              p.y.view(), p.d_x.view(), d_adapters, p.scratch());
            },
            p.d_x, p.d_a, p.d_b);
    };
    for (const auto& bad : bad_as_input(pool.slots())) {
        CAPTURE(bad.what);
        const lora_batch<const float> adapters{pool.a.view(), pool.b.view(), bad.view};
        CHECK(forward_refused("adapters.slot_of_entry", adapters));
        CHECK(backward_refused("adapters.slot_of_entry", adapters, p.d_adapters()));
    }
    for (std::size_t entry : {0U, 1U, 2U})
        for (index_t slot : {index_t(-1), index_t(4), std::numeric_limits<index_t>::max(),
                             std::numeric_limits<index_t>::min()}) {
            CAPTURE(entry);
            CAPTURE(slot);
            pooled_adapters<plain> bad(p, 1, layout::row_major);
            bad.slot_of_entry[entry] = slot;
            CHECK(forward_refused("adapters.slot_of_entry", bad.batch()));
            CHECK(backward_refused("adapters.slot_of_entry", bad.batch(), p.d_adapters()));
        }
    // The pool's matrices belong together; without slots there is one for each entry.
    const auto fewer = [](const auto& view) { return view.block(0, 0, 3); };
    CHECK(forward_refused(
        "adapters.b", lora_batch<const float>{pool.a.view(), fewer(pool.b.view()), pool.slots()}));
    CHECK(forward_refused("adapters.a", lora_batch<const float>{pool.a.view(), pool.b.view()}));
    // Gradients have one owner, even where the slots are one for each entry.
    const std::vector<index_t> in_order{0, 1, 2};
    const tensor_view<const index_t, 1> slots(in_order.data(), {3});
    CHECK(backward_refused("d_adapters.slot_of_entry", p.adapters(),
                           lora_batch<float>{p.d_a.view(), p.d_b.view(), slots}));
    CHECK(backward_refused("d_adapters.a", pool.batch(),
                           lora_batch<float>{pool.a.view(), p.d_b.view()}));
}

TEST_CASE("one adapter as a batch") {
    std::vector<float> memory(12);
    const lora<float> adapter{{memory.data(), {3, 2}}, {memory.data(), {2, 5}}};
    const auto batch = as_batch(adapter);
    CHECK(batch.a.extents() == std::array<index_t, 3>{1, 3, 2});
    CHECK(batch.b.extents() == std::array<index_t, 3>{1, 2, 5});
    CHECK(as_batch(lora<float>{}).a.absent());
    CHECK(as_batch(lora<float>{}).b.absent());
    CHECK(batch.slot_of_entry.absent());
}
