// The input is a safetensors file.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include <Eigen/Core>

#include <mhr/core/tensor_view.hpp>
#include <mhr/io/dtype.hpp>
#include <mhr/io/safetensors.hpp>
#include <mhr/io/safetensors_writer.hpp>

#include "fuzz/file_checks.hpp"
#include "fuzz/fuzz_target.hpp"
#include "support/file_bytes.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// A tensor as numbers of type T and some rank: its view is its bytes, and so is a copy.
template <class T, std::size_t Rank>
void check_numbers(const safetensors_file& file, const std::string& name) {
    const safetensors_tensor& tensor = file.tensor(name);
    const bool is_such = tensor.rank == Rank && dtype_of<T>() == tensor.type;
    const std::byte* const bytes = file.data(tensor);
    const bool aligned =
        tensor.bytes() == 0 || reinterpret_cast<std::uintptr_t>(bytes) % alignof(T) == 0;
    must(accepted([&] {
             const auto view = file.view<T, Rank>(name);
             must(view.is_contiguous() &&
                      (tensor.bytes() == 0 || static_cast<const void*>(view.data()) == bytes) &&
                      static_cast<std::size_t>(view.size()) * sizeof(T) == tensor.bytes(),
                  "a view shows its tensor's bytes");
         }) == (is_such && aligned),
         "a view is given of the tensor's type and rank, where it is aligned, and only then");
    if (tensor.rank != Rank) return;

    std::array<index_t, Rank> extents;
    std::copy_n(tensor.extents.begin(), Rank, extents.begin());
    std::vector<T> copy(tensor.bytes() / dtype_size(tensor.type));
    const bool is_read =
        accepted([&] { file.read(name, tensor_view<T, Rank>(copy.data(), extents)); });
    must(is_read == (is_such || (!std::is_integral_v<T> && is_floating(tensor.type))),
         "numbers with fractions are read as such, others as what they are");
    if (is_such && tensor.bytes() != 0)
        must(std::memcmp(copy.data(), bytes, tensor.bytes()) == 0, "a copy is the tensor's bytes");
}

template <class T>
void check_ranks(const safetensors_file& file, const std::string& name) {
    check_numbers<T, 1>(file, name);
    check_numbers<T, 2>(file, name);
    check_numbers<T, 4>(file, name);
}

} // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::optional<safetensors_file> file;
    if (!accepted([&] { file.emplace("some.file", data, size); })) return 0;
    ++good_inputs;

    check_layout(*file, data, size);
    for (const auto& [name, tensor] : file->tensors()) {
        check_ranks<double>(*file, name);
        check_ranks<float>(*file, name);
        check_ranks<Eigen::half>(*file, name);
        check_ranks<Eigen::bfloat16>(*file, name);
        check_ranks<std::int64_t>(*file, name);
        check_ranks<std::uint8_t>(*file, name);
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

    for (std::size_t i = 0; i < detail::dtype_table.size(); ++i) {
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
