#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/element_access.hpp>
#include <mhr/core/sums.hpp>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/guarded_tensor.hpp"

using namespace mhr;
using namespace mhr::test;

TEST_CASE("elements are read exactly and written rounded once, whatever the strides") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(std::string(name_of(type)));
            CAPTURE(name_of(order));
            guarded_tensor<2> got(type, {3, 5}, order), want(type, {3, 5}, order);
            random_source random(1);
            for (index_t i = 0; i < 3; ++i)
                for (index_t j = 0; j < 5; ++j) {
                    const double value = random.uniform(-100, 100);
                    write_element(value, got.ref(), i, j);
                    set_element(want.ref(), {i, j}, value);
                    CHECK(read_element(got.const_ref(), i, j) == element(want.const_ref(), {i, j}));
                    CHECK(read_element(got.ref(), i, j) == element(want.const_ref(), {i, j}));
                }
            CHECK(compare_bitwise(got.ref(), want.ref()));
            CHECK(got.intact());
        }
}

TEST_CASE("infinities, NaN and the sign of 0 are kept") {
    for (element_type type : all_element_types) {
        CAPTURE(std::string(name_of(type)));
        guarded_tensor<1> tensor(type, {1});
        const auto kept = [&](double value) {
            write_element(value, tensor.ref(), 0);
            return read_element(tensor.const_ref(), 0);
        };
        constexpr double infinity = std::numeric_limits<double>::infinity();
        CHECK(kept(infinity) == infinity);
        CHECK(kept(-infinity) == -infinity);
        CHECK(std::isnan(kept(std::numeric_limits<double>::quiet_NaN())));
        CHECK(std::signbit(kept(-0.0)));
        CHECK_FALSE(std::signbit(kept(0.0)));
    }
}

TEST_CASE("an element type becomes the class of its elements") {
    for (element_type type : all_element_types)
        CHECK(with_element_class(
                  type, [](auto zero) { return element_type_of_v<decltype(zero)>; }) == type);
}

TEST_CASE_TEMPLATE("single elements are read exactly and rounded once, at any address", A, float,
                   double) {
    for (element_type type : all_element_types)
        for (double number : {0.0, -0.0, 1.0, -2.5, 0.1, 1e-3, 65519.0, 3e38, 1e-40, 1 + 0x1p-9}) {
            CAPTURE(std::string(mhr::name_of(type)));
            CAPTURE(number);
            // One byte off the alignment, and between bytes that must stay.
            std::array<unsigned char, 10> got, want;
            got.fill(0xa5);
            want.fill(0xa5);
            const auto value = static_cast<A>(number);
            write_number(type, got.data() + 1, value);
            write_element(static_cast<double>(value), type, want.data() + 1);
            CHECK(got == want);
            const auto stored = read_element(type, want.data() + 1);
            CHECK(read_number<A>(type, got.data() + 1) == static_cast<A>(stored));
        }
}

TEST_CASE_TEMPLATE("rows are read as numbers, in place or not, short and long", A, float, double) {
    for (element_type type : all_element_types)
        for (layout order : all_layouts)
            for (index_t count : {0, 1, 5, 63, 64, 65, 200}) {
                CAPTURE(std::string(mhr::name_of(type)));
                CAPTURE(name_of(order));
                CAPTURE(count);
                guarded_tensor<2> matrix(type, {3, count}, order);
                matrix.fill(random_source(149));
                const auto row = matrix.const_ref().slice(0, 1);
                const element_row<A> numbers(type, row.data(), row.stride(0), count);
                index_t wrong = 0;
                for (int again = 0; again < 2; ++again)
                    for (index_t i = 0; i < count; ++i)
                        wrong += is_exactly(numbers[i], static_cast<A>(element(row, {i}))) ? 0 : 1;
                CHECK(wrong == 0);
            }
}

TEST_CASE("elements of the type that is asked for are read where they are") {
    std::vector<float> values(8, 1.F);
    const element_row<float> row(element_type::f32, values.data(), 2, 4);
    values[4] = 7;
    CHECK(row[2] == 7);
    CHECK(row[1] == 1);
}

TEST_CASE_TEMPLATE("rows are written element by element, each rounded once", A, float, double) {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(std::string(mhr::name_of(type)));
            CAPTURE(name_of(order));
            guarded_tensor<2> got(type, {3, 7}, order), want(type, {3, 7}, order);
            got.fill(random_source(151));
            want.fill(random_source(151));
            const auto row = got.ref().slice(0, 1);
            const element_row_output<A> output(type, row.data(), row.stride(0));
            const A value = A(0.1F);
            output.set(2, value);
            set_element(want.ref(), {1, 2}, static_cast<double>(value));
            output.add(5, value);
            const A sum = static_cast<A>(element(want.ref(), {1, 5})) + value;
            set_element(want.ref(), {1, 5}, static_cast<double>(sum));
            CHECK(compare_bitwise(got.ref(), want.ref()));
            CHECK(got.intact());
        }
}

TEST_CASE("dense numbers are written in place") {
    std::array<double, 3> numbers{1, 2, 3};
    const dense_row_output<double> output(numbers.data());
    output.set(1, 7);
    output.add(2, 0.5);
    CHECK(numbers == std::array<double, 3>{1, 7, 3.5});
}

TEST_CASE("elements come in row-major order of their indices, whatever the strides") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(std::string(mhr::name_of(type)));
            CAPTURE(name_of(order));
            guarded_tensor<3> tensor(type, {2, 3, 4}, order);
            std::vector<const void*> got, want;
            for_each_position(tensor.extents(), [&](const position<3>& at) {
                want.push_back(address_of(tensor.ref(), at));
            });
            for_each_element(tensor.ref(), [&](void* at) { got.push_back(at); });
            CHECK(got == want);
        }
    int calls = 0;
    for_each_element(tensor_ref<2>(static_cast<float*>(nullptr), {0, 3}), [&](void*) { ++calls; });
    for_each_element(tensor_ref<2>(), [&](void*) { ++calls; });
    CHECK(calls == 0);
}
