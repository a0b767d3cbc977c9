// Elements that lie further than 2^31 elements and 2^32 bytes from the first: by strides along each
// axis in turn, and in dense tensors of more than 2^31 elements. Only pages that are touched exist.
// The results are those of the same numbers close together, to the last bit (d_weights but for the
// order of their sums).

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/lora.hpp>
#include <mhr/lora/output_mixed_lora.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/routing/router.hpp>
#include <mhr/serving/merge.hpp>

#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/guarded_tensor.hpp"
#include "support/ia3_problem.hpp"
#include "support/layer_checks.hpp"
#include "support/layer_problem.hpp"
#include "support/long_cases.hpp"
#include "support/random_tensor.hpp"
#include "support/sparse_memory.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr element_type f32 = element_type::f32;
constexpr index_t far = (index_t(1) << 31) + 40; // elements, of 2 bytes or more

/// Makes a tensor of the same extents that is dense but along one axis (counted on from the first
/// after the last), where neighbours are far from each other.
template <std::size_t Rank>
tensor_axes<Rank> stretched(const std::array<index_t, Rank>& extents, std::size_t axis) {
    axis %= Rank;
    auto near = extents;
    near[axis] = 1;
    auto axes = tensor_axes<Rank>::row_major(near);
    axes.extents = extents;
    axes.strides[axis] = far;
    return axes;
}

/// A copy with such strides.
template <std::size_t Rank>
struct far_copy : sparse_tensor<Rank> {
    far_copy(const tensor_ref<Rank>& from, std::size_t axis)
        : sparse_tensor<Rank>(stretched(from.extents(), axis), from.type()) {
        copy_elements_of<Rank>(from, this->ref());
    }
    far_copy(guarded_tensor<Rank>& from, std::size_t axis) : far_copy(from.ref(), axis) {}
    template <class T>
    far_copy(tensor<T, Rank>& from, std::size_t axis)
        : far_copy(tensor_ref<Rank>(from.view()), axis) {}
};

/// A layer's tensors far away, and what they become.
struct far_layer {
    layer_problem& near;
    far_copy<2> x, y, d_y, d_x;
    far_copy<4> a, b, d_a, d_b;
    far_copy<3> weights, d_weights;

    far_layer(layer_problem& p, std::size_t axis)
        : near(p), x(p.x, axis), y(p.y, axis), d_y(p.d_y, axis), d_x(p.d_x, axis), a(p.a, axis),
          b(p.b, axis), d_a(p.d_a, axis), d_b(p.d_b, axis), weights(p.weights, axis),
          d_weights(p.d_weights, axis) {}

    [[nodiscard]] routed_lora layer() const { return {a, b, weights, near.scale}; }
    [[nodiscard]] routed_lora_gradients gradients() const { return {d_x, d_a, d_b, d_weights}; }

    /// The results are those of the near ones. (The gradient of weights is summed in the order in
    /// which the matrices are walked through.)
    void check() const {
        CHECK(compare_bitwise(y.ref(), near.y.ref()));
        CHECK(compare_bitwise(d_x.ref(), near.d_x.ref()));
        CHECK(compare_bitwise(d_a.ref(), near.d_a.ref()));
        CHECK(compare_bitwise(d_b.ref(), near.d_b.ref()));
        CHECK(compare(d_weights.ref(), values_as<double>(near.d_weights.ref()).view(),
                      within(f32, 64)));
    }
};

/// True if these tests cannot run.
bool skipped() {
    const std::string reason = sparse_memory::missing();
    if (!reason.empty()) MESSAGE(reason);
    return !reason.empty();
}

} // namespace

TEST_CASE("routed LoRA reaches far along every axis") {
    if (skipped()) return;
    for (const layer_types& types : {layer_types{}, of_16_bits})
        for (std::size_t axis = 0; axis < 4; ++axis) {
            CAPTURE(axis);
            layer_problem p({7, 2, 2, 3, 5, 9, 3}, types);
            const far_layer away(p, axis);
            const auto near = p.state();
            const far_copy<3> mixed_a(near.mixed.a, axis), mixed_b(near.mixed.b, axis);
            const far_copy<2> hidden(near.hidden, axis);
            const routed_lora_state state{{mixed_a, mixed_b}, hidden};
            routed_lora_forward({p.plan}, away.layer(), away.x, away.y, state);
            routed_lora_backward({p.plan}, away.layer(), away.x, away.d_y, state, away.gradients(),
                                 p.scratch_memory);
            p.run();
            CHECK(compare_bitwise(mixed_a.ref(), near.mixed.a));
            CHECK(compare_bitwise(mixed_b.ref(), near.mixed.b));
            away.check();
        }
}

