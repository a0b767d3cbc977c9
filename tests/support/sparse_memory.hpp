#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <string>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#define MHR_TEST_SPARSE_MEMORY 1
#else
#define MHR_TEST_SPARSE_MEMORY 0
#endif

#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>

#include "support/element_access.hpp"
#include "support/positions.hpp"

/// \file
/// Addresses without memory behind them: tensors far larger than the machine's memory, of which a
/// test touches a few pages.

namespace mhr::test {

/// So many bytes of zeros, of which only those pages take memory that are written. Without as many
/// addresses, `data()` is null.
class sparse_memory {
  public:
    explicit sparse_memory(std::size_t bytes) : bytes_(bytes) {
#if MHR_TEST_SPARSE_MEMORY
        void* const start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start != MAP_FAILED) data_ = static_cast<std::byte*>(start);
#endif
    }
    sparse_memory(const sparse_memory&) = delete;
    sparse_memory& operator=(const sparse_memory&) = delete;
    ~sparse_memory() {
#if MHR_TEST_SPARSE_MEMORY
        if (data_ != nullptr) munmap(data_, bytes_);
#endif
    }

    [[nodiscard]] std::byte* data() const {
        return data_;
    }
    [[nodiscard]] std::size_t size() const {
        return bytes_;
    }

    /// Why tests of far memory cannot run here; empty if they can.
    static std::string missing() {
#if MHR_TEST_SPARSE_MEMORY
        // Those tests take so many bytes at a time.
        constexpr std::uintmax_t wanted = std::uintmax_t{1} << 40;
        if (MHR_TEST_EMULATED != 0) return "skipped: emulators keep books of every page, in memory";
        if (wanted > std::numeric_limits<std::size_t>::max()) return "skipped: 32 bits";
        if (sparse_memory(static_cast<std::size_t>(wanted)).data() != nullptr) return "";
        return "skipped: no terabyte of addresses (ulimit -v, or overcommit_memory of 2)";
#else
        return "skipped: no mmap";
#endif
    }

  private:
    std::byte* data_ = nullptr;
    std::size_t bytes_;
};

/// A tensor in sparse memory of its own, of any strides that are not negative.
template <std::size_t Rank>
class sparse_tensor {
  public:
    sparse_tensor(const tensor_axes<Rank>& axes, element_type type)
        : memory_(bytes_of(type, axes)), ref_(axes, memory_.data(), type) {
        if (memory_.data() == nullptr) throw std::bad_alloc();
    }
    /// Contiguous, row-major.
    sparse_tensor(element_type type, const std::array<index_t, Rank>& extents)
        : sparse_tensor(tensor_axes<Rank>::row_major(extents), type) {}

    [[nodiscard]] const tensor_ref<Rank>& ref() const { return ref_; }
    operator tensor_ref<Rank>() const { return ref_; }       // NOLINT: implicit
    operator const_tensor_ref<Rank>() const { return ref_; } // NOLINT: implicit

  private:
    static std::size_t bytes_of(element_type type, const tensor_axes<Rank>& axes) {
        index_t elements = 1;
        for (std::size_t axis = 0; axis < Rank; ++axis)
            elements += (axes.extents[axis] - 1) * axes.strides[axis];
        return static_cast<std::size_t>(elements) * size_of(type);
    }

    sparse_memory memory_;
    tensor_ref<Rank> ref_;
};

/// Sets all elements of a tensor to those of another.
template <std::size_t Rank>
void copy_elements_of(const const_tensor_ref<Rank>& from, const tensor_ref<Rank>& to) {
    for_each_position(to.extents(),
                      [&](const position<Rank>& at) { set_element(to, at, element(from, at)); });
}

} // namespace mhr::test
