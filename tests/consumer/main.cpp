#include "other.hpp"

// Here and in other.cpp: a header function that is not inline would be defined twice.
#include <mhr/mhr.hpp>

namespace {

// Does what a user would first do with the library.
bool library_works() {
    const int task_of_row[] = {7, 3, 7};
    mhr::batch_plan plan;
    plan.assign_rows(mhr::tensor_view<const int, 1>(task_of_row, {3}));
    float logits[2 * 2] = {0, 0, 100, -100}; // [tasks, heads = 1, modules]
    const int tasks[] = {1};
    float weights[2] = {};
    mhr::router_forward({}, {logits, {2, 1, 2}}, mhr::tensor_view<const int, 1>(tasks, {1}),
                        mhr::routing_rule{mhr::sigmoid_gate{}}, {weights, {1, 1, 2}});
    return plan.entries() == 2 && weights[0] == 1 && weights[1] < 1e-30F &&
           MHR_VERSION_MAJOR * 10000 + MHR_VERSION_MINOR * 100 + MHR_VERSION_PATCH ==
               other_version();
}

} // namespace

int main() {
    return library_works() ? 0 : 1;
}
