// Numbers that are not finite stay with what they belong to: a row spoils no other row, and no
// gradients but those of its own task's weights and of the modules that its task uses; a module
// spoils the tasks that use it, and no other. What memory held before does not matter.
//
// Every case runs a problem twice, once spoilt, and asks for the same bits where nothing may have
// changed.

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/adapters/output_mixed_lora.hpp>
#include <mhr/adapters/routed_lora.hpp>

#include "support/comparison.hpp"
#include "support/dirty_stack.hpp"
#include "support/fast_math.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_checks.hpp"
#include "support/routed_ia3_problem.hpp"
#include "support/routed_problem.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using plain = routed_of<float>;

constexpr float poisons[] = {std::numeric_limits<float>::quiet_NaN(),
                             std::numeric_limits<float>::infinity(),
                             -std::numeric_limits<float>::infinity()};

// Tasks of several blocks of rows, and several spans; tails of every tile; more modules and entries
// than are mixed at a time.
constexpr routed_sizes shapes[] = {{70, 2, 1, 3, 9, 21, 5},
                                   {41, 3, 1, 11, 35, 7, 18},
                                   {60, 40, 1, 2, 3, 5, 1},
                                   {26, 2, 1, 2, 300, 270, 16}};

/// Routed LoRA, of several heads.
template <class T_>
struct parameters_mixed {
    using T = T_;
    static constexpr index_t heads = 3;
    static void run(routed_problem<T>& p) {
        dirty_stack();
        p.prepare_backward();
        dirty_stack();
        p.backward();
        p.forward();
    }
};

/// LoRA with mixed outputs.
template <class T_>
struct outputs_mixed {
    using T = T_;
    static constexpr index_t heads = 1;
    static void run(routed_problem<T>& p) {
        tensor<typename T::A, 3> hidden({p.s.rows, p.s.modules, p.s.rank});
        std::vector<std::byte> memory(
            output_mixed_lora_backward_workspace_size<typename T::Sum>(p.plan, p.shape()),
            std::byte{0xff});
        auto y = copy_as<typename T::Y>(p.y.view());
        dirty_stack();
        output_mixed_lora_forward(serial_executor{}, p.plan, p.x.view(), p.inventory(),
                                  p.weights.view(), p.scale, y.view(), hidden.view());
        dirty_stack();
        output_mixed_lora_backward(serial_executor{}, p.plan, p.x.view(), p.inventory(),
                                   p.weights.view(), p.scale, hidden.view(), p.y.view(),
                                   p.d_x.view(), p.d_inventory(), p.d_weights.view(),
                                   workspace(memory.data(), memory.size()));
        transform(y.view(), p.y.view(), [](const auto& value) { return value; });
    }
};

#define NON_FINITE_KINDS                                                                           \
    parameters_mixed<plain> MHR_TEST_ALSO(parameters_mixed<of_16_bits>, outputs_mixed<plain>)

template <class Kind>
routed_sizes sizes_of(routed_sizes s) {
    s.heads = Kind::heads;
    return s;
}

/// Some rows that have a task.
std::vector<index_t> some_rows(const batch_plan& plan) {
    const auto order = plan.row_order();
    const index_t last = order.extent(0) - 1;
    return {order(0), order(last / 2), order(last)};
}

/// The results may differ in row `row` of y, and of d_x if that `is_reached`; in what gradients
/// there are of the weights of `entry`, and of the modules that it uses. Nowhere else.
template <class T>
void check_spread(routed_problem<T>& got, routed_problem<T>& want, index_t entry,
                  const std::vector<index_t>& rows_of_y, const std::vector<index_t>& rows_of_d_x) {
    const auto has = [](const std::vector<index_t>& list, index_t row) {
        return std::find(list.begin(), list.end(), row) != list.end();
    };
    for (index_t row = 0; row < got.s.rows; ++row) {
        CAPTURE(row);
        if (!has(rows_of_y, row))
            CHECK(compare_bitwise(got.y.view().slice(0, row), want.y.view().slice(0, row)));
        if (!has(rows_of_d_x, row))
            CHECK(compare_bitwise(got.d_x.view().slice(0, row), want.d_x.view().slice(0, row)));
    }
    for (index_t other = 0; other < got.plan.entries(); ++other)
        if (other != entry)
            CHECK(compare_bitwise(got.d_weights.view().slice(0, other),
                                  want.d_weights.view().slice(0, other)));
    for (index_t h = 0; h < got.s.heads; ++h)
        for (index_t m = 0; m < got.s.modules; ++m) {
            CAPTURE(h);
            CAPTURE(m);
            if (!detail::is_exactly(load<float>(got.weights(entry, h, m)), 0)) continue;
            const auto module_of = [&](const auto& inventory) {
                return inventory.slice(0, h).slice(0, m);
            };
            CHECK(compare_bitwise(module_of(got.d_a.view()), module_of(want.d_a.view())));
            CHECK(compare_bitwise(module_of(got.d_b.view()), module_of(want.d_b.view())));
        }
}

