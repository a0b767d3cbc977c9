#pragma once

#include <string>
#include <vector>

#include "machine.hpp"
#include "measure.hpp"
#include "summary.hpp"

namespace mhr_bench {

struct report {
    machine_description machine;
    /// Why the times say nothing, if anything does.
    std::vector<std::string> invalid_because;
    std::vector<measured_pass> passes;
    std::vector<measured_cost> costs;
    std::vector<summary_entry> summary;
};

/// Takes the rows and costs of an earlier report.json that `of` has not: a busy machine is measured
/// in pieces, whenever it is quiet.
void keep_from(const std::string& json, const std::vector<library>& libraries, report& of);

/// {"machine", "valid", "rows": [{"case", "pass", "type", "threads", "seconds",
/// "roofline_fraction", "peers": {name: their time over ours}, ..}], "summary": {key: value},
/// "targets", "costs"}.
std::string as_json(const report& of);

/// The same as tables.
std::string as_markdown(const report& of);

/// The machine and the summary alone, as a service that runs checks shows them beside a commit.
std::string as_short_markdown(const report& of);

} // namespace mhr_bench
