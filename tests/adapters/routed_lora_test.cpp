#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/lora.hpp>
#include <mhr/adapters/routed_lora.hpp>

#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/gradient_check.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_checks.hpp"
#include "support/routed_problem.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using plain = routed_of<float>;

constexpr routed_sizes usual{21, 3, 2, 4, 5, 7, 3};

template <class T>
batch_plan plan_of(const std::vector<T>& task_of_row) {
    batch_plan plan;
    plan.assign_rows(
        tensor_view<const T, 1>(task_of_row.data(), {static_cast<index_t>(task_of_row.size())}));
    return plan;
}

} // namespace

TEST_CASE_TEMPLATE("routed LoRA agrees with the oracle", T, MHR_TEST_ROUTED_STORAGES) {
    for (const routed_sizes& s : routed_shapes) {
        CAPTURE(s.rows);
        CAPTURE(s.heads);
        CAPTURE(s.modules);
        CAPTURE(s.rank);
        routed_problem<T> p(s);
        check_against_oracle(p);
    }
}

TEST_CASE_TEMPLATE("routed LoRA is exact where sums are", T, double, float) {
    for (const routed_sizes& s : routed_shapes) {
        if (s.in() > 100) continue; // sums beyond 2^24
        CAPTURE(s.rank);
        routed_problem<routed_of<T>> p(s);
        make_whole(p);
        const auto want = expect<T>(p);
        p.prepare_backward();
        p.backward();
        CHECK(compare_bitwise(p.d_x.const_view(), want.d_x.const_view()));
        CHECK(compare_bitwise(p.d_a.const_view(), want.d_a.const_view()));
        CHECK(compare_bitwise(p.d_b.const_view(), want.d_b.const_view()));
        if (p.plan.entries() > 0)
            CHECK(compare_bitwise(p.d_weights.const_view(), want.d_weights.const_view()));
        p.forward();
        CHECK(compare_bitwise(p.y.const_view(), want.y.const_view()));
    }
}

TEST_CASE("routed LoRA works in every layout, to the same bits") {
    routed_problem<plain> want(usual);
    want.prepare_backward();
    want.backward();
    for (layout of_rows : all_layouts)
        for (layout of_inventory : all_layouts)
            for (layout of_gradients : all_layouts) {
                CAPTURE(name_of(of_rows));
                CAPTURE(name_of(of_inventory));
                CAPTURE(name_of(of_gradients));
                routed_problem<plain> p(usual, of_rows, of_inventory, of_gradients);
                check_against_oracle(p);
                routed_problem<plain> q(usual, of_rows, of_inventory, of_gradients);
                q.prepare_backward();
                q.backward();
                CHECK(compare_bitwise(q.d_x.view(), want.d_x.view()));
                CHECK(compare_bitwise(q.d_a.view(), want.d_a.view()));
                CHECK(compare_bitwise(q.d_b.view(), want.d_b.view()));
            }
}

TEST_CASE("the gradient of the weights follows the memory of the inventory, and no other") {
    // Blocks whose rows are dense one behind the other, or are not, or that are one row.
    for (const routed_sizes& s :
         {usual, routed_sizes{9, 2, 1, 3, 32, 48, 5}, routed_sizes{9, 2, 1, 3, 19, 21, 1}})
        for (layout of_inventory : all_layouts) {
            CAPTURE(name_of(of_inventory));
            routed_problem<plain> want(s, layout::row_major, of_inventory);
            want.prepare_backward();
            want.backward();
            for (layout other : all_layouts)
                for (bool wanted : {false, true}) {
                    CAPTURE(name_of(other));
                    CAPTURE(wanted);
                    routed_problem<plain> p(s, other, of_inventory, other);
                    p.prepare_backward();
                    routed_lora_backward(serial_executor{}, p.plan, p.x.view(), p.inventory(),
                                         p.weights.view(), p.scale, p.state(), p.y.view(),
                                         p.d_x.view(),
                                         wanted ? p.d_inventory() : lora_inventory<float>{},
                                         p.d_weights.view(), p.scratch());
                    CHECK(compare_bitwise(p.d_weights.view(), want.d_weights.view()));
                }
        }
}

