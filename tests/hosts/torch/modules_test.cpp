#include "hosts/torch/formula.hpp"

#include <sstream>

#include <torch/serialize.h>

using namespace mhr;
using namespace mhr::torch;
using namespace mhr::test;

namespace {

::torch::nn::Linear linear(std::int64_t in, std::int64_t out, bool bias = true,
                           at::ScalarType type = at::kDouble) {
    ::torch::nn::Linear layer(::torch::nn::LinearOptions(in, out).bias(bias));
    layer->to(type);
    return layer;
}

std::vector<std::string> keys_of(const ::torch::OrderedDict<std::string, Tensor>& tensors) {
    return tensors.keys();
}

/// Two layers that share a router, named as in a checkpoint of PEFT's.
struct small_model : ::torch::nn::Module {
    explicit small_model(at::ScalarType type = at::kDouble)
        : first(linear(6, 10, true, type), RoutedLoraOptions(3, 2).heads(2)),
          second(linear(10, 4, false, type), RoutedLoraOptions(3, 5).heads(2).scale(0.3)),
          router(RouterOptions(7, 3).heads(2).temperature(0.8).dtype(type)) {
        register_module("first", first);
        register_module("second", second);
        register_module("poly_router", router);
        const at::NoGradGuard guard;
        for (const Tensor& b : {first->poly_lora_B, second->poly_lora_B})
            b.uniform_(-1, 1); // as if trained
        router->module_logits.uniform_(-2, 2);
    }

    Tensor forward(const Tensor& x, const std::shared_ptr<const routed_batch>& batch,
                   const Tensor& uniforms = {}) {
        const Tensor weights = router->forward(batch, uniforms);
        return second->forward(first->forward(x, weights, batch).relu(), weights, batch);
    }

    /// Computes the same by the formula.
    [[nodiscard]] Tensor formula(const Tensor& x, const std::vector<std::int64_t>& tasks,
                                 entry_per entry, const Tensor& uniforms) const {
        const Tensor logits = router->module_logits.view({7, 2, 3});
        const Tensor weights =
            formula_weights(logits, tasks_of_entries(tasks, entry), uniforms, 0.8);
        const auto entries = entries_of(tasks, entry);
        const auto layer = [&](const Tensor& in, const RoutedLoraLinear& of, double scale) {
            Tensor y = in.matmul(of->base_layer->weight.t());
            if (of->base_layer->bias.defined()) y = y + of->base_layer->bias;
            return y + formula_delta(in, of->poly_lora_A, of->poly_lora_B, weights, entries, scale);
        };
        return layer(layer(x, first, 0.5).relu(), second, 0.3);
    }

    RoutedLoraLinear first, second;
    Router router;
};

const std::vector<std::int64_t> tasks_of_model{3, 0, 3, -1, 6, 0};

} // namespace

TEST_CASE("a model of routed layers is the formula, training and evaluating") {
    ::torch::manual_seed(21);
    small_model model;
    for (entry_per entry : {entry_per::task, entry_per::sequence})
        for (bool training : {true, false}) {
            CAPTURE(training);
            model.train(training);
            const auto batch = make_routed_batch(ids_of(tasks_of_model), 5, entry);
            const Tensor x = random_leaf({6, 5, 6});
            const auto n = static_cast<std::int64_t>(batch->tasks.size());
            const Tensor uniforms = at::rand({n, 2, 3}, at::kDouble);
            const Tensor got = model.forward(x, batch, uniforms);
            const Tensor want =
                model.formula(x, tasks_of_model, entry, training ? uniforms : Tensor());
            CHECK(got.sizes() == at::IntArrayRef({6, 5, 4}));
            CHECK(agree(got, want));
            const std::vector<Tensor> leaves{x,
                                             model.first->poly_lora_A,
                                             model.first->poly_lora_B,
                                             model.second->poly_lora_A,
                                             model.second->poly_lora_B,
                                             model.router->module_logits};
            const Tensor cotangent = at::rand_like(want) - 0.5;
            const auto d_got = ::torch::autograd::grad({got}, leaves, {cotangent});
            const auto d_want = ::torch::autograd::grad({want}, leaves, {cotangent});
            for (std::size_t i = 0; i < leaves.size(); ++i) {
                CAPTURE(i);
                CHECK(agree(d_got[i], d_want[i]));
            }
            // Nothing reaches the base layers, which are frozen.
            model.zero_grad();
            model.forward(x, batch).sum().backward();
            for (const auto& item : model.named_parameters()) {
                CAPTURE(item.key());
                const bool base = item.key().find("base_layer") != std::string::npos;
                CHECK(item.value().grad().defined() == !base);
            }
        }
}

