#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/argument_checks.hpp>

#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/fast_math.hpp"
#include "support/gradient_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/half_formats.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

// Bugs are planted here, to see each of them reported: a test that cannot fail proves nothing.

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

tensor_view<const double, 1> one(const double& value) {
    return {&value, {1}};
}

comparison compare_one(double got, double want, double magnitude) {
    return compare(one(got), one(want), one(magnitude), within<double>(4));
}

} // namespace

TEST_CASE("compare accepts the bound and nothing above it") {
    const float step = 0x1p-23F;
    const double want = 1;
    // 3 roundings of the sum and one of the storage.
    const auto distance = [&](float steps) {
        const float got = 1 + steps * step;
        return compare(tensor_view<const float, 1>(&got, {1}), one(want), one(want),
                       within<float>(3));
    };
    CHECK(distance(0));
    CHECK(distance(4));
    CHECK(distance(-4));
    CHECK_FALSE(distance(5));
    CHECK_FALSE(distance(-5));
    CHECK(distance(2).worst_ratio == doctest::Approx(0.5));
    CHECK(distance(8).worst_ratio == doctest::Approx(2));
    CHECK(distance(8).compared == 1);
}

TEST_CASE("compare scales with the magnitudes, or with the result itself") {
    const double got = 1 + 0x1p-45;
    const double want = 1;
    const double large = 100;
    CHECK(compare(one(got), one(want), one(large), within<double>(2)));
    CHECK_FALSE(compare(one(got), one(want), one(want), within<double>(2)));
    CHECK_FALSE(compare(one(got), one(want), within<double>(2)));
    CHECK(compare(one(got), one(want), within<double>(200)));
}

TEST_CASE_TEMPLATE("compare allows the storage type its roundings", T, float, Eigen::bfloat16,
                   Eigen::half) {
    const double want = 1 + 0.75 * epsilon_of<T>();
    const T got = static_cast<T>(1.F);
    const double nothing = 0;
    const auto result = [&](double roundings) {
        return compare(tensor_view<const T, 1>(&got, {1}), one(want), one(nothing),
                       within<float>(0, roundings));
    };
    CHECK(result(1));
    CHECK_FALSE(result(0.5));
}

TEST_CASE("compare reports what is not a number") {
    CHECK(compare_one(1, 1, 1));
    CHECK(compare_one(0, 0, 0));
    struct bad {
        double got, want, magnitude;
    };
    for (const bad& c : std::vector<bad>{
             {not_a_number, 1, 1},
             {1, not_a_number, 1},
             {not_a_number, not_a_number, 1},
             {1, 1, not_a_number},
             {1, 1, infinity},
             {infinity, 1, 1},
             {1, infinity, 1},
             {infinity, infinity, 1},
             {infinity, infinity, infinity},
             {-infinity, infinity, 1},
         }) {
        CAPTURE(c.got);
        CAPTURE(c.want);
        CAPTURE(c.magnitude);
        CHECK_FALSE(compare_one(c.got, c.want, c.magnitude));
    }
    // A NaN in front must not hide what follows, nor a number what came before.
    const std::array<double, 3> got{1, not_a_number, 1};
    const std::array<double, 3> want{1, 1, 1};
    const auto result = compare(tensor_view<const double, 1>(got.data(), {3}),
                                tensor_view<const double, 1>(want.data(), {3}), within<double>(4));
    CHECK_FALSE(result);
    CHECK(result.compared == 3);
    CHECK(result.worst_ratio == infinity);
    CHECK(result.message.find("at [1]") != std::string::npos);
}

TEST_CASE("compare reports that nothing was compared, and other extents") {
    const tensor<double, 2> empty({0, 3});
    CHECK_FALSE(compare(empty.view(), empty.view(), empty.view(), within<double>(4)));
    CHECK_FALSE(compare(empty.view(), empty.view(), within<double>(4)));
    CHECK_FALSE(compare_bitwise(empty.view(), empty.view()));
    const tensor<double, 2> a({2, 3});
    const tensor<double, 2> b({3, 2});
    CHECK_FALSE(compare(a.view(), b.view(), b.view(), within<double>(4)));
    CHECK_FALSE(compare(a.view(), a.view(), b.view(), within<double>(4)));
    CHECK_FALSE(compare(a.view(), b.view(), within<double>(4)));
    CHECK_FALSE(compare_bitwise(a.view(), b.view()));
    CHECK(compare_bitwise(a.view(), a.view()));
}

TEST_CASE("compare reports planted bugs") {
    random_source random(3);
    tensor<double, 2> want({3, 3});
    random.fill(want.view());
    const auto check = [&](const tensor<double, 2>& got) {
        return compare(got.const_view(), want.const_view(), within<double>(4));
    };
    CHECK(check(want));

    tensor<double, 2> sign = want;
    sign(2, 1) = -sign(2, 1);
    CHECK_FALSE(check(sign));

    tensor<double, 2> steps = want;
    steps(0, 2) *= 1 + 7 * epsilon_of<double>();
    CHECK_FALSE(check(steps));

    tensor<double, 2> scaled = want;
    for (double& value : scaled.values())
        value *= 0.5;
    CHECK_FALSE(check(scaled));

    CHECK_FALSE(compare(want.const_view().transpose(0, 1), want.const_view(), within<double>(4)));
}

TEST_CASE("bitwise comparison sees every bit") {
    const auto same = [](double got, double want) { return compare_bitwise(one(got), one(want)); };
    CHECK(same(1, 1));
    CHECK(same(infinity, infinity));
    CHECK_FALSE(same(1, 1 + epsilon_of<double>()));
    CHECK_FALSE(same(0.0, -0.0));
    CHECK_FALSE(same(not_a_number, not_a_number));
    CHECK_FALSE(same(not_a_number, 1));
}

TEST_CASE("comparisons of tensors of every type see what is wrong") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(std::string(name_of(type)));
            CAPTURE(name_of(order));
            guarded_tensor<2> got(type, {3, 4}, order), same(type, {3, 4});
            got.fill(random_source(3));
            same.fill(random_source(3));
            const auto want = values_as<long double>(same.ref());
            const auto sizes = magnitudes_as<long double>(same.ref());
            const element_type sums = sums_of(type, element_type::f32);
            const auto good = [&](double roundings = 1) {
                const bool by_size =
                    compare(got.ref(), want.view(), sizes.view(), within(sums, 0, roundings)).ok;
                CHECK(compare(got.ref(), want.view(), within(sums, 0, roundings)).ok == by_size);
                return by_size;
            };
            const auto same_bits = [&] { return compare_bitwise(got.ref(), same.ref()).ok; };
            CHECK(good());
            CHECK(same_bits());

            const position<2> at{2, 1};
            const double right = element(got.ref(), at);
            // Steps of the type itself: of numbers in [1/2, 1) the spacing is half an epsilon.
            const double step = precision_of(type).epsilon * std::abs(right);
            for (double wrong : {-right, 2 * right, right + 8 * step, not_a_number, infinity}) {
                CAPTURE(wrong);
                if (is_fast_math && !(std::abs(wrong) < 3)) continue;
                set_element(got.ref(), at, wrong);
                CHECK_FALSE(good());
                CHECK_FALSE(same_bits());
            }
            // One step of the type is allowed by a rounding to it, and has other bits.
            set_element(got.ref(), at, right + step);
            CHECK(good(2));
            CHECK_FALSE(good(0.01));
            CHECK_FALSE(same_bits());
            set_element(got.ref(), at, right);
            CHECK(good());
            CHECK(same_bits());

            // A transposed one, other extents, another type, and nothing at all.
            CHECK_FALSE(compare(got.ref().block(1, 0, 3).transpose(0, 1),
                                values_as<double>(same.ref().block(1, 0, 3)).view(),
                                within(sums, 1)));
            CHECK_FALSE(compare(got.ref().block(0, 0, 2), want.view(), within(sums, 1)));
            CHECK_FALSE(
                compare(got.ref(), want.view(), sizes.view().block(0, 0, 2), within(sums, 1)));
            CHECK_FALSE(compare_bitwise(got.ref(), same.ref().block(0, 0, 2)));
            CHECK_FALSE(compare_bitwise(got.ref().block(0, 0, 0), same.ref().block(0, 0, 0)));
            for (element_type other : all_element_types) {
                guarded_tensor<2> elsewhere(other, {3, 4});
                elsewhere.fill(0.5);
                got.fill(0.5);
                CHECK(compare_bitwise(elsewhere.ref(), got.ref()).ok == (other == type));
            }
        }
}

