#include <algorithm>
#include <array>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/simd/dense_rows.hpp>

#include "support/comparison.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using bf16 = Eigen::bfloat16;
using half = Eigen::half;
using numbers = std::vector<index_t>;

// The type of sums, and what is stored.
template <class A_, class T_>
struct types {
    using A = A_;
    using T = T_;
};
#define DENSE_ROWS_TYPES                                                                           \
    types<float, float>, types<double, double>, types<float, bf16>, types<float, half>,            \
        types<double, float>

template <class A>
constexpr index_t width = detail::lanes<A, default_arch>;

template <class A>
constexpr index_t chunk = detail::chunk_columns<A>;

constexpr index_t all_rows = 9;
constexpr index_t most_rows = 6;
const numbers some_rows{7, 0, 3, 8, 4};

detail::row_set set_of(const numbers& rows) {
    return {rows.data(), static_cast<index_t>(rows.size())};
}

// Columns [first, first + count): whole vectors and others, up to a whole chunk.
template <class A>
std::vector<std::array<index_t, 2>> parts() {
    const index_t w = width<A>;
    return {{0, w},     {0, chunk<A>}, {w, 2 * w}, {0, 1},           {1, w},
            {3, w + 1}, {2, w - 1},    {5, 0},     {1, chunk<A> - 1}};
}

template <class T>
struct matrix {
    guarded_buffer<T, 2> memory;
    tensor_view<T, 2> view;

    explicit matrix(layout order) : memory({all_rows, 300}, order), view(memory.view()) {
        random_source(61).fill(view);
    }
    tensor_view<const T, 2> input() { return view; }
};

template <class A, class T>
bool may_point(const tensor_view<T, 2>& view, index_t count) {
    return std::is_same_v<A, T> && view.stride(1) == 1 && count % width<A> == 0;
}

// What `rows` points at: the elements of the numbered rows, in place or copied and padded.
template <class A, class T>
void check_rows(const A* const* rows, const numbers& row_numbers, matrix<T>& m, index_t first,
                index_t count, bool in_place, bool padded) {
    const index_t end = padded ? (count + width<A> - 1) / width<A> * width<A> : count;
    int wrong = 0;
    for (std::size_t i = 0; i < row_numbers.size(); ++i) {
        for (index_t j = 0; j < end; ++j) {
            const A want = j < count ? load<A>(m.view(row_numbers[i], first + j)) : A(0);
            if (!detail::is_exactly(rows[i][j], want)) ++wrong;
        }
        const void* const place = &m.view(row_numbers[i], first);
        CHECK((place == rows[i]) == in_place);
    }
    CHECK(wrong == 0);
}

template <class Check>
void for_all_parts(const std::vector<std::array<index_t, 2>>& all, Check&& check) {
    for (layout order : all_layouts)
        for (const auto& part : all) {
            CAPTURE(name_of(order));
            CAPTURE(part[0]);
            CAPTURE(part[1]);
            check(order, part[0], part[1]);
        }
}

} // namespace

TEST_CASE_TEMPLATE("rows of a set are pointed at, or copied with zeros behind", Types,
                   DENSE_ROWS_TYPES) {
    using A = typename Types::A;
    using T = typename Types::T;
    for_all_parts(parts<A>(), [](layout order, index_t first, index_t count) {
        matrix<T> m(order);
        const snapshot before = m.memory.take_snapshot();
        detail::dense_rows<default_arch, A, most_rows> rows;
        const A* const* of_set = rows.read(set_of(some_rows), m.input(), first, count);
        check_rows(of_set, some_rows, m, first, count, may_point<A>(m.view, count), true);
        const A* const* coefficients =
            rows.read_unpadded(set_of(some_rows), m.input(), first, count);
        check_rows(coefficients, some_rows, m, first, count,
                   std::is_same_v<A, T> && m.view.stride(1) == 1, false);
        CHECK(m.memory.unchanged_since(before));
    });
}

TEST_CASE_TEMPLATE("rows that follow each other, columns of a transposed matrix too", Types,
                   DENSE_ROWS_TYPES) {
    using A = typename Types::A;
    using T = typename Types::T;
    const numbers from_2{2, 3, 4, 5, 6};
    for_all_parts(parts<A>(), [&](layout order, index_t first, index_t count) {
        matrix<T> m(order);
        const snapshot before = m.memory.take_snapshot();
        detail::dense_rows<default_arch, A, most_rows> rows;
        const A* const* read = rows.read(2, 5, m.input(), first, count);
        check_rows(read, from_2, m, first, count, may_point<A>(m.view, count), true);
        CHECK(m.memory.unchanged_since(before));
    });
}

