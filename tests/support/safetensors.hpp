#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <Eigen/Core>
#include <nlohmann/json.hpp>

#include <mhr/core/tensor_view.hpp>

#include "support/tensor.hpp"

/// \file
/// A minimal reader of safetensors files, for the golden values and for checking what is written:
/// u64 little-endian length of the header, the header (JSON), the data. It trusts nothing: every
/// disagreement throws std::runtime_error with the file's and the tensor's name. Little-endian
/// machines only.

namespace mhr::test {

class safetensors_file {
  public:
    struct entry {
        std::string dtype;
        std::vector<std::size_t> shape;
        std::size_t first; ///< byte of the data at which the tensor begins
        std::size_t last;  ///< and the one before which it ends
    };

    /// Reads a file.
    explicit safetensors_file(const std::string& path) : safetensors_file(path, bytes_of(path)) {}

    /// Takes the bytes of a file; `name` is for messages.
    safetensors_file(std::string name, std::vector<char> bytes)
        : name_(std::move(name)), bytes_(std::move(bytes)) {
        const nlohmann::json header = parse_header();
        if (!header.is_object()) fail("header", "not a JSON object");
        for (const auto& [key, value] : header.items())
            if (key == "__metadata__")
                read_metadata(value);
            else
                tensors_.emplace(key, read_entry(key, value));
        check_layout();
    }

    [[nodiscard]] const std::string& name() const { return name_; }
    [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }
    [[nodiscard]] const std::map<std::string, entry>& tensors() const { return tensors_; }
    [[nodiscard]] bool contains(const std::string& tensor) const {
        return tensors_.count(tensor) != 0;
    }

    /// A copy of one tensor, which must have this rank, and `T` for its type (or be F32, where `T`
    /// is double: that conversion is exact).
    template <class T, std::size_t Rank>
    [[nodiscard]] tensor<T, Rank> read(const std::string& tensor_name) const {
        const auto found = tensors_.find(tensor_name);
        if (found == tensors_.end()) fail(tensor_name, "missing");
        const entry& stored = found->second;
        if (stored.shape.size() != Rank) fail(tensor_name, "not of rank " + std::to_string(Rank));
        std::array<index_t, Rank> extents;
        for (std::size_t axis = 0; axis < Rank; ++axis)
            extents[axis] = static_cast<index_t>(stored.shape[axis]);
        tensor<T, Rank> result(extents);
        if (stored.dtype == dtype_of<T>())
            copy<T>(stored, result.values());
        else if (std::is_same_v<T, double> && stored.dtype == "F32")
            copy<float>(stored, result.values());
        else
            fail(tensor_name, stored.dtype + " cannot be read as " + dtype_of<T>());
        return result;
    }

  private:
    static constexpr std::size_t length_bytes = 8;

    [[noreturn]] void fail(const std::string& subject, const std::string& message) const {
        throw std::runtime_error(name_ + ": " + subject + ": " + message);
    }

    static std::vector<char> bytes_of(const std::string& path) {
        std::ifstream stream(path, std::ios::binary);
        if (!stream) throw std::runtime_error(path + ": cannot be opened");
        std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
        if (stream.bad()) throw std::runtime_error(path + ": cannot be read");
        return bytes;
    }

    nlohmann::json parse_header() {
        if (bytes_.size() < length_bytes) fail("header", "the file ends within its length");
        std::uint64_t length = 0;
        for (std::size_t i = 0; i < length_bytes; ++i)
            length |= std::uint64_t{static_cast<unsigned char>(bytes_[i])} << (8 * i);
        if (length > bytes_.size() - length_bytes) fail("header", "longer than the file");
        data_ = length_bytes + static_cast<std::size_t>(length);

        // JSON itself permits nesting without end, and a key that comes twice.
        std::vector<std::set<std::string>> keys(max_depth + 1);
        const auto refuse = [&](int depth, nlohmann::json::parse_event_t event,
                                nlohmann::json& parsed) {
            using event_t = nlohmann::json::parse_event_t;
            const auto level = static_cast<std::size_t>(depth);
            if (event == event_t::object_start || event == event_t::array_start) {
                if (level >= max_depth) fail("header", "nested too deeply");
                keys[level + 1].clear();
            } else if (event == event_t::key) {
                const auto& key = parsed.get_ref<const std::string&>();
                if (!keys[level].insert(key).second) fail(key, "named twice");
            }
            return true;
        };
        const auto begin = bytes_.begin() + static_cast<std::ptrdiff_t>(length_bytes);
        const auto end = bytes_.begin() + static_cast<std::ptrdiff_t>(data_);
        try {
            return nlohmann::json::parse(begin, end, refuse);
        } catch (const nlohmann::json::exception& error) {
            fail("header", error.what());
        }
    }

