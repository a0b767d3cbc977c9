#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/output_mixed_lora.hpp>
#include <mhr/reference/output_mixed_lora.hpp>

#include "support/allocation_counter.hpp"
#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/gradient_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_problem.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

template <class X, class M, class W, class Y, class DX = X, class DM = M, class DW = W>
using storage = routed_storage<X, M, W, Y, DX, DM, DW>;
template <class T>
using all_of = storage<T, T, T, T>;
using plain = all_of<float>;
using bf16 = Eigen::bfloat16;
using half = Eigen::half;
#define OUTPUT_MIXED_STORAGES                                                                      \
    plain, storage<half, bf16, float, half, float, float, float> MHR_TEST_ALSO(                    \
               all_of<double>, all_of<bf16>, all_of<half>, storage<bf16, float, float, bf16>,      \
               storage<float, half, double, float>, storage<float, float, float, double>)

// Every size once 1, more tasks than rows, round the tiles of 16, 64 and 128; one head always.
constexpr routed_sizes shapes[] = {
    {1, 1, 1, 1, 1, 1, 1},    {9, 2, 1, 3, 4, 5, 2},   {40, 1, 1, 5, 8, 65, 16},
    {5, 9, 1, 4, 17, 6, 3},   {33, 3, 1, 1, 64, 7, 4}, {7, 2, 1, 30, 3, 7, 17},
    {6, 2, 1, 2, 129, 1, 33}, {4, 2, 1, 2, 5, 257, 5}, {17, 1, 1, 2, 1, 128, 15},
};
constexpr routed_sizes usual{21, 3, 1, 4, 5, 7, 3};

/// One call with all its buffers. A fifth of the weights of a routed_problem are 0.
template <class T>
struct problem : routed_problem<T> {
    guarded_buffer<typename T::A, 3> hidden;
    std::vector<std::byte> memory; // exactly what is asked for, full of NaN

    explicit problem(const routed_sizes& sizes, layout of_rows = layout::row_major,
                     layout of_inventory = layout::row_major,
                     layout of_gradients = layout::row_major)
        : problem(sizes, random_plan(sizes.rows, sizes.tasks), of_rows, of_inventory,
                  of_gradients) {}
    problem(const routed_sizes& sizes, batch_plan plan_, layout of_rows = layout::row_major,
            layout of_inventory = layout::row_major, layout of_gradients = layout::row_major)
        : routed_problem<T>(sizes, std::move(plan_), of_rows, of_inventory, of_gradients),
          hidden({sizes.rows, sizes.modules, sizes.rank}, of_rows),
          memory(
              output_mixed_lora_backward_workspace_size<typename T::Sum>(this->plan, this->shape()),
              std::byte{0xff}) {}

    workspace scratch() { return {memory.data(), memory.size()}; }

    void forward(executor_ref executor = serial_executor{}) {
        output_mixed_lora_forward(executor, this->plan, this->x.view(), this->inventory(),
                                  this->weights.view(), this->scale, this->y.view(), hidden.view());
    }
    void backward(executor_ref executor = serial_executor{}) {
        output_mixed_lora_backward(executor, this->plan, this->x.view(), this->inventory(),
                                   this->weights.view(), this->scale, hidden.view(), this->y.view(),
                                   this->d_x.view(), this->d_inventory(), this->d_weights.view(),
                                   scratch());
    }
    /// The hidden of a forward, but not its y, which stays a random gradient.
    void prepare_backward() {
        const auto d_y = copy_as<typename T::Y>(this->y.view());
        forward();
        transform(d_y.view(), this->y.view(), [](const auto& value) { return value; });
    }
    [[nodiscard]] bool all_intact() const { return this->intact() && hidden.intact(); }
};

