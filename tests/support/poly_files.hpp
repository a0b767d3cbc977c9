#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include <mhr/core/element_type.hpp>
#include <mhr/io/peft/poly_checkpoint.hpp>

#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"

/// \file
/// A small Poly adapter in memory, of any element types, and as the bytes of its files.

namespace mhr::test {

struct poly_files {
    static constexpr index_t tasks = 3, heads = 2, modules = 3, rank = 2, in = 4, out = 6;

    guarded_tensor<4> a;
    guarded_tensor<4> b;
    guarded_tensor<3> logits;
    std::vector<std::string> layers{"encoder.q", "encoder.v"};

    /// All tensors of one type.
    explicit poly_files(element_type type = element_type::f32, layout order = layout::row_major)
        : poly_files(type, type, type, order) {}
    /// Each of its own.
    poly_files(element_type of_a, element_type of_b, element_type of_logits,
               layout order = layout::row_major)
        : a(of_a, {heads, modules, in / heads, rank}, order),
          b(of_b, {heads, modules, rank, out / heads}, order),
          logits(of_logits, {tasks, heads, modules}, order) {
        random_source random(11);
        a.fill(random);
        b.fill(random);
        logits.fill(random, -3, 3);
    }
    static poly_config config() { return {tasks, heads, modules, rank, {"q", "v"}}; }
    lora_inventory inventory() const { return {a.const_ref(), b.const_ref()}; }
    poly_checkpoint_writer writer() const {
        poly_checkpoint_writer result(config());
        for (const auto& layer : layers)
            result.add_layer(layer, inventory(), logits.const_ref());
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
