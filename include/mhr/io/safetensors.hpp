#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <mhr/core/checks.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/dtype.hpp>
#include <mhr/io/file_path.hpp>
#include <mhr/io/foreign_content.hpp>
#include <mhr/io/json.hpp>
#include <mhr/io/mapped_file.hpp>
#include <mhr/io/printable.hpp>
#include <mhr/routing/noise.hpp>

/// \file
/// Reading safetensors files (https://github.com/huggingface/safetensors): the length of the header
/// (u64, little-endian), the header (JSON), the tensors, row-major. Tensors become views into the
/// mapped file. Nothing that a file claims is trusted: messages read
/// "safetensors: FILE: SUBJECT: expected ..., got ... (byte N)".
///
/// Memory, besides the file's own: at most 48 MiB, whatever the file claims; time grows with the
/// header.

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

namespace detail {

inline std::string extents_text(const safetensors_tensor& tensor) {
    std::string text = "[";
    for (std::size_t axis = 0; axis < tensor.rank; ++axis)
        text += (axis == 0 ? "" : ", ") + std::to_string(tensor.extents[axis]);
    return text + "]";
}

template <class T>
std::string dtype_text() {
    const auto type = dtype_of<T>();
    return type ? dtype_name(*type) : "another type";
}

} // namespace detail

/// A safetensors file, with every length, offset, shape and type in it checked when it is opened.
class safetensors_file {
  public:
    static constexpr std::size_t max_header = std::size_t(16) << 20; ///< bytes
    static constexpr std::size_t max_tensors = std::size_t(1) << 17; ///< metadata counts as one

    /// Opens a file. Errors: what mapped_file and the format refuse; more than the limits above.
    explicit safetensors_file(const std::filesystem::path& path,
                              file_access access = file_access::map)
        : name_(path_text(path)), file_(path, access), data_(file_.data()), size_(file_.size()) {
        read_header();
    }

    /// Takes the bytes of a file, which must outlive this; `name` is for messages. The same errors.
    safetensors_file(std::string name, const void* bytes, std::size_t size)
        : name_(std::move(name)), file_(), data_(static_cast<const std::byte*>(bytes)),
          size_(size) {
        read_header();
    }

    /// Views of its tensors stay valid.
    safetensors_file(safetensors_file&&) noexcept = default;
    /// The same.
    safetensors_file& operator=(safetensors_file&&) noexcept = default;
    safetensors_file(const safetensors_file&) = delete;
    safetensors_file& operator=(const safetensors_file&) = delete;
    ~safetensors_file() = default;

    /// What messages call it.
    [[nodiscard]] const std::string& name() const noexcept { return name_; }