TEST_CASE("bitwise comparison of tensors sees the sign of 0, and refuses NaN" *
          needs_non_finite()) {
    for (element_type type : all_element_types) {
        CAPTURE(std::string(name_of(type)));
        guarded_tensor<1> a(type, {2}), b(type, {2});
        a.fill(0);
        b.fill(0);
        CHECK(compare_bitwise(a.ref(), b.ref()));
        set_element(b.ref(), {1}, -0.0);
        CHECK_FALSE(compare_bitwise(a.ref(), b.ref()));
        a.fill(infinity);
        b.fill(infinity);
        CHECK(compare_bitwise(a.ref(), b.ref()));
        set_element(a.ref(), {1}, not_a_number);
        set_element(b.ref(), {1}, not_a_number);
        const auto result = compare_bitwise(a.ref(), b.ref());
        CHECK_FALSE(result);
        CHECK(result.compared == 2);
        CHECK(result.message.find("at [1]") != std::string::npos);
    }
}

TEST_CASE("numerical derivatives are those of the function, and differ from wrong ones") {
    // f = sum of c v^3 exp(v)
    random_source random(5);
    tensor<double, 2> v({2, 3});
    tensor<double, 2> c({2, 3});
    random.fill(v.view(), 2);
    random.fill(c.view());
    const auto f = [&](const auto& values) {
        auto sum = values(0, 0) - values(0, 0);
        for_each_position(v.extents(), [&](const position<2>& at) {
            const auto x = element(values, at);
            sum += element(c.view(), at) * x * x * x * std::exp(x);
        });
        return sum;
    };
    tensor<double, 2> want({2, 3});
    for_each_position(v.extents(), [&](const position<2>& at) {
        const double x = element(v.view(), at);
        element(want.view(), at) = element(c.view(), at) * (3 * x * x + x * x * x) * std::exp(x);
    });

    auto complex_v = copy_as<std::complex<double>>(v.view());
    const auto complex_gradient =
        complex_step_gradient([&] { return f(complex_v.view()); }, complex_v.view());
    // The sum of both terms may cancel, to a few digits less.
    CHECK(compare(complex_gradient.view(), want.view(), within<double>(64)));
    CHECK(compare_bitwise(copy_as<double>(v.view()).view(), v.view()));

    const tensor<double, 2> before = v;
    const auto central = central_difference_gradient([&] { return f(v.view()); }, v.view());
    CHECK(compare(central.view(), want.view(), {1, 1e-9, 1}));
    CHECK(compare_bitwise(v.view(), before.view()));
    // A gradient that is wrong in the sixth digit.
    want(1, 1) *= 1 + 1e-6;
    CHECK_FALSE(compare(central.view(), want.view(), {1, 1e-9, 1}));
    CHECK_FALSE(compare(complex_gradient.view(), want.view(), within<double>(64)));
}

TEST_CASE("contract is the sum of products") {
    tensor<double, 1> a({2});
    tensor<float, 1> b({2});
    a.values() = {2, 3};
    b.values() = {5, -7};
    CHECK(contract<double>(a.view(), b.view()) == -11);
    CHECK(contract<std::complex<double>>(a.view(), b.view()) == std::complex<double>(-11));
}

