// Elements that lie further than 2^31 elements and 2^32 bytes from the first: by strides along each
// axis in turn, and in dense tensors of more than 2^31 elements. Only pages that are touched exist.
// The results are those of the same numbers close together, to the last bit (d_weights but for the
// order of their sums).

#include <cstddef>
#include <cstdint>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/adapters/merge.hpp>
#include <mhr/adapters/output_mixed_lora.hpp>
#include <mhr/adapters/routed_lora.hpp>
#include <mhr/routing/router.hpp>

#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/long_cases.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_checks.hpp"
#include "support/routed_ia3_problem.hpp"
#include "support/routed_problem.hpp"
#include "support/scalar_types.hpp"
#include "support/sparse_memory.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using plain = routed_of<float>;

constexpr index_t far = (index_t(1) << 31) + 40; // elements, of 2 bytes or more

const auto same = [](const auto& value) { return value; };

/// The same extents, dense but along one axis (counted on from the first after the last), where
/// neighbours are far from each other.
template <class T, std::size_t Rank>
tensor_view<T, Rank> stretched(const tensor_view<T, Rank>& view, std::size_t axis) {
    axis %= Rank;
    auto extents = view.extents();
    extents[axis] = 1;
    auto strides = tensor_view<T, Rank>(nullptr, extents).strides();
    strides[axis] = far;
    return {nullptr, view.extents(), strides};
}

/// A copy with such strides.
template <class T, std::size_t Rank>
struct far_copy : sparse_tensor<T, Rank> {
    far_copy(const tensor_view<T, Rank>& from, std::size_t axis)
        : sparse_tensor<T, Rank>(stretched(from, axis)) {
        transform(from, this->view(), same);
    }
};
template <class T, std::size_t Rank>
far_copy(const tensor_view<T, Rank>&, std::size_t) -> far_copy<T, Rank>;

/// True if these tests cannot run.
bool skipped() {
    const std::string reason = sparse_memory::missing();
    if (!reason.empty()) MESSAGE(reason);
    return !reason.empty();
}

} // namespace

TEST_CASE_TEMPLATE("routed LoRA reaches far along every axis", T, plain, of_16_bits) {
    if (skipped()) return;
    for (std::size_t axis = 0; axis < 4; ++axis) {
        CAPTURE(axis);
        routed_problem<T> p({7, 2, 2, 3, 5, 9, 3});
        const far_copy x(p.x.view(), axis);
        const far_copy y(p.y.view(), axis);
        const far_copy d_y(p.y.view(), axis);
        const far_copy d_x(p.d_x.view(), axis);
        const far_copy weights(p.weights.view(), axis);
        const far_copy a(p.a.view(), axis);
        const far_copy b(p.b.view(), axis);
        const far_copy d_a(p.d_a.view(), axis);
        const far_copy d_b(p.d_b.view(), axis);
        const far_copy d_weights(p.d_weights.view(), axis);
        const auto near = p.state();
        const far_copy mixed_a(near.mixed.a, axis);
        const far_copy mixed_b(near.mixed.b, axis);
        const far_copy hidden(near.hidden, axis);
        const lora_inventory<typename T::M> inventory{a.view(), b.view()};
        const lora_inventory<typename T::DM> d_inventory{d_a.view(), d_b.view()};
        const routed_lora_state<typename T::A> state{{mixed_a.view(), mixed_b.view()},
                                                     hidden.view()};
        routed_lora_forward(serial_executor{}, p.plan, x.view(), inventory, weights.view(), p.scale,
                            y.view(), state);
        routed_lora_backward(serial_executor{}, p.plan, x.view(), inventory, weights.view(),
                             p.scale, state, d_y.view(), d_x.view(), d_inventory, d_weights.view(),
                             p.scratch());
        p.prepare_backward();
        p.backward();
        p.forward();
        CHECK(compare_bitwise(y.view(), p.y.view()));
        CHECK(compare_bitwise(mixed_a.view(), near.mixed.a));
        CHECK(compare_bitwise(mixed_b.view(), near.mixed.b));
        CHECK(compare_bitwise(d_x.view(), p.d_x.view()));
        CHECK(compare_bitwise(d_a.view(), p.d_a.view()));
        CHECK(compare_bitwise(d_b.view(), p.d_b.view()));
        // Summed in the order in which the matrices are walked through.
        CHECK(compare(d_weights.view(), copy_as<double>(p.d_weights.view()).view(),
                      within<float>(64)));
    }
}

