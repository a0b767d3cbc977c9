#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/lora.hpp>

#include "support/adapter_contract.hpp"
#include "support/contract/lora_page.hpp"
#include "support/contract/rank_sums.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using type = element_type;

const lora_page page;

/// Adapters of one layer, each of its own rank, element types and scale, and their gradients.
struct various_adapters {
    struct one {
        guarded_tensor<2> a, b, d_a, d_b;
        double scale;
    };
    std::vector<std::unique_ptr<one>> all;
    std::vector<lora> adapters;
    std::vector<lora_matrices> gradients;

    struct kind {
        index_t rank;
        element_type a, b;
        double scale;
        layout order = layout::row_major;
    };

    various_adapters(index_t in, index_t out, const std::vector<kind>& kinds) {
        std::uint64_t seed = 20;
        for (const kind& k : kinds) {
            all.push_back(std::unique_ptr<one>(new one{{k.a, {in, k.rank}, k.order},
                                                       {k.b, {k.rank, out}, k.order},
                                                       {k.b, {in, k.rank}, k.order},
                                                       {k.a, {k.rank, out}, k.order},
                                                       k.scale}));
            one& added = *all.back();
            for (guarded_tensor<2>* each : {&added.a, &added.b, &added.d_a, &added.d_b})
                each->fill(random_source(seed++));
            adapters.push_back({added.a, added.b, added.scale});
            gradients.push_back({added.d_a, added.d_b});
        }
    }

    [[nodiscard]] index_t count() const { return static_cast<index_t>(adapters.size()); }
};

/// Ranks 8, 16 and 64 as serving has them, and odd ones.
const std::vector<various_adapters::kind> kinds{
    {8, type::f32, type::f32, 0.5},
    {16, type::bf16, type::f16, -0.75},
    {64, type::f16, type::f32, 1.0 / 64, layout::column_major},
    {1, type::bf16, type::bf16, 2, layout::reversed},
    {3, type::f32, type::bf16, 1, layout::padded}};

/// One call of LoRA on a list of adapters: x, y and d_y of `options`, and a hidden of this width.
struct list_call {
    adapter_call call;
    guarded_tensor<2> hidden;
    std::vector<std::byte> scratch;

    list_call(const call_options& options, index_t width)
        : call(page, options), hidden(options.sums, {call.plan.rows(), width}) {
        hidden.fill(random_source(99));
    }

    void run(const lora_list& adapters, const lora_list_gradients& gradients, const batch& rows) {
        const arguments given = call.given();
        scratch.assign(lora_backward_workspace_size(rows, adapters, hidden.type()),
                       std::byte{0xff});
        CHECK(why_not(rows, adapters, given.get<2>("x"), given.get<2>("y"), {hidden}).empty());
        lora_forward(rows, adapters, given.get<2>("x"), given.get<2>("y"), {hidden});
        lora_backward(rows, adapters, given.get<2>("x"), given.get<2>("d_y"), {hidden},
                      {given.get<2>("gradients.x"), gradients}, {scratch.data(), scratch.size()});
        CHECK(hidden.intact());
        CHECK(call.intact());
    }
    void run(const lora_list& adapters, const lora_list_gradients& gradients) {
        run(adapters, gradients, {call.plan});
    }
};

} // namespace

TEST_CASE("LoRA keeps the contract") {
    check_contract(page);
}

TEST_CASE("ranks that share LoRA sum hidden") {
    SUBCASE("between the products") {
        check_rank_sums(page);
    }
    SUBCASE("if it can be summed") {
        check_bad_rank_sums(page);
    }
}

TEST_CASE("a list without memory is refused, unless no entry needs it") {
    list_call call(call_options{}.with({9, 3, 1, 1, 5, 7, 2}), 2);
    const arguments given = call.call.given();
    const lora_list nothing(nullptr, call.call.plan.entries());
    const lora_state state{call.hidden.ref()};
    const auto outcome = refuses(call.call, "lora_forward", "adapters", [&] {
        lora_forward({call.call.plan}, nothing, given.get<2>("x"), given.get<2>("y"), state);
    });
    CHECK(outcome);
    CHECK(why_not({call.call.plan}, nothing, given.get<2>("x"), given.get<2>("y"), state) ==
          outcome.message);
}

