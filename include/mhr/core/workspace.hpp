#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Scratch memory: the caller owns it, a kernel cuts it up, nothing is allocated in between.

namespace mhr {

/// Alignment of everything taken from a workspace: a cache line, and the widest vector register.
inline constexpr std::size_t workspace_alignment = 64;

/// A bump allocator over the caller's memory. A default-constructed one has no memory: it hands out
/// null pointers and counts, so that the same code lays memory out and tells how much it needs.
class workspace {
  public:
    /// Has no memory and counts only.
    workspace() noexcept = default;

    /// Cuts up `bytes` bytes at `memory`, of any alignment.
    MHR_INLINE workspace(void* memory, std::size_t bytes) noexcept
        : memory_(static_cast<std::byte*>(memory)), capacity_(bytes) {}

    /// Takes a contiguous row-major view of uninitialised elements. There must be room: the entry
    /// points check with `argument_checks::workspace_size` beforehand.
    template <class T, std::size_t Rank>
    [[nodiscard]] MHR_INLINE tensor_view<T, Rank>
    take(const std::array<index_t, Rank>& extents) noexcept {
        return {static_cast<T*>(take_bytes(extents.data(), Rank, sizeof(T))), extents};
    }

    /// Takes elements of an element type.
    template <std::size_t Rank>
    [[nodiscard]] MHR_INLINE tensor_ref<Rank>
    take(element_type type, const std::array<index_t, Rank>& extents) noexcept {
        return {take_bytes(extents.data(), Rank, size_of(type)), type, extents};
    }

    /// Takes a tensor whose rows (of the last dimension) begin at multiples of the alignment, and
    /// are never a multiple of 2 KiB apart: such rows would share the sets of a cache, so that a
    /// kernel could not keep many of them side by side.
    /// @{
    template <class T, std::size_t Rank>
    [[nodiscard]] MHR_INLINE tensor_view<T, Rank>
    take_rows(const std::array<index_t, Rank>& extents) noexcept {
        const tensor_view<T, Rank> rows = take<T, Rank>(padded<Rank>(extents, sizeof(T)));
        return {rows.data(), extents, rows.strides()};
    }
    template <std::size_t Rank>
    [[nodiscard]] MHR_INLINE tensor_ref<Rank>
    take_rows(element_type type, const std::array<index_t, Rank>& extents) noexcept {
        const tensor_ref<Rank> rows = take<Rank>(type, padded<Rank>(extents, size_of(type)));
        return {rows.data(), type, extents, rows.strides()};
    }
    /// @}

    /// Returns the bytes taken so far, padding included (the largest number if that overflowed).
    [[nodiscard]] MHR_INLINE std::size_t used() const noexcept { return used_; }

    /// Returns the bytes of the memory that are not taken yet.
    [[nodiscard]] MHR_INLINE std::size_t available() const noexcept { return capacity_ - used_; }

  private:
    static constexpr std::size_t largest = (std::numeric_limits<std::size_t>::max)();
    MHR_INLINE static constexpr std::size_t product(std::size_t a, std::size_t b) noexcept {
        return a != 0 && b > largest / a ? largest : a * b;
    }
    MHR_INLINE static constexpr std::size_t sum(std::size_t a, std::size_t b) noexcept {
        return b > largest - a ? largest : a + b;
    }

    MHR_INLINE void* take_bytes(const index_t* extents, std::size_t rank,
                                std::size_t element_size) noexcept {
        std::size_t bytes = element_size;
        for (std::size_t axis = 0; axis < rank; ++axis)
            bytes = product(bytes, static_cast<std::size_t>(extents[axis]));
        // Room for the alignment is counted always: the size told must not depend on the address.
        used_ = sum(used_, sum(bytes, workspace_alignment));
        if (memory_ == nullptr) return nullptr;
        std::byte* const start = memory_ + (used_ - bytes);
        return start - reinterpret_cast<std::uintptr_t>(start) % workspace_alignment;
    }

    /// Returns the extents with longer rows.
    template <std::size_t Rank>
    MHR_INLINE static std::array<index_t, Rank> padded(std::array<index_t, Rank> extents,
                                                       std::size_t element_size) noexcept {
        constexpr index_t set_period = 32;
        const auto line = static_cast<index_t>(workspace_alignment / element_size);
        index_t& columns = extents[Rank - 1];
        index_t lines = columns / line + (columns % line != 0);
        if (lines != 0 && lines % set_period == 0) lines += set_period / 2;
        // Longer ones do not fit a memory as they are.
        if (lines <= (std::numeric_limits<index_t>::max)() / line) columns = lines * line;
        return extents;
    }

    std::byte* memory_ = nullptr;
    std::size_t capacity_ = 0;
    std::size_t used_ = 0;
};

/// A workspace with memory of its own, for hosts that have no arena: grows when told to, never in a
/// kernel.
class owned_workspace {
  public:
    /// Has no memory until `reserve` is called.
    owned_workspace() = default;

    /// Allocates `bytes` bytes.
    MHR_INLINE explicit owned_workspace(std::size_t bytes) : memory_(bytes) {}

    /// Makes room for `bytes`; what was taken before becomes invalid.
    MHR_INLINE void reserve(std::size_t bytes) {
        if (bytes > memory_.size()) memory_.resize(bytes);
    }

    /// Returns the bytes of the memory.
    [[nodiscard]] MHR_INLINE std::size_t size() const noexcept { return memory_.size(); }

    /// Returns a fresh workspace over the whole memory.
    MHR_INLINE operator workspace() noexcept {
        return {memory_.data(), memory_.size()};
    } // NOLINT: implicit

  private:
    std::vector<std::byte> memory_{};
};

} // namespace mhr
