#include <string>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/adapters/lora.hpp>
#include <mhr/adapters/lora_halves.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/lora_problem.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using bf16 = Eigen::bfloat16;
using half = Eigen::half;
using plain = lora_storage<float, float, float>;

#define LORA_HALVES_STORAGES                                                                       \
    plain, lora_storage<half, bf16, float, float, float> MHR_TEST_ALSO(                            \
               lora_storage<double, double, double>, lora_storage<bf16, bf16, bf16>,               \
               lora_storage<half, half, half>, lora_storage<float, half, bf16, half>,              \
               lora_storage<float, float, double>)

// Sizes round the tiles; several spans of a task, of more rows than are taken at a time, be these
// few or many; more tasks than rows, nobody's rows, extents of 0.
constexpr lora_sizes shapes[] = {
    {1, 1, 1, 1, 1},
    {5, 2, 7, 3, 2},
    {40, 1, 9, 65, 16},
    {7, 20, 17, 5, 3},
    {50, 2, 63, 66, 17},
    {6, 2, 257, 1, 1},
    {2, 3, 130, 300, 5},
    {0, 1, 4, 5, 2},
    {3, 1, 0, 5, 2},
    {3, 1, 4, 0, 2},
    {3, 1, 4, 5, 0} MHR_TEST_ALSO({800, 1, 1500, 4, 2}, {800, 1, 4, 1500, 2})};

constexpr lora_sizes usual{21, 2, 19, 70, 18};

/// A problem computed by halves, with the scratch of each.
template <class T>
struct by_halves {
    using Sum = typename T::Sum;

    lora_problem<T>& p;
    guarded_buffer<Sum, 2> d_hidden{{p.s.rows, p.s.rank}};
    std::vector<std::byte> of_a{lora_project_backward_workspace_size<Sum>(p.plan, p.s.in, p.s.rank),
                                std::byte{0xff}};
    std::vector<std::byte> of_b{lora_expand_backward_workspace_size<Sum>(p.plan, p.s.out, p.s.rank),
                                std::byte{0xff}};

    void forward(executor_ref executor = serial_executor{}) {
        lora_project_forward(executor, p.plan, p.x.view(), p.adapters(), p.hidden.view());
        lora_expand_forward(executor, p.plan, p.hidden.const_view(), p.adapters(), p.scale,
                            p.y.view());
    }
    void prepare_backward() {
        const auto d_y = copy_as<typename T::Y>(p.y.view());
        forward();
        transform(d_y.view(), p.y.view(), [](const auto& value) { return value; });
    }
    void backward(executor_ref executor = serial_executor{}) {
        lora_expand_backward(executor, p.plan, p.hidden.view(), p.adapters(), p.scale, p.y.view(),
                             d_hidden.view(), p.d_adapters(), {of_b.data(), of_b.size()});
        lora_project_backward(executor, p.plan, p.x.view(), p.adapters(), d_hidden.const_view(),
                              p.d_x.view(), p.d_adapters(), {of_a.data(), of_a.size()});
    }
};

/// The bits of a tensor that may have no elements.
template <class T, std::size_t Rank>
void check_same(guarded_buffer<T, Rank>& got, guarded_buffer<T, Rank>& want) {
    CHECK(got.intact());
    if (want.view().size() > 0) CHECK(compare_bitwise(got.view(), want.view()));
}
template <class T>
void check_same_gradients(lora_problem<T>& got, lora_problem<T>& want) {
    check_same(got.d_x, want.d_x);
    check_same(got.d_a, want.d_a);
    check_same(got.d_b, want.d_b);
}

template <class T>
void set_base_rows(const batch_plan& plan, const tensor_view<T, 2>& hidden, float value) {
    const auto rows = plan.base_rows();
    for (index_t i = 0; i < rows.extent(0); ++i)
        for (index_t k = 0; k < hidden.extent(1); ++k)
            hidden(rows(i), k) = T(value);
}

} // namespace

TEST_CASE_TEMPLATE("LoRA by halves is LoRA, to the last bit", T, LORA_HALVES_STORAGES) {
    for (const lora_sizes& s : shapes) {
        CAPTURE(s.rows);
        CAPTURE(s.in);
        CAPTURE(s.out);
        CAPTURE(s.rank);
        lora_problem<T> p(s), want(s);
        by_halves<T> halves{p};
        halves.prepare_backward();
        halves.backward();
        want.prepare_backward();
        want.backward();
        check_same_gradients(p, want);
        CHECK(halves.d_hidden.intact());

        halves.forward();
        want.forward();
        check_same(p.y, want.y);
        set_base_rows(p.plan, want.hidden.view(), 0); // which lora_forward leaves alone
        check_same(p.hidden, want.hidden);
    }
}

