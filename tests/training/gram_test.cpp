#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/executor.hpp>
#include <mhr/training/gram.hpp>

#include "support/bad_arguments.hpp"
#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

tensor<double, 2> square_of(index_t n, const std::vector<double>& values) {
    tensor<double, 2> result({n, n});
    result.values() = values;
    return result;
}

} // namespace

TEST_CASE("a block is gathered along its rows, padded to whole partial sums") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts)
            for (index_t rows : {1, 2, 7})
                for (index_t columns : {1, 3, 20}) {
                    CAPTURE(std::string(name_of(type)));
                    CAPTURE(name_of(order));
                    guarded_tensor<2> block(type, {rows, columns}, order);
                    for (index_t p = 0; p < rows; ++p)
                        for (index_t q = 0; q < columns; ++q)
                            set_element(block.ref(), {p, q},
                                        static_cast<double>(1 + p * columns + q));
                    for (index_t first = 0; first < rows * columns; ++first)
                        for (index_t count = 1; count <= rows * columns - first; ++count) {
                            const index_t padded = (count + 7) / 8 * 8;
                            std::vector<double> to(static_cast<std::size_t>(padded + 1), -1);
                            gram_details::gather(block.const_ref(), first, count, to.data());
                            std::vector<double> want(static_cast<std::size_t>(padded + 1), 0);
                            for (index_t i = 0; i < count; ++i)
                                want[static_cast<std::size_t>(i)] =
                                    static_cast<double>(1 + first + i);
                            want.back() = -1;
                            REQUIRE(to == want);
                        }
                }
}

TEST_CASE("a Gram matrix is a sum over heads of weighted inner products") {
    // More vectors than a tile, more elements than a chunk, and blocks of every layout.
    constexpr index_t count = 11, heads = 2, rows = 3, columns = 67;
    const auto factor = [](index_t s, index_t t, index_t h) {
        return s + t == 5 ? 0.0 : static_cast<double>((s + t + 1) * (h + 2));
    };
    tensor<double, 4> values({count, heads, rows, columns});
    index_t next = 0;
    for (double& value : values.values())
        value = static_cast<double>((next++ * 7) % 11 - 5);
    tensor<double, 2> want({count, count});
    for (index_t s = 0; s < count; ++s)
        for (index_t t = 0; t < count; ++t) {
            want(s, t) = 1;
            for (index_t h = 0; h < heads; ++h)
                for (index_t p = 0; p < rows; ++p)
                    for (index_t q = 0; q < columns; ++q)
                        want(s, t) += factor(s, t, h) * values(s, h, p, q) * values(t, h, p, q);
        }
    for (layout order :
         {layout::row_major, layout::padded, layout::column_major, layout::reversed}) {
        CAPTURE(name_of(order));
        guarded_buffer<double, 4> vectors(values.extents(), order);
        transform(values.view(), vectors.view(), [](double value) { return value; });
        tensor<double, 2> gram({count, count});
        for (double& value : gram.values())
            value = 1;
        gram_details::add_gram(serial_executor{}, vectors.view(), factor, gram.view());
        CHECK(compare_bitwise(gram.view(), want.view()));
    }
}

TEST_CASE("each pair of tiles on or above the diagonal is one part") {
    for (index_t vectors : {0, 1, 8, 9, 16, 17, 100}) {
        CAPTURE(vectors);
        const index_t tiles = (vectors + 7) / 8;
        tensor<int, 2> seen({tiles, tiles});
        gram_details::for_tiles(serial_executor{}, vectors, [&](index_t row, index_t column) {
            REQUIRE(row % 8 == 0);
            REQUIRE(column % 8 == 0);
            REQUIRE(row < vectors);
            REQUIRE(column < vectors);
            ++seen(row / 8, column / 8);
        });
        for (index_t row = 0; row < tiles; ++row)
            for (index_t column = 0; column < tiles; ++column)
                CHECK(seen(row, column) == (row <= column ? 1 : 0));
    }
}

