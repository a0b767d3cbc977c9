#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "fuzz/adapter_input.hpp"
#include "fuzz/mutation.hpp"

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned seed) {
    using namespace mhr::test;
    adapter_input input = split_adapter_input(data, size);
    if (seed % 2 == 0)
        mutate(input.config, max_size);
    else
        mutate_safetensors(input.tensors, max_size, seed / 2);
    std::string joined = join_adapter_input(input);
    joined.resize(std::min(joined.size(), max_size));
    std::copy(joined.begin(), joined.end(), data);
    return joined.size();
}