std::vector<index_t> rows_of(const batch_plan& plan, index_t entry) {
    const auto rows = plan.rows_of(entry);
    return std::vector<index_t>(rows.data(), rows.data() + rows.extent(0));
}

template <class T>
bool is_finite(const T& value) {
    return std::isfinite(load<float>(value));
}

} // namespace

TEST_CASE_TEMPLATE("a row of x that is not finite spoils no other row" * needs_non_finite(), Kind,
                   NON_FINITE_KINDS) {
    using T = typename Kind::T;
    for (const routed_sizes& shape : shapes) {
        const routed_sizes s = sizes_of<Kind>(shape);
        CAPTURE(s.rows);
        routed_problem<T> want(s);
        const auto entries = entry_of_row(want.plan);
        Kind::run(want);
        for (index_t row : some_rows(want.plan))
            for (float poison : poisons) {
                CAPTURE(row);
                routed_problem<T> got(s);
                const index_t i = s.in() - 1;
                got.x(row, i) = typename T::X(poison);
                Kind::run(got);
                CHECK_FALSE(is_finite(got.y(row, 0)));
                // d_x does not depend on x.
                check_spread(got, want, entries(row), {row}, {});
                // Of a, only what that feature is multiplied with.
                const auto others = [&](const auto& d_a) {
                    return d_a.slice(0, s.heads - 1).block(1, 0, s.in_block - 1);
                };
                CHECK(compare_bitwise(others(got.d_a.view()), others(want.d_a.view())));
            }
    }
}

TEST_CASE_TEMPLATE("a row of d_y that is not finite spoils no other row" * needs_non_finite(), Kind,
                   NON_FINITE_KINDS) {
    using T = typename Kind::T;
    for (const routed_sizes& shape : shapes) {
        const routed_sizes s = sizes_of<Kind>(shape);
        CAPTURE(s.rows);
        routed_problem<T> want(s);
        const auto entries = entry_of_row(want.plan);
        Kind::run(want);
        for (index_t row : some_rows(want.plan))
            for (float poison : poisons) {
                CAPTURE(row);
                routed_problem<T> got(s);
                for (index_t o = 0; o < s.out(); ++o)
                    got.y(row, o) = typename T::Y(poison); // d_y, too
                Kind::run(got);
                CHECK_FALSE(is_finite(got.d_x(row, 0)));
                check_spread(got, want, entries(row), {row}, {row});
            }
    }
}

TEST_CASE_TEMPLATE("a row of no task may hold anything" * needs_non_finite(), Kind,
                   NON_FINITE_KINDS) {
    using T = typename Kind::T;
    const routed_sizes s = sizes_of<Kind>(shapes[0]);
    routed_problem<T> want(s), got(s);
    const auto base = got.plan.base_rows();
    REQUIRE(base.extent(0) > 0);
    std::vector<index_t> rows;
    for (index_t i = 0; i < base.extent(0); ++i) {
        rows.push_back(base(i));
        for (index_t o = 0; o < s.out(); ++o)
            got.y(base(i), o) = typename T::Y(poisons[0]);
        for (index_t o = 0; o < s.in(); ++o)
            got.x(base(i), o) = typename T::X(poisons[1]);
    }
    Kind::run(want);
    Kind::run(got);
    got.weights.fill(typename T::W(0.F)); // no module of no entry may differ
    check_spread(got, want, 0, rows, {});
    CHECK(compare_bitwise(got.d_weights.view(), want.d_weights.view()));
}

TEST_CASE_TEMPLATE("a module that is not finite spoils the tasks that use it, and no other" *
                       needs_non_finite(),
                   Kind, NON_FINITE_KINDS) {
    using T = typename Kind::T;
    for (const routed_sizes& shape : shapes)
        for (float poison : poisons) {
            const routed_sizes s = sizes_of<Kind>(shape);
            CAPTURE(s.rows);
            const index_t module = s.modules - 1;
            routed_problem<T> want(s), got(s);
            REQUIRE(got.plan.entries() > 1);
            const index_t entry = 1; // the only one that uses it
            for (routed_problem<T>* p : {&want, &got})
                for (index_t n = 0; n < p->plan.entries(); ++n)
                    for (index_t h = 0; h < s.heads; ++h)
                        p->weights(n, h, module) = typename T::W(n == entry ? 0.5F : 0.F);
            for (index_t h = 0; h < s.heads; ++h) {
                const auto spoil = [&](const auto& inventory) {
                    const auto matrix = inventory.slice(0, h).slice(0, module);
                    transform(matrix, matrix, [&](const auto& value) {
                        return std::decay_t<decltype(value)>(poison);
                    });
                };
                spoil(got.a.view());
                spoil(got.b.view());
            }
            Kind::run(want);
            Kind::run(got);
            const auto rows = rows_of(got.plan, entry);
            CHECK_FALSE(is_finite(got.y(rows.front(), 0)));
            // The gradients of weights of 0 are those of what would be used.
            for (index_t n = 0; n < got.plan.entries(); ++n)
                for (index_t h = 0; h < s.heads; ++h)
                    if (n != entry) {
                        CHECK_FALSE(is_finite(got.d_weights(n, h, module)));
                        got.d_weights(n, h, module) = want.d_weights(n, h, module);
                    }
            check_spread(got, want, entry, rows, rows);
        }
}

