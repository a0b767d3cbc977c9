#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

/// Writes a routed adapter as a plain one, which every engine that reads LoRA of PEFT can load:
/// what one task's routing mixes, or without a task the average of the modules. The matrices are
/// written as the kernels compute them, F32 (of an adapter of F64, F64).
///
/// Errors: mhr::error for what cannot be read, another type than POLY, a task that there is not, a
/// folder `to` that has an adapter.
void export_lora(const std::filesystem::path& folder, std::optional<std::int64_t> task,
                 const std::filesystem::path& to);
