#include <array>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/kernels/simd/transpose.hpp>

#include "support/architectures.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

// Copies move values and round them at most once, so that everything here is compared to the bit.

using namespace mhr;
using namespace mhr::test;

namespace {

// Pieces are 2 or 4 wide: multiples, and what is left of them.
const std::vector<index_t> sizes{0, 1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 33, 40};

// Bit by bit, and content with nothing to compare.
comparison same(const const_tensor_ref<2>& got, const const_tensor_ref<2>& want) {
    comparison result;
    if (want.size() != 0) return compare_bitwise(got, want);
    result.ok = got.extents() == want.extents();
    return result;
}

template <class Arch, class A>
void check_registers() {
    constexpr index_t n = kernels::piece_lanes<A, Arch>;
    using V = kernels::vector<A, kernels::piece_arch<Arch>>;
    alignas(64) A values[kernels::as_size(n)][kernels::as_size(n)];
    V rows[kernels::as_size(n)];
    for (index_t i = 0; i < n; ++i) {
        for (index_t j = 0; j < n; ++j)
            values[i][j] = static_cast<A>(100 * i + j);
        rows[i] = V::load_aligned(values[i]);
    }
    kernels::transpose_registers<Arch, A>(rows);
    for (index_t i = 0; i < n; ++i) {
        rows[i].store_aligned(values[i]);
        for (index_t j = 0; j < n; ++j)
            CHECK(values[i][j] == static_cast<A>(100 * j + i));
    }
}

// Rows of the type of sums, perhaps of more elements than they need.
template <class A>
struct rows_of {
    guarded_tensor<2> memory;
    tensor_view<A, 2> view;
    index_t stride;

    rows_of(index_t rows, index_t columns, layout order)
        : memory(element_type_of_v<A>, {rows, columns}, order), view(memory.ref().as<A>()),
          stride(view.stride(0)) {}
};

template <class Arch, class A>
void check_transpose(index_t rows, index_t columns, layout of_input, layout of_output) {
    CAPTURE(rows);
    CAPTURE(columns);
    rows_of<A> from(rows, columns, of_input);
    rows_of<A> to(columns, rows, of_output);
    from.memory.fill(random_source(7));
    kernels::transpose<Arch>(static_cast<const A*>(from.view.data()), from.stride, rows, columns,
                             to.view.data(), to.stride);
    CHECK(same(to.view, from.view.transpose(0, 1)));
    CHECK(to.memory.intact());
}

// Copies a tensor into rows and rows into the tensor.
template <class A>
void check_copies(element_type type, index_t rows, index_t columns, layout order, layout of_rows) {
    CAPTURE(rows);
    CAPTURE(columns);
    CAPTURE(name_of(order));
    guarded_tensor<2> from(type, {rows, columns}, order);
    random_source random(13);
    from.fill(random);
    rows_of<A> to(rows, columns, of_rows);
    kernels::copy_in<default_arch>(from.const_ref(), to.view.data(), to.stride);
    CHECK(same(to.view, values_as<A>(from.ref()).const_view()));
    CHECK(to.memory.intact());

    to.memory.fill(random);
    guarded_tensor<2> back(type, {rows, columns}, order);
    kernels::copy_out<default_arch>(static_cast<const A*>(to.view.data()), to.stride, back.ref());
    guarded_tensor<2> rounded(type, {rows, columns});
    for_each_position(back.extents(), [&](const position<2>& at) {
        set_element(rounded.ref(), at, static_cast<double>(element(to.view, at)));
    });
    CHECK(same(back.ref(), rounded.ref()));
    CHECK(back.intact());
}

// Calls `f(zero, type)` for every type of sums and every type that it may read.
template <class F>
void for_each_combination(F&& f) {
    for (element_type type : all_element_types) {
        CAPTURE(std::string(name_of(type)));
        if (type != element_type::f64) f(float(0), type);
        f(double(0), type);
    }
}

} // namespace

