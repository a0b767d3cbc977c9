#include "hosts/torch/formula.hpp"

#include <c10/core/InferenceMode.h>

using namespace mhr;
using namespace mhr::torch;
using namespace mhr::test;

namespace {

void check_against_formula(const layer& l, entry_per entry = entry_per::task) {
    const Tensor got = l.ours(entry);
    const Tensor want = l.formula(entry);
    CHECK(agree(got, want));
    const Tensor cotangent = at::rand_like(want) - 0.3;
    const auto d_got = gradients(got, cotangent, l.leaves());
    const auto d_want = gradients(want, cotangent, l.leaves());
    for (std::size_t i = 0; i < names.size(); ++i) {
        CAPTURE(names[i]);
        CHECK(agree(d_got[i], d_want[i]));
    }
}

} // namespace

TEST_CASE("values and gradients are those of LibTorch's autograd") {
    ::torch::manual_seed(2);
    for (std::int64_t tokens : {1, 3, 40}) {
        CAPTURE(tokens);
        for (entry_per entry : {entry_per::task, entry_per::sequence}) {
            check_against_formula(layer(mixed_tasks, tokens, entry), entry);
            check_against_formula(layer({4}, tokens, entry), entry);
            check_against_formula(layer(mixed_tasks, tokens, entry, 1, 2, 5, 3, 1), entry);
            check_against_formula(layer(mixed_tasks, tokens, entry, 8, 5, 48, 72, 9), entry);
        }
    }
}

TEST_CASE("tensors of any layout") {
    ::torch::manual_seed(3);
    const auto transposed = [](const Tensor& of) { // the same shape, dense along the other axis
        return of.detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_(true);
    };
    layer l(mixed_tasks, 5);
    for (Tensor layer::*member : {&layer::x, &layer::a, &layer::b, &layer::weights}) {
        layer changed = l;
        changed.*member = transposed(l.*member);
        check_against_formula(changed);
    }
    // Rows with a common stride (a view), rows without one (a copy), one row for all.
    layer padded = l;
    padded.x = random_leaf({8, 5, 9}).detach().slice(2, 1, 7).requires_grad_(true);
    REQUIRE(padded.x.stride(1) == 9);
    check_against_formula(padded);
    layer apart = l;
    apart.x = random_leaf({8, 7, 6}).detach().slice(1, 1, 6).requires_grad_(true);
    REQUIRE_THROWS(apart.x.view({40, 6}));
    check_against_formula(apart);
    layer one_row = l;
    one_row.x = random_leaf({6}).detach().expand({8, 5, 6}).requires_grad_(true);
    check_against_formula(one_row);

    // y: rows with gaps, a part of a larger tensor, whose history autograd rewrites.
    for (bool wanted : {true, false}) {
        CAPTURE(wanted);
        const Tensor large = random_leaf({8, 5, 13}).detach().set_requires_grad(wanted);
        const auto part_of = [](const Tensor& all) { return all.slice(2, 2, 12); };
        Tensor got = large * 1;
        add_routed_lora_(part_of(got), l.x, l.a, l.b, l.weights, l.batch(), l.scale);
        const Tensor want = large * 1;
        part_of(want).add_(formula_delta(l.x, l.a, l.b, l.weights, entries_of(l.tasks), l.scale));
        CHECK(agree(got, want));
        const Tensor cotangent = at::rand_like(want);
        std::vector<Tensor> leaves{l.x, l.a, l.b, l.weights};
        if (wanted) leaves.push_back(large);
        const auto d_got = gradients(got, cotangent, leaves);
        const auto d_want = gradients(want, cotangent, leaves);
        for (std::size_t k = 0; k < leaves.size(); ++k)
            CHECK(agree(d_got[k], d_want[k]));
    }
}

