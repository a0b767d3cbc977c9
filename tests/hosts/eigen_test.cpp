#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <Eigen/Core>

#include <mhr/batch/batch.hpp>
#include <mhr/hosts/eigen.hpp>
#include <mhr/lora/lora.hpp>

#include "support/comparison.hpp"
#include "support/guarded_buffer.hpp"
#include "support/positions.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;
using mhr::eigen::map_of;
using mhr::eigen::view_of;

namespace {

template <class M>
using view_of_t = decltype(view_of(std::declval<M>()));

template <class M, class = void>
inline constexpr bool has_view = false;
template <class M>
inline constexpr bool has_view<M, std::void_t<view_of_t<M>>> = true;

using row_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;

// Vectors are of rank 1, all else of rank 2, and const is what Eigen lets nobody write to.
static_assert(std::is_same_v<view_of_t<Eigen::MatrixXf&>, tensor_view<float, 2>>);
static_assert(std::is_same_v<view_of_t<const Eigen::MatrixXf&>, tensor_view<const float, 2>>);
static_assert(std::is_same_v<view_of_t<Eigen::Matrix3d&>, tensor_view<double, 2>>);
static_assert(std::is_same_v<view_of_t<Eigen::ArrayXXf&>, tensor_view<float, 2>>);
static_assert(std::is_same_v<view_of_t<Eigen::VectorXf&>, tensor_view<float, 1>>);
static_assert(std::is_same_v<view_of_t<const Eigen::RowVector3f&>, tensor_view<const float, 1>>);
static_assert(
    std::is_same_v<view_of_t<Eigen::Map<const Eigen::MatrixXf>>, tensor_view<const float, 2>>);
static_assert(std::is_same_v<view_of_t<Eigen::Map<Eigen::MatrixXf>>, tensor_view<float, 2>>);
static_assert(
    std::is_same_v<view_of_t<const Eigen::Map<Eigen::MatrixXf>&>, tensor_view<const float, 2>>);
static_assert(std::is_same_v<view_of_t<Eigen::Ref<Eigen::MatrixXf>&>, tensor_view<float, 2>>);
static_assert(
    std::is_same_v<view_of_t<Eigen::Ref<const Eigen::MatrixXf>&>, tensor_view<const float, 2>>);
static_assert(std::is_same_v<view_of_t<decltype(std::declval<const Eigen::MatrixXf&>().row(0))>,
                             tensor_view<const float, 1>>);
static_assert(std::is_same_v<view_of_t<Eigen::Matrix<Eigen::bfloat16, 2, 2>&>,
                             tensor_view<Eigen::bfloat16, 2>>);

// No memory: sums, products, converted and reversed matrices. Memory that ends: temporaries.
static_assert(!has_view<decltype(std::declval<Eigen::MatrixXf&>() * 2.0F)>);
static_assert(
    !has_view<decltype(std::declval<Eigen::MatrixXf&>() * std::declval<Eigen::MatrixXf&>())&>);
static_assert(!has_view<decltype(std::declval<Eigen::MatrixXf&>().cast<double>())>);
static_assert(!has_view<decltype(std::declval<Eigen::MatrixXf&>().reverse())>);
static_assert(!has_view<decltype(Eigen::MatrixXf::Zero(2, 2))>);
static_assert(!has_view<Eigen::MatrixXf> && !has_view<const Eigen::MatrixXf>);
static_assert(!has_view<Eigen::ArrayXf> && !has_view<Eigen::Ref<const Eigen::MatrixXf>>);
static_assert(has_view<Eigen::Ref<Eigen::MatrixXf>>);
// A class that is derived from one of them is one of them.
struct host_matrix : Eigen::MatrixXf {};
static_assert(std::is_same_v<view_of_t<host_matrix&>, tensor_view<float, 2>>);
static_assert(!has_view<host_matrix>);
static_assert(!has_view<float> && !has_view<std::vector<float>&> && !has_view<float*>);

/// True if both have the same elements at the same addresses.
template <class T, class M>
bool shows(const tensor_view<T, 2>& view, M& matrix) {
    bool same = view.extent(0) == matrix.rows() && view.extent(1) == matrix.cols();
    for_each_position(view.extents(), [&](const position<2>& at) {
        same = same && &element(view, at) == &matrix.coeffRef(at[0], at[1]);
    });
    return same;
}
template <class T, class M>
bool shows(const tensor_view<T, 1>& view, M& vector) {
    bool same = view.extent(0) == vector.size();
    for_each_position(view.extents(), [&](const position<1>& at) {
        same = same && &element(view, at) == &vector.coeffRef(at[0]);
    });
    return same;
}
template <class M>
bool is_shown(M&& matrix) {
    return shows(view_of(matrix), matrix);
}

} // namespace

