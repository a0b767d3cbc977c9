#pragma once

/// @file
/// The version of the library, by semantic versioning. The build reads it from here.

#define MHR_VERSION_MAJOR 0
#define MHR_VERSION_MINOR 1
#define MHR_VERSION_PATCH 0
