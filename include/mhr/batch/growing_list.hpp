#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <type_traits>

#include <mhr/config.hpp>

/// \file
/// The lists of a batch plan. A std::vector would leave functions of the standard library behind
/// that name no instruction set: of several files, compiled for several processors, the linker
/// would keep one (MHR_ISA of config.hpp).

namespace mhr {
namespace batch_details {

/// A list that allocates only when it becomes longer than ever before.
template <class T>
class growing_list {
    static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>,
                  "mhr: elements are copied as bytes and never destroyed");
    static_assert(alignof(T) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__,
                  "mhr: memory is aligned as operator new does it");

  public:
    /// Makes an empty list without memory.
    MHR_INLINE growing_list() noexcept {}
    /// Makes a list of one element.
    MHR_INLINE explicit growing_list(const T& only) { push_back(only); }
    /// A copy has room for its elements alone.
    MHR_INLINE growing_list(const growing_list& other) { append(other); }
    /// A list that was moved from is empty and has no memory.
    MHR_INLINE growing_list(growing_list&& other) noexcept { take(other); }
    /// The memory is kept where it is large enough.
    MHR_INLINE growing_list& operator=(const growing_list& other) {
        if (this == &other) return *this;
        clear();
        append(other);
        return *this;
    }
    MHR_INLINE growing_list& operator=(growing_list&& other) noexcept {
        if (this == &other) return *this;
        ::operator delete(elements_);
        take(other);
        return *this;
    }
    MHR_INLINE ~growing_list() { ::operator delete(elements_); }

    /// Elements.
    /// @{
    [[nodiscard]] MHR_INLINE std::size_t size() const noexcept { return size_; }
    [[nodiscard]] MHR_INLINE bool empty() const noexcept { return size_ == 0; }
    [[nodiscard]] MHR_INLINE const T* data() const noexcept { return elements_; }
    [[nodiscard]] MHR_INLINE T* begin() noexcept { return elements_; }
    [[nodiscard]] MHR_INLINE T* end() noexcept { return elements_ + size_; }
    [[nodiscard]] MHR_INLINE const T* begin() const noexcept { return elements_; }
    [[nodiscard]] MHR_INLINE const T* end() const noexcept { return elements_ + size_; }
    [[nodiscard]] MHR_INLINE const T& operator[](std::size_t i) const noexcept {
        return elements_[i];
    }
    [[nodiscard]] MHR_INLINE const T& back() const noexcept { return elements_[size_ - 1]; }
    /// @}

    /// Removes all elements and keeps the memory.
    MHR_INLINE void clear() noexcept { size_ = 0; }

    /// Makes room for so many elements.
    MHR_INLINE void reserve(std::size_t count) {
        if (count <= capacity_) return;
        // A product that overflows asks for more than there can be.
        const std::size_t bytes = count > largest_count ? ~std::size_t(0) : count * sizeof(T);
        T* const larger = static_cast<T*>(::operator new(bytes));
        if (size_ != 0) std::memcpy(larger, elements_, size_ * sizeof(T));
        ::operator delete(elements_);
        elements_ = larger;
        capacity_ = count;
    }

    /// Adds an element, which may be one of the list.
    MHR_INLINE void push_back(const T& element) {
        const T copy = element; // the memory may move
        if (size_ == capacity_) reserve(capacity_ == 0 ? 1 : 2 * capacity_);
        ::new (static_cast<void*>(elements_ + size_)) T(copy);
        ++size_;
    }

  private:
    static constexpr std::size_t largest_count = ~std::size_t(0) / sizeof(T);

    MHR_INLINE void append(const growing_list& other) {
        if (other.empty()) return;
        reserve(other.size_);
        std::memcpy(elements_, other.elements_, other.size_ * sizeof(T));
        size_ = other.size_;
    }
    MHR_INLINE void take(growing_list& other) noexcept {
        elements_ = other.elements_;
        size_ = other.size_;
        capacity_ = other.capacity_;
        other.elements_ = nullptr;
        other.size_ = other.capacity_ = 0;
    }

    T* elements_ = nullptr;
    std::size_t size_ = 0, capacity_ = 0;
};

} // namespace batch_details
} // namespace mhr
