#pragma once

#include <Eigen/Core>

#include <algorithm>
#include <vector>

#include "../peer.hpp"
#include "parallel.hpp"

namespace mhr_bench {

/// Mixing by Eigen, which all peers with grouped products share: each module is read once for all
/// tasks, in strips that stay in L1. Where the inventory is bf16, so is what is mixed.
///
/// The layer's scale goes into the mixed b (and comes out of the gradients with respect to it): the
/// products need no factor then.
template <class T>
class eigen_mixing {
  public:
    eigen_mixing(const layer_arrays<T>& arrays, int threads)
        : arrays_(arrays), threads_(threads), scale_(static_cast<float>(arrays.scale)),
          mixed_a_(arrays.sizes.tasks * size_a()), mixed_b_(arrays.sizes.tasks * size_b()),
          d_mixed_a_(mixed_a_.size()), d_mixed_b_(mixed_b_.size()),
          d_weights_of_share_(static_cast<std::size_t>(threads)),
          converted_(static_cast<std::size_t>(threads)) {
        const layer_case& c = arrays.sizes;
        const index_t block_a = c.in_features / c.heads * c.rank;
        const index_t block_b = c.out_features / c.heads;
        for (index_t h = 0; h < c.heads; ++h) {
            // The rows of a head's block of a follow each other, in modules and mixture alike.
            add_strips(h, false, h * c.modules * block_a, block_a, h * block_a, block_a);
            for (index_t k = 0; k < c.rank; ++k)
                add_strips(h, true, (h * c.modules * c.rank + k) * block_b, c.rank * block_b,
                           k * c.out_features + h * block_b, block_b);
        }
    }

    index_t size_a() const { return arrays_.sizes.in_features * arrays_.sizes.rank; }
    index_t size_b() const { return arrays_.sizes.out_features * arrays_.sizes.rank; }
    T* mixed_a(index_t task) { return mixed_a_.data() + task * size_a(); }
    T* mixed_b(index_t task) { return mixed_b_.data() + task * size_b(); }
    float* d_mixed_a(index_t task) { return d_mixed_a_.data() + task * size_a(); }
    float* d_mixed_b(index_t task) { return d_mixed_b_.data() + task * size_b(); }

    void forward() {
        for_each_strip([&](const strip& of, index_t share) { forward(of, share); });
    }

    /// From d_mixed to d_weights, and to d_a and d_b if wanted.
    void backward(bool to_modules) {
        const layer_case& c = arrays_.sizes;
        for (auto& sums : d_weights_of_share_)
            sums.assign(static_cast<std::size_t>(c.tasks * c.heads * c.modules), 0.0F);
        for_each_strip([&](const strip& of, index_t share) { backward(of, to_modules, share); });
        for (const auto& sums : d_weights_of_share_)
            for (std::size_t i = 0; i < sums.size(); ++i)
                arrays_.d_weights[i] += sums[i];
    }

  private:
    using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    template <class V>
    using map =
        Eigen::Map<std::conditional_t<std::is_const_v<V>,
                                      const Eigen::Matrix<std::remove_const_t<V>, -1, -1, 1>,
                                      Eigen::Matrix<V, -1, -1, 1>>,
                   0, Eigen::OuterStride<>>;

    static constexpr index_t strip_length = 512;

    /// A piece of one head's parameters: `length` elements of each module, and of each mixture.
    struct strip {
        index_t head, length;
        bool of_b;
        index_t module_offset, module_stride, mixed_offset;
    };

    void add_strips(index_t head, bool of_b, index_t module_offset, index_t module_stride,
                    index_t mixed_offset, index_t length) {
        for (index_t first = 0; first < length; first += strip_length)
            strips_.push_back({head, std::min(strip_length, length - first), of_b,
                               module_offset + first, module_stride, mixed_offset + first});
    }

    /// Calls f(strip, share): each thread has a share of the strips.
    template <class F>
    void for_each_strip(F&& f) {
        for_each_item(threads_, threads_, [&](index_t share) {
            for (auto i = static_cast<std::size_t>(share); i < strips_.size();
                 i += static_cast<std::size_t>(threads_))
                f(strips_[i], share);
        });
    }

