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

#include <mhr/interop/dlpack.hpp>

#include "support/bad_views.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/versioned_dlpack.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

static_assert(!std::is_copy_constructible_v<owned_dlpack<>>);
static_assert(std::is_nothrow_move_constructible_v<owned_dlpack<>>);

/// The shape and strides that a DLTensor points to.
struct described {
    std::vector<std::int64_t> shape, strides;
    DLTensor tensor{};

    template <class T, std::size_t Rank>
    described(const tensor_view<T, Rank>& view, const DLDataType& type)
        : shape(view.extents().begin(), view.extents().end()),
          strides(view.strides().begin(), view.strides().end()) {
        tensor.data = const_cast<std::remove_const_t<T>*>(view.data());
        tensor.device = {kDLCPU, 0};
        tensor.ndim = static_cast<int>(Rank);
        tensor.dtype = type;
        tensor.shape = shape.data();
        tensor.strides = strides.data();
    }
    described(const described&) = delete; // the tensor points into it
    described& operator=(const described&) = delete;
};

// By the standard's text, not by ours.
template <class T>
DLDataType standard_type() {
    if (std::is_same_v<T, double>) return {kDLFloat, 64, 1};
    if (std::is_same_v<T, float>) return {kDLFloat, 32, 1};
    if (std::is_same_v<T, Eigen::half>) return {kDLFloat, 16, 1};
    if (std::is_same_v<T, Eigen::bfloat16>) return {kDLBfloat, 16, 1};
    if (std::is_same_v<T, std::int64_t>) return {kDLInt, 64, 1};
    if (std::is_same_v<T, std::int32_t>) return {kDLInt, 32, 1};
    if (std::is_same_v<T, std::uint8_t>) return {kDLUInt, 8, 1};
    return {};
}

template <class T, std::size_t Rank>
bool same(const tensor_view<T, Rank>& a, const tensor_view<T, Rank>& b) {
    return a.data() == b.data() && a.extents() == b.extents() && a.strides() == b.strides();
}

/// What a device's number is in memory, also one that the enumeration has no name for.
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

TEST_CASE_TEMPLATE("tensors of every type and layout are views", T, MHR_TEST_STORAGE_TYPES,
                   std::int64_t, std::int32_t, std::uint8_t) {
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_buffer<T, 3> buffer({2, 3, 4}, order);
        const described of(buffer.view(), standard_type<T>());
        CHECK(holds<T>(of.tensor));
        CHECK(holds<const T>(of.tensor));
        CHECK(same(view_of<T, 3>(of.tensor), buffer.view()));
        CHECK(same(view_of<const T, 3>(of.tensor), buffer.const_view()));
    }
}

TEST_CASE("a tensor may begin at a byte_offset, and have no strides or repeated elements") {
    std::array<float, 24> memory{};
    const tensor_view<float, 2> view(memory.data(), {4, 6});
    described of(view, standard_type<float>());
    of.tensor.strides = nullptr;
    CHECK(same(view_of<float, 2>(of.tensor), view));
    of.tensor.strides = of.strides.data();
    of.shape = {2, 6};
    of.tensor.shape = of.shape.data();
    of.tensor.byte_offset = 12 * sizeof(float);
    CHECK(same(view_of<float, 2>(of.tensor), view.block(0, 2, 2)));
    of.strides = {0, -1};
    of.tensor.strides = of.strides.data();
    CHECK(same(view_of<float, 2>(of.tensor), {&memory[12], {2, 6}, {0, -1}}));
}

TEST_CASE("a tensor without elements needs no memory, and is absent") {
    described of(tensor_view<float, 2>(nullptr, {0, 6}), standard_type<float>());
    of.tensor.byte_offset = 8;
    CHECK(view_of<float, 2>(of.tensor).absent());
    of.tensor.strides = nullptr;
    CHECK(view_of<float, 2>(of.tensor).absent());
}

