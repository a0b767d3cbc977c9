#pragma once

/// \file
/// LibTorch: its tensors as views, its threads as executor (views.hpp), routed LoRA and the router
/// as functions that autograd differentiates (autograd.hpp), and as modules (modules.hpp).

#include <mhr/interop/torch/autograd.hpp>
#include <mhr/interop/torch/modules.hpp>
#include <mhr/interop/torch/views.hpp>