TEST_CASE("leading dimensions are rows, and x alone gives the adapter's part") {
    ::torch::manual_seed(4);
    const layer l(mixed_tasks, 6);
    const Tensor want = l.formula();
    const Tensor d_want = ::torch::autograd::grad({want.sum()}, {l.x})[0];
    const auto reshaped = [&](const Tensor& of, std::vector<std::int64_t> leading) {
        leading.push_back(of.size(2));
        return of.reshape(leading);
    };
    for (const auto& leading : {std::vector<std::int64_t>{48}, {8, 6}, {2, 4, 3, 2}}) {
        const Tensor got = add_routed_lora_(reshaped(l.y, leading) * 1, reshaped(l.x, leading), l.a,
                                            l.b, l.weights, l.batch(), l.scale);
        CHECK(got.dim() == static_cast<std::int64_t>(leading.size()) + 1);
        CHECK(agree(got.reshape_as(want), want));
        CHECK(agree(::torch::autograd::grad({got.sum()}, {l.x})[0], d_want));
    }
    const Tensor delta = mhr::torch::routed_lora(l.x, l.a, l.b, l.weights, l.batch(), l.scale);
    CHECK(agree(delta, want - l.y));
    CHECK(agree(::torch::autograd::grad({delta.sum()}, {l.x})[0], d_want));
    CHECK(delta.requires_grad());
    // A single row without leading dimensions.
    const layer row({2}, 1);
    const Tensor y =
        mhr::torch::routed_lora(row.x.view({6}), row.a, row.b, row.weights, row.batch(), 2);
    CHECK(y.sizes() == at::IntArrayRef({10}));
    CHECK(agree(y, formula_delta(row.x, row.a, row.b, row.weights, {0}, 2).view({10})));
}

TEST_CASE("an upstream gradient that is one number is not copied") {
    ::torch::manual_seed(5);
    const layer l(mixed_tasks, 7);
    for (bool mean : {false, true}) {
        for (const Tensor& leaf : l.leaves())
            leaf.mutable_grad() = Tensor();
        const auto loss = [&](const Tensor& of) { return mean ? of.mean() : of.sum(); };
        loss(l.ours()).backward();
        const auto want = ::torch::autograd::grad({loss(l.formula())}, l.leaves());
        for (std::size_t i = 0; i < want.size(); ++i) {
            CAPTURE(names[i]);
            CHECK(agree(l.leaves()[i].grad(), want[i]));
        }
    }
    const Tensor repeated = at::ones({1, 1, 1}).expand({8, 7, 10});
    argument_checks checks("");
    const Tensor rows = autograd_details::flat_rows(checks, "", repeated);
    CHECK(rows.sizes() == at::IntArrayRef({56, 10}));
    CHECK(rows.data_ptr() == repeated.data_ptr());
}

TEST_CASE("gradients that nobody wants are not computed, and change none of the others") {
    ::torch::manual_seed(6);
    const layer l(mixed_tasks, 5);
    const Tensor cotangent = at::rand({8, 5, 10}, at::kDouble);
    const auto want = gradients(l.ours(), cotangent, l.leaves());
    for (unsigned wanted = 1; wanted < 32; ++wanted) {
        CAPTURE(wanted);
        // By what requires a gradient, and by what is asked for of a graph that could give all.
        layer some = l;
        std::vector<Tensor> asked;
        std::array<Tensor layer::*, 5> members{&layer::y, &layer::x, &layer::a, &layer::b,
                                               &layer::weights};
        for (std::size_t i = 0; i < members.size(); ++i) {
            some.*members[i] = (l.*members[i]).detach().set_requires_grad((wanted >> i & 1) != 0);
            if ((wanted >> i & 1) != 0) asked.push_back(l.leaves()[i]);
        }
        some.ours().backward(cotangent);
        const auto got = gradients(l.ours(), cotangent, asked);
        std::size_t next = 0;
        for (std::size_t i = 0; i < members.size(); ++i) {
            CAPTURE(names[i]);
            const Tensor& gradient = (some.*members[i]).grad();
            CHECK(gradient.defined() == ((wanted >> i & 1) != 0));
            if (!gradient.defined()) continue;
            CHECK(same_bits(gradient, want[i]));
            CHECK(same_bits(got[next++], want[i]));
        }
    }
    // Not merely dropped: without them there is less to do, so that nothing is allocated for them.
    for (bool frozen : {false, true}) {
        layer some = l;
        some.a = l.a.detach().set_requires_grad(!frozen);
        some.b = l.b.detach().set_requires_grad(!frozen);
        const Tensor y = some.ours();
        const auto node = y.grad_fn();
        const auto outputs = (*node)({cotangent});
        CHECK(outputs[2].defined() == !frozen);
        CHECK(outputs[3].defined() == !frozen);
        CHECK(outputs[1].defined());
        CHECK(outputs[4].defined());
    }
}

