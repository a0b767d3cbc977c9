#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/training/task_similarity.hpp>

#include "support/bad_arguments.hpp"
#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using leaf_list = std::vector<index_t>;

leaf_list order_of(const tensor_view<const double, 2>& similarity) {
    tensor<index_t, 1> order({similarity.extent(0)});
    clustering_order(similarity, order.view());
    return order.values();
}

tensor<double, 2> random_similarity(index_t tasks, std::uint64_t seed) {
    tensor<double, 2> result({tasks, tasks});
    random_source(seed).fill(result.view());
    for (index_t s = 0; s < tasks; ++s)
        for (index_t t = 0; t < s; ++t)
            result(s, t) = result(t, s);
    return result;
}

bool is_permutation_of_all(leaf_list order) {
    std::sort(order.begin(), order.end());
    for (std::size_t i = 0; i < order.size(); ++i)
        if (order[i] != static_cast<index_t>(i)) return false;
    return true;
}

/// True if these tasks are next to each other in the order.
bool contiguous(const leaf_list& order, const leaf_list& tasks) {
    const auto is_one = [&](index_t task) {
        return std::find(tasks.begin(), tasks.end(), task) != tasks.end();
    };
    const auto first = std::find_if(order.begin(), order.end(), is_one);
    const auto last = std::find_if_not(first, order.end(), is_one);
    return static_cast<std::size_t>(last - first) == tasks.size();
}

/// Average linkage from its definition: the two clusters of the largest mean over all pairs of
/// leaves are merged, until one is left. Gives each merge's two clusters.
std::vector<std::pair<leaf_list, leaf_list>>
naive_merges(const tensor_view<const double, 2>& similarity) {
    std::vector<leaf_list> clusters;
    for (index_t t = 0; t < similarity.extent(0); ++t)
        clusters.push_back({t});
    std::vector<std::pair<leaf_list, leaf_list>> merges;
    while (clusters.size() > 1) {
        std::size_t best_a = 0, best_b = 0;
        long double most = -std::numeric_limits<long double>::infinity();
        for (std::size_t a = 0; a < clusters.size(); ++a)
            for (std::size_t b = a + 1; b < clusters.size(); ++b) {
                long double sum = 0;
                for (index_t s : clusters[a])
                    for (index_t t : clusters[b])
                        sum += similarity(s, t);
                const long double mean =
                    sum / static_cast<long double>(clusters[a].size() * clusters[b].size());
                if (mean <= most) continue;
                most = mean;
                best_a = a;
                best_b = b;
            }
        leaf_list& a = clusters[best_a];
        merges.emplace_back(a, clusters[best_b]);
        a.insert(a.end(), clusters[best_b].begin(), clusters[best_b].end());
        clusters.erase(clusters.begin() + static_cast<std::ptrdiff_t>(best_b));
    }
    return merges;
}

leaf_list reversed(leaf_list order) {
    std::reverse(order.begin(), order.end());
    return order;
}

} // namespace

TEST_CASE("the similarity of known weights") {
    tensor<double, 3> weights({4, 1, 2});
    tensor<double, 2> similarity({4, 4});
    weights.values() = {1, 0, 0, 2, 3, 3, 0, 0};
    task_similarity(weights.view(), similarity.view());
    const double c = std::sqrt(0.5);
    tensor<double, 2> want({4, 4});
    want.values() = {1, 0, c, 0, 0, 1, c, 0, c, c, 1, 0, 0, 0, 0, 0};
    CHECK(compare(similarity.view(), want.view(), within<double>(2)));
}

TEST_CASE("similarities agree with the formula, for every type and layout") {
    using wide = long double;
    for (element_type type : all_element_types)
        for (const std::array<index_t, 3>& extents :
             {std::array<index_t, 3>{1, 1, 1}, {5, 3, 4}, {19, 7, 23}})
            for (layout order : all_layouts) {
                CAPTURE(std::string(name_of(type)));
                CAPTURE(to_text(extents));
                CAPTURE(name_of(order));
                const index_t tasks = extents[0];
                guarded_tensor<3> weights(type, extents, order);
                guarded_buffer<double, 2> similarity({tasks, tasks}, order);
                weights.fill(random_source(4), 0.1, 1);
                const auto values = values_as<wide>(weights.const_ref());
                const auto dot = [&](index_t s, index_t t) {
                    wide sum = 0;
                    for (index_t h = 0; h < extents[1]; ++h)
                        for (index_t m = 0; m < extents[2]; ++m)
                            sum += values(s, h, m) * values(t, h, m);
                    return sum;
                };
                tensor<wide, 2> want({tasks, tasks});
                for (index_t s = 0; s < tasks; ++s)
                    for (index_t t = 0; t < tasks; ++t)
                        want(s, t) = dot(s, t) / std::sqrt(dot(s, s) * dot(t, t));
                task_similarity(weights.const_ref(), similarity.view());
                CHECK(compare(similarity.view(), want.view(), within<double>(16)));
                CHECK(compare_bitwise(similarity.view(), similarity.view().transpose(0, 1)));
                CHECK(similarity.intact());
                for (index_t t = 0; t < tasks; ++t)
                    CHECK(similarity(t, t) == 1);
            }
}