TEST_CASE("routed (IA)3 reaches far along every axis") {
    if (skipped()) return;
    for (std::size_t axis = 0; axis < 3; ++axis) {
        CAPTURE(axis);
        routed_ia3_problem<ia3_storage<Eigen::half, Eigen::bfloat16, float, Eigen::half>> p(
            {7, 2, 2, 3, 9});
        p.y.fill(Eigen::half(0.F));
        p.state.fill(0);
        const far_copy x(p.x.view(), axis);
        const far_copy y(p.y.view(), axis);
        const far_copy d_y(p.d_y.view(), axis);
        const far_copy d_x(p.d_x.view(), axis);
        const far_copy weights(p.weights.view(), axis);
        const far_copy modules(p.modules.view(), axis);
        const far_copy d_modules(p.d_modules.view(), axis);
        const far_copy d_weights(p.d_weights.view(), axis);
        const far_copy state(p.state.view(), axis);
        routed_ia3_forward(serial_executor{}, p.plan, x.view(), modules.view(), weights.view(),
                           y.view(), state.view());
        routed_ia3_backward(serial_executor{}, p.plan, x.view(), modules.view(), weights.view(),
                            state.view(), d_y.view(), d_x.view(), d_modules.view(),
                            d_weights.view(), p.scratch());
        p.forward();
        p.backward();
        CHECK(compare_bitwise(y.view(), p.y.view()));
        CHECK(compare_bitwise(d_x.view(), p.d_x.view()));
        CHECK(compare_bitwise(d_modules.view(), p.d_modules.view()));
        CHECK(compare_bitwise(d_weights.view(), p.d_weights.view()));
    }
}

TEST_CASE("LoRA with mixed outputs reaches far along every axis") {
    if (skipped()) return;
    for (std::size_t axis = 0; axis < 4; ++axis) {
        CAPTURE(axis);
        routed_problem<plain> p({7, 2, 1, 3, 9, 5, 3});
        const tensor_view<const float, 2> d_y_near = p.y.view();
        const far_copy x(p.x.view(), axis);
        const far_copy d_y(p.y.view(), axis);
        const far_copy d_x(p.d_x.view(), axis);
        const far_copy a(p.a.view(), axis);
        const far_copy b(p.b.view(), axis);
        const far_copy weights(p.weights.view(), axis);
        const far_copy d_a(p.d_a.view(), axis);
        const far_copy d_b(p.d_b.view(), axis);
        const far_copy d_weights(p.d_weights.view(), axis);
        tensor<float, 3> hidden_near({7, 3, 3});
        const far_copy hidden(hidden_near.view(), axis);
        auto y_near = copy_as<float>(p.y.view());
        const far_copy y(y_near.view(), axis);
        std::vector<std::byte> memory(
            output_mixed_lora_backward_workspace_size<float>(p.plan, p.shape()));
        const auto run = [&](auto x_, auto a_, auto b_, auto w, auto y_, auto h, auto d_y_,
                             auto d_x_, auto d_a_, auto d_b_, auto d_w) {
            const lora_inventory<float> inventory{a_, b_};
            output_mixed_lora_forward(serial_executor{}, p.plan, x_, inventory, w, p.scale, y_, h);
            output_mixed_lora_backward(serial_executor{}, p.plan, x_, inventory, w, p.scale, h,
                                       d_y_, d_x_, lora_inventory<float>{d_a_, d_b_}, d_w,
                                       workspace(memory.data(), memory.size()));
        };
        run(x.view(), a.view(), b.view(), weights.view(), y.view(), hidden.view(),
            as_const(d_y.view()), d_x.view(), d_a.view(), d_b.view(), d_weights.view());
        run(p.x.view(), p.a.view(), p.b.view(), p.weights.view(), y_near.view(), hidden_near.view(),
            d_y_near, p.d_x.view(), p.d_a.view(), p.d_b.view(), p.d_weights.view());
        CHECK(compare_bitwise(y.view(), y_near.view()));
        CHECK(compare_bitwise(d_x.view(), p.d_x.view()));
        CHECK(compare_bitwise(d_a.view(), p.d_a.view()));
        CHECK(compare_bitwise(d_b.view(), p.d_b.view()));
        CHECK(compare_bitwise(d_weights.view(), p.d_weights.view()));
    }
}

