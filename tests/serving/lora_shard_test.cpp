#include <array>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/lora.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/serving/lora_shard.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_tensors.hpp"
#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/layer_checks.hpp"
#include "support/layer_problem.hpp"
#include "support/sharded_ranks.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr layer_sizes usual{21, 3, 5, 4, 5, 7, 3};

/// Every size once 1, one head, more tasks than rows, ranks beyond the tiles, several blocks.
constexpr layer_sizes shapes[] = {
    {1, 1, 1, 1, 1, 1, 1},  {9, 2, 3, 4, 3, 5, 2},   {40, 1, 2, 3, 8, 11, 16},
    {5, 9, 2, 4, 17, 6, 3}, {70, 3, 5, 3, 1, 7, 17}, {6, 2, 2, 2, 65, 70, 33},
};

/// The numbers of ranks that a layer's heads are enough for.
std::vector<index_t> ranks_for(index_t heads) {
    std::vector<index_t> result;
    for (index_t ranks : {1, 2, 3, 5})
        if (ranks <= heads) result.push_back(ranks);
    return result;
}

} // namespace

TEST_CASE("the shards of a layer are its heads, each once and in order") {
    for (index_t heads : {1, 2, 3, 8, 13})
        for (index_t nth = 1; nth <= heads; ++nth) {
            const lora_shape whole{heads, 4, heads * 3, heads * 5, 2};
            index_t next = 0;
            for (index_t ith = 0; ith < nth; ++ith) {
                CAPTURE(heads);
                CAPTURE(ith);
                CAPTURE(nth);
                const lora_shard shard = shard_of_heads(whole, ith, nth);
                CHECK(shard.first_head == next);
                CHECK(shard.first_in_feature == next * 3);
                CHECK(shard.first_out_feature == next * 5);
                const index_t most = (heads + nth - 1) / nth;
                CHECK(shard.shape.heads >= heads / nth);
                CHECK(shard.shape.heads <= most);
                CHECK(shard.shape.modules == 4);
                CHECK(shard.shape.in_features == shard.shape.heads * 3);
                CHECK(shard.shape.out_features == shard.shape.heads * 5);
                CHECK(shard.shape.rank == 2);
                next += shard.shape.heads;
            }
            CHECK(next == heads);
        }
}

TEST_CASE("a hook that does nothing gives the bits of none") {
    for (const layer_types& types : types_of_layers())
        for (const layer_sizes& s : shapes) {
            CAPTURE(std::string(name_of(types.rows)));
            CAPTURE(s.rows);
            CAPTURE(s.rank);
            layer_problem p(s, types), want(s, types);
            std::vector<std::array<index_t, 2>> summed;
            const auto nothing = [&](const tensor_ref<2>& values) {
                CHECK(values.is_contiguous());
                CHECK(values.type() == types.sums);
                summed.push_back(values.extents());
            };
            p.run({}, nothing);
            want.run();
            check_same(p, want);
            CHECK(p.intact());
            // Once forward and once backward, of no columns where no row has a task.
            REQUIRE(summed.size() == 2);
            CHECK(summed[0] == std::array<index_t, 2>{s.rows, s.rank});
            CHECK(summed[1] == std::array<index_t, 2>{s.rows, p.plan.entries() > 0 ? s.rank : 0});
        }
}

TEST_CASE("ranks that own heads agree with the whole") {
    for (const layer_types& types : types_of_layers())
        for (const layer_sizes& s : shapes)
            for (index_t ranks : ranks_for(s.heads)) {
                CAPTURE(std::string(name_of(types.rows)));
                CAPTURE(s.rows);
                CAPTURE(s.heads);
                CAPTURE(s.rank);
                CAPTURE(ranks);
                layer_problem p(s, types), before(s, types);
                CHECK(run_sharded(p, ranks) == 2);
                check_near(p, before);
                CHECK(p.intact());
            }
}

TEST_CASE("any number of ranks is the same where sums are exact") {
    for (element_type type : sum_types)
        for (index_t ranks : {1, 2, 3, 5}) {
            CAPTURE(ranks);
            layer_problem p(usual, all_of(type)), want(usual, all_of(type));
            p.make_whole();
            want.make_whole();
            run_sharded(p, ranks);
            want.run();
            check_same(p, want);
        }
}

