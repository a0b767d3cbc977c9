#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include <mhr/core/tensor_view.hpp>
#include <mhr/io/peft_poly.hpp>

#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

/// \file
/// A small Poly adapter in memory, and as the bytes of its files.

namespace mhr::test {

template <class T>
struct poly_files {
    static constexpr index_t tasks = 3, heads = 2, modules = 3, rank = 2, in = 4, out = 6;

    tensor<T, 4> a{{heads, modules, in / heads, rank}};
    tensor<T, 4> b{{heads, modules, rank, out / heads}};
    tensor<T, 3> logits{{tasks, heads, modules}};
    std::vector<std::string> layers{"encoder.q", "encoder.v"};

    poly_files() {
        random_source random(11);
        random.fill(a.view());
        random.fill(b.view());
        random.fill(logits.view(), 3);
    }
    static poly_config config() { return {tasks, heads, modules, rank, {"q", "v"}}; }
    poly_checkpoint_writer writer() const {
        poly_checkpoint_writer result(config());
        for (const auto& layer : layers)
            result.add_layer(layer, lora_inventory<const T>{a.view(), b.view()}, logits.view());
        return result;
    }
    std::string tensor_bytes() const { return writer().tensor_bytes(); }
    static std::string config_text() { return config().json().text(); }
};

/// Reads an adapter from the bytes of its two files.
inline poly_checkpoint open_poly(const std::string& config, const std::string& tensors) {
    return {poly_config(peft_config("some.file", config)),
            safetensors_file("some.file", tensors.data(), tensors.size())};
}

/// A text with one part of it, which must be there, exchanged.
inline std::string exchanged(std::string text, const std::string& old, const std::string& by) {
    const auto at = text.find(old);
    if (at == std::string::npos) throw std::logic_error("not in the text: " + old);
    return text.replace(at, old.size(), by);
}

} // namespace mhr::test
