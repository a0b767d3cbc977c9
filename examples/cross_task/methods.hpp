#pragma once

#include "adapters.hpp"
#include "training.hpp"

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace cross_task {

/// A way of multi-task training.
struct training_method {
    std::string name;
    bool routed = false;
    mhr::index_t heads = 1;
    mhr::index_t modules = 1;
    mhr::index_t rank = 16;
    routing kind = routing::learned;
};

/// The part of a multi-task training that is used, and trained, on a new task.
enum class adaptation {
    scratch,      ///< nothing: a new plain adapter
    all,          ///< the adapters, with a new row of logits if they are routed
    routing_only, ///< -z: the new row of logits alone
    average       ///< -mu: the average of the modules, as one plain adapter
};

/// A way of adapting to a new task.
struct few_shot_method {
    std::string name;
    std::size_t training; ///< number of the training method (of any, for `scratch`)
    adaptation kind;
};

/// The part of a multi-task training that is trained some steps further, on the same tasks, to
/// serve new tasks zero-shot.
enum class continuation {
    as_before, ///< the adapters as they are
    annealed,  ///< the modules while the routing becomes uniform, and then averaged
    average    ///< the average of the modules, as one plain adapter
};

/// A way of further training.
struct further_method {
    std::string name;
    std::size_t training; ///< number of the training method
    continuation kind;
};

const std::vector<training_method>& training_methods();
const std::vector<few_shot_method>& few_shot_methods();
const std::vector<further_method>& further_methods();

/// Adapters of either class.
using any_adapters = std::variant<plain_adapters, routed_adapters>;

/// Fresh adapters for a multi-task training.
any_adapters make_adapters(const training_method& method, mhr::index_t tasks, std::uint64_t seed);

/// Returns what a method starts from on a new task.
any_adapters adapters_for_new_task(const few_shot_method& method, const any_adapters& trained,
                                   std::uint64_t seed);

/// Returns what a further training starts from.
any_adapters adapters_for_further_training(const further_method& method,
                                           const any_adapters& trained);

/// Returns what serves tasks that were not trained: the average of the modules if they are routed.
any_adapters adapters_without_routing(const any_adapters& trained);

/// Numbers that training changes.
std::int64_t trained_parameters(const any_adapters& adapters);

} // namespace cross_task
