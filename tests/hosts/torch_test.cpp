#include "hosts/torch/formula.hpp"

using namespace mhr;
using namespace mhr::torch;
using namespace mhr::test;

namespace {

/// Two layers on one batch that share a router, with something between them: sum of the output
/// times a cotangent.
struct model {
    std::vector<std::int64_t> tasks = mixed_tasks;
    std::int64_t tokens = 4, heads = 2, modules = 3;
    Tensor x = random_leaf({8, 4, 6}), logits = random_leaf({7, heads, modules});
    std::vector<Tensor> base{random_leaf({6, 10}), random_leaf({10, 8})},
        a{random_leaf({2, 3, 3, 2}), random_leaf({2, 3, 5, 3})},
        b{random_leaf({2, 3, 2, 5}), random_leaf({2, 3, 3, 4})};
    Tensor cotangent = at::rand({8, 4, 8}, at::kDouble) - 0.5;

    [[nodiscard]] std::vector<Tensor> leaves() const {
        return {x, logits, base[0], base[1], a[0], a[1], b[0], b[1]};
    }
    /// `add(y, x, layer)` adds the adapter of a layer.
    template <class F>
    [[nodiscard]] Tensor loss(F&& add) const {
        const Tensor hidden = add(x.matmul(base[0]), x, 0).tanh();
        return (add(hidden.matmul(base[1]), hidden, 1) * cotangent).sum();
    }
};

template <class Rule>
void check_model(const model& m, entry_per entry, const Rule& rule, const Tensor& uniforms,
                 double temperature) {
    const auto batch = make_routed_batch(ids_of(m.tasks), m.tokens, entry);
    const Tensor weights = route(m.logits, batch, rule, {uniforms});
    const Tensor got = m.loss([&](const Tensor& y, const Tensor& x, std::size_t i) {
        return add_routed_lora_(y, x, m.a[i], m.b[i], weights, batch, 0.5);
    });
    const Tensor formula_w =
        formula_weights(m.logits, tasks_of_entries(m.tasks, entry), uniforms, temperature);
    CHECK(agree(weights, formula_w));
    const Tensor want = m.loss([&](const Tensor& y, const Tensor& x, std::size_t i) {
        return y + formula_delta(x, m.a[i], m.b[i], formula_w, entries_of(m.tasks, entry), 0.5);
    });
    CHECK(agree(got.view({1}), want.view({1})));
    const auto d_got = ::torch::autograd::grad({got}, m.leaves());
    const auto d_want = ::torch::autograd::grad({want}, m.leaves());
    for (std::size_t i = 0; i < d_want.size(); ++i) {
        CAPTURE(i);
        CHECK(agree(d_got[i], d_want[i]));
    }
    // Tasks that are not in the batch.
    for (std::int64_t task : {1, 2, 4, 6})
        CHECK(d_got[1][task].eq(0).all().item<bool>());
}

} // namespace

TEST_CASE("a router that layers share, with and without noise") {
    ::torch::manual_seed(9);
    const model m;
    for (entry_per entry : {entry_per::task, entry_per::sequence}) {
        check_model(m, entry, routing_rule{sigmoid_gate{}}, {}, 1);
        const std::int64_t entries = tasks_of_entries(m.tasks, entry).size(0);
        const Tensor uniforms = at::rand({entries, m.heads, m.modules}, at::kDouble);
        const auto ref = const_ref_of<3>(uniforms);
        check_model(m, entry, routing_rule{gumbel_sigmoid_gate{ref, 0.7}}, uniforms, 0.7);
    }
}

TEST_CASE("the same bits for every number of threads") {
    ::torch::manual_seed(8);
    const int threads_before = at::get_num_threads();
    // Large enough to be cut into parts that are worth a thread.
    const layer l(mixed_tasks, 64, entry_per::task, 4, 5, 256, 320, 16);
    const Tensor logits = random_leaf({6, 4, 5});
    const Tensor cotangent = at::rand({8, 64, 320}, at::kDouble);
    const auto run = [&] {
        const auto batch = l.batch();
        const Tensor weights = route(logits, batch, routing_rule{sigmoid_gate{}});
        const Tensor y = add_routed_lora_(l.y * 1, l.x, l.a, l.b, weights, batch, l.scale);
        auto results = gradients(y, cotangent, {l.y, l.x, l.a, l.b, logits});
        results.push_back(y);
        return results;
    };
    at::set_num_threads(1);
    const auto want = run();
    for (int threads : {2, 3, 8}) {
        CAPTURE(threads);
        at::set_num_threads(threads);
        const auto got = run();
        for (std::size_t i = 0; i < want.size(); ++i)
            CHECK(same_bits(got[i], want[i]));
    }
    at::set_num_threads(threads_before);
}
