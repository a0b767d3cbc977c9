#pragma once

#include "results.hpp"

#include <filesystem>
#include <string>
#include <vector>

namespace cross_task {

/// A picture of the report.
struct picture {
    std::string file; ///< relative to the folder of the report
    std::string title;
    std::string caption;
    int width = 0; ///< to show it with: half of its pixels, for dense screens
};

/// Draws the results into `folder`/plots, by the program `gnuplot`, and leaves its scripts and data
/// beside the pictures. Draws nothing if `gnuplot` is empty. Throws `std::runtime_error` with what
/// gnuplot says if it fails.
std::vector<picture> draw_pictures(const std::filesystem::path& gnuplot,
                                   const std::filesystem::path& folder, const results& of);

} // namespace cross_task
