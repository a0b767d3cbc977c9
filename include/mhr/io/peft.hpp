#pragma once

/// \file
/// Adapters of PEFT (https://github.com/huggingface/peft) on disk:
///     peft_poly.hpp           type POLY, in and out
///     peft_lora.hpp           type LORA, in and out
///     peft_lora_library.hpp   several of type LORA as one inventory
///     peft_ia3.hpp            type IA3, in
/// An adapter is a folder with adapter_config.json and adapter_model.safetensors. Of which type it
/// is tells `peft_config::read(folder).type()`.

#include <mhr/io/peft_config.hpp>
#include <mhr/io/peft_ia3.hpp>
#include <mhr/io/peft_lora.hpp>
#include <mhr/io/peft_lora_library.hpp>
#include <mhr/io/peft_poly.hpp>