TEST_CASE("sums of a long batch are added up for all features") {
    // Several parts of one task, and more features than one part of adding them up takes.
    adapter_call call(page, call_options{}.with({450, 1, 1, 1, 530, 1100, 2}));
    check_against_oracle(call);
}

TEST_CASE("one call serves adapters of different ranks, types and scales: as calls of their own") {
    const contract_sizes sizes{90, 5, 1, 1, 37, 70, 1};
    for (element_type sums : sum_types) {
        CAPTURE(std::string(name_of(sums)));
        const auto options =
            call_options{}.with(sizes).with_sums(sums).of("x", type::f16).of("y", type::bf16);
        various_adapters adapters(37, 70, kinds), apart(37, 70, kinds);
        list_call all(options, 65);
        REQUIRE(all.call.plan.entries() == adapters.count());
        all.run({adapters.adapters.data(), adapters.count()},
                {adapters.gradients.data(), adapters.count()});

        list_call each(options, 65);
        for (index_t entry = 0; entry < adapters.count(); ++entry) {
            // A batch of this task's rows alone.
            auto tasks = all.call.task_of_row;
            for (std::int64_t& task : tasks)
                if (task != all.call.plan.tasks()(entry)) task = no_task;
            const batch_plan plan = plan_of(tasks);
            const auto n = static_cast<std::size_t>(entry);
            each.run(apart.adapters[n], apart.gradients[n], {plan});
        }
        for (const char* name : {"y", "gradients.x"}) {
            CAPTURE(std::string(name));
            CHECK(same_bits(all.call, each.call, name));
        }
        // Columns beyond an adapter's rank keep what they hold.
        CHECK(compare_bitwise(all.hidden.const_ref(), each.hidden.const_ref()));
        for (std::size_t n = 0; n < kinds.size(); ++n) {
            CAPTURE(n);
            CHECK(compare_bitwise(adapters.all[n]->d_a.const_ref(), apart.all[n]->d_a.const_ref()));
            CHECK(compare_bitwise(adapters.all[n]->d_b.const_ref(), apart.all[n]->d_b.const_ref()));
            CHECK(adapters.all[n]->d_a.intact());
            CHECK(adapters.all[n]->d_b.intact());
        }
    }
}

TEST_CASE("a list of various adapters gives the same bits on every executor, without allocations") {
    const auto options = call_options{}.with({200, 5, 1, 1, 600, 300, 1});
    various_adapters adapters(600, 300, kinds);
    list_call want(options, 64);
    want.run({adapters.adapters.data(), adapters.count()},
             {adapters.gradients.data(), adapters.count()});
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        various_adapters others(600, 300, kinds);
        list_call call(options, 64);
        call.run({others.adapters.data(), others.count()},
                 {others.gradients.data(), others.count()}, {call.call.plan, executor});
        CHECK(compare_bitwise(call.hidden.const_ref(), want.hidden.const_ref()));
        for (const char* result : {"y", "gradients.x"})
            CHECK(same_bits(call.call, want.call, result));
        for (std::size_t n = 0; n < kinds.size(); ++n) {
            CHECK(
                compare_bitwise(others.all[n]->d_a.const_ref(), adapters.all[n]->d_a.const_ref()));
            CHECK(
                compare_bitwise(others.all[n]->d_b.const_ref(), adapters.all[n]->d_b.const_ref()));
        }
    });
    const arguments given = want.call.given();
    const lora_list list(adapters.adapters.data(), adapters.count());
    const batch rows{want.call.plan};
    CHECK(allocations_of([&] {
              lora_forward(rows, list, given.get<2>("x"), given.get<2>("y"), {want.hidden});
              lora_backward(rows, list, given.get<2>("x"), given.get<2>("d_y"), {want.hidden},
                            {given.get<2>("gradients.x"),
                             lora_list_gradients(adapters.gradients.data(), adapters.count())},
                            {want.scratch.data(), want.scratch.size()});
          }) == 0);
}