TEST_CASE("routed LoRA gives the same bits on every executor") {
    using T = routed_storage<Eigen::bfloat16, float, float, Eigen::bfloat16>;
    const routed_sizes s{70, 4, 3, 4, 50, 45, 18};
    routed_problem<T> gradients(s), forward(s);
    gradients.prepare_backward();
    gradients.backward();
    forward.forward();
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        routed_problem<T> p(s), q(s);
        p.prepare_backward();
        p.backward(executor);
        check_same_gradients(p, gradients);
        q.forward(executor);
        CHECK(compare_bitwise(q.y.view(), forward.y.view()));
        CHECK(compare_bitwise(q.state().mixed.a, forward.state().mixed.a));
        CHECK(compare_bitwise(q.state().mixed.b, forward.state().mixed.b));
    });
}

TEST_CASE("mixing and averaging alone accept shares") {
    using T = plain;
    routed_problem<T> want(usual), p(usual);
    want.forward();
    const auto entries = want.plan.entries();
    lora_batch<float> d_mixed = want.state().mixed; // any values will do
    mix_lora_backward(serial_executor{}, want.weights.view(), want.inventory(), d_mixed,
                      want.d_inventory(), want.d_weights.view());
    tensor<float, 2> a({usual.in(), usual.rank}), b({usual.rank, usual.out()});
    auto share_a = a, share_b = b;
    average_lora_forward(serial_executor{}, want.inventory(), lora<float>{a.view(), b.view()});
    for_each_share(3, [&](executor_ref executor) {
        mix_lora_forward(executor, p.weights.view(), p.inventory(), p.state().mixed);
        average_lora_forward(executor, p.inventory(), lora<float>{share_a.view(), share_b.view()});
    });
    for_each_share(3, [&](executor_ref executor) {
        mix_lora_backward(executor, p.weights.view(), p.inventory(), d_mixed, p.d_inventory(),
                          p.d_weights.view());
    });
    REQUIRE(entries > 0);
    CHECK(compare_bitwise(p.state().mixed.a, want.state().mixed.a));
    CHECK(compare_bitwise(p.state().mixed.b, want.state().mixed.b));
    CHECK(compare_bitwise(p.d_a.view(), want.d_a.view()));
    CHECK(compare_bitwise(p.d_b.view(), want.d_b.view()));
    CHECK(compare_bitwise(p.d_weights.view(), want.d_weights.view()));
    CHECK(compare_bitwise(share_a.view(), a.view()));
    CHECK(compare_bitwise(share_b.view(), b.view()));

    routed_problem<T> average(usual), shared(usual);
    average_lora_backward(serial_executor{}, lora<float>{a.view(), b.view()},
                          average.d_inventory());
    for_each_share(4, [&](executor_ref executor) {
        average_lora_backward(executor, lora<float>{a.view(), b.view()}, shared.d_inventory());
    });
    CHECK(compare_bitwise(shared.d_a.view(), average.d_a.view()));
    CHECK(compare_bitwise(shared.d_b.view(), average.d_b.view()));
}

TEST_CASE("mixing and its gradients are those of both matrices") {
    routed_problem<plain> p(usual), want(usual);
    make_whole(p);
    make_whole(want);
    p.forward(); // for the state
    want.forward();
    const auto mixed = p.state().mixed;
    const index_t heads = usual.heads;
    // Any gradients of the mixtures will do.
    mix_lora_backward(serial_executor{}, p.weights.view(), p.inventory(), mixed, p.d_inventory(),
                      p.d_weights.view());
    mix_backward(serial_executor{}, want.weights.view(), want.a.view(), mixed.a.split(1, heads),
                 want.d_a.view(), want.d_weights.view());
    mix_backward(serial_executor{}, want.weights.view(), want.b.view(),
                 mixed.b.split(2, heads).transpose(1, 2), want.d_b.view(), want.d_weights.view());
    CHECK(compare_bitwise(p.d_a.view(), want.d_a.view()));
    CHECK(compare_bitwise(p.d_b.view(), want.d_b.view()));
    CHECK(compare_bitwise(p.d_weights.view(), want.d_weights.view()));
}