TEST_CASE_TEMPLATE("a weight that is not finite spoils its task, and no other" * needs_non_finite(),
                   Kind, NON_FINITE_KINDS) {
    using T = typename Kind::T;
    for (const routed_sizes& shape : shapes)
        for (float poison : poisons) {
            const routed_sizes s = sizes_of<Kind>(shape);
            CAPTURE(s.rows);
            routed_problem<T> want(s), got(s);
            const index_t entry = got.plan.entries() - 1;
            got.weights(entry, s.heads - 1, 0) = typename T::W(poison);
            Kind::run(want);
            Kind::run(got);
            const auto rows = rows_of(got.plan, entry);
            CHECK_FALSE(is_finite(got.y(rows.front(), 0)));
            check_spread(got, want, entry, rows, rows);
        }
}

TEST_CASE_TEMPLATE("what memory held before does not matter", T, plain MHR_TEST_ALSO(of_16_bits)) {
    for (const routed_sizes& shape : shapes) {
        routed_sizes s = shape;
        s.heads = 3;
        routed_problem<T> want(s); // filled with NaN
        parameters_mixed<T>::run(want);
        for (std::byte byte : {std::byte{0x00}, std::byte{0x7e}, std::byte{0xd5}}) {
            routed_problem<T> got(s);
            std::fill(got.state_memory.begin(), got.state_memory.end(), byte);
            std::fill(got.scratch_memory.begin(), got.scratch_memory.end(), byte);
            parameters_mixed<T>::run(got);
            CHECK(compare_bitwise(got.y.view(), want.y.view()));
            check_same_gradients(got, want);
        }
    }
}

TEST_CASE("rows, modules and weights of (IA)3 that are not finite spoil no other task" *
          needs_non_finite()) {
    using T = ia3_storage<float, Eigen::bfloat16, float, float>;
    const ia3_sizes s{70, 3, 2, 11, 67};
    constexpr index_t entry = 1;
    const auto run = [](routed_ia3_problem<T>& p) {
        dirty_stack();
        p.forward();
        dirty_stack();
        p.backward();
    };
    for (int what = 0; what < 4; ++what)
        for (float poison : poisons) {
            CAPTURE(what);
            routed_ia3_problem<T> want(s), got(s);
            const auto rows = rows_of(got.plan, entry);
            const index_t row = rows.back();
            for (routed_ia3_problem<T>* p : {&want, &got})
                for (index_t n = 0; n < p->plan.entries(); ++n)
                    for (index_t h = 0; h < s.heads; ++h)
                        p->weights(n, h, 9) = n == entry ? 0.5F : 0.F;
            if (what == 0) got.x(row, 5) = poison;
            if (what == 1) got.d_y(row, 5) = poison;
            if (what == 2) got.modules(0, 9, 5) = Eigen::bfloat16(poison);
            if (what == 3) got.weights(entry, 0, 9) = poison;
            run(want);
            run(got);
            for (index_t r = 0; r < s.rows; ++r) {
                const bool is_reached = what < 2 ? r == row : entry_of_row(got.plan)(r) == entry;
                if (is_reached) continue;
                CHECK(compare_bitwise(got.y.view().slice(0, r), want.y.view().slice(0, r)));
                CHECK(compare_bitwise(got.d_x.view().slice(0, r), want.d_x.view().slice(0, r)));
            }
            for (index_t n = 0; n < got.plan.entries(); ++n)
                for (index_t m = 0; m < s.modules; ++m) {
                    // Head 1 has nothing of it; other tasks have, in the gradient of that weight.
                    CHECK(got.d_weights(n, 1, m) == want.d_weights(n, 1, m));
                    if (n != entry && !(what == 2 && m == 9))
                        CHECK(got.d_weights(n, 0, m) == want.d_weights(n, 0, m));
                }
            for (index_t m = 0; m < s.modules; ++m)
                for (index_t i = 0; i < s.block; ++i)
                    if (what == 3 ? detail::is_exactly(got.weights(entry, 0, m), 0) : i != 5)
                        CHECK(load<float>(got.d_modules(0, m, i)) ==
                              load<float>(want.d_modules(0, m, i)));
        }
}