TEST_CASE("a single adapter, an array, numbers of an array and a stack are one list") {
    const contract_sizes sizes{40, 3, 1, 1, 18, 70, 18};
    list_call want(call_options{}.with(sizes), 18);
    REQUIRE(want.call.plan.entries() == 3);
    const arguments stacks = want.call.given();
    want.run(lora_page::adapters(stacks),
             stacked_lora_matrices{stacks.get<3>("gradients.adapters.a"),
                                   stacks.get<3>("gradients.adapters.b")});
    const auto check_same = [&](list_call& got) {
        CHECK(compare_bitwise(got.hidden.const_ref(), want.hidden.const_ref()));
        for (const char* name :
             {"y", "gradients.x", "gradients.adapters.a", "gradients.adapters.b"}) {
            CAPTURE(std::string(name));
            CHECK(same_bits(got.call, want.call, name));
        }
    };
    const auto matrices = [](const arguments& given, index_t n) {
        return lora{given.get<3>("adapters.a").slice(0, n), given.get<3>("adapters.b").slice(0, n),
                    given.scale};
    };
    const auto gradients = [](const arguments& given, index_t n) {
        return lora_matrices{given.get<3>("gradients.adapters.a").slice(0, n),
                             given.get<3>("gradients.adapters.b").slice(0, n)};
    };
    SUBCASE("an array") {
        list_call got(call_options{}.with(sizes), 18);
        const arguments given = got.call.given();
        const std::array<lora, 3> array{matrices(given, 0), matrices(given, 1), matrices(given, 2)};
        const std::array<lora_matrices, 3> d{gradients(given, 0), gradients(given, 1),
                                             gradients(given, 2)};
        got.run({array.data(), 3}, {d.data(), 3});
        check_same(got);
    }
    SUBCASE("numbers, of every second place, of an array with spare adapters that no entry uses") {
        list_call got(call_options{}.with(sizes), 18);
        const arguments given = got.call.given();
        const std::array<lora, 5> array{matrices(given, 2), lora{}, matrices(given, 0), lora{},
                                        matrices(given, 1)};
        const std::array<lora_matrices, 5> d{gradients(given, 2), lora_matrices{},
                                             gradients(given, 0), lora_matrices{},
                                             gradients(given, 1)};
        const std::array<index_t, 5> numbers{2, -7, 4, -7, 0};
        got.run({array.data(), 5, {numbers.data(), {3}, {2}}}, {d.data(), 5});
        check_same(got);
    }
    SUBCASE("a single one") {
        const auto one_task =
            call_options{}.with(sizes).with_tasks(std::vector<std::int64_t>(40, 7));
        list_call got(one_task, 18), stacked(one_task, 18);
        got.run(matrices(got.call.given(), 0), gradients(got.call.given(), 0));
        const arguments given = stacked.call.given();
        stacked.run(lora_page::adapters(given),
                    stacked_lora_matrices{given.get<3>("gradients.adapters.a"),
                                          given.get<3>("gradients.adapters.b")});
        check_same_results(got.call, stacked.call);
        CHECK(compare_bitwise(got.hidden.const_ref(), stacked.hidden.const_ref()));
    }
}

