#pragma once

#include <string>
#include <vector>

namespace cross_task {

/// The results that a claim is about.
enum class section { few_shot, zero_shot, fit, alignment };

/// A claim of the paper, as a comparison of two methods. It says that the first needs fewer bits
/// than the second, or as few where `text` says so; of alignment, that its gradients agree more.
struct claim {
    std::string text;
    std::string first;
    std::string second;
    section in;
};

/// All of them; comparisons for the same claim follow each other.
const std::vector<claim>& paper_claims();

} // namespace cross_task
