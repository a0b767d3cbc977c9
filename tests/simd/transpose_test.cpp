#include <array>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/simd/transpose.hpp>

#include "support/architectures.hpp"
#include "support/comparison.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

// Copies move values and round them at most once, so that everything here is compared to the bit.

using namespace mhr;
using namespace mhr::test;

namespace {

using bf16 = Eigen::bfloat16;
using half = Eigen::half;

// The type of sums, and what is stored.
template <class A_, class T_>
struct types {
    using A = A_;
    using T = T_;
};

// Pieces are 2 or 4 wide: multiples, and what is left of them.
const std::vector<index_t> sizes{0, 1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 33, 40};

// Bit by bit, and content with nothing to compare.
template <class T, class S>
comparison same(const tensor_view<T, 2>& got, const tensor_view<S, 2>& want) {
    comparison result;
    if (want.size() != 0) return compare_bitwise(got, want);
    result.ok = got.extents() == want.extents();
    return result;
}

template <class Arch, class A>
void check_registers() {
    constexpr index_t n = detail::piece_lanes<A, Arch>;
    using V = detail::vector<A, detail::piece_arch<Arch>>;
    alignas(64) A values[detail::as_size(n)][detail::as_size(n)];
    V rows[detail::as_size(n)];
    for (index_t i = 0; i < n; ++i) {
        for (index_t j = 0; j < n; ++j)
            values[i][j] = static_cast<A>(100 * i + j);
        rows[i] = V::load_aligned(values[i]);
    }
    detail::transpose_registers<Arch, A>(rows);
    for (index_t i = 0; i < n; ++i) {
        rows[i].store_aligned(values[i]);
        for (index_t j = 0; j < n; ++j)
            CHECK(values[i][j] == static_cast<A>(100 * j + i));
    }
}

// Rows of `padding` more elements than they need.
template <class A>
struct rows_of {
    guarded_buffer<A, 2> memory;
    tensor_view<A, 2> view;
    index_t stride;

    rows_of(index_t rows, index_t columns, layout order)
        : memory({rows, columns}, order), view(memory.view()), stride(view.stride(0)) {}
};

template <class Arch, class A>
void check_transpose(index_t rows, index_t columns, layout of_input, layout of_output) {
    CAPTURE(rows);
    CAPTURE(columns);
    rows_of<A> from(rows, columns, of_input);
    rows_of<A> to(columns, rows, of_output);
    random_source(7).fill(from.view);
    detail::transpose<Arch>(static_cast<const A*>(from.view.data()), from.stride, rows, columns,
                            to.view.data(), to.stride);
    CHECK(same(to.view, from.view.transpose(0, 1)));
    CHECK(to.memory.intact());
}

// Copies a view into rows and rows into the view.
template <class A, class T>
void check_copies(index_t rows, index_t columns, layout order, layout of_rows) {
    CAPTURE(rows);
    CAPTURE(columns);
    CAPTURE(name_of(order));
    guarded_buffer<T, 2> from({rows, columns}, order);
    random_source random(13);
    random.fill(from.view());
    rows_of<A> to(rows, columns, of_rows);
    detail::copy_in<default_arch>(from.const_view(), to.view.data(), to.stride);
    tensor<A, 2> widened({rows, columns});
    transform(from.view(), widened.view(), [](const T& value) { return load<A>(value); });
    CHECK(same(to.view, widened.view()));
    CHECK(to.memory.intact());

    random.fill(to.view);
    guarded_buffer<T, 2> back({rows, columns}, order);
    detail::copy_out<default_arch>(static_cast<const A*>(to.view.data()), to.stride, back.view());
    tensor<T, 2> rounded({rows, columns});
    transform(to.view, rounded.view(), [](const A& value) { return store<T>(value); });
    CHECK(same(back.view(), rounded.view()));
    CHECK(back.intact());
}

} // namespace

TEST_CASE("rows of registers become columns, on every architecture") {
    for_each_architecture_and_none([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(Arch::name());
        check_registers<Arch, float>();
        check_registers<Arch, double>();
    });
}