/// The oracle's results, or their magnitudes.
template <class S, class T, class Convert>
routed_expectation<S> oracle_with(problem<T>& p, S scale, Convert&& convert) {
    const auto entries = entry_of_row(p.plan);
    const auto x = convert(p.x);
    const auto a = convert(p.a);
    const auto b = convert(p.b);
    const auto weights = convert(p.weights);
    const auto d_y = convert(p.y);
    routed_expectation<S> e{d_y, convert(p.d_x), convert(p.d_a), convert(p.d_b),
                            convert(p.d_weights)};
    const auto a0 = a.const_view().slice(0, 0);
    const auto b0 = b.const_view().slice(0, 0);
    const auto w0 = weights.const_view().slice(1, 0);
    reference::output_mixed_lora_forward(entries.const_view(), x.const_view(), a0, b0, w0, scale,
                                         e.y.view());
    reference::output_mixed_lora_backward(entries.const_view(), x.const_view(), a0, b0, w0, scale,
                                          d_y.const_view(), e.d_x.view(), e.d_a.view().slice(0, 0),
                                          e.d_b.view().slice(0, 0), e.d_weights.view().slice(1, 0));
    return e;
}
template <class S, class T>
routed_expectation<S> oracle(problem<T>& p) {
    return oracle_with<S>(p, static_cast<S>(p.scale),
                          [](auto& buffer) { return copy_as<S>(buffer.view()); });
}
template <class S, class T>
routed_expectation<S> oracle_of_magnitudes(problem<T>& p) {
    return oracle_with<S>(p, std::abs(static_cast<S>(p.scale)),
                          [](auto& buffer) { return magnitudes_as<S>(buffer.view()); });
}

/// n products summed one after the other are within n/2 epsilon of their magnitudes; some more for
/// the products with intermediate results.
template <class A>
error_bound sum_of(index_t n) {
    return within<A>(static_cast<double>(n) / 2 + 4);
}

template <class T>
void check_against_oracle(problem<T>& p) {
    using S = typename T::S;
    using A = typename T::A;
    const routed_sizes& s = p.s;
    const auto want = oracle<S>(p);
    const auto size = oracle_of_magnitudes<S>(p);
    const index_t hidden = s.modules * s.rank;
    p.prepare_backward();
    p.backward();
    CHECK(compare(p.d_x.view(), want.d_x.view(), size.d_x.view(), sum_of<A>(s.out() + hidden)));
    CHECK(compare(p.d_a.view(), want.d_a.view(), size.d_a.view(), sum_of<A>(s.out() + s.rows)));
    CHECK(compare(p.d_b.view(), want.d_b.view(), size.d_b.view(), sum_of<A>(s.in() + s.rows)));
    if (p.plan.entries() > 0)
        CHECK(compare(p.d_weights.view(), want.d_weights.view(), size.d_weights.view(),
                      sum_of<A>(s.in() + s.out() + s.rows + s.rank)));
    p.forward();
    CHECK(compare(p.y.view(), want.y.view(), size.y.view(), sum_of<A>(s.in() + hidden)));
    CHECK(p.all_intact());
}

template <class T>
void check_same_gradients(problem<T>& got, problem<T>& want) {
    CHECK(compare_bitwise(got.d_x.view(), want.d_x.view()));
    CHECK(compare_bitwise(got.d_a.view(), want.d_a.view()));
    CHECK(compare_bitwise(got.d_b.view(), want.d_b.view()));
    CHECK(compare_bitwise(got.d_weights.view(), want.d_weights.view()));
}

} // namespace

TEST_CASE_TEMPLATE("LoRA with mixed outputs agrees with the oracle", T, OUTPUT_MIXED_STORAGES) {
    for (const routed_sizes& s : shapes) {
        CAPTURE(s.rows);
        CAPTURE(s.modules);
        CAPTURE(s.in_block);
        CAPTURE(s.out_block);
        CAPTURE(s.rank);
        problem<T> p(s);
        check_against_oracle(p);
    }
}

TEST_CASE_TEMPLATE("LoRA with mixed outputs works in every layout", T, plain, all_of<bf16>) {
    const routed_sizes s{9, 2, 1, 2, 5, 67, 3};
    for (layout of_rows : all_layouts)
        for (layout of_inventory : all_layouts)
            for (layout of_gradients : all_layouts) {
                CAPTURE(name_of(of_rows));
                CAPTURE(name_of(of_inventory));
                CAPTURE(name_of(of_gradients));
                problem<T> p(s, of_rows, of_inventory, of_gradients);
                check_against_oracle(p);
            }
}

TEST_CASE("y of 16 bits is rounded once, not once for each module") {
    // 64 modules, each of which adds 1/4 of a step of y: rounded one by one, all would be lost.
    batch_plan plan;
    plan.assign_single_task(1);
    problem<all_of<bf16>> p({1, 1, 1, 64, 1, 1, 1}, plan);
    p.x.fill(bf16(1.F));
    p.a.fill(bf16(1.F));
    p.b.fill(bf16(1.F));
    p.weights.fill(bf16(1.F));
    p.scale = 0x1p-9;
    p.y.fill(bf16(1.F));
    p.d_x.fill(bf16(1.F));
    p.forward();
    CHECK(static_cast<float>(p.y(0, 0)) == 1.125F);
    p.y.fill(bf16(1.F));
    p.backward();
    CHECK(static_cast<float>(p.d_x(0, 0)) == 1.125F);
}

TEST_CASE("gradients of modules are rounded once, not once for each task") {
    batch_plan plan;
    tensor<int, 1> tasks({64});
    for (int i = 0; i < 64; ++i)
        tasks(i) = i;
    plan.assign_rows(tasks.view());
    problem<all_of<bf16>> p({64, 64, 1, 1, 1, 1, 1}, plan);
    p.x.fill(bf16(1.F));
    p.a.fill(bf16(1.F));
    p.b.fill(bf16(1.F));
    p.weights.fill(bf16(1.F));
    p.y.fill(bf16(1.F));
    p.d_a.fill(bf16(1.F));
    p.d_b.fill(bf16(1.F));
    p.scale = 0x1p-9;
    p.prepare_backward();
    p.backward();
    CHECK(static_cast<float>(p.d_a(0, 0, 0, 0)) == 1.125F);
    CHECK(static_cast<float>(p.d_b(0, 0, 0, 0)) == 1.125F);
}

TEST_CASE("it equals one LoRA of rank modules * rank") {
    const routed_sizes s{20, 3, 1, 4, 9, 70, 5};
    problem<all_of<double>> p(s);
    const index_t rank = s.modules * s.rank;
    const index_t entries = p.plan.entries();
    // The modules beside each other in a, below each other in b, the weights in b.
    tensor<double, 3> a({entries, s.in(), rank}), b({entries, rank, s.out()});
    for_each_position<4>({entries, s.modules, s.in(), s.rank}, [&](const position<4>& at) {
        a(at[0], at[2], at[1] * s.rank + at[3]) = p.a(0, at[1], at[2], at[3]);
    });
    for_each_position<4>({entries, s.modules, s.rank, s.out()}, [&](const position<4>& at) {
        b(at[0], at[1] * s.rank + at[2], at[3]) =
            p.weights(at[0], 0, at[1]) * p.b(0, at[1], at[2], at[3]);
    });
    auto y = copy_as<double>(p.y.view());
    auto size = magnitudes_as<double>(p.y.view());
    for (double& value : size.values())
        value = 1;
    tensor<double, 2> hidden({s.rows, rank});
    const lora_batch<double> adapters{a.view(), b.view()};
    lora_forward(serial_executor{}, p.plan, p.x.view(), adapters, p.scale, y.view(), hidden.view());

    auto d_x = copy_as<double>(p.d_x.view());
    std::vector<std::byte> memory(
        lora_backward_workspace_size<double>(p.plan, s.in(), s.out(), rank));
    lora_backward(serial_executor{}, p.plan, p.x.view(), adapters, p.scale, hidden.view(),
                  p.y.view(), d_x.view(), lora_batch<double>{},
                  workspace(memory.data(), memory.size()));
    p.prepare_backward();
    p.backward();
    CHECK(compare(p.d_x.view(), d_x.view(), size.view().block(1, 0, s.in()), within<double>(50)));
    p.forward();
    CHECK(compare(p.y.view(), y.view(), size.view(), within<double>(50)));
}

