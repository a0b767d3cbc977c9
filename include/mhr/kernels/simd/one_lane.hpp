#pragma once

#include <cmath>
#include <cstddef>

#include <mhr/config.hpp>

/// \file
/// A vector of one number: what kernels use where the architecture has no vectors of its type, as
/// 32-bit Arm has none of f64.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// What the kernels ask of an xsimd::batch of floating-point numbers, for a single one.
template <class A>
class one_lane {
  public:
    static constexpr std::size_t size = 1;

    one_lane() = default;
    explicit one_lane(A value) noexcept : value_(value) {}

    static one_lane load_aligned(const A* from) noexcept { return one_lane(*from); }
    static one_lane load_unaligned(const A* from) noexcept { return one_lane(*from); }
    void store_aligned(A* to) const noexcept { *to = value_; }
    void store_unaligned(A* to) const noexcept { *to = value_; }

    one_lane& operator+=(const one_lane& other) noexcept {
        value_ += other.value_;
        return *this;
    }
    one_lane& operator*=(const one_lane& other) noexcept {
        value_ *= other.value_;
        return *this;
    }
    friend one_lane operator+(const one_lane& a, const one_lane& b) noexcept {
        return one_lane(a.value_ + b.value_);
    }
    friend one_lane operator*(const one_lane& a, const one_lane& b) noexcept {
        return one_lane(a.value_ * b.value_);
    }
    /// a b + c, rounded once where the processor can: asked for, as a compiler that may do so by
    /// itself does so in one loop and not in the next.
    friend one_lane multiply_add(const one_lane& a, const one_lane& b, const one_lane& c) noexcept {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
        return one_lane(std::fma(a.value_, b.value_, c.value_));
#else
        return one_lane(a.value_ * b.value_ + c.value_);
#endif
    }

  private:
    A value_;
};

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr
