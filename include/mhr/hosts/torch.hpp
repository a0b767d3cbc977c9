#pragma once

/// \file
/// LibTorch: its tensors as tensors of the library and its threads as executor (tensors.hpp), the
/// router and routed LoRA as functions that autograd differentiates (routing.hpp, lora.hpp), and as
/// modules (modules.hpp). Everything stands in namespace mhr::torch: a program that says
/// `using namespace mhr` has to write LibTorch's own names with `::` before them.

#include <mhr/hosts/torch/lora.hpp>
#include <mhr/hosts/torch/modules.hpp>
#include <mhr/hosts/torch/routing.hpp>
#include <mhr/hosts/torch/tensors.hpp>
