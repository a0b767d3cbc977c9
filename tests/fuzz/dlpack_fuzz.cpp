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
#include <tuple>
#include <type_traits>
#include <vector>

#include <Eigen/Core>

#include <mhr/core/checks.hpp>
#include <mhr/interop/dlpack.hpp>

#include "fuzz/fuzz_target.hpp"
#include "support/versioned_dlpack.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

__extension__ using wide = __int128;

constexpr std::size_t most_axes = 4;

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
    std::uint8_t rank;    ///< and which rank, from 1
    std::uint8_t null;    ///< bits: 1 shape, 2 strides, 4 data
    std::uint8_t begin;   ///< of the data, in bytes from the middle of the memory
};

constexpr std::size_t memory_size = 4096;

template <class T>
constexpr DLDataType good_type() {
    if constexpr (std::is_same_v<T, Eigen::bfloat16>)
        return {kDLBfloat, 16, 1};
    else if constexpr (std::is_integral_v<T>)
        return {std::is_signed_v<T> ? kDLInt : kDLUInt, 8 * sizeof(T), 1};
    else
        return {kDLFloat, 8 * sizeof(T), 1};
}

/// One input as a tensor of memory that is there.
template <class T, std::size_t Rank>
class imported {
  public:
    explicit imported(const tensor_bits& bits) : bits_(bits) {
        shape_ = bits.shape;
        strides_ = bits.strides;
        DLTensor& tensor = managed.dl_tensor;
        tensor.data = (bits.null & 4) != 0 ? nullptr : middle() + bits.begin;
        const auto device = static_cast<std::int32_t>(static_cast<std::uint32_t>(bits.device) +
                                                      std::uint32_t{kDLCPU});
        std::memcpy(&tensor.device.device_type, &device, sizeof device);
        tensor.ndim = static_cast<std::int32_t>(static_cast<std::uint32_t>(bits.axes) +
                                                static_cast<std::uint32_t>(Rank));
        tensor.dtype = good_type<T>();
        tensor.dtype.code = static_cast<std::uint8_t>(tensor.dtype.code + bits.code);
        tensor.dtype.bits = static_cast<std::uint8_t>(tensor.dtype.bits + bits.bits);
        tensor.dtype.lanes = static_cast<std::uint16_t>(tensor.dtype.lanes + bits.lanes);
        tensor.shape = (bits.null & 1) != 0 ? nullptr : shape_.data();
        tensor.strides = (bits.null & 2) != 0 ? nullptr : strides_.data();
        tensor.byte_offset = bits.byte_offset;
        managed.version.major = 1 + bits.version;
        managed.flags = bits.flags;
    }
    imported(const imported&) = delete; // the tensor points into it
    imported& operator=(const imported&) = delete;

    void check() {
        tensor_view<T, Rank> view;
        const bool is_view =
            accepted([&] { view = view_of<T, Rank>(managed.dl_tensor, "tensor"); });
        judge();
        must(!is_view || allowed_, "what is refused is refused");
        must(is_view || !comfortable_, "what is good is accepted");
        const bool is_version = managed.version.major == 1;
        must(accepted([&] { (void)view_of<const T, Rank>(managed); }) == (is_view && is_version),
             "a managed tensor is good if its tensor and version are");
        must(accepted([&] { (void)view_of<T, Rank>(managed); }) ==
                 (is_view && is_version && (managed.flags & 1) == 0),
             "a read-only tensor is not written to");
        if (!is_view) return;
        ++good_inputs;
        check_view(view);
        check_return<DLManagedTensor, T>(view);
        check_return<versioned_dlpack, T>(view);
        check_return<versioned_dlpack, const T>(view);
    }

  private:
    [[nodiscard]] std::byte* middle() const { return memory_.get() + memory_size / 2; }

    /// How far from the first element the others lie, in elements.
    void judge() {
        const DLTensor& tensor = managed.dl_tensor;
        const auto good = good_type<T>();
        allowed_ = bits_.device == 0 && bits_.axes == 0 && tensor.shape != nullptr &&
                   tensor.dtype.code == good.code && tensor.dtype.bits == good.bits &&
                   tensor.dtype.lanes == good.lanes;
        comfortable_ = false;
        if (!allowed_) return;
        constexpr wide most = std::numeric_limits<index_t>::max();
        // Beyond it, wide numbers would overflow, too; nothing is allowed there.
        constexpr wide far = wide(1) << 100;
        elements_ = 1;
        for (std::size_t axis = 0; axis < Rank; ++axis)
            if (shape_[axis] < 0) {
                allowed_ = false;
                return;
            } else if (shape_[axis] == 0) {
                elements_ = 0;
            }
        const bool empty = elements_ == 0;
        wide dense = 1;
        for (std::size_t axis = Rank; axis-- > 0;) {
            const wide extent = shape_[axis];
            const wide stride = tensor.strides != nullptr ? wide(strides_[axis]) : dense;
            dense = std::min(far / std::max<wide>(extent, 1), dense) * extent;
            if (!empty) elements_ = std::min(far / extent, elements_) * extent;
            if (extent <= 1) continue;
            const wide size = stride < 0 ? -stride : stride;
            const wide reach = size > far / extent ? far : size * (extent - 1);
            (stride < 0 ? low_ : high_) += stride < 0 ? -reach : reach;
        }
        const wide address = reinterpret_cast<std::uintptr_t>(tensor.data);
        const wide first = address + wide(bits_.byte_offset);
        const bool inside = first <= wide(std::numeric_limits<std::uintptr_t>::max());
        const bool aligned = tensor.data == nullptr || first % alignof(T) == 0;
        allowed_ = inside && aligned && (empty || tensor.data != nullptr);
        const wide bytes = sizeof(T);
        if (!empty)
            allowed_ = allowed_ && (high_ - low_) * bytes <= most && elements_ * bytes <= most;
        comfortable_ = allowed_ && high_ - low_ < most / bytes / 2 && dense < most / bytes / 2 &&
                       elements_ < most / bytes / 2;
    }

