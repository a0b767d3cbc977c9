#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/mixing.hpp>
#include <mhr/reference/mixing.hpp>

#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr element_type f32 = element_type::f32;
constexpr element_type f64 = element_type::f64;

struct sizes {
    index_t heads, modules, p, q;
};

constexpr sizes shapes[] = {{1, 1, 1, 1}, {2, 3, 5, 7}, {3, 7, 1, 257}, {1, 5, 40, 16}};

/// The types in which modules and average are stored.
struct storage {
    element_type modules = f32, average = f32;

    [[nodiscard]] element_type sums() const { return sums_of(modules, average); }
};

const std::vector<storage> storages{{f64, f64},
                                    {f32, f32},
                                    {element_type::bf16, element_type::bf16},
                                    {element_type::f16, element_type::f16},
                                    {element_type::bf16, f32},
                                    {f32, f64},
                                    {f64, element_type::f16}};

/// An inventory (or its gradient) and an average (or its gradient), of random values.
struct problem {
    guarded_tensor<4> modules;
    guarded_tensor<3> average;

    explicit problem(const sizes& s, const storage& types = {},
                     layout of_modules = layout::row_major, layout of_average = layout::row_major)
        : modules(types.modules, {s.heads, s.modules, s.p, s.q}, of_modules),
          average(types.average, {s.heads, s.p, s.q}, of_average) {
        random_source random(5);
        modules.fill(random);
        average.fill(random);
    }
    void forward(executor_ref executor = {}) { average_forward(executor, modules, average); }
    void backward(executor_ref executor = {}) { average_backward(executor, average, modules); }
};

/// More precise than any sum of the library.
using S = long double;

/// Weights of the oracle.
tensor<S, 3> uniform(const sizes& s) {
    tensor<S, 3> weights({1, s.heads, s.modules});
    for (S& weight : weights.values())
        weight = S(1) / static_cast<S>(s.modules);
    return weights;
}

} // namespace

TEST_CASE("the average agrees with the oracle") {
    for (const storage& types : storages)
        for (const sizes& s : shapes)
            for (layout of_modules : all_layouts)
                for (layout of_average : all_layouts) {
                    CAPTURE(std::string(name_of(types.modules)));
                    CAPTURE(std::string(name_of(types.average)));
                    CAPTURE(name_of(of_modules));
                    CAPTURE(name_of(of_average));
                    CAPTURE(s.q);
                    problem p(s, types, of_modules, of_average);
                    const auto weights = uniform(s);
                    tensor<S, 4> average({1, s.heads, s.p, s.q}), size(average.extents());
                    reference::mix_forward(weights.const_view(),
                                           values_as<S>(p.modules.ref()).const_view(),
                                           average.view());
                    reference::mix_forward(weights.const_view(),
                                           magnitudes_as<S>(p.modules.ref()).const_view(),
                                           size.view());
                    auto d_modules = values_as<S>(p.modules.ref());
                    auto d_size = magnitudes_as<S>(p.modules.ref());
                    reference::mix_backward<S>(
                        weights.view(), d_modules.view(),
                        values_as<S>(p.average.ref()).const_view().prepend_axis(), d_modules.view(),
                        {});
                    reference::mix_backward<S>(
                        weights.view(), d_size.view(),
                        magnitudes_as<S>(p.average.ref()).const_view().prepend_axis(),
                        d_size.view(), {});

                    p.backward();
                    // One product, with a rounded weight, and one sum.
                    CHECK(compare(p.modules.ref(), d_modules.view(), d_size.view(),
                                  within(types.sums(), 2)));
                    problem forward(s, types, of_modules, of_average);
                    forward.forward();
                    CHECK(compare(forward.average.ref(), average.view().slice(0, 0),
                                  size.view().slice(0, 0),
                                  within(types.sums(), static_cast<double>(s.modules) / 2 + 2)));
                    CHECK(p.modules.intact());
                    CHECK(forward.average.intact());
                }
}

