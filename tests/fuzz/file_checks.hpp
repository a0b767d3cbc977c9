#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include <mhr/io/safetensors/safetensors_file.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>

#include "fuzz/fuzz_target.hpp"

/// \file
/// What holds of every safetensors file that was accepted.

namespace mhr::test {

/// Each tensor lies inside the file's bytes, and together they are all that follows the header.
inline void check_layout(const safetensors_file& file, const void* memory, std::size_t size) {
    const auto* const begin = static_cast<const std::byte*>(memory);
    std::size_t bytes = 0;
    std::size_t first = size;
    for (const auto& [name, tensor] : file.tensors()) {
        must(tensor.first >= 8 && tensor.first <= tensor.last && tensor.last <= size,
             "a tensor lies inside the file");
        must(file.data(tensor) == begin + tensor.first, "a tensor's bytes are the file's");
        std::size_t expected = dtype_size(tensor.type);
        for (std::size_t axis = 0; axis < tensor.rank; ++axis)
            expected *= static_cast<std::size_t>(tensor.extents[axis]);
        must(tensor.bytes() == expected, "a tensor has the bytes that its shape says");
        touch(file.data(tensor), tensor.bytes());
        bytes += tensor.bytes();
        first = std::min(first, tensor.first);
    }
    must(first + bytes == size, "the tensors are all of the data");
}

/// The bytes of a file of the same tensors and metadata.
inline std::string written_again(const safetensors_file& file) {
    safetensors_writer writer;
    for (const auto& [key, value] : file.metadata())
        writer.set_metadata(key, value);
    for (const auto& [name, tensor] : file.tensors())
        writer.add(file, name);
    return writer.bytes();
}

inline void check_same(const safetensors_file& a, const safetensors_file& b) {
    must(a.metadata() == b.metadata(), "two files have the same metadata");
    must(a.tensors().size() == b.tensors().size(), "two files have the same tensors");
    for (const auto& [name, of_a] : a.tensors()) {
        const safetensors_tensor& of_b = b.tensor(name);
        must(of_a.type == of_b.type && of_a.rank == of_b.rank && of_a.extents == of_b.extents,
             "two tensors have the same type and shape");
        must(std::equal(a.data(of_a), a.data(of_a) + of_a.bytes(), b.data(of_b)),
             "two tensors have the same bytes");
    }
}

} // namespace mhr::test
