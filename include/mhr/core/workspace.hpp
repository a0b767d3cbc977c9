#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <mhr/core/checks.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Scratch memory: the caller owns it, a kernel cuts it up, nothing is allocated in between.

namespace mhr {
inline namespace MHR_ISA {

/// Alignment of everything taken from a workspace: a cache line, and the widest vector register.
inline constexpr std::size_t workspace_alignment = 64;

/// A bump allocator over the caller's memory. A default-constructed one has no memory: it hands out
/// null pointers and counts, so that the same code lays memory out and tells how much it needs.
class workspace {
  public:
    /// Counts only.
    workspace() noexcept = default;

    /// Cuts up `bytes` bytes at `memory`, of any alignment.
    workspace(void* memory, std::size_t bytes) noexcept
        : memory_(static_cast<std::byte*>(memory)), capacity_(bytes) {}

    /// A contiguous row-major view of uninitialised elements. There must be room: the entry points
    /// check with `require_workspace` beforehand.
    template <class T, std::size_t Rank>
    [[nodiscard]] tensor_view<T, Rank> take(const std::array<index_t, Rank>& extents) noexcept {
        std::size_t count = 1;
        for (index_t extent : extents)
            count = product(count, static_cast<std::size_t>(extent));
        const std::size_t bytes = product(count, sizeof(T));
        // Room for the alignment is counted always: the size told must not depend on the address.
        used_ = sum(used_, sum(bytes, workspace_alignment));
        if (memory_ == nullptr) return {nullptr, extents};
        std::byte* const start = memory_ + (used_ - bytes);
        const auto beyond = reinterpret_cast<std::uintptr_t>(start) % workspace_alignment;
        return {static_cast<T*>(static_cast<void*>(start - beyond)), extents};
    }

    /// The same with rows (of the last dimension) that begin at multiples of the alignment, and of
    /// which a kernel can keep many side by side in a cache: rows that are multiples of 2 KiB apart
    /// would share its sets.
    template <class T, std::size_t Rank>
    [[nodiscard]] tensor_view<T, Rank>
    take_rows(const std::array<index_t, Rank>& extents) noexcept {
        static_assert(workspace_alignment % sizeof(T) == 0);
        constexpr auto line = static_cast<index_t>(workspace_alignment / sizeof(T));
        constexpr index_t set_period = 32;
        std::array<index_t, Rank> padded = extents;
        index_t lines = extents[Rank - 1] / line + (extents[Rank - 1] % line != 0);
        if (lines != 0 && lines % set_period == 0) lines += set_period / 2;
        padded[Rank - 1] = lines * line;
        const tensor_view<T, Rank> rows = take<T, Rank>(padded);
        return {rows.data(), extents, rows.strides()};
    }

    /// Bytes taken so far, padding included (the largest number if that overflowed).
    [[nodiscard]] std::size_t used() const noexcept { return used_; }

    /// Bytes of the memory that are not taken yet.
    [[nodiscard]] std::size_t available() const noexcept { return capacity_ - used_; }

  private:
    static constexpr std::size_t largest = (std::numeric_limits<std::size_t>::max)();
    static constexpr std::size_t product(std::size_t a, std::size_t b) noexcept {
        return a != 0 && b > largest / a ? largest : a * b;
    }
    static constexpr std::size_t sum(std::size_t a, std::size_t b) noexcept {
        return b > largest - a ? largest : a + b;
    }

    std::byte* memory_ = nullptr;
    std::size_t capacity_ = 0;
    std::size_t used_ = 0;
};

/// A workspace with memory of its own, for hosts that have no arena: grows when told to, never in a
/// kernel.
class owned_workspace {
  public:
    /// Of nothing, until `reserve`.
    owned_workspace() = default;

    /// Of `bytes` bytes.
    explicit owned_workspace(std::size_t bytes) : memory_(bytes) {}

    /// Makes room for `bytes`; what was taken before becomes invalid.
    void reserve(std::size_t bytes) {
        if (bytes > memory_.size()) memory_.resize(bytes);
    }

    /// A fresh workspace over the whole memory.
    operator workspace() noexcept { return {memory_.data(), memory_.size()}; } // NOLINT: implicit

  private:
    std::vector<std::byte> memory_;
};

/// Checks that a workspace has `bytes` bytes left.
inline void require_workspace(const char* function, const workspace& scratch, std::size_t bytes) {
    require_that(
        scratch.available() >= bytes, function, "workspace",
        [&] { return "at least " + std::to_string(bytes) + " bytes"; },
        [&] { return std::to_string(scratch.available()); });
}

} // namespace MHR_ISA
} // namespace mhr