TEST_CASE("noise comes from LibTorch's generator, or from the caller") {
    ::torch::manual_seed(22);
    Router router(RouterOptions(4, 6).heads(3).dtype(at::kDouble));
    const auto batch = make_routed_batch(ids_of({2, 0, 2}));
    const auto draw = [&](std::uint64_t seed) {
        ::torch::manual_seed(seed);
        return router->forward(batch).detach();
    };
    CHECK(same_bits(draw(1), draw(1)));
    CHECK_FALSE(same_bits(draw(1), draw(2)));
    ::torch::manual_seed(1);
    const Tensor uniforms = at::rand({2, 3, 6}, at::kDouble);
    CHECK(same_bits(router->forward(batch, uniforms).detach(), draw(1)));
    // f32 numbers serve f64 logits, too.
    CHECK(agree(router->forward(batch, uniforms.to(at::kFloat).to(at::kDouble)),
                router->forward(batch, uniforms.to(at::kFloat))));
    router->eval();
    CHECK(same_bits(draw(1), draw(2)));
    CHECK(agree(router->forward(batch),
                formula_weights(router->module_logits.view({4, 3, 6}), ids_of({0, 2}))));
    CHECK(agree(router->forward(batch).sum(-1), at::ones({2, 3}, at::kDouble)));
}

TEST_CASE("a fresh layer is its base layer, with PEFT's first values") {
    for (at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
        ::torch::manual_seed(23);
        ::torch::nn::Linear base = linear(8, 12, true, type);
        RoutedLoraLinear layer(base, RoutedLoraOptions(5, 3).heads(4));
        CHECK(layer->poly_lora_A.sizes() == at::IntArrayRef({4, 5, 2, 3}));
        CHECK(layer->poly_lora_B.sizes() == at::IntArrayRef({4, 5, 3, 3}));
        CHECK((layer->poly_lora_A.scalar_type() == type));
        CHECK(layer->poly_lora_A.requires_grad());
        CHECK(layer->poly_lora_B.requires_grad());
        CHECK_FALSE(base->weight.requires_grad());
        CHECK_FALSE(base->bias.requires_grad());
        const Tensor a = layer->poly_lora_A.detach().to(at::kDouble);
        CHECK(a.abs().max().item<double>() <= std::sqrt(0.5));
        CHECK(a.abs().max().item<double>() > 0.6);
        CHECK(std::abs(a.mean().item<double>()) < 0.2);
        CHECK(layer->poly_lora_B.eq(0).all().item<bool>());

        // Addition and products of f16 do not exist for LibTorch 1.13 on the CPU.
        if (type == at::kHalf) continue;
        const Tensor x = at::rand({3, 2, 8}).to(type);
        const auto batch = make_routed_batch(ids_of({1, 0, -1}), 2);
        const Tensor weights = at::rand({2, 4, 5});
        const Tensor y = layer->forward(x, weights, batch);
        CHECK(same_bits(y.detach(), base->forward(x.flatten(0, 1)).view({3, 2, 12})));
        CHECK(same_bits(layer->forward(x[0], weights, make_routed_batch(ids_of({1, 0}))).detach(),
                        base->forward(x[0])));
        y.sum().backward();
        CHECK((layer->poly_lora_B.grad().scalar_type() == type));
    }
    ::torch::manual_seed(24);
    RoutedLoraLinear first(linear(8, 12), RoutedLoraOptions(5, 3));
    RoutedLoraLinear second(linear(8, 12), RoutedLoraOptions(5, 3));
    CHECK_FALSE(same_bits(first->poly_lora_A.detach(), second->poly_lora_A.detach()));
    ::torch::manual_seed(24);
    RoutedLoraLinear again(linear(8, 12), RoutedLoraOptions(5, 3));
    CHECK(same_bits(first->poly_lora_A.detach(), again->poly_lora_A.detach()));

    Router router(RouterOptions(9, 5).heads(2));
    CHECK(router->module_logits.sizes() == at::IntArrayRef({9, 10}));
    CHECK((router->module_logits.scalar_type() == at::kFloat));
    const double bound = router->module_logits.abs().max().item<double>();
    CHECK(bound <= 1e-3);
    CHECK(bound > 0.8e-3);
}

TEST_CASE("a state dict has PEFT's names, and makes the round trip") {
    ::torch::manual_seed(25);
    small_model saved;
    CHECK(keys_of(saved.named_parameters()) ==
          std::vector<std::string>{"first.poly_lora_A", "first.poly_lora_B",
                                   "first.base_layer.weight", "first.base_layer.bias",
                                   "second.poly_lora_A", "second.poly_lora_B",
                                   "second.base_layer.weight", "poly_router.module_logits"});
    std::stringstream file;
    ::torch::serialize::OutputArchive out;
    saved.save(out);
    out.save_to(file);

    small_model loaded;
    const auto batch = make_routed_batch(ids_of(tasks_of_model), 2);
    const Tensor x = at::rand({6, 2, 6}, at::kDouble);
    saved.eval();
    loaded.eval();
    REQUIRE_FALSE(agree(loaded.forward(x, batch), saved.forward(x, batch)));
    ::torch::serialize::InputArchive in;
    in.load_from(file);
    loaded.load(in);
    CHECK(same_bits(loaded.forward(x, batch).detach(), saved.forward(x, batch).detach()));
    // Loaded parameters are trained, as those before.
    loaded.forward(x, batch).sum().backward();
    CHECK(loaded.first->poly_lora_A.grad().defined());
    CHECK_FALSE(loaded.first->base_layer->weight.requires_grad());
}