TEST_CASE("one module of weight 1 is LoRA, to the last bit") {
    routed_sizes s = usual;
    s.modules = 1;
    s.rank = 16;
    batch_plan plan;
    plan.assign_single_task(s.rows);
    problem<plain> p(s, plan), q(s, plan);
    p.weights.fill(1);
    tensor<float, 2> hidden({s.rows, s.rank});
    const lora<float> adapter{q.a.view().slice(0, 0).slice(0, 0),
                              q.b.view().slice(0, 0).slice(0, 0)};
    const lora<float> d_adapter{q.d_a.view().slice(0, 0).slice(0, 0),
                                q.d_b.view().slice(0, 0).slice(0, 0)};
    const auto d_y = copy_as<float>(q.y.view());
    lora_forward(serial_executor{}, plan, q.x.view(), as_batch(adapter), q.scale, q.y.view(),
                 hidden.view());
    std::vector<std::byte> memory(
        lora_backward_workspace_size<float>(plan, s.in(), s.out(), s.rank));
    // A scale of a power of two may be applied anywhere.
    lora_backward(serial_executor{}, plan, q.x.view(), as_batch(adapter), 0.5, hidden.view(),
                  d_y.view(), q.d_x.view(), as_batch(d_adapter),
                  workspace(memory.data(), memory.size()));
    p.forward();
    CHECK(compare_bitwise(p.y.view(), q.y.view()));
    CHECK(compare_bitwise(p.hidden.view().slice(1, 0), hidden.view()));
    transform(d_y.view(), p.y.view(), [](float value) { return value; });
    p.scale = 0.5;
    p.backward();
    CHECK(compare_bitwise(p.d_x.view(), q.d_x.view()));
    CHECK(compare_bitwise(p.d_a.view(), q.d_a.view()));
    CHECK(compare_bitwise(p.d_b.view(), q.d_b.view()));
}

TEST_CASE("it is routed LoRA where each task has one module, and only there") {
    problem<plain> p(usual);
    routed_problem<plain> routed(usual);
    const auto choose_one = [](auto& weights) {
        weights.fill(0);
        for (index_t g = 0; g < weights.view().extent(0); ++g)
            weights(g, 0, (g + 1) % usual.modules) = 1;
    };
    choose_one(p.weights);
    choose_one(routed.weights);
    p.forward();
    routed.forward();
    CHECK(compare_bitwise(p.y.view(), routed.y.view()));

    problem<plain> mixture(usual);
    routed_problem<plain> routed_mixture(usual);
    mixture.weights.fill(0.25F);
    routed_mixture.weights.fill(0.25F);
    mixture.forward();
    routed_mixture.forward();
    tensor<float, 2> ones(mixture.y.view().extents());
    for (float& value : ones.values())
        value = 1;
    CHECK_FALSE(
        compare(mixture.y.view(), routed_mixture.y.const_view(), ones.view(), within<float>(1e4)));
}

TEST_CASE("a module of weight 0 is not read, but its weight has a gradient") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    problem<plain> p(usual), want(usual), before(usual);
    for (problem<plain>* q : {&p, &want})
        for (index_t g = 0; g < q->plan.entries(); ++g) {
            q->weights(g, 0, 1) = 0;
            q->weights(g, 0, 3) = 0;
        }
    want.d_weights.fill(0);
    want.prepare_backward();
    want.backward();
    // No gradient of those modules, one of their weights.
    for (index_t m : {1, 3}) {
        CHECK(compare_bitwise(want.d_a.view().block(1, m, 1), before.d_a.view().block(1, m, 1)));
        CHECK(compare_bitwise(want.d_b.view().block(1, m, 1), before.d_b.view().block(1, m, 1)));
        for (index_t g = 0; g < want.plan.entries(); ++g)
            CHECK(want.d_weights(g, 0, m) != 0);
    }

    for_each_position<2>({usual.in(), usual.rank},
                         [&](const position<2>& at) { p.a(0, 1, at[0], at[1]) = nan; });
    p.b(0, 3, 2, 2) = nan;
    p.hidden.fill(-1);
    p.prepare_backward();
    const auto entries = entry_of_row(p.plan);
    for_each_position(p.hidden.view().extents(), [&](const position<3>& at) {
        const bool used =
            entries(at[0]) >= 0 && !detail::is_exactly(p.weights(entries(at[0]), 0, at[1]), 0);
        CHECK(detail::is_exactly(p.hidden(at[0], at[1], at[2]), -1) == !used);
    });
    // Without d_weights, the backward does not read them either.
    output_mixed_lora_backward(serial_executor{}, p.plan, p.x.view(), p.inventory(),
                               p.weights.view(), p.scale, p.hidden.view(), p.y.view(), p.d_x.view(),
                               p.d_inventory(), tensor_view<float, 3>{}, p.scratch());
    CHECK(compare_bitwise(p.d_x.view(), want.d_x.view()));
    CHECK(compare_bitwise(p.d_a.view(), want.d_a.view()));
    CHECK(compare_bitwise(p.d_b.view(), want.d_b.view()));
}