TEST_CASE("ranks give the same bits on every executor and in every layout") {
    layer_problem want(usual);
    run_sharded(want, 3);
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        layer_problem p(usual);
        run_sharded(p, 3, executor);
        check_same(p, want);
    });
    for (layout of_rows : all_layouts)
        for (layout of_modules : all_layouts) {
            CAPTURE(name_of(of_rows));
            CAPTURE(name_of(of_modules));
            layer_problem p(usual, {}, of_rows, of_modules), before(usual);
            run_sharded(p, 3);
            check_near(p, before);
            CHECK(compare_bitwise(p.y.ref(), want.y.ref()));
            CHECK(compare_bitwise(p.d_x.ref(), want.d_x.ref()));
            CHECK(compare_bitwise(p.d_a.ref(), want.d_a.ref()));
            CHECK(compare_bitwise(p.d_b.ref(), want.d_b.ref()));
            CHECK(p.intact());
        }
}

TEST_CASE("each subset of a rank's gradients gives the same bits") {
    layer_problem all(usual), none(usual);
    run_sharded(all, 2);
    for (int wanted = 0; wanted < 16; ++wanted) {
        CAPTURE(wanted);
        const bool x = (wanted & 1) != 0, a = (wanted & 2) != 0, b = (wanted & 4) != 0,
                   w = (wanted & 8) != 0;
        layer_problem p(usual);
        const routed_lora_gradients gradients{
            x ? p.d_x.ref() : tensor_ref<2>{}, a ? p.d_a.ref() : tensor_ref<4>{},
            b ? p.d_b.ref() : tensor_ref<4>{}, w ? p.d_weights.ref() : tensor_ref<3>{}};
        // A backward that needs no d_hidden sums nothing, as documented.
        CHECK(run_sharded(p, 2, gradients) == (x || a || w ? 2 : 1));
        CHECK(compare_bitwise(p.d_x.ref(), (x ? all : none).d_x.ref()));
        CHECK(compare_bitwise(p.d_a.ref(), (a ? all : none).d_a.ref()));
        CHECK(compare_bitwise(p.d_b.ref(), (b ? all : none).d_b.ref()));
        CHECK(compare_bitwise(p.d_weights.ref(), (w ? all : none).d_weights.ref()));
    }
}

TEST_CASE("what is summed is 0 in rows of no task") {
    layer_problem p({30, 2, 2, 3, 4, 5, 3});
    const auto base_rows = p.plan.base_rows();
    REQUIRE(base_rows.extent(0) > 0);
    int sums = 0;
    p.run({}, [&](const tensor_ref<2>& values) {
        ++sums;
        for (index_t i = 0; i < base_rows.extent(0); ++i)
            for (index_t k = 0; k < values.extent(1); ++k)
                CHECK(element(values, {base_rows(i), k}) == 0);
    });
    CHECK(sums == 2);
}

TEST_CASE("a plain adapter's shards agree with the whole, and with a hook that does nothing") {
    for (element_type type : all_element_types) {
        CAPTURE(std::string(name_of(type)));
        const element_type sums = sums_of(type, type);
        const lora_shape shape{5, 1, 20, 35, 3};
        const batch_plan plan = random_plan(50, 1);
        struct plain {
            guarded_tensor<2> x, y, d_y, a, b, d_x, d_a, d_b;
            plain(element_type of, const lora_shape& s)
                : x(of, {50, s.in_features}), y(of, {50, s.out_features}),
                  d_y(of, {50, s.out_features}), a(of, {s.in_features, s.rank}),
                  b(of, {s.rank, s.out_features}), d_x(of, {50, s.in_features}),
                  d_a(of, {s.in_features, s.rank}), d_b(of, {s.rank, s.out_features}) {
                random_source random(1);
                for (guarded_tensor<2>* t : {&x, &y, &d_y, &a, &b, &d_x, &d_a, &d_b}) {
                    t->fill(random);
                    // Whole numbers, so that sums are exact, even in bf16.
                    transform_elements(t->ref(), [](double v) { return std::round(v) + 0; });
                }
            }
            [[nodiscard]] lora adapter() const { return {a.const_ref(), b.const_ref(), 2}; }
        };
        const auto run = [&](const batch& rows, const lora& adapter, const const_tensor_ref<2>& x,
                             const tensor_ref<2>& y, const const_tensor_ref<2>& d_y,
                             const tensor_ref<2>& d_x, const lora_matrices& d_adapter) {
            poisoned_memory of_state(lora_state_size(rows, adapter, sums));
            poisoned_memory scratch(lora_backward_workspace_size(rows, adapter, sums));
            workspace memory = of_state;
            const auto state = take_lora_state(memory, rows, adapter, sums);
            lora_forward(rows, adapter, x, y, state);
            lora_backward(rows, adapter, x, d_y, state, {d_x, d_adapter}, scratch);
        };
        const auto run_whole = [&](plain& p, const batch& rows) {
            run(rows, p.adapter(), p.x.ref(), p.y.ref(), p.d_y.ref(), p.d_x.ref(),
                {p.d_a.ref(), p.d_b.ref()});
        };
        const auto check = [](plain& got, plain& want) {
            CHECK(compare_bitwise(got.y.ref(), want.y.ref()));
            CHECK(compare_bitwise(got.d_x.ref(), want.d_x.ref()));
            CHECK(compare_bitwise(got.d_a.ref(), want.d_a.ref()));
            CHECK(compare_bitwise(got.d_b.ref(), want.d_b.ref()));
        };
        plain want(type, shape), hooked(type, shape);
        run_whole(want, {plan});
        const auto nothing = [](const tensor_ref<2>&) {};
        run_whole(hooked, {plan, {}, nothing});
        check(hooked, want);
        for (index_t ranks : {1, 2, 5}) {
            CAPTURE(ranks);
            plain p(type, shape);
            run_ranks(ranks, [&](index_t ith, rank_sum_ref sum) {
                const lora_shard shard = shard_of_heads(shape, ith, ranks);
                const index_t in = shard.shape.in_features, out = shard.shape.out_features;
                run({plan, {}, sum}, shard.of_adapter(p.adapter()), shard.of_x(p.x.ref()),
                    shard.of_y(p.y.ref()), shard.of_d_y(p.d_y.ref()),
                    p.d_x.ref().block(1, shard.first_in_feature, in),
                    {p.d_a.ref().block(0, shard.first_in_feature, in),
                     p.d_b.ref().block(1, shard.first_out_feature, out)});
            });
            check(p, want);
        }
    }
}

