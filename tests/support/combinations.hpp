#pragma once

/// \file
/// How many combinations of scalar types and of memory layouts the tests go through.

/// Ends a list by what is left out where MHR_TEST_FEW_COMBINATIONS is 1: under sanitizers each
/// combination of types takes up to half a minute to compile, each of layouts up to a hundred times
/// as long to run, and what they look for differs little between them.
#ifndef MHR_TEST_FEW_COMBINATIONS
#define MHR_TEST_FEW_COMBINATIONS 0
#endif
#if MHR_TEST_FEW_COMBINATIONS
#define MHR_TEST_ALSO(...)
#else
#define MHR_TEST_ALSO(...) , __VA_ARGS__
#endif