TEST_CASE("routed (IA)3 reaches far along every axis") {
    if (skipped()) return;
    for (std::size_t axis = 0; axis < 3; ++axis) {
        CAPTURE(axis);
        ia3_problem p({7, 2, 2, 3, 9}, of_16_bits);
        p.scales.fill(0);
        const far_copy<2> x(p.x, axis), y(p.y, axis), d_y(p.d_y, axis), d_x(p.d_x, axis);
        const far_copy<2> scales(p.scales, axis);
        const far_copy<3> weights(p.weights, axis), inventory(p.inventory, axis);
        const far_copy<3> d_inventory(p.d_inventory, axis), d_weights(p.d_weights, axis);
        const routed_ia3 layer{inventory, weights};
        routed_ia3_forward({p.plan}, layer, x, y, {scales});
        routed_ia3_backward({p.plan}, layer, x, d_y, {scales}, {d_x, d_inventory, d_weights},
                            p.scratch_memory);
        p.forward();
        p.backward();
        CHECK(compare_bitwise(scales.ref(), p.scales.ref()));
        CHECK(compare_bitwise(y.ref(), p.y.ref()));
        CHECK(compare_bitwise(d_x.ref(), p.d_x.ref()));
        CHECK(compare_bitwise(d_inventory.ref(), p.d_inventory.ref()));
        CHECK(compare_bitwise(d_weights.ref(), p.d_weights.ref()));
    }
}

TEST_CASE("LoRA with mixed outputs reaches far along every axis") {
    if (skipped()) return;
    for (std::size_t axis = 0; axis < 4; ++axis) {
        CAPTURE(axis);
        layer_problem p({7, 2, 1, 3, 9, 5, 3});
        const far_layer away(p, axis);
        tensor<float, 3> hidden_near({7, 3, 3});
        const far_copy<3> hidden(hidden_near, axis);
        const batch rows{p.plan};
        poisoned_memory memory(output_mixed_lora_backward_workspace_size(rows, p.layer()));
        output_mixed_lora_forward(rows, away.layer(), away.x, away.y, {hidden});
        output_mixed_lora_backward(rows, away.layer(), away.x, away.d_y, {hidden}, away.gradients(),
                                   memory);
        output_mixed_lora_forward(rows, p.layer(), p.x, p.y, {hidden_near.view()});
        output_mixed_lora_backward(rows, p.layer(), p.x, p.d_y, {hidden_near.view()}, p.gradients(),
                                   memory);
        away.check();
        CHECK(compare_bitwise(away.d_weights.ref(), p.d_weights.ref()));
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
        const far_copy<3> far_a(a, axis), far_b(b, axis);
        const far_copy<2> far_weight(weight, axis), far_y(y, axis);
        const auto adapter_of = [](const tensor_ref<3>& all_a, const tensor_ref<3>& all_b) {
            return lora{all_a.slice(0, 2), all_b.slice(0, 2), 0.5};
        };
        const lora near = adapter_of(a.view(), b.view()), away = adapter_of(far_a, far_b);
        merge_lora({}, near, weight.view());
        merge_lora({}, away, far_weight);
        CHECK(compare_bitwise(far_weight.ref(), tensor_ref<2>(weight.view())));

        // One adapter, and the last of a stack, for rows whose task ids lie far apart, too.
        const sparse_memory ids(static_cast<std::size_t>(3 * far + 1) * sizeof(std::int64_t));
        batch_plan plan;
        plan.assign_rows(tensor_view<const std::int64_t, 1>(
            static_cast<const std::int64_t*>(static_cast<const void*>(ids.data())), {4}, {far}));
        REQUIRE(plan.entries() == 1);
        lora_forward({plan}, near, x.view(), y.view(), {hidden.view()});
        lora_forward({plan}, away, x.view(), far_y, {hidden.view()});
        lora_forward({plan},
                     lora_list(const_tensor_ref<3>(a.view()).block(0, 2, 1),
                               const_tensor_ref<3>(b.view()).block(0, 2, 1), 0.5),
                     x.view(), y.view(), {hidden.view()});
        lora_forward({plan},
                     lora_list(const_tensor_ref<3>(far_a.ref()).block(0, 2, 1),
                               const_tensor_ref<3>(far_b.ref()).block(0, 2, 1), 0.5),
                     x.view(), far_y, {hidden.view()});
        CHECK(compare_bitwise(far_y.ref(), tensor_ref<2>(y.view())));
    }
}