TEST_CASE_TEMPLATE("guarded buffers see every write outside their elements", T, double, float,
                   Eigen::bfloat16, Eigen::half, index_t) {
    const T two = static_cast<T>(2.F);
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        for (const std::array<index_t, 2> extents :
             {std::array<index_t, 2>{2, 3}, {1, 1}, {1, 4}, {4, 1}, {0, 3}, {3, 0}}) {
            CAPTURE(to_text(extents));
            guarded_buffer<T, 2> buffer(extents, order);
            const auto view = buffer.view();
            buffer.fill(two);
            CHECK(buffer.intact());
            index_t elements = 0;
            for_each_position(extents, [&](const position<2>& at) {
                elements += is_exactly(element(view, at), two) ? 1 : 0;
            });
            CHECK(elements == view.size());

            // Every slot near the elements: those of no element must be noticed.
            T* const data = view.data();
            index_t slots_of_elements = 0;
            for (index_t slot = -24; slot <= 24; ++slot) {
                const T before = data[slot];
                data[slot] = static_cast<T>(3.F);
                bool is_element = false;
                for_each_position(extents, [&](const position<2>& at) {
                    is_element = is_element || offset_of(at, view.strides()) == slot;
                });
                slots_of_elements += is_element ? 1 : 0;
                CHECK(buffer.intact() == is_element);
                std::memcpy(data + slot, &before, sizeof(T));
                CHECK(buffer.intact());
            }
            CHECK(slots_of_elements == view.size());
        }
    }
}

TEST_CASE("guarded tensors see every write outside their elements") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(std::string(name_of(type)));
            CAPTURE(name_of(order));
            for (const std::array<index_t, 2> extents :
                 {std::array<index_t, 2>{2, 3}, {1, 1}, {1, 4}, {4, 1}, {0, 3}, {3, 0}}) {
                CAPTURE(to_text(extents));
                guarded_tensor<2> tensor(type, extents, order);
                const tensor_ref<2> ref = tensor.ref();
                CHECK(ref.type() == type);
                CHECK(ref.extents() == extents);
                tensor.fill(2);
                CHECK(tensor.intact());
                index_t elements = 0;
                for_each_position(extents, [&](const position<2>& at) {
                    elements += is_exactly(element(ref, at), 2) ? 1 : 0;
                });
                CHECK(elements == ref.size());

                // Every place near the elements: those of no element must be noticed.
                const snapshot before = tensor.take_snapshot();
                const std::size_t size = size_of(type);
                index_t places_of_elements = 0;
                for (index_t place = -24; place <= 24; ++place) {
                    auto* const there = static_cast<unsigned char*>(ref.data()) +
                                        place * static_cast<index_t>(size);
                    std::array<unsigned char, 8> kept{};
                    std::memcpy(kept.data(), there, size);
                    there[size - 1] ^= 1U;
                    bool is_element = false;
                    for_each_position(extents, [&](const position<2>& at) {
                        is_element = is_element || offset_of(at, ref.strides()) == place;
                    });
                    places_of_elements += is_element ? 1 : 0;
                    CHECK(tensor.intact() == is_element);
                    CHECK_FALSE(tensor.unchanged_since(before));
                    std::memcpy(there, kept.data(), size);
                    CHECK(tensor.intact());
                    CHECK(tensor.unchanged_since(before));
                }
                CHECK(places_of_elements == ref.size());
            }
        }
}

TEST_CASE("guarded tensors are laid out as guarded buffers are, and begin as NaN") {
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_tensor<3> tensor(element_type::f32, {2, 3, 4}, order);
        guarded_buffer<float, 3> buffer({2, 3, 4}, order);
        CHECK(tensor.ref().strides() == buffer.view().strides());
        for_each_position(tensor.extents(), [&](const position<3>& at) {
            CHECK((is_fast_math || std::isnan(element(tensor.ref(), at))));
        });
        tensor.fill(random_source(2));
        random_source(2).fill(buffer.view());
        CHECK(compare_bitwise(tensor.ref(), tensor_ref<3>(buffer.view())));
    }
}