TEST_CASE("a part of the model can be trained by itself") {
    ::torch::manual_seed(26);
    small_model model;
    const auto batch = make_routed_batch(ids_of(tasks_of_model), 2);
    const Tensor x = at::rand({6, 2, 6}, at::kDouble);
    // MHR-z: the routing alone.
    for (const auto& item : model.named_parameters())
        item.value().set_requires_grad(item.key() == "poly_router.module_logits");
    model.forward(x, batch).sum().backward();
    CHECK(model.router->module_logits.grad().ne(0).any().item<bool>());
    CHECK_FALSE(model.first->poly_lora_A.grad().defined());
    CHECK_FALSE(model.second->poly_lora_B.grad().defined());
    // A base layer that is trained after all.
    model.first->base_layer->weight.set_requires_grad(true);
    const Tensor uniforms = at::rand({3, 2, 3}, at::kDouble);
    const auto gradient = [&](const Tensor& y) {
        return ::torch::autograd::grad({y.square().sum()}, {model.first->base_layer->weight})[0];
    };
    CHECK(agree(gradient(model.forward(x, batch, uniforms)),
                gradient(model.formula(x, tasks_of_model, entry_per::task, uniforms))));
}

TEST_CASE("bad sizes of modules") {
    const auto refused = [](const char* start, auto&& f) {
        try {
            f();
        } catch (const error& thrown) {
            return std::string(thrown.what()).compare(0, std::string(start).size(), start) == 0;
        }
        return false;
    };
    const auto layer = [](const RoutedLoraOptions& options) {
        return [=] { RoutedLoraLinear(linear(8, 12), options); };
    };
    CHECK(refused("torch::RoutedLoraLinear: heads: expected a divisor of 8 and 12, got 3",
                  layer(RoutedLoraOptions(2, 2).heads(3))));
    CHECK(refused("torch::RoutedLoraLinear: heads: ", layer(RoutedLoraOptions(2, 2).heads(8))));
    CHECK(refused("torch::RoutedLoraLinear: heads: ", layer(RoutedLoraOptions(2, 2).heads(0))));
    CHECK(refused("torch::RoutedLoraLinear: modules: ", layer(RoutedLoraOptions(0, 2))));
    CHECK(refused("torch::RoutedLoraLinear: rank: ", layer(RoutedLoraOptions(2, -1))));
    CHECK(refused("torch::RoutedLoraLinear: base: ",
                  [] { RoutedLoraLinear(::torch::nn::Linear(nullptr), RoutedLoraOptions(2, 2)); }));
    CHECK(refused("torch::Router: tasks: ", [] { Router(RouterOptions(0, 2)); }));
    CHECK(refused("torch::Router: modules: ", [] { Router(RouterOptions(2, 0)); }));
    CHECK(refused("torch::Router: heads: ", [] { Router(RouterOptions(2, 2).heads(-1)); }));

    Router router(RouterOptions(4, 3).heads(2));
    const auto batch = make_routed_batch(ids_of({0, 1}));
    CHECK(refused("torch::Router: batch: ", [&] { router->forward(nullptr); }));
    CHECK(refused("torch::Router: uniforms: ", [&] { router->forward(batch, at::rand({2, 6})); }));
    CHECK(refused("router_forward: gate.uniforms: ", [&] {
        router->forward(batch, at::rand({3, 2, 3}));
    }));
    CHECK(refused("router_forward: tasks: ", [&] {
        router->forward(make_routed_batch(ids_of({0, 4})));
    }));
    RoutedLoraLinear adapted(linear(8, 12), RoutedLoraOptions(3, 2).heads(2));
    const Tensor x = at::rand({2, 8}, at::kDouble);
    CHECK(refused("routed_lora_forward: layer.weights: ", [&] {
        adapted->forward(x, at::rand({3, 2, 3}), batch);
    }));
    CHECK(refused("torch::RoutedLoraLinear: x: ", [&] {
        adapted->forward({}, at::rand({2, 2, 3}), batch);
    }));
}

TEST_CASE("README: LibTorch") {
    const std::int64_t tasks = 3, modules = 2, tokens = 5;
    ::torch::nn::Linear linear(8, 12);
    const Tensor task_ids = ids_of({2, -1, 0});
    Tensor x = ::torch::randn({3, tokens, 8});
    const Tensor base = linear->forward(x).detach();

#include "readme/torch.inc"

    CHECK(x.sizes() == base.sizes());
    CHECK(same_bits(x[1].detach(), base[1]));
    CHECK(weights.sizes() == at::IntArrayRef({2, 4, modules})); // of two tasks
}