TEST_CASE("a batch of more than 2^31 elements") {
    if (skipped()) return;
    // Row 32768 of 65536 features begins at element 2^31.
    constexpr index_t rows = 33000;
    constexpr index_t features = 65536;
    const std::vector<index_t> of_task{0, 1, 32767, 32768, 32999};
    std::vector<std::int64_t> tasks(rows, no_task), near_tasks;
    for (std::size_t i = 0; i < 5; ++i) {
        near_tasks.push_back(static_cast<std::int64_t>(i % 2));
        tasks[static_cast<std::size_t>(of_task[i])] = near_tasks.back();
    }
    const batch_plan plan = plan_of(tasks);
    layer_problem p({5, 2, 1, 2, features, features, 1}, plan_of(near_tasks));
    const sparse_tensor<2> x(f32, {rows, features}), y(f32, {rows, features});
    const sparse_tensor<2> d_y(f32, {rows, features}), d_x(f32, {rows, features});
    const auto row_of = [&](const sparse_tensor<2>& tensor, index_t i) {
        return tensor.ref().slice(0, of_task[static_cast<std::size_t>(i)]);
    };
    for (index_t i = 0; i < 5; ++i) {
        copy_elements_of<1>(p.x.ref().slice(0, i), row_of(x, i));
        copy_elements_of<1>(p.y.ref().slice(0, i), row_of(y, i));
        copy_elements_of<1>(p.d_y.ref().slice(0, i), row_of(d_y, i));
        copy_elements_of<1>(p.d_x.ref().slice(0, i), row_of(d_x, i));
    }
    layer_problem away(p.s, p.plan); // its inventory and its gradients are as those of p
    owned_workspace memory(routed_lora_state_size({plan}, p.layer()));
    workspace state_memory = memory;
    const auto state = take_routed_lora_state(state_memory, {plan}, p.layer());
    owned_workspace scratch(routed_lora_backward_workspace_size({plan}, p.layer()));
    routed_lora_forward({plan}, away.layer(), x, y, state);
    routed_lora_backward({plan}, away.layer(), x, d_y, state,
                         {d_x, away.d_a, away.d_b, away.d_weights}, scratch);
    p.run();
    for (index_t i = 0; i < 5; ++i) {
        CHECK(compare_bitwise(row_of(y, i), p.y.ref().slice(0, i)));
        CHECK(compare_bitwise(row_of(d_x, i), p.d_x.ref().slice(0, i)));
    }
    CHECK(compare_bitwise(away.d_a.ref(), p.d_a.ref()));
    CHECK(compare_bitwise(away.d_b.ref(), p.d_b.ref()));
    CHECK(compare_bitwise(away.d_weights.ref(), p.d_weights.ref()));
}

TEST_CASE("an inventory of more than 2^31 elements, of which few modules are used" *
          long_if_checked()) {
    if (skipped()) return;
    constexpr index_t modules = 1024;
    constexpr index_t in = 65536;
    constexpr index_t rank = 33; // 2.2 10^9 elements of a
    const std::vector<index_t> used{0, 1000, 1023};
    layer_problem p({4, 2, 1, 3, in, 3, rank});
    const sparse_tensor<4> a(f32, {1, modules, in, rank}), d_a(f32, {1, modules, in, rank});
    const sparse_tensor<4> b(f32, {1, modules, rank, 3}), d_b(f32, {1, modules, rank, 3});
    tensor<float, 3> weights({p.plan.entries(), 1, modules});
    const auto of_module = [&](const sparse_tensor<4>& tensor, index_t i) {
        return tensor.ref().slice(0, 0).slice(0, used[static_cast<std::size_t>(i)]);
    };
    const auto near_module = [](guarded_tensor<4>& tensor, index_t i) {
        return tensor.ref().slice(0, 0).slice(0, i);
    };
    for (index_t i = 0; i < 3; ++i) {
        copy_elements_of<2>(near_module(p.a, i), of_module(a, i));
        copy_elements_of<2>(near_module(p.b, i), of_module(b, i));
        copy_elements_of<2>(near_module(p.d_a, i), of_module(d_a, i));
        copy_elements_of<2>(near_module(p.d_b, i), of_module(d_b, i));
        // Each has one module, since sums over eight modules at a time are not those of three at
        // once.
        for (index_t n = 0; n < p.plan.entries(); ++n) {
            const float weight = i == (n + 1) % 3 ? 0.75F : 0.F;
            set_element(p.weights.ref(), {n, 0, i}, weight);
            weights(n, 0, used[static_cast<std::size_t>(i)]) = weight;
        }
    }
    layer_problem away(p.s, p.plan); // its y is as that of p
    const routed_lora layer{a, b, weights.view(), p.scale};
    routed_lora_forward({p.plan}, layer, p.x, away.y, p.state());
    routed_lora_backward({p.plan}, layer, p.x, p.d_y, p.state(), {{}, d_a, d_b, {}},
                         p.scratch_memory);
    p.run();
    CHECK(compare_bitwise(away.y.ref(), p.y.ref()));
    for (index_t i = 0; i < 3; ++i) {
        CHECK(compare_bitwise(of_module(d_a, i), near_module(p.d_a, i)));
        CHECK(compare_bitwise(of_module(d_b, i), near_module(p.d_b, i)));
    }
}

