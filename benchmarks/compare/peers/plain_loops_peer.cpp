#include "../peer.hpp"

#include <algorithm>

namespace mhr_bench {

namespace {

/// What one writes without a library: mixed once for each task, loops in the order that compilers
/// turn into vector code.
class plain_loops final : public peer {
  public:
    explicit plain_loops(const layer_arrays<float>& arrays)
        : arrays_(arrays),
          mixed_a_(arrays.sizes.tasks * arrays.sizes.in_features * arrays.sizes.rank),
          mixed_b_(arrays.sizes.tasks * arrays.sizes.rank * arrays.sizes.out_features),
          hidden_(arrays.sizes.rank) {}

    bool can(pass which) const override { return which == pass::forward; }

    void run(pass) override {
        const layer_case& c = arrays_.sizes;
        const auto scale = static_cast<float>(arrays_.scale);
        for (index_t task = 0; task < c.tasks; ++task)
            mix(task);
        for (index_t row = 0; row < c.rows(); ++row) {
            const index_t task = row / c.rows_of_sequence % c.tasks;
            const float* x = arrays_.x + row * c.in_features;
            const float* a = mixed_a_.data() + task * c.in_features * c.rank;
            const float* b = mixed_b_.data() + task * c.rank * c.out_features;
            float* y = arrays_.y + row * c.out_features;
            float* hidden = hidden_.data();
            for (index_t k = 0; k < c.rank; ++k)
                hidden[k] = 0;
            for (index_t i = 0; i < c.in_features; ++i)
                for (index_t k = 0; k < c.rank; ++k)
                    hidden[k] += x[i] * a[i * c.rank + k];
            for (index_t k = 0; k < c.rank; ++k) {
                const float value = scale * hidden[k];
                for (index_t o = 0; o < c.out_features; ++o)
                    y[o] += value * b[k * c.out_features + o];
            }
        }
    }

  private:
    void mix(index_t task) {
        const layer_case& c = arrays_.sizes;
        const index_t in = c.in_features / c.heads * c.rank;
        const index_t out = c.out_features / c.heads;
        float* mixed_a = mixed_a_.data() + task * c.in_features * c.rank;
        float* mixed_b = mixed_b_.data() + task * c.rank * c.out_features;
        std::fill_n(mixed_a, c.in_features * c.rank, 0.0F);
        std::fill_n(mixed_b, c.rank * c.out_features, 0.0F);
        for (index_t h = 0; h < c.heads; ++h)
            for (index_t m = 0; m < c.modules; ++m) {
                const float weight = arrays_.weights[(task * c.heads + h) * c.modules + m];
                const float* a = arrays_.a + (h * c.modules + m) * in;
                const float* b = arrays_.b + (h * c.modules + m) * c.rank * out;
                for (index_t i = 0; i < in; ++i)
                    mixed_a[h * in + i] += weight * a[i];
                for (index_t k = 0; k < c.rank; ++k)
                    for (index_t o = 0; o < out; ++o)
                        mixed_b[k * c.out_features + h * out + o] += weight * b[k * out + o];
            }
    }

    layer_arrays<float> arrays_;
    aligned_array<float> mixed_a_, mixed_b_, hidden_;
};

/// For small layers in one thread, which do not repay a library.
peers make(const layer_arrays<float>& arrays, int threads) {
    peers result;
    if (threads == 1 && arrays.sizes.in_features <= 256 && !arrays.sizes.mixed_before())
        result.push_back(std::make_unique<plain_loops>(arrays));
    return result;
}

} // namespace

library plain_loops_library() {
    return {"plain loops", "", library::role::plain, {}, make, nullptr, nullptr};
}

} // namespace mhr_bench
