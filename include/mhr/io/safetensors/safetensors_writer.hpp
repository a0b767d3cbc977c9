#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <utility>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/error.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/files/json.hpp>
#include <mhr/io/files/printable.hpp>
#include <mhr/io/files/replace_file.hpp>
#include <mhr/io/safetensors/dtype.hpp>
#include <mhr/io/safetensors/safetensors_file.hpp>
#include <mhr/io/safetensors/safetensors_header.hpp>

/// \file
/// Writing safetensors files, to the byte as the format's own serialiser does: the tensors sorted
/// by type, then by name; the header padded with spaces to a multiple of 8 bytes. (That serialiser
/// writes several pieces of metadata in any order; here they are sorted.)

namespace mhr {
inline namespace MHR_ISA {

/// Collects tensors, and writes what they hold then: their memory must stay till it is written.
class safetensors_writer {
  public:
    /// A piece of metadata; PEFT writes "format": "pt". Refused: text that is not UTF-8.
    void set_metadata(std::string key, std::string value) {
        require_text("metadata", key);
        require_text("metadata", value);
        metadata_.insert_or_assign(std::move(key), std::move(value));
    }

    /// Adds a tensor, of any strides and element type: `writer.add<2>("a", {data, {rows,
    /// columns}})`. These are refused: a name that is there already or is not UTF-8; extents below
    /// 0; memory that is null or not aligned; a rank above that of files, which is 8.
    template <std::size_t Rank>
    void add(std::string name, const const_tensor_ref<Rank>& tensor) {
        add(std::move(name), tensor, tensor.extents());
    }

    /// The same, as a tensor of other extents: that of the same elements in row-major order.
    /// Refused are also extents of another number of elements.
    template <std::size_t Rank, std::size_t FileRank>
    void add(std::string name, const const_tensor_ref<Rank>& tensor,
             const std::array<index_t, FileRank>& extents) {
        const std::string argument = printable(name);
        argument_checks checks("safetensors_writer");
        checks.input(argument.c_str(), tensor);
        checks.raise();
        insert<Rank, FileRank>(std::move(name), to_dtype(tensor.type()),
                               {tensor.data(), tensor.axes(), extents});
    }

    /// Adds a tensor of integers. The same is refused.
    template <class Integer, std::size_t Rank>
    void add_integers(std::string name, const tensor_view<Integer, Rank>& view) {
        const std::string argument = printable(name);
        argument_checks checks("safetensors_writer");
        checks.numbers(argument.c_str(), view, argument_checks::any_extents<Rank>());
        checks.raise();
        insert<Rank, Rank>(std::move(name), dtype_of_integer<Integer>(),
                           {view.data(), view.axes(), view.extents()});
    }

    /// Adds a tensor of a file as it is, of whatever type. The file must stay open. These are
    /// refused: a name that the file has not, and what is refused above.
    void add(const safetensors_file& file, const std::string& name) { add(file, name, name); }

    /// The same, under another name.
    void add(const safetensors_file& file, const std::string& name, std::string new_name) {
        const safetensors_tensor& stored = file.tensor(name);
        entry added{stored.type,    stored.rank, stored.extents,   stored.rank,
                    stored.extents, {},          file.data(stored)};
        auto stride = static_cast<index_t>(dtype_size(stored.type));
        for (std::size_t axis = stored.rank; axis-- > 0;) {
            added.strides[axis] = stride;
            stride *= (std::max)(stored.extents[axis], index_t(1));
        }
        insert(std::move(new_name), added);
    }

    /// Writes the file, in place of one that is there. Refused: a file that cannot be written; the
    /// old one is then left as it was.
    void write(const std::filesystem::path& path) const {
        const std::string begin = header();
        file_details::replace_file("safetensors_writer", path, [&](std::FILE* file) {
            bool good = file_details::write_bytes(file, begin.data(), begin.size());
            for_each_run([&](const void* bytes, std::size_t size) {
                good = good && file_details::write_bytes(file, bytes, size);
            });
            return good;
        });
    }

    /// The bytes of the file.
    [[nodiscard]] std::string bytes() const {
        std::string result = header();
        for_each_run([&](const void* bytes, std::size_t size) {
            result.append(static_cast<const char*>(bytes), size);
        });
        return result;
    }

  private:
    using numbers = std::array<index_t, safetensors_tensor::max_rank>;
    struct entry {
        dtype type;
        std::size_t file_rank;
        numbers shape; ///< in the file
        std::size_t rank;
        numbers extents; ///< in memory
        numbers strides; ///< in bytes
        const std::byte* data;

        [[nodiscard]] std::size_t bytes() const {
            std::size_t product = dtype_size(type);
            for (std::size_t axis = 0; axis < rank; ++axis)
                product *= static_cast<std::size_t>(extents[axis]);
            return product;
        }
    };

    /// As the format's serialiser sorts: wide types first, so that all are aligned.
    struct order {
        bool operator()(const std::pair<dtype, std::string>& a,
                        const std::pair<dtype, std::string>& b) const {
            return a.first != b.first ? a.first > b.first : a.second < b.second;
        }
    };

    [[noreturn]] static void fail(const std::string& name, const std::string& expected,
                                  const std::string& got) {
        raise("safetensors_writer: " + printable(name) + ": expected " + expected + ", got " + got);
    }

    static std::string json_text(const std::string& text) {
        return json_details::json(text).dump(-1, ' ', false,
                                             json_details::json::error_handler_t::ignore);
    }
    /// JSON leaves out bytes that are not UTF-8, which are then missed.
    static void require_text(const std::string& name, const std::string& text) {
        if (json_details::json::parse(json_text(text)) != text) fail(name, "UTF-8", "another text");
    }

    /// What was checked, seen as bytes.
    template <std::size_t Rank, std::size_t FileRank>
    struct elements {
        const void* data;
        tensor_axes<Rank> axes;
        std::array<index_t, FileRank> extents_in_file;
    };

    template <std::size_t Rank, std::size_t FileRank>
    void insert(std::string name, dtype type, const elements<Rank, FileRank>& of) {
        static_assert((std::max)(Rank, FileRank) <= safetensors_tensor::max_rank,
                      "mhr: a rank above that of files");
        const auto& [data, axes, extents_in_file] = of;
        index_t count = 1;
        bool negative = false;
        for (const index_t extent : extents_in_file) {
            negative = negative || extent < 0;
            count = check_details::saturating_product(count, extent);
        }
        if (negative || count != axes.size())
            fail(name, "extents of " + std::to_string(axes.size()) + " elements",
                 check_details::text_of(extents_in_file.data(), FileRank));
        entry added{type, FileRank, {}, Rank, {}, {}, static_cast<const std::byte*>(data)};
        std::copy(extents_in_file.begin(), extents_in_file.end(), added.shape.begin());
        for (std::size_t axis = 0; axis < Rank; ++axis) {
            added.extents[axis] = axes.extents[axis];
            added.strides[axis] = axes.strides[axis] * static_cast<index_t>(dtype_size(type));
        }
        insert(std::move(name), added);
    }

    void insert(std::string name, const entry& added) {
        require_text(name, name);
        if (name == "__metadata__") fail(name, "another name", "this one");
        if (!names_.emplace(name, added.type).second) fail(name, "a name that comes once", "two");
        tensors_.emplace(std::pair(added.type, std::move(name)), added);
    }

    [[nodiscard]] std::string header() const {
        std::string text = "{";
        if (!metadata_.empty()) {
            text += R"("__metadata__":{)";
            for (const auto& [key, value] : metadata_)
                text += json_text(key) + ":" + json_text(value) + ",";
            text.back() = '}';
            text += ",";
        }
        std::size_t offset = 0;
        for (const auto& [key, tensor] : tensors_) {
            text += json_text(key.second) + R"(:{"dtype":")" + dtype_name(tensor.type) +
                    R"(","shape":[)";
            for (std::size_t axis = 0; axis < tensor.file_rank; ++axis)
                text += (axis == 0 ? "" : ",") + std::to_string(tensor.shape[axis]);
            text += R"(],"data_offsets":[)" + std::to_string(offset) + ",";
            offset += tensor.bytes();
            text += std::to_string(offset) + "]},";
        }
        if (text.size() > 1) text.pop_back(); // the comma
        text += "}";
        text.append((8 - text.size() % 8) % 8, ' ');
        if (text.size() > safetensors_header::max_bytes)
            fail("header", "at most " + std::to_string(safetensors_header::max_bytes) + " bytes",
                 std::to_string(text.size()));
        const std::uint64_t length = text.size();
        std::string result(sizeof length, '\0');
        std::memcpy(&result[0], &length, sizeof length);
        return result + text;
    }

    template <class Use>
    void for_each_run(Use&& use) const {
        for (const auto& [key, tensor] : tensors_)
            if (tensor.bytes() != 0) for_each_run(tensor, 0, tensor.data, use);
    }

    /// Calls `use(bytes, size)` for the elements from an axis on, in row-major order.
    template <class Use>
    static void for_each_run(const entry& tensor, std::size_t axis, const std::byte* from,
                             Use&& use) {
        const std::size_t element = dtype_size(tensor.type);
        auto dense = static_cast<index_t>(element);
        bool is_dense = true;
        for (std::size_t i = tensor.rank; i-- > axis;) {
            is_dense = is_dense && (tensor.extents[i] == 1 || tensor.strides[i] == dense);
            dense *= tensor.extents[i];
        }
        if (is_dense) return use(from, static_cast<std::size_t>(dense));
        if (axis + 1 < tensor.rank) {
            for (index_t i = 0; i < tensor.extents[axis]; ++i)
                for_each_run(tensor, axis + 1, from + i * tensor.strides[axis], use);
            return;
        }
        std::array<std::byte, 2048> run;
        std::size_t filled = 0;
        for (index_t i = 0; i < tensor.extents[axis]; ++i) {
            std::memcpy(run.data() + filled, from + i * tensor.strides[axis], element);
            filled += element;
            if (filled == run.size()) use(run.data(), std::exchange(filled, 0));
        }
        if (filled != 0) use(run.data(), filled);
    }

    std::map<std::string, std::string> metadata_{};
    std::map<std::string, dtype> names_{};
    std::map<std::pair<dtype, std::string>, entry, order> tensors_{};
};

} // namespace MHR_ISA
} // namespace mhr
