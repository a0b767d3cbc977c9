#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/hosts/dlpack.hpp>

#include "support/bad_views.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/versioned_dlpack.hpp"

using namespace mhr;
using namespace mhr::test;
using mhr::dlpack::const_ref_of;
using mhr::dlpack::managed_of;
using mhr::dlpack::owned;
using mhr::dlpack::ref_of;
using mhr::dlpack::view_of;

namespace {

static_assert(!std::is_copy_constructible_v<owned<>>);
static_assert(std::is_nothrow_move_constructible_v<owned<>>);
// A tensor that may only be read does not become one that may be written.
static_assert(std::is_same_v<decltype(const_ref_of<2>(std::declval<const DLTensor&>())),
                             const_tensor_ref<2>>);
static_assert(
    std::is_same_v<decltype(ref_of<3>(std::declval<const DLManagedTensor&>())), tensor_ref<3>>);

// By the standard's text, not by ours.
DLDataType standard_type(element_type type) {
    switch (type) {
    case element_type::f32:
        return {kDLFloat, 32, 1};
    case element_type::f64:
        return {kDLFloat, 64, 1};
    case element_type::bf16:
        return {kDLBfloat, 16, 1};
    case element_type::f16:
        return {kDLFloat, 16, 1};
    }
    return {};
}
template <class T>
DLDataType standard_integer() {
    if (std::is_same_v<T, std::int64_t>) return {kDLInt, 64, 1};
    if (std::is_same_v<T, std::int32_t>) return {kDLInt, 32, 1};
    if (std::is_same_v<T, std::uint8_t>) return {kDLUInt, 8, 1};
    return {};
}

/// The shape and strides that a DLTensor points to.
struct described {
    std::vector<std::int64_t> shape, strides;
    DLTensor tensor{};

    template <std::size_t Rank>
    described(const tensor_axes<Rank>& axes, const void* data, const DLDataType& type)
        : shape(axes.extents.begin(), axes.extents.end()),
          strides(axes.strides.begin(), axes.strides.end()) {
        tensor.data = const_cast<void*>(data);
        tensor.device = {kDLCPU, 0};
        tensor.ndim = static_cast<int>(Rank);
        tensor.dtype = type;
        tensor.shape = shape.data();
        tensor.strides = strides.data();
    }
    template <std::size_t Rank>
    explicit described(const const_tensor_ref<Rank>& ref)
        : described(ref.axes(), ref.data(), standard_type(ref.type())) {}
    described(const described&) = delete; // the tensor points into it
    described& operator=(const described&) = delete;

    void set(const std::vector<std::int64_t>& new_shape,
             const std::vector<std::int64_t>& new_strides) {
        shape = new_shape;
        strides = new_strides;
        tensor.ndim = static_cast<int>(shape.size());
        tensor.shape = shape.data();
        tensor.strides = strides.empty() ? nullptr : strides.data();
    }
};

template <class V, class W, std::size_t Rank>
bool same(const basic_tensor_ref<V, Rank>& a, const basic_tensor_ref<W, Rank>& b) {
    return a.data() == b.data() && a.type() == b.type() && a.extents() == b.extents() &&
           a.strides() == b.strides();
}
template <class T, class S, std::size_t Rank>
bool same(const tensor_view<T, Rank>& a, const tensor_view<S, Rank>& b) {
    return a.data() == b.data() && a.extents() == b.extents() && a.strides() == b.strides();
}

/// Writes a device's number into memory, also one that the enumeration has no name for.
void set_device(DLTensor& tensor, std::int32_t device) {
    std::memcpy(&tensor.device.device_type, &device, sizeof device);
}

int deleted = 0;

template <class Managed>
void count(Managed* self) {
    ++deleted;
    delete self;
}

} // namespace

TEST_CASE("tensors of every type and layout are those of the library") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(name_of(type));
            CAPTURE(name_of(order));
            guarded_tensor<3> memory(type, {2, 3, 4}, order);
            const described of(memory.const_ref());
            CHECK(same(ref_of<3>(of.tensor), memory.ref()));
            CHECK(same(const_ref_of<3>(of.tensor), memory.const_ref()));
        }
}

