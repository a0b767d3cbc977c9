#include "interop/torch_formula.hpp"

#include <array>
#include <limits>
#include <mutex>
#include <set>
#include <sstream>
#include <utility>

#include <c10/core/InferenceMode.h>

using namespace mhr;
using namespace mhr::test;

namespace {

/// "" if `f` throws mhr::error with the text "function: argument: expected ..., got ...".
template <class F>
std::string refusal(const std::string& start, F&& f) {
    try {
        f();
    } catch (const error& thrown) {
        const std::string text = thrown.what();
        const bool as_documented = text.compare(0, start.size(), start) == 0 &&
                                   text.find(": expected ") != std::string::npos &&
                                   text.find(", got ") != std::string::npos;
        return as_documented ? "" : text;
    } catch (const std::exception& other) {
        return std::string("not an mhr::error: ") + other.what();
    }
    return "nothing was thrown";
}

template <class T>
void check_elements(at::ScalarType type) {
    Tensor tensor = at::arange(24, at::kDouble).to(type).view({2, 3, 4});
    const Tensor turned = tensor.transpose(0, 2).slice(1, 1, 3);
    const auto view = view_of<T, 3>(turned);
    CHECK(view.extents() == std::array<index_t, 3>{4, 2, 2});
    CHECK(view.strides() == std::array<index_t, 3>{1, 4, 12});
    CHECK(static_cast<double>(view(3, 1, 0)) == 11);
    view(3, 1, 0) = T(5);
    CHECK(tensor[0][2][3].template item<double>() == 5);

    // The same memory as a tensor again.
    Tensor again = torch_tensor_of(view);
    CHECK(again.data_ptr() == turned.data_ptr());
    CHECK(same_bits(again, turned));
    again.fill_(7);
    CHECK(tensor.eq(7).sum().template item<std::int64_t>() == 16);
    CHECK(same_bits(torch_tensor_of(as_const(view)), turned));
}

/// A batch [sequences, tokens, ..] of a layer whose rows are those of many tasks. All are leaves.
struct layer {
    std::vector<std::int64_t> tasks; // of the sequences
    std::int64_t tokens;
    double scale = -0.75;
    Tensor y, x, a, b, weights;

    explicit layer(const std::vector<std::int64_t>& tasks_of_sequences, std::int64_t tokens_of_each,
                   entry_per entry = entry_per::task, std::int64_t heads = 2,
                   std::int64_t modules = 3, std::int64_t in = 6, std::int64_t out = 10,
                   std::int64_t rank = 4)
        : tasks(tasks_of_sequences), tokens(tokens_of_each) {
        const auto n = static_cast<std::int64_t>(tasks.size());
        const auto entries = tasks_of_entries(tasks, entry).size(0);
        y = random_leaf({n, tokens, out});
        x = random_leaf({n, tokens, in});
        a = random_leaf({heads, modules, in / heads, rank});
        b = random_leaf({heads, modules, rank, out / heads});
        weights = random_leaf({entries, heads, modules});
    }

    [[nodiscard]] std::vector<Tensor> leaves() const { return {y, x, a, b, weights}; }
    [[nodiscard]] std::shared_ptr<const routed_batch>
    batch(entry_per entry = entry_per::task) const {
        return make_routed_batch(ids_of(tasks), tokens, entry);
    }
    /// y itself is a leaf, which must not be changed in place.
    [[nodiscard]] Tensor ours(entry_per entry = entry_per::task) const {
        return add_routed_lora_(y * 1, x, a, b, weights, batch(entry), scale);
    }
    [[nodiscard]] Tensor formula(entry_per entry = entry_per::task) const {
        return y + formula_delta(x, a, b, weights, entries_of(tasks, entry), scale);
    }
};

constexpr std::array<const char*, 5> names{"y", "x", "a", "b", "weights"};

/// The gradients of sum(output cotangent) to the leaves.
std::vector<Tensor> gradients(const Tensor& output, const Tensor& cotangent,
                              const std::vector<Tensor>& leaves) {
    return torch::autograd::grad({output}, leaves, {cotangent});
}

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

// Tasks that repeat, are not in order and have gaps; sequences of no task.
const std::vector<std::int64_t> mixed_tasks{3, 0, 3, -1, 5, 3, 0, -1};

} // namespace

