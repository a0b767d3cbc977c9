#include "routing_order.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

#include <mhr/training/task_similarity.hpp>

namespace cross_task {

void order_by_similarity(routing_map& map) {
    const auto tasks = static_cast<mhr::index_t>(map.languages.size());
    const mhr::index_t routers = static_cast<mhr::index_t>(map.layers) * map.heads;
    std::vector<double> cosines(static_cast<std::size_t>(tasks * tasks));
    std::vector<mhr::index_t> order(map.languages.size());
    const mhr::tensor_view<double, 2> similarity(cosines.data(), {tasks, tasks});
    mhr::task_similarity(
        mhr::tensor_view<const float, 3>(map.weights.data(), {tasks, routers, map.modules}),
        similarity);
    mhr::clustering_order(similarity, mhr::tensor_view<mhr::index_t, 1>(order.data(), {tasks}));

    const routing_map before = map;
    const mhr::index_t columns = routers * map.modules;
    for (std::size_t row = 0; row < order.size(); ++row) {
        map.languages[row] = before.languages[static_cast<std::size_t>(order[row])];
        std::copy_n(before.weights.begin() + order[row] * columns, columns,
                    map.weights.begin() + static_cast<mhr::index_t>(row) * columns);
    }
}

} // namespace cross_task
