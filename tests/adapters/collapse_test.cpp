// Collapsing routing into one plain adapter: the mean of an inventory (MHR-mu), or the mixture of
// one task. No function of its own: average_lora_forward and mix_lora_forward make the adapter,
// lora_forward applies it. What is stored in the accumulator type of x, inventory and weights, row
// by row, gives what routed_lora_forward gives, to the last bit; what is stored narrower was
// rounded once for each element.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/lora.hpp>
#include <mhr/adapters/routed_lora.hpp>

#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/routed_problem.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using bf16 = Eigen::bfloat16;
using half = Eigen::half;

/// x and y, the inventory, and weights in the accumulator type of both.
template <class X, class M>
using storage = routed_storage<X, M, accumulator_t<X, M>, X>;
using plain = storage<float, float>;
#define COLLAPSE_STORAGES                                                                          \
    plain, storage<half, half> MHR_TEST_ALSO(storage<double, double>, storage<bf16, bf16>,         \
                                             storage<float, bf16>, storage<bf16, float>,           \
                                             storage<double, float>)

// Tiles that are not full, several heads; 7 modules, since 1/7 is rounded.
constexpr routed_sizes shapes[] = {{37, 3, 2, 7, 35, 40, 18}, {20, 2, 1, 7, 9, 70, 3}};

/// One plain adapter with its memory.
template <class T>
struct plain_adapter {
    tensor<T, 2> a, b;
    explicit plain_adapter(const routed_sizes& s) : a({s.in(), s.rank}), b({s.rank, s.out()}) {}
    lora<T> view() { return {a.view(), b.view()}; }
};

/// The rows of a problem, or some of them, through one plain adapter.
template <class T, class P>
tensor<typename T::Y, 2> through(const lora<P>& adapter, routed_problem<T>& p,
                                 const batch_plan& plan, executor_ref executor) {
    tensor<accumulator_t<typename T::X, P>, 2> hidden({p.s.rows, p.s.rank});
    auto y = copy_as<typename T::Y>(p.y.view());
    lora_forward(executor, plan, p.x.view(), as_batch(adapter), p.scale, y.view(), hidden.view());
    return y;
}

/// Only the rows of one entry, or those of every task, all as one task.
batch_plan one_task(const batch_plan& plan, index_t wanted = -1) {
    auto task_of_row = entry_of_row(plan);
    for (index_t& entry : task_of_row.values())
        entry = entry >= 0 && (wanted < 0 || entry == wanted) ? 0 : no_task;
    batch_plan result;
    result.assign_rows(task_of_row.const_view());
    return result;
}

const auto same = [](const auto& value) { return value; };

} // namespace

TEST_CASE_TEMPLATE("the mean adapter is uniform routing, to the last bit", T, COLLAPSE_STORAGES) {
    using A = typename T::A;
    for (const routed_sizes& s : shapes)
        for (layout of_rows : all_layouts)
            for (layout of_inventory : all_layouts) {
                CAPTURE(name_of(of_rows));
                CAPTURE(name_of(of_inventory));
                routed_problem<T> p(s, of_rows, of_inventory);
                p.weights.fill(A(1) / A(7));
                REQUIRE(p.plan.entries() > 1);
                plain_adapter<A> mean(s);
                average_lora_forward(serial_executor{}, p.inventory(), mean.view());
                const auto y = through(mean.view(), p, one_task(p.plan), serial_executor{});
                p.forward();
                CHECK(compare_bitwise(y.view(), p.y.const_view()));
            }
}

TEST_CASE_TEMPLATE("a task's mixture is its routing, to the last bit", T, COLLAPSE_STORAGES) {
    using A = typename T::A;
    for (const routed_sizes& s : shapes)
        for (layout of_rows : all_layouts)
            for (layout of_inventory : all_layouts) {
                CAPTURE(name_of(of_rows));
                CAPTURE(name_of(of_inventory));
                routed_problem<T> batch(s, of_rows, of_inventory);
                const auto before = copy_as<typename T::Y>(batch.y.view());
                const auto entries = entry_of_row(batch.plan);
                REQUIRE(batch.plan.entries() > 1);
                batch.forward();
                for (index_t entry = 0; entry < batch.plan.entries(); ++entry) {
                    CAPTURE(entry);
                    const auto weights = batch.weights.view().block(0, entry, 1);
                    routed_problem<T> alone(s, one_task(batch.plan, entry), of_rows, of_inventory);
                    transform(weights, alone.weights.view(), same);
                    plain_adapter<A> mixture(s);
                    mix_lora_forward(serial_executor{}, weights, batch.inventory(),
                                     as_batch(mixture.view()));
                    const auto y = through(mixture.view(), alone, alone.plan, serial_executor{});
                    alone.forward();
                    CHECK(compare_bitwise(y.view(), alone.y.const_view()));
                    for (index_t row = 0; row < s.rows; ++row) {
                        const bool mine = entries(row) == entry;
                        const auto want =
                            mine ? batch.y.const_view().slice(0, row) : before.view().slice(0, row);
                        CHECK(compare_bitwise(y.view().slice(0, row), want));
                    }
                }
            }
}

TEST_CASE("collapsed adapters are the same on every executor") {
    const routed_sizes& s = shapes[0];
    routed_problem<plain> p(s, one_task(random_plan(s.rows, s.tasks)));
    plain_adapter<float> mean(s), mixture(s);
    const auto collapse = [&](executor_ref executor) {
        average_lora_forward(executor, p.inventory(), mean.view());
        mix_lora_forward(executor, p.weights.view(), p.inventory(), as_batch(mixture.view()));
        return std::vector<tensor<float, 2>>{through(mean.view(), p, p.plan, executor),
                                             through(mixture.view(), p, p.plan, executor)};
    };
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        const auto got = collapse(executor);
        routed_problem<plain> q(s, p.plan), r(s, p.plan);
        q.weights.fill(1.F / 7);
        q.forward(executor);
        r.forward(executor);
        CHECK(compare_bitwise(got[0].view(), q.y.const_view()));
        CHECK(compare_bitwise(got[1].view(), r.y.const_view()));
    });
}

