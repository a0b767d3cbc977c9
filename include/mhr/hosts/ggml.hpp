#pragma once

/// \file
/// ggml: its tensors, and nodes for its graphs.

#include <mhr/hosts/ggml/lora.hpp>
#include <mhr/hosts/ggml/routed_lora.hpp>
#include <mhr/hosts/ggml/tensors.hpp>
