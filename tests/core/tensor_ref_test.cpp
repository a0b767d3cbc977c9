#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/tensor_ref.hpp>

#include "support/element_access.hpp"
#include "support/guarded_tensor.hpp"
#include "support/positions.hpp"

using namespace mhr;
using namespace mhr::test;

using axes2 = tensor_axes<2>;
using array2 = std::array<index_t, 2>;

// Hosts copy them into their own structures, and pass them by value.
static_assert(std::is_trivially_copyable_v<tensor_ref<3>>);
static_assert(std::is_trivially_destructible_v<const_tensor_ref<3>>);
static_assert(std::is_standard_layout_v<tensor_ref<3>>);
static_assert(std::is_standard_layout_v<const_tensor_ref<3>>);
static_assert(std::is_nothrow_default_constructible_v<tensor_ref<3>>);
static_assert(sizeof(tensor_ref<2>) == sizeof(void*) + 5 * sizeof(index_t));

// A typed view of the same rank is a tensor; what may be written may be read.
static_assert(std::is_convertible_v<tensor_view<float, 2>, tensor_ref<2>>);
static_assert(std::is_convertible_v<tensor_view<float, 2>, const_tensor_ref<2>>);
static_assert(std::is_convertible_v<tensor_view<const bf16, 2>, const_tensor_ref<2>>);
static_assert(std::is_convertible_v<tensor_ref<2>, const_tensor_ref<2>>);
static_assert(std::is_assignable_v<const_tensor_ref<2>&, tensor_ref<2>>);

// Constant elements stay constant, and ranks are kept.
static_assert(!std::is_constructible_v<tensor_ref<2>, const_tensor_ref<2>>);
static_assert(!std::is_assignable_v<tensor_ref<2>&, const_tensor_ref<2>>);
static_assert(!std::is_constructible_v<tensor_ref<2>, tensor_view<const float, 2>>);
static_assert(!std::is_constructible_v<tensor_ref<2>, const float*, array2>);
static_assert(!std::is_constructible_v<tensor_ref<2>, const float*, array2, array2>);
static_assert(!std::is_constructible_v<tensor_ref<2>, const void*, element_type, array2>);
static_assert(!std::is_constructible_v<tensor_ref<2>, const void*, element_type, array2, array2>);
static_assert(!std::is_constructible_v<tensor_ref<2>, axes2, const void*, element_type>);
static_assert(!std::is_constructible_v<const_tensor_ref<2>, tensor_ref<3>>);
static_assert(!std::is_constructible_v<const_tensor_ref<3>, tensor_view<float, 2>>);
static_assert(std::is_constructible_v<const_tensor_ref<2>, const float*, array2>);
static_assert(std::is_constructible_v<const_tensor_ref<2>, float*, array2>);
static_assert(std::is_constructible_v<tensor_ref<2>, float*, array2, array2>);

// Untyped memory needs its type, and nothing else is one.
static_assert(!std::is_constructible_v<tensor_ref<2>, void*, array2>);
static_assert(!std::is_constructible_v<const_tensor_ref<2>, const void*, array2>);
static_assert(!std::is_constructible_v<const_tensor_ref<2>, void*, array2, array2>);
static_assert(!std::is_constructible_v<tensor_ref<1>, float*>);
static_assert(!std::is_constructible_v<tensor_ref<1>, std::nullptr_t>);
static_assert(!std::is_convertible_v<float*, tensor_ref<1>>);
static_assert(!std::is_constructible_v<tensor_ref<2>, void*, int, array2>);

// They are made and moved about at compile time.
constexpr float constants[] = {0, 1, 2, 3, 4, 5};
constexpr const_tensor_ref<2> table(constants, {2, 3});
static_assert(table.type() == element_type::f32 && table.size() == 6 && !table.absent());
static_assert(table.is_contiguous() && table.extent(1) == 3 && table.stride(0) == 3);
static_assert(table.transpose(0, 1).extent(0) == 3 && table.split(1, 3).extent(2) == 1);
static_assert(table.prepend_axis().extent(0) == 1);
static_assert(tensor_ref<2>{}.absent() && const_tensor_ref<1>{}.absent());

