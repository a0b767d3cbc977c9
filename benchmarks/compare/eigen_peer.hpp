#pragma once

#include "../support/layer.hpp"

#include <Eigen/Core>

#include <vector>

// The same layer by Eigen: mixed once for each task, then two products for the rows of each
// sequence.

namespace mhr_bench {

class eigen_peer {
  public:
    explicit eigen_peer(layer& of)
        : layer_(of), y_(matrix::Zero(of.sizes().rows(), of.sizes().out_features)),
          mixed_a_(static_cast<std::size_t>(of.sizes().tasks),
                   matrix(of.sizes().in_features, of.sizes().rank)),
          mixed_b_(mixed_a_.size(), matrix(of.sizes().rank, of.sizes().out_features)),
          hidden_(of.sizes().rows_of_sequence, of.sizes().rank) {}

    void forward() {
        const layer_case& c = layer_.sizes();
        const auto inventory = layer_.inventory();
        const index_t in_block = c.in_features / c.heads;
        const index_t out_block = c.out_features / c.heads;
        for (index_t t = 0; t < layer_.plan().entries(); ++t) {
            auto& a = mixed_a_[static_cast<std::size_t>(t)];
            auto& b = mixed_b_[static_cast<std::size_t>(t)];
            for (index_t h = 0; h < c.heads; ++h) {
                auto a_block = a.middleRows(h * in_block, in_block);
                auto b_block = b.middleCols(h * out_block, out_block);
                a_block.setZero();
                b_block.setZero();
                for (index_t m = 0; m < c.modules; ++m) {
                    const float weight = layer_.weights()(t, h, m);
                    a_block.noalias() +=
                        weight * const_map(&inventory.a(h, m, 0, 0), in_block, c.rank);
                    b_block.noalias() +=
                        weight * const_map(&inventory.b(h, m, 0, 0), c.rank, out_block);
                }
            }
        }
        const const_map x(layer_.x().data(), c.rows(), c.in_features);
        const auto scale = static_cast<float>(layer_.scale());
        for (index_t s = 0; s < c.sequences; ++s) {
            const auto task = static_cast<std::size_t>(s % c.tasks);
            const index_t first = s * c.rows_of_sequence;
            hidden_.noalias() = x.middleRows(first, c.rows_of_sequence) * mixed_a_[task];
            y_.middleRows(first, c.rows_of_sequence).noalias() += scale * hidden_ * mixed_b_[task];
        }
    }

    const float* y() const { return y_.data(); }

  private:
    using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    using const_map = Eigen::Map<const matrix>;

    layer& layer_;
    matrix y_;
    std::vector<matrix> mixed_a_, mixed_b_;
    matrix hidden_;
};

} // namespace mhr_bench
