#include <string>
#include <utility>
#include <vector>

#include <mhr/mhr.hpp>
#if __has_include(<mhr/io/peft.hpp>) // else mhr.hpp is the single header, which has it in itself
#include <mhr/io/peft.hpp>
#endif

// Trained elsewhere, written, read again: nothing but headers and a JSON library are needed.
int main() {
    const std::vector<float> a{1, 2, 3, 4}, b{5, 6, 7, 8}, logits{0, 1};
    mhr::poly_checkpoint_writer writer(mhr::poly_config(1, 1, 2, 1, {"q"}));
    writer.add_layer(
        "block.0.q",
        mhr::lora_inventory<const float>{{a.data(), {1, 2, 2, 1}}, {b.data(), {1, 2, 1, 2}}},
        mhr::tensor_view<const float, 3>(logits.data(), {1, 1, 2}));
    const std::string bytes = writer.tensor_bytes();
    const mhr::poly_checkpoint read(mhr::poly_config(1, 1, 2, 1, {"q"}),
                                    mhr::safetensors_file("memory", bytes.data(), bytes.size()));
    std::vector<double> copy(4);
    read.read_inventory(
        read.layers().front(),
        mhr::lora_inventory<double>{{copy.data(), {1, 2, 2, 1}}, {copy.data(), {1, 2, 1, 2}}});
    return copy == std::vector<double>{5, 6, 7, 8} ? 0 : 1;
}
