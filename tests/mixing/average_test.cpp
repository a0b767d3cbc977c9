#include <doctest/doctest.h>

#include <mhr/mixing/average.hpp>
#include <mhr/mixing/mix.hpp>
#include <mhr/reference/mixing.hpp>

#include "support/bad_arguments.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

struct sizes {
    index_t heads, modules, p, q;
};

constexpr sizes shapes[] = {{1, 1, 1, 1}, {2, 3, 5, 7}, {3, 7, 1, 257}, {1, 5, 40, 16}};

/// What modules and average are stored as.
template <class M_, class Y_>
struct storage {
    using M = M_;
    using Y = Y_;
};

/// An inventory (or its gradient) and an average (or its gradient), of random values.
template <class T>
struct problem {
    guarded_buffer<typename T::M, 4> modules;
    guarded_buffer<typename T::Y, 3> average;

    explicit problem(const sizes& s, layout of_modules = layout::row_major,
                     layout of_average = layout::row_major)
        : modules({s.heads, s.modules, s.p, s.q}, of_modules),
          average({s.heads, s.p, s.q}, of_average) {
        random_source random(5);
        random.fill(modules.view());
        random.fill(average.view());
    }
    void forward(executor_ref executor = serial_executor{}) {
        average_forward(executor, modules.view(), average.view());
    }
    void backward(executor_ref executor = serial_executor{}) {
        average_backward(executor, average.view(), modules.view());
    }
};

/// Weights of the oracle.
template <class S>
tensor<S, 3> uniform(const sizes& s) {
    tensor<S, 3> weights({1, s.heads, s.modules});
    for (S& weight : weights.values())
        weight = S(1) / static_cast<S>(s.modules);
    return weights;
}

#define AVERAGE_STORAGES                                                                           \
    storage<double, double>, storage<float, float>, storage<Eigen::bfloat16, Eigen::bfloat16>,     \
        storage<Eigen::half, Eigen::half>, storage<Eigen::bfloat16, float>,                        \
        storage<float, double>, storage<double, Eigen::half>

} // namespace

TEST_CASE_TEMPLATE("the average agrees with the oracle", T, AVERAGE_STORAGES) {
    using S = oracle_t<typename T::M, typename T::Y>;
    using A = accumulator_t<typename T::M, typename T::Y>;
    for (const sizes& s : shapes)
        for (layout of_modules : all_layouts)
            for (layout of_average : all_layouts) {
                CAPTURE(name_of(of_modules));
                CAPTURE(name_of(of_average));
                CAPTURE(s.q);
                problem<T> p(s, of_modules, of_average);
                const auto weights = uniform<S>(s);
                tensor<S, 4> average({1, s.heads, s.p, s.q}), size(average.extents());
                reference::mix_forward(weights.view(), copy_as<S>(p.modules.view()).const_view(),
                                       average.view());
                reference::mix_forward(
                    weights.view(), magnitudes_as<S>(p.modules.view()).const_view(), size.view());
                auto d_modules = copy_as<S>(p.modules.view());
                auto d_size = magnitudes_as<S>(p.modules.view());
                reference::mix_backward<S>(weights.view(), d_modules.view(),
                                           copy_as<S>(p.average.view()).view().prepend_axis(),
                                           d_modules.view(), {});
                reference::mix_backward<S>(weights.view(), d_size.view(),
                                           magnitudes_as<S>(p.average.view()).view().prepend_axis(),
                                           d_size.view(), {});

                p.backward();
                // One product, with a rounded weight, and one sum.
                CHECK(compare(p.modules.view(), d_modules.view(), d_size.view(), within<A>(2)));
                problem<T> forward(s, of_modules, of_average);
                forward.forward();
                CHECK(compare(forward.average.view(), average.view().slice(0, 0),
                              size.view().slice(0, 0),
                              within<A>(static_cast<double>(s.modules) / 2 + 2)));
                CHECK(p.modules.intact());
                CHECK(forward.average.intact());
            }
}

TEST_CASE_TEMPLATE("the average is uniform routing to the last bit", T, double, float) {
    const sizes s{2, 7, 5, 33};
    problem<storage<T, T>> p(s), routed(s);
    const T weight = T(1) / T(7);
    const tensor_view<const T, 3> weights(&weight, {1, s.heads, s.modules}, {0, 0, 0});
    p.backward();
    mix_backward(serial_executor{}, weights, routed.modules.view(),
                 routed.average.view().prepend_axis(), routed.modules.view(), tensor_view<T, 3>{});
    CHECK(compare_bitwise(p.modules.view(), routed.modules.view()));
    p.forward();
    mix_forward(serial_executor{}, weights, routed.modules.view(),
                routed.average.view().prepend_axis());
    CHECK(compare_bitwise(p.average.view(), routed.average.view()));
}

TEST_CASE("the average of equal modules is that module") {
    // 1/4 and sums of 4 are exact.
    problem<storage<float, float>> p({2, 4, 3, 5});
    for_each_position(p.modules.view().extents(), [&](const position<4>& at) {
        p.modules(at[0], at[1], at[2], at[3]) = p.modules(at[0], 0, at[2], at[3]);
    });
    p.forward();
    CHECK(compare_bitwise(p.average.view(), p.modules.view().slice(1, 0)));
}

TEST_CASE("averaging gives the same bits on every executor") {
    const sizes s{3, 5, 7, 30};
    using T = storage<float, float>;
    problem<T> backward(s), forward(s);
    backward.backward();
    forward.forward();
    const auto check = [&](auto&& run) {
        problem<T> p(s);
        run([&](executor_ref executor) { p.backward(executor); });
        CHECK(compare_bitwise(p.modules.view(), backward.modules.view()));
        problem<T> q(s);
        run([&](executor_ref executor) { q.forward(executor); });
        CHECK(compare_bitwise(q.average.view(), forward.average.view()));
    };
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        check([&](auto&& call) { call(executor); });
    });
    for (index_t nth : {2, 50})
        check([&](auto&& call) { for_each_share(nth, call); });
}

TEST_CASE("an average of nothing is 0") {
    problem<storage<float, float>> p({2, 0, 3, 4});
    p.backward();
    p.forward();
    for_each_position(p.average.view().extents(),
                      [&](const position<3>& at) { CHECK(element(p.average.view(), at) == 0); });
}

TEST_CASE("bad input of average_forward and average_backward") {
    problem<storage<float, float>> p({2, 3, 4, 5});
    const auto modules = p.modules.view();
    const auto average = p.average.view();
    const auto forward = [&](const char* argument, auto m, auto y) {
        return refuses(
            "average_forward", argument, [&] { average_forward(serial_executor{}, m, y); },
            p.average);
    };
    const auto backward = [&](const char* argument, auto d, auto d_m) {
        return refuses(
            "average_backward", argument, [&] { average_backward(serial_executor{}, d, d_m); },
            p.modules);
    };
    for (const auto& bad : bad_as_input(modules, {0, 1, 2, 3})) {
        CAPTURE(bad.what);
        CHECK(forward("modules", bad.view, average));
    }
    for (const auto& bad : bad_as_output(average)) {
        CAPTURE(bad.what);
        CHECK(forward("average", modules, bad.view));
    }
    for (const auto& bad : bad_as_input(average)) {
        CAPTURE(bad.what);
        CHECK(backward("d_average", bad.view, modules));
    }
    for (const auto& bad : bad_as_output(modules, {0, 1, 2, 3})) {
        CAPTURE(bad.what);
        CHECK(backward("d_modules", average, bad.view));
    }
}
