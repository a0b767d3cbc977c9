#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <mhr/core/error.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/files/foreign_content.hpp>
#include <mhr/io/files/json.hpp>
#include <mhr/io/files/mapped_file.hpp>
#include <mhr/io/files/printable.hpp>
#include <mhr/io/safetensors/dtype.hpp>

/// \file
/// The header of a safetensors file: its length (u64, little-endian), then JSON that names every
/// tensor with its type, its shape and its place in the data that follow. Nothing that it claims is
/// trusted.

namespace mhr {
inline namespace MHR_ISA {

/// One tensor of a file.
struct safetensors_tensor {
    static constexpr std::size_t max_rank = 8; ///< of tensors that are read

    dtype type;                            ///< of its elements
    std::size_t rank;                      ///< number of extents
    std::array<index_t, max_rank> extents; ///< the first `rank` of them
    std::size_t first;                     ///< byte of the file at which it begins
    std::size_t last;                      ///< and the one after its end

    /// Its size.
    [[nodiscard]] std::size_t bytes() const noexcept { return last - first; }
};

/// What the header of a file says.
struct safetensors_header {
    static constexpr std::size_t max_bytes = std::size_t(16) << 20;  ///< of the JSON
    static constexpr std::size_t max_tensors = std::size_t(1) << 17; ///< metadata counts as one

    std::map<std::string, std::string> metadata{};       ///< texts beside the tensors
    std::map<std::string, safetensors_tensor> tensors{}; ///< by their names
};

namespace safetensors_details {

inline std::string extents_text(const safetensors_tensor& tensor) {
    std::string text = "[";
    for (std::size_t axis = 0; axis < tensor.rank; ++axis)
        text += (axis == 0 ? "" : ", ") + std::to_string(tensor.extents[axis]);
    return text + "]";
}

/// Raises an error about a tensor of a file; `subject` is "safetensors: FILE", `byte` one of the
/// file.
[[noreturn]] inline void fail(const std::string& subject, std::string_view tensor,
                              const std::string& expected, const std::string& got,
                              std::size_t byte) {
    raise(subject + ": " + in_quotes(tensor) + ": expected " + expected + ", got " + got +
          " (byte " + std::to_string(byte) + ")");
}

/// Reads the header of a file, and checks every length, offset, shape and type in it.
class header_reader {
  public:
    /// The bytes of a file; `subject`, "safetensors: FILE", begins each message.
    header_reader(const std::string& subject, const std::byte* data, std::size_t size)
        : subject_(subject), data_(data), size_(size) {}

    header_reader(const header_reader&) = delete;
    header_reader& operator=(const header_reader&) = delete;

    /// What it says. These are refused: bytes that are no such file; more than the limits of
    /// safetensors_header; a machine that is not little-endian.
    [[nodiscard]] safetensors_header read() && {
        if (!is_little_endian())
            raise(subject_ + ": data: expected a little-endian machine, got another");
        file_details::require_no_foreign_content(subject_, "a safetensors file",
                                                 {reinterpret_cast<const char*>(data_), size_});
        if (size_ < length_bytes)
            raise(subject_ + ": header: expected its length in 8 bytes, got a file of " +
                  std::to_string(size_));
        std::uint64_t length = 0;
        std::memcpy(&length, data_, length_bytes);
        const std::size_t longest = (std::min)(size_ - length_bytes, safetensors_header::max_bytes);
        if (length > longest)
            raise(subject_ + ": header: expected at most " + std::to_string(longest) +
                  " bytes, got " + std::to_string(length) + " (byte 0)");
        begin_ = length_bytes + file_details::as_size(length);

        const std::string_view text(reinterpret_cast<const char*>(data_) + length_bytes,
                                    file_details::as_size(length));
        const json_source source{subject_, text, length_bytes};
        if (text.empty() || text.front() != '{') source.fail("header", "a JSON object", "none", 0);
        for_each_json_member(
            source, {safetensors_header::max_bytes, 3, safetensors_header::max_tensors},
            [&](const std::string& key, json_details::json&& value, std::size_t offset) {
                const place at{source, key, offset};
                if (key == "__metadata__")
                    read_metadata(at, std::move(value));
                else if (!header_.tensors.emplace(key, read_tensor(at, value)).second)
                    at.fail("a name that comes once", "another tensor of it");
            });
        check_layout();
        return std::move(header_);
    }

  private:
    static constexpr std::size_t length_bytes = 8;
    // What may not overflow is an index: those of views are signed.
    static constexpr auto largest = static_cast<std::size_t>((std::numeric_limits<index_t>::max)());

    /// Where in the header something is said.
    struct place {
        const json_source& source;
        const std::string& key;
        std::size_t offset;

        [[noreturn]] void fail(const std::string& expected, const std::string& got) const {
            source.fail(in_quotes(key), expected, got, offset);
        }
    };

    void read_metadata(const place& at, json_details::json&& value) {
        if (has_metadata_) at.fail("a name that comes once", "another one");
        has_metadata_ = true;
        if (value.is_null()) return; // as MLX writes where there are no texts
        if (!value.is_object()) at.fail("a JSON object or null", value.type_name());
        for (auto& [key, text] : value.items()) {
            if (!text.is_string()) at.fail("strings", in_quotes(key) + ": " + text.type_name());
            header_.metadata.emplace(key, std::move(text.template get_ref<std::string&>()));
        }
    }

    [[nodiscard]] safetensors_tensor read_tensor(const place& at,
                                                 const json_details::json& value) const {
        if (!value.is_object()) at.fail("a JSON object", value.type_name());
        const auto numbers = [&](const char* key, std::size_t most, auto&& use) {
            const auto found = value.find(key);
            if (found == value.end() || !found->is_array() || found->size() > most)
                at.fail(in_quotes(key) + ", a list of at most " + std::to_string(most),
                        "another value or none");
            for (const auto& number : *found) {
                if (!number.is_number_unsigned() || number.template get<std::uint64_t>() > largest)
                    at.fail("integers from 0 to " + std::to_string(largest) + " in " +
                                in_quotes(key),
                            printable(number.dump(), 40));
                use(number.template get<std::size_t>());
            }
            return found->size();
        };

        safetensors_tensor result{};
        result.rank = numbers("shape", safetensors_tensor::max_rank, [&](std::size_t extent) {
            result.extents[result.rank++] = static_cast<index_t>(extent);
        });
        std::array<std::size_t, 2> offsets{};
        std::size_t count = 0;
        if (numbers("data_offsets", 2, [&](std::size_t offset) { offsets[count++] = offset; }) != 2)
            at.fail("two 'data_offsets'", std::to_string(count));
        if (value.size() != 3) at.fail("'dtype', 'shape' and 'data_offsets'", "more");
        result.type = read_type(at, value);

        const std::size_t data_bytes = size_ - begin_;
        if (offsets[0] > offsets[1] || offsets[1] > data_bytes)
            at.fail("'data_offsets' in order, and up to " + std::to_string(data_bytes),
                    std::to_string(offsets[0]) + ", " + std::to_string(offsets[1]));
        const std::size_t bytes = bytes_of(at, result);
        if (bytes != offsets[1] - offsets[0])
            at.fail("'data_offsets' of " + std::to_string(bytes) + " bytes, as 'shape' and 'dtype'",
                    std::to_string(offsets[1] - offsets[0]));
        result.first = begin_ + offsets[0];
        result.last = begin_ + offsets[1];
        return result;
    }

    static dtype read_type(const place& at, const json_details::json& value) {
        const auto found = value.find("dtype");
        if (found == value.end() || !found->is_string()) at.fail("'dtype', a string", "none");
        const auto& text = found->get_ref<const std::string&>();
        const auto type = dtype_named(text);
        if (!type) at.fail("a known 'dtype'", in_quotes(text));
        return *type;
    }

    /// Their product may not overflow even where an extent is 0: kernels multiply in any order.
    static std::size_t bytes_of(const place& at, const safetensors_tensor& stored) {
        std::size_t bytes = dtype_size(stored.type);
        bool empty = false;
        for (std::size_t axis = 0; axis < stored.rank; ++axis) {
            const auto extent = static_cast<std::size_t>(stored.extents[axis]);
            empty = empty || extent == 0;
            if (extent > largest / bytes)
                at.fail("a 'shape' of which an index counts the bytes", extents_text(stored));
            bytes *= (std::max)(extent, std::size_t(1));
        }
        return empty ? 0 : bytes;
    }

    /// Tensors follow each other without overlaps or holes, and nothing comes after them.
    void check_layout() const {
        std::vector<const std::pair<const std::string, safetensors_tensor>*> in_order;
        in_order.reserve(header_.tensors.size());
        for (const auto& entry : header_.tensors)
            in_order.push_back(&entry);
        std::sort(in_order.begin(), in_order.end(), [](const auto* a, const auto* b) {
            return std::pair(a->second.first, a->second.last) <
                   std::pair(b->second.first, b->second.last);
        });
        std::size_t expected = begin_;
        for (const auto* entry : in_order) {
            const std::size_t first = entry->second.first;
            if (first != expected)
                fail(subject_, entry->first, "data that begin at byte " + std::to_string(expected),
                     first < expected ? "an overlap" : "a hole", first);
            expected = entry->second.last;
        }
        if (expected != size_)
            raise(subject_ + ": data: expected a file of " + std::to_string(expected) +
                  " bytes, got " + std::to_string(size_) + " (byte " + std::to_string(expected) +
                  ")");
    }

    const std::string& subject_;
    const std::byte* data_;
    std::size_t size_;
    std::size_t begin_ = 0; ///< of the data
    bool has_metadata_ = false;
    safetensors_header header_{};
};

} // namespace safetensors_details

} // namespace MHR_ISA
} // namespace mhr
