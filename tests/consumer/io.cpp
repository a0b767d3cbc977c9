#include <string>
#include <utility>
#include <vector>

#include <mhr/mhr.hpp>
// Else mhr.hpp is the single header, which has it in itself.
#if __has_include(<mhr/io/peft/peft.hpp>)
#include <mhr/io/peft/peft.hpp>
#endif

// Trained elsewhere, written, read again: nothing but headers and a JSON library are needed.
int main() {
    const std::vector<float> a{1, 2, 3, 4}, b{5, 6, 7, 8}, logits{0, 1};
    mhr::poly_checkpoint_writer writer(mhr::poly_config(1, 1, 2, 1, {"q"}));
    writer.add_layer("block.0.q", {{a.data(), {1, 2, 2, 1}}, {b.data(), {1, 2, 1, 2}}},
                     {logits.data(), {1, 1, 2}});
    const std::string bytes = writer.tensor_bytes();
    const mhr::poly_checkpoint read(mhr::poly_config(1, 1, 2, 1, {"q"}),
                                    mhr::safetensors_file("memory", bytes.data(), bytes.size()));
    std::vector<double> copy_a(4), copy_b(4);
    read.read_inventory(read.layers().front(),
                        {{copy_a.data(), {1, 2, 2, 1}}, {copy_b.data(), {1, 2, 1, 2}}});
    return copy_b == std::vector<double>{5, 6, 7, 8} ? 0 : 1;
}
