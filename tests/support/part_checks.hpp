#pragma once

#include <mhr/core/argument_checks.hpp>

/// \file
/// What a gate or a normaliser checks, as an entry point named "f" asks it.

namespace mhr::test {

template <class Part, class... Sizes>
void check_part(const Part& part, Sizes... sizes) {
    argument_checks checks("f");
    part.validate(checks, static_cast<index_t>(sizes)...);
    checks.raise();
}

} // namespace mhr::test
