#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/inventory.hpp>
#include <mhr/lora/lora.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/reference/lora.hpp>
#include <mhr/serving/merge.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/layer_problem.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const serial_executor serial;

/// The oracle computes with this, one precision above the f64 that sums may have.
using wide = long double;

/// Calls `f` with every element type of an adapter (or of scales) and of a base weight (and a
/// bias).
template <class Function>
void for_all_types(Function&& f) {
    for (element_type of_adapter : all_element_types)
        for (element_type of_weight : all_element_types) {
            const std::string types =
                std::string(name_of(of_adapter)) + " into " + name_of(of_weight);
            CAPTURE(types);
            f(of_adapter, of_weight);
        }
}

struct sizes {
    index_t in, out, rank;
};

// Round the tiles, the 24 rows of a part and the columns that are summed at a time.
constexpr sizes shapes[] = {{1, 1, 1},    {64, 24, 16}, {65, 25, 17}, {63, 23, 3},
                            {130, 5, 33}, {7, 40, 1},   {3, 3, 40},   {129, 49, 2}};

struct problem {
    sizes s;
    double scale = -0.75;
    guarded_tensor<2> a, b, base_weight;

    explicit problem(const sizes& sizes_, element_type of_adapter = element_type::f32,
                     element_type of_weight = element_type::f32,
                     layout order_of_adapter = layout::row_major,
                     layout order_of_weight = layout::row_major)
        : s(sizes_), a(of_adapter, {s.in, s.rank}, order_of_adapter),
          b(of_adapter, {s.rank, s.out}, order_of_adapter),
          base_weight(of_weight, {s.out, s.in}, order_of_weight) {
        random_source random(3);
        a.fill(random);
        b.fill(random);
        base_weight.fill(random);
    }
    [[nodiscard]] lora adapter() const { return {a.const_ref(), b.const_ref(), scale}; }
    [[nodiscard]] element_type sums() const { return sums_of(a.type(), base_weight.type()); }
    void merge(executor_ref executor = serial) {
        merge_lora(executor, adapter(), base_weight.ref());
    }
    void unmerge(executor_ref executor = serial) {
        unmerge_lora(executor, adapter(), base_weight.ref());
    }
};

/// A merged base weight is what LoRA adds to its transpose if x is the identity.
tensor<wide, 2> merged(const tensor<wide, 2>& a, const tensor<wide, 2>& b, wide scale,
                       tensor<wide, 2> base_weight) {
    const index_t in = a.extents()[0];
    tensor<wide, 2> identity({in, in});
    tensor<index_t, 1> adapter_of_row({in});
    for (index_t i = 0; i < in; ++i)
        identity(i, i) = 1;
    reference::lora_forward(adapter_of_row.const_view(), identity.const_view(),
                            a.const_view().prepend_axis(), b.const_view().prepend_axis(), scale,
                            base_weight.view().transpose(0, 1));
    return base_weight;
}

/// y[row] = x[row] base_weight^T.
tensor<wide, 2> base_layer(const tensor<wide, 2>& x, const tensor<wide, 2>& base_weight) {
    tensor<wide, 2> y({x.extents()[0], base_weight.extents()[0]});
    for_each_position(y.extents(), [&](const position<2>& at) {
        for (index_t i = 0; i < x.extents()[1]; ++i)
            y(at[0], at[1]) += x(at[0], i) * base_weight(at[1], i);
    });
    return y;
}

} // namespace

TEST_CASE("a merged base weight agrees with the oracle") {
    for_all_types([](element_type of_adapter, element_type of_weight) {
        for (const sizes& s : shapes) {
            CAPTURE(s.in);
            CAPTURE(s.out);
            CAPTURE(s.rank);
            problem p(s, of_adapter, of_weight);
            const auto want =
                merged(values_as<wide>(p.a.ref()), values_as<wide>(p.b.ref()),
                       static_cast<wide>(p.scale), values_as<wide>(p.base_weight.ref()));
            const auto size = merged(magnitudes_as<wide>(p.a.ref()), magnitudes_as<wide>(p.b.ref()),
                                     static_cast<wide>(std::abs(p.scale)),
                                     magnitudes_as<wide>(p.base_weight.ref()));
            p.merge();
            // A half of its epsilon for each of the sum's terms, the scale and the sum with the
            // base weight.
            CHECK(compare(p.base_weight.ref(), want.view(), size.view(),
                          within(p.sums(), static_cast<double>(s.rank) / 2 + 2, 0.5)));
            CHECK(p.base_weight.intact());
        }
    });
}

