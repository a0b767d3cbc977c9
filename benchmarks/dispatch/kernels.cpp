#include "kernels.hpp"

const benchmark_kernels& dispatched_kernels() {
    static constexpr benchmark_kernels table{
        [](mhr_bench::layer<float>& layer) { layer.forward(mhr::serial_executor{}); },
        [](mhr_bench::layer<float>& layer) { layer.backward(mhr::serial_executor{}); }};
    return table;
}
