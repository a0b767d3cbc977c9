#include "other.hpp"

#include <mhr/mhr.hpp>

int other_version() {
    int unused = 0; // Would break the build if mhr's own strict warnings reached its users.
    return MHR_VERSION_MAJOR * 10000 + MHR_VERSION_MINOR * 100 + MHR_VERSION_PATCH;
}