TEST_CASE("tensors that are no such view are refused") {
    std::array<float, 24> memory{};
    const tensor_view<float, 2> good(memory.data(), {4, 6});
    const auto refused = [&](auto&& spoil) {
        described of(good, standard_type<float>());
        spoil(of);
        return refuses("view_of", "x", [&] { view_of<float, 2>(of.tensor, "x"); });
    };
    CHECK_FALSE(refused([](described&) {}));

    for (std::int32_t device : {0, 2, 3, 10, 11, 13, 100, -1, 0x10001}) {
        CAPTURE(device);
        CHECK(refused([&](described& of) { set_device(of.tensor, device); }));
    }
    const DLDataType types[] = {{kDLFloat, 64, 1},  {kDLFloat, 16, 1},   {kDLFloat, 32, 2},
                                {kDLFloat, 32, 0},  {kDLInt, 32, 1},     {kDLUInt, 32, 1},
                                {kDLBfloat, 32, 1}, {kDLComplex, 32, 1}, {255, 255, 65535}};
    for (const DLDataType& type : types) {
        CAPTURE(detail::to_text(type));
        CHECK(refused([&](described& of) { of.tensor.dtype = type; }));
    }
    for (int ndim :
         {0, 1, 3, -1, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()}) {
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
            of.shape.assign(bad.extents().begin(), bad.extents().end());
            of.strides.assign(bad.strides().begin(), bad.strides().end());
        }));
    // More elements than there can be, whether strides are given or made.
    for (const bool strides : {true, false}) {
        CHECK(refused([&](described& of) {
            of.shape = {std::int64_t{1} << 32, std::int64_t{1} << 32};
            of.strides = {0, 0};
            of.tensor.shape = of.shape.data();
            of.tensor.strides = strides ? of.strides.data() : nullptr;
        }));
        CHECK(refused([&](described& of) {
            of.shape = {4, std::numeric_limits<std::int64_t>::min()};
            of.tensor.shape = of.shape.data();
            if (!strides) of.tensor.strides = nullptr;
        }));
    }
}

TEST_CASE("messages say what a tensor holds") {
    described of(tensor_view<float, 1>(nullptr, {0}), standard_type<float>());
    const auto message = [&] {
        return refuses("view_of", "x", [&] { view_of<Eigen::bfloat16, 1>(of.tensor, "x"); })
            .message;
    };
    CHECK(message() == "view_of: x: expected elements bfloat16, got float32");
    of.tensor.dtype = {17, 4, 2};
    CHECK(message() ==
          "view_of: x: expected elements bfloat16, got code 17 of bits 4 in lanes of 2");
    set_device(of.tensor, 2);
    CHECK(message() == "view_of: x: expected memory of the CPU (device type 1), got device type 2");
}

TEST_CASE("tensors made of random bits are refused or are good views") {
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
    for (int i = 0; i < 20000; ++i) {
        std::array<std::int64_t, 3> shape{}, strides{};
        for (auto& extent : shape)
            extent = number(random.integer(4));
        for (auto& stride : strides)
            stride = number(random.integer(5) - 2);
        DLTensor tensor{};
        tensor.data = random.integer(9) == 0 ? nullptr : memory.data() + 32;
        set_device(tensor, static_cast<std::int32_t>(number(kDLCPU)));
        tensor.ndim = static_cast<int>(number(3));
        tensor.dtype = standard_type<double>();
        tensor.dtype.bits = static_cast<std::uint8_t>(number(64));
        tensor.shape = random.integer(20) == 0 ? nullptr : shape.data();
        tensor.strides = random.integer(3) == 0 ? nullptr : strides.data();
        tensor.byte_offset = static_cast<std::uint64_t>(number(8 * random.integer(2)));
        try {
            const auto view = view_of<double, 3>(tensor);
            ++good;
            CHECK(view.extents() == std::array<index_t, 3>{shape[0], shape[1], shape[2]});
            if (tensor.strides != nullptr)
                CHECK(view.strides() == std::array<index_t, 3>{strides[0], strides[1], strides[2]});
            CHECK_NOTHROW(require_input("f", "x", view, {any_extent, any_extent, any_extent}));
        } catch (const error&) {
            ++refused;
        }
    }
    CHECK(good > 1000);
    CHECK(refused > 1000);
}

TEST_CASE("an owner deletes its tensor once, wherever it was moved") {
    deleted = 0;
    {
        auto* const made = new DLManagedTensor{};
        made->deleter = count<DLManagedTensor>;
        owned_dlpack<> first(made);
        owned_dlpack<> second = std::move(first);
        CHECK(first == nullptr);
        CHECK(deleted == 0);
    }
    CHECK(deleted == 1);
    {
        auto* const made = new versioned_dlpack{};
        made->deleter = count<versioned>;
        const owned_dlpack<versioned_dlpack> only(made);
    }
    CHECK(deleted == 2);

    // The standard allows tensors that nobody has to delete.
    DLManagedTensor undeletable{};
    const owned_dlpack<> of_nothing(&undeletable);
}

