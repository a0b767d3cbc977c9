#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "fuzz/mutation.hpp"

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned seed) {
    std::string file(data, data + size);
    mhr::test::mutate_safetensors(file, max_size, seed);
    std::copy(file.begin(), file.end(), data);
    return file.size();
}