namespace {

constexpr std::array all_types{at::kFloat, at::kBFloat16, at::kHalf, at::kDouble};

/// The types of a layer's tensors, in the order of its leaves.
using layer_types = std::array<at::ScalarType, 5>;
constexpr std::array<Tensor layer::*, 5> members_of_layer{&layer::y, &layer::x, &layer::a,
                                                          &layer::b, &layer::weights};

/// Tensors of these types against f64 on the very numbers that are stored.
void check_types(const layer_types& types, std::int64_t tokens) {
    CAPTURE(c10::str(types[0], " ", types[1], " ", types[2], " ", types[3], " ", types[4]));
    CAPTURE(tokens);
    layer exact(mixed_tasks, tokens, entry_per::task, 2, 3, 40, 36, 5);
    layer stored = exact, magnitudes = exact;
    bool wide = false;
    for (std::size_t i = 0; i < types.size(); ++i) {
        const auto member = members_of_layer[i];
        stored.*member = (exact.*member).detach().to(types[i]).requires_grad_(true);
        exact.*member = (stored.*member).detach().to(at::kDouble).requires_grad_(true);
        magnitudes.*member = (exact.*member).detach().abs().requires_grad_(true);
        wide = wide || types[i] == at::kDouble;
    }
    magnitudes.scale = std::abs(exact.scale);

    const Tensor cotangent = (at::rand({8, tokens, 36}) - 0.5).to(types[0]);
    const Tensor got = stored.ours(), want = exact.formula(), size = magnitudes.formula();
    // Sums are f64 where one tensor is.
    const error_bound bound = within(wide ? element_type::f64 : element_type::f32, 64, 2);
    CHECK(near(got, types[0], want, size, bound));
    const auto d_got = gradients(got, cotangent, stored.leaves());
    const auto d_want = gradients(want, cotangent.to(at::kDouble), exact.leaves());
    const auto d_size = gradients(size, cotangent.to(at::kDouble).abs(), magnitudes.leaves());
    for (std::size_t i = 0; i < types.size(); ++i) {
        CAPTURE(names[i]);
        CHECK(near(d_got[i], types[i], d_want[i], d_size[i], bound));
        // The bounds are tight enough to see f64 computed from inputs that are slightly other (but
        // for the weights' gradient, whose terms are many and of either sign).
        const float slightly = i == 4 ? 1.1F : 1.001F;
        if (types[i] == at::kFloat)
            CHECK_FALSE(near(d_got[i] * slightly, types[i], d_want[i], d_size[i], bound));
    }
}

} // namespace

TEST_CASE("every tensor has a type of its own") {
    ::torch::manual_seed(7);
    for (at::ScalarType type : all_types)
        for (std::int64_t tokens : {1, 30}) {
            check_types({type, type, type, type, type}, tokens);
            // bf16 activations beside f32 parameters, and the like.
            for (at::ScalarType parameters : all_types)
                check_types({type, type, parameters, parameters, at::kFloat}, tokens);
        }
    // Each of another type than its neighbours.
    for (std::size_t i = 0; i < all_types.size(); ++i) {
        const auto type = [&](std::size_t n) { return all_types[(i + n) % all_types.size()]; };
        check_types({type(0), type(1), type(2), type(3), type(0)}, 3);
        check_types({type(3), type(1), type(0), type(2), type(1)}, 3);
    }
    // One f64 tensor among others.
    for (std::size_t i = 0; i < names.size(); ++i) {
        layer_types types{at::kFloat, at::kFloat, at::kBFloat16, at::kHalf, at::kFloat};
        types[i] = at::kDouble;
        check_types(types, 3);
    }
}