TEST_CASE("LoRA with mixed outputs gives the same bits on every executor") {
    using T = storage<bf16, float, float, bf16>;
    const routed_sizes s{70, 4, 1, 4, 150, 140, 18};
    problem<T> gradients(s), forward(s);
    gradients.prepare_backward();
    gradients.backward();
    forward.hidden.fill(0);
    forward.forward();
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        problem<T> p(s), q(s);
        p.prepare_backward();
        p.backward(executor);
        check_same_gradients(p, gradients);
        q.hidden.fill(0); // some of it is left alone
        q.forward(executor);
        CHECK(compare_bitwise(q.y.view(), forward.y.view()));
        CHECK(compare_bitwise(q.hidden.view(), forward.hidden.view()));
    });
    for (index_t nth : {1, 3, 40}) {
        problem<T> p(s);
        for_each_share(nth, [&](executor_ref executor) { p.forward(executor); });
        CHECK(compare_bitwise(p.y.view(), forward.y.view()));
    }
}

TEST_CASE("each subset of the gradients of LoRA with mixed outputs gives the same bits") {
    problem<plain> all(usual), none(usual);
    all.prepare_backward();
    all.backward();
    for (int wanted = 0; wanted < 16; ++wanted) {
        CAPTURE(wanted);
        problem<plain> p(usual);
        p.prepare_backward();
        const bool x = (wanted & 1) != 0, a = (wanted & 2) != 0, b = (wanted & 4) != 0,
                   w = (wanted & 8) != 0;
        const tensor_view<float, 4> absent;
        output_mixed_lora_backward(
            serial_executor{}, p.plan, p.x.view(), p.inventory(), p.weights.view(), p.scale,
            p.hidden.view(), p.y.view(), x ? p.d_x.view() : tensor_view<float, 2>{},
            lora_inventory<float>{a ? p.d_a.view() : absent, b ? p.d_b.view() : absent},
            w ? p.d_weights.view() : tensor_view<float, 3>{}, p.scratch());
        CHECK(compare_bitwise(p.d_x.view(), (x ? all : none).d_x.view()));
        CHECK(compare_bitwise(p.d_a.view(), (a ? all : none).d_a.view()));
        CHECK(compare_bitwise(p.d_b.view(), (b ? all : none).d_b.view()));
        CHECK(compare_bitwise(p.d_weights.view(), (w ? all : none).d_weights.view()));
    }
}

TEST_CASE("LoRA with mixed outputs leaves rows of no task alone") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    problem<plain> p(usual), want(usual);
    const auto entries = entry_of_row(p.plan);
    index_t none = 0;
    for (index_t row = 0; row < usual.rows; ++row) {
        if (entries(row) >= 0) continue;
        ++none;
        for (index_t i = 0; i < usual.in(); ++i)
            p.x(row, i) = nan;
    }
    REQUIRE(none > 0);
    for (problem<plain>* q : {&p, &want}) {
        q->prepare_backward();
        q->backward();
    }
    check_same_gradients(p, want);
    problem<plain> before(usual);
    want.forward();
    for (index_t row = 0; row < usual.rows; ++row) {
        if (entries(row) >= 0) continue;
        CHECK(compare_bitwise(want.y.view().slice(0, row), before.y.view().slice(0, row)));
        CHECK(compare_bitwise(want.d_x.view().slice(0, row), before.d_x.view().slice(0, row)));
    }
}