TEST_CASE("merging works in every layout, to the same bits") {
    const sizes s{70, 37, 18};
    for (element_type of_weight : {element_type::f32, element_type::bf16}) {
        problem want(s, element_type::f32, of_weight), undone(s, element_type::f32, of_weight);
        want.merge();
        undone.unmerge();
        for (layout of_adapter : all_layouts)
            for (layout order : all_layouts) {
                CAPTURE(name_of(of_adapter));
                CAPTURE(name_of(order));
                problem p(s, element_type::f32, of_weight, of_adapter, order);
                p.merge();
                CHECK(compare_bitwise(p.base_weight.ref(), want.base_weight.ref()));
                CHECK(p.base_weight.intact());
                problem q(s, element_type::f32, of_weight, of_adapter, order);
                q.unmerge();
                CHECK(compare_bitwise(q.base_weight.ref(), undone.base_weight.ref()));
            }
    }
    // A host that keeps [in, out], as raw memory.
    problem p(s);
    const auto before = values_as<float>(p.base_weight.ref());
    p.merge();
    std::vector<float> host(static_cast<std::size_t>(s.in * s.out));
    const tensor_ref<2> base_weight = tensor_ref<2>(host.data(), {s.in, s.out}).transpose(0, 1);
    for_each_position(before.extents(), [&](const position<2>& at) {
        set_element(base_weight, at, static_cast<double>(element(before.view(), at)));
    });
    merge_lora(serial, {p.a.ref(), p.b.ref(), p.scale}, base_weight);
    CHECK(compare_bitwise(base_weight, p.base_weight.ref()));
}

TEST_CASE("an adapter of stride 0 is broadcast") {
    const sizes s{20, 18, 3};
    problem p(s), same(s);
    const float number = 0.375F;
    same.a.fill(0.375);
    same.merge();
    merge_lora(serial, {{&number, {s.in, s.rank}, {0, 0}}, p.b.ref(), p.scale}, p.base_weight);
    CHECK(compare_bitwise(p.base_weight.ref(), same.base_weight.ref()));
}

TEST_CASE("unmerging takes the same numbers out again, within the documented bound") {
    for_all_types([](element_type of_adapter, element_type of_weight) {
        const double u = precision_of(of_weight).epsilon / 2;
        double worst = 0;
        for (double scale : {0.001, -0.75, 1.0, 300.0}) {
            CAPTURE(scale);
            const sizes s{65, 40, 5};
            problem p(s, of_adapter, of_weight);
            p.scale = scale;
            const auto before = values_as<double>(p.base_weight.ref());
            guarded_tensor<2> change(p.sums(), {s.out, s.in}); // from zeros, as sums are
            change.fill(0);
            merge_lora(serial, p.adapter(), change.ref());
            const auto changes = values_as<double>(change.ref());
            guarded_tensor<2> want(of_weight, {s.out, s.in});
            const auto check_all = [&](auto&& sum_at) {
                for_each_position(want.extents(), [&](const position<2>& at) {
                    double sum = sum_at(at);
                    // A sum of f32 is rounded to f32 first.
                    if (p.sums() == element_type::f32) sum = static_cast<double>(float(sum));
                    set_element(want.ref(), at, sum);
                });
                CHECK(compare_bitwise(p.base_weight.ref(), want.ref()));
            };
            p.merge();
            const auto after = values_as<double>(p.base_weight.ref());
            check_all([&](const position<2>& at) {
                return before(at[0], at[1]) + changes(at[0], at[1]);
            });
            p.unmerge();
            const auto undone = values_as<double>(p.base_weight.ref());
            check_all(
                [&](const position<2>& at) { return after(at[0], at[1]) - changes(at[0], at[1]); });
            std::size_t outside = 0;
            for_each_position(want.extents(), [&](const position<2>& at) {
                const wide w = before(at[0], at[1]);
                const wide d = changes(at[0], at[1]);
                const wide error = std::abs(undone(at[0], at[1]) - w);
                const wide bound =
                    static_cast<wide>(u * (1 + 4 * u)) * (std::abs(w + d) + std::abs(w)) +
                    static_cast<wide>(precision_of(of_weight).smallest_step);
                if (!(error <= bound)) ++outside;
                worst = std::max(worst, static_cast<double>(error / bound));
            });
            CHECK(outside == 0);
        }
        CHECK(worst > 0.5); // the bound says something
    });
}