TEST_CASE_TEMPLATE("integers of every layout are views", T, std::int64_t, std::int32_t,
                   std::uint8_t) {
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_buffer<T, 2> buffer({2, 3}, order);
        const described of(buffer.view().axes(), buffer.view().data(), standard_integer<T>());
        CHECK(dlpack::holds<T>(of.tensor));
        CHECK(dlpack::holds<const T>(of.tensor));
        CHECK(dlpack::holds<std::int16_t>(of.tensor) == false);
        CHECK(same(view_of<T, 2>(of.tensor), buffer.view()));
        CHECK(same(view_of<const T, 2>(of.tensor), buffer.const_view()));
        CHECK(refuses("dlpack::const_ref_of", "x", [&] { const_ref_of<2>(of.tensor, "x"); }));
    }
}

TEST_CASE("a tensor may begin at a byte_offset, and have no strides or repeated elements") {
    std::array<float, 24> memory{};
    const tensor_ref<2> ref(memory.data(), {4, 6});
    described of{const_tensor_ref<2>(ref)};
    of.set({4, 6}, {});
    CHECK(same(ref_of<2>(of.tensor), ref));
    of.set({2, 6}, {6, 1});
    of.tensor.byte_offset = 12 * sizeof(float);
    CHECK(same(ref_of<2>(of.tensor), ref.block(0, 2, 2)));
    of.set({2, 6}, {0, -1});
    CHECK(same(ref_of<2>(of.tensor), tensor_ref<2>{&memory[12], {2, 6}, {0, -1}}));
}

TEST_CASE("a tensor may have another number of axes, which is known at run time") {
    std::array<float, 60> memory{};
    described of{const_tensor_ref<2>(memory.data(), {4, 6})};
    const auto is = [&](const auto& ref, const auto& extents, const auto& strides) {
        return ref.data() == memory.data() && ref.extents() == extents && ref.strides() == strides;
    };
    using axes2 = std::array<index_t, 2>;
    // Sequences of rows: evenly spaced rows, whether strides are given or not.
    of.set({2, 3, 5}, {});
    CHECK(is(ref_of<2>(of.tensor), axes2{6, 5}, axes2{5, 1}));
    of.set({2, 3, 5}, {24, 8, 1});
    CHECK(is(ref_of<2>(of.tensor), axes2{6, 5}, axes2{8, 1}));
    CHECK(refuses("dlpack::ref_of", "x", [&] { ref_of<1>(of.tensor, "x"); }));
    of.set({2, 3, 5}, {30, 8, 1}); // a gap between the sequences
    CHECK(refuses("dlpack::ref_of", "x", [&] { ref_of<2>(of.tensor, "x"); }));
    CHECK_NOTHROW(ref_of<3>(of.tensor));
    of.set({7}, {2});
    CHECK(is(ref_of<2>(of.tensor), axes2{1, 7}, axes2{0, 2}));
    // A tensor may have so many axes, but not one more.
    of.set(std::vector<std::int64_t>(64, 1), {});
    CHECK(ref_of<1>(of.tensor).extent(0) == 1);
    of.set(std::vector<std::int64_t>(65, 1), {});
    CHECK(refuses("dlpack::ref_of", "x", [&] { ref_of<1>(of.tensor, "x"); }));
    // Task ids, too.
    std::array<std::int32_t, 6> ids{};
    described of_ids(tensor_axes<2>::row_major({2, 3}), ids.data(),
                     standard_integer<std::int32_t>());
    CHECK(view_of<const std::int32_t, 1>(of_ids.tensor).extent(0) == 6);
}

TEST_CASE("a tensor without elements needs no memory, and is absent") {
    described of{const_tensor_ref<2>(nullptr, element_type::f32, {0, 6})};
    of.tensor.byte_offset = 8;
    CHECK(ref_of<2>(of.tensor).absent());
    of.tensor.strides = nullptr;
    CHECK(ref_of<2>(of.tensor).absent());
    CHECK(const_ref_of<1>(of.tensor).absent());
}

