#include "eigen_mixing.hpp"

#include <ggml-cpu.h>
#include <ggml.h>

#include <cstdint>

namespace mhr_bench {

namespace {

/// A graph on memory of the caller's, made once and computed many times.
class graph {
  public:
    explicit graph(int threads)
        : context_(ggml_init({1 << 20, nullptr, true})), threads_(threads) {}
    ~graph() { ggml_free(context_); }
    graph(const graph&) = delete;
    graph& operator=(const graph&) = delete;

    /// A tensor on the given floats, extents from the fastest to the slowest, as ggml counts them.
    ggml_tensor* tensor(const float* data, index_t e0, index_t e1, index_t e2 = 1, index_t e3 = 1) {
        ggml_tensor* const result = ggml_new_tensor_4d(context_, GGML_TYPE_F32, e0, e1, e2, e3);
        result->data = const_cast<float*>(data);
        return result;
    }
    /// a b^T, and where to put it.
    ggml_tensor* multiply(ggml_tensor* a, ggml_tensor* b, float* to) {
        ggml_tensor* const result = ggml_mul_mat(context_, b, a);
        result->data = to;
        return result;
    }
    /// Rows [tasks, sequences of a task, rows, features] of sequences that are dealt in turn.
    ggml_tensor* by_task(const layer_case& c, const float* data, index_t features) {
        ggml_tensor* const all = tensor(data, features, c.rows());
        const auto row = all->nb[1], sequence = row * static_cast<std::size_t>(c.rows_of_sequence);
        return ggml_view_4d(context_, all, features, c.rows_of_sequence, c.sequences / c.tasks,
                            c.tasks, row, sequence * static_cast<std::size_t>(c.tasks), sequence,
                            0);
    }
    void add(ggml_tensor* to, ggml_tensor* what) { finish(ggml_add_inplace(context_, to, what)); }
    void finish(ggml_tensor* result) {
        graph_ = ggml_new_graph(context_);
        ggml_build_forward_expand(graph_, result);
        plan_ = ggml_graph_plan(graph_, threads_, nullptr);
        work_ = aligned_array<std::uint8_t>(static_cast<index_t>(plan_.work_size) + 1);
        plan_.work_data = work_.data();
    }
    void compute() { ggml_graph_compute(graph_, &plan_); }

  private:
    ggml_context* context_;
    ggml_cgraph* graph_ = nullptr;
    ggml_cplan plan_{};
    aligned_array<std::uint8_t> work_;
    int threads_;
};

/// Mixed once for each task; two products of a batch, whose second factors are kept transposed, as
/// ggml wants them.
class ggml_peer final : public peer {
  public:
    ggml_peer(const layer_arrays<float>& arrays, int threads)
        : arrays_(arrays), threads_(threads), mixing_(arrays, threads),
          a_(arrays.sizes.tasks * mixing_.size_a()), b_(arrays.sizes.tasks * mixing_.size_b()),
          hidden_(arrays.sizes.rows() * arrays.sizes.rank),
          result_(arrays.sizes.rows() * arrays.sizes.out_features), graph_(threads) {
        const layer_case& c = arrays.sizes;
        ggml_tensor* const a = graph_.tensor(a_.data(), c.in_features, c.rank, 1, c.tasks);
        ggml_tensor* const b = graph_.tensor(b_.data(), c.rank, c.out_features, 1, c.tasks);
        ggml_tensor* const hidden =
            graph_.multiply(graph_.by_task(c, arrays.x, c.in_features), a, hidden_.data());
        graph_.add(graph_.by_task(c, arrays.y, c.out_features),
                   graph_.multiply(hidden, b, result_.data()));
        mix();
    }

    bool can(pass which) const override { return which == pass::forward; }
    void run(pass) override {
        if (!arrays_.sizes.mixed_before()) mix();
        graph_.compute();
    }

  private:
    void mix() {
        const layer_case& c = arrays_.sizes;
        mixing_.forward();
        for_each_item(threads_, c.tasks, [&](index_t task) {
            using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
            const auto transpose = [](const float* from, index_t rows, index_t columns, float* to) {
                Eigen::Map<matrix>(to, columns, rows) =
                    Eigen::Map<const matrix>(from, rows, columns).transpose();
            };
            transpose(mixing_.mixed_a(task), c.in_features, c.rank,
                      a_.data() + task * mixing_.size_a());
            transpose(mixing_.mixed_b(task), c.rank, c.out_features,
                      b_.data() + task * mixing_.size_b());
        });
    }

    layer_arrays<float> arrays_;
    int threads_;
    eigen_mixing<float> mixing_;
    aligned_array<float> a_, b_, hidden_, result_;
    graph graph_;
};

peers make(const layer_arrays<float>& arrays, int threads) {
    peers result;
    if (arrays.sizes.sequences % arrays.sizes.tasks == 0)
        result.push_back(std::make_unique<ggml_peer>(arrays, threads));
    return result;
}

base_products make_base(const base_layer& layer, int threads) {
    const auto product = std::make_shared<graph>(threads);
    product->finish(product->multiply(
        product->tensor(layer.x, layer.in_features, layer.rows),
        product->tensor(layer.w_transposed, layer.in_features, layer.out_features), layer.y));
    return {[product] { product->compute(); }};
}

running_on chosen_instructions() {
    if (ggml_cpu_has_avx512() != 0) return {"AVX-512", false};
    if (ggml_cpu_has_avx2() != 0) return {"AVX2", vector_level::avx2 < level_of_processor()};
    return {"SSE", vector_level::none < level_of_processor()};
}

} // namespace

library ggml_library() {
    return {"ggml",  ggml_version(), library::role::grouped, chosen_instructions(), make,
            nullptr, make_base};
}

} // namespace mhr_bench
