#pragma once

#include <filesystem>
#include <iosfwd>

/// Writes what an adapter's folder holds, for people or as JSON: its layers, their shapes and types
/// and, of a routed one, how its tasks route. Errors: mhr::error, before anything is written.
void list_adapter(const std::filesystem::path& folder, bool as_json, std::ostream& out);