namespace {

// A function as hosts call them.
struct seen {
    const void* data;
    element_type type;
    array2 extents, strides;
};
seen look(const const_tensor_ref<2>& x) {
    return {x.data(), x.type(), x.extents(), x.strides()};
}
seen look_at_output(const tensor_ref<2>& y) {
    return {y.data(), y.type(), y.extents(), y.strides()};
}
bool same(const seen& s, const void* data, element_type type, array2 extents, array2 strides) {
    return s.data == data && s.type == type && s.extents == extents && s.strides == strides;
}

template <class Ref, class View>
bool same_axes(const Ref& ref, const View& view) {
    return ref.data() == view.data() && ref.extents() == view.extents() &&
           ref.strides() == view.strides() && ref.size() == view.size() &&
           ref.absent() == view.absent() && ref.is_contiguous() == view.is_contiguous();
}

// Every method beside that of the typed view of the same memory.
template <class T, class Ref>
void check_against_view(const Ref& ref) {
    const auto view = ref.template as<T>();
    CHECK(ref.type() == element_type_of_v<T>);
    CHECK(same_axes(ref, view));
    CHECK(ref.axes().extents == view.axes().extents);
    for (std::size_t axis = 0; axis < 3; ++axis) {
        CHECK(ref.extent(axis) == view.extent(axis));
        CHECK(ref.stride(axis) == view.stride(axis));
        for (index_t i = 0; i < ref.extent(axis); ++i) {
            CHECK(same_axes(ref.slice(axis, i), view.slice(axis, i)));
            CHECK(same_axes(ref.block(axis, i, 1), view.block(axis, i, 1)));
            CHECK(ref.slice(axis, i).type() == ref.type());
            CHECK(ref.block(axis, i, 1).type() == ref.type());
        }
        CHECK(same_axes(ref.block(axis, 0, 0), view.block(axis, 0, 0)));
        for (std::size_t other = 0; other < 3; ++other) {
            CHECK(same_axes(ref.transpose(axis, other), view.transpose(axis, other)));
            CHECK(ref.transpose(axis, other).type() == ref.type());
        }
        CHECK(same_axes(ref.split(axis, ref.extent(axis)), view.split(axis, ref.extent(axis))));
        CHECK(same_axes(ref.split(axis, 1), view.split(axis, 1)));
        CHECK(ref.split(axis, 1).type() == ref.type());
    }
    CHECK(same_axes(ref.split(1, 3), view.split(1, 3)));
    CHECK(same_axes(ref.prepend_axis(), view.prepend_axis()));
    CHECK(ref.prepend_axis().type() == ref.type());
    for_each_position(ref.extents(), [&](const position<3>& at) {
        CHECK(ref.address_of(at[0], at[1], at[2]) == &view(at[0], at[1], at[2]));
    });
}

template <class T>
void check_type() {
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_tensor<3> memory(element_type_of_v<T>, {2, 6, 5}, order);
        check_against_view<T>(memory.ref());
        check_against_view<T>(memory.const_ref());
        // From a view and back.
        const tensor_view<T, 3> view = memory.ref().template as<T>();
        const tensor_ref<3> back = view;
        const const_tensor_ref<3> to_read = as_const(view);
        CHECK(same_axes(back, view));
        CHECK(same_axes(to_read, view));
        CHECK(back.type() == element_type_of_v<T>);
        CHECK(to_read.type() == element_type_of_v<T>);
        static_assert(std::is_same_v<decltype(to_read.template as<T>()), tensor_view<const T, 3>>);
        static_assert(
            std::is_same_v<decltype(to_read.template as<const T>()), tensor_view<const T, 3>>);
        static_assert(std::is_same_v<decltype(back.template as<T>()), tensor_view<T, 3>>);
        static_assert(std::is_same_v<decltype(back.address_of(0, 0, 0)), void*>);
        static_assert(std::is_same_v<decltype(to_read.address_of(0, 0, 0)), const void*>);
        CHECK(memory.intact());
    }
}

} // namespace

TEST_CASE("a default tensor is absent, an empty one with memory is not") {
    float value = 7;
    CHECK(tensor_ref<3>{}.absent());
    CHECK(tensor_ref<3>{}.size() == 0);
    CHECK(tensor_ref<3>{}.data() == nullptr);
    CHECK(tensor_ref<2>(nullptr, element_type::bf16, {0, 5}).absent());
    CHECK_FALSE(tensor_ref<2>(nullptr, element_type::bf16, {1, 5}).absent());
    CHECK_FALSE(tensor_ref<2>(&value, {0, 5}).absent());
    CHECK_FALSE(tensor_ref<2>(&value, {1, 1}).absent());
    CHECK(tensor_ref<2>(tensor_view<float, 2>{}).absent());
    CHECK(const_tensor_ref<2>(tensor_ref<2>{}).absent());
    // It converts to an absent view, whatever the type.
    CHECK(tensor_ref<2>{}.as<double>().absent());
}

TEST_CASE("braces say what hosts have: memory, perhaps its type, extents, perhaps strides") {
    std::vector<float> x(12);
    std::vector<bf16> halves(12);
    std::vector<std::uint16_t> file(12);
    const std::vector<double> constant(12);
    const index_t rows = 3, in = 4;
    void* const untyped = file.data();
    CHECK(same(look({x.data(), {rows, in}}), x.data(), element_type::f32, {3, 4}, {4, 1}));
    CHECK(same(look({x.data(), {rows, 2}, {in, 1}}), x.data(), element_type::f32, {3, 2}, {4, 1}));
    CHECK(same(look({constant.data(), {rows, in}}), constant.data(), element_type::f64, {3, 4},
               {4, 1}));
    CHECK(
        same(look({halves.data(), {rows, in}}), halves.data(), element_type::bf16, {3, 4}, {4, 1}));
    CHECK(same(look({file.data(), element_type::f16, {rows, in}}), file.data(), element_type::f16,
               {3, 4}, {4, 1}));
    CHECK(same(look({untyped, element_type::bf16, {2, 2}, {-1, 3}}), untyped, element_type::bf16,
               {2, 2}, {-1, 3}));
    CHECK(same(look_at_output({file.data(), element_type::bf16, {rows, in}}), file.data(),
               element_type::bf16, {3, 4}, {4, 1}));
    CHECK(
        same(look_at_output({x.data(), {rows, in}}), x.data(), element_type::f32, {3, 4}, {4, 1}));
    CHECK(same(look({nullptr, element_type::f16, {0, 4}}), nullptr, element_type::f16, {0, 4},
               {4, 1}));
    CHECK(look({}).data == nullptr);
    CHECK(look_at_output({}).extents == array2{0, 0});
    CHECK(look(tensor_view<float, 2>(x.data(), {3, 4})).data == x.data());
}

TEST_CASE("every method is that of the typed view, in every layout and type") {
    check_type<float>();
    check_type<double>();
    check_type<bf16>();
    check_type<f16>();
}

TEST_CASE("tensors without memory or elements may be cut up") {
    const tensor_ref<2> absent;
    CHECK(absent.slice(0, 3).data() == nullptr);
    CHECK(absent.block(1, 2, 0).data() == nullptr);
    CHECK(absent.transpose(0, 1).absent());
    CHECK(absent.split(0, 2).absent());
    CHECK(absent.split(0, 0).absent());
    CHECK(absent.address_of(0, 0) == nullptr);
    CHECK(tensor_ref<2>(nullptr, element_type::f16, {3, 0}, {7, 1}).slice(0, 2).data() == nullptr);
}

TEST_CASE("strides count elements, of whatever size") {
    std::array<unsigned char, 64> bytes{};
    for (element_type type : all_element_types) {
        const tensor_ref<2> tensor(bytes.data() + 16, type, {2, 2}, {3, -1});
        const auto size = static_cast<index_t>(size_of(type));
        CHECK(static_cast<unsigned char*>(tensor.address_of(1, 1)) == bytes.data() + 16 + 2 * size);
        const tensor_ref<2> repeated(bytes.data(), type, {5, 5}, {0, 0});
        CHECK(repeated.address_of(4, 4) == bytes.data());
    }
}