TEST_CASE("transposes of every size, on every architecture") {
    for_each_architecture_and_none([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(Arch::name());
        for (index_t rows : sizes)
            for (index_t columns : sizes) {
                check_transpose<Arch, float>(rows, columns, layout::padded, layout::padded);
                check_transpose<Arch, double>(rows, columns, layout::row_major, layout::misaligned);
            }
    });
    for (index_t rows = 0; rows <= 40; ++rows)
        for (index_t columns = 0; columns <= 40; ++columns)
            check_transpose<default_arch, float>(rows, columns, layout::misaligned,
                                                 layout::row_major);
}

TEST_CASE("rows of an input may overlap or be one and the same") {
    // Diagonals of a matrix, and one row again and again.
    random_source random(17);
    tensor<float, 1> values({60});
    random.fill(values.view());
    for (index_t stride : {0, 1, -1}) {
        CAPTURE(stride);
        const tensor_view<const float, 2> from(values.view().data() + 20, {9, 14}, {stride, 1});
        rows_of<float> to(14, 9, layout::padded);
        detail::transpose<default_arch>(from.data(), stride, 9, 14, to.view.data(), to.stride);
        CHECK(same(to.view, from.transpose(0, 1)));
        CHECK(to.memory.intact());
        // The same seen as columns, which copy_in transposes.
        rows_of<float> copy(14, 9, layout::padded);
        detail::copy_in<default_arch>(from.transpose(0, 1), copy.view.data(), copy.stride);
        CHECK(same(copy.view, from.transpose(0, 1)));
        CHECK(copy.memory.intact());
    }
    // One element.
    const half one(1.5F);
    rows_of<float> to(5, 6, layout::padded);
    detail::copy_in<default_arch>(tensor_view<const half, 2>(&one, {5, 6}, {0, 0}), to.view.data(),
                                  to.stride);
    for_each_position(to.view.extents(),
                      [&](const position<2>& at) { CHECK(element(to.view, at) == 1.5F); });
}

TEST_CASE_TEMPLATE("copies of every layout and storage type", Types, types<float, float>,
                   types<float, bf16>, types<float, half>, types<double, double>,
                   types<double, float>, types<double, half>) {
    using A = typename Types::A;
    using T = typename Types::T;
    for (layout order : all_layouts)
        for (index_t rows : sizes)
            for (index_t columns : sizes)
                check_copies<A, T>(rows, columns, order,
                                   rows % 2 == 0 ? layout::padded : layout::misaligned);
}

TEST_CASE_TEMPLATE("copies of long columns", Types, types<float, float>, types<float, half>,
                   types<double, float>) {
    using A = typename Types::A;
    using T = typename Types::T;
    // Up to and beyond what is converted before it is transposed, and not a multiple of it.
    for (index_t length : {100, 171, 256, 257, 511, 512, 513, 1025})
        for (index_t other : {1, 2, 3, 6, 11}) {
            check_copies<A, T>(length, other, layout::column_major, layout::padded);
            check_copies<A, T>(other, length, layout::column_major, layout::padded);
        }
}

TEST_CASE_TEMPLATE("a single row or column may have any stride along itself", T, float, bf16) {
    // Strides that look like those of columns.
    random_source random(19);
    for (const std::array<index_t, 2>& strides :
         {std::array<index_t, 2>{1, 7}, {1, 1}, {7, 1}, {1, -2}, {1, 0}, {-3, 1}, {0, 1}}) {
        CAPTURE(to_text(strides));
        for (const std::array<index_t, 2>& extents :
             {std::array<index_t, 2>{1, 9}, {9, 1}, {1, 1}}) {
            CAPTURE(to_text(extents));
            tensor<T, 1> values({160});
            random.fill(values.view());
            const tensor_view<const T, 2> from(values.view().data() + 80, extents, strides);
            rows_of<float> to(extents[0], extents[1], layout::padded);
            detail::copy_in<default_arch>(from, to.view.data(), to.stride);
            CHECK(same(to.view, copy_as<float>(from).view()));
            CHECK(to.memory.intact());
        }
    }
}

TEST_CASE("no memory is needed where there is nothing") {
    float* const nothing = nullptr;
    for (const std::array<index_t, 2>& extents : {std::array<index_t, 2>{0, 5}, {0, 0}}) {
        detail::copy_in<default_arch>(tensor_view<const half, 2>(nullptr, extents, {1, 5}), nothing,
                                      5);
        detail::copy_out<default_arch>(static_cast<const float*>(nothing), 5,
                                       tensor_view<half, 2>(nullptr, extents, {5, 1}));
    }
    CHECK(nothing == nullptr);
}
