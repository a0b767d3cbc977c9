#pragma once

#include <Eigen/Core>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <mhr/hosts/eigen.hpp>

#include "../support/layer.hpp"

// What competitors have in common: the arrays they work on, and the passes they can run.

namespace mhr_bench {

using bfloat16 = Eigen::bfloat16;

enum class pass { forward, train, backward, backward_to_weights };

inline constexpr pass all_passes[] = {pass::forward, pass::train, pass::backward,
                                      pass::backward_to_weights};

inline const char* name_of(pass which) {
    switch (which) {
    case pass::forward:
        return "forward";
    case pass::train:
        return "forward+backward";
    case pass::backward:
        return "backward";
    case pass::backward_to_weights:
        return "backward to weights";
    }
    return "";
}

template <class T>
inline constexpr const char* name_of_type = sizeof(T) == 2 ? "bf16" : "f32";

/// The memory of a layer<T>, row-major, shapes as in mhr::routed_lora_forward; every sequence has a
/// task, entry t is task t. y and the gradients accumulate.
template <class T>
struct layer_arrays {
    layer_case sizes;
    double scale;
    const T *x, *a, *b, *d_y;
    const float* weights;
    T *y, *d_x, *d_a, *d_b;
    float* d_weights;
};

template <class T>
layer_arrays<T> arrays_of(layer<T>& of) {
    return {of.sizes(),      of.scale(),      of.x().data(),       of.a().data(),
            of.b().data(),   of.d_y().data(), of.weights().data(), of.y().data(),
            of.d_x().data(), of.d_a().data(), of.d_b().data(),     of.d_weights().data()};
}

/// One way of a library to compute a layer. The backwards follow a forward (or train) on the same
/// arrays, whose intermediate results they may use.
class peer {
  public:
    virtual ~peer() = default;
    virtual bool can(pass which) const { return which != pass::backward; }
    virtual void run(pass which) = 0;
};

/// Several ways of one library: the fastest of them competes. None: the library cannot.
using peers = std::vector<std::unique_ptr<peer>>;

/// The product that an adapter stands beside: y [rows, out] = x [rows, in] w, where w is
/// [in, out] row-major, and w_transposed the same numbers as [out, in].
struct base_layer {
    index_t rows, in_features, out_features;
    const float *x, *w, *w_transposed;
    float* y;
};
using base_products = std::vector<std::function<void()>>;

/// The instruction sets that matter to products, in order.
enum class vector_level { none, avx, avx2, avx512 };

/// The best that the processor has; `none` where it is not one of x86-64.
vector_level level_of_processor();

/// What a library has chosen to run on when it was loaded: a name in its own words, and whether
/// that is less than the processor has (see fits_processor).
struct running_on {
    std::string name;
    bool held_back = false;
};

/// How a library takes part. A null member: it does not.
struct library {
    enum class role { grouped, framework, peft_formula, plain };

    std::string name;
    std::string version;
    role plays;
    running_on core;
    peers (*f32)(const layer_arrays<float>&, int threads);
    peers (*bf16)(const layer_arrays<bfloat16>&, int threads);
    base_products (*base)(const base_layer&, int threads);

    template <class T>
    peers of(const layer_arrays<T>& arrays, int threads) const {
        if constexpr (sizeof(T) == 2)
            return bf16 ? bf16(arrays, threads) : peers{};
        else
            return f32 ? f32(arrays, threads) : peers{};
    }
};

// Each in the file of its name. `grouped` libraries mix once for each task and multiply the rows of
// a task, with a backward written by hand; so does a framework, but differentiates by itself.
library eigen_library();
library openblas_library();
library onednn_library();
std::vector<library> libtorch_libraries();
library ggml_library();
library plain_loops_library();

/// All that this program was compiled with.
std::vector<library> all_libraries();

/// Variables of the environment that libraries want to find when they are loaded, lest they be slow
/// for want of recognising the processor. (Asked where no variable holds one back.)
using environment = std::vector<std::pair<std::string, std::string>>;
environment openblas_environment();
environment environment_of_libraries();

} // namespace mhr_bench
