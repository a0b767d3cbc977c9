// Every optional argument of every function of the library may be written {}: what the others get
// is the same, to the last bit. (interop/mpi_test.cpp asks the same of MPI's.)

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/mhr.hpp>

#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr index_t heads = 2, modules = 3, rank = 3, in_block = 5, out_block = 4;
constexpr index_t in = heads * in_block, out = heads * out_block;
constexpr double scale = 0.75;

template <class T, std::size_t Rank>
tensor<T, Rank> random_tensor(std::uint64_t seed, const std::array<index_t, Rank>& extents) {
    tensor<T, Rank> result(extents);
    random_source(seed).fill(result.view());
    return result;
}

/// What a backward may be asked for.
enum output { of_x, of_hidden, of_a, of_b, of_weights, of_adapter_a, of_adapter_b, outputs };

/// Memory for all of it, 0 at first.
class gradients {
  public:
    explicit gradients(index_t rows, index_t entries)
        : x_({rows, in}), hidden_({rows, rank}), a_({heads, modules, in_block, rank}),
          b_({heads, modules, rank, out_block}), weights_({entries, heads, modules}),
          adapter_a_({entries, in, rank}), adapter_b_({entries, rank, out}) {}

    tensor_view<float, 2> x() { return x_.view(); }
    tensor_view<float, 2> hidden() { return hidden_.view(); }
    tensor_view<float, 4> a() { return a_.view(); }
    tensor_view<float, 3> weights() { return weights_.view(); }
    lora_inventory<float> inventory() { return {a_.view(), b_.view()}; }
    lora_batch<float> adapters() { return {adapter_a_.view(), adapter_b_.view()}; }

    const std::vector<float>& values(int of) const {
        const std::vector<float>* const all[] = {
            &x_.values(),       &hidden_.values(),    &a_.values(),        &b_.values(),
            &weights_.values(), &adapter_a_.values(), &adapter_b_.values()};
        return *all[of];
    }

  private:
    tensor<float, 2> x_, hidden_;
    tensor<float, 4> a_, b_;
    tensor<float, 3> weights_, adapter_a_, adapter_b_;
};

/// A layer whose activations and modules are stored as T, and rows of two tasks and of none.
template <class T>
struct layer {
    layer() {
        const int tasks[] = {1, 1, -1, 0, 1};
        plan.assign_rows(tensor_view<const int, 1>(tasks, {5}));
        routed_lora_forward(serial_executor{}, plan, x.const_view(), inventory(),
                            weights.const_view(), scale, y.view(), state());
    }
    layer(const layer&) = delete;
    layer& operator=(const layer&) = delete;

    [[nodiscard]] lora_inventory<const T> inventory() const { return {a.view(), b.view()}; }
    [[nodiscard]] lora_batch<const float> adapters() const {
        return {mixed_a.view(), mixed_b.view()};
    }
    routed_lora_state<float> state() { return {{mixed_a.view(), mixed_b.view()}, hidden.view()}; }
    [[nodiscard]] workspace scratch() { return memory; }

    /// True if `call` computes what is left of `full` without `absent`, and no more.
    template <class Full, class Call>
    bool leaves_out(std::initializer_list<output> absent, Full&& full, Call&& call) {
        gradients want(plan.rows(), plan.entries()), got(plan.rows(), plan.entries());
        full(want);
        call(got);
        for (int of = 0; of < outputs; ++of) {
            bool left_out = false;
            for (const output each : absent)
                left_out = left_out || each == of;
            const std::vector<float> zeros(want.values(of).size());
            // What is left out has to have been something.
            if (left_out && want.values(of) == zeros) return false;
            if (got.values(of) != (left_out ? zeros : want.values(of))) return false;
        }
        return true;
    }

    batch_plan plan;
    const tensor<T, 2> x = random_tensor<T, 2>(1, {5, in});
    const tensor<T, 2> d_y = random_tensor<T, 2>(2, {5, out});
    const tensor<T, 4> a = random_tensor<T, 4>(3, {heads, modules, in_block, rank});
    const tensor<T, 4> b = random_tensor<T, 4>(4, {heads, modules, rank, out_block});
    const tensor<float, 3> weights = random_tensor<float, 3>(5, {2, heads, modules});
    tensor<T, 2> y{{5, out}};
    tensor<float, 2> hidden{{5, rank}};
    tensor<float, 3> mixed_a{{2, in, rank}}, mixed_b{{2, rank, out}};
    owned_workspace memory{std::size_t{1} << 16};
};