TEST_CASE("each subset of the gradients gives the same bits") {
    routed_problem<plain> all(usual), none(usual);
    all.prepare_backward();
    all.backward();
    for (int wanted = 0; wanted < 16; ++wanted) {
        CAPTURE(wanted); // 8: MHR-z; 1: a frozen adapter
        routed_problem<plain> p(usual);
        p.prepare_backward();
        const bool x = (wanted & 1) != 0, a = (wanted & 2) != 0, b = (wanted & 4) != 0,
                   w = (wanted & 8) != 0;
        const tensor_view<float, 4> absent;
        routed_lora_backward(
            serial_executor{}, p.plan, p.x.view(), p.inventory(), p.weights.view(), p.scale,
            p.state(), p.y.view(), x ? p.d_x.view() : tensor_view<float, 2>{},
            lora_inventory<float>{a ? p.d_a.view() : absent, b ? p.d_b.view() : absent},
            w ? p.d_weights.view() : tensor_view<float, 3>{}, p.scratch());
        CHECK(compare_bitwise(p.d_x.view(), (x ? all : none).d_x.view()));
        CHECK(compare_bitwise(p.d_a.view(), (a ? all : none).d_a.view()));
        CHECK(compare_bitwise(p.d_b.view(), (b ? all : none).d_b.view()));
        CHECK(compare_bitwise(p.d_weights.view(), (w ? all : none).d_weights.view()));
    }
}

TEST_CASE("gradients accumulate") {
    // A second backward adds once more what the first one did: exact with whole numbers.
    routed_problem<plain> p(usual), once(usual);
    for (routed_problem<plain>* q : {&p, &once}) {
        make_whole(*q);
        q->prepare_backward();
    }
    once.forget_gradients();
    once.backward();
    const auto check = [&](auto& sums, auto& gradient) {
        const auto start = copy_as<float>(sums.view());
        return [&sums, &gradient, start] {
            auto want = start;
            for_each_position(want.extents(), [&](const auto& at) {
                element(want.view(), at) += 2 * element(gradient.view(), at);
            });
            CHECK(compare_bitwise(sums.const_view(), want.const_view()));
        };
    };
    const auto check_x = check(p.d_x, once.d_x);
    const auto check_a = check(p.d_a, once.d_a);
    const auto check_b = check(p.d_b, once.d_b);
    const auto check_weights = check(p.d_weights, once.d_weights);
    p.backward();
    p.backward();
    check_x();
    check_a();
    check_b();
    check_weights();
}

TEST_CASE("rows of no task are not touched, nor tasks without rows") {
    routed_problem<plain> p(usual), before(usual);
    const auto entries = entry_of_row(p.plan);
    p.prepare_backward();
    p.backward();
    const auto d_y = copy_as<float>(p.y.view());
    p.forward();
    index_t none = 0;
    for (index_t row = 0; row < usual.rows; ++row) {
        if (entries(row) >= 0) continue;
        ++none;
        CHECK(compare_bitwise(p.y.const_view().slice(0, row), d_y.const_view().slice(0, row)));
        CHECK(compare_bitwise(p.d_x.view().slice(0, row), before.d_x.view().slice(0, row)));
    }
    REQUIRE(none > 0);

    // A batch of nobody's rows.
    routed_problem<plain> q(usual, plan_of(std::vector<int>(21, -1)));
    const auto snapshots = [&] {
        return std::vector<snapshot>{q.y.take_snapshot(), q.d_x.take_snapshot(),
                                     q.d_a.take_snapshot(), q.d_b.take_snapshot()};
    };
    const auto untouched = snapshots();
    q.forward();
    q.backward();
    CHECK(untouched == snapshots());
}

