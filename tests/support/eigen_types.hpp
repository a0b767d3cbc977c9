#pragma once

#include <Eigen/Core>

#include <mhr/core/element_type.hpp>

/// \file
/// What Eigen's 16-bit classes are, as a host would tell it.

template <>
struct mhr::element_type_of<Eigen::bfloat16> {
    static constexpr mhr::element_type value = mhr::element_type::bf16;
};
template <>
struct mhr::element_type_of<Eigen::half> {
    static constexpr mhr::element_type value = mhr::element_type::f16;
};
