// The input is a safetensors file.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include <mhr/core/tensor_view.hpp>
#include <mhr/io/safetensors/dtype.hpp>
#include <mhr/io/safetensors/safetensors_file.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>

#include "fuzz/file_checks.hpp"
#include "fuzz/fuzz_target.hpp"
#include "support/file_bytes.hpp"
#include "support/guarded_tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// What must hold of a view: it is given where `may` says, and shows the tensor's bytes.
template <class Show>
void check_view(const safetensors_file& file, const safetensors_tensor& tensor, bool may,
                Show&& show) {
    const bool aligned = file.is_aligned(tensor);
    must(aligned ==
             (tensor.bytes() == 0 ||
              reinterpret_cast<std::uintptr_t>(file.data(tensor)) % dtype_size(tensor.type) == 0),
         "a tensor is aligned to the size of its elements");
    must(accepted([&] {
             const auto view = show();
             must(view.is_contiguous() &&
                      (tensor.bytes() == 0 ||
                       static_cast<const void*>(view.data()) == file.data(tensor)) &&
                      static_cast<std::size_t>(view.size()) * dtype_size(tensor.type) ==
                          tensor.bytes(),
                  "a view shows its tensor's bytes");
         }) == (may && aligned),
         "a view is given of the tensor's type and rank, where it is aligned, and only then");
}

/// Room for the elements of a tensor in any type, which is aligned for all.
std::vector<double> room_for(const safetensors_tensor& tensor) {
    return std::vector<double>(tensor.bytes() / dtype_size(tensor.type));
}

/// A tensor as one of some rank: its view is its bytes, and so is a copy in its own type.
template <std::size_t Rank>
void check_elements(const safetensors_file& file, const std::string& name) {
    const safetensors_tensor& tensor = file.tensor(name);
    const auto stored = to_element_type(tensor.type);
    check_view(file, tensor, tensor.rank == Rank && stored, [&] { return file.view<Rank>(name); });
    if (tensor.rank != Rank) return;

    std::array<index_t, Rank> extents;
    std::copy_n(tensor.extents.begin(), Rank, extents.begin());
    for (const element_type type : all_element_types) {
        std::vector<double> copy = room_for(tensor);
        const bool is_read = accepted([&] { file.read<Rank>(name, {copy.data(), type, extents}); });
        must(is_read == stored.has_value(), "element types are read as each other, others not");
        if (is_read && type == stored && tensor.bytes() != 0)
            must(std::memcmp(copy.data(), file.data(tensor), tensor.bytes()) == 0,
                 "a copy is the tensor's bytes");
    }
}

/// Reads integers in the same ways; they are nothing but what they are.
template <class Integer, std::size_t Rank>
void check_integers(const safetensors_file& file, const std::string& name) {
    const safetensors_tensor& tensor = file.tensor(name);
    const bool is_such = tensor.rank == Rank && tensor.type == dtype_of_integer<Integer>();
    check_view(file, tensor, is_such, [&] { return file.integers<Integer, Rank>(name); });
    if (tensor.rank != Rank) return;

    std::array<index_t, Rank> extents;
    std::copy_n(tensor.extents.begin(), Rank, extents.begin());
    std::vector<Integer> copy(tensor.bytes() / dtype_size(tensor.type));
    must(accepted([&] {
             file.read_integers(name, tensor_view<Integer, Rank>(copy.data(), extents));
         }) == is_such,
         "integers are read as what they are");
    if (is_such && tensor.bytes() != 0)
        must(std::memcmp(copy.data(), file.data(tensor), tensor.bytes()) == 0,
             "a copy is the tensor's bytes");
}

template <std::size_t Rank>
void check_rank(const safetensors_file& file, const std::string& name) {
    check_elements<Rank>(file, name);
    check_integers<std::int64_t, Rank>(file, name);
    check_integers<std::uint8_t, Rank>(file, name);
}

} // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::optional<safetensors_file> file;
    if (!accepted([&] { file.emplace("some.file", data, size); })) return 0;
    ++good_inputs;

    check_layout(*file, data, size);
    for (const auto& [name, tensor] : file->tensors()) {
        check_rank<1>(*file, name);
        check_rank<2>(*file, name);
        check_rank<4>(*file, name);
    }
    must(!accepted([&] { (void)file->tensor("none of that name"); }), "a missing tensor is told");

    const std::string again = written_again(*file);
    const safetensors_file second("written", again.data(), again.size());
    check_same(*file, second);
    must(written_again(second) == again, "what was written is written the same");
    return 0;
}

std::vector<std::string> mhr::test::fuzz_seeds() {
    std::vector<std::string> seeds{safetensors_bytes("{}"), safetensors_bytes("{} \n")};
    std::string several = R"({"__metadata__":{"format":"pt","\u00e9":"\\\"\n"},)" +
                          header_entry("a", "F64", "[1,2]", "[0,16]") + "," +
                          header_entry("b.c", "F32", "[1,1,2,1]", "[16,24]") + "," +
                          header_entry("d", "BF16", "[2]", "[24,28]") + "," +
                          header_entry("e", "F16", "[1,1]", "[28,30]") + "," +
                          header_entry("f", "U8", "[1]", "[30,31]") + "," +
                          header_entry("", "I64", "[0,5]", "[31,31]") + "," +
                          header_entry("number", "F8_E4M3", "[]", "[31,32]") + "}";
    several.resize((several.size() + 7) / 8 * 8, ' ');
    seeds.push_back(safetensors_bytes(several, std::string(32, 'x')));

    for (std::size_t i = 0; i < safetensors_details::dtype_table.size(); ++i) {
        const auto type = static_cast<dtype>(i);
        const std::size_t bytes = 2 * dtype_size(type);
        // The second file's data are not aligned.
        for (const char* space : {"", " "})
            seeds.push_back(
                safetensors_bytes("{" +
                                      header_entry("t", dtype_name(type), "[2,1]",
                                                   "[0," + std::to_string(bytes) + "]") +
                                      "}" + space,
                                  std::string(bytes, 'x')));
    }
    return seeds;
}