TEST_CASE("where nothing is rounded, unmerging restores every bit") {
    for_all_types([](element_type of_adapter, element_type of_weight) {
        problem p({33, 20, 4}, of_adapter, of_weight);
        for (guarded_tensor<2>* tensor : {&p.a, &p.b, &p.base_weight})
            transform_elements(tensor->ref(), [](double value) {
                return std::round(2 * value) + 0; // -2 .. 2, no -0
            });
        p.scale = 2;
        const auto before = p.base_weight.take_snapshot();
        p.merge();
        CHECK_FALSE(p.base_weight.unchanged_since(before));
        p.unmerge();
        CHECK(p.base_weight.unchanged_since(before));
    });
}

TEST_CASE("what the adapter does not change keeps its bits") {
    for (element_type of_weight : all_element_types)
        for (layout order : {layout::row_major, layout::column_major}) {
            CAPTURE(std::string(name_of(of_weight)));
            const auto make = [&](problem& p) {
                set_element(p.base_weight.ref(), {0, 0}, -0.0);
                set_element(p.base_weight.ref(), {17, 64}, -0.0);
            };
            const sizes s{65, 18, 3};
            for (double scale : {0.0, -0.0}) {
                problem p(s, element_type::f32, of_weight, layout::row_major, order);
                make(p);
                p.scale = scale;
                const auto before = p.base_weight.take_snapshot();
                p.merge();
                p.unmerge();
                CHECK(p.base_weight.unchanged_since(before));
            }
            for (double scale : {1.5, -1.5}) {
                problem p(s, element_type::f32, of_weight, layout::row_major, order);
                make(p);
                p.b.fill(0);
                p.scale = scale;
                const auto before = p.base_weight.take_snapshot();
                p.merge();
                p.unmerge();
                CHECK(p.base_weight.unchanged_since(before));
                // A column of b that is not 0 changes a row of the base weight, and no other.
                set_element(p.b.ref(), {2, 5}, 1);
                problem same(s, element_type::f32, of_weight, layout::row_major, order);
                make(same);
                p.merge();
                for (index_t row : {0, 2, 3, 4, 6, 16, 17})
                    CHECK(compare_bitwise(p.base_weight.ref().slice(0, row),
                                          same.base_weight.ref().slice(0, row)));
                CHECK_FALSE(compare_bitwise(p.base_weight.ref().slice(0, 5),
                                            same.base_weight.ref().slice(0, 5)));
            }
        }
}

TEST_CASE("a signalling NaN in a base weight that is not changed stays one") {
    for (element_type of_weight : all_element_types) {
        CAPTURE(std::string(name_of(of_weight)));
        const index_t in = 40, out = 5; // elements as they are made are signalling NaN
        guarded_tensor<2> base_weight(of_weight, {out, in}), a(element_type::f32, {in, 2}),
            b(element_type::f32, {2, out});
        a.fill(1);
        b.fill(0);
        const auto before = base_weight.take_snapshot();
        merge_lora(serial, {a.ref(), b.ref(), 2}, base_weight.ref());
        CHECK(base_weight.unchanged_since(before));
    }
}

