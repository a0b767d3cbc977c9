// The kernels whose hot loops check.py looks at, for the instruction set of the compiler's flags.

#include <mhr/kernels/kernels.hpp>

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

template void shrink<default_arch, float>(row_set, const const_tensor_ref<2>&,
                                          const const_tensor_ref<2>&, double,
                                          const tensor_view<float, 2>&) noexcept;
template void expand<default_arch, float>(row_set, const tensor_view<const float, 2>&,
                                          const const_tensor_ref<2>&, double,
                                          const tensor_ref<2>&) noexcept;
template void add_outer_products<default_arch, float>(row_set, const const_tensor_ref<2>&,
                                                      const tensor_view<const float, 2>&, double,
                                                      const tensor_view<float, 2>&, bool,
                                                      const const_tensor_ref<2>&) noexcept;
template void mix_matrices<default_arch, float>(const const_tensor_ref<2>&, const_tensor_ref<3>,
                                                tensor_ref<3>) noexcept;
template void mix_matrices_backward<default_arch, float>(const const_tensor_ref<2>&,
                                                         const_tensor_ref<3>, const_tensor_ref<3>,
                                                         tensor_ref<3>,
                                                         const tensor_ref<2>&) noexcept;

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr
