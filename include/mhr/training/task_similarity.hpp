#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <vector>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/training/gram.hpp>

/// \file
/// The similarity of the tasks' routing, and an order of the tasks that puts similar ones next to
/// each other: a heat map of a routing table needs both.

namespace mhr {
inline namespace MHR_ISA {

/// similarity[s, t] = the cosine of the tasks' weights, all heads and modules of a task being one
/// vector. It is 1 on the diagonal; a task of all-zero weights has similarity 0, with itself too.
/// Routing weights are not negative, so the cosines are not; logits may be given as well.
///
/// weights [tasks, heads, modules]; similarity [tasks, tasks], overwritten, symmetric to the bit.
///
/// These are refused: a similarity of other extents, or two of whose elements overlap. The cost is
/// tasks (tasks + 1) / 2 heads modules multiply-adds, in the calling thread.
inline void task_similarity(const const_tensor_ref<3>& weights,
                            const tensor_view<double, 2>& similarity) {
    argument_checks checks("task_similarity");
    checks.input("weights", weights);
    checks.output("similarity", tensor_ref<2>(similarity), {weights.extent(0), weights.extent(0)});
    checks.raise();
    for (index_t s = 0; s < similarity.extent(0); ++s)
        for (index_t t = 0; t < similarity.extent(1); ++t)
            similarity(s, t) = 0;
    gram_details::add_gram(serial_executor{}, gram_details::matrices_as_blocks(weights),
                           gram_details::unit_factor, similarity);
    gram_cosines(similarity, similarity);
}

namespace clustering_details {

/// Agglomerative clustering by average linkage, along chains of nearest neighbours: a cluster's
/// nearest neighbour is looked up, then that one's, until two are each other's nearest. Those may
/// be merged at once, though others are more similar: average linkage never brings a cluster
/// nearer to others than its parts were, so they would be merged in the end all the same.
class average_linkage {
  public:
    explicit average_linkage(const const_tensor_ref<2>& similarity)
        : between_leaves_(similarity), count_(similarity.extent(0)),
          similarity_(static_cast<std::size_t>(count_ * count_)),
          leaves_(static_cast<std::size_t>(count_)) {
        for (index_t s = 0; s < count_; ++s) {
            leaves(s).push_back(s);
            for (index_t t = 0; t < count_; ++t)
                between(s, t) = read_element(similarity, s, t);
        }
        std::vector<index_t> chain;
        for (index_t merged = 1; merged < count_; ++merged) {
            while (!extend(chain)) {
            }
            const auto [a, b] = std::minmax(chain[chain.size() - 2], chain.back());
            merge(a, b);
            chain.resize(chain.size() - 2);
        }
    }

    /// The leaves in order; there must be some.
    [[nodiscard]] const std::vector<index_t>& order() const noexcept { return leaves_.front(); }

  private:
    // A cluster is known by its first leaf: cluster 0 is there till the end.
    std::vector<index_t>& leaves(index_t cluster) noexcept {
        return leaves_[static_cast<std::size_t>(cluster)];
    }
    double& between(index_t a, index_t b) noexcept {
        return similarity_[static_cast<std::size_t>(a * count_ + b)];
    }

    /// True if the last two of the chain are each other's nearest; otherwise makes it longer.
    bool extend(std::vector<index_t>& chain) {
        if (chain.empty()) chain.push_back(0);
        const index_t last = chain.back();
        const index_t previous = chain.size() > 1 ? chain[chain.size() - 2] : -1;
        // Among equals the previous one is taken, or the chain could go round in a circle;
        // otherwise the first one.
        index_t nearest = previous;
        double most = previous < 0 ? 0 : between(last, previous);
        for (index_t other = 0; other < count_; ++other) {
            if (other == last || leaves(other).empty()) continue;
            if (nearest >= 0 && !(between(last, other) > most)) continue;
            nearest = other;
            most = between(last, other);
        }
        if (nearest == previous) return true;
        chain.push_back(nearest);
        return false;
    }

    /// Merges cluster b into a, which comes before it.
    void merge(index_t a, index_t b) {
        const auto share_of_b = static_cast<double>(leaves(b).size()) /
                                static_cast<double>(leaves(a).size() + leaves(b).size());
        for (index_t other = 0; other < count_; ++other) {
            if (other == a || other == b || leaves(other).empty()) continue;
            const double of_a = between(a, other);
            const double of_b = between(b, other);
            // The chain relies on a mean that is between the two in spite of rounding.
            const double mean = std::clamp(of_a + share_of_b * (of_b - of_a),
                                           (std::min)(of_a, of_b), (std::max)(of_a, of_b));
            between(a, other) = mean;
            between(other, a) = mean;
        }
        join(leaves(a), leaves(b));
    }

    /// Appends b to a, each turned round so that the most similar of their ends meet.
    void join(std::vector<index_t>& a, std::vector<index_t>& b) {
        const auto meeting = [&](index_t leaf, index_t other) {
            return read_element(between_leaves_, leaf, other);
        };
        const double ends[] = {meeting(a.back(), b.front()), meeting(a.back(), b.back()),
                               meeting(a.front(), b.front()), meeting(a.front(), b.back())};
        const auto best = std::max_element(std::begin(ends), std::end(ends)) - std::begin(ends);
        if (best >= 2) std::reverse(a.begin(), a.end());
        if (best % 2 == 1) std::reverse(b.begin(), b.end());
        a.insert(a.end(), b.begin(), b.end());
        b = {};
    }

    const_tensor_ref<2> between_leaves_;
    index_t count_;
    std::vector<double> similarity_;           // of clusters, by their first leaves
    std::vector<std::vector<index_t>> leaves_; // of each cluster; none: merged into another
};

} // namespace clustering_details

/// An order of the tasks in which each cluster, at every level, is contiguous: the leaves of
/// average-linkage agglomerative clustering (the similarity of two clusters is the mean over their
/// pairs of tasks). Where two clusters join, the most similar of their ends meet. Of equally
/// similar ones, which join first is arbitrary but fixed; tasks that are all alike keep their
/// order.
///
/// similarity [tasks, tasks], symmetric, such as those of task_similarity or gram_cosines, but any
/// numbers will do; the diagonal is not read. order [tasks], overwritten with the tasks' numbers:
/// row i of the heat map is task order[i].
///
/// It allocates a copy of the similarities (this is no kernel). These are refused: a similarity
/// that is not square; one that is not finite, or differs from its mirror image; an order of
/// another extent, or two of whose elements overlap. The cost is about 4 tasks^2 comparisons and
/// tasks^2 f64 of memory.
inline void clustering_order(const const_tensor_ref<2>& similarity,
                             const tensor_view<index_t, 1>& order) {
    argument_checks checks("clustering_order");
    checks.input("similarity", similarity, {any_extent, similarity.extent(0)});
    checks.output_numbers("order", order, {similarity.extent(0)});
    const index_t tasks = similarity.extent(0);
    for (index_t s = 0; checks.passed() && s < tasks; ++s)
        for (index_t t = s + 1; checks.passed() && t < tasks; ++t) {
            const double value = read_element(similarity, s, t);
            const double mirrored = read_element(similarity, t, s);
            checks.expect(std::isfinite(value) && !(value < mirrored) && !(value > mirrored),
                          "similarity", "finite numbers, symmetric",
                          joined(value, " and ", mirrored, " at ", std::array<index_t, 2>{s, t},
                                 " and its mirror image"));
        }
    checks.raise();
    if (tasks == 0) return;
    const clustering_details::average_linkage clusters(similarity);
    for (index_t i = 0; i < tasks; ++i)
        order(i) = clusters.order()[static_cast<std::size_t>(i)];
}

} // namespace MHR_ISA
} // namespace mhr
