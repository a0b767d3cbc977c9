#pragma once

/// \file
/// Everything but input and output of files (io/) and the hosts (interop/), each of which is
/// included by name.

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/adapters/initialisation.hpp>
#include <mhr/adapters/lora.hpp>
#include <mhr/adapters/routed_lora.hpp>
#include <mhr/config.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/error.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/openmp_executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/strided.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/mixing/average.hpp>
#include <mhr/mixing/mix.hpp>
#include <mhr/reference/lora.hpp>
#include <mhr/reference/mixing.hpp>
#include <mhr/reference/routing.hpp>
#include <mhr/routing/gates.hpp>
#include <mhr/routing/noise.hpp>
#include <mhr/routing/router.hpp>
#include <mhr/simd/skinny_products.hpp>
#include <mhr/version.hpp>
