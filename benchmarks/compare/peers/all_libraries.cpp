#include "../peer.hpp"

namespace mhr_bench {

std::vector<library> all_libraries() {
    std::vector<library> result{eigen_library()};
#ifdef MHR_BENCHMARK_OPENBLAS
    result.push_back(openblas_library());
#endif
#ifdef MHR_BENCHMARK_ONEDNN
    result.push_back(onednn_library());
#endif
#ifdef MHR_BENCHMARK_LIBTORCH
    for (library& of : libtorch_libraries())
        result.push_back(std::move(of));
#endif
#ifdef MHR_BENCHMARK_GGML
    result.push_back(ggml_library());
#endif
    result.push_back(plain_loops_library());
    return result;
}

environment environment_of_libraries() {
#ifdef MHR_BENCHMARK_OPENBLAS
    return openblas_environment();
#else
    return {};
#endif
}

} // namespace mhr_bench
