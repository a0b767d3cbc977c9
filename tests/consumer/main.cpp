#include "other.hpp"

// Here and in other.cpp: a header function that is not inline would be defined twice.
#include <mhr/mhr.hpp>
#include <mhr/version.hpp>

namespace {

// What a user would first do with the library.
bool library_works() {
    return MHR_VERSION_MAJOR * 10000 + MHR_VERSION_MINOR * 100 + MHR_VERSION_PATCH ==
           other_version();
}

} // namespace

int main() {
    return library_works() ? 0 : 1;
}