TEST_CASE("the average is uniform routing to the last bit") {
    const sizes s{2, 7, 5, 33};
    for (element_type type : sum_types) {
        CAPTURE(std::string(name_of(type)));
        problem p(s, {type, type}), routed(s, {type, type});
        guarded_tensor<1> weight(type, {1});
        weight.fill(1.0 / 7);
        if (type == f32) weight.fill(static_cast<double>(1.F / 7));
        const const_tensor_ref<3> weights(weight.ref().data(), type, {1, s.heads, s.modules},
                                          {0, 0, 0});
        p.backward();
        mix_backward({}, weights, routed.modules, routed.average.ref().prepend_axis(),
                     {routed.modules, {}});
        CHECK(compare_bitwise(p.modules.ref(), routed.modules.ref()));
        p.forward();
        mix_forward({}, weights, routed.modules, routed.average.ref().prepend_axis());
        CHECK(compare_bitwise(p.average.ref(), routed.average.ref()));
    }
}

TEST_CASE("the average of equal modules is that module") {
    // 1/4 and sums of 4 are exact, in every type.
    for (element_type type : all_element_types) {
        CAPTURE(std::string(name_of(type)));
        problem p({2, 4, 3, 5}, {type, type});
        for_each_position(p.modules.extents(), [&](const position<4>& at) {
            set_element(p.modules.ref(), at, element(p.modules.ref(), {at[0], 0, at[2], at[3]}));
        });
        p.forward();
        CHECK(compare_bitwise(p.average.ref(), p.modules.ref().slice(1, 0)));
    }
}

TEST_CASE("averaging gives the same bits on every executor") {
    const sizes s{3, 5, 7, 30};
    problem backward(s), forward(s);
    backward.backward();
    forward.forward();
    const auto check = [&](auto&& run) {
        problem p(s), q(s);
        run([&](executor_ref executor) { p.backward(executor); });
        CHECK(compare_bitwise(p.modules.ref(), backward.modules.ref()));
        run([&](executor_ref executor) { q.forward(executor); });
        CHECK(compare_bitwise(q.average.ref(), forward.average.ref()));
    };
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        check([&](auto&& call) { call(executor); });
    });
    for (index_t nth : {2, 50})
        check([&](auto&& call) { for_each_share(nth, call); });
}

TEST_CASE("an average of nothing is 0") {
    problem p({2, 0, 3, 4});
    p.backward();
    p.forward();
    for_each_position(p.average.extents(),
                      [&](const position<3>& at) { CHECK(element(p.average.ref(), at) == 0); });
}

TEST_CASE("bad input of average_forward and average_backward") {
    problem p({2, 3, 4, 5});
    const tensor_ref<4> modules = p.modules;
    const tensor_ref<3> average = p.average;
    const auto forward = [&](const char* argument, const const_tensor_ref<4>& m,
                             const tensor_ref<3>& y) {
        return refuses(
            "average_forward", argument, [&] { average_forward({}, m, y); }, p.average);
    };
    const auto backward = [&](const char* argument, const const_tensor_ref<3>& d,
                              const tensor_ref<4>& d_m) {
        return refuses(
            "average_backward", argument, [&] { average_backward({}, d, d_m); }, p.modules);
    };
    for (const auto& bad : bad_as_input(modules, {0, 1, 2, 3})) {
        CAPTURE(bad.what);
        CHECK(forward("modules", bad.ref, average));
    }
    for (const auto& bad : bad_as_output(average)) {
        CAPTURE(bad.what);
        CHECK(forward("average", modules, bad.ref));
    }
    for (const auto& bad : bad_as_input(average)) {
        CAPTURE(bad.what);
        CHECK(backward("d_average", bad.ref, modules));
    }
    for (const auto& bad : bad_as_output(modules, {0, 1, 2, 3})) {
        CAPTURE(bad.what);
        CHECK(backward("d_modules", average, bad.ref));
    }
}
