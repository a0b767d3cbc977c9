#pragma once

#include <filesystem>
#include <iosfwd>

#include <mhr/io/peft/peft_config.hpp>
#include <mhr/io/safetensors/safetensors_file.hpp>

/// Writes what an adapter's folder holds, for people or as JSON: its layers, their shapes and types
/// and, of a routed one, how its tasks route. Errors: mhr::error, before anything is written.
void list_adapter(const std::filesystem::path& folder, bool as_json, std::ostream& out);

/// Lists an adapter of which the two files have been opened.
void list_adapter(mhr::peft_config config, mhr::safetensors_file tensors, bool as_json,
                  std::ostream& out);
