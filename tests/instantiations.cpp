#include <Eigen/Core>

#include "support/every_kernel.hpp"

// The kernels under all warnings that are set for the headers: templates show most of theirs where
// they are instantiated.

template class mhr::test::every_kernel<float>;
template class mhr::test::every_kernel<double>;
template class mhr::test::every_kernel<Eigen::half>;
template class mhr::test::every_kernel<Eigen::bfloat16>;