TEST_CASE("tensors as views and back") {
    torch::manual_seed(1);
    check_elements<double>(at::kDouble);
    check_elements<float>(at::kFloat);
    check_elements<at::BFloat16>(at::kBFloat16);
    check_elements<at::Half>(at::kHalf);
    check_elements<std::int64_t>(at::kLong);
    CHECK(view_of<const float, 2>(Tensor()).absent());
    CHECK_FALSE(torch_tensor_of(tensor_view<float, 2>()).defined());

    const Tensor one_number = at::ones({1}).expand({3, 4});
    CHECK(view_of<const float, 2>(one_number).strides() == std::array<index_t, 2>{0, 0});
    CHECK(torch_tensor_of(view_of<const float, 2>(one_number)).strides() ==
          at::IntArrayRef({0, 0}));
    const Tensor empty = at::ones({0, 4});
    CHECK(view_of<float, 2>(empty).extents() == std::array<index_t, 2>{0, 4});
}

TEST_CASE("tensors that have no view") {
    const Tensor good = at::ones({2, 3});
    const auto refused = [](const Tensor& tensor) {
        return refusal("view_of: x: ", [&] { (void)view_of<const float, 2>(tensor, "x"); });
    };
    REQUIRE(refused(good) == "nothing was thrown");
    CHECK(refused(good.to(at::kDouble)) == "");
    CHECK(refused(good.to(at::kBFloat16)) == "");
    CHECK(refused(good.to(at::kInt)) == "");
    CHECK(refused(good[0]) == "");
    CHECK(refused(good.unsqueeze(0)) == "");
    CHECK(refused(good.to_sparse()) == "");
    CHECK(refused(at::ones({2, 3}, at::TensorOptions().device(at::kMeta))) == "");
    // The imaginary part of a conjugated tensor is a float tensor whose sign bit is a flag.
    const Tensor negated = at::imag(at::conj(at::ones({2, 3}, at::kComplexFloat)));
    REQUIRE(negated.is_neg());
    CHECK(refused(negated) == "");
    CHECK(refused(negated.resolve_neg()) == "nothing was thrown");

    float numbers[4] = {};
    const tensor_view<float, 1> reversed(numbers + 3, {4}, {-1});
    CHECK(refusal("torch_tensor_of: view: ", [&] { (void)torch_tensor_of(reversed); }) == "");
}

TEST_CASE("LibTorch's threads run every part once") {
    const int threads_before = at::get_num_threads();
    for (int threads : {1, 2, 3, 8}) {
        CAPTURE(threads);
        at::set_num_threads(threads);
        for (index_t parts : {0, 1, 2, 7, 100}) {
            CAPTURE(parts);
            std::mutex mutex;
            std::vector<int> runs(static_cast<std::size_t>(parts));
            std::set<int> seen;
            executor_ref(torch_executor{}).run(parts, [&](index_t part) noexcept {
                const std::lock_guard<std::mutex> lock(mutex);
                ++runs[static_cast<std::size_t>(part)];
                seen.insert(at::get_thread_num());
            });
            CHECK(runs == std::vector<int>(runs.size(), 1));
            // Blocks of equal size: fewer threads may do.
            const auto least = parts == 100 ? threads : std::min(static_cast<int>(parts), 2);
            CHECK(static_cast<int>(seen.size()) >= std::min(least, threads));
            CHECK(static_cast<int>(seen.size()) <= threads);
        }
        // Inside of a parallel region of the host's.
        std::atomic<index_t> sum{0};
        at::parallel_for(0, 4, 1, [&](std::int64_t first, std::int64_t last) {
            for (std::int64_t i = first; i < last; ++i)
                executor_ref(torch_executor{}).run(5, [&](index_t part) noexcept { sum += part; });
        });
        CHECK(sum == 40);
    }
    at::set_num_threads(threads_before);
}

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
    CHECK(refused(ids_of({0, -2}), 1) == "");
    CHECK(refused(ids_of({0, 1}), -1) == "");
    CHECK(refused(ids_of({0, 1}).to(at::kInt), 1) == "");
    CHECK(refused(ids_of({0, 1}).view({1, 2}), 1) == "");
}