TEST_CASE("no task, one and two") {
    CHECK(order_of(tensor<double, 2>({0, 0}).view()).empty());
    CHECK(order_of(random_similarity(1, 1).view()) == leaf_list{0});
    CHECK(order_of(random_similarity(2, 1).view()) == leaf_list{0, 1});
    clustering_order({}, {});
    task_similarity({static_cast<double*>(nullptr), {0, 2, 3}}, {});
}

TEST_CASE("clusters are those of average linkage") {
    for (index_t tasks : {2, 3, 4, 5, 8, 13, 30})
        for (std::uint64_t seed = 1; seed <= 20; ++seed) {
            CAPTURE(tasks);
            CAPTURE(seed);
            const auto similarity = random_similarity(tasks, seed);
            const leaf_list order = order_of(similarity.view());
            REQUIRE(is_permutation_of_all(order));
            for (const auto& [a, b] : naive_merges(similarity.view())) {
                leaf_list both = a;
                both.insert(both.end(), b.begin(), b.end());
                CHECK(contiguous(order, a));
                CHECK(contiguous(order, b));
                CHECK(contiguous(order, both));
            }
        }
}

TEST_CASE("the most similar ends meet") {
    const auto similarity = random_similarity(40, 3);
    const leaf_list order = order_of(similarity.view());
    const auto place = [&](index_t task) {
        return std::find(order.begin(), order.end(), task) - order.begin();
    };
    for (const auto& [a, b] : naive_merges(similarity.view())) {
        // Each cluster is a run of the order, turned round as a whole or not.
        const auto ends = [&](const leaf_list& cluster) {
            std::array<std::ptrdiff_t, 2> result{place(cluster[0]), place(cluster[0])};
            for (index_t task : cluster) {
                result[0] = std::min(result[0], place(task));
                result[1] = std::max(result[1], place(task));
            }
            return result;
        };
        const auto at = [&](std::ptrdiff_t i) { return order[static_cast<std::size_t>(i)]; };
        const auto ends_a = ends(a), ends_b = ends(b);
        const bool a_first = ends_a[1] < ends_b[0];
        const double met = a_first ? similarity(at(ends_a[1]), at(ends_b[0]))
                                   : similarity(at(ends_b[1]), at(ends_a[0]));
        for (std::ptrdiff_t i : ends_a)
            for (std::ptrdiff_t j : ends_b)
                CHECK(similarity(at(i), at(j)) <= met);
    }
}

TEST_CASE("tasks along a line come out along it") {
    // Similar as they are near, from a shuffled start.
    const index_t tasks = 16;
    const leaf_list place = random_source(6).permutation(tasks);
    tensor<double, 2> similarity({tasks, tasks});
    for (index_t s = 0; s < tasks; ++s)
        for (index_t t = 0; t < tasks; ++t)
            similarity(s, t) = -std::abs(static_cast<double>(place[static_cast<std::size_t>(s)] -
                                                             place[static_cast<std::size_t>(t)]));
    leaf_list places;
    for (index_t task : order_of(similarity.view()))
        places.push_back(place[static_cast<std::size_t>(task)]);
    CHECK((std::is_sorted(places.begin(), places.end()) ||
           std::is_sorted(places.rbegin(), places.rend())));
}

TEST_CASE("the order does not depend on how the tasks are numbered, but for its direction") {
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
        const index_t tasks = 25;
        const auto similarity = random_similarity(tasks, seed);
        const leaf_list number = random_source(seed + 100).permutation(tasks);
        tensor<double, 2> renumbered({tasks, tasks});
        for (index_t s = 0; s < tasks; ++s)
            for (index_t t = 0; t < tasks; ++t)
                renumbered(s, t) = similarity(number[static_cast<std::size_t>(s)],
                                              number[static_cast<std::size_t>(t)]);
        leaf_list got;
        for (index_t task : order_of(renumbered.view()))
            got.push_back(number[static_cast<std::size_t>(task)]);
        const leaf_list want = order_of(similarity.view());
        CHECK((got == want || reversed(got) == want));
    }
}

TEST_CASE("groups stay together, however many are alike") {
    const index_t tasks = 60, groups = 7;
    random_source random(9);
    leaf_list group_of(static_cast<std::size_t>(tasks));
    for (index_t& group : group_of)
        group = random.integer(groups);
    // Each group uses modules of its own; the tasks of one are the same: ties everywhere.
    tensor<double, 3> weights({tasks, 2, groups});
    for (index_t t = 0; t < tasks; ++t)
        for (index_t h = 0; h < 2; ++h)
            weights(t, h, group_of[static_cast<std::size_t>(t)]) = 0.5;
    tensor<double, 2> similarity({tasks, tasks});
    task_similarity(weights.view(), similarity.view());
    const leaf_list order = order_of(similarity.view());
    REQUIRE(is_permutation_of_all(order));
    for (index_t group = 0; group < groups; ++group) {
        leaf_list members;
        for (index_t t = 0; t < tasks; ++t)
            if (group_of[static_cast<std::size_t>(t)] == group) members.push_back(t);
        REQUIRE(members.size() > 1);
        CHECK(contiguous(order, members));
    }
}

