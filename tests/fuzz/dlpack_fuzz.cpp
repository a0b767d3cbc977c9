// The input is a DLTensor, field by field: see tensor_bits. What it is refused for is decided here
// in wider integers.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <mhr/core/argument_checks.hpp>
#include <mhr/hosts/dlpack.hpp>

#include "fuzz/fuzz_target.hpp"
#include "support/versioned_dlpack.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

__extension__ using wide = __int128;

constexpr std::size_t most_axes = 4;

/// As many axes as a tensor may say that it has.
constexpr std::size_t axes_there = 64;

/// What an input says. Where there is one good value, the number is how far off it is, so that
/// zeros are good.
struct tensor_bits {
    std::array<std::int64_t, most_axes> shape;
    std::array<std::int64_t, most_axes> strides;
    std::uint64_t byte_offset;
    std::uint64_t flags; ///< of the versioned structure
    std::uint32_t version;
    std::int32_t device;
    std::int32_t axes;
    std::uint16_t lanes;
    std::uint8_t code;
    std::uint8_t bits;
    std::uint8_t element; ///< which type is asked for
    std::uint8_t rank;  ///< and which rank, from 1; so many axes are there unless `axes` says more
    std::uint8_t null;  ///< bits: 1 shape, 2 strides, 4 data
    std::uint8_t begin; ///< of the data, in bytes from the middle of the memory
};

constexpr std::size_t memory_size = 4096;

/// Integers, or elements whose type is data: float stands for all of those.
template <class T>
constexpr bool is_integer = std::is_integral_v<T>;

/// What an input is imported as, and the same to be read only.
template <class T, std::size_t Rank>
using imported_as = std::conditional_t<is_integer<T>, tensor_view<T, Rank>, tensor_ref<Rank>>;
template <class T, std::size_t Rank>
using imported_as_const =
    std::conditional_t<is_integer<T>, tensor_view<const T, Rank>, const_tensor_ref<Rank>>;

template <class T, std::size_t Rank, class Tensor>
imported_as<T, Rank> import(const Tensor& tensor) {
    if constexpr (is_integer<T>)
        return dlpack::view_of<T, Rank>(tensor, "tensor");
    else
        return dlpack::ref_of<Rank>(tensor, "tensor");
}
template <class T, std::size_t Rank, class Tensor>
imported_as_const<T, Rank> import_const(const Tensor& tensor) {
    if constexpr (is_integer<T>)
        return dlpack::view_of<const T, Rank>(tensor, "tensor");
    else
        return dlpack::const_ref_of<Rank>(tensor, "tensor");
}

/// One input as a tensor of memory that is there, of this type if nothing is off.
template <class T, std::size_t Rank>
class imported {
  public:
    imported(const tensor_bits& bits, const DLDataType& good) : bits_(bits), good_(good) {
        shape_.fill(1);
        std::copy(bits.shape.begin(), bits.shape.end(), shape_.begin());
        std::copy(bits.strides.begin(), bits.strides.end(), strides_.begin());
        DLTensor& tensor = managed.dl_tensor;
        tensor.data = (bits.null & 4) != 0 ? nullptr : middle() + bits.begin;
        const auto device = static_cast<std::int32_t>(static_cast<std::uint32_t>(bits.device) +
                                                      std::uint32_t{kDLCPU});
        std::memcpy(&tensor.device.device_type, &device, sizeof device);
        tensor.ndim = static_cast<std::int32_t>(static_cast<std::uint32_t>(bits.axes) +
                                                static_cast<std::uint32_t>(Rank));
        tensor.dtype.code = static_cast<std::uint8_t>(good.code + bits.code);
        tensor.dtype.bits = static_cast<std::uint8_t>(good.bits + bits.bits);
        tensor.dtype.lanes = static_cast<std::uint16_t>(good.lanes + bits.lanes);
        tensor.shape = (bits.null & 1) != 0 ? nullptr : shape_.data();
        tensor.strides = (bits.null & 2) != 0 ? nullptr : strides_.data();
        tensor.byte_offset = bits.byte_offset;
        managed.version.major = 1 + bits.version;
        managed.flags = bits.flags;
    }
    imported(const imported&) = delete; // the tensor points into it
    imported& operator=(const imported&) = delete;

    void check() {
        imported_as<T, Rank> ref;
        const bool is_good = accepted([&] { ref = import <T, Rank>(managed.dl_tensor); });
        judge();
        must(!is_good || allowed_, "what is refused is refused");
        must(is_good || !comfortable_, "what is good is accepted");
        must(is_good == accepted([&] { (void)import_const<T, Rank>(managed.dl_tensor); }),
             "what may be written may be read");
        const bool is_version = managed.version.major == 1;
        must(accepted([&] { (void)import_const<T, Rank>(managed); }) == (is_good && is_version),
             "a managed tensor is good if its tensor and version are");
        must(accepted([&] { (void)import <T, Rank>(managed); }) ==
                 (is_good && is_version && (managed.flags & 1) == 0),
             "a read-only tensor is not written to");
        if (!is_good) return;
        ++good_inputs;
        check_elements(ref.axes(), ref.data());
        must(ref.absent() == (elements_ == 0 && managed.dl_tensor.data == nullptr),
             "a tensor without elements and memory is absent, no other");
        if constexpr (!is_integer<T>) check_type(ref);
        check_return<DLManagedTensor>(ref);
        check_return<versioned_dlpack>(ref);
        check_return<versioned_dlpack>(imported_as_const<T, Rank>(ref));
    }

  private:
    [[nodiscard]] std::byte* middle() const { return memory_.get() + memory_size / 2; }

    [[nodiscard]] std::size_t count() const {
        return static_cast<std::size_t>(managed.dl_tensor.ndim);
    }

    /// Whether the type is one that is asked for: for elements, any of the four.
    [[nodiscard]] bool has_good_type() const {
        const DLDataType& type = managed.dl_tensor.dtype;
        if (type.lanes != 1) return false;
        if (is_integer<T>) return type.code == good_.code && type.bits == good_.bits;
        return (type.code == kDLFloat && (type.bits == 16 || type.bits == 32 || type.bits == 64)) ||
               (type.code == kDLBfloat && type.bits == 16);
    }

    /// How far from the first element the others lie, in elements, and whether the leading axes are
    /// one.
    void judge() {
        const DLTensor& tensor = managed.dl_tensor;
        allowed_ = bits_.device == 0 && tensor.ndim >= 1 &&
                   tensor.ndim <= static_cast<int>(axes_there) && tensor.shape != nullptr &&
                   has_good_type();
        comfortable_ = false;
        if (!allowed_) return;
        size_ = tensor.dtype.bits / 8U;
        constexpr wide most = std::numeric_limits<index_t>::max();
        // Beyond it, wide numbers would overflow, too; nothing is allowed there.
        constexpr wide far = wide(1) << 100;
        elements_ = 1;
        for (std::size_t axis = 0; axis < count(); ++axis)
            if (shape_[axis] < 0) {
                allowed_ = false;
                return;
            } else if (shape_[axis] == 0) {
                elements_ = 0;
            }
        const bool empty = elements_ == 0;
        bool even = true;
        wide dense = 1;
        wide next_stride = 0; // of the merged axis; 0 before its first stride is known
        bool merging = false;
        for (std::size_t axis = count(); axis-- > 0;) {
            const wide extent = shape_[axis];
            const wide stride = tensor.strides != nullptr ? wide(strides_[axis]) : dense;
            dense = std::min(far / std::max<wide>(extent, 1), dense) * extent;
            if (!empty) elements_ = std::min(far / extent, elements_) * extent;
            if (extent <= 1) continue;
            const wide size = stride < 0 ? -stride : stride;
            const wide reach = size > far / extent ? far : size * (extent - 1);
            (stride < 0 ? low_ : high_) += stride < 0 ? -reach : reach;
            if (axis + Rank > count()) continue; // it stays an axis
            even = even && (!merging || stride == next_stride);
            merging = true;
            next_stride = size > far / extent ? far : stride * extent;
        }
        const wide address = reinterpret_cast<std::uintptr_t>(tensor.data);
        const wide first = address + wide(bits_.byte_offset);
        const bool inside = first <= wide(std::numeric_limits<std::uintptr_t>::max());
        const bool aligned = tensor.data == nullptr || first % wide(size_) == 0;
        allowed_ = inside && aligned && (empty || (tensor.data != nullptr && even));
        const auto bytes = static_cast<wide>(size_);
        if (!empty)
            allowed_ = allowed_ && (high_ - low_) * bytes <= most && elements_ * bytes <= most;
        comfortable_ = allowed_ && even && high_ - low_ < most / bytes / 2 &&
                       dense < most / bytes / 2 && elements_ < most / bytes / 2;
    }

    void check_type(const tensor_ref<Rank>& ref) const {
        const bool brain = managed.dl_tensor.dtype.code == kDLBfloat;
        must(size_of(ref.type()) == size_ && (ref.type() == element_type::bf16) == brain,
             "the type is that of the elements");
    }

    /// Where all elements lie in the memory, each is where the standard says, in their order.
    void check_elements(const tensor_axes<Rank>& axes, const void* data) {
        const DLTensor& tensor = managed.dl_tensor;
        if (count() == Rank)
            for (std::size_t axis = 0; axis < Rank; ++axis)
                must(axes.extents[axis] == shape_[axis] &&
                         (tensor.strides == nullptr || shape_[axis] <= 1 ||
                          axes.strides[axis] == strides_[axis]),
                     "axes that are not merged stay as they are");
        if (elements_ == 0 || elements_ > 512) return;
        must(wide(axes.size()) == elements_, "no element is lost");
        const auto first = reinterpret_cast<std::uintptr_t>(tensor.data) + bits_.byte_offset;
        const auto begin = reinterpret_cast<std::uintptr_t>(memory_.get());
        const auto bytes = static_cast<wide>(size_);
        if (wide(first) + low_ * bytes < wide(begin) ||
            wide(first) + (high_ + 1) * bytes > wide(begin + memory_size))
            return;
        std::vector<std::int64_t> dense(axes_there);
        std::int64_t stride = 1;
        for (std::size_t axis = count(); axis-- > 0; stride *= shape_[axis])
            dense[axis] = stride;
        const auto expected = offsets(
            shape_.data(), tensor.strides != nullptr ? strides_.data() : dense.data(), count());
        auto actual = offsets(axes.extents.data(), axes.strides.data(), Rank);
        must(reinterpret_cast<std::uintptr_t>(data) == first && actual == expected,
             "an element lies where its strides say");
        for (const std::int64_t offset : actual)
            touch(static_cast<const std::byte*>(data) + offset * static_cast<std::int64_t>(size_),
                  size_);
        std::sort(actual.begin(), actual.end());
        const bool apart = std::adjacent_find(actual.begin(), actual.end()) == actual.end();
        argument_checks checks("fuzz");
        checks.output("tensor", tensor_ref<Rank>(axes, middle(), element_type::f32),
                      argument_checks::any_extents<Rank>());
        must(apart || !checks.passed(), "no output has two elements at one address");
    }

    /// The offsets of all elements, the last axis first.
    template <class Number>
    static std::vector<std::int64_t> offsets(const Number* extents, const Number* strides,
                                             std::size_t axes) {
        std::vector<std::int64_t> all;
        std::vector<std::int64_t> at(axes);
        for (;;) {
            wide offset = 0;
            for (std::size_t axis = 0; axis < axes; ++axis)
                offset += wide(at[axis]) * strides[axis];
            all.push_back(static_cast<std::int64_t>(offset));
            std::size_t axis = axes;
            while (axis-- > 0) {
                if (++at[axis] < extents[axis]) break;
                at[axis] = 0;
            }
            if (axis > axes) return all; // all of them are at their end
        }
    }