TEST_CASE("values and gradients are those of LibTorch's autograd") {
    torch::manual_seed(2);
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
    torch::manual_seed(3);
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
    torch::manual_seed(4);
    const layer l(mixed_tasks, 6);
    const Tensor want = l.formula();
    const Tensor d_want = torch::autograd::grad({want.sum()}, {l.x})[0];
    const auto reshaped = [&](const Tensor& of, std::vector<std::int64_t> leading) {
        leading.push_back(of.size(2));
        return of.reshape(leading);
    };
    for (const auto& leading : {std::vector<std::int64_t>{48}, {8, 6}, {2, 4, 3, 2}}) {
        const Tensor got = add_routed_lora_(reshaped(l.y, leading) * 1, reshaped(l.x, leading), l.a,
                                            l.b, l.weights, l.batch(), l.scale);
        CHECK(got.dim() == static_cast<std::int64_t>(leading.size()) + 1);
        CHECK(agree(got.reshape_as(want), want));
        CHECK(agree(torch::autograd::grad({got.sum()}, {l.x})[0], d_want));
    }
    const Tensor delta = routed_lora(l.x, l.a, l.b, l.weights, l.batch(), l.scale);
    CHECK(agree(delta, want - l.y));
    CHECK(agree(torch::autograd::grad({delta.sum()}, {l.x})[0], d_want));
    CHECK(delta.requires_grad());
    // A single row without leading dimensions.
    const layer row({2}, 1);
    const Tensor y = routed_lora(row.x.view({6}), row.a, row.b, row.weights, row.batch(), 2);
    CHECK(y.sizes() == at::IntArrayRef({10}));
    CHECK(agree(y, formula_delta(row.x, row.a, row.b, row.weights, {0}, 2).view({10})));
}

TEST_CASE("an upstream gradient that is one number is not copied") {
    torch::manual_seed(5);
    const layer l(mixed_tasks, 7);
    for (bool mean : {false, true}) {
        for (const Tensor& leaf : l.leaves())
            leaf.mutable_grad() = Tensor();
        const auto loss = [&](const Tensor& of) { return mean ? of.mean() : of.sum(); };
        loss(l.ours()).backward();
        const auto want = torch::autograd::grad({loss(l.formula())}, l.leaves());
        for (std::size_t i = 0; i < want.size(); ++i) {
            CAPTURE(names[i]);
            CHECK(agree(l.leaves()[i].grad(), want[i]));
        }
    }
    const Tensor repeated = at::ones({1, 1, 1}).expand({8, 7, 10});
    const Tensor rows = mhr::detail::flat_rows("", "", repeated);
    CHECK(rows.sizes() == at::IntArrayRef({56, 10}));
    CHECK(rows.data_ptr() == repeated.data_ptr());
}

TEST_CASE("gradients that nobody wants are not computed, and change none of the others") {
    torch::manual_seed(6);
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

template <class T>
comparison near(const Tensor& got, const Tensor& want, const Tensor& magnitude,
                const error_bound& bound) {
    if (!got.defined() || got.sizes() != want.sizes() ||
        got.scalar_type() != c10::CppTypeToScalarType<T>::value)
        return {false, 0, 0, "undefined, or another type or size"};
    Tensor got_memory, want_memory, magnitude_memory;
    return compare(flat_view<T>(got, got_memory), flat_view<double>(want, want_memory),
                   flat_view<double>(magnitude, magnitude_memory), bound);
}

/// X of y and x, M of the inventory, weights and cotangent as they come: against f64 on the very
/// numbers that are stored.
template <class X, class M, class W>
void check_types() {
    const auto x_type = c10::CppTypeToScalarType<X>::value;
    const auto m_type = c10::CppTypeToScalarType<M>::value;
    const auto w_type = c10::CppTypeToScalarType<W>::value;
    CAPTURE(at::toString(x_type));
    CAPTURE(at::toString(m_type));
    CAPTURE(at::toString(w_type));
    for (std::int64_t tokens : {1, 30}) {
        layer exact(mixed_tasks, tokens, entry_per::task, 2, 3, 40, 36, 5);
        layer stored = exact, magnitudes = exact;
        const auto store_as = [&](Tensor layer::*member, at::ScalarType type) {
            stored.*member = (exact.*member).detach().to(type).requires_grad_(true);
            exact.*member = (stored.*member).detach().to(at::kDouble).requires_grad_(true);
            magnitudes.*member = (exact.*member).detach().abs().requires_grad_(true);
        };
        store_as(&layer::y, x_type);
        store_as(&layer::x, x_type);
        store_as(&layer::a, m_type);
        store_as(&layer::b, m_type);
        store_as(&layer::weights, w_type);
        magnitudes.scale = std::abs(exact.scale);

        const Tensor cotangent = (at::rand({8, tokens, 36}) - 0.5).to(x_type);
        const Tensor got = stored.ours(), want = exact.formula(), size = magnitudes.formula();
        const error_bound bound = within<float>(64, 2);
        CHECK(near<X>(got, want, size, bound));
        const auto d_got = gradients(got, cotangent, stored.leaves());
        const auto d_want = gradients(want, cotangent.to(at::kDouble), exact.leaves());
        const auto d_size = gradients(size, cotangent.to(at::kDouble).abs(), magnitudes.leaves());
        CHECK(near<X>(d_got[0], d_want[0], d_size[0], bound));
        CHECK(near<X>(d_got[1], d_want[1], d_size[1], bound));
        CHECK(near<M>(d_got[2], d_want[2], d_size[2], bound));
        CHECK(near<M>(d_got[3], d_want[3], d_size[3], bound));
        CHECK(near<W>(d_got[4], d_want[4], d_size[4], bound));
        // The bounds are tight enough to see f64 computed from inputs that are slightly other.
        if (std::is_same_v<X, float>) CHECK_FALSE(near<X>(got * (1 + 1e-3F), want, size, bound));
    }
}

} // namespace

