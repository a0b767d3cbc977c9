// Numbers that are not finite stay with what they belong to: a row spoils no other row, and no
// gradients but those of its own task's weights and of the modules that its task uses; a module
// spoils the tasks that use it, and no other. What memory held before does not matter.
//
// Every case runs a problem twice, once spoilt, and asks for the same bits where nothing may have
// changed.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/output_mixed_lora.hpp>
#include <mhr/lora/routed_lora.hpp>

#include "support/batches.hpp"
#include "support/combinations.hpp"
#include "support/comparison.hpp"
#include "support/dirty_stack.hpp"
#include "support/fast_math.hpp"
#include "support/ia3_problem.hpp"
#include "support/layer_checks.hpp"
#include "support/layer_problem.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr double poisons[] = {std::numeric_limits<double>::quiet_NaN(),
                              std::numeric_limits<double>::infinity(),
                              -std::numeric_limits<double>::infinity()};

// Tasks of several blocks of rows, and several parts; tails of every tile; more modules and entries
// than are mixed at a time.
constexpr layer_sizes shapes[] = {{70, 2, 1, 3, 9, 21, 5},
                                  {41, 3, 1, 11, 35, 7, 18},
                                  {60, 40, 1, 2, 3, 5, 1},
                                  {26, 2, 1, 2, 300, 270, 16}};

/// Routed LoRA.
void mix_parameters(layer_problem& p) {
    dirty_stack();
    p.forward();
    dirty_stack();
    p.backward();
}

/// LoRA with mixed outputs.
[[maybe_unused]] void mix_outputs(layer_problem& p) {
    const batch rows{p.plan};
    poisoned_memory of_state(output_mixed_lora_state_size(rows, p.layer(), p.types.sums));
    poisoned_memory scratch(
        output_mixed_lora_backward_workspace_size(rows, p.layer(), p.types.sums));
    workspace memory = of_state;
    const auto state = take_output_mixed_lora_state(memory, rows, p.layer(), p.types.sums);
    dirty_stack();
    output_mixed_lora_forward(rows, p.layer(), p.x, p.y, state);
    dirty_stack();
    output_mixed_lora_backward(rows, p.layer(), p.x, p.d_y, state, p.gradients(), scratch);
}

/// The tensor that is spoilt.
struct kind {
    const char* name;
    layer_types types;
    index_t heads;
    void (*run)(layer_problem&);

    [[nodiscard]] layer_sizes sizes(layer_sizes s) const {
        s.heads = heads;
        return s;
    }
};

const std::vector<kind> kinds{{"parameters in f32", {}, 3, mix_parameters} MHR_TEST_ALSO(
    {"parameters in 16 bits", of_16_bits, 3, mix_parameters},
    {"outputs in f32", {}, 1, mix_outputs}, {"outputs in 16 bits", of_16_bits, 1, mix_outputs})};

/// Calls `f(kind, sizes)` with all of them.
template <class F>
void for_each_kind(F&& f) {
    for (const kind& k : kinds)
        for (const layer_sizes& shape : shapes) {
            CAPTURE(std::string(k.name));
            CAPTURE(shape.rows);
            f(k, k.sizes(shape));
        }
}

/// Some rows that have a task.
std::vector<index_t> some_rows(const batch_plan& plan) {
    const auto order = plan.row_order();
    const index_t last = order.extent(0) - 1;
    return {order(0), order(last / 2), order(last)};
}

/// The results may differ in these rows of y and of d_x; in what gradients there are of the weights
/// of `entry`, and of the modules that it uses. Nowhere else.
void check_spread(layer_problem& got, layer_problem& want, index_t entry,
                  const std::vector<index_t>& rows_of_y, const std::vector<index_t>& rows_of_d_x) {
    const auto has = [](const std::vector<index_t>& list, index_t row) {
        return std::find(list.begin(), list.end(), row) != list.end();
    };
    for (index_t row = 0; row < got.s.rows; ++row) {
        CAPTURE(row);
        if (!has(rows_of_y, row))
            CHECK(compare_bitwise(got.y.ref().slice(0, row), want.y.ref().slice(0, row)));
        if (!has(rows_of_d_x, row))
            CHECK(compare_bitwise(got.d_x.ref().slice(0, row), want.d_x.ref().slice(0, row)));
    }
    for (index_t other = 0; other < got.plan.entries(); ++other)
        if (other != entry)
            CHECK(compare_bitwise(got.d_weights.ref().slice(0, other),
                                  want.d_weights.ref().slice(0, other)));
    for (index_t h = 0; h < got.s.heads; ++h)
        for (index_t m = 0; m < got.s.modules; ++m) {
            CAPTURE(h);
            CAPTURE(m);
            if (!is_exactly(element(got.weights.ref(), {entry, h, m}), 0)) continue;
            const auto module_of = [&](guarded_tensor<4>& inventory) {
                return inventory.ref().slice(0, h).slice(0, m);
            };
            CHECK(compare_bitwise(module_of(got.d_a), module_of(want.d_a)));
            CHECK(compare_bitwise(module_of(got.d_b), module_of(want.d_b)));
        }
}

