#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/sums.hpp>
#include <mhr/kernels/simd/dense_rows.hpp>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using numbers = std::vector<index_t>;

template <class A>
constexpr index_t width = kernels::lanes<A, default_arch>;

template <class A>
constexpr index_t chunk = kernels::chunk_columns<A>;

constexpr index_t all_rows = 9;
constexpr index_t most_rows = 6;
const numbers some_rows{7, 0, 3, 8, 4};

row_set set_of(const numbers& rows) {
    return {rows.data(), static_cast<index_t>(rows.size())};
}

// Columns [first, first + count): whole vectors and others, up to a whole chunk.
template <class A>
std::vector<std::array<index_t, 2>> parts() {
    const index_t w = width<A>;
    return {{0, w},     {0, chunk<A>}, {w, 2 * w}, {0, 1},           {1, w},
            {3, w + 1}, {2, w - 1},    {5, 0},     {1, chunk<A> - 1}};
}

struct matrix {
    guarded_tensor<2> memory;
    tensor_ref<2> ref;

    matrix(element_type type, layout order) : memory(type, {all_rows, 300}, order), ref(memory) {
        memory.fill(random_source(61));
    }
    [[nodiscard]] const_tensor_ref<2> input() const { return ref; }
};

template <class A>
bool is_dense(const tensor_ref<2>& tensor) {
    return tensor.type() == element_type_of_v<A> && tensor.stride(1) == 1;
}
template <class A>
bool may_point(const tensor_ref<2>& tensor, index_t count) {
    return is_dense<A>(tensor) && count % width<A> == 0;
}

// What `rows` points at: the elements of the numbered rows, in place or copied and padded.
template <class A>
void check_rows(const A* const* rows, const numbers& row_numbers, const matrix& m, index_t first,
                index_t count, bool in_place, bool padded) {
    const index_t end = padded ? (count + width<A> - 1) / width<A> * width<A> : count;
    int wrong = 0;
    for (std::size_t i = 0; i < row_numbers.size(); ++i) {
        for (index_t j = 0; j < end; ++j) {
            const A want =
                j < count ? static_cast<A>(element(m.ref, {row_numbers[i], first + j})) : A(0);
            if (!is_exactly(rows[i][j], want)) ++wrong;
        }
        const void* const place = m.ref.address_of(row_numbers[i], first);
        CHECK((place == rows[i]) == in_place);
    }
    CHECK(wrong == 0);
}

// Calls `check(zero, type, order, first, count)` for every type of sums, every type that it may
// read, every layout and all parts.
template <class Check>
void for_all_parts(Check&& check) {
    const auto with_sums = [&](auto zero) {
        using A = decltype(zero);
        for (element_type type : all_element_types) {
            if (type == element_type::f64 && sizeof(A) < 8) continue;
            for (layout order : all_layouts)
                for (const auto& part : parts<A>()) {
                    CAPTURE(std::string(name_of(type)));
                    CAPTURE(name_of(order));
                    CAPTURE(part[0]);
                    CAPTURE(part[1]);
                    check(zero, type, order, part[0], part[1]);
                }
        }
    };
    with_sums(float(0));
    with_sums(double(0));
}

} // namespace

TEST_CASE("rows of a set are pointed at, or copied with zeros behind") {
    for_all_parts([](auto zero, element_type type, layout order, index_t first, index_t count) {
        using A = decltype(zero);
        matrix m(type, order);
        const snapshot before = m.memory.take_snapshot();
        kernels::dense_rows<default_arch, A, most_rows> rows;
        const A* const* of_set = rows.read(set_of(some_rows), m.input(), first, count);
        check_rows(of_set, some_rows, m, first, count, may_point<A>(m.ref, count), true);
        const A* const* coefficients =
            rows.read_unpadded(set_of(some_rows), m.input(), first, count);
        check_rows(coefficients, some_rows, m, first, count, is_dense<A>(m.ref), false);
        CHECK(m.memory.unchanged_since(before));
    });
}

TEST_CASE("rows that follow each other, columns of a transposed matrix too") {
    const numbers from_2{2, 3, 4, 5, 6};
    for_all_parts([&](auto zero, element_type type, layout order, index_t first, index_t count) {
        using A = decltype(zero);
        matrix m(type, order);
        const snapshot before = m.memory.take_snapshot();
        kernels::dense_rows<default_arch, A, most_rows> rows;
        const A* const* read = rows.read(2, 5, m.input(), first, count);
        check_rows(read, from_2, m, first, count, may_point<A>(m.ref, count), true);
        CHECK(m.memory.unchanged_since(before));
    });
}

TEST_CASE("a matrix of stride 0 is read") {
    const float of_f32 = 2.5F;
    const f16 of_f16(2.5F);
    for (const const_tensor_ref<2>& repeated :
         {const_tensor_ref<2>(&of_f32, {all_rows, 300}, {0, 0}),
          const_tensor_ref<2>(&of_f16, {all_rows, 300}, {0, 0})}) {
        kernels::dense_rows<default_arch, float, most_rows> rows;
        const index_t last = width<float>;
        for (const float* const* read : {rows.read(set_of(some_rows), repeated, 1, last + 1),
                                         rows.read(1, 5, repeated, 1, last + 1)})
            for (int i = 0; i < 5; ++i) {
                CHECK(read[i][0] == 2.5F);
                CHECK(read[i][last] == 2.5F);
                CHECK(read[i][last + 1] == 0);
            }
    }
}

TEST_CASE("rows that sums are added to: in place, or rounded once") {
    for_all_parts([](auto zero, element_type type, layout order, index_t first, index_t count) {
        using A = decltype(zero);
        matrix m(type, order);
        matrix want(type, order);
        // A third of a step of 16-bit types, which is lost if each sum is rounded by itself.
        const A small = A(0x1p-14);
        kernels::dense_output_rows<default_arch, A, most_rows> output;
        A* const* rows = output.open(set_of(some_rows), m.ref, first, count);
        const bool in_place = may_point<A>(m.ref, count);
        check_rows<A>(rows, some_rows, m, first, count, in_place, false);
        const index_t end = kernels::padded<default_arch, A>(count);
        for (std::size_t i = 0; i < some_rows.size(); ++i)
            for (int sum = 0; sum < 9; ++sum)
                for (index_t j = 0; j < (sum == 0 ? end : count); ++j)
                    rows[i][j] += small;
        output.write(set_of(some_rows), m.ref, first, count);

        for (index_t row : some_rows)
            for (index_t j = first; j < first + count; ++j) {
                A sum = static_cast<A>(element(want.ref, {row, j}));
                for (int i = 0; i < 9; ++i)
                    sum += small;
                set_element(want.ref, {row, j}, static_cast<double>(sum));
            }
        CHECK(compare_bitwise(m.ref, want.ref));
        CHECK(m.memory.intact());
    });
}

TEST_CASE("rows that are overwritten are not read before") {
    for_all_parts([](auto zero, element_type type, layout order, index_t first, index_t count) {
        using A = decltype(zero);
        guarded_tensor<2> memory(type, {all_rows, 300}, order); // signalling NaN
        matrix want(type, order);
        kernels::dense_output_rows<default_arch, A, most_rows> output;
        A* const* rows = output.open_unread(set_of(some_rows), memory.ref(), first, count);
        for (std::size_t i = 0; i < some_rows.size(); ++i)
            for (index_t j = 0; j < kernels::padded<default_arch, A>(count); ++j)
                rows[i][j] =
                    j < count ? static_cast<A>(element(want.ref, {some_rows[i], first + j})) : A(7);
        output.write(set_of(some_rows), memory.ref(), first, count);
        for (index_t row : some_rows)
            if (count != 0)
                CHECK(compare_bitwise(memory.ref().slice(0, row).block(0, first, count),
                                      want.ref.slice(0, row).block(0, first, count)));
        CHECK(memory.intact());
    });
}

TEST_CASE("matrices that need no copy") {
    const matrix rows(element_type::f32, layout::padded);
    const matrix columns(element_type::f32, layout::column_major);
    const matrix other(element_type::f16, layout::row_major);
    CHECK(kernels::is_dense<float>(rows.ref));
    CHECK(kernels::is_dense<float>(rows.input()));
    CHECK_FALSE(kernels::is_dense<double>(rows.ref));
    CHECK_FALSE(kernels::is_dense<float>(columns.ref));
    CHECK(kernels::is_dense<float>(columns.ref.transpose(0, 1)));
    CHECK_FALSE(kernels::is_dense<float>(other.ref));
    const auto chunk_of = [](const auto& a, const auto& b) {
        return kernels::chunk_columns_of<default_arch, float>(a, b);
    };
    CHECK(chunk_of(rows.ref, rows.input()) == kernels::chunk_columns_in_place<default_arch, float>);
    CHECK(chunk_of(rows.ref, columns.ref) == chunk<float>);
    CHECK(chunk_of(other.ref, rows.ref) == chunk<float>);
}

TEST_CASE_TEMPLATE("chunks are whole vectors, and at the end less than one", A,
                   MHR_TEST_ACCUMULATORS) {
    for (index_t size : {width<A>, chunk<A>, kernels::chunk_columns_in_place<default_arch, A>}) {
        CAPTURE(size);
        CHECK(size % width<A> == 0);
        for (index_t n = 0; n < 3 * size; n += n < 40 ? 1 : size / 40 + 1) {
            CAPTURE(n);
            index_t next = 0;
            kernels::for_chunks<default_arch, A>(n, size, [&](index_t first, index_t count) {
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
        const index_t whole = kernels::padded<default_arch, A>(n);
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
            kernels::for_groups(n, size, [&](index_t first, index_t count) {
                CHECK(first == next);
                CHECK((count == size || (count < size && first + count == n)));
                next += count;
            });
            CHECK(next == n);
        }
}