TEST_CASE("tensors that are none of ours are refused") {
    std::array<float, 24> memory{};
    const tensor_view<float, 2> good(memory.data(), {4, 6});
    const auto refused = [&](auto&& spoil) {
        described of{const_tensor_ref<2>(good)};
        spoil(of);
        const auto to_write = refuses("dlpack::ref_of", "x", [&] { ref_of<2>(of.tensor, "x"); });
        const auto to_read =
            refuses("dlpack::const_ref_of", "x", [&] { const_ref_of<2>(of.tensor, "x"); });
        CHECK(to_write.ok == to_read.ok);
        return to_write;
    };
    CHECK_FALSE(refused([](described&) {}));

    for (std::int32_t device : {0, 2, 3, 10, 11, 13, 100, -1, 0x10001}) {
        CAPTURE(device);
        CHECK(refused([&](described& of) { set_device(of.tensor, device); }));
    }
    const DLDataType types[] = {
        {kDLFloat, 8, 1}, {kDLFloat, 32, 2},  {kDLFloat, 32, 0},        {kDLInt, 32, 1},
        {kDLUInt, 32, 1}, {kDLBfloat, 32, 1}, {kDLComplex, 64, 1},      {kDLFloat, 128, 1},
        {kDLInt, 16, 1},  {kDLUInt, 16, 1},   {kDLOpaqueHandle, 16, 1}, {255, 255, 65535},
    };
    for (const DLDataType& type : types) {
        CAPTURE(dlpack::dlpack_details::text_of(type));
        CHECK(refused([&](described& of) { of.tensor.dtype = type; }));
    }
    for (int ndim : {0, -1, 65, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()}) {
        CAPTURE(ndim);
        CHECK(refused([&](described& of) { of.tensor.ndim = ndim; }));
    }
    CHECK(refused([](described& of) { of.tensor.shape = nullptr; }));
    CHECK(refused([](described& of) { of.tensor.data = nullptr; }));
    // Misaligned, and beyond all memory.
    CHECK(refused([](described& of) { of.tensor.byte_offset = 1; }));
    CHECK(refused([](described& of) {
        of.tensor.byte_offset = std::numeric_limits<std::uint64_t>::max() - 3;
    }));
    for (const auto& bad : bad_inputs(good))
        CHECK(refused([&](described& of) {
            of.tensor.data = bad.data();
            of.set({bad.extents().begin(), bad.extents().end()},
                   {bad.strides().begin(), bad.strides().end()});
        }));
    // More elements than there can be, whether strides are given or made, and wherever they are.
    constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min();
    constexpr std::int64_t many = std::int64_t{1} << 32;
    for (const bool strides : {true, false}) {
        const auto has_shape = [&](const std::vector<std::int64_t>& shape) {
            return refused([&](described& of) {
                of.set(shape, strides ? std::vector<std::int64_t>(shape.size(), 0)
                                      : std::vector<std::int64_t>{});
            });
        };
        CHECK(has_shape({many, many}));
        CHECK(has_shape({many, many, 1}));
        CHECK(has_shape({many, 1, many, 2}));
        CHECK(has_shape({4, least}));
        CHECK(has_shape({least, 4, 4}));
        CHECK(has_shape({-1, -4, 4}));
        CHECK(has_shape({-1}));
    }
    // Numbers that wrap round to the ones that are evenly spaced.
    CHECK(refused([](described& of) { of.set({2, 2, 1}, {0, least, 1}); }));
    CHECK(refused([](described& of) { of.set({2, 2, 1}, {least, std::int64_t{1} << 62, 1}); }));
}

TEST_CASE("messages say what a tensor holds") {
    described of{const_tensor_ref<1>(nullptr, element_type::f32, {0})};
    const auto message = [&] {
        return refuses("dlpack::view_of", "x", [&] { view_of<std::uint8_t, 1>(of.tensor, "x"); })
            .message;
    };
    CHECK(message() == "dlpack::view_of: x: expected elements uint8, got float32");
    of.tensor.dtype = {17, 4, 2};
    CHECK(message() ==
          "dlpack::view_of: x: expected elements uint8, got code 17 of bits 4 in lanes of 2");
    CHECK(refuses("dlpack::ref_of", "x", [&] { ref_of<1>(of.tensor, "x"); }).message ==
          "dlpack::ref_of: x: expected elements float32, float64, float16 or bfloat16, got code 17 "
          "of bits 4 in lanes of 2");
    set_device(of.tensor, 2);
    CHECK(message() ==
          "dlpack::view_of: x: expected memory of the CPU (device type 1), got device type 2");
}