TEST_CASE("LoRA by halves works in every layout, to the same bits") {
    lora_problem<plain> want(usual);
    by_halves<plain> of_want{want};
    of_want.prepare_backward();
    of_want.backward();
    for (layout of_rows : all_layouts)
        for (layout of_adapters : all_layouts) {
            CAPTURE(name_of(of_rows));
            CAPTURE(name_of(of_adapters));
            // The values, drawn in order of positions, are those of every layout.
            lora_problem<plain> p(usual, random_plan(usual.rows, usual.tasks), of_rows, of_adapters,
                                  of_rows, of_adapters);
            by_halves<plain> halves{p};
            halves.prepare_backward();
            halves.backward();
            check_same_gradients(p, want);
        }
}

TEST_CASE("LoRA by halves gives the same bits on every executor") {
    using T = lora_storage<bf16, float, float>;
    const lora_sizes s{70, 3, 150, 140, 18};
    lora_problem<T> want(s), forward(s);
    by_halves<T> of_want{want};
    of_want.prepare_backward();
    of_want.backward();
    by_halves<T>{forward}.forward();
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        lora_problem<T> p(s), q(s);
        by_halves<T> halves{p};
        halves.prepare_backward();
        halves.backward(executor);
        check_same_gradients(p, want);
        check_same(halves.d_hidden, of_want.d_hidden);
        by_halves<T>{q}.forward(executor);
        check_same(q.y, forward.y);
        check_same(q.hidden, forward.hidden);
    });
}

TEST_CASE("both forward halves are one phase") {
    lora_problem<plain> want(usual), p(usual);
    by_halves<plain>{want}.forward();
    for (index_t nth : {1, 3, 40}) {
        lora_problem<plain> shared(usual);
        for_each_share(nth, [&](executor_ref executor) {
            lora_project_forward(executor, shared.plan, shared.x.view(), shared.adapters(),
                                 shared.hidden.view());
        });
        for_each_share(nth, [&](executor_ref executor) {
            lora_expand_forward(executor, shared.plan, shared.hidden.view(), shared.adapters(),
                                shared.scale, shared.y.view());
        });
        check_same(shared.hidden, want.hidden);
        check_same(shared.y, want.y);
    }
}

TEST_CASE("a host may sum the whole of hidden and d_hidden") {
    lora_problem<plain> p({30, 2, 9, 10, 3});
    by_halves<plain> halves{p};
    const auto rows = p.plan.base_rows();
    REQUIRE(rows.extent(0) > 0);
    halves.d_hidden.fill(7);
    p.hidden.fill(7);
    halves.prepare_backward();
    halves.backward();
    for (index_t i = 0; i < rows.extent(0); ++i)
        for (index_t k = 0; k < p.s.rank; ++k) {
            CHECK(p.hidden(rows(i), k) == 0);
            CHECK(halves.d_hidden(rows(i), k) == 0);
        }
}

TEST_CASE("each subset of what the halves give back has the same bits") {
    lora_problem<plain> all(usual), none(usual);
    by_halves<plain> of_all{all};
    of_all.prepare_backward();
    of_all.backward();
    for (int wanted = 0; wanted < 16; ++wanted) {
        CAPTURE(wanted);
        const bool x = (wanted & 1) != 0, a = (wanted & 2) != 0, b = (wanted & 4) != 0,
                   d_hidden = (wanted & 8) != 0;
        lora_problem<plain> p(usual);
        by_halves<plain> halves{p};
        halves.prepare_backward();
        const lora_batch<float> d_adapters{a ? p.d_a.view() : tensor_view<float, 3>{},
                                           b ? p.d_b.view() : tensor_view<float, 3>{}};
        lora_expand_backward(serial_executor{}, p.plan, p.hidden.view(), p.adapters(), p.scale,
                             p.y.view(),
                             d_hidden ? halves.d_hidden.view() : tensor_view<float, 2>{},
                             d_adapters, {halves.of_b.data(), halves.of_b.size()});
        CHECK(compare_bitwise(p.d_b.view(), (b ? all : none).d_b.view()));
        CHECK(compare_bitwise(p.d_a.view(), none.d_a.view()));
        if (!d_hidden) continue;
        CHECK(compare_bitwise(halves.d_hidden.view(), of_all.d_hidden.view()));
        lora_project_backward(serial_executor{}, p.plan, p.x.view(), p.adapters(),
                              halves.d_hidden.view(), x ? p.d_x.view() : tensor_view<float, 2>{},
                              d_adapters, {halves.of_a.data(), halves.of_a.size()});
        CHECK(compare_bitwise(p.d_x.view(), (x ? all : none).d_x.view()));
        CHECK(compare_bitwise(p.d_a.view(), (a ? all : none).d_a.view()));
        CHECK(compare_bitwise(p.d_b.view(), (b ? all : none).d_b.view()));
    }
}

