#include "hosts/torch/formula.hpp"

#include <c10/core/InferenceMode.h>

using namespace mhr;
using namespace mhr::torch;
using namespace mhr::test;

TEST_CASE("a batch by task or by sequence") {
    const auto by_task = make_routed_batch(ids_of(mixed_tasks), 2);
    CHECK(by_task->tasks == std::vector<std::int64_t>{0, 3, 5});
    CHECK(by_task->plan.rows() == 16);
    CHECK(by_task->plan.rows_of(1).extent(0) == 6);
    const auto by_sequence = make_routed_batch(ids_of(mixed_tasks), 2, entry_per::sequence);
    CHECK(by_sequence->tasks == std::vector<std::int64_t>{3, 0, 3, 5, 3, 0});
    CHECK(by_sequence->plan.entries() == 6);
    // A sequence without rows has no entry.
    CHECK(make_routed_batch(ids_of(mixed_tasks), 0, entry_per::sequence)->tasks.empty());
    // Ids with a stride.
    const Tensor table = ids_of(mixed_tasks).view({4, 2});
    CHECK(make_routed_batch(table.select(1, 0))->tasks == std::vector<std::int64_t>{0, 3, 5});

    const auto refused = [](const Tensor& ids, std::int64_t rows) {
        return refusal("", [&] { (void)make_routed_batch(ids, rows); });
    };
    CHECK(refused(Tensor(), 1) == "");
    CHECK(refused(ids_of({0, -2}), 1) == "");
    CHECK(refused(ids_of({0, 1}), -1) == "");
    CHECK(refused(ids_of({0, 1}).to(at::kInt), 1) == "");
    CHECK(refused(ids_of({0, 1}).view({1, 2}), 1) == "");
}

TEST_CASE("any rule routes, and what it has views of is kept") {
    ::torch::manual_seed(10);
    const Tensor logits = random_leaf({5, 2, 6});
    const auto batch = make_routed_batch(ids_of({4, 1, 4}));
    const Tensor softmax =
        route(logits, batch, routing_rule{identity_gate{}, softmax_normaliser{6}});
    const Tensor want = logits.index_select(0, ids_of({1, 4})).softmax(-1);
    CHECK(agree(softmax, want));
    const Tensor cotangent = at::rand_like(want);
    CHECK(
        agree(gradients(softmax, cotangent, {logits})[0], gradients(want, cotangent, {logits})[0]));

    Tensor weights;
    Tensor expected;
    {
        const Tensor noise = at::rand({2, 2, 6}, at::kDouble);
        expected = formula_weights(logits, ids_of({1, 4}), noise);
        weights = route(logits, batch, routing_rule{gumbel_sigmoid_gate{const_ref_of<3>(noise)}},
                        {noise});
    }
    // Whoever gets the memory of the noise now must not change the gradient.
    std::vector<Tensor> others;
    for (int i = 0; i < 50; ++i)
        others.push_back(at::full({2, 2, 6}, 0.999, at::kDouble));
    CHECK(agree(gradients(weights, cotangent, {logits})[0],
                gradients(expected, cotangent, {logits})[0]));

    // 16-bit logits have weights of f32, and a gradient of 16 bits.
    const Tensor narrow = logits.detach().to(at::kBFloat16).requires_grad_(true);
    const Tensor wide = route(narrow, batch, routing_rule{sigmoid_gate{}});
    CHECK((wide.scalar_type() == at::kFloat));
    wide.backward(cotangent.to(at::kFloat));
    CHECK((narrow.grad().scalar_type() == at::kBFloat16));
    const Tensor exact = narrow.detach().to(at::kDouble).requires_grad_(true);
    const Tensor d = gradients(formula_weights(exact, ids_of({1, 4})), cotangent, {exact})[0];
    CHECK(near(narrow.grad(), at::kBFloat16, d, at::ones_like(d), within<float>(16)));
}

TEST_CASE("without a graph, logits are routed all the same") {
    const c10::InferenceMode guard;
    const auto batch = make_routed_batch(ids_of(mixed_tasks), 3);
    CHECK(route(random_leaf({6, 2, 3}), batch, routing_rule{sigmoid_gate{}}).size(0) == 3);
}

TEST_CASE("a router is differentiated once") {
    ::torch::manual_seed(17);
    const auto batch = make_routed_batch(ids_of(mixed_tasks), 5);
    const Tensor logits = random_leaf({6, 2, 3});
    const Tensor weights = route(logits, batch, routing_rule{sigmoid_gate{}});
    const auto d_logits =
        ::torch::autograd::grad({weights.square().sum()}, {logits}, {}, true, true);
    CHECK_THROWS_WITH_AS(d_logits[0].sum().backward(),
                         doctest::Contains("torch::route: gradients: expected"),
                         std::runtime_error);
}

TEST_CASE("logits and rules that do not fit are refused") {
    ::torch::manual_seed(16);
    const auto batch = make_routed_batch(ids_of(mixed_tasks), 2);
    const auto meta = [](const Tensor& of) { return of.to(at::kMeta); };
    const Tensor logits = random_leaf({6, 2, 3});
    const auto routing_refused = [&](const Tensor& of, const auto& rule,
                                     const std::shared_ptr<const routed_batch>& for_batch) {
        return refusal("", [&] { (void)route(of, for_batch, rule); });
    };
    const routing_rule plain{sigmoid_gate{}};
    REQUIRE(routing_refused(logits, plain, batch) == "nothing was thrown");
    CHECK(routing_refused({}, plain, batch) == "");
    CHECK(routing_refused(logits.flatten(1), plain, batch) == "");
    CHECK(routing_refused(meta(logits.detach()), plain, batch) == "");
    CHECK(routing_refused(logits.detach().to(at::kLong), plain, batch) == "");
    CHECK(routing_refused(logits.slice(0, 0, 5), plain, batch) == ""); // no row of task 5
    CHECK(routing_refused(logits, plain, nullptr) == "");
    const Tensor noise = at::rand({2, 2, 3}, at::kDouble); // for three entries
    CHECK(routing_refused(logits, routing_rule{gumbel_sigmoid_gate{const_ref_of<3>(noise)}},
                          batch) == "");
}