TEST_CASE("the parts of a shard are those of the whole that are its own") {
    layer_problem p(usual);
    for (index_t ith : {0, 1, 2}) {
        const lora_shard shard = shard_of_heads(p.s.shape(), ith, 3);
        const index_t head = shard.first_head, heads = shard.shape.heads;
        const auto same = [](const auto& got, const auto& want) {
            return got.data() == want.data() && got.extents() == want.extents() &&
                   got.strides() == want.strides() && got.type() == want.type();
        };
        const routed_lora layer = shard.of_layer(p.layer());
        CHECK(same(layer.a, p.a.const_ref().block(0, head, heads)));
        CHECK(same(layer.b, p.b.const_ref().block(0, head, heads)));
        CHECK(same(layer.weights, p.weights.const_ref().block(1, head, heads)));
        CHECK(layer.scale == p.scale);
        const routed_lora_gradients gradients = shard.of_gradients(p.gradients());
        CHECK(same(gradients.x, p.d_x.ref().block(1, head * 5, heads * 5)));
        CHECK(same(gradients.a, p.d_a.ref().block(0, head, heads)));
        CHECK(same(gradients.b, p.d_b.ref().block(0, head, heads)));
        CHECK(same(gradients.weights, p.d_weights.ref().block(1, head, heads)));
        CHECK(same(shard.of_x(p.x.ref()), p.x.const_ref().block(1, head * 5, heads * 5)));
        CHECK(same(shard.of_y(p.y.ref()), p.y.ref().block(1, head * 7, heads * 7)));
        CHECK(same(shard.of_d_y(p.d_y.ref()), p.d_y.const_ref().block(1, head * 7, heads * 7)));
        guarded_tensor<3> table(element_type::f32, {9, 5, 4});
        CHECK(same(shard.of_logits(table.ref()), table.const_ref().block(1, head, heads)));
        CHECK(same(shard.of_d_logits(table.ref()), table.ref().block(1, head, heads)));
    }
}

TEST_CASE("nothing is allocated for a sum over ranks") {
    layer_problem p(usual);
    const auto nothing = [](const tensor_ref<2>&) {};
    const batch rows{p.plan, {}, nothing};
    poisoned_memory of_state(routed_lora_state_size(rows, p.layer()));
    poisoned_memory scratch(routed_lora_backward_workspace_size(rows, p.layer()));
    const lora_shard shard = shard_of_heads(p.s.shape(), 0, 1);
    CHECK(allocations_of([&] {
              workspace memory = of_state;
              const routed_lora layer = shard.of_layer(p.layer());
              const auto state = take_routed_lora_state(memory, rows, layer);
              routed_lora_forward(rows, layer, shard.of_x(p.x.ref()), shard.of_y(p.y.ref()), state);
              routed_lora_backward(rows, layer, shard.of_x(p.x.ref()), shard.of_d_y(p.d_y.ref()),
                                   state, shard.of_gradients(p.gradients()), scratch);
          }) == 0);
}