TEST_CASE("a matrix of stride 0 is read") {
    const float one = 2.5F;
    const tensor_view<const float, 2> repeated(&one, {all_rows, 300}, {0, 0});
    detail::dense_rows<default_arch, float, most_rows> rows;
    const index_t last = width<float>;
    for (const float* const* read : {rows.read(set_of(some_rows), repeated, 1, last + 1),
                                     rows.read(1, 5, repeated, 1, last + 1)})
        for (int i = 0; i < 5; ++i) {
            CHECK(read[i][0] == 2.5F);
            CHECK(read[i][last] == 2.5F);
            CHECK(read[i][last + 1] == 0);
        }
}

TEST_CASE_TEMPLATE("rows that sums are added to: in place, or rounded once", Types,
                   DENSE_ROWS_TYPES, types<double, half>) {
    using A = typename Types::A;
    using T = typename Types::T;
    for_all_parts(parts<A>(), [](layout order, index_t first, index_t count) {
        matrix<T> m(order);
        const tensor<T, 2> before = copy_as<T>(m.view);
        // A third of a step of 16-bit types, which is lost if each sum is rounded by itself.
        const A small = A(0x1p-14);
        detail::dense_output_rows<default_arch, A, most_rows> output;
        A* const* rows = output.open(set_of(some_rows), m.view, first, count);
        const bool in_place = may_point<A>(m.view, count);
        check_rows(rows, some_rows, m, first, count, in_place, false);
        const index_t end = detail::padded<default_arch, A>(count);
        for (std::size_t i = 0; i < some_rows.size(); ++i)
            for (int sum = 0; sum < 9; ++sum)
                for (index_t j = 0; j < (sum == 0 ? end : count); ++j)
                    rows[i][j] += small;
        output.write(set_of(some_rows), m.view, first, count);

        tensor<T, 2> want = before;
        for (index_t row : some_rows)
            for (index_t j = 0; j < count; ++j) {
                A sum = load<A>(before(row, first + j));
                for (int i = 0; i < 9; ++i)
                    sum += small;
                want(row, first + j) = store<T>(sum);
            }
        CHECK(compare_bitwise(m.view, want.view()));
        CHECK(m.memory.intact());
    });
}

TEST_CASE("matrices that need no copy") {
    matrix<float> rows(layout::padded);
    matrix<float> columns(layout::column_major);
    matrix<half> other(layout::row_major);
    CHECK(detail::is_dense<float>(rows.view));
    CHECK(detail::is_dense<float>(rows.input()));
    CHECK_FALSE(detail::is_dense<double>(rows.view));
    CHECK_FALSE(detail::is_dense<float>(columns.view));
    CHECK(detail::is_dense<float>(columns.view.transpose(0, 1)));
    CHECK_FALSE(detail::is_dense<float>(other.view));
    const auto chunk_of = [](const auto& a, const auto& b) {
        return detail::chunk_columns_of<default_arch, float>(a, b);
    };
    CHECK(chunk_of(rows.view, rows.input()) == detail::chunk_columns_in_place<default_arch, float>);
    CHECK(chunk_of(rows.view, columns.view) == chunk<float>);
    CHECK(chunk_of(other.view, rows.view) == chunk<float>);
}

TEST_CASE_TEMPLATE("chunks are whole vectors, and at the end less than one", A,
                   MHR_TEST_ACCUMULATORS) {
    for (index_t size : {width<A>, chunk<A>, detail::chunk_columns_in_place<default_arch, A>}) {
        CAPTURE(size);
        CHECK(size % width<A> == 0);
        for (index_t n = 0; n < 3 * size; n += n < 40 ? 1 : size / 40 + 1) {
            CAPTURE(n);
            index_t next = 0;
            detail::for_chunks<default_arch, A>(n, size, [&](index_t first, index_t count) {
                CHECK(first == next);
                CHECK(first % width<A> == 0);
                CHECK(count > 0);
                CHECK(count <= size);
                CHECK((count % width<A> == 0 || (count < width<A> && first + count == n)));
                next += count;
            });
            CHECK(next == n);
        }
    }
    for (index_t n = 0; n < 3 * width<A>; ++n) {
        const index_t whole = detail::padded<default_arch, A>(n);
        CHECK(whole % width<A> == 0);
        CHECK(whole >= n);
        CHECK(whole < n + width<A>);
    }
}

TEST_CASE("groups cover everything once") {
    for (index_t n = 0; n < 30; ++n)
        for (index_t size : {1, 2, 7, 30, 100}) {
            CAPTURE(n);
            CAPTURE(size);
            index_t next = 0;
            detail::for_groups(n, size, [&](index_t first, index_t count) {
                CHECK(first == next);
                CHECK((count == size || (count < size && first + count == n)));
                next += count;
            });
            CHECK(next == n);
        }
}
