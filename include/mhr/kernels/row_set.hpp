#pragma once

#include <mhr/core/tensor_view.hpp>

/// \file
/// The rows of a batch that a kernel computes, given by number: a batch needs no sorting in memory.

namespace mhr {

/// Numbers of rows of a matrix.
struct row_set {
    const index_t* numbers; ///< of the rows, in the order in which sums take them
    index_t count;          ///< how many there are
};

} // namespace mhr
