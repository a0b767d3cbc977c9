#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

namespace mhr_bench {

/// Zeros at the start of a cache line, as hosts' allocators hand them out: no competitor is to win
/// or lose by where an array happens to begin.
template <class T>
class aligned_array {
  public:
    aligned_array() = default;
    explicit aligned_array(std::ptrdiff_t size) : size_(size), memory_(allocate(size)) {
        std::uninitialized_fill_n(memory_.get(), size, T(0));
    }

    T* data() noexcept { return memory_.get(); }
    const T* data() const noexcept { return memory_.get(); }
    std::ptrdiff_t size() const noexcept { return size_; }
    T* begin() noexcept { return data(); }
    T* end() noexcept { return data() + size_; }
    const T* begin() const noexcept { return data(); }
    const T* end() const noexcept { return data() + size_; }

  private:
    static_assert(std::is_trivially_destructible_v<T>);
    static constexpr std::align_val_t alignment{64};
    struct release {
        void operator()(T* memory) const noexcept { ::operator delete(memory, alignment); }
    };
    static T* allocate(std::ptrdiff_t size) {
        return static_cast<T*>(
            ::operator new(static_cast<std::size_t>(size) * sizeof(T), alignment));
    }

    std::ptrdiff_t size_ = 0;
    std::unique_ptr<T, release> memory_;
};

} // namespace mhr_bench