TEST_CASE("matrices, arrays and vectors of either order and of fixed or dynamic size") {
    Eigen::MatrixXf columns(5, 7);
    row_matrix rows(5, 7);
    Eigen::Matrix<double, 3, 4> fixed_columns;
    Eigen::Matrix<double, 3, 4, Eigen::RowMajor> fixed_rows;
    Eigen::Matrix<float, 1, 1> one;
    Eigen::Array<int, Eigen::Dynamic, 4, Eigen::RowMajor> array(6, 4);
    Eigen::VectorXf column(9);
    Eigen::RowVectorXd row(9);
    CHECK(is_shown(columns));
    CHECK(is_shown(rows));
    CHECK(is_shown(fixed_columns));
    CHECK(is_shown(fixed_rows));
    CHECK(is_shown(one));
    CHECK(is_shown(array));
    CHECK(is_shown(column));
    CHECK(is_shown(row));
    CHECK(view_of(rows).is_contiguous());
    CHECK(view_of(columns).strides() == std::array<index_t, 2>{1, 5});
    CHECK(view_of(std::as_const(columns)).data() == columns.data());
}

TEST_CASE("maps with outer and inner strides, fixed and dynamic, also negative and 0") {
    std::vector<float> memory(400);
    float* const data = memory.data() + 200;
    using Eigen::Map;
    CHECK(is_shown(Map<Eigen::MatrixXf>(data, 4, 5)));
    CHECK(is_shown(Map<row_matrix, 0, Eigen::OuterStride<>>(data, 4, 5, Eigen::OuterStride<>(9))));
    CHECK(is_shown(
        Map<Eigen::MatrixXf, 0, Eigen::OuterStride<>>(data, 4, 5, Eigen::OuterStride<>(9))));
    CHECK(is_shown(Map<Eigen::MatrixXf, 0, Eigen::InnerStride<2>>(data, 4, 5)));
    CHECK(is_shown(Map<row_matrix, 0, strides>(data, 4, 5, strides(17, 3))));
    CHECK(is_shown(Map<Eigen::MatrixXf, 0, strides>(data, 4, 5, strides(17, 3))));
    CHECK(is_shown(Map<row_matrix, 0, strides>(data, 4, 5, strides(-17, -3))));
    CHECK(is_shown(Map<row_matrix, 0, strides>(data, 4, 5, strides(0, 1))));
    CHECK(is_shown(Map<Eigen::Matrix<float, 4, 5>, 0, Eigen::Stride<12, 2>>(data)));
    CHECK(
        is_shown(Map<Eigen::VectorXf, 0, Eigen::InnerStride<>>(data, 6, Eigen::InnerStride<>(4))));
    CHECK(is_shown(
        Map<Eigen::RowVectorXf, 0, Eigen::InnerStride<>>(data, 6, Eigen::InnerStride<>(-4))));
}

