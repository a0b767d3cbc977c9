#pragma once

/// \file
/// Adapters of PEFT (https://github.com/huggingface/peft) on disk:
///     poly_checkpoint.hpp           type POLY, in and out
///     lora_checkpoint.hpp           type LORA, in and out
///     lora_checkpoint_library.hpp   several of type LORA as a list of adapters or one inventory
///     ia3_checkpoint.hpp            type IA3, in
/// An adapter is a folder with adapter_config.json and adapter_model.safetensors. Of which type it
/// is tells `peft_config::read(folder).type()`. Its tensors have the element types of the file,
/// which may differ from each other; what is to have another type is copied.

#include <mhr/io/peft/ia3_checkpoint.hpp>
#include <mhr/io/peft/lora_checkpoint.hpp>
#include <mhr/io/peft/lora_checkpoint_library.hpp>
#include <mhr/io/peft/peft_config.hpp>
#include <mhr/io/peft/poly_checkpoint.hpp>
