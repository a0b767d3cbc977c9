#include "grouped_peer.hpp"

#include <cblas.h>

#include <algorithm>
#include <string>

namespace mhr_bench {

namespace {

/// Single products run in one thread each: the threads are ours.
struct openblas {
    using storage = float;

    template <class C>
    class prepared {
      public:
        explicit prepared(const product<float, C>& of) : product_(of) {
            openblas_set_num_threads(1);
        }

        void run() const {
            const auto& p = product_;
            const float beta = p.accumulate ? 1.0F : 0.0F;
            const auto size = [](index_t value) { return static_cast<blasint>(value); };
            const auto order = [](bool transposed) {
                return transposed ? CblasTrans : CblasNoTrans;
            };
            if (p.rows == 1 && !p.a.transposed) {
                // One row is a product of a matrix and a vector: c = op(b)^T a.
                const index_t height = p.b.transposed ? p.columns : p.inner;
                const index_t width = p.b.transposed ? p.inner : p.columns;
                cblas_sgemv(CblasRowMajor, order(!p.b.transposed), size(height), size(width), 1.0F,
                            p.b.data, size(p.b.stride), p.a.data, 1, beta, p.c, 1);
                return;
            }
            cblas_sgemm(CblasRowMajor, order(p.a.transposed), order(p.b.transposed), size(p.rows),
                        size(p.columns), size(p.inner), 1.0F, p.a.data, size(p.a.stride), p.b.data,
                        size(p.b.stride), beta, p.c, size(p.stride));
        }

      private:
        product<float, C> product_;
    };
};

} // namespace

namespace {

/// Kernels by what they are written for: an older core has shorter vectors.
running_on chosen_core() {
    const std::string name = openblas_get_corename();
    const auto is_one_of = [&](std::initializer_list<const char*> names) {
        return std::find(names.begin(), names.end(), name) != names.end();
    };
    vector_level has = vector_level::none;
    if (is_one_of({"SkylakeX", "Cooperlake", "Sapphirerapids"}))
        has = vector_level::avx512;
    else if (is_one_of({"Haswell", "Zen", "Excavator"}))
        has = vector_level::avx2;
    else if (is_one_of({"Sandybridge", "Bulldozer", "Piledriver", "Steamroller"}))
        has = vector_level::avx;
    return {name, has < level_of_processor()};
}

} // namespace

environment openblas_environment() {
    // To a processor that is newer than itself OpenBLAS gives the kernels of a Prescott, without
    // AVX.
#if defined(__x86_64__)
    if (std::string(openblas_get_corename()) == "Prescott") {
        if (__builtin_cpu_supports("avx512vl")) return {{"OPENBLAS_CORETYPE", "SkylakeX"}};
        if (__builtin_cpu_supports("avx2")) return {{"OPENBLAS_CORETYPE", "Haswell"}};
    }
#endif
    return {};
}

library openblas_library() {
    return {"OpenBLAS",
            openblas_get_config(),
            library::role::grouped,
            chosen_core(),
            grouped_peers<openblas>,
            nullptr,
            grouped_base_products<openblas>};
}

} // namespace mhr_bench