TEST_CASE_TEMPLATE("an adapter that is stored narrower is rounded once", N, bf16, half) {
    using T = plain;
    const routed_sizes& s = shapes[0];
    routed_problem<T> p(s, one_task(random_plan(s.rows, s.tasks)));
    plain_adapter<float> wide(s);
    plain_adapter<N> narrow(s);
    mix_lora_forward(serial_executor{}, p.weights.view(), p.inventory(), as_batch(wide.view()));
    mix_lora_forward(serial_executor{}, p.weights.view(), p.inventory(), as_batch(narrow.view()));
    CHECK(compare_bitwise(narrow.a.const_view(), copy_as<N>(wide.a.view()).const_view()));
    CHECK(compare_bitwise(narrow.b.const_view(), copy_as<N>(wide.b.view()).const_view()));

    const auto y = through(narrow.view(), p, p.plan, serial_executor{});
    const auto size = expect_magnitudes<double>(p).y;
    p.forward();
    const auto want = copy_as<double>(p.y.view());
    // Each product holds two rounded factors: half an epsilon each, and then a little.
    CHECK(compare(y.view(), want.view(), size.view(), error_bound{1.01, epsilon_of<N>(), 0}));
    CHECK_FALSE(compare(y.view(), want.view(), size.view(), within<float>(10)));
}

TEST_CASE_TEMPLATE("the gradient of the mean adapter is that of uniform routing", T,
                   COLLAPSE_STORAGES) {
    using A = typename T::A;
    for (const routed_sizes& s : shapes)
        for (layout of_gradients : all_layouts) {
            CAPTURE(name_of(of_gradients));
            // One entry: several would be summed one by one.
            const auto plan = one_task(random_plan(s.rows, s.tasks));
            routed_problem<T> routed(s, plan, layout::row_major, layout::row_major, of_gradients);
            routed_problem<T> collapsed(s, plan, layout::row_major, layout::row_major,
                                        of_gradients);
            routed.weights.fill(A(1) / A(7));
            routed.prepare_backward();
            routed.backward();

            plain_adapter<A> mean(s), d_mean(s);
            tensor<A, 2> hidden({s.rows, s.rank});
            auto y = copy_as<typename T::Y>(collapsed.y.view());
            average_lora_forward(serial_executor{}, collapsed.inventory(), mean.view());
            lora_forward(serial_executor{}, plan, collapsed.x.view(), as_batch(mean.view()),
                         collapsed.scale, y.view(), hidden.view());
            lora_backward(serial_executor{}, plan, collapsed.x.view(), as_batch(mean.view()),
                          collapsed.scale, hidden.view(), collapsed.y.view(), collapsed.d_x.view(),
                          as_batch(d_mean.view()), collapsed.scratch());
            average_lora_backward(serial_executor{}, d_mean.view(), collapsed.d_inventory());
            CHECK(compare_bitwise(collapsed.d_x.view(), routed.d_x.view()));
            CHECK(compare_bitwise(collapsed.d_a.view(), routed.d_a.view()));
            CHECK(compare_bitwise(collapsed.d_b.view(), routed.d_b.view()));
        }
}

TEST_CASE("a step on the mean adapter is a step on all modules, at a rate times their number") {
    // MHR-mu's fine-tuning against training every module under uniform routing, once through.
    const routed_sizes s{15, 1, 2, 5, 6, 4, 3};
    using T = storage<double, double>;
    batch_plan plan;
    plan.assign_single_task(s.rows);
    routed_problem<T> p(s, plan);
    p.weights.fill(0.2);
    p.forget_gradients();
    plain_adapter<double> mean(s), d_mean(s), moved(s);
    tensor<double, 2> hidden({s.rows, s.rank});
    average_lora_forward(serial_executor{}, p.inventory(), mean.view());
    const auto d_y = copy_as<double>(p.y.view());
    auto y = d_y;
    lora_forward(serial_executor{}, plan, p.x.view(), as_batch(mean.view()), p.scale, y.view(),
                 hidden.view());
    lora_backward(serial_executor{}, plan, p.x.view(), as_batch(mean.view()), p.scale,
                  hidden.view(), d_y.view(), tensor_view<double, 2>{}, as_batch(d_mean.view()),
                  p.scratch());
    p.prepare_backward();
    p.backward();

    const double rate = 0.125;
    const auto step = [](const auto& variable, const auto& gradient, double size) {
        for_each_position(variable.extents(), [&](const auto& at) {
            element(variable, at) -= size * element(gradient, at);
        });
    };
    step(mean.a.view(), d_mean.a.view(), rate);
    step(mean.b.view(), d_mean.b.view(), rate);
    step(p.a.view(), p.d_a.view(), 5 * rate);
    step(p.b.view(), p.d_b.view(), 5 * rate);
    average_lora_forward(serial_executor{}, p.inventory(), moved.view());
    const auto agree = [](const tensor<double, 2>& got, const tensor<double, 2>& want) {
        auto size = want;
        for (double& value : size.values())
            value = 20; // a step and its 15 terms
        return compare(got.view(), want.view(), size.view(), within<double>(4));
    };
    CHECK(agree(moved.a, mean.a));
    CHECK(agree(moved.b, mean.b));
    step(mean.a.view(), d_mean.a.view(), 1e-10);
    CHECK_FALSE(agree(moved.a, mean.a));
}
