#pragma once

#include <limits>

/// \file
/// What kernels leave unset on their stack must not matter.

namespace mhr::test {

#if defined(__GNUC__) || defined(__clang__)
[[gnu::noinline]]
#endif
/// Leaves NaN on as much of the stack as kernels may use: the next call finds them where it does
/// not set what it reads.
inline void
dirty_stack() {
    volatile float memory[80 * 1024];
    for (volatile float& value : memory)
        value = std::numeric_limits<float>::quiet_NaN();
}

} // namespace mhr::test