TEST_CASE("gradients of entries that share an adapter are summed") {
    // Sums of whole numbers are exact, in any order. Some adapters may be used by no entry.
    const auto options = call_options{}.with({60, 4, 1, 1, 9, 10, 3});
    for (const std::vector<index_t>& map :
         std::vector<std::vector<index_t>>{{1, 1, 1, 1}, {2, 0, 2, 0}, {0, 1, 2, 0}}) {
        list_call apart(options, 3), shared(options, 3);
        REQUIRE(apart.call.plan.entries() == 4);
        for (list_call* each : {&apart, &shared})
            for (const tensor_spec& spec : each->call.specs)
                transform_elements(each->call[spec.name].ref(),
                                   [](double value) { return std::round(2 * value) + 0; });
        for (const char* name : {"gradients.adapters.a", "gradients.adapters.b"})
            apart.call[name].fill(0);
        const auto slices = [](list_call& call, const char* name) {
            std::vector<tensor_ref<2>> all;
            for (index_t n = 0; n < 4; ++n)
                all.push_back(call.call.given().get<3>(name).slice(0, n));
            return all;
        };
        const auto a = slices(shared, "adapters.a"), b = slices(shared, "adapters.b");
        const auto d_a = slices(shared, "gradients.adapters.a");
        const auto d_b = slices(shared, "gradients.adapters.b");
        const auto apart_a = slices(apart, "gradients.adapters.a");
        const auto apart_b = slices(apart, "gradients.adapters.b");
        std::vector<lora> adapters, copies;
        std::vector<lora_matrices> gradients, of_copies;
        for (std::size_t n = 0; n < 3; ++n) {
            adapters.push_back({a[n], b[n], 2});
            gradients.push_back({d_a[n], d_b[n]});
        }
        for (std::size_t entry = 0; entry < 4; ++entry) {
            copies.push_back(adapters[static_cast<std::size_t>(map[entry])]);
            of_copies.push_back({apart_a[entry], apart_b[entry]});
        }
        std::vector<tensor<double, 2>> want_a, want_b;
        for (std::size_t n = 0; n < 3; ++n) {
            want_a.push_back(values_as<double>(d_a[n]));
            want_b.push_back(values_as<double>(d_b[n]));
        }
        apart.run({copies.data(), 4}, {of_copies.data(), 4});
        shared.run({adapters.data(), 3, {map.data(), {4}}}, {gradients.data(), 3});
        for (const char* name : {"y", "gradients.x"})
            CHECK(same_bits(shared.call, apart.call, name));
        const auto add = [](const tensor_ref<2>& from, tensor<double, 2>& to) {
            for_each_position(from.extents(), [&](const position<2>& at) {
                element(to.view(), at) += element(from, at);
            });
        };
        for (std::size_t entry = 0; entry < 4; ++entry) {
            add(apart_a[entry], want_a[static_cast<std::size_t>(map[entry])]);
            add(apart_b[entry], want_b[static_cast<std::size_t>(map[entry])]);
        }
        for (std::size_t n = 0; n < 3; ++n) {
            CAPTURE(n);
            CHECK(compare(d_a[n], want_a[n].view(), error_bound{0, 0, 0}));
            CHECK(compare(d_b[n], want_b[n].view(), error_bound{0, 0, 0}));
        }
    }
}

TEST_CASE("each adapter of a list may lack gradients, with the same bits in the others") {
    const auto options = call_options{}.with({90, 5, 1, 1, 37, 70, 1});
    various_adapters all(37, 70, kinds), none(37, 70, kinds);
    list_call want(options, 64);
    want.run({all.adapters.data(), all.count()}, {all.gradients.data(), all.count()});
    various_adapters some(37, 70, kinds);
    for (std::size_t n = 0; n < kinds.size(); ++n) {
        if (n % 2 == 0) some.gradients[n].a = {};
        if (n % 3 == 0) some.gradients[n].b = {};
    }
    list_call got(options, 64);
    got.run({some.adapters.data(), some.count()}, {some.gradients.data(), some.count()});
    CHECK(same_bits(got.call, want.call, "gradients.x"));
    for (std::size_t n = 0; n < kinds.size(); ++n) {
        CAPTURE(n);
        CHECK(compare_bitwise(some.all[n]->d_a.const_ref(),
                              (n % 2 == 0 ? none : all).all[n]->d_a.const_ref()));
        CHECK(compare_bitwise(some.all[n]->d_b.const_ref(),
                              (n % 3 == 0 ? none : all).all[n]->d_b.const_ref()));
    }
    list_call frozen(options, 64);
    frozen.run({some.adapters.data(), some.count()}, {});
    CHECK(same_bits(frozen.call, want.call, "gradients.x"));
}

TEST_CASE("ranks that sum hidden of various adapters find zeros beyond the rank of each row") {
    various_adapters adapters(37, 70, kinds);
    list_call call(call_options{}.with({90, 5, 1, 1, 37, 70, 1}), 64);
    REQUIRE(call.call.plan.entries() == adapters.count());
    rank_sum sum, nothing;
    const lora_list list(adapters.adapters.data(), adapters.count());
    const arguments given = call.call.given();
    const auto entries = entry_of_row(call.call.plan);
    const auto check_zeros = [&](const rank_sum& seen) {
        CHECK(seen.calls == 1);
        for_each_position(seen.values.extents(), [&](const position<2>& at) {
            const index_t entry = entries(at[0]);
            const bool is_beyond =
                entry < 0 || at[1] >= kinds[static_cast<std::size_t>(entry)].rank;
            if (is_beyond) CHECK(seen.values(at[0], at[1]) == 0);
        });
    };
    lora_forward({call.call.plan, {}, sum}, list, given.get<2>("x"), given.get<2>("y"),
                 {call.hidden});
    check_zeros(sum);
    sum.calls = 0;
    call.scratch.assign(lora_backward_workspace_size({call.call.plan}, list), std::byte{0xff});
    lora_backward({call.call.plan, {}, sum}, list, given.get<2>("x"), given.get<2>("d_y"),
                  {call.hidden}, {given.get<2>("gradients.x"), {}},
                  {call.scratch.data(), call.scratch.size()});
    check_zeros(sum);
}

TEST_CASE("a batch without entries takes any list that has a place for each of none") {
    const std::vector<std::int64_t> nobody(20, no_task);
    const index_t unused = 99;
    various_adapters adapters(5, 6, kinds);
    list_call call(call_options{}.with({20, 1, 1, 1, 5, 6, 3}).with_tasks(nobody), 8);
    const auto before = call.call.take_snapshots();
    call.run({adapters.adapters.data(), adapters.count(), {&unused, {0}}},
             {adapters.gradients.data(), adapters.count()});
    call.run({nullptr, 0}, {});
    call.run(adapters.adapters.front(), adapters.gradients.front());
    CHECK(call.call.take_snapshots() == before);
}

TEST_CASE("state.hidden may have more columns than the largest rank, but not fewer") {
    adapter_call narrow(page), call(page);
    narrow.run();
    guarded_tensor<2> wide(type::f32, {call.plan.rows(), call.options.sizes.rank + 2});
    wide.fill(5);
    arguments given = call.given();
    given.set("state.hidden", wide.ref());
    page.forward({call.plan}, given);
    page.backward({call.plan}, given, call.scratch());
    for (const tensor_spec& spec : call.specs)
        if (spec.part == role::gradient || spec.part == role::output)
            CHECK(same_bits(call, narrow, spec.name));
    for (index_t row = 0; row < call.plan.rows(); ++row)
        for (index_t k : {3, 4})
            CHECK(element(wide.ref(), {row, k}) == 5);
    refusal_check refused(page, {});
    const auto& spec = refused.call().spec("state.hidden");
    const any_tensor good = refused.call()["state.hidden"].ref();
    refused.bad(spec, good.block(3, 0, good.extent(3) - 1));
}