TEST_CASE("tasks that are all alike keep their order") {
    for (double value : {-2.0, 0.0, 1.0, 1e308, -1e308}) {
        tensor<double, 2> similarity({9, 9});
        std::fill(similarity.values().begin(), similarity.values().end(), value);
        CHECK(order_of(similarity.view()) == leaf_list{0, 1, 2, 3, 4, 5, 6, 7, 8});
    }
}

TEST_CASE("of equally similar tasks the first is taken") {
    // Task 0 is as similar to 1 as to 2: 0 and 1 are merged, and 2 is put where it meets 0.
    tensor<double, 2> similarity({3, 3});
    similarity.values() = {1, 0.5, 0.5, 0.5, 1, 0, 0.5, 0, 1};
    CHECK(order_of(similarity.view()) == leaf_list{1, 0, 2});
}

TEST_CASE("similarities that differ in their last bits only") {
    // Means round to what they are compared with, so the chain is at its weakest.
    for (std::uint64_t seed = 1; seed <= 2000; ++seed) {
        random_source random(seed);
        const index_t tasks = 5 + random.integer(12);
        auto similarity = random_similarity(tasks, seed);
        const index_t values = 2 + random.integer(3);
        for (index_t s = 0; s < tasks; ++s)
            for (index_t t = 0; t < s; ++t) {
                similarity(s, t) = 1 - static_cast<double>(random.integer(values)) * 0x1p-53;
                similarity(t, s) = similarity(s, t);
            }
        REQUIRE(is_permutation_of_all(order_of(similarity.view())));
    }
}

TEST_CASE("many ties, and magnitudes that overflow when summed") {
    // Three values only, and some at the ends of the range: it ends, and gives every task once.
    for (std::uint64_t seed = 1; seed <= 30; ++seed) {
        auto similarity = random_similarity(50, seed);
        const double huge = seed % 2 == 0 ? 1 : std::numeric_limits<double>::max();
        transform(similarity.view(), similarity.view(),
                  [&](double value) { return std::round(1.4 * value) * huge; });
        const leaf_list order = order_of(similarity.view());
        CHECK(is_permutation_of_all(order));
        CHECK(order == order_of(similarity.view()));
    }
}

TEST_CASE("an order in every layout and type") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            guarded_tensor<2> similarity(type, {20, 20}, order);
            guarded_buffer<index_t, 1> got({20}, order);
            const auto values = random_similarity(20, 2);
            for_each_position(values.extents(), [&](const position<2>& at) {
                set_element(similarity.ref(), at, element(values.view(), at));
            });
            const auto want = values_as<double>(similarity.const_ref());
            // The diagonal is not read.
            for (index_t t = 0; t < 20; ++t)
                set_element(similarity.ref(), {t, t}, std::numeric_limits<double>::quiet_NaN());
            clustering_order(similarity.const_ref(), got.view());
            leaf_list list;
            for (index_t i = 0; i < 20; ++i)
                list.push_back(got(i));
            CHECK(list == order_of(want.view()));
            CHECK(got.intact());
        }
}

TEST_CASE("bad input of task_similarity and clustering_order") {
    guarded_tensor<3> weights(element_type::f32, {3, 2, 4});
    guarded_buffer<double, 2> similarity({3, 3});
    guarded_buffer<index_t, 1> order({3});
    weights.fill(0.25);
    similarity.fill(1);
    order.fill(7);
    for (const auto& bad : bad_as_input(weights.const_ref(), {0, 1, 2})) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "task_similarity", "weights", [&] { task_similarity(bad.ref, similarity.view()); },
            similarity));
    }
    for (const auto& bad : bad_as_output(similarity.view())) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "task_similarity", "similarity", [&] { task_similarity(weights.ref(), bad.view); },
            similarity));
    }
    for (const auto& bad : bad_as_input(const_tensor_ref<2>(similarity.view()))) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "clustering_order", "similarity", [&] { clustering_order(bad.ref, order.view()); },
            order));
    }
    for (const auto& bad : bad_as_output(order.view())) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "clustering_order", "order", [&] { clustering_order(similarity.view(), bad.view); },
            order));
    }
    const double infinity = std::numeric_limits<double>::infinity();
    for (double bad : {std::numeric_limits<double>::quiet_NaN(), infinity, -infinity}) {
        similarity(1, 2) = bad;
        similarity(2, 1) = bad;
        CHECK(refuses(
            "clustering_order", "similarity",
            [&] { clustering_order(similarity.view(), order.view()); }, order));
    }
    for (double change : {-1e-15, 1e-15}) { // asymmetric
        similarity(1, 2) = 1;
        similarity(2, 1) = 1 + change;
        CHECK(refuses(
            "clustering_order", "similarity",
            [&] { clustering_order(similarity.view(), order.view()); }, order));
    }
}
