#pragma once

#include <filesystem>
#include <string>

namespace cross_task {

/// Runs `program` (a path, or a name to be searched) on the file `script` of `folder`, in that
/// folder. Throws `std::runtime_error` with what it wrote to its standard error if it fails.
void run_gnuplot(const std::filesystem::path& program, const std::filesystem::path& folder,
                 const std::string& script);

/// `text` as a string of gnuplot that is taken literally.
std::string gnuplot_string(const std::string& text);

} // namespace cross_task
