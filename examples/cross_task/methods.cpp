#include "methods.hpp"

namespace cross_task {

const std::vector<training_method>& training_methods() {
    // Eight modules of rank 16 have as many parameters as one adapter of rank 128.
    static const std::vector<training_method> methods{
        {"shared LoRA r16", false, 1, 1, 16},
        {"shared LoRA r128", false, 1, 1, 128},
        {"random routing", true, 1, 8, 16, routing::random},
        {"Poly", true, 1, 8, 16},
        {"MHR h8", true, 8, 8, 16},
        {"MHR h32", true, 32, 8, 16},
    };
    return methods;
}

const std::vector<few_shot_method>& few_shot_methods() {
    static const std::vector<few_shot_method> methods{
        {"LoRA from scratch", 0, adaptation::scratch},
        {"shared LoRA r16", 0, adaptation::all},
        {"shared LoRA r128", 1, adaptation::all},
        {"random routing", 2, adaptation::all},
        {"Poly", 3, adaptation::all},
        {"MHR h8", 4, adaptation::all},
        {"MHR h32", 5, adaptation::all},
        {"Poly-z", 3, adaptation::routing_only},
        {"MHR-z h8", 4, adaptation::routing_only},
        {"MHR-z h32", 5, adaptation::routing_only},
        {"Poly-mu", 3, adaptation::average},
        {"MHR-mu h8", 4, adaptation::average},
        {"MHR-mu h32", 5, adaptation::average},
    };
    return methods;
}

const std::vector<further_method>& further_methods() {
    static const std::vector<further_method> methods{
        {"shared LoRA r16, further", 0, continuation::as_before},
        {"shared LoRA r128, further", 1, continuation::as_before},
        {"Poly-mu, annealed", 3, continuation::annealed},
        {"MHR-mu h8, annealed", 4, continuation::annealed},
        {"MHR-mu h32, annealed", 5, continuation::annealed},
        {"MHR-mu h8, further", 4, continuation::average},
    };
    return methods;
}

any_adapters make_adapters(const training_method& method, mhr::index_t tasks, std::uint64_t seed) {
    if (!method.routed) return plain_adapters(method.rank, seed);
    return routed_adapters({tasks, method.heads, method.modules, method.rank, method.kind}, seed);
}

any_adapters adapters_for_new_task(const few_shot_method& method, const any_adapters& trained,
                                   std::uint64_t seed) {
    if (method.kind == adaptation::scratch)
        return plain_adapters(training_methods()[method.training].rank, seed);
    const auto* routed = std::get_if<routed_adapters>(&trained);
    if (routed == nullptr) return trained;
    if (method.kind == adaptation::average) return routed->average();
    routed_adapters result = routed->for_new_task(seed);
    if (method.kind == adaptation::routing_only) result.freeze_modules();
    return result;
}

any_adapters adapters_for_further_training(const further_method& method,
                                           const any_adapters& trained) {
    return method.kind == continuation::average ? adapters_without_routing(trained) : trained;
}

any_adapters adapters_without_routing(const any_adapters& trained) {
    const auto* routed = std::get_if<routed_adapters>(&trained);
    if (routed == nullptr) return trained;
    return routed->average();
}

std::int64_t trained_parameters(const any_adapters& adapters) {
    return std::visit([](const auto& known) { return known.trained_parameters(); }, adapters);
}

} // namespace cross_task
