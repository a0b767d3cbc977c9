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

#include <mhr/core/checks.hpp>
#include <mhr/core/tensor_view.hpp>

#include "support/tensor.hpp"

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
        // As many as those tests take at a time.
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
template <class T, std::size_t Rank>
class sparse_tensor {
  public:
    explicit sparse_tensor(const tensor_view<T, Rank>& shape)
        : memory_(bytes_of(shape)), view_(static_cast<T*>(static_cast<void*>(memory_.data())),
                                          shape.extents(), shape.strides()) {
        if (memory_.data() == nullptr) throw std::bad_alloc();
    }
    /// Contiguous, row-major.
    explicit sparse_tensor(const std::array<index_t, Rank>& extents)
        : sparse_tensor(tensor_view<T, Rank>(nullptr, extents)) {}

    [[nodiscard]] const tensor_view<T, Rank>& view() const { return view_; }

  private:
    static std::size_t bytes_of(const tensor_view<T, Rank>& shape) {
        std::size_t reach = 1;
        for (std::size_t axis = 0; axis < Rank; ++axis)
            reach += static_cast<std::size_t>(
                mhr::detail::axis_reach(shape.extent(axis), shape.stride(axis)));
        return reach * sizeof(T);
    }

    sparse_memory memory_;
    tensor_view<T, Rank> view_;
};

} // namespace mhr::test