TEST_CASE("a table of more than 2^31 logits") {
    if (skipped()) return;
    const std::vector<index_t> used{0, 65535, 65536, 69999}; // task 65536 begins at 2^31
    const std::vector<index_t> near_tasks{0, 1, 2, 3};
    const sparse_tensor<3> logits(f32, {70000, 32, 1024}), d_logits(f32, {70000, 32, 1024});
    guarded_tensor<3> near(f32, {4, 32, 1024}), d_near(f32, near.extents());
    guarded_tensor<3> weights(f32, near.extents()), near_weights(f32, near.extents());
    guarded_tensor<3> d_weights(f32, near.extents());
    near.fill(random_source(3), -4, 4);
    d_near.fill(0);
    d_weights.fill(random_source(4));
    const auto of_task = [&](const sparse_tensor<3>& table, index_t i) {
        return table.ref().slice(0, used[static_cast<std::size_t>(i)]);
    };
    for (index_t i = 0; i < 4; ++i)
        copy_elements_of<2>(near.ref().slice(0, i), of_task(logits, i));
    const auto run = [&](const tensor_ref<3>& table, const std::vector<index_t>& tasks,
                         const tensor_ref<3>& to, const tensor_ref<3>& d_table) {
        const tensor_view<const index_t, 1> ids(tasks.data(), {4});
        const routing_rule rule{sigmoid_gate{}};
        router_forward({}, table, ids, rule, to);
        router_backward({}, table, ids, rule, d_weights, d_table);
    };
    run(logits, used, weights, d_logits);
    run(near, near_tasks, near_weights, d_near);
    CHECK(compare_bitwise(weights.ref(), near_weights.ref()));
    for (index_t i = 0; i < 4; ++i)
        CHECK(compare_bitwise(of_task(d_logits, i), d_near.ref().slice(0, i)));
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
    const auto run = [&](const tensor_ref<3>& l, const tensor_ref<3>& u, const tensor_ref<3>& w,
                         const tensor_ref<3>& d_w, const tensor_ref<3>& d_l) {
        const routing_rule rule{gumbel_sigmoid_gate{u, 0.5}};
        router_forward({}, l, tasks, rule, w);
        router_backward({}, l, tasks, rule, d_w, d_l);
    };
    for (std::size_t axis = 0; axis < 3; ++axis) {
        CAPTURE(axis);
        const far_copy<3> l(logits, axis), u(uniforms, axis), w(weights, axis);
        tensor<float, 3> d_l_near(d_logits.extents());
        const far_copy<3> d_w(d_weights, axis), d_l(d_l_near, axis);
        run(l, u, w, d_w, d_l);
        run(logits.view(), uniforms.view(), weights.view(), d_weights.view(), d_l_near.view());
        CHECK(compare_bitwise(w.ref(), tensor_ref<3>(weights.view())));
        CHECK(compare_bitwise(d_l.ref(), tensor_ref<3>(d_l_near.view())));
    }
}

TEST_CASE("a workspace of which much more than 2^32 bytes are taken") {
    if (skipped()) return;
    layer_problem p({7, 2, 2, 3, 5, 9, 3}), want({7, 2, 2, 3, 5, 9, 3});
    constexpr index_t before = (index_t(1) << 31) + 5; // elements
    const std::size_t needed = static_cast<std::size_t>(before) * sizeof(float) + 64 +
                               p.state_memory.bytes.size() + p.scratch_memory.bytes.size();
    const sparse_memory memory(needed);
    workspace rest(memory.data(), memory.size());
    const auto first = rest.take<float, 1>({before});
    // Where it begins, and how much of it there is.
    CHECK(reinterpret_cast<std::byte*>(first.data()) - memory.data() <= 64);
    CHECK(rest.used() >= static_cast<std::size_t>(before) * sizeof(float));
    first(before - 1) = 1;
    const auto state = take_routed_lora_state(rest, {p.plan}, p.layer());
    routed_lora_forward({p.plan}, p.layer(), p.x, p.y, state);
    routed_lora_backward({p.plan}, p.layer(), p.x, p.d_y, state, p.gradients(), rest);
    CHECK(first(before - 1) == 1);
    want.run();
    check_same(p, want);
}