TEST_CASE_TEMPLATE("a view goes out and comes back, in every layout", T, MHR_TEST_STORAGE_TYPES,
                   std::int64_t) {
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_buffer<T, 4> buffer({2, 3, 1, 4}, order);
        const auto plain = to_dlpack(buffer.view(), nullptr);
        const DLTensor& tensor = plain->dl_tensor;
        CHECK(tensor.device.device_type == kDLCPU);
        CHECK(tensor.device.device_id == 0);
        CHECK(tensor.ndim == 4);
        CHECK(tensor.byte_offset == 0);
        CHECK(tensor.dtype.code == standard_type<T>().code);
        CHECK(tensor.dtype.bits == standard_type<T>().bits);
        CHECK(tensor.dtype.lanes == 1);
        CHECK(same(view_of<T, 4>(*plain), buffer.view()));

        const auto modern = to_dlpack<versioned_dlpack>(buffer.view(), nullptr);
        CHECK(modern->version.major == 1);
        CHECK(modern->flags == 0);
        CHECK(same(view_of<T, 4>(*modern), buffer.view()));
    }
}

TEST_CASE("what goes out lives as long as its tensor") {
    std::weak_ptr<std::vector<float>> watched;
    DLManagedTensor* abroad = nullptr;
    {
        auto memory = std::make_shared<std::vector<float>>(6, 1.5F);
        watched = memory;
        const tensor_view<float, 2> view(memory->data(), {2, 3});
        abroad = to_dlpack(view, std::move(memory)).release();
    }
    CHECK_FALSE(watched.expired());
    CHECK(view_of<const float, 2>(*abroad)(1, 2) == 1.5F);
    owned_dlpack<>(abroad).reset();
    CHECK(watched.expired());

    // A vector itself, moved into the tensor, keeps its elements where they are.
    std::vector<double> vector(4, 2.5);
    const tensor_view<double, 1> view(vector.data(), {4});
    const auto owned = to_dlpack<versioned_dlpack>(view, std::move(vector));
    CHECK(view_of<double, 1>(*owned)(3) == 2.5);
    CHECK(view_of<double, 1>(*owned).data() == view.data());

    // If the view is refused, its owner goes as well.
    auto memory = std::make_shared<std::vector<float>>(6);
    watched = memory;
    for (const auto& bad : bad_inputs(tensor_view<float, 2>(memory->data(), {2, 3})))
        CHECK(refuses("to_dlpack", "view", [&] { (void)to_dlpack(bad, memory); }));
    memory.reset();
    CHECK(watched.expired());
}

TEST_CASE("constant elements go out as read-only, and do not come back as others") {
    std::array<float, 6> memory{};
    const tensor_view<const float, 2> view(memory.data(), {2, 3});
    const auto owned = to_dlpack<versioned_dlpack>(view, nullptr);
    CHECK(owned->flags == 1);
    CHECK(same(view_of<const float, 2>(*owned, "x"), view));
    CHECK(refuses("view_of", "x", [&] { view_of<float, 2>(*owned, "x"); }));
    // Other flags change nothing: a copy made for the importer may be written to.
    owned->flags = 6;
    CHECK_NOTHROW(view_of<float, 2>(*owned, "x"));
}

TEST_CASE("another major version is refused, another minor version is not") {
    std::array<float, 6> memory{};
    const auto owned =
        to_dlpack<versioned_dlpack>(tensor_view<float, 2>(memory.data(), {2, 3}), nullptr);
    owned->version.minor = 7;
    CHECK_NOTHROW(view_of<float, 2>(*owned, "x"));
    for (std::uint32_t major : {0U, 2U, 0xffffffffU}) {
        owned->version.major = major;
        CHECK(refuses("view_of", "x", [&] { view_of<const float, 2>(*owned, "x"); }));
    }
}

TEST_CASE("a view without elements goes out with null data") {
    float value = 0;
    const auto owned = to_dlpack(tensor_view<float, 2>(&value, {3, 0}), nullptr);
    CHECK(owned->dl_tensor.data == nullptr);
    CHECK(owned->dl_tensor.shape[0] == 3);
    CHECK(owned->dl_tensor.shape[1] == 0);
    CHECK(view_of<float, 2>(*owned).absent());
    const auto absent = to_dlpack(tensor_view<float, 2>{}, nullptr);
    CHECK(view_of<float, 2>(*absent).absent());
    // The elements of no rows may be too many to count.
    constexpr index_t many = std::numeric_limits<index_t>::max();
    CHECK_NOTHROW(
        (void)to_dlpack(tensor_view<float, 3>(&value, {many, many, 0}, {0, 0, 0}), nullptr));
}
