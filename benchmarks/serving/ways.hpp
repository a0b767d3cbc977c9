#pragma once

#include <functional>
#include <string>
#include <vector>

#include "adapters.hpp"

// Ways to serve a batch of requests, each with an adapter of its own: one step of decoding each.

namespace mhr_bench {

struct way {
    std::string name;
    std::function<void()> run;
};

/// `rows` requests that ask for `distinct` adapters, those for one beside each other (which suits
/// whoever takes them one after the other).
struct requests {
    index_t rows, distinct;

    index_t adapter_of(index_t row) const { return row * distinct / rows; }
    index_t first_row_of(index_t adapter) const {
        return (adapter * rows + distinct - 1) / distinct;
    }
};

/// The host without adapters, which the others are compared with.
way base_only(decoder& model);

/// By mhr: all requests at once; and the adapters one after the other, each with its requests
/// alone, as engines do that know one adapter at a time.
std::vector<way> ways_of_mhr(decoder& model, const plain_adapters& adapters, requests batch);
std::vector<way> ways_of_mhr(decoder& model, const routed_adapters& adapters, requests batch);

/// What others compute, by LibTorch: nothing, without it. Of plain adapters in f32, PEFT's batch of
/// several adapters (the rows of each gathered) and vLLM's formula for CPUs (the adapter of each
/// row gathered, padded to the largest rank); of routed ones, PEFT's Poly (mixed for each row).
std::vector<way> ways_of_libtorch(decoder& model, const plain_adapters& adapters, requests batch);
std::vector<way> ways_of_libtorch(decoder& model, const routed_adapters& adapters, requests batch);

} // namespace mhr_bench