TEST_CASE_TEMPLATE("sentinels spoil sums, and notice that something was added to them", T, double,
                   float, Eigen::bfloat16, Eigen::half) {
    guarded_buffer<T, 1> buffer({2});
    T& next = buffer.view().data()[2];
    CHECK(std::isnan(load<double>(next)));
    CHECK(std::isnan(load<double>(buffer(1))));
    using A = accumulator_t<T>;
    next = store<T>(load<A>(next) + A(1));
    CHECK_FALSE(buffer.intact());
}

TEST_CASE("layouts are what their names say") {
    const std::array<index_t, 3> extents{2, 3, 4};
    const auto strides = [&](layout order) {
        return guarded_buffer<float, 3>(extents, order).view().strides();
    };
    const auto remainder = [&](layout order) {
        guarded_buffer<float, 3> buffer(extents, order);
        return reinterpret_cast<std::uintptr_t>(buffer.view().data()) % 64;
    };
    CHECK(strides(layout::row_major) == std::array<index_t, 3>{12, 4, 1});
    CHECK(strides(layout::misaligned) == std::array<index_t, 3>{12, 4, 1});
    CHECK(strides(layout::column_major) == std::array<index_t, 3>{1, 2, 6});
    CHECK(strides(layout::reversed) == std::array<index_t, 3>{-12, -4, -1});
    CHECK(strides(layout::padded) == std::array<index_t, 3>{24, 7, 1});
    CHECK(remainder(layout::row_major) == 0);
    CHECK(remainder(layout::padded) == 0);
    CHECK(remainder(layout::misaligned) == sizeof(float));
}

TEST_CASE("snapshots see every byte") {
    guarded_buffer<double, 1> buffer({2});
    buffer.fill(0);
    const snapshot before = buffer.take_snapshot();
    CHECK(buffer.unchanged_since(before));
    buffer(0) = -0.0;
    CHECK_FALSE(buffer.unchanged_since(before));
}

TEST_CASE("refuses demands error, names and untouched outputs") {
    guarded_buffer<float, 1> output({1});
    const auto raise_for = [](const char* argument) {
        argument_checks checks("function");
        checks.expect(
            false, argument, [] { return std::string("this"); },
            [] { return std::string("that"); });
        checks.raise();
    };
    CHECK(refuses("function", "x", [&] { raise_for("x"); }));
    CHECK(refuses(
        "function", "x", [&] { raise_for("x"); }, output));
    CHECK_FALSE(refuses(
        "function", "x", [&] { raise_for("y"); }, output));
    CHECK_FALSE(refuses(
        "other", "x", [&] { raise_for("x"); }, output));
    CHECK_FALSE(refuses(
        "function", "x", [] {}, output));
    CHECK_FALSE(
        refuses("function", "x", [] { throw std::runtime_error("function: x: expected"); }));
    CHECK_FALSE(refuses("function", "x", [] { raise("function: x: expected this"); }));
    guarded_buffer<float, 1> first({1});
    CHECK_FALSE(refuses(
        "function", "x",
        [&] {
            first(0) = 1;
            raise_for("x");
        },
        first, output));
    CHECK_FALSE(refuses(
        "function", "x",
        [&] {
            output.view().data()[1] = 1;
            raise_for("x");
        },
        first, output));
}