TEST_CASE("storage types") {
    torch::manual_seed(7);
    using bf16 = at::BFloat16;
    using half = at::Half;
    check_types<float, float, float>();
    check_types<bf16, bf16, bf16>();
    check_types<half, half, half>();
    check_types<bf16, float, float>();
    check_types<half, float, float>();
    check_types<float, bf16, float>();
    check_types<float, half, bf16>();
    check_types<bf16, half, float>();
    check_types<half, bf16, double>();
}

TEST_CASE("the same bits for every number of threads") {
    torch::manual_seed(8);
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
    const auto d_got = torch::autograd::grad({got}, m.leaves());
    const auto d_want = torch::autograd::grad({want}, m.leaves());
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
    torch::manual_seed(9);
    const model m;
    for (entry_per entry : {entry_per::task, entry_per::sequence}) {
        check_model(m, entry, routing_rule{sigmoid_gate{}}, {}, 1);
        const std::int64_t entries = tasks_of_entries(m.tasks, entry).size(0);
        const Tensor uniforms = at::rand({entries, m.heads, m.modules}, at::kDouble);
        const auto view = view_of<const double, 3>(uniforms);
        check_model(m, entry, routing_rule{gumbel_sigmoid_gate{view, 0.7}}, uniforms, 0.7);
    }
}

TEST_CASE("any rule routes, and what it has views of is kept") {
    torch::manual_seed(10);
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
        weights =
            route(logits, batch, routing_rule{gumbel_sigmoid_gate{view_of<const double, 3>(noise)}},
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
    CHECK(near<at::BFloat16>(narrow.grad(), d, at::ones_like(d), within<float>(16)));
}

TEST_CASE("without a graph: the same values, nothing kept") {
    torch::manual_seed(11);
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
        CHECK(route(random_leaf({6, 2, 3}), l.batch(), routing_rule{sigmoid_gate{}}).size(0) == 3);
    }
}

TEST_CASE("empty batches, and batches of no task") {
    torch::manual_seed(12);
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
    torch::manual_seed(13);
    const layer l(mixed_tasks, 5);
    const Tensor y = l.ours();
    const Tensor cotangent = at::rand_like(y);
    const auto first = torch::autograd::grad({y}, l.leaves(), {cotangent}, true);
    const auto second = torch::autograd::grad({y}, l.leaves(), {cotangent}, true);
    // With create_graph the gradients are the same, and only their own are refused.
    const auto third = torch::autograd::grad({y}, l.leaves(), {cotangent}, true, true);
    for (std::size_t i = 0; i < first.size(); ++i) {
        CHECK(same_bits(second[i], first[i]));
        CHECK(same_bits(third[i].detach(), first[i]));
        if (i == 0) continue;
        CAPTURE(names[i]);
        for (const Tensor& leaf : {l.x, l.a, l.b, l.weights})
            CHECK_THROWS_WITH_AS(
                torch::autograd::grad({third[i].sum()}, {leaf}, {}, true, false, true),
                doctest::Contains("add_routed_lora_: gradients: expected"), std::runtime_error);
    }
    const Tensor d = cotangent.detach().requires_grad_(true);
    const auto through_y = torch::autograd::grad({y}, {l.y}, {d * d}, true, true);
    CHECK(agree(torch::autograd::grad({through_y[0].sum()}, {d})[0], 2 * d.detach()));

    const Tensor logits = random_leaf({6, 2, 3});
    const Tensor weights = route(logits, l.batch(), routing_rule{sigmoid_gate{}});
    const auto d_logits = torch::autograd::grad({weights.square().sum()}, {logits}, {}, true, true);
    CHECK_THROWS_WITH_AS(d_logits[0].sum().backward(),
                         doctest::Contains("route: gradients: expected"), std::runtime_error);
}