TEST_CASE("parts of matrices, whose temporary objects own nothing") {
    Eigen::MatrixXf columns(6, 8);
    row_matrix rows(6, 8);
    const auto check_parts = [](auto& m) {
        CHECK(is_shown(m.block(1, 2, 3, 4)));
        CHECK(is_shown(m.template block<2, 3>(4, 5)));
        CHECK(is_shown(m.middleRows(2, 3)));
        CHECK(is_shown(m.rightCols(2)));
        CHECK(is_shown(m.row(3)));
        CHECK(is_shown(m.col(3)));
        CHECK(is_shown(m.row(1).segment(2, 3)));
        CHECK(is_shown(m.block(1, 2, 3, 4).col(1).tail(2)));
        CHECK(is_shown(m.array()));
        const auto transpose = view_of(m.transpose());
        CHECK(shows(transpose.transpose(0, 1), m));
        auto diagonal = m.diagonal(1);
        CHECK(is_shown(diagonal));
        // A temporary itself, not only one with a name.
        CHECK(view_of(m.row(3)).data() == &m(3, 0));
        CHECK(view_of(m.leftCols(3)).extents() == std::array<index_t, 2>{6, 3});
    };
    check_parts(columns);
    check_parts(rows);
}

TEST_CASE("Ref as functions take it, whatever it is made from") {
    const auto of_ref = [](Eigen::Ref<Eigen::MatrixXf> m) { return view_of(m); };
    const auto of_strided = [](Eigen::Ref<Eigen::MatrixXf, 0, strides> m) { return view_of(m); };
    const auto of_const = [](const Eigen::Ref<const Eigen::MatrixXf>& m) { return view_of(m); };
    Eigen::MatrixXf m(6, 8);
    auto block = m.block(1, 2, 3, 4);
    CHECK(shows(of_ref(m), m));
    CHECK(shows(of_ref(block), block));
    CHECK(shows(of_strided(block), block));
    CHECK(shows(of_const(block), block));
    row_matrix rows(6, 8);
    auto transposed = rows.transpose();
    CHECK(shows(of_ref(transposed).transpose(0, 1), rows));
}

TEST_CASE("a matrix without elements has an absent view") {
    Eigen::MatrixXf none;
    Eigen::VectorXf no_vector;
    CHECK(view_of(none).absent());
    CHECK(view_of(no_vector).absent());
}

TEST_CASE("views as maps, in every layout, and back") {
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_buffer<float, 2> matrix({4, 5}, order);
        guarded_buffer<double, 1> vector({6}, order);
        random_source(1).fill(matrix.view());
        random_source(2).fill(vector.view());
        auto map = map_of(matrix.view());
        auto vector_map = map_of(vector.view());
        CHECK(shows(matrix.view(), map));
        CHECK(shows(vector.view(), vector_map));
        CHECK(view_of(map).extents() == matrix.view().extents());
        CHECK(view_of(map).strides() == matrix.view().strides());
        CHECK(view_of(vector_map).strides() == vector.view().strides());

        // Eigen reads and writes what the view says, and nothing round it.
        const auto before = copy_as<float>(matrix.view());
        const Eigen::MatrixXf copy = map_of(matrix.const_view());
        CHECK(compare_bitwise(as_const(matrix.view()), view_of(copy)));
        map.row(2).array() += 1.0F;
        vector_map *= 2.0;
        CHECK(matrix.view()(2, 4) == before(2, 4) + 1.0F);
        CHECK(matrix.view()(3, 4) == before(3, 4));
        CHECK(matrix.intact());
        CHECK(vector.intact());
    }
    static_assert(std::is_same_v<decltype(view_of(map_of(tensor_view<const float, 2>{}))),
                                 tensor_view<const float, 2>>);
    static_assert(std::is_same_v<decltype(view_of(map_of(tensor_view<const double, 1>{}))),
                                 tensor_view<const double, 1>>);
}

TEST_CASE("Eigen's 16-bit classes have the bits of their element types") {
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto stored = static_cast<std::uint16_t>(bits);
        const auto half = Eigen::numext::bit_cast<Eigen::half>(stored);
        const auto brain = Eigen::numext::bit_cast<Eigen::bfloat16>(stored);
        const auto same = [](double a, float b) {
            return (std::isnan(a) && std::isnan(b)) ||
                   !(a < static_cast<double>(b) || a > static_cast<double>(b));
        };
        const const_tensor_ref<1> of_half(&half, {1}), of_brain(&brain, {1});
        REQUIRE(same(element(of_half, {0}), static_cast<float>(half)));
        REQUIRE(same(element(of_brain, {0}), static_cast<float>(brain)));
    }
}

