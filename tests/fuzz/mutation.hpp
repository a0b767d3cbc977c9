#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include <nlohmann/json.hpp>

#include <mhr/io/safetensors/dtype.hpp>

#include "support/file_bytes.hpp"

/// \file
/// How libFuzzer changes files: what only begins to count once other bytes agree with it (the
/// header's length, the offsets) is made to agree most of the time.

/// libFuzzer's own: changes bytes, and returns their new number.
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace mhr::test {

/// Changes a text as libFuzzer does with inputs of its own.
inline void mutate(std::string& text, std::size_t longest) {
    const std::size_t size = std::min(text.size(), longest);
    text.resize(longest);
    if (longest != 0)
        text.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(&text[0]), size, longest));
}

/// Lets the tensors of a header follow each other, with data as long as that asks for. A header
/// that says too little for it, or asks for too much, stays as it is.
inline void mend_offsets(std::string& header, std::string& data, std::size_t longest) {
    // What calls itself for each level of nesting would run out of stack.
    if (std::count_if(header.begin(), header.end(), [](char c) { return c == '[' || c == '{'; }) >
        1000)
        return;
    auto json = nlohmann::ordered_json::parse(header, nullptr, false);
    if (!json.is_object()) return;
    std::size_t offset = 0;
    for (auto& [name, tensor] : json.items()) {
        if (name == "__metadata__") continue;
        if (!tensor.is_object() || !tensor.contains("dtype") || !tensor.contains("shape")) return;
        const auto& type_name = tensor["dtype"];
        const auto type = dtype_named(type_name.is_string() ? type_name.get<std::string>() : "");
        if (!type || !tensor["shape"].is_array()) return;
        std::size_t bytes = dtype_size(*type);
        for (const auto& extent : tensor["shape"]) {
            if (!extent.is_number_unsigned()) return;
            const auto number = extent.get<std::size_t>();
            if (number != 0 && bytes > longest / number) return;
            bytes *= number;
        }
        tensor["data_offsets"] = {offset, offset + bytes};
        offset += bytes;
        if (offset > longest) return;
    }
    header = json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::ignore);
    header.resize((header.size() + 7) / 8 * 8, ' ');
    data.resize(offset, '\1');
}

/// Changes a safetensors file: any bytes of it, the data, or the header.
inline void mutate_safetensors(std::string& file, std::size_t longest, unsigned choice) {
    std::uint64_t length = 0;
    if (file.size() >= sizeof length) std::memcpy(&length, file.data(), sizeof length);
    if (choice % 8 == 0 || file.size() < sizeof length || length > file.size() - sizeof length)
        return mutate(file, longest);
    std::string header = file.substr(sizeof length, length);
    std::string data = file.substr(sizeof length + length);
    if (choice % 8 == 1) {
        mutate(data, longest);
    } else {
        mutate(header, longest);
        if (choice % 8 >= 4) mend_offsets(header, data, longest);
    }
    file = safetensors_bytes(header, data);
    file.resize(std::min(file.size(), longest));
}

} // namespace mhr::test