TEST_CASE("routed LoRA with an extent of 0 anywhere") {
    for (const routed_sizes& s :
         {routed_sizes{0, 1, 2, 3, 4, 5, 2}, routed_sizes{3, 1, 2, 0, 4, 5, 2},
          routed_sizes{3, 1, 2, 3, 0, 5, 2}, routed_sizes{3, 1, 2, 3, 4, 0, 2},
          routed_sizes{3, 1, 2, 3, 4, 5, 0}}) {
        CAPTURE(s.rows);
        CAPTURE(s.heads);
        CAPTURE(s.modules);
        CAPTURE(s.rank);
        routed_problem<plain> p(s);
        const auto snapshots = [&] {
            return std::vector<snapshot>{p.y.take_snapshot(), p.d_x.take_snapshot(),
                                         p.d_a.take_snapshot(), p.d_b.take_snapshot(),
                                         p.d_weights.take_snapshot()};
        };
        const auto untouched = snapshots();
        p.forward();
        p.backward();
        CHECK(untouched == snapshots());
    }
}

TEST_CASE("an inventory without heads is refused by name") {
    for (const routed_sizes& s :
         {routed_sizes{3, 1, 0, 3, 4, 5, 2}, routed_sizes{3, 1, 0, 3, 0, 0, 2}}) {
        routed_problem<plain> p(s);
        CHECK(refuses(
            "routed_lora_forward", "inventory.a", [&] { p.forward(); }, p.y));
        CHECK(refuses(
            "routed_lora_backward", "inventory.a", [&] { p.backward(); }, p.d_x));
    }
}

TEST_CASE("the workspace sizes suffice, wherever the memory begins") {
    routed_problem<plain> want(usual);
    want.prepare_backward();
    want.backward();
    for (std::size_t start : {0U, 1U, 4U, 63U}) {
        routed_problem<plain> p(usual);
        const std::size_t state_size = p.state_memory.size();
        const std::size_t scratch_size = p.scratch_memory.size();
        guarded_buffer<std::byte, 1> memory({static_cast<index_t>(start + state_size)});
        guarded_buffer<std::byte, 1> scratch({static_cast<index_t>(start + scratch_size)});
        workspace state_memory(memory.view().data() + start, state_size);
        const auto state = take_routed_lora_state<float>(state_memory, p.plan, p.shape());
        const auto d_y = copy_as<float>(p.y.view());
        routed_lora_forward(serial_executor{}, p.plan, p.x.view(), p.inventory(), p.weights.view(),
                            p.scale, p.y.view(), state);
        routed_lora_backward(serial_executor{}, p.plan, p.x.view(), p.inventory(), p.weights.view(),
                             p.scale, state, d_y.view(), p.d_x.view(), p.d_inventory(),
                             p.d_weights.view(),
                             workspace(scratch.view().data() + start, scratch_size));
        CHECK(memory.intact());
        CHECK(scratch.intact());
        check_same_gradients(p, want);
    }
}

TEST_CASE("the order of the tasks in a batch does not matter") {
    // The rows of a task keep their order; those of different tasks change places.
    const std::vector<std::int64_t> tasks{4, 0, 4, -1, 2, 2, 0, 4, -1, 0};
    const std::vector<index_t> order{3, 4, 0, 1, 2, 5, 8, 6, 7, 9}; // row of the first batch
    routed_sizes s = usual;
    s.rows = 10;
    std::vector<std::int64_t> moved_tasks;
    for (index_t row : order)
        moved_tasks.push_back(tasks[static_cast<std::size_t>(row)]);
    routed_problem<plain> p(s, plan_of(tasks)), moved(s, plan_of(moved_tasks));
    const auto rows_in_order = [&](const auto& view) {
        auto result = copy_as<float>(view);
        for (index_t row = 0; row < s.rows; ++row)
            transform(view.slice(0, order[static_cast<std::size_t>(row)]),
                      result.view().slice(0, row), [](float value) { return value; });
        return result;
    };
    const auto move = [&](auto& from, auto& to) {
        const auto rows = rows_in_order(from.view());
        transform(rows.view(), to.view(), [](float value) { return value; });
    };
    move(p.x, moved.x);
    move(p.y, moved.y);
    move(p.d_x, moved.d_x);
    for (routed_problem<plain>* q : {&p, &moved}) {
        q->prepare_backward();
        q->backward();
        q->forward();
    }
    CHECK(compare_bitwise(moved.y.const_view(), rows_in_order(p.y.view()).const_view()));
    CHECK(compare_bitwise(moved.d_x.const_view(), rows_in_order(p.d_x.view()).const_view()));
    CHECK(compare_bitwise(moved.d_a.view(), p.d_a.view()));
    CHECK(compare_bitwise(moved.d_b.view(), p.d_b.view()));
    CHECK(compare_bitwise(moved.d_weights.view(), p.d_weights.view()));
}