TEST_CASE("every view is a tensor whose type is that of the elements") {
    Eigen::MatrixXf floats(2, 3);
    Eigen::Matrix<Eigen::half, 2, 3> halves;
    const Eigen::Matrix<Eigen::bfloat16, 2, 3> brains;
    const Eigen::MatrixXd doubles(2, 3);
    const auto is = [](const const_tensor_ref<2>& ref, element_type type, const void* data) {
        return ref.type() == type && ref.data() == data &&
               ref.extents() == std::array<index_t, 2>{2, 3} &&
               ref.strides() == std::array<index_t, 2>{1, 2};
    };
    CHECK(is(view_of(floats), element_type::f32, floats.data()));
    CHECK(is(view_of(halves), element_type::f16, halves.data()));
    CHECK(is(view_of(brains), element_type::bf16, brains.data()));
    CHECK(is(view_of(doubles), element_type::f64, doubles.data()));
    static_assert(std::is_convertible_v<view_of_t<Eigen::MatrixXf&>, tensor_ref<2>>);
    static_assert(!std::is_convertible_v<view_of_t<const Eigen::MatrixXf&>, tensor_ref<2>>);
    // And back.
    const tensor_ref<2> ref = view_of(floats);
    CHECK(map_of(ref.as<float>()).data() == floats.data());
}

namespace {

/// LoRA on matrices of Eigen's, and what Eigen makes of the formula in doubles.
template <class X, class P, class Y>
comparison lora_on_matrices(const error_bound& bound) {
    constexpr index_t rows = 7, in = 11, out = 13, rank = 3;
    constexpr double scale = 0.5;
    const auto random = [](index_t n, index_t m, std::uint64_t seed) {
        Eigen::MatrixXd matrix(n, m);
        random_source(seed).fill(view_of(matrix));
        return matrix;
    };
    const Eigen::Matrix<X, -1, -1> x = random(rows, in, 1).template cast<X>();
    const Eigen::Matrix<P, -1, -1> a = random(in, rank, 2).template cast<P>();
    const Eigen::Matrix<P, -1, -1> b_transposed = random(out, rank, 3).template cast<P>();
    Eigen::Matrix<Y, -1, -1, Eigen::RowMajor> y = random(rows, out, 4).template cast<Y>();
    const auto doubles = [](const auto& matrix) -> Eigen::MatrixXd {
        return matrix.template cast<double>();
    };
    const Eigen::MatrixXd ab = doubles(a) * doubles(b_transposed).transpose();
    const Eigen::MatrixXd want = doubles(y) + scale * doubles(x) * ab;
    const Eigen::MatrixXd magnitude =
        doubles(y).cwiseAbs() + scale * doubles(x).cwiseAbs() * doubles(a).cwiseAbs() *
                                    doubles(b_transposed).transpose().cwiseAbs();

    batch_plan plan;
    plan.assign_single_task(rows);
    const lora adapter{view_of(a), view_of(b_transposed.transpose()), scale};
    using sums = std::conditional_t<std::is_same_v<X, double>, double, float>;
    Eigen::Matrix<sums, -1, -1, Eigen::RowMajor> hidden(rows, rank);
    lora_forward({plan}, adapter, view_of(x), view_of(y), {view_of(hidden)});
    return compare(const_tensor_ref<2>(view_of(y)), view_of(want), view_of(magnitude), bound);
}

} // namespace

TEST_CASE("LoRA on Eigen's matrices is what Eigen makes of the formula") {
    constexpr double terms = 11 + 3;
    CHECK(lora_on_matrices<double, double, double>(within(element_type::f64, terms)));
    CHECK(lora_on_matrices<float, float, float>(within(element_type::f32, terms)));
    CHECK(lora_on_matrices<Eigen::bfloat16, Eigen::half, float>(within(element_type::f32, terms)));
    CHECK(lora_on_matrices<float, float, Eigen::half>(within(element_type::f32, terms)));
}
