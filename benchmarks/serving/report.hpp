#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "../compare/machine.hpp"
#include "../compare/summary.hpp"
#include "measure.hpp"

namespace mhr_bench {

struct serving_report {
    machine_description machine;
    std::vector<std::string> invalid_because;
    decoder_sizes sizes;
    int threads;
    double base_bytes;
    std::vector<std::string> base_libraries;
    std::vector<measured_serving> rows;
};

/// The numbers that are looked at first, for as many distinct adapters as requests.
std::vector<summary_entry> summarise_serving(const serving_report& of);

/// The tables of a report.
std::string markdown_of_serving(const serving_report& of);

/// Takes the rows of other kinds of adapters from an earlier report in the folder: a busy machine
/// is measured in pieces, whenever it is quiet.
void keep_from(const std::filesystem::path& folder, serving_report& of);

/// Adds to report.json and report.md of the folder, or begins them: {"serving": {"model", "rows":
/// [{"kind", "rows", "distinct", "base_seconds", "seconds": {way: ..}, "tokens_per_second": {..},
/// "bound_seconds", ..}, ..]}, "summary", "targets"}.
void write_serving_report(const serving_report& of, const std::filesystem::path& folder);

} // namespace mhr_bench