TEST_CASE("a merged layer gives what the layer and LoRA give") {
    for (const auto& [of_adapter, of_weight] : {std::pair{element_type::f64, element_type::f64},
                                                std::pair{element_type::f32, element_type::f32},
                                                std::pair{element_type::f32, element_type::bf16},
                                                std::pair{element_type::f16, element_type::f16}}) {
        const sizes s{30, 21, 4};
        problem p(s, of_adapter, of_weight);
        const element_type sums = p.sums();
        guarded_tensor<2> x(sums, {9, s.in}), y(sums, {9, s.out});
        x.fill(random_source(8));
        const auto of_base =
            base_layer(values_as<wide>(x.ref()), values_as<wide>(p.base_weight.ref()));
        for_each_position(y.extents(), [&](const position<2>& at) {
            set_element(y.ref(), at, static_cast<double>(of_base(at[0], at[1])));
        });
        batch_plan plan;
        plan.assign_single_task(9);
        poisoned_memory of_state(lora_state_size({plan}, p.adapter(), sums));
        workspace memory = of_state;
        lora_forward({plan}, p.adapter(), x.ref(), y.ref(),
                     take_lora_state(memory, {plan}, p.adapter(), sums));
        const auto size_of_weight =
            merged(magnitudes_as<wide>(p.a.ref()), magnitudes_as<wide>(p.b.ref()),
                   static_cast<wide>(std::abs(p.scale)), magnitudes_as<wide>(p.base_weight.ref()));
        p.merge();
        const auto want =
            base_layer(values_as<wide>(x.ref()), values_as<wide>(p.base_weight.ref()));
        const auto size = base_layer(magnitudes_as<wide>(x.ref()), size_of_weight);
        const double roundings =
            static_cast<double>(2 * s.in + 2 * s.rank) * precision_of(sums).epsilon;
        CHECK(compare(y.ref(), want.view(), size.view(),
                      error_bound{1, roundings + precision_of(of_weight).epsilon / 2, 0}));
    }
}

TEST_CASE("a task's mixture and the average of an inventory, merged") {
    for (bool average : {false, true}) {
        CAPTURE(average);
        const layer_sizes s{11, 1, 3, 4, 5, 7, 3};
        batch_plan plan;
        plan.assign_single_task(s.rows);
        layer_problem p(s, plan, all_of(element_type::f64));
        if (average) p.weights.fill(0.25);
        guarded_tensor<2> base_weight(element_type::f64, {s.out(), s.in()});
        base_weight.fill(random_source(12));
        const auto x = values_as<wide>(p.x.ref());
        const auto base = base_layer(x, values_as<wide>(base_weight.ref()));
        p.y.fill(0);
        p.run();

        guarded_tensor<2> a(element_type::f64, {s.in(), s.rank});
        guarded_tensor<2> b(element_type::f64, {s.rank, s.out()});
        if (average)
            average_lora_forward(serial, p.layer().inventory(), {a.ref(), b.ref()});
        else
            mix_lora_forward(serial, p.weights.ref(), p.layer().inventory(),
                             {a.ref().prepend_axis(), b.ref().prepend_axis()});
        merge_lora(serial, {a.ref(), b.ref(), p.scale}, base_weight.ref());
        auto got = base_layer(x, values_as<wide>(base_weight.ref()));
        for_each_position(got.extents(),
                          [&](const position<2>& at) { got(at[0], at[1]) -= base(at[0], at[1]); });
        // Sums of up to 15 terms of about 1, and of 45 where LoRA multiplies.
        tensor<wide, 2> size(got.extents());
        std::fill(size.values().begin(), size.values().end(), 60);
        CHECK(compare(p.y.ref(), got.view(), size.view(), within(element_type::f64, 1, 0)));
        std::fill(got.values().begin(), got.values().end(), 0);
        CHECK_FALSE(
            compare(p.y.ref(), got.view(), size.view(), within(element_type::f64, 1000, 0)));
    }
}

TEST_CASE("merging gives the same bits on every executor, and accepts shares") {
    const sizes s{150, 130, 9};
    problem want(s), undone(s);
    want.merge();
    undone.unmerge();
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        problem p(s), q(s);
        p.merge(executor);
        q.unmerge(executor);
        CHECK(compare_bitwise(p.base_weight.ref(), want.base_weight.ref()));
        CHECK(compare_bitwise(q.base_weight.ref(), undone.base_weight.ref()));
    });
    for (layout order : {layout::row_major, layout::column_major}) {
        problem p(s, element_type::f32, element_type::f32, layout::row_major, order);
        for_each_share(3, [&](executor_ref executor) { p.merge(executor); });
        CHECK(compare_bitwise(p.base_weight.ref(), want.base_weight.ref()));
    }
}

TEST_CASE("merging with an extent of 0 anywhere") {
    for (const sizes& s : {sizes{0, 4, 2}, sizes{4, 0, 2}, sizes{4, 5, 0}, sizes{0, 0, 0}}) {
        problem p(s);
        const auto before = p.base_weight.take_snapshot();
        p.merge();
        p.unmerge();
        CHECK(p.base_weight.unchanged_since(before));
    }
    merge_lora(serial, {}, {});
    merge_ia3(serial, {}, {}, {});
}

