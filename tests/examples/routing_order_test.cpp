#include "examples/cross_task/routing_order.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <string>
#include <vector>

using namespace cross_task;

TEST_CASE("languages that are routed alike stand next to each other, with their weights") {
    // Two groups, mixed up; 2 layers of 1 head and 2 modules.
    routing_map map{"any", {"a0", "b0", "a1", "b1", "a2"}, 2, 1, 2, {}};
    for (std::size_t language = 0; language < 5; ++language) {
        const float on = language % 2 == 0 ? 0.9F : 0.1F;
        const float own = 0.01F * static_cast<float>(language);
        map.weights.insert(map.weights.end(), {on, 1 - on, on + own, 1 - on});
    }
    const routing_map before = map;
    order_by_similarity(map);

    std::string groups;
    for (const std::string& language : map.languages)
        groups += language[0];
    CHECK((groups == "aaabb" || groups == "bbaaa"));
    for (std::size_t row = 0; row < 5; ++row)
        for (std::size_t old = 0; old < 5; ++old)
            if (map.languages[row] == before.languages[old])
                for (std::size_t column = 0; column < 4; ++column)
                    CHECK(map.weights[4 * row + column] == before.weights[4 * old + column]);
}
