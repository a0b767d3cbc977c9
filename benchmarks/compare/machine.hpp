#pragma once

#include <string>
#include <utility>
#include <vector>

#include "peer.hpp"

namespace mhr_bench {

/// What the numbers depend on beside the code: names and values, nothing that changes by itself.
using machine_description = std::vector<std::pair<std::string, std::string>>;

machine_description describe_machine(const std::vector<library>& libraries);

/// Starts the program anew in an environment in which all competitors are at their best, as they
/// read it when they are loaded: without variables that make a library of products take an older
/// processor for granted, with what libraries want then, and with threads that sleep while they
/// wait (a spinning thread of one competitor would take the processor from the next).
void prepare_environment(char** arguments);

/// Why times in this process flatter us: the libraries that run on less than the processor has.
std::vector<std::string> held_back(const std::vector<library>& libraries);

} // namespace mhr_bench