TEST_CASE("merging does not allocate") {
    problem p({70, 40, 5});
    guarded_tensor<1> scales(element_type::f32, {40});
    scales.fill(random_source(1), 1, 2);
    CHECK(allocations_of([&] {
              p.merge();
              p.unmerge();
              merge_ia3(serial, scales.ref(), p.base_weight.ref(), {});
              unmerge_ia3(serial, scales.ref(), p.base_weight.ref(), {});
          }) == 0);
}

TEST_CASE("bad input of merge_lora and unmerge_lora") {
    problem p({6, 5, 3});
    for (bool undo : {false, true}) {
        const auto refused = [&](const char* argument, const const_tensor_ref<2>& a,
                                 const const_tensor_ref<2>& b, const tensor_ref<2>& base_weight) {
            return refuses(
                undo ? "unmerge_lora" : "merge_lora", argument,
                [&] {
                    undo ? unmerge_lora(serial, {a, b, 1}, base_weight)
                         : merge_lora(serial, {a, b, 1}, base_weight);
                },
                p.base_weight);
        };
        for (const auto& bad : bad_as_input(p.a.const_ref(), {0, 1})) {
            CAPTURE(bad.what);
            CHECK(refused("adapter.a", bad.ref, p.b.ref(), p.base_weight.ref()));
        }
        for (const auto& bad : bad_as_input(p.b.const_ref(), {1})) {
            CAPTURE(bad.what);
            CHECK(refused("adapter.b", p.a.ref(), bad.ref, p.base_weight.ref()));
        }
        for (const auto& bad : bad_as_output(p.base_weight.ref())) {
            CAPTURE(bad.what);
            CHECK(refused("base_weight", p.a.ref(), p.b.ref(), bad.ref));
        }
    }
}

namespace {

struct ia3_problem {
    guarded_tensor<1> scales;
    guarded_tensor<2> base_weight;
    guarded_tensor<1> bias;

    ia3_problem(index_t in, index_t out, element_type of_scales = element_type::f32,
                element_type of_weight = element_type::f32, layout order = layout::row_major)
        : scales(of_scales, {out}, order), base_weight(of_weight, {out, in}, order),
          bias(of_weight, {out}, order) {
        random_source random(4);
        scales.fill(random, 0.25, 4);
        for (index_t o = 0; o < out; o += 3)
            set_element(scales.ref(), {o}, -element(scales.ref(), {o}));
        base_weight.fill(random);
        bias.fill(random);
    }
    void merge(executor_ref executor = serial) {
        merge_ia3(executor, scales.ref(), base_weight.ref(), bias.ref());
    }
    void unmerge(executor_ref executor = serial) {
        unmerge_ia3(executor, scales.ref(), base_weight.ref(), bias.ref());
    }
};

void check_same(ia3_problem& got, ia3_problem& want) {
    CHECK(compare_bitwise(got.base_weight.ref(), want.base_weight.ref()));
    CHECK(compare_bitwise(got.bias.ref(), want.bias.ref()));
}

} // namespace

TEST_CASE("merged (IA)3 agrees with the formula, and is taken out again") {
    for_all_types([](element_type of_scales, element_type of_weight) {
        for (layout order : all_layouts) {
            CAPTURE(name_of(order));
            ia3_problem p(7, 11, of_scales, of_weight, order);
            const auto scales = values_as<wide>(p.scales.ref());
            const auto base_weight = values_as<wide>(p.base_weight.ref());
            const auto bias = values_as<wide>(p.bias.ref());
            auto merged_weight = base_weight;
            auto merged_bias = bias;
            for_each_position(base_weight.extents(), [&](const position<2>& at) {
                merged_weight(at[0], at[1]) *= scales(at[0]);
            });
            for (index_t o = 0; o < 11; ++o)
                merged_bias(o) *= scales(o);
            p.merge();
            const auto once = within(sums_of(of_scales, of_weight), 0.5, 0.5);
            CHECK(compare(p.base_weight.ref(), merged_weight.view(), once));
            CHECK(compare(p.bias.ref(), merged_bias.view(), once));
            p.unmerge();
            const auto twice = within(sums_of(of_scales, of_weight), 1, 1);
            CHECK(compare(p.base_weight.ref(), base_weight.view(), twice));
            CHECK(compare(p.bias.ref(), bias.view(), twice));
            CHECK(p.base_weight.intact());
            CHECK(p.bias.intact());

            // By powers of two nothing is rounded; without a bias, nothing else changes.
            ia3_problem q(7, 11, of_scales, of_weight, order);
            for (index_t o = 0; o < 11; ++o)
                set_element(q.scales.ref(), {o},
                            std::ldexp(o % 2 == 0 ? 1.0 : -1.0, static_cast<int>(o) - 5));
            const auto before = q.base_weight.take_snapshot();
            merge_ia3(serial, q.scales.ref(), q.base_weight.ref(), {});
            CHECK_FALSE(q.base_weight.unchanged_since(before));
            unmerge_ia3(serial, q.scales.ref(), q.base_weight.ref(), {});
            // Subnormal f16 lose their last bits.
            if (of_weight != element_type::f16) CHECK(q.base_weight.unchanged_since(before));
        }
    });
}