TEST_CASE("the halves take their adapters from a pool") {
    lora_problem<plain> p(usual), want(usual);
    pooled_adapters<plain> pool(p, 3, layout::row_major);
    by_halves<plain> halves{p}, of_want{want};
    of_want.prepare_backward();
    of_want.backward();
    const auto d_y = copy_as<float>(p.y.view());
    lora_project_forward(serial_executor{}, p.plan, p.x.view(), pool.batch(), p.hidden.view());
    lora_expand_forward(serial_executor{}, p.plan, p.hidden.view(), pool.batch(), p.scale,
                        p.y.view());
    lora_expand_backward(serial_executor{}, p.plan, p.hidden.view(), pool.batch(), p.scale,
                         d_y.view(), halves.d_hidden.view(), p.d_adapters(),
                         {halves.of_b.data(), halves.of_b.size()});
    lora_project_backward(serial_executor{}, p.plan, p.x.view(), pool.batch(),
                          halves.d_hidden.view(), p.d_x.view(), p.d_adapters(),
                          {halves.of_a.data(), halves.of_a.size()});
    check_same_gradients(p, want);
    of_want.forward();
    check_same(p.y, want.y);
}

TEST_CASE("nothing is allocated by the halves") {
    lora_problem<plain> p(usual);
    by_halves<plain> halves{p};
    CHECK(allocations_of([&] {
              halves.forward();
              halves.backward();
          }) == 0);
}