TEST_CASE("cosines of known vectors") {
    // (2, 0), (0, 0), (3, 3), (-1, 0), (0, 5).
    const auto gram = square_of(5, {4,  0, 6,  -2, 0,  //
                                    0,  0, 0,  0,  0,  //
                                    6,  0, 18, -3, 15, //
                                    -2, 0, -3, 1,  0,  //
                                    0,  0, 15, 0,  25});
    const double c = std::sqrt(0.5);
    const auto want = square_of(5, {1,  0, c,  -1, 0, //
                                    0,  0, 0,  0,  0, //
                                    c,  0, 1,  -c, c, //
                                    -1, 0, -c, 1,  0, //
                                    0,  0, c,  0,  1});
    for (layout order : all_layouts) {
        guarded_buffer<double, 2> cosines({5, 5}, order), same({5, 5}, order);
        gram_cosines(gram.view(), cosines.view());
        CHECK(compare(cosines.view(), want.view(), within<double>(2)));
        CHECK(compare_bitwise(cosines.view(), cosines.view().transpose(0, 1)));
        CHECK(cosines.intact());
        // In place.
        transform(gram.view(), same.view(), [](double value) { return value; });
        gram_cosines(same.view(), same.view());
        CHECK(compare_bitwise(same.view(), cosines.view()));
    }
    // Raw memory.
    double raw[4];
    gram_cosines({gram.values().data(), {2, 2}, {5, 1}}, {raw, {2, 2}});
    CHECK(raw[0] == 1);
    CHECK(raw[1] == 0);
}

TEST_CASE("the Gram matrix may be stored in any type") {
    for (element_type type : all_element_types) {
        guarded_tensor<2> gram(type, {2, 2});
        set_element(gram.ref(), {0, 0}, 4);
        set_element(gram.ref(), {0, 1}, 3);
        set_element(gram.ref(), {1, 1}, 9);
        set_element(gram.ref(), {1, 0}, 100); // which is not read
        guarded_buffer<double, 2> cosines({2, 2});
        gram_cosines(gram.const_ref(), cosines.view());
        CHECK(cosines(0, 1) == 0.5);
        CHECK(cosines(1, 0) == 0.5);
        CHECK(cosines(0, 0) == 1);
    }
}

TEST_CASE("cosines of the longest and the shortest vectors") {
    for (double square : {1e-300, 1e300}) {
        auto gram = square_of(2, {square, square / 4, square / 4, square / 4});
        gram_cosines(gram.view(), gram.view());
        CHECK(gram(0, 1) == doctest::Approx(0.5).epsilon(1e-15));
        CHECK(gram(0, 0) == 1);
    }
}

TEST_CASE("a NaN is not hidden") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    auto gram = square_of(2, {nan, 1, 1, 1});
    gram_cosines(gram.view(), gram.view());
    CHECK(std::isnan(gram(0, 0)));
    CHECK(std::isnan(gram(0, 1)));
    CHECK(gram(1, 1) == 1);
}

TEST_CASE("bad input of gram_cosines") {
    guarded_tensor<2> gram(element_type::f64, {3, 3});
    guarded_buffer<double, 2> cosines({3, 3});
    gram.fill(1);
    cosines.fill(0.5);
    const auto refused = [&](const char* argument, const const_tensor_ref<2>& g,
                             const tensor_view<double, 2>& c) {
        return refuses(
            "gram_cosines", argument, [&] { gram_cosines(g, c); }, cosines);
    };
    for (const auto& bad : bad_as_input(gram.const_ref())) {
        CAPTURE(bad.what);
        CHECK(refused("gram", bad.ref, cosines.view()));
    }
    for (const auto& bad : bad_as_output(cosines.view())) {
        CAPTURE(bad.what);
        CHECK(refused("cosines", gram.const_ref(), bad.view));
    }
    set_element(gram.ref(), {2, 2}, -1e-300);
    CHECK(refused("gram", gram.const_ref(), cosines.view()));
    gram_cosines({}, {});
}