// A call with these gradients, after and before what is the same in all calls of a test.
#define CALL(...) [&]([[maybe_unused]] gradients& g) { WITH_THE_OTHER_ARGUMENTS(__VA_ARGS__); }

} // namespace

#define STORAGE_TYPES float, Eigen::bfloat16

TEST_CASE_TEMPLATE("absent gradients of routed LoRA", T, STORAGE_TYPES) {
    layer<T> l;
#define WITH_THE_OTHER_ARGUMENTS(...)                                                              \
    routed_lora_backward(serial_executor{}, l.plan, l.x.view(), l.inventory(), l.weights.view(),   \
                         scale, l.state(), l.d_y.view(), __VA_ARGS__, l.scratch())
    const auto full = CALL(g.x(), g.inventory(), g.weights());
    CHECK(l.leaves_out({of_x}, full, CALL({}, g.inventory(), g.weights())));
    CHECK(l.leaves_out({of_a, of_b}, full, CALL(g.x(), {}, g.weights())));
    CHECK(l.leaves_out({of_a}, full,
                       CALL(g.x(), lora_inventory<float>{{}, g.inventory().b}, g.weights())));
    CHECK(l.leaves_out({of_b}, full, CALL(g.x(), lora_inventory<float>{g.a(), {}}, g.weights())));
    CHECK(l.leaves_out({of_weights}, full, CALL(g.x(), g.inventory(), {})));
    CHECK(l.leaves_out({of_x, of_a, of_b}, full, CALL({}, {}, g.weights())));
    CHECK(l.leaves_out({of_x, of_a, of_b, of_weights}, full, CALL({}, {}, {})));
#undef WITH_THE_OTHER_ARGUMENTS
}

TEST_CASE_TEMPLATE("absent gradients of mixing", T, STORAGE_TYPES) {
    layer<T> l;
    const auto d_mixed = l.adapters(); // of the right shape
    SUBCASE("of LoRA's modules") {
#define WITH_THE_OTHER_ARGUMENTS(...)                                                              \
    mix_lora_backward(serial_executor{}, l.weights.view(), l.inventory(), d_mixed, __VA_ARGS__)
        const auto full = CALL(g.inventory(), g.weights());
        CHECK(l.leaves_out({of_a, of_b}, full, CALL({}, g.weights())));
        CHECK(l.leaves_out({of_weights}, full, CALL(g.inventory(), {})));
        CHECK(l.leaves_out({of_a, of_b, of_weights}, full, CALL({}, {})));
#undef WITH_THE_OTHER_ARGUMENTS
    }
    SUBCASE("of any blocks") {
#define WITH_THE_OTHER_ARGUMENTS(...)                                                              \
    mix_backward(serial_executor{}, l.weights.view(), l.a.view(), d_mixed.a.split(1, heads),       \
                 __VA_ARGS__)
        const auto full = CALL(g.a(), g.weights());
        CHECK(l.leaves_out({of_a}, full, CALL({}, g.weights())));
        CHECK(l.leaves_out({of_weights}, full, CALL(g.a(), {})));
        CHECK(l.leaves_out({of_a, of_weights}, full, CALL({}, {})));
#undef WITH_THE_OTHER_ARGUMENTS
    }
}

TEST_CASE_TEMPLATE("absent gradients of LoRA", T, STORAGE_TYPES) {
    layer<T> l;
#define WITH_THE_OTHER_ARGUMENTS(...)                                                              \
    lora_backward(serial_executor{}, l.plan, l.x.view(), l.adapters(), scale, l.hidden.view(),     \
                  l.d_y.view(), __VA_ARGS__, l.scratch())
    const auto full = CALL(g.x(), g.adapters());
    CHECK(l.leaves_out({of_x}, full, CALL({}, g.adapters())));
    CHECK(l.leaves_out({of_adapter_a, of_adapter_b}, full, CALL(g.x(), {})));
    CHECK(
        l.leaves_out({of_adapter_a}, full, CALL(g.x(), lora_batch<float>{{}, g.adapters().b, {}})));
    CHECK(
        l.leaves_out({of_adapter_b}, full, CALL(g.x(), lora_batch<float>{g.adapters().a, {}, {}})));
    CHECK(l.leaves_out({of_x, of_adapter_a, of_adapter_b}, full, CALL({}, {})));
#undef WITH_THE_OTHER_ARGUMENTS
}