TEST_CASE("tensors made of random bits are refused or are good") {
    random_source random(1);
    std::array<double, 64> memory{};
    // Now a number that makes sense, now one of any bits.
    const auto any_bits = [&] {
        return static_cast<std::int64_t>(
            (static_cast<std::uint64_t>(random.integer(1 << 30)) << 34) ^
            (static_cast<std::uint64_t>(random.integer(1 << 30)) << 17) ^
            static_cast<std::uint64_t>(random.integer(1 << 30)));
    };
    const auto number = [&](std::int64_t likely) {
        return random.integer(12) == 0 ? any_bits() : likely;
    };
    int good = 0;
    int refused = 0;
    int merged = 0;
    for (int i = 0; i < 20000; ++i) {
        // Up to four axes; as many numbers are there as any tensor may say that it has.
        std::array<std::int64_t, 64> shape{}, strides{};
        for (std::size_t axis = 0; axis < 4; ++axis) {
            shape[axis] = number(random.integer(4));
            strides[axis] = number(random.integer(5) - 2);
        }
        DLTensor tensor{};
        tensor.data = random.integer(9) == 0 ? nullptr : memory.data() + 32;
        set_device(tensor, static_cast<std::int32_t>(number(kDLCPU)));
        tensor.ndim = static_cast<int>(number(random.integer(4) == 0 ? 4 : 3));
        tensor.dtype = standard_type(element_type::f64);
        tensor.dtype.bits = static_cast<std::uint8_t>(number(64));
        tensor.shape = random.integer(20) == 0 ? nullptr : shape.data();
        tensor.strides = random.integer(3) == 0 ? nullptr : strides.data();
        tensor.byte_offset = static_cast<std::uint64_t>(number(8 * random.integer(2)));
        try {
            const auto ref = ref_of<3>(tensor);
            ++good;
            argument_checks checks("f");
            checks.input("x", const_tensor_ref<3>(ref));
            CHECK(checks.passed());
            if (tensor.ndim != 3) {
                ++merged;
                continue;
            }
            CHECK(ref.extents() == std::array<index_t, 3>{shape[0], shape[1], shape[2]});
            if (tensor.strides != nullptr)
                for (std::size_t axis = 0; axis < 3; ++axis)
                    CHECK((ref.extent(axis) == 1 || ref.stride(axis) == strides[axis]));
        } catch (const error&) {
            ++refused;
        }
    }
    CHECK(good > 1000);
    CHECK(merged > 100);
    CHECK(refused > 1000);
}

TEST_CASE("an owner deletes its tensor once, wherever it was moved") {
    deleted = 0;
    {
        auto* const made = new DLManagedTensor{};
        made->deleter = count<DLManagedTensor>;
        owned<> first(made);
        owned<> second = std::move(first);
        CHECK(first == nullptr);
        CHECK(deleted == 0);
    }
    CHECK(deleted == 1);
    {
        auto* const made = new versioned_dlpack{};
        made->deleter = count<versioned_dlpack>;
        const owned<versioned_dlpack> only(made);
    }
    CHECK(deleted == 2);

    // The standard allows tensors that nobody has to delete.
    DLManagedTensor undeletable{};
    const owned<> of_nothing(&undeletable);
}

TEST_CASE("a tensor goes out and comes back, of every type and in every layout") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(name_of(type));
            CAPTURE(name_of(order));
            guarded_tensor<4> memory(type, {2, 3, 2, 4}, order);
            const auto plain = managed_of(memory.ref(), nullptr);
            const DLTensor& tensor = plain->dl_tensor;
            CHECK(tensor.device.device_type == kDLCPU);
            CHECK(tensor.device.device_id == 0);
            CHECK(tensor.ndim == 4);
            CHECK(tensor.byte_offset == 0);
            CHECK(tensor.dtype.code == standard_type(type).code);
            CHECK(tensor.dtype.bits == standard_type(type).bits);
            CHECK(tensor.dtype.lanes == 1);
            CHECK(same(ref_of<4>(*plain), memory.ref()));

            const auto modern = managed_of<versioned_dlpack>(memory.ref(), nullptr);
            CHECK(modern->version.major == 1);
            CHECK(modern->flags == 0);
            CHECK(same(ref_of<4>(*modern), memory.ref()));
        }
}

TEST_CASE("typed views go out as tensors or as integers") {
    std::array<std::int64_t, 6> ids{};
    const tensor_view<std::int64_t, 2> numbers(ids.data(), {2, 3});
    const auto of_ids = managed_of(numbers, nullptr);
    CHECK(same(view_of<std::int64_t, 2>(*of_ids), numbers));
    std::array<float, 6> memory{};
    const tensor_view<float, 2> view(memory.data(), {2, 3});
    CHECK(same(ref_of<2>(*managed_of(view, nullptr)), tensor_ref<2>(view)));
    for (const auto& bad : bad_inputs(numbers))
        CHECK(refuses("dlpack::managed_of", "numbers", [&] { (void)managed_of(bad, nullptr); }));
}