std::vector<index_t> rows_of(const batch_plan& plan, index_t entry) {
    const auto rows = plan.rows_of(entry);
    return std::vector<index_t>(rows.data(), rows.data() + rows.extent(0));
}

template <std::size_t Rank>
bool is_finite(guarded_tensor<Rank>& tensor, const position<Rank>& at) {
    return std::isfinite(element(tensor.ref(), at));
}

template <std::size_t Rank>
void set_all(const tensor_ref<Rank>& tensor, double value) {
    transform_elements(tensor, [&](double) { return value; });
}

} // namespace

TEST_CASE("a row of x that is not finite spoils no other row" * needs_non_finite()) {
    for_each_kind([](const kind& k, const layer_sizes& s) {
        layer_problem want(s, k.types);
        const auto entries = entry_of_row(want.plan);
        k.run(want);
        for (index_t row : some_rows(want.plan))
            for (double poison : poisons) {
                CAPTURE(row);
                layer_problem got(s, k.types);
                set_element(got.x.ref(), {row, s.in() - 1}, poison);
                k.run(got);
                CHECK_FALSE(is_finite(got.y, {row, 0}));
                // d_x does not depend on x.
                check_spread(got, want, entries(row), {row}, {});
                // Only those elements of a are spoilt that the feature is multiplied with.
                const auto others = [&](guarded_tensor<4>& d_a) {
                    return d_a.ref().slice(0, s.heads - 1).block(1, 0, s.in_block - 1);
                };
                CHECK(compare_bitwise(others(got.d_a), others(want.d_a)));
            }
    });
}

TEST_CASE("a row of d_y that is not finite spoils no other row" * needs_non_finite()) {
    for_each_kind([](const kind& k, const layer_sizes& s) {
        layer_problem want(s, k.types);
        const auto entries = entry_of_row(want.plan);
        k.run(want);
        for (index_t row : some_rows(want.plan))
            for (double poison : poisons) {
                CAPTURE(row);
                layer_problem got(s, k.types);
                set_all(got.d_y.ref().slice(0, row), poison);
                k.run(got);
                CHECK_FALSE(is_finite(got.d_x, {row, 0}));
                check_spread(got, want, entries(row), {}, {row});
            }
    });
}

TEST_CASE("a row of y that is not finite spoils nothing else" * needs_non_finite()) {
    for_each_kind([](const kind& k, const layer_sizes& s) {
        layer_problem want(s, k.types), got(s, k.types);
        const index_t row = some_rows(want.plan).back();
        set_all(got.y.ref().slice(0, row), poisons[0]);
        k.run(want);
        k.run(got);
        got.weights.fill(0); // no module of no entry may differ
        check_spread(got, want, 0, {row}, {});
        CHECK(compare_bitwise(got.d_weights.ref(), want.d_weights.ref()));
    });
}

TEST_CASE("a row of no task may hold anything" * needs_non_finite()) {
    for (const kind& k : kinds) {
        CAPTURE(std::string(k.name));
        const layer_sizes s = k.sizes(shapes[0]);
        layer_problem want(s, k.types), got(s, k.types);
        const auto base = got.plan.base_rows();
        REQUIRE(base.extent(0) > 0);
        std::vector<index_t> rows;
        for (index_t i = 0; i < base.extent(0); ++i) {
            rows.push_back(base(i));
            set_all(got.y.ref().slice(0, base(i)), poisons[0]);
            set_all(got.d_y.ref().slice(0, base(i)), poisons[0]);
            set_all(got.x.ref().slice(0, base(i)), poisons[1]);
        }
        k.run(want);
        k.run(got);
        got.weights.fill(0); // no module of no entry may differ
        check_spread(got, want, 0, rows, {});
        CHECK(compare_bitwise(got.d_weights.ref(), want.d_weights.ref()));
    }
}

TEST_CASE("a module that is not finite spoils the tasks that use it, and no other" *
          needs_non_finite()) {
    for_each_kind([](const kind& k, const layer_sizes& s) {
        for (double poison : poisons) {
            const index_t module = s.modules - 1;
            layer_problem want(s, k.types), got(s, k.types);
            REQUIRE(got.plan.entries() > 1);
            const index_t entry = 1; // the only one that uses it
            for (layer_problem* p : {&want, &got}) {
                set_all(p->weights.ref().block(2, module, 1), 0);
                set_all(p->weights.ref().block(0, entry, 1).block(2, module, 1), 0.5);
            }
            set_all(got.a.ref().block(1, module, 1), poison);
            set_all(got.b.ref().block(1, module, 1), poison);
            k.run(want);
            k.run(got);
            const auto rows = rows_of(got.plan, entry);
            CHECK_FALSE(is_finite(got.y, {rows.front(), 0}));
            // The gradients of weights of 0 are those of what would be used.
            for (index_t n = 0; n < got.plan.entries(); ++n)
                for (index_t h = 0; h < s.heads; ++h)
                    if (n != entry) {
                        const position<3> at{n, h, module};
                        CHECK_FALSE(is_finite(got.d_weights, at));
                        set_element(got.d_weights.ref(), at, element(want.d_weights.ref(), at));
                    }
            check_spread(got, want, entry, rows, rows);
        }
    });
}

