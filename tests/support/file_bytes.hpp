#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

/// \file
/// Files made by hand: the bytes of good and bad safetensors files.

namespace mhr::test {

inline std::string safetensors_bytes(std::uint64_t length, const std::string& header,
                                     const std::string& data) {
    std::string bytes;
    for (int i = 0; i < 8; ++i)
        bytes.push_back(static_cast<char>(length >> (8 * i)));
    return bytes + header + data;
}
inline std::string safetensors_bytes(const std::string& header, const std::string& data = "") {
    return safetensors_bytes(header.size(), header, data);
}

/// A member of the header.
inline std::string header_entry(const std::string& name, const std::string& dtype,
                                const std::string& shape, const std::string& offsets) {
    return '"' + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape +
           R"(,"data_offsets":)" + offsets + "}";
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
    std::string bytes(values.size() * sizeof(T), '\0');
    if (!bytes.empty()) std::memcpy(&bytes[0], values.data(), bytes.size());
    return bytes;
}

inline void write_file(const std::filesystem::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}
inline std::string read_file(const std::filesystem::path& path) {
    std::ostringstream bytes; // (GCC warns of null pointers in the loop over istreambuf_iterator.)
    bytes << std::ifstream(path, std::ios::binary).rdbuf();
    return bytes.str();
}

} // namespace mhr::test