TEST_CASE("scales of an input are merged along the other axis") {
    const index_t in = 9, out = 5;
    ia3_problem p(in, out);
    guarded_tensor<1> scales(element_type::f32, {in});
    scales.fill(random_source(5), 0.5, 2);
    const auto of_input = values_as<wide>(scales.ref());
    auto want = values_as<wide>(p.base_weight.ref());
    for_each_position(want.extents(),
                      [&](const position<2>& at) { want(at[0], at[1]) *= of_input(at[1]); });
    merge_ia3(serial, scales.ref(), p.base_weight.ref().transpose(0, 1), {});
    CHECK(compare(p.base_weight.ref(), want.view(), within(element_type::f32, 0.5, 0.5)));
}

TEST_CASE("merging (IA)3 gives the same bits on every executor, and accepts shares") {
    ia3_problem want(33, 70), undone(33, 70);
    want.merge();
    undone.unmerge();
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        ia3_problem p(33, 70), q(33, 70);
        p.merge(executor);
        q.unmerge(executor);
        check_same(p, want);
        check_same(q, undone);
    });
    ia3_problem p(33, 70), q(33, 70);
    for_each_share(4, [&](executor_ref executor) {
        p.merge(executor);
        q.unmerge(executor);
    });
    check_same(p, want);
    check_same(q, undone);
}

TEST_CASE("bad input of merge_ia3 and unmerge_ia3") {
    ia3_problem p(6, 5);
    for (bool undo : {false, true}) {
        CAPTURE(undo);
        const auto refused = [&](const char* argument, const const_tensor_ref<1>& scales,
                                 const tensor_ref<2>& base_weight, const tensor_ref<1>& bias) {
            return refuses(
                undo ? "unmerge_ia3" : "merge_ia3", argument,
                [&] {
                    undo ? unmerge_ia3(serial, scales, base_weight, bias)
                         : merge_ia3(serial, scales, base_weight, bias);
                },
                p.base_weight, p.bias);
        };
        const auto scales = p.scales.const_ref();
        for (const auto& bad : bad_as_input(scales, {0})) {
            CAPTURE(bad.what);
            CHECK(refused("scales", bad.ref, p.base_weight.ref(), p.bias.ref()));
        }
        CHECK(refused("base_weight", scales.block(0, 0, 4), p.base_weight.ref(), p.bias.ref()));
        for (const auto& bad : bad_as_output(p.base_weight.ref(), {1})) {
            CAPTURE(bad.what);
            CHECK(refused("base_weight", scales, bad.ref, p.bias.ref()));
        }
        for (const auto& bad : bad_as_output(p.bias.ref())) {
            CAPTURE(bad.what);
            CHECK(refused("bias", scales, p.base_weight.ref(), bad.ref));
        }
        for (float destructive : {0.F, -0.F, std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::quiet_NaN()}) {
            CAPTURE(destructive);
            const std::vector<float> numbers{1, 2, 3, 4, destructive};
            CHECK(refused("scales", {numbers.data(), {5}}, p.base_weight.ref(), p.bias.ref()));
        }
    }
    // A number that an f32 holds and an f16 does not is not 0 yet.
    const float tiny = 1e-30F;
    float big = 1e30F;
    merge_ia3(serial, {&tiny, {1}}, {&big, {1, 1}}, {});
    CHECK(big == doctest::Approx(1));
}
