#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <opencv2/core.hpp>
#include <opencv2/core/utility.hpp>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/hosts/merged_axes.hpp>

/// \file
/// OpenCV's matrices as tensors of the library, without a copy; and its threads.

namespace mhr {

/// OpenCV's 16-bit class holds the bits of ours.
template <>
struct element_type_of<cv::float16_t> : element_type_constant<element_type::f16> {};

namespace opencv {
inline namespace MHR_ISA {

/// The memory of a matrix of one channel, with its element type, as in `const_ref_of<2>(x, "x")`;
/// `argument` is what messages call it. Axes beyond `Rank` are one with the first: a blob [images,
/// rows, features] is as rank 2 [images rows, features]. Continuous or not. An empty matrix gives
/// the absent tensor. (A cv::Mat is a handle: its own const says nothing of its elements.)
///
/// These are refused: elements that are not CV_32F, CV_64F or CV_16F; several channels; axes that
/// cannot become one.
/// @{
template <std::size_t Rank>
const_tensor_ref<Rank> const_ref_of(const cv::Mat& matrix, const char* argument = "matrix");
/// Returns a tensor that may be written.
template <std::size_t Rank>
tensor_ref<Rank> ref_of(const cv::Mat& matrix, const char* argument = "matrix");
/// @}

/// Returns a view of elements of type T, const or not: float, double, cv::float16_t, or the int
/// (CV_32S) of task ids. A matrix of another type is refused as well.
template <class T, std::size_t Rank>
tensor_view<T, Rank> view_of(const cv::Mat& matrix, const char* argument = "matrix");

/// Runs the parts on OpenCV's threads, as many as cv::setNumThreads says.
struct executor {
    /// Runs them.
    void operator()(index_t parts, parallel_body body) const {
        constexpr index_t most = 1 << 20; // OpenCV counts in int
        const auto stripes = static_cast<int>((std::min)(parts, most));
        if (stripes <= 1) return serial_executor{}(parts, body);
        cv::parallel_for_(
            cv::Range(0, stripes),
            [&](const cv::Range& range) {
                for (index_t first = range.start; first < range.end; ++first)
                    for (index_t part = first; part < parts; part += stripes)
                        body(part);
            },
            stripes);
    }
};

namespace matrix_details {

/// The element type of a matrix, if it is one of ours and there is one channel.
inline element_type checked_type(argument_checks& checks, const char* argument,
                                 const cv::Mat& matrix) {
    switch (matrix.type()) {
    case CV_32FC1:
        return element_type::f32;
    case CV_64FC1:
        return element_type::f64;
    case CV_16FC1:
        return element_type::f16;
    default:
        break;
    }
    checks.expect(false, argument, "elements CV_32FC1, CV_64FC1 or CV_16FC1",
                  [&] { return cv::typeToString(matrix.type()); });
    return {};
}

template <std::size_t Rank>
tensor_axes<Rank> checked_axes(argument_checks& checks, const char* argument,
                               const cv::Mat& matrix) {
    return host_details::merge_leading_axes<Rank>(
        checks, argument, static_cast<std::size_t>(matrix.dims),
        [&](std::size_t axis) { return static_cast<index_t>(matrix.size.p[axis]); },
        [&](std::size_t axis) {
            return static_cast<index_t>(matrix.step.p[axis] / matrix.elemSize());
        });
}

/// ref_of among other checks: the result is of use if they passed.
template <std::size_t Rank>
tensor_ref<Rank> checked_ref(argument_checks& checks, const char* argument, const cv::Mat& matrix) {
    if (matrix.empty() || !checks.passed()) return {};
    const element_type type = checked_type(checks, argument, matrix);
    if (!checks.passed()) return {};
    return {checked_axes<Rank>(checks, argument, matrix), matrix.data, type};
}

} // namespace matrix_details

template <std::size_t Rank>
const_tensor_ref<Rank> const_ref_of(const cv::Mat& matrix, const char* argument) {
    return checked("opencv::const_ref_of", [&](argument_checks& checks) {
        return matrix_details::checked_ref<Rank>(checks, argument, matrix);
    });
}

template <std::size_t Rank>
tensor_ref<Rank> ref_of(const cv::Mat& matrix, const char* argument) {
    return checked("opencv::ref_of", [&](argument_checks& checks) {
        return matrix_details::checked_ref<Rank>(checks, argument, matrix);
    });
}

template <class T, std::size_t Rank>
tensor_view<T, Rank> view_of(const cv::Mat& matrix, const char* argument) {
    constexpr int type = cv::DataType<std::remove_const_t<T>>::type;
    if (matrix.empty()) return {};
    argument_checks checks("opencv::view_of");
    checks.expect(
        matrix.type() == type, argument, [] { return "elements " + cv::typeToString(type); },
        [&] { return cv::typeToString(matrix.type()); });
    const auto axes = matrix_details::checked_axes<Rank>(checks, argument, matrix);
    checks.raise();
    return {axes, static_cast<T*>(static_cast<void*>(matrix.data))};
}

} // namespace MHR_ISA
} // namespace opencv
} // namespace mhr
