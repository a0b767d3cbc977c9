#pragma once

/// @file
/// The version of the library, by semantic versioning. The build reads it from here.

/// Digits of the version; until the first one is positive, the second stands for it.
/// @{
#define MHR_VERSION_MAJOR 0
#define MHR_VERSION_MINOR 2
#define MHR_VERSION_PATCH 0
/// @}