TEST_CASE_TEMPLATE("absent outputs of the halves of LoRA", T, STORAGE_TYPES) {
    layer<T> l;
    const auto d_hidden = random_tensor<float, 2>(7, {5, rank});
    SUBCASE("expand") {
#define WITH_THE_OTHER_ARGUMENTS(...)                                                              \
    lora_expand_backward(serial_executor{}, l.plan, l.hidden.view(), l.adapters(), scale,          \
                         l.d_y.view(), __VA_ARGS__, l.scratch())
        const auto full = CALL(g.hidden(), g.adapters());
        CHECK(l.leaves_out({of_hidden}, full, CALL({}, g.adapters())));
        CHECK(l.leaves_out({of_adapter_b}, full, CALL(g.hidden(), {})));
        CHECK(l.leaves_out({of_hidden, of_adapter_b}, full, CALL({}, {})));
#undef WITH_THE_OTHER_ARGUMENTS
    }
    SUBCASE("project") {
#define WITH_THE_OTHER_ARGUMENTS(...)                                                              \
    lora_project_backward(serial_executor{}, l.plan, l.x.view(), l.adapters(), d_hidden.view(),    \
                          __VA_ARGS__, l.scratch())
        const auto full = CALL(g.x(), g.adapters());
        CHECK(l.leaves_out({of_x}, full, CALL({}, g.adapters())));
        CHECK(l.leaves_out({of_adapter_a}, full, CALL(g.x(), {})));
        CHECK(l.leaves_out({of_x, of_adapter_a}, full, CALL({}, {})));
#undef WITH_THE_OTHER_ARGUMENTS
    }
    SUBCASE("expand, routed") {
#define WITH_THE_OTHER_ARGUMENTS(...)                                                              \
    routed_lora_expand_backward(serial_executor{}, l.plan, l.inventory(), l.weights.view(), scale, \
                                l.state(), l.d_y.view(), __VA_ARGS__, l.scratch())
        const auto full = CALL(g.hidden(), g.inventory(), g.weights());
        CHECK(l.leaves_out({of_hidden}, full, CALL({}, g.inventory(), g.weights())));
        CHECK(l.leaves_out({of_b}, full, CALL(g.hidden(), {}, g.weights())));
        CHECK(l.leaves_out({of_weights}, full, CALL(g.hidden(), g.inventory(), {})));
        CHECK(l.leaves_out({of_hidden, of_b, of_weights}, full, CALL({}, {}, {})));
#undef WITH_THE_OTHER_ARGUMENTS
    }
    SUBCASE("project, routed") {
#define WITH_THE_OTHER_ARGUMENTS(...)                                                              \
    routed_lora_project_backward(serial_executor{}, l.plan, l.x.view(), l.inventory(),             \
                                 l.weights.view(), l.state(), d_hidden.view(), __VA_ARGS__,        \
                                 l.scratch())
        const auto full = CALL(g.x(), g.inventory(), g.weights());
        CHECK(l.leaves_out({of_x}, full, CALL({}, g.inventory(), g.weights())));
        CHECK(l.leaves_out({of_a}, full, CALL(g.x(), {}, g.weights())));
        CHECK(l.leaves_out({of_weights}, full, CALL(g.x(), g.inventory(), {})));
        CHECK(l.leaves_out({of_x, of_a, of_weights}, full, CALL({}, {}, {})));
#undef WITH_THE_OTHER_ARGUMENTS
    }
}

TEST_CASE_TEMPLATE("absent gradients of LoRA with mixed outputs", T, STORAGE_TYPES) {
    layer<T> l;
    // One head: all modules of the first one, of as many features.
    const auto one_head = [](const auto& view) { return view.block(0, 0, 1); };
    const lora_inventory<const T> inventory{one_head(l.a.view()), one_head(l.b.view())};
    const auto weights = l.weights.view().block(1, 0, 1);
    const auto x = l.x.view().block(1, 0, in_block);
    const auto d_y = l.d_y.view().block(1, 0, out_block);
    const auto hidden = random_tensor<float, 3>(7, {5, modules, rank});
    const auto d_inventory = [&](gradients& g) {
        return lora_inventory<float>{one_head(g.a()), one_head(g.inventory().b)};
    };
#define D_X g.x().block(1, 0, in_block)
#define D_WEIGHTS g.weights().block(1, 0, 1)
#define WITH_THE_OTHER_ARGUMENTS(...)                                                              \
    output_mixed_lora_backward(serial_executor{}, l.plan, x, inventory, weights, scale,            \
                               hidden.view(), d_y, __VA_ARGS__, l.scratch())
    const auto full = CALL(D_X, d_inventory(g), D_WEIGHTS);
    CHECK(l.leaves_out({of_x}, full, CALL({}, d_inventory(g), D_WEIGHTS)));
    CHECK(l.leaves_out({of_a, of_b}, full, CALL(D_X, {}, D_WEIGHTS)));
    CHECK(l.leaves_out({of_weights}, full, CALL(D_X, d_inventory(g), {})));
    CHECK(l.leaves_out({of_x, of_a, of_b, of_weights}, full, CALL({}, {}, {})));
#undef WITH_THE_OTHER_ARGUMENTS
#undef D_WEIGHTS
#undef D_X
}

TEST_CASE_TEMPLATE("absent gradients of (IA)3", T, STORAGE_TYPES) {
    layer<T> l;
    // [heads, modules, features / heads], and for each task [features]: some column of a matrix.
    const auto column = [](const auto& view) { return view.slice(view.extents().size() - 1, 0); };
    const auto modules_of_layer = column(l.a.view());
    const auto scales = column(l.adapters().a);
    const auto d_y = l.x.view();
    SUBCASE("of each task") {
#define WITH_THE_OTHER_ARGUMENTS(...)                                                              \
    ia3_backward(serial_executor{}, l.plan, l.x.view(), scales, d_y, __VA_ARGS__)
        const auto full = CALL(g.x(), column(g.adapters().a));
        CHECK(l.leaves_out({of_x}, full, CALL({}, column(g.adapters().a))));
        CHECK(l.leaves_out({of_adapter_a}, full, CALL(g.x(), {})));
        CHECK(l.leaves_out({of_x, of_adapter_a}, full, CALL({}, {})));
#undef WITH_THE_OTHER_ARGUMENTS
    }
    SUBCASE("mixed") {
#define WITH_THE_OTHER_ARGUMENTS(...)                                                              \
    mix_ia3_backward(serial_executor{}, l.weights.view(), modules_of_layer, scales, __VA_ARGS__)
        const auto full = CALL(column(g.a()), g.weights());
        CHECK(l.leaves_out({of_a}, full, CALL({}, g.weights())));
        CHECK(l.leaves_out({of_weights}, full, CALL(column(g.a()), {})));
        CHECK(l.leaves_out({of_a, of_weights}, full, CALL({}, {})));
#undef WITH_THE_OTHER_ARGUMENTS
    }
    SUBCASE("routed") {
#define WITH_THE_OTHER_ARGUMENTS(...)                                                              \
    routed_ia3_backward(serial_executor{}, l.plan, l.x.view(), modules_of_layer, l.weights.view(), \
                        scales, d_y, __VA_ARGS__, l.scratch())
        const auto full = CALL(g.x(), column(g.a()), g.weights());
        CHECK(l.leaves_out({of_x}, full, CALL({}, column(g.a()), g.weights())));
        CHECK(l.leaves_out({of_a}, full, CALL(g.x(), {}, g.weights())));
        CHECK(l.leaves_out({of_weights}, full, CALL(g.x(), column(g.a()), {})));
        CHECK(l.leaves_out({of_x, of_a, of_weights}, full, CALL({}, {}, {})));
#undef WITH_THE_OTHER_ARGUMENTS
    }
}

