#pragma once

#include <cstddef>
#include <vector>

#include "../support/layer.hpp"
#include "../support/multiply_add_rate.hpp"
#include "peer.hpp"

// What no kernel can beat on this machine: arithmetic at the measured peak rate, and the time of a
// plain streaming kernel over the arrays that a pass has to touch.

namespace mhr_bench {

enum class access { read, update, write };

/// An array that a pass must read, read and write, or write.
struct stretch_of_memory {
    void* data;
    std::size_t bytes;
    access how;
};

/// Walks over each array once, by vector registers, all arrays side by side: sums up what is read,
/// adds zero to what is updated (so that the arrays keep their contents), fills what is written.
/// Each thread has a share of each array.
void stream(const std::vector<stretch_of_memory>& arrays, int threads);

/// Runs `rounds` rounds of f32 multiply-adds at the peak rate in each thread, of
/// `multiply_adds_of_round` each.
void multiply_add(index_t rounds, int threads);

/// Multiply-adds of a pass: those of the rows that have a task, and of the mixing.
inline double multiply_adds(const layer_case& c, index_t rows, index_t entries, pass which) {
    const auto in = static_cast<double>(c.in_features * c.rank);
    const auto out = static_cast<double>(c.out_features * c.rank);
    const auto served = static_cast<double>(rows);
    const auto mix = static_cast<double>(entries * c.modules) * (in + out);
    const double forward = served * (in + out) + (c.mixed_before() ? 0 : mix);
    const double backward = served * 2 * (in + out) + 2 * mix;
    switch (which) {
    case pass::forward:
        return forward;
    case pass::train:
        return forward + backward;
    case pass::backward:
        return backward;
    case pass::backward_to_weights:
        return served * (in + 2 * out) + mix;
    }
    return 0;
}

template <std::size_t Rank>
stretch_of_memory stretch_of(const mhr::tensor_ref<Rank>& tensor, access how) {
    return {tensor.data(), static_cast<std::size_t>(tensor.size()) * mhr::size_of(tensor.type()),
            how};
}
template <class T, std::size_t Rank>
stretch_of_memory stretch_of(const mhr::tensor_view<T, Rank>& view, access how) {
    return stretch_of(mhr::tensor_ref<Rank>(view), how);
}

/// The arrays that a pass has to touch, each once (in the two passes of training, once in either):
/// forward: x and inventory read, y updated, hidden and what is mixed written (or, mixed before,
/// read, without the inventory); backward: x, d_y, hidden, what is mixed and inventory read, the
/// gradients updated. To the weights alone: without d_x, d_inventory, and the mixed a.
template <class T>
std::vector<stretch_of_memory> arrays_of_pass(layer<T>& of, pass which) {
    const auto state = of.state();
    std::vector<stretch_of_memory> result;
    const auto touch = [&](const auto& tensor, access how) {
        result.push_back(stretch_of(tensor, how));
    };
    const auto forward = [&] {
        const bool before = of.sizes().mixed_before();
        touch(of.x(), access::read);
        if (!before) {
            touch(of.a(), access::read);
            touch(of.b(), access::read);
            touch(of.weights(), access::read);
        }
        touch(state.mixed.a, before ? access::read : access::write);
        touch(state.mixed.b, before ? access::read : access::write);
        touch(state.hidden, access::write);
        touch(of.y(), access::update);
    };
    const auto backward = [&](bool everything) {
        touch(of.d_y(), access::read);
        touch(state.hidden, access::read);
        touch(state.mixed.b, access::read);
        touch(of.x(), access::read);
        touch(of.a(), access::read);
        touch(of.b(), access::read);
        if (everything) {
            touch(state.mixed.a, access::read);
            touch(of.weights(), access::read);
            touch(of.d_x(), access::update);
            touch(of.d_a(), access::update);
            touch(of.d_b(), access::update);
        }
        touch(of.d_weights(), access::update);
    };
    if (which == pass::forward || which == pass::train) forward();
    if (which != pass::forward) backward(which != pass::backward_to_weights);
    return result;
}

} // namespace mhr_bench
