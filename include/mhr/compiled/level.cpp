#include <mhr/compiled/kernel_table.hpp>
#include <mhr/kernels/kernels.hpp>

// The kernels of one instruction set: compiled once for each, with its -march.

const mhr::kernel_table& mhr_kernel_table() {
    namespace kernels = mhr::kernels;
    static const mhr::kernel_table table{kernels::architecture,
                                         kernels::shrink,
                                         kernels::expand,
                                         kernels::add_outer_products,
                                         kernels::add_sums,
                                         kernels::mix,
                                         kernels::mix_backward,
                                         kernels::shrink_along_rank,
                                         kernels::expand_rows,
                                         kernels::rescale_rows,
                                         kernels::add_products_of_rows,
                                         kernels::add_product,
                                         kernels::rescale_run,
                                         kernels::read_elements,
                                         kernels::read_elements,
                                         kernels::write_elements,
                                         kernels::write_elements};
    return table;
}
