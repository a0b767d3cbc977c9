#pragma once

#include "plots.hpp"
#include "results.hpp"

#include <filesystem>
#include <iosfwd>
#include <vector>

namespace cross_task {

/// Prints the tables of the report for a terminal.
void print_tables(std::ostream& to, const results& of);

/// Writes report.md, results.csv and settings.csv into `folder`, which is made if need be. The
/// report says how to get pictures if there are none. Throws `std::runtime_error` if results are
/// missing or a file cannot be written.
void write_report(const std::filesystem::path& folder, const results& of,
                  const std::vector<picture>& pictures);

} // namespace cross_task
