#pragma once

#include <string>
#include <type_traits>

#include <Eigen/Core>

#include "support/combinations.hpp"
#include "support/eigen_types.hpp"
#include "support/precision.hpp"

/// \file
/// The scalar types that kernels are tested with.

/// For TEST_CASE_TEMPLATE: every storage type, and those that sums are kept in.
#define MHR_TEST_STORAGE_TYPES double, float, Eigen::bfloat16, Eigen::half
#define MHR_TEST_ACCUMULATORS double, float

namespace mhr::test {

template <class T>
std::string name_of() {
    using V = std::remove_const_t<T>;
    if constexpr (std::is_same_v<V, double>) return "double";
    if constexpr (std::is_same_v<V, float>) return "float";
    if constexpr (std::is_same_v<V, Eigen::bfloat16>) return "bfloat16";
    if constexpr (std::is_same_v<V, Eigen::half>) return "half";
    return "another type";
}

} // namespace mhr::test
