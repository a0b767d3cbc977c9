#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/adapters/lora_shard.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/routed_checks.hpp"
#include "support/routed_problem.hpp"
#include "support/sharded_layer.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using plain = routed_of<float>;

constexpr routed_sizes usual{21, 3, 5, 4, 5, 7, 3};

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

TEST_CASE_TEMPLATE("ranks that own heads agree with the oracle", T, MHR_TEST_ROUTED_STORAGES) {
    for (const routed_sizes& s : routed_shapes)
        for (index_t ranks : ranks_for(s.heads)) {
            CAPTURE(s.rows);
            CAPTURE(s.heads);
            CAPTURE(s.rank);
            CAPTURE(ranks);
            routed_problem<T> p(s);
            sharded_layer<T> layer(p, ranks);
            check_against_oracle(
                p, [&] { layer.forward(); }, [&] { layer.backward(); });
        }
}

TEST_CASE_TEMPLATE("any number of ranks is the same where sums are exact", T, double, float) {
    for (index_t ranks : {1, 2, 3, 5}) {
        CAPTURE(ranks);
        routed_problem<routed_of<T>> p(usual), want(usual);
        make_whole(p);
        make_whole(want);
        sharded_layer<routed_of<T>> layer(p, ranks);
        const auto d_y = copy_as<T>(p.y.view());
        layer.forward();
        want.forward();
        CHECK(compare_bitwise(p.y.view(), want.y.view()));
        for (auto* q : {&p, &want})
            transform(d_y.view(), q->y.view(), [](T value) { return value; });
        layer.backward();
        want.backward();
        check_same_gradients(p, want);
    }
}

TEST_CASE("ranks give the same bits on every executor and in every layout") {
    routed_problem<plain> want(usual);
    sharded_layer<plain> of_want(want, 3);
    of_want.forward();
    of_want.backward();
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        routed_problem<plain> p(usual);
        sharded_layer<plain> layer(p, 3);
        layer.forward(executor);
        layer.backward(executor);
        CHECK(compare_bitwise(p.y.view(), want.y.view()));
        check_same_gradients(p, want);
    });
    for (layout of_rows : all_layouts)
        for (layout of_inventory : all_layouts) {
            CAPTURE(name_of(of_rows));
            CAPTURE(name_of(of_inventory));
            routed_problem<plain> p(usual, of_rows, of_inventory, of_inventory);
            sharded_layer<plain> layer(p, 3);
            check_against_oracle(
                p, [&] { layer.forward(); }, [&] { layer.backward(); });
        }
}

TEST_CASE("each subset of a rank's gradients gives the same bits") {
    routed_problem<plain> all(usual), none(usual);
    sharded_layer<plain> of_all(all, 2);
    of_all.forward();
    transform(none.y.view(), all.y.view(), [](float value) { return value; });
    of_all.backward();
    for (int wanted = 0; wanted < 16; ++wanted) {
        CAPTURE(wanted);
        const bool x = (wanted & 1) != 0, a = (wanted & 2) != 0, b = (wanted & 4) != 0,
                   w = (wanted & 8) != 0;
        routed_problem<plain> p(usual);
        sharded_layer<plain> layer(p, 2);
        layer.forward();
        transform(none.y.view(), p.y.view(), [](float value) { return value; });
        const tensor_view<float, 4> absent;
        layer.backward(serial_executor{}, x ? p.d_x.view() : tensor_view<float, 2>{},
                       lora_inventory<float>{a ? p.d_a.view() : absent, b ? p.d_b.view() : absent},
                       w ? p.d_weights.view() : tensor_view<float, 3>{});
        CHECK(compare_bitwise(p.d_x.view(), (x ? all : none).d_x.view()));
        CHECK(compare_bitwise(p.d_a.view(), (a ? all : none).d_a.view()));
        CHECK(compare_bitwise(p.d_b.view(), (b ? all : none).d_b.view()));
        CHECK(compare_bitwise(p.d_weights.view(), (w ? all : none).d_weights.view()));
    }
}

TEST_CASE("nothing is allocated by a rank") {
    routed_problem<plain> p(usual);
    sharded_layer<plain> layer(p, 2);
    CHECK(allocations_of([&] {
              layer.forward();
              layer.backward();
          }) == 0);
}

TEST_CASE("bad shards are refused") {
    constexpr const char* function = "shard_of_heads";
    const auto refused = [&](const char* argument, const lora_shape& whole, index_t ith,
                             index_t nth) {
        return refuses(function, argument, [&] { (void)shard_of_heads(whole, ith, nth); });
    };
    CHECK(refused("whole.heads", {0, 2, 8, 8, 2}, 0, 1));
    CHECK(refused("whole.in_features", {3, 2, 8, 9, 2}, 0, 1));
    CHECK(refused("whole.in_features", {2, 2, -8, 8, 2}, 0, 1));
    CHECK(refused("whole.out_features", {3, 2, 9, 8, 2}, 0, 1));
    CHECK(refused("nth", {2, 2, 8, 8, 2}, 0, 3));
    CHECK(refused("nth", {2, 2, 8, 8, 2}, 0, 0));
    CHECK(refused("ith", {2, 2, 8, 8, 2}, 2, 2));
    CHECK(refused("ith", {2, 2, 8, 8, 2}, -1, 2));

    routed_problem<plain> p(usual);
    const lora_shard shard = shard_of_heads(p.shape(), 1, 2);
    for (const auto& bad : bad_as_input(p.a.view()))
        CHECK(refuses("lora_shard::of_inventory", "inventory.a", [&] {
            (void)shard.of_inventory(lora_inventory<float>{bad.view, p.b.view()});
        }));
    for (const auto& bad : bad_as_input(p.b.view()))
        CHECK(refuses("lora_shard::of_inventory", "inventory.b", [&] {
            (void)shard.of_inventory(lora_inventory<float>{p.a.view(), bad.view});
        }));
    for (const auto& bad : bad_as_input(p.weights.view(), {0}))
        CHECK(refuses("lora_shard::of_weights", "weights",
                      [&] { (void)shard.of_weights(bad.view); }));
    for (const auto& bad : bad_as_input(p.x.view(), {0}))
        CHECK(refuses("lora_shard::of_inputs", "x", [&] { (void)shard.of_inputs(bad.view); }));
    for (const auto& bad : bad_as_input(p.y.view(), {0}))
        CHECK(refuses("lora_shard::of_outputs", "y", [&] { (void)shard.of_outputs(bad.view); }));
    CHECK(shard.of_inventory(lora_inventory<float>{}).a.absent());
    CHECK(shard.of_inventory(lora_inventory<float>{}).b.absent());
    CHECK(shard.of_weights(tensor_view<float, 3>{}).absent());
    CHECK(shard.of_inputs(tensor_view<float, 2>{}).absent());
    CHECK(shard.of_outputs(tensor_view<float, 2>{}).absent());
}
