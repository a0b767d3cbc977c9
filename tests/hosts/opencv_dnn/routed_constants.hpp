#pragma once

#include <cstddef>
#include <cstdint>

#include <opencv2/core.hpp>
#include <opencv2/core/utils/logger.hpp>

#include <doctest/doctest.h>

#include <mhr/hosts/opencv_dnn.hpp>

#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

/// \file
/// The constants of a routed layer, and OpenCV as tests want it.

namespace mhr::test {

/// The constants of a routed layer.
struct routed_constants {
    tensor<float, 4> a, b;
    tensor<float, 3> weights;

    routed_constants(index_t tasks, index_t heads, index_t modules, index_t in, index_t out,
                     index_t rank, std::uint64_t seed)
        : a({heads, modules, in / heads, rank}), b({heads, modules, rank, out / heads}),
          weights({tasks, heads, modules}) {
        random_source random(seed);
        random.fill(a.view());
        random.fill(b.view());
        random.fill(weights.view(), 0, 1);
    }
};

/// Registers the layer, and keeps OpenCV from writing about what tests provoke.
struct with_opencv {
    with_opencv() {
        cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);
        opencv::register_routed_lora();
        opencv::register_routed_lora(); // does nothing
    }
    ~with_opencv() { cv::setNumThreads(-1); }
};

template <class F>
void for_each_number_of_threads(F&& f) {
    for (int threads : {1, 2, 3, 8}) {
        CAPTURE(threads);
        cv::setNumThreads(threads);
        f();
    }
    cv::setNumThreads(-1);
}

inline cv::Mat mat_of(const tensor<float, 4>& t) {
    const auto& e = t.extents();
    const int sizes[] = {static_cast<int>(e[0]), static_cast<int>(e[1]), static_cast<int>(e[2]),
                         static_cast<int>(e[3])};
    return cv::Mat(4, sizes, CV_32F, const_cast<float*>(t.values().data())).clone();
}
inline cv::Mat mat_of(const tensor<float, 3>& t) {
    const auto& e = t.extents();
    const int sizes[] = {static_cast<int>(e[0]), static_cast<int>(e[1]), static_cast<int>(e[2])};
    return cv::Mat(3, sizes, CV_32F, const_cast<float*>(t.values().data())).clone();
}

} // namespace mhr::test