TEST_CASE("without a graph: the same values, nothing kept") {
    ::torch::manual_seed(11);
    const layer l(mixed_tasks, 3);
    const Tensor want = l.ours();
    {
        const at::NoGradGuard guard;
        const Tensor got = l.ours();
        CHECK(same_bits(got, want.detach()));
        CHECK_FALSE(got.requires_grad());
        Tensor leaf = l.y.clone().set_requires_grad(true);
        add_routed_lora_(leaf, l.x, l.a, l.b, l.weights, l.batch(), l.scale);
        CHECK(same_bits(leaf, want.detach()));
    }
    {
        const c10::InferenceMode guard;
        const Tensor got = l.ours();
        CHECK(got.is_inference());
        CHECK(same_bits(got, want.detach()));
    }
}

TEST_CASE("empty batches, and batches of no task") {
    ::torch::manual_seed(12);
    const std::vector<std::int64_t> nobody{-1, -1, -1};
    layer l(nobody, 2);
    const Tensor y = l.ours();
    CHECK(same_bits(y.detach(), l.y.detach()));
    y.sum().backward();
    for (const Tensor& leaf : {l.x, l.a, l.b})
        CHECK(leaf.grad().eq(0).all().item<bool>());
    CHECK(l.weights.grad().sizes() == at::IntArrayRef({0, 2, 3}));

    layer none({}, 2);
    const Tensor empty = none.ours();
    CHECK(empty.sizes() == at::IntArrayRef({0, 2, 10}));
    empty.sum().backward();
    CHECK(none.x.grad().sizes() == at::IntArrayRef({0, 2, 6}));
    CHECK(none.a.grad().eq(0).all().item<bool>());
}

TEST_CASE("a graph can be used twice, and differentiated once") {
    ::torch::manual_seed(13);
    const layer l(mixed_tasks, 5);
    const Tensor y = l.ours();
    const Tensor cotangent = at::rand_like(y);
    const auto first = ::torch::autograd::grad({y}, l.leaves(), {cotangent}, true);
    const auto second = ::torch::autograd::grad({y}, l.leaves(), {cotangent}, true);
    // With create_graph the gradients are the same, and only their own are refused.
    const auto third = ::torch::autograd::grad({y}, l.leaves(), {cotangent}, true, true);
    for (std::size_t i = 0; i < first.size(); ++i) {
        CHECK(same_bits(second[i], first[i]));
        CHECK(same_bits(third[i].detach(), first[i]));
        if (i == 0) continue;
        CAPTURE(names[i]);
        for (const Tensor& leaf : {l.x, l.a, l.b, l.weights})
            CHECK_THROWS_WITH_AS(
                ::torch::autograd::grad({third[i].sum()}, {leaf}, {}, true, false, true),
                doctest::Contains("torch::add_routed_lora_: gradients: expected"),
                std::runtime_error);
    }
    const Tensor d = cotangent.detach().requires_grad_(true);
    const auto through_y = ::torch::autograd::grad({y}, {l.y}, {d * d}, true, true);
    CHECK(agree(::torch::autograd::grad({through_y[0].sum()}, {d})[0], 2 * d.detach()));
}

TEST_CASE("what autograd forbids is refused") {
    ::torch::manual_seed(14);
    const layer l(mixed_tasks, 5);
    const Tensor before = l.y.detach().clone();
    const auto refused = [&](const Tensor& y, const Tensor& x) {
        const std::string result = refusal("torch::add_routed_lora_: y: ", [&] {
            (void)add_routed_lora_(y, x, l.a, l.b, l.weights, l.batch(), 1);
        });
        CHECK(result == "");
        return why_not(y, x, l.a, l.b, l.weights, l.batch());
    };
    CHECK(refused(l.y, l.x).find("leaf") != std::string::npos);
    CHECK(same_bits(l.y.detach(), before));
    // Inputs that change before they are needed again.
    for (Tensor layer::*member : {&layer::x, &layer::a, &layer::b, &layer::weights}) {
        const Tensor y = l.ours();
        {
            const at::NoGradGuard guard;
            (l.*member).mul_(2);
        }
        CHECK_THROWS_WITH_AS(y.sum().backward(), doctest::Contains("inplace"), c10::Error);
    }
    const Tensor memory = at::rand({500}, at::kDouble);
    const Tensor y = memory.slice(0, 0, 400).view({40, 10});
    const Tensor untouched = memory.clone();
    CHECK(refused(y, memory.slice(0, 200, 440).view({40, 6})).find("memory of its own") !=
          std::string::npos);
    CHECK(same_bits(memory, untouched));
}