TEST_CASE("LoRA with mixed outputs takes inputs with strides of 0") {
    problem<plain> dense(usual), broadcast(usual);
    dense.weights.fill(0.25F);
    dense.prepare_backward();
    dense.y.fill(0.5F);
    dense.backward();
    const float weight = 0.25F;
    const float one_half = 0.5F;
    const tensor_view<const float, 3> weights(&weight, {broadcast.plan.entries(), 1, usual.modules},
                                              {0, 0, 0});
    const tensor_view<const float, 2> d_y(&one_half, {usual.rows, usual.out()}, {0, 0});
    output_mixed_lora_forward(serial_executor{}, broadcast.plan, broadcast.x.view(),
                              broadcast.inventory(), weights, broadcast.scale, broadcast.y.view(),
                              broadcast.hidden.view());
    output_mixed_lora_backward(
        serial_executor{}, broadcast.plan, broadcast.x.view(), broadcast.inventory(), weights,
        broadcast.scale, broadcast.hidden.view(), d_y, broadcast.d_x.view(),
        broadcast.d_inventory(), broadcast.d_weights.view(), broadcast.scratch());
    check_same_gradients(broadcast, dense);
}

TEST_CASE("the gradients of LoRA with mixed outputs agree with finite differences") {
    problem<all_of<double>> p({6, 2, 1, 3, 4, 5, 2});
    p.weights(0, 0, 1) = 0;
    p.forget_gradients();
    p.prepare_backward();
    p.backward();
    const auto cotangent = copy_as<double>(p.y.view());
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
        return compare(gradient.view(), want.view(), ones.view(), error_bound{1, 1e-11, 1});
    };
    CHECK(check(p.d_x, p.x));
    CHECK(check(p.d_a, p.a));
    CHECK(check(p.d_b, p.b));
    CHECK(check(p.d_weights, p.weights));
}

TEST_CASE("LoRA with mixed outputs and an extent of 0 anywhere") {
    for (const routed_sizes& s :
         {routed_sizes{0, 1, 1, 3, 4, 5, 2}, routed_sizes{3, 1, 1, 0, 4, 5, 2},
          routed_sizes{3, 1, 1, 3, 0, 5, 2}, routed_sizes{3, 1, 1, 3, 4, 0, 2},
          routed_sizes{3, 1, 1, 3, 4, 5, 0}}) {
        CAPTURE(s.rows);
        CAPTURE(s.modules);
        CAPTURE(s.rank);
        problem<plain> p(s);
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

TEST_CASE("LoRA with mixed outputs stays inside its workspace, wherever that begins") {
    problem<plain> want(usual);
    want.prepare_backward();
    want.backward();
    for (std::size_t start : {0U, 1U, 4U, 63U}) {
        problem<plain> p(usual);
        p.prepare_backward();
        const std::size_t size = p.memory.size();
        guarded_buffer<std::byte, 1> memory({static_cast<index_t>(start + size)});
        output_mixed_lora_backward(serial_executor{}, p.plan, p.x.view(), p.inventory(),
                                   p.weights.view(), p.scale, p.hidden.view(), p.y.view(),
                                   p.d_x.view(), p.d_inventory(), p.d_weights.view(),
                                   workspace(memory.view().data() + start, size));
        CHECK(memory.intact());
        check_same_gradients(p, want);
    }
}

TEST_CASE("LoRA with mixed outputs does not allocate") {
    problem<plain> p({40, 3, 1, 4, 30, 140, 18});
    CHECK(allocations_of([&] { p.forward(); }) == 0);
    CHECK(allocations_of([&] { p.backward(); }) == 0);
}
