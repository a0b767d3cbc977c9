#include <cmath>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/analysis/gram.hpp>

#include "support/bad_arguments.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
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

TEST_CASE("a block is gathered along its rows, padded to whole lanes") {
    for (layout order : all_layouts)
        for (index_t rows : {1, 2, 7})
            for (index_t columns : {1, 3, 20}) {
                CAPTURE(name_of(order));
                guarded_buffer<float, 2> block({rows, columns}, order);
                for (index_t p = 0; p < rows; ++p)
                    for (index_t q = 0; q < columns; ++q)
                        block(p, q) = static_cast<float>(1 + p * columns + q);
                for (index_t first = 0; first < rows * columns; ++first)
                    for (index_t count = 1; count <= rows * columns - first; ++count) {
                        const index_t padded = (count + 7) / 8 * 8;
                        std::vector<double> to(static_cast<std::size_t>(padded + 1), -1);
                        detail::gather(block.const_view(), first, count, to.data());
                        std::vector<double> want(static_cast<std::size_t>(padded + 1), 0);
                        for (index_t i = 0; i < count; ++i)
                            want[static_cast<std::size_t>(i)] = static_cast<double>(1 + first + i);
                        want.back() = -1;
                        REQUIRE(to == want);
                    }
            }
}

TEST_CASE("each pair of tiles on or above the diagonal is one part") {
    for (index_t vectors : {0, 1, 8, 9, 16, 17, 100}) {
        CAPTURE(vectors);
        const index_t tiles = (vectors + 7) / 8;
        tensor<int, 2> seen({tiles, tiles});
        detail::for_gram_tiles(serial_executor{}, vectors, [&](index_t row, index_t column) {
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
}

TEST_CASE_TEMPLATE("the Gram matrix may be stored in any type", T, MHR_TEST_STORAGE_TYPES) {
    guarded_buffer<T, 2> gram({2, 2});
    gram(0, 0) = T(4.F);
    gram(0, 1) = T(3.F);
    gram(1, 1) = T(9.F);
    gram(1, 0) = T(100.F); // not read
    guarded_buffer<double, 2> cosines({2, 2});
    gram_cosines(gram.const_view(), cosines.view());
    CHECK(cosines(0, 1) == 0.5);
    CHECK(cosines(1, 0) == 0.5);
    CHECK(cosines(0, 0) == 1);
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
    guarded_buffer<double, 2> gram({3, 3}), cosines({3, 3});
    gram.fill(1);
    cosines.fill(0.5);
    const auto refused = [&](const char* argument, auto g, auto c) {
        return refuses(
            "gram_cosines", argument, [&] { gram_cosines(g, c); }, cosines);
    };
    for (const auto& bad : bad_as_input(gram.view())) {
        CAPTURE(bad.what);
        CHECK(refused("gram", bad.view, cosines.view()));
    }
    for (const auto& bad : bad_as_output(cosines.view())) {
        CAPTURE(bad.what);
        CHECK(refused("cosines", gram.view(), bad.view));
    }
    gram(2, 2) = -1e-300;
    CHECK(refused("gram", gram.view(), cosines.view()));
    gram_cosines(tensor_view<double, 2>{}, tensor_view<double, 2>{});
}