TEST_CASE("bad input of the halves is refused") {
    lora_problem<plain> p(usual);
    by_halves<plain> halves{p};
    const index_t entries = p.plan.entries();
    const std::vector<index_t> numbers(static_cast<std::size_t>(entries), 0);
    const std::vector<index_t> beyond(static_cast<std::size_t>(entries), entries);
    const tensor_view<const index_t, 1> slots(numbers.data(), {entries});
    const serial_executor serial;

    // All arguments, and all calls with them.
    struct arguments {
        tensor_view<float, 2> x, hidden, y, d_y, d_hidden, d_x;
        lora_batch<float> adapters, d_adapters;
        workspace of_a, of_b;
    };
    guarded_buffer<float, 2> d_y({usual.rows, usual.out});
    d_y.fill(1);
    p.hidden.fill(1);
    const arguments good{p.x.view(),
                         p.hidden.view(),
                         p.y.view(),
                         d_y.view(),
                         halves.d_hidden.view(),
                         p.d_x.view(),
                         p.adapters(),
                         p.d_adapters(),
                         {halves.of_a.data(), halves.of_a.size()},
                         {halves.of_b.data(), halves.of_b.size()}};
    const auto project_on = [&](executor_ref executor, const arguments& all) {
        lora_project_forward(executor, p.plan, all.x, all.adapters, all.hidden);
    };
    const auto project = [&](const arguments& all) { project_on(serial, all); };
    const auto expand = [&](const arguments& all) {
        lora_expand_forward(serial, p.plan, all.hidden, all.adapters, 1, all.y);
    };
    const auto expand_back = [&](const arguments& all, executor_ref executor = serial_executor{}) {
        lora_expand_backward(executor, p.plan, all.hidden, all.adapters, 1, all.d_y, all.d_hidden,
                             all.d_adapters, all.of_b);
    };
    const auto project_back = [&](const arguments& all, executor_ref executor = serial_executor{}) {
        lora_project_backward(executor, p.plan, all.x, all.adapters, all.d_hidden, all.d_x,
                              all.d_adapters, all.of_a);
    };
    const auto refused = [&](const char* function, const char* argument, auto&& call,
                             const arguments& bad) {
        return refuses(
            function, argument, [&] { call(bad); }, p.y, p.hidden, halves.d_hidden, p.d_x, p.d_a,
            p.d_b);
    };
    const auto check_bad = [&](const char* function, const char* argument, auto&& call, auto&& view,
                               auto&& spoilt_views) {
        for (const auto& spoilt : spoilt_views) {
            CAPTURE(function);
            CAPTURE(argument);
            CAPTURE(spoilt.what);
            arguments bad = good;
            view(bad) = spoilt.view;
            CHECK(refused(function, argument, call, bad));
        }
    };
    const auto x = [](arguments & all) -> auto& {
        return all.x;
    };
    const auto a = [](arguments & all) -> auto& {
        return all.adapters.a;
    };
    const auto b = [](arguments & all) -> auto& {
        return all.adapters.b;
    };
    const auto hidden = [](arguments & all) -> auto& {
        return all.hidden;
    };
    const auto y = [](arguments & all) -> auto& {
        return all.y;
    };
    const auto view_of_d_y = [](arguments & all) -> auto& {
        return all.d_y;
    };
    const auto d_hidden = [](arguments & all) -> auto& {
        return all.d_hidden;
    };
    const auto d_x = [](arguments & all) -> auto& {
        return all.d_x;
    };
    const auto d_a = [](arguments & all) -> auto& {
        return all.d_adapters.a;
    };
    const auto d_b = [](arguments & all) -> auto& {
        return all.d_adapters.b;
    };
    const auto as_input = [](const auto& view, const std::set<std::size_t>& free = {}) {
        return bad_as_input(view, free);
    };
    const auto as_output = [](const auto& view) { return bad_as_output(view); };

    const char* name = "lora_project_forward";
    check_bad(name, "x", project, x, as_input(good.x, {1}));
    check_bad(name, "adapters.a", project, a, as_input(good.adapters.a, {2}));
    check_bad(name, "adapters.b", project, b, as_input(good.adapters.b, {2}));
    check_bad(name, "hidden", project, hidden, as_output(good.hidden));

    name = "lora_expand_forward";
    check_bad(name, "adapters.a", expand, a, as_input(good.adapters.a, {1, 2}));
    check_bad(name, "adapters.b", expand, b, as_input(good.adapters.b, {2}));
    check_bad(name, "hidden", expand, hidden, as_input(good.hidden));
    check_bad(name, "y", expand, y, as_output(good.y));

    name = "lora_expand_backward";
    check_bad(name, "adapters.a", expand_back, a, as_input(good.adapters.a, {1, 2}));
    check_bad(name, "adapters.b", expand_back, b, as_input(good.adapters.b, {2}));
    check_bad(name, "hidden", expand_back, hidden, as_input(good.hidden));
    check_bad(name, "d_y", expand_back, view_of_d_y, as_input(good.d_y));
    check_bad(name, "d_hidden", expand_back, d_hidden, as_output(good.d_hidden));
    check_bad(name, "d_adapters.b", expand_back, d_b, as_output(good.d_adapters.b));

    const char* back = "lora_project_backward";
    check_bad(back, "x", project_back, x, as_input(good.x, {1}));
    check_bad(back, "adapters.a", project_back, a, as_input(good.adapters.a, {2}));
    check_bad(back, "d_hidden", project_back, d_hidden, as_input(good.d_hidden));
    check_bad(back, "d_x", project_back, d_x, as_output(good.d_x));
    check_bad(back, "d_adapters.a", project_back, d_a, as_output(good.d_adapters.a));

    for (const auto& [call_name, call] :
         {std::pair<const char*, std::function<void(const arguments&)>>{name, expand_back},
          {back, project_back}}) {
        arguments bad = good;
        bad.d_adapters.slot_of_entry = slots;
        CHECK(refused(call_name, "d_adapters.slot_of_entry", call, bad));
        bad = good;
        bad.of_a = {halves.of_a.data(), halves.of_a.size() - 1};
        bad.of_b = {halves.of_b.data(), halves.of_b.size() - 1};
        CHECK(refused(call_name, "workspace", call, bad));
    }
    for (const auto& [call_name, call] :
         {std::pair<const char*, std::function<void(const arguments&)>>{name, expand_back},
          {back, project_back},
          {"lora_project_forward", project},
          {"lora_expand_forward", expand}}) {
        arguments bad = good;
        bad.adapters.slot_of_entry = {beyond.data(), {entries}};
        CHECK(refused(call_name, "adapters.slot_of_entry", call, bad));
        call(good); // which is not refused
    }
    const share_executor share{0, 1};
    CHECK(refused(
        name, "executor", [&](const arguments& all) { expand_back(all, share); }, good));
    CHECK(refused(
        back, "executor", [&](const arguments& all) { project_back(all, share); }, good));
}
