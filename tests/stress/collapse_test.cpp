// These tests take the router away from random layers with routed adapters: the average of the
// modules, or one task's mixture, is merged into the weights.

#include <cstdint>
#include <numeric>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/ia3/routed_ia3.hpp>
#include <mhr/lora/inventory.hpp>
#include <mhr/lora/lora.hpp>
#include <mhr/routing/fixed_routers.hpp>
#include <mhr/routing/router.hpp>
#include <mhr/serving/merge.hpp>

#include "support/comparison.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_layers.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

TEST_CASE("uniform routing is the average: LoRA, to the last bit") {
    for_random_layers<lora_layer<double>>(false, [](const auto& t, random_source&) {
        auto layer = t.layer;
        average_router_forward({}, layer.table.view());
        const index_t in = layer.in_features(t.s);
        const index_t out = layer.out_features(t.s);
        tensor<double, 2> a({in, t.s.rank}), b({t.s.rank, out});
        average_lora_forward({}, layer.parameters({}).inventory(), {a.view(), b.view()});
        // All rows that have a task, as those of one.
        auto tasks = t.batch.tasks;
        for (std::int64_t& task : tasks)
            task = task < 0 ? task : 0;
        const batch_plan plan = plan_of(tasks);
        tensor<double, 2> y({plan.rows(), out}), hidden({plan.rows(), t.s.rank});
        if (plan.entries() == 0) return;
        lora_forward({plan}, lora{a.view(), b.view(), layer.scale}, t.batch.x.view(), y.view(),
                     {hidden.view()});
        CHECK(compare_bitwise(layer.run(t.batch).y.view(), y.view()));

        // So do equal logits, but for the 1e-12 of the sum.
        std::vector<index_t> ids(static_cast<std::size_t>(t.s.tasks));
        std::iota(ids.begin(), ids.end(), index_t(0));
        tensor<double, 3> logits(layer.table.extents());
        for (double& logit : logits.values())
            logit = -0.7;
        const auto uniform = layer.table;
        router_forward({}, logits.view(), tensor_view<const index_t, 1>(ids.data(), {t.s.tasks}),
                       routing_rule{sigmoid_gate{}}, layer.table.view());
        CHECK(compare(layer.table.view(), uniform.view(), error_bound{4, 1e-12, 1}));
    });
}

TEST_CASE("uniform routing is the average: (IA)3, to the last bit") {
    for_random_layers<ia3_layer<double>>(false, [](const auto& t, random_source&) {
        auto layer = t.layer;
        average_router_forward({}, layer.table.view());
        tensor<double, 1> mean({layer.in_features(t.s)});
        average_ia3_forward({}, layer.modules[0].const_view().slice(2, 0), mean.view());
        tensor<double, 2> y = t.batch.x;
        for_each_position(y.extents(), [&](const position<2>& at) {
            if (t.batch.tasks[static_cast<std::size_t>(at[0])] >= 0)
                element(y.view(), at) *= mean(at[1]);
        });
        CHECK(compare_bitwise(layer.run(t.batch).y.view(), y.view()));
    });
}

TEST_CASE("a merged weight does what the base layer and LoRA do") {
    for_random_layers<lora_layer<double>>(true, [](const auto& t, random_source& random) {
        const index_t in = t.layer.in_features(t.s);
        const index_t out = t.layer.out_features(t.s);
        const auto rows = t.batch.x.extents()[0];
        tensor<double, 2> weight({out, in});
        fill_whole(random, weight.view());
        const auto product = [&](index_t row, index_t o) {
            double sum = 0;
            for (index_t i = 0; i < in; ++i)
                sum += t.batch.x(row, i) * weight(o, i);
            return sum;
        };
        const auto before = weight;
        const auto y = t.layer.run(t.batch).y;
        for (index_t task = 0; task < t.s.tasks; ++task) {
            tensor<double, 2> a({in, t.s.rank}), b({t.s.rank, out});
            const lora adapter{a.view(), b.view(), t.layer.scale};
            mix_lora_forward({}, t.layer.table.const_view().block(0, task, 1),
                             t.layer.parameters({}).inventory(),
                             {a.view().prepend_axis(), b.view().prepend_axis()});
            tensor<double, 2> want({rows, out}), got({rows, out});
            for_each_position(want.extents(), [&](const position<2>& at) {
                want(at[0], at[1]) = product(at[0], at[1]) + y(at[0], at[1]);
            });
            merge_lora({}, adapter, weight.view());
            for_each_position(got.extents(), [&](const position<2>& at) {
                const bool mine = t.batch.tasks[static_cast<std::size_t>(at[0])] == task;
                got(at[0], at[1]) = mine ? product(at[0], at[1]) : want(at[0], at[1]);
            });
            CHECK(compare_bitwise(got.view(), want.view()));
            unmerge_lora({}, adapter, weight.view());
            CHECK(weight.values() == before.values());
        }
    });
}

TEST_CASE("a weight merged with (IA)3 gives the rescaled output") {
    for_random_layers<ia3_layer<double>>(true, [](const auto& t, random_source& random) {
        // Here x is what the base layer gives: weight times an input of four.
        const index_t features = t.layer.in_features(t.s);
        const auto rows = t.batch.x.extents()[0];
        tensor<double, 2> weight({features, 4}), input({rows, 4});
        tensor<double, 1> scales({features}), bias({features});
        fill_whole(random, weight.view());
        fill_whole(random, input.view());
        fill_whole(random, bias.view());
        const auto base = [&](index_t row, index_t o) {
            double sum = bias(o);
            for (index_t i = 0; i < 4; ++i)
                sum += input(row, i) * weight(o, i);
            return sum;
        };
        auto batch = t.batch;
        for_each_position(batch.x.extents(), [&](const position<2>& at) {
            element(batch.x.view(), at) = base(at[0], at[1]);
        });
        const auto y = t.layer.run(batch).y;
        for (index_t task = 0; task < t.s.tasks; ++task) {
            mix_ia3_forward({}, t.layer.table.const_view().block(0, task, 1),
                            t.layer.modules[0].const_view().slice(2, 0),
                            scales.view().prepend_axis());
            // Scales of 0 cannot be merged, for they cannot be taken out again.
            bool invertible = true;
            for (double scale : scales.values())
                invertible = invertible && !is_exactly(scale, 0);
            if (!invertible) continue;
            const auto before = weight;
            merge_ia3({}, scales.view(), weight.view(), bias.view());
            for (index_t row = 0; row < rows; ++row)
                if (batch.tasks[static_cast<std::size_t>(row)] == task)
                    for (index_t o = 0; o < features; ++o)
                        CHECK(base(row, o) == y(row, o));
            unmerge_ia3({}, scales.view(), weight.view(), bias.view());
            CHECK(weight.values() == before.values());
        }
    });
}