TEST_CASE("a layer without a bias") {
    const auto scales = random_tensor<float, 1>(8, {out});
    tensor<double, 2> want({out, in}), got({out, in});
    want.values().assign(want.values().size(), 3);
    got.values() = want.values();
    tensor<float, 1> bias({out});
    merge_ia3(serial_executor{}, scales.view(), want.view(), bias.view());
    merge_ia3(serial_executor{}, scales.view(), got.view(), {});
    CHECK(got.values() == want.values());
    CHECK(got(0, 0) == 3 * static_cast<double>(scales(0)));
    unmerge_ia3(serial_executor{}, scales.view(), want.view(), bias.view());
    unmerge_ia3(serial_executor{}, scales.view(), got.view(), {});
    CHECK(got.values() == want.values());
    CHECK(got(0, 0) == doctest::Approx(3));
}

TEST_CASE("a library of adapters without scales, and an adapter for each entry") {
    layer<float> l;
    const lora<const float> adapter{l.adapters().a.slice(0, 0), l.adapters().b.slice(0, 0)};
    tensor<float, 3> want_a({1, in, rank}), want_b({1, rank, out}), a = want_a, b = want_b;
    const double one = 1;
    const tensor_view<const lora<const float>, 1> adapters(&adapter, {1});
    gather_lora_library(serial_executor{}, adapters, tensor_view<const double, 1>(&one, {1}),
                        lora_batch<float>{want_a.view(), want_b.view()});
    gather_lora_library(serial_executor{}, adapters, {},
                        lora_batch<float>{a.view(), b.view(), {}}); // nor slots
    CHECK(a.values() == want_a.values());
    CHECK(b.values() == want_b.values());
    CHECK(b(0, 0, 0) == adapter.b(0, 0));
}

TEST_CASE("a Gram matrix of one matrix of two") {
    layer<float> l;
    const auto d = l.adapters();
    const auto grams = [&](auto&& call) {
        tensor<double, 2> of_a({2, 2}), of_b({2, 2}), of_both({2, 2});
        call(lora_batch<const float>{d.a, {}, {}}, of_a.view());
        call(lora_batch<const float>{{}, d.b, {}}, of_b.view());
        call(d, of_both.view());
        CHECK(of_a(0, 0) > 0);
        CHECK(of_b(0, 0) > 0);
        CHECK(of_a(0, 0) + of_b(0, 0) == doctest::Approx(of_both(0, 0)));
    };
    grams([&](const auto& gradients_of_tasks, const auto& gram) {
        lora_gradient_gram(serial_executor{}, gradients_of_tasks, gram);
    });
    grams([&](const auto& gradients_of_tasks, const auto& gram) {
        routed_lora_gradient_gram(serial_executor{}, l.weights.view(), gradients_of_tasks, gram);
    });
}

TEST_CASE("absent gradients of the oracles") {
    // Products of numbers of one element each: 2, 3, 5, 7, 11.
    const double two = 2, three = 3, five = 5, seven = 7, eleven = 11;
    const index_t zero = 0;
    const tensor_view<const index_t, 1> row(&zero, {1});
    const tensor_view<const double, 2> x(&two, {1, 1}), d_y(&eleven, {1, 1}), w(&seven, {1, 1});
    const tensor_view<const double, 3> a(&three, {1, 1, 1}), b(&five, {1, 1, 1});
    double d = 0;
    reference::lora_backward(row, x, a, b, 1.0, d_y, tensor_view<double, 2>(&d, {1, 1}), {}, {});
    CHECK(d == 3 * 5 * 11);
    d = 0;
    reference::output_mixed_lora_backward(row, x, a, b, w, 1.0, d_y, {}, {}, {},
                                          tensor_view<double, 2>(&d, {1, 1}));
    CHECK(d == 2 * 3 * 5 * 11);
    d = 0;
    reference::ia3_backward(row, x, w, d_y, {}, tensor_view<double, 2>(&d, {1, 1}));
    CHECK(d == 2 * 11);
    d = 0;
    reference::mix_backward(a, tensor_view<const double, 4>(&seven, {1, 1, 1, 1}),
                            tensor_view<const double, 4>(&eleven, {1, 1, 1, 1}), {},
                            tensor_view<double, 3>(&d, {1, 1, 1}));
    CHECK(d == 7 * 11);
}
