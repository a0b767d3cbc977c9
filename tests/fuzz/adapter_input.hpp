#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

/// \file
/// An adapter's two files as one input: the configuration, a NUL (which JSON has not), the tensors.

namespace mhr::test {

struct adapter_input {
    std::string config;
    std::string tensors;
};

inline adapter_input split_adapter_input(const std::uint8_t* data, std::size_t size) {
    const std::uint8_t* const nul = std::find(data, data + size, std::uint8_t(0));
    if (nul == data + size)
        return {{data, nul}, {}}; // no step beyond the end, nor from a null pointer
    return {{data, nul}, {nul + 1, data + size}};
}

inline std::string join_adapter_input(const adapter_input& input) {
    return input.config + '\0' + input.tensors;
}

} // namespace mhr::test