TEST_CASE("what goes out lives as long as its tensor") {
    std::weak_ptr<std::vector<float>> watched;
    DLManagedTensor* abroad = nullptr;
    {
        auto memory = std::make_shared<std::vector<float>>(6, 1.5F);
        watched = memory;
        const tensor_ref<2> ref(memory->data(), {2, 3});
        abroad = managed_of(ref, std::move(memory)).release();
    }
    CHECK_FALSE(watched.expired());
    CHECK(element(const_ref_of<2>(*abroad), {1, 2}) == 1.5);
    owned<>(abroad).reset();
    CHECK(watched.expired());

    // A vector itself, moved into the tensor, keeps its elements where they are.
    std::vector<double> vector(4, 2.5);
    const tensor_ref<1> ref(vector.data(), {4});
    const auto of_vector = managed_of<versioned_dlpack>(ref, std::move(vector));
    CHECK(element(ref_of<1>(*of_vector), {3}) == 2.5);
    CHECK(ref_of<1>(*of_vector).data() == ref.data());

    // If the tensor is refused, its owner goes as well.
    auto memory = std::make_shared<std::vector<float>>(6);
    watched = memory;
    for (const tensor_ref<2> bad : bad_inputs(tensor_view<float, 2>(memory->data(), {2, 3})))
        CHECK(refuses("dlpack::managed_of", "tensor", [&] { (void)managed_of(bad, memory); }));
    memory.reset();
    CHECK(watched.expired());
}

TEST_CASE("constant elements go out as read-only, and do not come back as others") {
    std::array<float, 6> memory{};
    const const_tensor_ref<2> ref(memory.data(), {2, 3});
    const auto of_memory = managed_of<versioned_dlpack>(ref, nullptr);
    CHECK(of_memory->flags == 1);
    CHECK(same(const_ref_of<2>(*of_memory, "x"), ref));
    CHECK(refuses("dlpack::ref_of", "x", [&] { ref_of<2>(*of_memory, "x"); }));
    // Other flags change nothing: a copy made for the importer may be written to.
    of_memory->flags = 6;
    CHECK_NOTHROW(ref_of<2>(*of_memory, "x"));
    // Integers likewise.
    const std::array<std::int32_t, 3> ids{};
    const tensor_view<const std::int32_t, 1> view(ids.data(), {3});
    const auto of_ids = managed_of<versioned_dlpack>(view, nullptr);
    CHECK(same(view_of<const std::int32_t, 1>(*of_ids, "x"), view));
    CHECK(refuses("dlpack::view_of", "x", [&] { view_of<std::int32_t, 1>(*of_ids, "x"); }));
}

TEST_CASE("another major version is refused, another minor version is not") {
    std::array<float, 6> memory{};
    const auto of_memory =
        managed_of<versioned_dlpack>(tensor_ref<2>(memory.data(), {2, 3}), nullptr);
    of_memory->version.minor = 7;
    CHECK_NOTHROW(ref_of<2>(*of_memory, "x"));
    for (std::uint32_t major : {0U, 2U, 0xffffffffU}) {
        of_memory->version.major = major;
        CHECK(refuses("dlpack::const_ref_of", "x", [&] { const_ref_of<2>(*of_memory, "x"); }));
        CHECK(refuses("dlpack::ref_of", "x", [&] { ref_of<2>(*of_memory, "x"); }));
    }
}

TEST_CASE("a tensor without elements goes out with null data") {
    float value = 0;
    const auto none = managed_of(tensor_ref<2>(&value, {3, 0}), nullptr);
    CHECK(none->dl_tensor.data == nullptr);
    CHECK(none->dl_tensor.shape[0] == 3);
    CHECK(none->dl_tensor.shape[1] == 0);
    CHECK(ref_of<2>(*none).absent());
    const auto absent = managed_of(tensor_ref<2>{}, nullptr);
    CHECK(ref_of<2>(*absent).absent());
    // The elements of no rows may be too many to count.
    constexpr index_t many = std::numeric_limits<index_t>::max();
    const auto counted = managed_of(tensor_ref<3>(&value, {many, many, 0}, {0, 0, 0}), nullptr);
    CHECK(ref_of<3>(*counted).absent());
    CHECK(ref_of<2>(*counted).absent());
}