    /// Out, and in again.
    template <class Managed, class Ref>
    void check_return(const Ref& ref) {
        constexpr bool is_const = std::is_same_v<Ref, imported_as_const<T, Rank>>;
        const auto owner = std::make_shared<int>();
        auto tensor = dlpack::managed_of<Managed>(ref, owner);
        must(owner.use_count() == 2, "an exported tensor keeps its owner");
        const auto back = import_const<T, Rank>(*tensor);
        must(back.extents() == ref.extents(), "an exported tensor comes back");
        for (std::size_t axis = 0; axis < Rank; ++axis)
            must(back.extent(axis) == 1 || back.stride(axis) == ref.stride(axis),
                 "an exported tensor comes back");
        must(back.data() == (elements_ == 0 ? nullptr : ref.data()),
             "an exported tensor comes back where it was");
        must(accepted([&] { (void)import <T, Rank>(*tensor); }) == !is_const,
             "constant elements do not come back as others");
        tensor.reset();
        must(owner.use_count() == 1, "a deleted tensor leaves its owner");
    }

    versioned_dlpack managed{};
    tensor_bits bits_;
    DLDataType good_;
    std::array<std::int64_t, axes_there> shape_{}, strides_{};
    std::unique_ptr<std::byte[]> memory_{new std::byte[memory_size]()};
    bool allowed_ = false;     ///< it may be accepted
    bool comfortable_ = false; ///< and must be: no number is near its limit
    std::size_t size_ = 0;     ///< bytes of an element
    wide elements_ = 0, low_ = 0, high_ = 0;
};

template <class T>
void check_rank(const tensor_bits& bits, std::uint8_t code, std::uint8_t size) {
    const DLDataType good{code, size, 1};
    switch (bits.rank % most_axes) {
    case 0:
        return imported<T, 1>(bits, good).check();
    case 1:
        return imported<T, 2>(bits, good).check();
    case 2:
        return imported<T, 3>(bits, good).check();
    default:
        return imported<T, 4>(bits, good).check();
    }
}

std::string as_text(const tensor_bits& bits) {
    std::string text(sizeof bits, '\0');
    std::memcpy(&text[0], &bits, sizeof bits);
    return text;
}

} // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    tensor_bits bits{};
    if (size != 0) std::memcpy(&bits, data, std::min(size, sizeof bits));
    switch (bits.element % 7) {
    case 0:
        check_rank<float>(bits, kDLFloat, 32);
        break;
    case 1:
        check_rank<float>(bits, kDLFloat, 64);
        break;
    case 2:
        check_rank<float>(bits, kDLFloat, 16);
        break;
    case 3:
        check_rank<float>(bits, kDLBfloat, 16);
        break;
    case 4:
        check_rank<std::int64_t>(bits, kDLInt, 64);
        break;
    case 5:
        check_rank<std::int32_t>(bits, kDLInt, 32);
        break;
    default:
        check_rank<std::uint8_t>(bits, kDLUInt, 8);
    }
    return 0;
}

std::vector<std::string> mhr::test::fuzz_seeds() {
    std::vector<std::string> seeds;
    for (std::uint8_t element = 0; element < 7; ++element)
        for (std::uint8_t rank = 0; rank < most_axes; ++rank) {
            tensor_bits bits{};
            bits.element = element;
            bits.rank = rank;
            bits.shape = {2, 3, 2, 2};
            bits.strides = {12, 4, -2, 1};
            bits.byte_offset = 16;
            seeds.push_back(as_text(bits));
            bits.null = 2;
            seeds.push_back(as_text(bits));
            if (rank + 1U < most_axes) { // the leading axes become one
                bits.axes = static_cast<std::int32_t>(most_axes) - rank - 1;
                seeds.push_back(as_text(bits));
                bits.axes = 0;
            }
            bits.null = 6;
            bits.shape[0] = 0;
            seeds.push_back(as_text(bits));
        }
    return seeds;
}