TEST_CASE("bad input is refused before anything is written") {
    ::torch::manual_seed(15);
    const layer l(mixed_tasks, 2);
    const Tensor y = l.y.detach();
    const Tensor before = y.clone();
    /// Checks that a call is refused, and that `why_not` says so beforehand in the same words;
    /// `tensors` are those of layer::leaves.
    const auto refused = [&](const char* argument, const std::array<Tensor, 5>& tensors,
                             const std::shared_ptr<const routed_batch>& batch) {
        const auto& t = tensors;
        const std::string why = why_not(t[0], t[1], t[2], t[3], t[4], batch);
        const std::string result =
            refusal(why, [&] { (void)add_routed_lora_(t[0], t[1], t[2], t[3], t[4], batch, 1); });
        if (!at::equal(y, before)) return std::string("y was written");
        const bool named = why.find(std::string(argument) + ": expected ") != std::string::npos;
        return named || !result.empty() ? result : "not named: " + why;
    };
    const auto batch = l.batch();
    const std::array<Tensor, 5> good{y, l.x, l.a, l.b, l.weights};
    /// With one of the tensors exchanged.
    const auto refuses_all = [&](std::size_t number, const char* argument,
                                 const std::vector<Tensor>& others) {
        for (const Tensor& bad : others) {
            CAPTURE((bad.defined() ? c10::str(bad.toString(), bad.sizes()) : "undefined"));
            std::array<Tensor, 5> tensors = good;
            tensors[number] = bad;
            CHECK(refused(argument, tensors, batch) == "");
        }
    };
    CHECK(why_not(y, l.x, l.a, l.b, l.weights, batch) == "");
    CHECK(same_bits(y, before)); // to ask changes nothing
    const auto meta = [](const Tensor& of) { return of.detach().to(at::kMeta); };
    refuses_all(0, "y",
                {Tensor(), y.to(at::kInt), y.slice(2, 0, 9), y.slice(0, 0, 3), meta(y),
                 y.to_sparse(), at::ones({1}, at::kDouble).expand(y.sizes()),
                 at::zeros({8, 3, 10}, at::kDouble).slice(1, 0, 2)});
    refuses_all(1, "x",
                {Tensor(), l.x.detach().to(at::kInt), l.x.slice(2, 0, 4), l.x.slice(1, 0, 1),
                 meta(l.x), l.x.detach().to_sparse(), at::ones({}, at::kDouble)});
    refuses_all(2, "a", {Tensor(), l.a.detach().to(at::kLong), l.a.flatten(0, 1), meta(l.a)});
    refuses_all(2, "b", {l.a.slice(3, 0, 3), l.a.slice(1, 0, 2)}); // which of them is for us to say
    refuses_all(3, "b", {Tensor(), l.b.flatten(0, 1), l.b.slice(2, 0, 3), meta(l.b)});
    refuses_all(3, "y", {l.b.slice(3, 0, 4)});
    refuses_all(4, "weights",
                {Tensor(), l.weights.flatten(0, 1), l.weights.slice(0, 0, 2),
                 l.weights.slice(2, 0, 2), meta(l.weights), l.weights.detach().to_sparse()});
    CHECK(refused("batch", good, nullptr) == "");
    CHECK(refused("x", good, layer({3, 0, 5}, 3).batch()) == "");
    CHECK(refused("weights", good, layer({0, 1, 2, 3}, 4).batch()) == "");
}