    /// Texts beside the tensors, such as format: "pt".
    [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept {
        return metadata_;
    }

    /// Its tensors, by their names.
    [[nodiscard]] const std::map<std::string, safetensors_tensor>& tensors() const noexcept {
        return tensors_;
    }

    /// True if it has a tensor of that name.
    [[nodiscard]] bool contains(const std::string& tensor) const {
        return tensors_.count(tensor) != 0;
    }

    /// The description of a tensor. Errors: there is none of that name.
    [[nodiscard]] const safetensors_tensor& tensor(const std::string& tensor_name) const {
        const auto found = tensors_.find(tensor_name);
        if (found == tensors_.end())
            raise(prefix() + detail::in_quotes(tensor_name) + ": expected a tensor, got none");
        return found->second;
    }

    /// The bytes of one of its tensors.
    [[nodiscard]] const std::byte* data(const safetensors_tensor& stored) const noexcept {
        return data_ + stored.first;
    }

    /// A view into the file, valid as long as it is open.
    ///
    /// Errors: no such tensor, another rank, another type than `T` is stored as (dtype_of), or data
    /// that begin at no multiple of its size, as files of other writers may have them: `read`
    /// copies those.
    template <class T, std::size_t Rank>
    [[nodiscard]] tensor_view<const T, Rank> view(const std::string& tensor_name) const {
        const safetensors_tensor& stored = tensor(tensor_name);
        const std::array<index_t, Rank> extents = extents_of<Rank>(tensor_name, stored);
        if (dtype_of<T>() != stored.type)
            fail(tensor_name, detail::dtype_text<T>(), dtype_name(stored.type), stored.first);
        if (stored.bytes() == 0) return {nullptr, extents};
        const std::byte* const memory = data(stored);
        if (reinterpret_cast<std::uintptr_t>(memory) % alignof(T) != 0)
            fail(tensor_name,
                 "data at a multiple of " + std::to_string(alignof(T)) + " bytes in memory",
                 "another place", stored.first);
        return {static_cast<const T*>(static_cast<const void*>(memory)), extents};
    }

    /// Copies a tensor into a view of the same extents, with any strides, wherever it begins.
    /// Tensors with fractions (F64, F32, F16, BF16) go into each such type, rounded to it once;
    /// integers into their own type only.
    ///
    /// Errors: no such tensor; another shape; a type that does not go into `T`; overlapping
    /// elements of out.
    template <class T, std::size_t Rank>
    void read(const std::string& tensor_name, tensor_view<T, Rank> out) const {
        const safetensors_tensor& stored = tensor(tensor_name);
        require_output("safetensors_file::read", "out", out, extents_of<Rank>(tensor_name, stored));
        copy_into(tensor_name, stored, out);
    }

    /// The same, into a view of other extents with as many elements, in row-major order of both.
    /// Errors: the tensor has not `extents`, too.
    template <class T, std::size_t Rank, std::size_t FileRank>
    void read(const std::string& tensor_name, tensor_view<T, Rank> out,
              const std::array<index_t, FileRank>& extents) const {
        const safetensors_tensor& stored = tensor(tensor_name);
        if (extents_of<FileRank>(tensor_name, stored) != extents)
            fail(tensor_name, "extents " + detail::to_text(extents), detail::extents_text(stored),
                 stored.first);
        std::array<index_t, Rank> any;
        any.fill(any_extent);
        require_output("safetensors_file::read", "out", out, any);
        const std::size_t elements = stored.bytes() / dtype_size(stored.type);
        require_that(
            static_cast<std::size_t>(out.size()) == elements, "safetensors_file::read", "out",
            [&] { return std::to_string(elements) + " elements"; },
            [&] { return detail::to_text(out.extents()); });
        copy_into(tensor_name, stored, out);
    }

    /// Raises an error about one of its tensors; `byte` is one of the file.
    [[noreturn]] void fail(std::string_view tensor_name, const std::string& expected,
                           const std::string& got, std::size_t byte) const {
        raise(prefix() + detail::in_quotes(tensor_name) + ": expected " + expected + ", got " +
              got + " (byte " + std::to_string(byte) + ")");
    }

  private:
    static constexpr std::size_t length_bytes = 8;
    // What may not overflow is an index: those of views are signed.
    static constexpr auto largest = static_cast<std::size_t>((std::numeric_limits<index_t>::max)());

    [[nodiscard]] std::string prefix() const { return "safetensors: " + name_ + ": "; }

    void read_header() {
        if (!detail::is_little_endian())
            raise(prefix() + "data: expected a little-endian machine, got another");
        detail::require_no_foreign_content("safetensors: " + name_, "a safetensors file",
                                           {reinterpret_cast<const char*>(data_), size_});
        if (size_ < length_bytes)
            raise(prefix() + "header: expected its length in 8 bytes, got a file of " +
                  std::to_string(size_));
        std::uint64_t length = 0;
        std::memcpy(&length, data_, length_bytes);
        const std::size_t longest = (std::min)(size_ - length_bytes, max_header);
        if (length > longest)
            raise(prefix() + "header: expected at most " + std::to_string(longest) +
                  " bytes, got " + std::to_string(length) + " (byte 0)");
        begin_ = length_bytes + detail::as_size(length);

        const std::string_view text(reinterpret_cast<const char*>(data_) + length_bytes,
                                    detail::as_size(length));
        const json_source source{"safetensors: " + name_, text, length_bytes};
        if (text.empty() || text.front() != '{') source.fail("header", "a JSON object", "none", 0);
        for_each_json_member(source, {max_header, 3, max_tensors},
                             [&](const std::string& key, detail::json&& value, std::size_t offset) {
                                 const place at{source, key, offset};
                                 if (key == "__metadata__")
                                     read_metadata(at, std::move(value));
                                 else if (!tensors_.emplace(key, read_tensor(at, value)).second)
                                     at.fail("a name that comes once", "another tensor of it");
                             });
        check_layout();
    }

    /// Where in the header something is said.
    struct place {
        const json_source& source;
        const std::string& key;
        std::size_t offset;

        [[noreturn]] void fail(const std::string& expected, const std::string& got) const {
            source.fail(detail::in_quotes(key), expected, got, offset);
        }
    };

    void read_metadata(const place& at, detail::json&& value) {
        if (!value.is_object()) at.fail("a JSON object", value.type_name());
        if (has_metadata_) at.fail("a name that comes once", "another one");
        has_metadata_ = true;
        for (auto& [key, text] : value.items()) {
            if (!text.is_string())
                at.fail("strings", detail::in_quotes(key) + ": " + text.type_name());
            metadata_.emplace(key, std::move(text.template get_ref<std::string&>()));
        }
    }

    [[nodiscard]] safetensors_tensor read_tensor(const place& at, const detail::json& value) const {
        if (!value.is_object()) at.fail("a JSON object", value.type_name());
        const auto numbers = [&](const char* key, std::size_t most, auto&& use) {
            const auto found = value.find(key);
            if (found == value.end() || !found->is_array() || found->size() > most)
                at.fail(detail::in_quotes(key) + ", a list of at most " + std::to_string(most),
                        "another value or none");
            for (const auto& number : *found) {
                if (!number.is_number_unsigned() || number.template get<std::uint64_t>() > largest)
                    at.fail("integers from 0 to " + std::to_string(largest) + " in " +
                                detail::in_quotes(key),
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

    static dtype read_type(const place& at, const detail::json& value) {
        const auto found = value.find("dtype");
        if (found == value.end() || !found->is_string()) at.fail("'dtype', a string", "none");
        const auto& text = found->get_ref<const std::string&>();
        const auto type = dtype_named(text);
        if (!type) at.fail("a known 'dtype'", detail::in_quotes(text));
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
                at.fail("a 'shape' of which an index counts the bytes",
                        detail::extents_text(stored));
            bytes *= (std::max)(extent, std::size_t(1));
        }
        return empty ? 0 : bytes;
    }

    /// Tensors follow each other without overlaps or holes, and nothing comes after them.
    void check_layout() const {
        std::vector<const std::pair<const std::string, safetensors_tensor>*> in_order;
        in_order.reserve(tensors_.size());
        for (const auto& entry : tensors_)
            in_order.push_back(&entry);
        std::sort(in_order.begin(), in_order.end(), [](const auto* a, const auto* b) {
            return std::pair(a->second.first, a->second.last) <
                   std::pair(b->second.first, b->second.last);
        });
        std::size_t expected = begin_;
        for (const auto* entry : in_order) {
            const std::size_t first = entry->second.first;
            if (first != expected)
                fail(entry->first, "data that begin at byte " + std::to_string(expected),
                     first < expected ? "an overlap" : "a hole", first);
            expected = entry->second.last;
        }
        if (expected != size_)
            raise(prefix() + "data: expected a file of " + std::to_string(expected) +
                  " bytes, got " + std::to_string(size_) + " (byte " + std::to_string(expected) +
                  ")");
    }

    template <std::size_t Rank>
    [[nodiscard]] std::array<index_t, Rank> extents_of(const std::string& tensor_name,
                                                       const safetensors_tensor& stored) const {
        if (stored.rank != Rank)
            fail(tensor_name, "rank " + std::to_string(Rank), detail::extents_text(stored),
                 stored.first);
        std::array<index_t, Rank> extents;
        std::copy_n(stored.extents.begin(), Rank, extents.begin());
        return extents;
    }

    template <class T, std::size_t Rank>
    void copy_into(const std::string& tensor_name, const safetensors_tensor& stored,
                   const tensor_view<T, Rank>& out) const {
        if (dtype_of<T>() == stored.type) return copy<T, T>(stored, out);
        if constexpr (!std::is_integral_v<T>) {
            if (stored.type == dtype::f64) return copy<double, T>(stored, out);
            if (is_floating(stored.type)) return copy<float, T>(stored, out);
        }
        fail(tensor_name, "a type that goes into " + detail::dtype_text<T>(),
             dtype_name(stored.type), stored.first);
    }

    /// By way of numbers of type `A`, a run at a time: nothing promises that the bytes are aligned.
    template <class A, class T, std::size_t Rank>
    void copy(const safetensors_tensor& stored, const tensor_view<T, Rank>& out) const {
        constexpr std::size_t run = 256;
        const std::byte* from = data(stored);
        std::size_t left = stored.bytes() / dtype_size(stored.type);
        std::array<A, run> numbers;
        std::size_t next = run;
        detail::for_each_element(out, [&](T& element) {
            if (next == run) {
                const std::size_t count = (std::min)(run, left);
                widen(stored.type, from, count, numbers.data());
                from += count * dtype_size(stored.type);
                left -= count;
                next = 0;
            }
            if constexpr (std::is_same_v<A, T>)
                element = numbers[next++];
            else
                element = store<T>(numbers[next++]);
        });
    }

    template <class A>
    static void widen(dtype type, const std::byte* from, std::size_t count, A* to) {
        if constexpr (std::is_same_v<A, float>) {
            if (type == dtype::f16 || type == dtype::bf16) {
                std::array<std::uint16_t, 256> bits;
                std::memcpy(bits.data(), from, count * 2);
                using arch = default_arch;
                const auto length = static_cast<index_t>(count);
                if (type == dtype::f16)
                    detail::read_halves<detail::f16_vectors<arch>, arch>(bits.data(), length, to);
                else
                    detail::read_halves<detail::bf16_vectors<arch>, arch>(bits.data(), length, to);
                return;
            }
        }
        std::memcpy(static_cast<void*>(to), from, count * sizeof(A));
    }

    std::string name_;
    mapped_file file_;
    const std::byte* data_;
    std::size_t size_;
    std::size_t begin_ = 0; ///< of the data
    bool has_metadata_ = false;
    std::map<std::string, std::string> metadata_{};
    std::map<std::string, safetensors_tensor> tensors_{};
};

} // namespace MHR_ISA
} // namespace mhr