TEST_CASE("a weight is merged into, and ready adapters are found, far away") {
    if (skipped()) return;
    for (std::size_t axis = 0; axis < 3; ++axis) {
        CAPTURE(axis);
        tensor<float, 3> a({3, 9, 2}), b({3, 2, 11});
        tensor<float, 2> weight({11, 9}), x({4, 9}), y({4, 11}), hidden({4, 2});
        random_source random(5);
        random.fill(a.view());
        random.fill(b.view());
        random.fill(weight.view());
        random.fill(x.view());
        const far_copy far_a(a.view(), axis);
        const far_copy far_b(b.view(), axis);
        const far_copy far_weight(weight.view(), axis);
        const far_copy far_y(y.view(), axis);
        const auto merge = [](const auto& pool_a, const auto& pool_b, const auto& into) {
            merge_lora(serial_executor{}, lora<float>{pool_a.slice(0, 2), pool_b.slice(0, 2)}, 0.5,
                       into);
        };
        merge(a.view(), b.view(), weight.view());
        merge(far_a.view(), far_b.view(), far_weight.view());
        CHECK(compare_bitwise(far_weight.view(), weight.view()));

        // The pool's last slot, for rows whose task ids lie far apart, too.
        tensor<std::int64_t, 1> tasks({4});
        const far_copy far_tasks(tasks.view(), 0);
        batch_plan plan;
        plan.assign_rows(far_tasks.view());
        const index_t slot = 2;
        const tensor_view<const index_t, 1> slots(&slot, {1});
        lora_forward(serial_executor{}, plan, x.view(),
                     lora_batch<float>{a.view(), b.view(), slots}, 0.5, y.view(), hidden.view());
        lora_forward(serial_executor{}, plan, x.view(),
                     lora_batch<float>{far_a.view(), far_b.view(), slots}, 0.5, far_y.view(),
                     hidden.view());
        CHECK(compare_bitwise(far_y.view(), y.view()));
    }
}

TEST_CASE("a batch of more than 2^31 elements") {
    if (skipped()) return;
    // Row 32768 of 65536 features begins at element 2^31.
    constexpr index_t rows = 33000;
    constexpr index_t features = 65536;
    const std::vector<index_t> of_task{0, 1, 32767, 32768, 32999};
    tensor<int, 1> tasks({rows}), near_tasks({5});
    for (int& task : tasks.values())
        task = -1;
    for (index_t i = 0; i < 5; ++i)
        tasks(of_task[static_cast<std::size_t>(i)]) = near_tasks(i) = static_cast<int>(i % 2);
    batch_plan plan, near_plan;
    plan.assign_rows(tasks.view());
    near_plan.assign_rows(near_tasks.view());

    routed_problem<plain> p({5, 2, 1, 2, features, features, 1}, near_plan);
    const sparse_tensor<float, 2> x({rows, features}), y({rows, features}), d_y({rows, features});
    const sparse_tensor<float, 2> d_x({rows, features});
    const auto row_of = [&](const auto& tensor, index_t i) {
        return tensor.view().slice(0, of_task[static_cast<std::size_t>(i)]);
    };
    for (index_t i = 0; i < 5; ++i) {
        transform(p.x.view().slice(0, i), row_of(x, i), same);
        transform(p.y.view().slice(0, i), row_of(y, i), same);
        transform(p.y.view().slice(0, i), row_of(d_y, i), same);
        transform(p.d_x.view().slice(0, i), row_of(d_x, i), same);
    }
    auto d_a = copy_as<float>(p.d_a.view());
    auto d_b = copy_as<float>(p.d_b.view());
    auto d_weights = copy_as<float>(p.d_weights.view());
    owned_workspace memory(routed_lora_state_size<float>(plan, p.shape()));
    workspace state_memory = memory;
    const auto state = take_routed_lora_state<float>(state_memory, plan, p.shape());
    owned_workspace scratch(routed_lora_backward_workspace_size<float>(plan, p.shape()));
    routed_lora_forward(serial_executor{}, plan, x.view(), p.inventory(), p.weights.view(), p.scale,
                        y.view(), state);
    routed_lora_backward(serial_executor{}, plan, x.view(), p.inventory(), p.weights.view(),
                         p.scale, state, d_y.view(), d_x.view(),
                         lora_inventory<float>{d_a.view(), d_b.view()}, d_weights.view(), scratch);
    p.prepare_backward();
    p.backward();
    p.forward();
    for (index_t i = 0; i < 5; ++i) {
        CHECK(compare_bitwise(row_of(y, i), p.y.view().slice(0, i)));
        CHECK(compare_bitwise(row_of(d_x, i), p.d_x.view().slice(0, i)));
    }
    CHECK(compare_bitwise(d_a.view(), p.d_a.view()));
    CHECK(compare_bitwise(d_b.view(), p.d_b.view()));
    CHECK(compare_bitwise(d_weights.view(), p.d_weights.view()));
}