TEST_CASE("the executors of the tests run every part once, the shuffled one out of order") {
    constexpr index_t parts = 100;
    for_each_executor([&](const executor_ref& executor, const std::string& name) {
        CAPTURE(name);
        std::vector<int> calls(parts);
        executor.run(parts, [&](index_t part) { ++calls[static_cast<std::size_t>(part)]; });
        CHECK(calls == std::vector<int>(parts, 1));
    });

    std::vector<index_t> order;
    executor_ref(thread_executor{1}).run(parts, [&](index_t part) { order.push_back(part); });
    CHECK_FALSE(std::is_sorted(order.begin(), order.end()));

    std::vector<int> calls(parts);
    index_t participants = 0;
    for_each_share(7, [&](const executor_ref& executor) {
        ++participants;
        executor.run(parts, [&](index_t part) { ++calls[static_cast<std::size_t>(part)]; });
    });
    CHECK(participants == 7);
    CHECK(calls == std::vector<int>(parts, 1));
}

TEST_CASE("random data is the same everywhere") {
    random_source random(1);
    // The first output of std::mt19937_64 seeded with 1 is 2469588189546311528.
    CHECK(random.uniform(0, 1) == static_cast<double>(2469588189546311528U >> 11) * 0x1p-53);
    const auto order = random.permutation(50);
    std::vector<index_t> sorted = order;
    std::sort(sorted.begin(), sorted.end());
    CHECK(order != sorted);
    CHECK(sorted.front() == 0);
    CHECK(sorted.back() == 49);
    CHECK(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end());

    // In order of positions, whatever the layout.
    guarded_buffer<float, 2> rows({5, 7}, layout::row_major);
    guarded_buffer<float, 2> columns({5, 7}, layout::column_major);
    random_source(2).fill(rows.view(), 3);
    random_source(2).fill(columns.view(), 3);
    CHECK(compare_bitwise(rows.view(), columns.view()));
    CHECK(rows(0, 0) != rows(0, 1));
}

TEST_CASE("the tested scalar types have the precision that is told of them") {
    CHECK(epsilon_of<double>() == 0x1p-52);
    CHECK(epsilon_of<const float>() == 0x1p-23);
    CHECK(epsilon_of<Eigen::half>() == 0x1p-10);
    CHECK(epsilon_of<Eigen::bfloat16>() == 0x1p-7);
    CHECK(smallest_step_of<Eigen::half>() == 0x1p-24);
    CHECK(std::is_same_v<oracle_t<Eigen::half>, double>);
    CHECK(std::is_same_v<oracle_t<float, Eigen::half>, double>);
    CHECK(std::is_same_v<oracle_t<float, double>, long double>);
    CHECK(name_of<const Eigen::half>() == "half");
}

TEST_CASE("the check of roundings reports wrong ones") {
    CHECK(is_rounded<f16_format>(1, 0x3C00));
    CHECK_FALSE(is_rounded<f16_format>(1, 0x3C01));
    CHECK_FALSE(is_rounded<f16_format>(1, 0xBC00));
    CHECK(is_rounded<f16_format>(1 + 0x1p-11F, 0x3C00)); // a tie
    CHECK_FALSE(is_rounded<f16_format>(1 + 0x1p-11F, 0x3C01));
    CHECK(is_rounded<f16_format>(1 + 0x1.8p-10F, 0x3C02));
    CHECK_FALSE(is_rounded<f16_format>(1 + 0x1.8p-10F, 0x3C01));
    CHECK(is_rounded<f16_format>(65519.F, 0x7BFF));
    CHECK(is_rounded<f16_format>(65520.F, 0x7C00));
    CHECK_FALSE(is_rounded<f16_format>(65520.F, 0x7BFF));
    CHECK(is_rounded<f16_format>(0x1p-25F, 0));
    CHECK(is_rounded<f16_format>(0x1.000002p-25F, 1));
    CHECK_FALSE(is_rounded<f16_format>(0x1.000002p-25F, 0));
    CHECK(is_rounded<f16_format>(-0.F, 0x8000));
    CHECK_FALSE(is_rounded<f16_format>(-0.F, 0));
    CHECK_FALSE(is_rounded<bf16_format>(1 + 0x1.8p-7F, 0x3F81));
    CHECK_FALSE(is_rounded<bf16_format>(std::numeric_limits<float>::quiet_NaN(), 0x7F80));
}