TEST_CASE("a batch is its parts: rows give what they give alone") {
    routed_problem<plain> batch(usual);
    const auto y = copy_as<float>(batch.y.view());
    batch.forward();
    const auto entries = entry_of_row(batch.plan);
    for (index_t row = 0; row < usual.rows; ++row) {
        if (entries(row) < 0) continue;
        CAPTURE(row);
        routed_sizes s = usual;
        s.rows = 1;
        routed_problem<plain> alone(s, plan_of(std::vector<int>{5}));
        const auto same = [](float value) { return value; };
        transform(batch.x.view().block(0, row, 1), alone.x.view(), same);
        transform(y.view().block(0, row, 1), alone.y.view(), same);
        transform(batch.weights.view().block(0, entries(row), 1), alone.weights.view(), same);
        alone.forward();
        CHECK(compare_bitwise(alone.y.view(), batch.y.view().block(0, row, 1)));
    }
}

TEST_CASE("permuted modules, renamed tasks: nothing else changes") {
    // Sums in another order are the same where they are exact.
    const std::vector<int> tasks{4, 0, 4, -1, 2, 2, 0, 4, -1, 0};
    const std::vector<int> renamed{1, 9, 1, -1, 3, 3, 9, 1, -1, 9}; // entries in reverse
    routed_sizes s = usual;
    s.rows = 10;
    routed_problem<routed_of<double>> p(s, plan_of(tasks)), q(s, plan_of(renamed));
    make_whole(p);
    make_whole(q);
    const auto reverse = [](const auto& view, std::size_t axis) {
        auto strides = view.strides();
        strides[axis] = -strides[axis];
        auto* last = view.data() + (view.extent(axis) - 1) * view.stride(axis);
        return std::decay_t<decltype(view)>(last, view.extents(), strides);
    };
    const auto other_weights = [&](const auto& view) { return reverse(reverse(view, 0), 2); };
    transform(other_weights(p.weights.view()), q.weights.view(), [](double v) { return v; });
    transform(other_weights(p.d_weights.view()), q.d_weights.view(), [](double v) { return v; });
    const lora_inventory<double> inventory{reverse(q.a.view(), 1), reverse(q.b.view(), 1)};
    const lora_inventory<double> d_inventory{reverse(q.d_a.view(), 1), reverse(q.d_b.view(), 1)};
    const auto d_y = copy_as<double>(p.y.view());
    p.prepare_backward();
    p.backward();
    p.forward();
    routed_lora_forward(serial_executor{}, q.plan, q.x.view(), inventory, q.weights.view(), q.scale,
                        q.y.view(), q.state());
    routed_lora_backward(serial_executor{}, q.plan, q.x.view(), inventory, q.weights.view(),
                         q.scale, q.state(), d_y.view(), q.d_x.view(), d_inventory,
                         q.d_weights.view(), q.scratch());
    CHECK(compare_bitwise(q.y.view(), p.y.view()));
    CHECK(compare_bitwise(q.d_x.view(), p.d_x.view()));
    CHECK(compare_bitwise(q.d_a.view(), p.d_a.view()));
    CHECK(compare_bitwise(q.d_b.view(), p.d_b.view()));
    CHECK(compare_bitwise(q.d_weights.view(), other_weights(p.d_weights.view())));
}