    /// The view is the tensor; where all its elements lie in the memory, each is where the standard
    /// says.
    void check_view(const tensor_view<T, Rank>& view) {
        const DLTensor& tensor = managed.dl_tensor;
        index_t dense = 1;
        for (std::size_t axis = Rank; axis-- > 0;) {
            must(view.extent(axis) == shape_[axis], "a view has the tensor's extents");
            if (tensor.strides != nullptr)
                must(view.stride(axis) == strides_[axis], "a view has the tensor's strides");
            else if (elements_ != 0)
                must(view.stride(axis) == dense, "without strides, a tensor is row-major");
            if (elements_ != 0) dense *= shape_[axis];
        }
        must(view.absent() == (elements_ == 0 && tensor.data == nullptr),
             "a view without elements and memory is absent, no other");
        if (elements_ == 0 || elements_ > 512) return;
        const auto first = reinterpret_cast<std::uintptr_t>(tensor.data) + bits_.byte_offset;
        const auto begin = reinterpret_cast<std::uintptr_t>(memory_.get());
        if (wide(first) + low_ * wide(sizeof(T)) < wide(begin) ||
            wide(first) + (high_ + 1) * wide(sizeof(T)) > wide(begin + memory_size))
            return;
        std::vector<std::uintptr_t> addresses;
        for_each_index([&](const std::array<index_t, Rank>& at) {
            wide offset = 0;
            for (std::size_t axis = 0; axis < Rank; ++axis)
                offset += wide(at[axis]) * view.stride(axis);
            const T& element = std::apply([&](auto... i) -> T& { return view(i...); }, at);
            addresses.push_back(reinterpret_cast<std::uintptr_t>(&element));
            must(wide(addresses.back()) == wide(first) + offset * wide(sizeof(T)),
                 "an element lies where its strides say");
            touch(&element, sizeof element);
        });
        std::sort(addresses.begin(), addresses.end());
        const bool apart =
            std::adjacent_find(addresses.begin(), addresses.end()) == addresses.end();
        std::array<index_t, Rank> any;
        any.fill(any_extent);
        must(apart || !accepted([&] { require_output("fuzz", "view", view, any); }),
             "no output has two elements at one address");
    }

    template <class F>
    void for_each_index(F&& f) const {
        std::array<index_t, Rank> at{};
        for (;;) {
            f(at);
            std::size_t axis = Rank;
            while (axis-- > 0) {
                if (++at[axis] < shape_[axis]) break;
                at[axis] = 0;
            }
            if (axis > Rank) return; // all of them are at their end
        }
    }

    /// Out, and in again.
    template <class Managed, class E>
    void check_return(const tensor_view<E, Rank>& view) {
        const auto owner = std::make_shared<int>();
        auto tensor = to_dlpack<Managed>(view, owner);
        must(owner.use_count() == 2, "an exported tensor keeps its owner");
        const auto back = view_of<E, Rank>(*tensor);
        must(back.extents() == view.extents() && back.strides() == view.strides(),
             "an exported view comes back");
        must(back.data() == (elements_ == 0 ? nullptr : view.data()),
             "an exported view comes back where it was");
        if constexpr (std::is_const_v<E>)
            must(!accepted([&] { (void)view_of<T, Rank>(*tensor); }),
                 "constant elements do not come back as others");
        tensor.reset();
        must(owner.use_count() == 1, "a deleted tensor leaves its owner");
    }

    versioned_dlpack managed{};
    tensor_bits bits_;
    std::array<std::int64_t, most_axes> shape_, strides_;
    std::unique_ptr<std::byte[]> memory_{new std::byte[memory_size]()};
    bool allowed_ = false;     ///< it may be accepted
    bool comfortable_ = false; ///< and must be: no number is near its limit
    wide elements_ = 0, low_ = 0, high_ = 0;
};

template <class T>
void check_rank(const tensor_bits& bits) {
    switch (bits.rank % most_axes) {
    case 0:
        return imported<T, 1>(bits).check();
    case 1:
        return imported<T, 2>(bits).check();
    case 2:
        return imported<T, 3>(bits).check();
    default:
        return imported<T, 4>(bits).check();
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
        check_rank<float>(bits);
        break;
    case 1:
        check_rank<double>(bits);
        break;
    case 2:
        check_rank<Eigen::half>(bits);
        break;
    case 3:
        check_rank<Eigen::bfloat16>(bits);
        break;
    case 4:
        check_rank<std::int64_t>(bits);
        break;
    case 5:
        check_rank<std::int32_t>(bits);
        break;
    default:
        check_rank<std::uint8_t>(bits);
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
            bits.null = 6;
            bits.shape[0] = 0;
            seeds.push_back(as_text(bits));
        }
    return seeds;
}