TEST_CASE("what autograd forbids is refused") {
    torch::manual_seed(14);
    const layer l(mixed_tasks, 5);
    const Tensor before = l.y.detach().clone();
    CHECK_THROWS_WITH_AS(add_routed_lora_(l.y, l.x, l.a, l.b, l.weights, l.batch(), 1),
                         doctest::Contains("leaf"), c10::Error);
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
    CHECK_THROWS_WITH_AS(add_routed_lora_(y, memory.slice(0, 200, 440).view({40, 6}), l.a, l.b,
                                          l.weights, l.batch(), 1),
                         doctest::Contains("single memory location"), c10::Error);
    CHECK(same_bits(memory, untouched));
}

TEST_CASE("bad input is refused before anything is written") {
    torch::manual_seed(15);
    const layer l(mixed_tasks, 2);
    const Tensor y = l.y.detach();
    const Tensor before = y.clone();
    const auto refused = [&](const char* argument, const Tensor& y_, const Tensor& x,
                             const Tensor& a, const Tensor& b, const Tensor& w,
                             const std::shared_ptr<const routed_batch>& batch) {
        const std::string result = refusal(std::string("add_routed_lora_: ") + argument, [&] {
            (void)add_routed_lora_(y_, x, a, b, w, batch, 1);
        });
        return at::equal(y, before) ? result : "y was written";
    };
    const auto batch = l.batch();
    const auto meta = [](const Tensor& of) { return of.to(at::kMeta); };
    for (const auto& bad : {Tensor(), l.x.detach().to(at::kFloat), l.x.detach().to(at::kInt),
                            l.x.slice(2, 0, 4), l.x.slice(1, 0, 1), meta(l.x.detach()),
                            l.x.detach().to_sparse(), at::ones({}, at::kDouble)}) {
        CAPTURE(bad.defined() ? bad.toString() : "undefined");
        // Of two types that do not go together, either is to blame.
        const bool other_type = bad.defined() && bad.scalar_type() == at::kFloat;
        CHECK(refused(other_type ? "a" : "x", y, bad, l.a, l.b, l.weights, batch) == "");
    }
    for (const auto& bad : {Tensor(), y.to(at::kFloat), y.slice(2, 0, 9), y.slice(0, 0, 3), meta(y),
                            y.to_sparse(), at::ones({1}, at::kDouble).expand(y.sizes()),
                            at::zeros({8, 3, 10}, at::kDouble).slice(1, 0, 2)}) {
        CAPTURE(bad.defined() ? bad.toString() : "undefined");
        CHECK(refused("", bad, l.x, l.a, l.b, l.weights, batch) == "");
    }
    for (const auto& bad :
         {Tensor(), l.a.detach().to(at::kFloat), l.a.detach().to(at::kLong), l.a.flatten(0, 1),
          l.a.slice(3, 0, 3), l.a.slice(1, 0, 2), meta(l.a.detach())}) {
        CAPTURE(bad.defined() ? bad.toString() : "undefined");
        CHECK(refused("", y, l.x, bad, l.b, l.weights, batch) == "");
    }
    for (const auto& bad : {Tensor(), l.b.detach().to(at::kFloat), l.b.flatten(0, 1),
                            l.b.slice(2, 0, 3), l.b.slice(3, 0, 4), meta(l.b.detach())}) {
        CAPTURE(bad.defined() ? bad.toString() : "undefined");
        CHECK(refused("", y, l.x, l.a, bad, l.weights, batch) == "");
    }
    for (const auto& bad :
         {Tensor(), l.weights.flatten(0, 1), l.weights.slice(0, 0, 2), l.weights.slice(2, 0, 2),
          meta(l.weights.detach()), l.weights.detach().to_sparse()}) {
        CAPTURE(bad.defined() ? bad.toString() : "undefined");
        CHECK(refused("weights", y, l.x, l.a, l.b, bad, batch) == "");
    }
    CHECK(refused("batch", y, l.x, l.a, l.b, l.weights, nullptr) == "");
    CHECK(refused("x", y, l.x, l.a, l.b, l.weights, layer({0, 1}, 3).batch()) == "");
    CHECK(refused("weights", y, l.x, l.a, l.b, l.weights, layer({0, 1, 2, 3}, 4).batch()) == "");

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
    CHECK(routing_refused(logits, routing_rule{gumbel_sigmoid_gate{view_of<double, 3>(noise)}},
                          batch) == "");
}
