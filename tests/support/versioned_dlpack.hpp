#pragma once

#include <cstdint>

#include <dlpack/dlpack.h>

/// \file
/// DLPack's versioned structure, which headers before 1.0 do not have.

namespace mhr::test {

#if defined(DLPACK_MAJOR_VERSION)
using versioned_dlpack = DLManagedTensorVersioned;
#else
struct versioned_dlpack {
    struct {
        std::uint32_t major;
        std::uint32_t minor;
    } version;
    void* manager_ctx;
    void (*deleter)(versioned_dlpack* self);
    std::uint64_t flags;
    DLTensor dl_tensor;
};
#endif

} // namespace mhr::test