TEST_CASE("an inventory of more than 2^31 elements, of which few modules are used" *
          long_if_checked()) {
    if (skipped()) return;
    constexpr index_t modules = 1024;
    constexpr index_t in = 65536;
    constexpr index_t rank = 33; // 2.2 10^9 elements of a
    const std::vector<index_t> used{0, 1000, 1023};
    routed_problem<plain> p({4, 2, 1, 3, in, 3, rank});
    const sparse_tensor<float, 4> a({1, modules, in, rank}), d_a({1, modules, in, rank});
    const sparse_tensor<float, 4> b({1, modules, rank, 3}), d_b({1, modules, rank, 3});
    tensor<float, 3> weights({p.plan.entries(), 1, modules});
    const auto of_module = [&](const auto& tensor, index_t i) {
        return tensor.view().slice(0, 0).slice(0, used[static_cast<std::size_t>(i)]);
    };
    for (index_t i = 0; i < 3; ++i) {
        transform(p.a.view().slice(0, 0).slice(0, i), of_module(a, i), same);
        transform(p.b.view().slice(0, 0).slice(0, i), of_module(b, i), same);
        transform(p.d_a.view().slice(0, 0).slice(0, i), of_module(d_a, i), same);
        transform(p.d_b.view().slice(0, 0).slice(0, i), of_module(d_b, i), same);
        // Of one module each: sums over eight modules at a time are not those of three at once.
        for (index_t n = 0; n < p.plan.entries(); ++n) {
            p.weights(n, 0, i) = i == (n + 1) % 3 ? 0.75F : 0.F;
            weights(n, 0, used[static_cast<std::size_t>(i)]) = p.weights(n, 0, i);
        }
    }
    auto y = copy_as<float>(p.y.view());
    const auto d_y = copy_as<float>(p.y.view());
    const lora_inventory<float> inventory{a.view(), b.view()};
    routed_lora_forward(serial_executor{}, p.plan, p.x.view(), inventory, weights.view(), p.scale,
                        y.view(), p.state());
    routed_lora_backward(serial_executor{}, p.plan, p.x.view(), inventory, weights.view(), p.scale,
                         p.state(), d_y.view(), tensor_view<float, 2>{},
                         lora_inventory<float>{d_a.view(), d_b.view()}, tensor_view<float, 3>{},
                         p.scratch());
    p.prepare_backward();
    p.backward();
    p.forward();
    CHECK(compare_bitwise(y.view(), p.y.view()));
    for (index_t i = 0; i < 3; ++i) {
        CHECK(compare_bitwise(of_module(d_a, i), p.d_a.view().slice(0, 0).slice(0, i)));
        CHECK(compare_bitwise(of_module(d_b, i), p.d_b.view().slice(0, 0).slice(0, i)));
    }
}

TEST_CASE("a table of more than 2^31 logits") {
    if (skipped()) return;
    const std::vector<index_t> used{0, 65535, 65536, 69999}; // task 65536 begins at 2^31
    const sparse_tensor<float, 3> logits({70000, 32, 1024}), d_logits({70000, 32, 1024});
    tensor<float, 3> near({4, 32, 1024}), d_near(near.extents());
    tensor<float, 3> weights(near.extents()), near_weights(near.extents());
    tensor<float, 3> d_weights(near.extents());
    random_source(3).fill(near.view(), 4);
    random_source(4).fill(d_weights.view());
    const auto of_task = [&](const auto& table, index_t i) {
        return table.view().slice(0, used[static_cast<std::size_t>(i)]);
    };
    std::vector<index_t> near_tasks;
    for (index_t i = 0; i < 4; ++i) {
        transform(near.view().slice(0, i), of_task(logits, i), same);
        near_tasks.push_back(i);
    }
    const auto run = [&](const auto& table, const std::vector<index_t>& tasks, const auto& to,
                         const auto& d_table) {
        const tensor_view<const index_t, 1> ids(tasks.data(), {4});
        const routing_rule rule{sigmoid_gate{}};
        router_forward(serial_executor{}, table, ids, rule, to);
        router_backward(serial_executor{}, table, ids, rule, d_weights.view(), d_table);
    };
    run(logits.view(), used, weights.view(), d_logits.view());
    run(near.view(), near_tasks, near_weights.view(), d_near.view());
    CHECK(compare_bitwise(weights.view(), near_weights.view()));
    for (index_t i = 0; i < 4; ++i)
        CHECK(compare_bitwise(of_task(d_logits, i), d_near.view().slice(0, i)));
}

TEST_CASE("the router reaches far along every axis") {
    if (skipped()) return;
    tensor<float, 3> logits({3, 2, 4}), uniforms({3, 2, 4}), weights({3, 2, 4});
    tensor<float, 3> d_weights({3, 2, 4}), d_logits({3, 2, 4});
    random_source random(9);
    random.fill(logits.view(), 3);
    random.fill(uniforms.view(), 0.1, 0.9);
    random.fill(d_weights.view());
    const index_t ids[] = {2, 0, 1};
    const tensor_view<const index_t, 1> tasks(ids, {3});
    const auto run = [&](const auto& l, const auto& u, const auto& w, const auto& d_w,
                         const auto& d_l) {
        const routing_rule rule{gumbel_sigmoid_gate{u, 0.5}};
        router_forward(serial_executor{}, l, tasks, rule, w);
        router_backward(serial_executor{}, l, tasks, rule, d_w, d_l);
    };
    for (std::size_t axis = 0; axis < 3; ++axis) {
        CAPTURE(axis);
        const far_copy l(logits.view(), axis);
        const far_copy u(uniforms.view(), axis);
        const far_copy w(weights.view(), axis);
        tensor<float, 3> d_l_near(d_logits.extents());
        const far_copy d_w(d_weights.view(), axis);
        const far_copy d_l(d_l_near.view(), axis);
        run(l.view(), u.view(), w.view(), d_w.view(), d_l.view());
        run(logits.view(), uniforms.view(), weights.view(), d_weights.view(), d_l_near.view());
        CHECK(compare_bitwise(w.view(), weights.view()));
        CHECK(compare_bitwise(d_l.view(), d_l_near.view()));
    }
}

TEST_CASE("a workspace of which much more than 2^32 bytes are taken") {
    if (skipped()) return;
    routed_problem<plain> p({7, 2, 2, 3, 5, 9, 3}), want({7, 2, 2, 3, 5, 9, 3});
    constexpr index_t before = (index_t(1) << 31) + 5; // elements
    const std::size_t needed = static_cast<std::size_t>(before) * sizeof(float) + 64 +
                               p.state_memory.size() + p.scratch_memory.size();
    const sparse_memory memory(needed);
    workspace rest(memory.data(), memory.size());
    const auto first = rest.take<float, 1>({before});
    // Where it begins, and how much of it there is.
    CHECK(reinterpret_cast<std::byte*>(first.data()) - memory.data() <= 64);
    CHECK(rest.used() >= static_cast<std::size_t>(before) * sizeof(float));
    first(before - 1) = 1;
    const auto state = take_routed_lora_state<float>(rest, p.plan, p.shape());
    const auto d_y = copy_as<float>(p.y.view());
    routed_lora_forward(serial_executor{}, p.plan, p.x.view(), p.inventory(), p.weights.view(),
                        p.scale, p.y.view(), state);
    routed_lora_backward(serial_executor{}, p.plan, p.x.view(), p.inventory(), p.weights.view(),
                         p.scale, state, d_y.view(), p.d_x.view(), p.d_inventory(),
                         p.d_weights.view(), rest);
    CHECK(first(before - 1) == 1);
    want.prepare_backward();
    want.backward();
    check_same_gradients(p, want);
}
