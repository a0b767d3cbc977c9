#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/error.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/files/file_path.hpp>
#include <mhr/io/files/mapped_file.hpp>
#include <mhr/io/files/printable.hpp>
#include <mhr/io/safetensors/dtype.hpp>
#include <mhr/io/safetensors/element_copies.hpp>
#include <mhr/io/safetensors/safetensors_header.hpp>

/// \file
/// Reading safetensors files (https://github.com/huggingface/safetensors): the header
/// (safetensors_header.hpp), then the tensors, row-major. Tensors are shown where they lie in the
/// mapped file, or copied. Nothing that a file claims is trusted: messages read
/// "safetensors: FILE: SUBJECT: expected ..., got ... (byte N)".
///
/// Memory, besides the file's own: at most 48 MiB, whatever the file claims; time grows with the
/// header.

namespace mhr {
inline namespace MHR_ISA {

/// A safetensors file, with every length, offset, shape and type in it checked when it is opened.
class safetensors_file {
  public:
    /// Opens a file. These are refused: what mapped_file and the format refuse; more than the
    /// limits of safetensors_header.
    explicit safetensors_file(const std::filesystem::path& path,
                              file_access access = file_access::map)
        : name_(path_text(path)), file_(path, access), data_(file_.data()),
          header_(read_header(file_.size())) {}

    /// Takes the bytes of a file, which must outlive this; `name` is for messages. The same is
    /// refused.
    safetensors_file(std::string name, const void* bytes, std::size_t size)
        : name_(std::move(name)), file_(), data_(static_cast<const std::byte*>(bytes)),
          header_(read_header(size)) {}

    /// What shows its tensors stays valid.
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
        return header_.metadata;
    }

    /// What the header says of its tensors, by their names.
    [[nodiscard]] const std::map<std::string, safetensors_tensor>& tensors() const noexcept {
        return header_.tensors;
    }

    /// True if it has a tensor of that name.
    [[nodiscard]] bool contains(const std::string& tensor) const {
        return header_.tensors.count(tensor) != 0;
    }

    /// What the header says of one tensor. Refused: there is none of that name.
    [[nodiscard]] const safetensors_tensor& tensor(const std::string& tensor_name) const {
        const auto found = header_.tensors.find(tensor_name);
        if (found == header_.tensors.end())
            raise(subject() + ": " + in_quotes(tensor_name) + ": expected a tensor, got none");
        return found->second;
    }

    /// The bytes of one of its tensors.
    [[nodiscard]] const std::byte* data(const safetensors_tensor& stored) const noexcept {
        return data_ + stored.first;
    }

    /// True if one of its tensors begins at a multiple of its elements' size in memory, as those of
    /// most files do: only then can it be shown where it lies.
    [[nodiscard]] bool is_aligned(const safetensors_tensor& stored) const noexcept {
        return stored.bytes() == 0 ||
               reinterpret_cast<std::uintptr_t>(data(stored)) % dtype_size(stored.type) == 0;
    }

    /// A tensor where it lies in the file, of the type that it is stored as; valid as long as the
    /// file is open. Nothing is copied: `file.view<2>("base_model.model.q.lora_A.weight")`.
    ///
    /// These are refused: no such tensor; another rank; a type that is no element type here (others
    /// than F64, F32, BF16 and F16); data that begin at no multiple of the elements' size, as files
    /// of other writers may have them: `read` copies those.
    template <std::size_t Rank>
    [[nodiscard]] const_tensor_ref<Rank> view(const std::string& tensor_name) const {
        const safetensors_tensor& stored = tensor(tensor_name);
        const std::array<index_t, Rank> extents = extents_of<Rank>(tensor_name, stored);
        const element_type type = element_type_of_tensor(tensor_name, stored);
        return {memory_of(tensor_name, stored), type, extents};
    }

    /// Returns a view of a tensor of integers. These are refused: what `view` refuses, and other
    /// integers than `Integer`.
    template <class Integer, std::size_t Rank>
    [[nodiscard]] tensor_view<const Integer, Rank> integers(const std::string& tensor_name) const {
        const safetensors_tensor& stored = tensor(tensor_name);
        const std::array<index_t, Rank> extents = extents_of<Rank>(tensor_name, stored);
        expect_type(tensor_name, stored, dtype_of_integer<Integer>());
        return {static_cast<const Integer*>(memory_of(tensor_name, stored)), extents};
    }

    /// Copies a tensor into one of the same extents, of any element type and strides, wherever it
    /// begins; each element is rounded to the type of `out` once.
    ///
    /// These are refused: no such tensor; another shape; a type that is no element type here; an
    /// `out` two of whose elements overlap.
    template <std::size_t Rank>
    void read(const std::string& tensor_name, const tensor_ref<Rank>& out) const {
        const safetensors_tensor& stored = tensor(tensor_name);
        check_output(out, extents_of<Rank>(tensor_name, stored));
        const element_type type = element_type_of_tensor(tensor_name, stored);
        safetensors_details::copy_elements(data(stored), type, out);
    }

    /// The same, into one of other extents with as many elements, in row-major order of both.
    /// Refused is also a tensor that has not `extents`.
    template <std::size_t Rank, std::size_t FileRank>
    void read(const std::string& tensor_name, const tensor_ref<Rank>& out,
              const std::array<index_t, FileRank>& extents) const {
        const safetensors_tensor& stored = tensor(tensor_name);
        if (extents_of<FileRank>(tensor_name, stored) != extents)
            fail(tensor_name, "extents " + check_details::text_of(extents.data(), FileRank),
                 safetensors_details::extents_text(stored), stored.first);
        argument_checks checks(read_function);
        checks.output("out", out, argument_checks::any_extents<Rank>());
        const std::size_t elements = stored.bytes() / dtype_size(stored.type);
        checks.expect(
            file_details::as_size(out.size()) == elements, "out",
            [&] { return std::to_string(elements) + " elements"; },
            [&] { return check_details::text_of(out.extents().data(), Rank); });
        checks.raise();
        const element_type type = element_type_of_tensor(tensor_name, stored);
        safetensors_details::copy_elements(data(stored), type, out);
    }

    /// Copies a tensor of integers into a view of the same extents, of any strides, wherever it
    /// begins. These are refused: no such tensor; another shape; other integers than `Integer`; an
    /// `out` two of whose elements overlap.
    template <class Integer, std::size_t Rank>
    void read_integers(const std::string& tensor_name, tensor_view<Integer, Rank> out) const {
        const safetensors_tensor& stored = tensor(tensor_name);
        argument_checks checks("safetensors_file::read_integers");
        checks.output_numbers("out", out, extents_of<Rank>(tensor_name, stored));
        checks.raise();
        expect_type(tensor_name, stored, dtype_of_integer<Integer>());
        safetensors_details::copy_integers(data(stored), out);
    }

    /// Raises an error about one of its tensors; `byte` is one of the file.
    [[noreturn]] void fail(std::string_view tensor_name, const std::string& expected,
                           const std::string& got, std::size_t byte) const {
        safetensors_details::fail(subject(), tensor_name, expected, got, byte);
    }

  private:
    static constexpr const char* read_function = "safetensors_file::read";

    [[nodiscard]] std::string subject() const { return "safetensors: " + name_; }

    [[nodiscard]] safetensors_header read_header(std::size_t size) const {
        return safetensors_details::header_reader(subject(), data_, size).read();
    }

    template <std::size_t Rank>
    [[nodiscard]] std::array<index_t, Rank> extents_of(const std::string& tensor_name,
                                                       const safetensors_tensor& stored) const {
        if (stored.rank != Rank)
            fail(tensor_name, "rank " + std::to_string(Rank),
                 safetensors_details::extents_text(stored), stored.first);
        std::array<index_t, Rank> extents;
        std::copy_n(stored.extents.begin(), Rank, extents.begin());
        return extents;
    }

    [[nodiscard]] element_type element_type_of_tensor(const std::string& tensor_name,
                                                      const safetensors_tensor& stored) const {
        const std::optional<element_type> type = to_element_type(stored.type);
        if (!type)
            fail(tensor_name, "F64, F32, F16 or BF16", dtype_name(stored.type), stored.first);
        return *type;
    }

    void expect_type(const std::string& tensor_name, const safetensors_tensor& stored,
                     dtype type) const {
        if (stored.type != type)
            fail(tensor_name, dtype_name(type), dtype_name(stored.type), stored.first);
    }

    /// Null for a tensor without elements.
    [[nodiscard]] const void* memory_of(const std::string& tensor_name,
                                        const safetensors_tensor& stored) const {
        if (stored.bytes() == 0) return nullptr;
        if (!is_aligned(stored))
            fail(tensor_name,
                 "data at a multiple of " + std::to_string(dtype_size(stored.type)) +
                     " bytes in memory",
                 "another place, from where a `read` function copies", stored.first);
        return data(stored);
    }

    template <std::size_t Rank>
    static void check_output(const tensor_ref<Rank>& out,
                             const std::array<index_t, Rank>& extents) {
        argument_checks checks(read_function);
        checks.output("out", out, extents);
        checks.raise();
    }

    std::string name_;
    mapped_file file_;
    const std::byte* data_;
    safetensors_header header_;
};

} // namespace MHR_ISA
} // namespace mhr