TEST_CASE("a weight that is not finite spoils its task, and no other" * needs_non_finite()) {
    for_each_kind([](const kind& k, const layer_sizes& s) {
        for (double poison : poisons) {
            layer_problem want(s, k.types), got(s, k.types);
            const index_t entry = got.plan.entries() - 1;
            set_element(got.weights.ref(), {entry, s.heads - 1, 0}, poison);
            k.run(want);
            k.run(got);
            const auto rows = rows_of(got.plan, entry);
            CHECK_FALSE(is_finite(got.y, {rows.front(), 0}));
            check_spread(got, want, entry, rows, rows);
        }
    });
}

TEST_CASE("what memory held before does not matter") {
    for (const layer_types& types : {layer_types{} MHR_TEST_ALSO(of_16_bits)})
        for (layer_sizes s : shapes) {
            s.heads = 3;
            layer_problem want(s, types); // filled with NaN
            mix_parameters(want);
            for (std::byte byte : {std::byte{0x00}, std::byte{0x7e}, std::byte{0xd5}}) {
                layer_problem got(s, types);
                for (poisoned_memory* memory : {&got.state_memory, &got.scratch_memory})
                    std::fill(memory->bytes.begin(), memory->bytes.end(), byte);
                mix_parameters(got);
                check_same(got, want);
            }
        }
}

TEST_CASE("rows, modules and weights of (IA)3 that are not finite spoil no other task" *
          needs_non_finite()) {
    layer_types types;
    types.modules = element_type::bf16;
    const ia3_sizes s{70, 3, 2, 11, 67};
    constexpr index_t entry = 1;
    const auto run = [](ia3_problem& p) {
        dirty_stack();
        p.forward();
        dirty_stack();
        p.backward();
    };
    const auto same = [](const guarded_tensor<3>& got, const guarded_tensor<3>& want,
                         const position<3>& at) {
        return is_exactly(element(got.const_ref(), at), element(want.const_ref(), at));
    };
    for (int what = 0; what < 4; ++what)
        for (double poison : poisons) {
            CAPTURE(what);
            ia3_problem want(s, types), got(s, types);
            const auto entries = entry_of_row(got.plan);
            const index_t row = rows_of(got.plan, entry).back();
            for (ia3_problem* p : {&want, &got}) {
                set_all(p->weights.ref().block(2, 9, 1), 0);
                set_all(p->weights.ref().block(0, entry, 1).block(2, 9, 1), 0.5);
            }
            if (what == 0) set_element(got.x.ref(), {row, 5}, poison);
            if (what == 1) set_element(got.d_y.ref(), {row, 5}, poison);
            if (what == 2) set_element(got.inventory.ref(), {0, 9, 5}, poison);
            if (what == 3) set_element(got.weights.ref(), {entry, 0, 9}, poison);
            run(want);
            run(got);
            CHECK_FALSE(is_finite(what == 1 ? got.d_x : got.y, {row, 5}));
            for (index_t r = 0; r < s.rows; ++r) {
                const bool is_reached = what < 2 ? r == row : entries(r) == entry;
                if (is_reached) continue;
                CHECK(compare_bitwise(got.y.ref().slice(0, r), want.y.ref().slice(0, r)));
                CHECK(compare_bitwise(got.d_x.ref().slice(0, r), want.d_x.ref().slice(0, r)));
            }
            for (index_t n = 0; n < got.plan.entries(); ++n)
                for (index_t m = 0; m < s.modules; ++m) {
                    // Head 1 has nothing of it; other tasks have, in the gradient of that weight.
                    CHECK(same(got.d_weights, want.d_weights, {n, 1, m}));
                    if (n != entry && !(what == 2 && m == 9))
                        CHECK(same(got.d_weights, want.d_weights, {n, 0, m}));
                }
            for (index_t m = 0; m < s.modules; ++m)
                for (index_t i = 0; i < s.block; ++i)
                    if (what == 3 ? is_exactly(element(got.weights.ref(), {entry, 0, m}), 0)
                                  : i != 5)
                        CHECK(same(got.d_inventory, want.d_inventory, {0, m, i}));
        }
}