TEST_CASE("rows of registers become columns, on every architecture") {
    for_each_architecture_and_none([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        check_registers<Arch, float>();
        check_registers<Arch, double>();
    });
}

TEST_CASE("transposes of every size, on every architecture") {
    for_each_architecture_and_none([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
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
        kernels::transpose<default_arch>(from.data(), stride, 9, 14, to.view.data(), to.stride);
        CHECK(same(to.view, from.transpose(0, 1)));
        CHECK(to.memory.intact());
        // The same seen as columns, which copy_in transposes.
        rows_of<float> copy(14, 9, layout::padded);
        kernels::copy_in<default_arch>(const_tensor_ref<2>(from.transpose(0, 1)), copy.view.data(),
                                       copy.stride);
        CHECK(same(copy.view, from.transpose(0, 1)));
        CHECK(copy.memory.intact());
    }
    // One element.
    const f16 one(1.5F);
    rows_of<float> to(5, 6, layout::padded);
    kernels::copy_in<default_arch>(const_tensor_ref<2>(&one, {5, 6}, {0, 0}), to.view.data(),
                                   to.stride);
    for_each_position(to.view.extents(),
                      [&](const position<2>& at) { CHECK(element(to.view, at) == 1.5F); });
}

TEST_CASE("copies of every layout and element type") {
    for_each_combination([](auto zero, element_type type) {
        for (layout order : all_layouts)
            for (index_t rows : sizes)
                for (index_t columns : sizes)
                    check_copies<decltype(zero)>(type, rows, columns, order,
                                                 rows % 2 == 0 ? layout::padded
                                                               : layout::misaligned);
    });
}

TEST_CASE("copies of long columns") {
    for_each_combination([](auto zero, element_type type) {
        using A = decltype(zero);
        // Up to and beyond what is converted before it is transposed, and not a multiple of it.
        for (index_t length : {100, 171, 256, 257, 511, 512, 513, 1025})
            for (index_t other : {1, 2, 3, 6, 11}) {
                check_copies<A>(type, length, other, layout::column_major, layout::padded);
                check_copies<A>(type, other, length, layout::column_major, layout::padded);
            }
    });
}

TEST_CASE("a single row or column may have any stride along itself") {
    // Strides that look like those of columns.
    random_source random(19);
    for (element_type type : {element_type::f32, element_type::bf16, element_type::f16})
        for (const std::array<index_t, 2>& strides :
             {std::array<index_t, 2>{1, 7}, {1, 1}, {7, 1}, {1, -2}, {1, 0}, {-3, 1}, {0, 1}}) {
            CAPTURE(std::string(name_of(type)));
            CAPTURE(to_text(strides));
            for (const std::array<index_t, 2>& extents :
                 {std::array<index_t, 2>{1, 9}, {9, 1}, {1, 1}}) {
                CAPTURE(to_text(extents));
                guarded_tensor<1> values(type, {160});
                values.fill(random);
                const const_tensor_ref<2> from(values.ref().address_of(80), type, extents, strides);
                rows_of<float> to(extents[0], extents[1], layout::padded);
                kernels::copy_in<default_arch>(from, to.view.data(), to.stride);
                CHECK(same(to.view, values_as<float>(from).const_view()));
                CHECK(to.memory.intact());
            }
        }
}

TEST_CASE("no memory is needed where there is nothing") {
    float* const nothing = nullptr;
    for (element_type type : {element_type::f32, element_type::bf16, element_type::f16})
        for (const std::array<index_t, 2>& extents :
             {std::array<index_t, 2>{0, 5}, {5, 0}, {0, 0}}) {
            kernels::copy_in<default_arch>(const_tensor_ref<2>(nullptr, type, extents, {1, 5}),
                                           nothing, 5);
            kernels::copy_out<default_arch>(static_cast<const float*>(nothing), 5,
                                            tensor_ref<2>(nullptr, type, extents, {5, 1}));
        }
    CHECK(nothing == nullptr);
}