TEST_CASE("bad lists of adapters are refused") {
    refusal_check check(page, call_options{}.with({20, 3, 1, 1, 5, 6, 3}));
    adapter_call& call = check.call();
    REQUIRE(call.plan.entries() == 3);
    const arguments given = call.given();
    const auto refused = [&](const char* argument, const lora_list& list) {
        const auto forward = refuses(call, "lora_forward", argument, [&] {
            lora_forward({call.plan}, list, given.get<2>("x"), given.get<2>("y"),
                         lora_page::state(given));
        });
        CHECK(forward);
        CHECK(why_not({call.plan}, list, given.get<2>("x"), given.get<2>("y"),
                      lora_page::state(given)) == forward.message);
        CHECK(refuses(call, "lora_backward", argument, [&] {
            lora_backward({call.plan}, list, given.get<2>("x"), given.get<2>("d_y"),
                          lora_page::state(given), {given.get<2>("gradients.x"), {}},
                          call.scratch());
        }));
    };
    std::vector<lora> good;
    for (index_t n = 0; n < 3; ++n)
        good.push_back(
            {given.get<3>("adapters.a").slice(0, n), given.get<3>("adapters.b").slice(0, n)});
    good.push_back(good.front());

    // Numbers.
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    std::vector<index_t> numbers{0, 1, 2};
    for (std::size_t place = 0; place < 3; ++place)
        for (index_t number : {index_t(-1), index_t(4), largest, -largest - 1}) {
            CAPTURE(place);
            CAPTURE(number);
            std::vector<index_t> bad = numbers;
            bad[place] = number;
            refused("adapters.adapter_of_entry", {good.data(), 4, {bad.data(), {3}}});
        }
    for (index_t count : {0, 2, 4, -3})
        if (count != 0) // no numbers at all are absent
            refused("adapters.adapter_of_entry", {good.data(), 4, {numbers.data(), {count}}});
    refused("adapters.adapter_of_entry", {good.data(), 4, {nullptr, {3}}});
    refused("adapters.adapter_of_entry", {good.data(), 4, {numbers.data(), {3}, {largest}}});

    // How many there are.
    refused("adapters", {good.data(), 4});
    refused("adapters", {good.data(), 2});

    // Each that is used, first or last.
    for (std::size_t place : {0U, 2U}) {
        CAPTURE(place);
        const auto spoil = [&](const char* argument, auto&& f) {
            std::vector<lora> bad = good;
            f(bad[place]);
            refused(argument, {bad.data(), 4, {numbers.data(), {3}}});
        };
        spoil("adapters.a", [](lora& each) { each.a = {}; });
        spoil("adapters.b", [](lora& each) { each.b = {}; });
        spoil("adapters.a", [](lora& each) { each.a = each.a.block(0, 0, 4); });
        spoil("adapters.b", [](lora& each) { each.b = each.b.block(0, 0, 2); });
        spoil("adapters.a", [&](lora& each) {
            each.a = {each.a.data(), type::f64, each.a.extents()}; // sums are f32
        });
    }
    std::vector<lora> other_features = good;
    other_features[1].b = other_features[1].b.block(1, 0, 5);
    refused("adapters.b", {other_features.data(), 4, {numbers.data(), {3}}});
    std::vector<lora> unused = good;
    unused[3] = {}; // nobody looks at it
    CHECK(why_not({call.plan}, {unused.data(), 4, {numbers.data(), {3}}}, given.get<2>("x"),
                  given.get<2>("y"), lora_page::state(given))
              .empty());

    // Gradients: one for each adapter, or none.
    const auto gradients_refused = [&](const char* argument, const lora_list_gradients& bad) {
        CHECK(refuses(call, "lora_backward", argument, [&] {
            lora_backward({call.plan}, {good.data(), 4, {numbers.data(), {3}}}, given.get<2>("x"),
                          given.get<2>("d_y"), lora_page::state(given),
                          {given.get<2>("gradients.x"), bad}, call.scratch());
        }));
    };
    std::vector<lora_matrices> gradients(5);
    for (index_t n = 0; n < 3; ++n)
        gradients[static_cast<std::size_t>(n)] = {given.get<3>("gradients.adapters.a").slice(0, n),
                                                  given.get<3>("gradients.adapters.b").slice(0, n)};
    gradients_refused("gradients.adapters", {gradients.data(), 5});
    gradients_refused("gradients.adapters", {gradients.data(), 3});
    gradients_refused("gradients.adapters", gradients[0]);
    gradients_refused("gradients.adapters.a",
                      stacked_lora_matrices{given.get<3>("gradients.adapters.a"), {}});
    gradients_refused("gradients.adapters.b",
                      stacked_lora_matrices{{}, given.get<3>("gradients.adapters.b")});
    for (std::size_t place : {0U, 2U}) {
        auto bad = gradients;
        bad[place].a = bad[place].a.transpose(0, 1);
        gradients_refused("gradients.adapters.a", {bad.data(), 4});
        bad = gradients;
        bad[place].b = bad[place].b.block(1, 0, 5);
        gradients_refused("gradients.adapters.b", {bad.data(), 4});
    }
    // A stack is of one rank.
    std::vector<lora> ranks = good;
    ranks[1] = {ranks[1].a.block(1, 0, 2), ranks[1].b.block(0, 0, 2)};
    CHECK(refuses(call, "lora_backward", "gradients.adapters.a", [&] {
        lora_backward({call.plan}, {ranks.data(), 3}, given.get<2>("x"), given.get<2>("d_y"),
                      lora_page::state(given),
                      {given.get<2>("gradients.x"),
                       stacked_lora_matrices{given.get<3>("gradients.adapters.a"), {}}},
                      call.scratch());
    }));
}