    void read_metadata(const nlohmann::json& value) {
        if (!value.is_object()) fail("__metadata__", "not a JSON object");
        for (const auto& [key, text] : value.items()) {
            if (!text.is_string()) fail("__metadata__", key + " is not a string");
            metadata_.emplace(key, text.get<std::string>());
        }
    }

    entry read_entry(const std::string& tensor, const nlohmann::json& value) const {
        const auto numbers = [&](const char* key) {
            if (!value.contains(key) || !value[key].is_array()) fail(tensor, "no " + quoted(key));
            std::vector<std::size_t> result;
            for (const auto& number : value[key]) {
                if (!number.is_number_unsigned()) fail(tensor, "bad number in " + quoted(key));
                result.push_back(number.get<std::size_t>());
            }
            return result;
        };
        if (!value.is_object()) fail(tensor, "not a JSON object");
        if (!value.contains("dtype") || !value["dtype"].is_string()) fail(tensor, "no 'dtype'");
        const auto offsets = numbers("data_offsets");
        if (offsets.size() != 2) fail(tensor, "not two 'data_offsets'");
        entry result{value["dtype"].get<std::string>(), numbers("shape"), offsets[0], offsets[1]};

        const std::size_t data_bytes = bytes_.size() - data_;
        if (result.first > result.last || result.last > data_bytes)
            fail(tensor, "'data_offsets' outside the file");
        // What may not overflow is an index: those of views are signed.
        constexpr auto largest = static_cast<std::size_t>(std::numeric_limits<index_t>::max());
        std::size_t bytes = size_of(tensor, result.dtype);
        bool empty = false;
        for (std::size_t extent : result.shape) {
            if (extent > largest) fail(tensor, "'shape' overflows");
            empty = empty || extent == 0;
        }
        for (std::size_t extent : result.shape) {
            if (!empty && bytes > largest / extent) fail(tensor, "'shape' overflows");
            bytes = empty ? 0 : bytes * extent;
        }
        if (bytes != result.last - result.first)
            fail(tensor, "'data_offsets' do not fit 'shape' and 'dtype'");
        return result;
    }

    /// Tensors follow each other without overlaps or holes, and nothing comes after them.
    void check_layout() const {
        std::map<std::pair<std::size_t, std::size_t>, std::string> in_order;
        for (const auto& [tensor, stored] : tensors_)
            if (stored.first != stored.last &&
                !in_order.emplace(std::pair{stored.first, stored.last}, tensor).second)
                fail(tensor, "overlaps another tensor");
        std::size_t expected = 0;
        for (const auto& [range, tensor] : in_order) {
            if (range.first < expected) fail(tensor, "overlaps another tensor");
            if (range.first > expected) fail(tensor, "leaves a hole before it");
            expected = range.second;
        }
        if (expected != bytes_.size() - data_) fail("data", "bytes that belong to no tensor");
    }

    std::size_t size_of(const std::string& tensor, const std::string& dtype) const {
        static const std::map<std::string, std::size_t> sizes{
            {"F64", 8},  {"I64", 8}, {"U64", 8}, {"F32", 4}, {"I32", 4}, {"U32", 4}, {"F16", 2},
            {"BF16", 2}, {"I16", 2}, {"U16", 2}, {"I8", 1},  {"U8", 1},  {"BOOL", 1}};
        const auto found = sizes.find(dtype);
        if (found == sizes.end()) fail(tensor, "unknown 'dtype' " + quoted(dtype));
        return found->second;
    }

    template <class T>
    static std::string dtype_of() {
        if constexpr (std::is_same_v<T, double>)
            return "F64";
        else if constexpr (std::is_same_v<T, float>)
            return "F32";
        else if constexpr (std::is_same_v<T, std::int64_t>)
            return "I64";
        else if constexpr (std::is_same_v<T, Eigen::half>)
            return "F16";
        else if constexpr (std::is_same_v<T, Eigen::bfloat16>)
            return "BF16";
        else {
            static_assert(std::is_same_v<T, std::uint8_t>, "not a type that is read");
            return "U8";
        }
    }

    /// Element by element: nothing promises that the bytes are aligned.
    template <class Stored, class T>
    void copy(const entry& stored, std::vector<T>& values) const {
        const char* from = bytes_.data() + data_ + stored.first;
        for (T& to : values) {
            Stored value;
            std::memcpy(&value, from, sizeof value);
            to = static_cast<T>(value);
            from += sizeof value;
        }
    }

    static std::string quoted(const std::string& text) { return "'" + text + "'"; }

    static constexpr std::size_t max_depth = 3; ///< header, tensor, list of numbers

    std::string name_;
    std::vector<char> bytes_;
    std::size_t data_ = 0; ///< where the data begins
    std::map<std::string, std::string> metadata_;
    std::map<std::string, entry> tensors_;
};

} // namespace mhr::test