TEST_CASE("heads of equal weights are one head: MHR contains Poly") {
    const index_t heads = 3;
    const routed_sizes s{12, 2, 1, 4, 6, 9, 2};
    routed_problem<plain> poly(s), mhr(s);
    poly.prepare_backward();
    poly.backward();
    // One head's [1, m, in, r] seen as [heads, m, in / heads, r], and b likewise.
    const auto split_a = [&](const auto& a) {
        return a.slice(0, 0).split(1, heads).transpose(0, 1);
    };
    const auto split_b = [&](const auto& b) {
        return b.slice(0, 0).split(2, heads).transpose(1, 2).transpose(0, 1);
    };
    const lora_inventory<float> inventory{split_a(mhr.a.view()), split_b(mhr.b.view())};
    const lora_inventory<float> d_inventory{split_a(mhr.d_a.view()), split_b(mhr.d_b.view())};
    const auto w = mhr.weights.view();
    const tensor_view<float, 3> weights(w.data(), {w.extent(0), heads, w.extent(2)},
                                        {w.stride(0), 0, w.stride(2)});
    const auto d_y = copy_as<float>(mhr.y.view());
    routed_lora_forward(serial_executor{}, mhr.plan, mhr.x.view(), inventory, weights, mhr.scale,
                        mhr.y.view(), mhr.state());
    routed_lora_backward(serial_executor{}, mhr.plan, mhr.x.view(), inventory, weights, mhr.scale,
                         mhr.state(), d_y.view(), mhr.d_x.view(), d_inventory,
                         tensor_view<float, 3>{}, mhr.scratch());
    poly.forward();
    CHECK(compare_bitwise(mhr.y.view(), poly.y.view()));
    CHECK(compare_bitwise(mhr.d_x.view(), poly.d_x.view()));
    CHECK(compare_bitwise(mhr.d_a.view(), poly.d_a.view()));
    CHECK(compare_bitwise(mhr.d_b.view(), poly.d_b.view()));
}

TEST_CASE("uniform routing is the average, to the last bit: MHR-mu") {
    routed_sizes s = usual;
    s.modules = 7; // 1/7 is rounded
    routed_problem<plain> p(s);
    p.weights.fill(1.F / 7);
    batch_plan plan;
    plan.assign_single_task(s.rows);
    routed_problem<plain> routed(s, plan);
    routed.weights.fill(1.F / 7);
    tensor<float, 2> a({s.in(), s.rank}), b({s.rank, s.out()}), hidden({s.rows, s.rank});
    const lora<float> average{a.view(), b.view()};
    average_lora_forward(serial_executor{}, routed.inventory(), average);
    auto y = copy_as<float>(routed.y.view());
    lora_forward(serial_executor{}, plan, routed.x.view(), as_batch(average), routed.scale,
                 y.view(), hidden.view());
    const auto d_y = copy_as<float>(routed.y.view());
    routed.forward();
    CHECK(compare_bitwise(routed.state().mixed.a.slice(0, 0), a.view()));
    CHECK(compare_bitwise(routed.state().mixed.b.slice(0, 0), b.view()));
    CHECK(compare_bitwise(routed.state().hidden, hidden.view()));
    CHECK(compare_bitwise(routed.y.view(), y.view()));

    // The gradients as well, through the average and through the routing.
    routed_problem<plain> averaged(s, plan);
    tensor<float, 2> d_a(a.extents()), d_b(b.extents());
    const lora<float> d_average{d_a.view(), d_b.view()};
    lora_backward(serial_executor{}, plan, averaged.x.view(), as_batch(average), averaged.scale,
                  hidden.view(), d_y.view(), averaged.d_x.view(), as_batch(d_average),
                  averaged.scratch());
    average_lora_backward(serial_executor{}, d_average, averaged.d_inventory());
    routed_lora_backward(serial_executor{}, plan, routed.x.view(), routed.inventory(),
                         routed.weights.view(), routed.scale, routed.state(), d_y.view(),
                         routed.d_x.view(), routed.d_inventory(), tensor_view<float, 3>{},
                         routed.scratch());
    CHECK(compare_bitwise(averaged.d_x.view(), routed.d_x.view()));
    CHECK(compare_bitwise(averaged.d_a.view(), routed.d_a.view()));
    CHECK(compare_bitwise(averaged.d_b.view(), routed.d_b.view()));
}

TEST_CASE("all results are linear in the scale, by powers of two exactly") {
    routed_problem<routed_of<double>> want(usual);
    want.forget_gradients();
    want.prepare_backward();
    want.backward();
    for (int power : {-30, -1, 1, 30}) {
        CAPTURE(power);
        routed_problem<routed_of<double>> p(usual);
        p.forget_gradients();
        p.scale = std::ldexp(want.scale, power);
        p.prepare_backward();
        p.backward();
        const auto scaled = [&](auto& buffer) {
            auto result = copy_as<double>(buffer.view());
            for (double& value : result.values())
                value = std::ldexp(value, power);
            return result;
        };
        CHECK(compare_bitwise(p.d_x.const_view(), scaled(want.d_x).const_view()));
        CHECK(compare_bitwise(p.d_a.const_view(), scaled(want.d_a).const_view()));
        CHECK(compare_bitwise(p.d_b.const_view(), scaled(want.d_b).const_view()));
        CHECK(compare_bitwise(p.d_weights.const_view(), scaled(want.d_weights).const_view()));
    }
}

TEST_CASE("the gradients of routed LoRA agree with finite differences") {
    routed_problem<routed_of<double>> p({6, 2, 2, 3, 2, 3, 2});
    p.forget_gradients();
    p.prepare_backward();
    p.backward();
    const auto cotangent = copy_as<double>(p.y.view());
    const auto loss = [&] {
        p.y.fill(0);
        p.forward();
        return contract<double>(p.y.view(), cotangent.view());
    };
    // Polynomials of degree 2 at most; 1e-11 is what the differences lose.
    const auto check = [&](auto& gradient, auto& variable) {
        const auto want = central_difference_gradient(loss, variable.view());
        auto ones = want;
        for (double& value : ones.values())
            value = 1;
        return compare(gradient.view(), want.view(), ones.view(), error_bound{1, 1e-11, 1});
    };
    CHECK(check(p.d_x, p.x));
    CHECK(check(p.d_a, p.a));
    CHECK(check(p.d_b, p.b));
    CHECK(check(p.d_weights, p.weights));
}

TEST_CASE("shapes and sizes of a state") {
    routed_problem<plain> p(usual);
    const lora_shape shape = shape_of(p.inventory());
    CHECK(shape.heads == 2);
    CHECK(shape.modules == 4);
    CHECK(shape.in_features == 10);
    CHECK(shape.out_features == 14);
    CHECK(shape.rank == 3);
    const auto state = p.state();
    CHECK(state.mixed.a.extents() == std::array<index_t, 3>{p.plan.entries(), 10, 3});
    CHECK(state.mixed.b.extents() == std::array<index_t, 3>{p.plan.entries(), 3, 14});
    CHECK(state.hidden.extents() == std::array<index_t, 2>{21, 3});
    workspace memory(p.state_memory.data(), p.state_memory.size());
    (void)take_routed_lora_state<float>(memory, p.plan, p.shape());
    CHECK(memory.available() == 0);
}

TEST_CASE("mixing for no entries is no error, wherever their memory is") {
    routed_problem<routed_storage<float, float, float, float>> p(usual);
    const tensor_view<const float, 3> weights(nullptr, {0, usual.heads, usual.modules});
    const lora_batch<float> none{{nullptr, {0, usual.in(), usual.rank}},
                                 {nullptr, {0, usual.rank, usual.out()}}};
    CHECK_NOTHROW(mix_lora_forward(serial_executor{}, weights, p.inventory(), none));
    const snapshot before = p.d_a.take_snapshot();
    CHECK_NOTHROW(mix_lora_backward(serial_executor{}, weights, p.inventory(), none,
                                    p.d_inventory(), tensor_view<float, 3>{}));
    CHECK(p.d_a.unchanged_since(before));
}