    map<const float> weights_of(index_t head) const {
        const layer_case& c = arrays_.sizes;
        return {arrays_.weights + head * c.modules, c.tasks, c.modules,
                Eigen::OuterStride<>(c.heads * c.modules)};
    }
    auto modules_of(const strip& s) const {
        return map<const T>((s.of_b ? arrays_.b : arrays_.a) + s.module_offset,
                            arrays_.sizes.modules, s.length, Eigen::OuterStride<>(s.module_stride));
    }

    void forward(const strip& s, [[maybe_unused]] index_t share) {
        const index_t tasks = arrays_.sizes.tasks;
        map<T> mixed((s.of_b ? mixed_b_ : mixed_a_).data() + s.mixed_offset, tasks, s.length,
                     Eigen::OuterStride<>(s.of_b ? size_b() : size_a()));
        const float factor = s.of_b ? scale_ : 1.0F;
        const auto weights = weights_of(s.head);
        const auto modules = modules_of(s);
        if constexpr (std::is_same_v<T, float>) {
            for (index_t task = 0; task < tasks; ++task)
                mix_row(weights.row(task) * factor, modules, mixed.row(task));
        } else {
            // Converted once for all tasks.
            float sums[strip_length];
            Eigen::Map<Eigen::RowVectorXf> sum(sums, s.length);
            matrix& converted = converted_[static_cast<std::size_t>(share)];
            converted.resize(modules.rows(), modules.cols());
            converted = modules.template cast<float>();
            for (index_t task = 0; task < tasks; ++task) {
                mix_row(weights.row(task) * factor, converted, sum);
                mixed.row(task) = sum.template cast<T>();
            }
        }
    }
    /// Four modules at a time, for which the sum stays in registers.
    template <class W, class M, class Y>
    void mix_row(const W& weights, const M& modules, Y&& y) const {
        const auto module = [&](index_t m) { return weights(m) * modules.row(m); };
        const index_t count = modules.rows();
        index_t m = 0;
        if (count >= 4) {
            y.noalias() = module(0) + module(1) + module(2) + module(3);
            m = 4;
        } else {
            y.noalias() = module(0);
            m = 1;
        }
        for (; m + 4 <= count; m += 4)
            y.noalias() += module(m) + module(m + 1) + module(m + 2) + module(m + 3);
        for (; m < count; ++m)
            y.noalias() += module(m);
    }

    void backward(const strip& s, bool to_modules, index_t share) {
        const layer_case& c = arrays_.sizes;
        const map<const float> d_mixed((s.of_b ? d_mixed_b_ : d_mixed_a_).data() + s.mixed_offset,
                                       c.tasks, s.length,
                                       Eigen::OuterStride<>(s.of_b ? size_b() : size_a()));
        const float factor = s.of_b ? scale_ : 1.0F;
        const auto weights = weights_of(s.head);
        const auto modules = modules_of(s);
        map<T> d_modules((s.of_b ? arrays_.d_b : arrays_.d_a) + s.module_offset, c.modules,
                         s.length, Eigen::OuterStride<>(s.module_stride));
        map<float> d_weights(d_weights_of_share_[static_cast<std::size_t>(share)].data() +
                                 s.head * c.modules,
                             c.tasks, c.modules, Eigen::OuterStride<>(c.heads * c.modules));
        for (index_t m = 0; m < c.modules; ++m) {
            float values[strip_length];
            Eigen::Map<Eigen::RowVectorXf> module(values, s.length);
            module = modules.row(m).template cast<float>();
            for (index_t task = 0; task < c.tasks; ++task)
                d_weights(task, m) += factor * d_mixed.row(task).cwiseProduct(module).sum();
            if (!to_modules) continue;
            module = d_modules.row(m).template cast<float>();
            for (index_t task = 0; task < c.tasks; ++task)
                module.noalias() += (factor * weights(task, m)) * d_mixed.row(task);
            d_modules.row(m) = module.template cast<T>();
        }
    }

    layer_arrays<T> arrays_;
    int threads_;
    float scale_;
    aligned_array<T> mixed_a_, mixed_b_;
    aligned_array<float> d_mixed_a_, d_mixed_b_;
    std::vector<std::vector<float>> d_weights_of_share_;
    std::vector<matrix> converted_;
    std::vector<strip> strips_;
};

} // namespace mhr_bench