TEST_CASE("bad shards are refused") {
    const auto refused = [&](const char* argument, const lora_shape& whole, index_t ith,
                             index_t nth) {
        return refuses("shard_of_heads", argument, [&] { (void)shard_of_heads(whole, ith, nth); });
    };
    CHECK(refused("whole.heads", {0, 2, 8, 8, 2}, 0, 1));
    CHECK(refused("whole.in_features", {3, 2, 8, 9, 2}, 0, 1));
    CHECK(refused("whole.in_features", {2, 2, -8, 8, 2}, 0, 1));
    CHECK(refused("whole.out_features", {3, 2, 9, 8, 2}, 0, 1));
    CHECK(refused("nth", {2, 2, 8, 8, 2}, 0, 3));
    CHECK(refused("nth", {2, 2, 8, 8, 2}, 0, 0));
    CHECK(refused("ith", {2, 2, 8, 8, 2}, 2, 2));
    CHECK(refused("ith", {2, 2, 8, 8, 2}, -1, 2));
}

TEST_CASE("tensors of another layer are refused by a shard, absent ones stay absent") {
    layer_problem p(usual);
    const lora_shard shard = shard_of_heads(p.s.shape(), 1, 2);
    const auto check = [&](const char* function, const char* argument, const auto& bad_tensors,
                           auto&& call) {
        for (const auto& bad : bad_tensors) {
            CAPTURE(argument);
            CAPTURE(bad.what);
            CHECK(
                refuses(std::string("lora_shard::") + function, argument, [&] { call(bad.ref); }));
        }
    };
    const routed_lora layer = p.layer();
    const routed_lora_gradients gradients = p.gradients();
    check("of_layer", "layer.a", bad_as_input(layer.a), [&](const auto& bad) {
        (void)shard.of_layer({bad, layer.b, layer.weights});
    });
    check("of_layer", "layer.b", bad_as_input(layer.b), [&](const auto& bad) {
        (void)shard.of_layer({layer.a, bad, layer.weights});
    });
    check("of_layer", "layer.weights", bad_as_input(layer.weights, {0}), [&](const auto& bad) {
        (void)shard.of_layer({layer.a, layer.b, bad});
    });
    check("of_gradients", "gradients.x", bad_as_input(gradients.x, {0}), [&](const auto& bad) {
        (void)shard.of_gradients({bad, {}, {}, {}});
    });
    check("of_gradients", "gradients.a", bad_as_input(gradients.a), [&](const auto& bad) {
        (void)shard.of_gradients({{}, bad, {}, {}});
    });
    check("of_gradients", "gradients.b", bad_as_input(gradients.b), [&](const auto& bad) {
        (void)shard.of_gradients({{}, {}, bad, {}});
    });
    check("of_gradients", "gradients.weights", bad_as_input(gradients.weights, {0}),
          [&](const auto& bad) {
              (void)shard.of_gradients({{}, {}, {}, bad});
          });
    check("of_logits", "logits", bad_as_input(p.weights.const_ref(), {0}),
          [&](const auto& bad) { (void)shard.of_logits(bad); });
    check("of_d_logits", "d_logits", bad_as_input(p.d_weights.ref(), {0}),
          [&](const auto& bad) { (void)shard.of_d_logits(bad); });
    check("of_x", "x", bad_as_input(p.x.const_ref(), {0}),
          [&](const auto& bad) { (void)shard.of_x(bad); });
    check("of_y", "y", bad_as_input(p.y.ref(), {0}),
          [&](const auto& bad) { (void)shard.of_y(bad); });
    check("of_d_y", "d_y", bad_as_input(p.d_y.const_ref(), {0}),
          [&](const auto& bad) { (void)shard.of_d_y(bad); });
    guarded_tensor<2> a(element_type::f32, {p.s.in(), 6}), b(element_type::f32, {6, p.s.out()});
    check("of_adapter", "adapter.a", bad_as_input(a.const_ref(), {1}), [&](const auto& bad) {
        (void)shard.of_adapter({bad, b.ref()});
    });
    check("of_adapter", "adapter.b", bad_as_input(b.const_ref(), {0}), [&](const auto& bad) {
        (void)shard.of_adapter({a.ref(), bad});
    });

    // A shard that was not made has no features.
    CHECK(lora_shard{}.of_gradients({}).a.absent());
    CHECK(refuses("lora_shard::of_layer", "layer.a", [&] {
        (void)lora_shard{}.of_layer({layer.a, layer.b, layer.weights});
    }));
    CHECK(shard.of_layer({}).a.absent());
    CHECK(shard.of_layer({layer.a, layer.b, {}}).weights.absent());
    CHECK(shard.of_gradients({}).x.absent());
    CHECK(shard.of_gradients({}).b.absent());
    CHECK(shard.of_gradients({}).weights.absent());
    CHECK(shard.of_logits({}).absent());
    CHECK(shard.of_x({}).absent());
    CHECK(shard.of_y({}).absent());
}
