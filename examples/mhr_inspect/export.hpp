#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <optional>
#include <vector>

#include <mhr/io/peft/lora_checkpoint.hpp>
#include <mhr/io/peft/poly_checkpoint.hpp>

/// A routed adapter as a plain one, which every engine that reads LoRA of PEFT can load: what one
/// task's routing mixes, or without a task the average of the modules. The matrices are as the
/// kernels compute them, F32 (of an adapter of F64, F64).
///
/// Errors: mhr::error for a task that there is not. The routed adapter must outlive it.
class plain_adapter {
  public:
    plain_adapter(const mhr::poly_checkpoint& routed, std::optional<std::int64_t> task);
    plain_adapter(const plain_adapter&) = delete; // the writer sees its matrices
    plain_adapter& operator=(const plain_adapter&) = delete;

    [[nodiscard]] const mhr::lora_config& config() const noexcept { return config_; }
    [[nodiscard]] const mhr::lora_checkpoint_writer& writer() const noexcept { return writer_; }

  private:
    mhr::lora plain_layer(const mhr::poly_checkpoint& routed,
                          const mhr::poly_checkpoint::layer& layer,
                          std::optional<std::int64_t> task);

    mhr::lora_config config_;
    mhr::lora_checkpoint_writer writer_;
    // The matrices, of f32 or f64: the writer wants them all at the end.
    std::deque<std::vector<double>> memory_;
};

/// Writes the folder of it. Errors: mhr::error for what cannot be read, another type than POLY, a
/// task that there is not, a folder `to` that has an adapter.
void export_lora(const std::filesystem::path& folder, std::optional<std::int64_t> task,
                 const std::filesystem::path& to);
