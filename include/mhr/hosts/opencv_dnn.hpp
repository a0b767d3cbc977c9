#pragma once

/// \file
/// OpenCV: its matrices as tensors of the library and its threads as executor (matrices.hpp), and a
/// layer with routed LoRA for networks of its DNN module (layer.hpp).

#include <mhr/hosts/opencv_dnn/layer.hpp>
#include <mhr/hosts/opencv_dnn/matrices.hpp>
