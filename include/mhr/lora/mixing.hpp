#pragma once

#include <algorithm>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/kernels.hpp>

/// \file
/// Mixing of the modules of an inventory, head by head, and back; and their average (MHR-mu), which
/// is the mixture with the weight 1 / m for every module. The same functions serve both matrices of
/// LoRA and the vectors of (IA)3, in every memory order: the views say how.

namespace mhr {

/// The gradients that mix_backward computes. Each is added to; one that is absent is not computed.
struct mix_gradients {
    tensor_ref<4> modules{}; ///< [heads, modules, p, q]
    tensor_ref<3> weights{}; ///< [n, heads, modules]
};

inline namespace MHR_ISA {

/// mixed[n, h, p, q] = sum over modules of weights[n, h, m] modules[h, m, p, q]: the matrices of a
/// head are mixed with the weights of that head (Caccia et al. 2023, arXiv 2211.03831, section 3;
/// one head: Ponti et al. 2023, arXiv 2202.13914). Sums are f64 if a tensor is, else f32.
///
/// weights [n, heads, modules]; modules [heads, modules, p, q]; mixed [n, heads, p, q],
/// overwritten. A module of weight 0 is not read.
///
/// It has one phase. These are refused: shapes that do not fit; a mixed two of whose elements
/// overlap. The cost is n h m p q multiply-adds; modules are read once for every 32 entries, mixed
/// is written once. It is fastest where the rows (q) or the columns (p) of modules and mixed are
/// dense, be it not the same ones.
inline void mix_forward(executor_ref executor, const const_tensor_ref<3>& weights,
                        const const_tensor_ref<4>& modules, const tensor_ref<4>& mixed);

/// The backward of mix_forward:
/// gradients.modules[h, m, p, q] += sum over n of weights[n, h, m] d_mixed[n, h, p, q] and
/// gradients.weights[n, h, m] += sum over p, q of d_mixed[n, h, p, q] modules[h, m, p, q].
///
/// Shapes as in the forward. An entry of weight 0 adds nothing to the gradient of a module.
///
/// The gradient of modules is the same for every layout, to the last bit. The sums of that of
/// weights run along the memory of the modules, and over the ends of rows where those of all three
/// are dense: another layout may round them otherwise.
///
/// It has one phase. These are refused: shapes that do not fit; a gradient two of whose elements
/// overlap. The cost is n h m p q multiply-adds for each gradient; modules and their gradient are
/// read, and the latter rounded to its type and written, once for every 32 entries.
inline void mix_backward(executor_ref executor, const const_tensor_ref<3>& weights,
                         const const_tensor_ref<4>& modules, const const_tensor_ref<4>& d_mixed,
                         const mix_gradients& gradients);

/// average[h, p, q] = 1 / m sum over modules of modules[h, m, p, q] (MHR-mu: Caccia et al. 2023,
/// arXiv 2211.03831, section 3); equal to uniform routing to the last bit.
///
/// modules [heads, modules, p, q]; average [heads, p, q], overwritten.
///
/// It has one phase. These are refused: shapes that do not fit; an average two of whose elements
/// overlap. The cost is h m p q multiply-adds.
inline void average_forward(executor_ref executor, const const_tensor_ref<4>& modules,
                            const tensor_ref<3>& average);

/// The backward of average_forward: d_modules[h, m, p, q] += d_average[h, p, q] / m.
///
/// d_average [heads, p, q]; d_modules [heads, modules, p, q] accumulates.
///
/// It has one phase. These are refused: shapes that do not fit; a d_modules two of whose elements
/// overlap. The cost is h m p q multiply-adds.
inline void average_backward(executor_ref executor, const const_tensor_ref<3>& d_average,
                             const tensor_ref<4>& d_modules);

namespace mixing_details {

/// Elements of a matrix that a part of the work mixes, about.
inline constexpr index_t elements_per_part = 8192;

/// Rows of a matrix [P, Q] that a part mixes: a multiple of 16, so that vectors stay whole.
inline index_t rows_per_part(index_t columns) noexcept {
    constexpr index_t multiple = 16;
    return (std::max)(multiple,
                      elements_per_part / (std::max)(columns, index_t(1)) / multiple * multiple);
}

/// Modules whose gradients a part owns: all of them if the heads alone give parts enough for eight
/// threads, or for those that `cost` multiply-adds in all are worth.
inline index_t modules_per_part(index_t heads, index_t modules, index_t cost) noexcept {
    const index_t enough_parts =
        (std::min)(index_t(8), cost / executor_details::worth_a_thread + 1);
    return (std::max)(index_t(1), (std::min)(modules, heads * modules / enough_parts));
}

/// mix_forward without checks.
inline void mix(executor_ref executor, const const_tensor_ref<3>& weights,
                const_tensor_ref<4> modules, tensor_ref<4> mixed) {
    if (mixed.size() == 0) return;
    const element_type sums = sums_of(sums_of(weights.type(), modules.type()), mixed.type());
    // The kernel walks along rows: those of the modules are the ones to be dense.
    if (modules.stride(2) == 1 && modules.stride(3) != 1) {
        modules = modules.transpose(2, 3);
        mixed = mixed.transpose(2, 3);
    }
    const index_t rows = rows_per_part(modules.extent(3));
    const index_t parts_of_head = (modules.extent(2) + rows - 1) / rows;
    const index_t cost = weights.extent(0) * modules.extent(1) *
                         (std::min)(rows, modules.extent(2)) * modules.extent(3);
    executor.run(modules.extent(0) * parts_of_head, cost, [&](index_t part) noexcept {
        const index_t h = part / parts_of_head;
        const index_t first = part % parts_of_head * rows;
        const index_t count = (std::min)(rows, modules.extent(2) - first);
        kernels::mix(weights.slice(1, h), modules.slice(0, h).block(1, first, count),
                     mixed.slice(1, h).block(1, first, count), sums);
    });
}

/// mix_backward without checks.
inline void mix_back(executor_ref executor, const const_tensor_ref<3>& weights,
                     const_tensor_ref<4> modules, const_tensor_ref<4> d_mixed,
                     const mix_gradients& gradients) {
    if (d_mixed.size() == 0) return;
    tensor_ref<4> d_modules = gradients.modules;
    const tensor_ref<3>& d_weights = gradients.weights;
    element_type sums = sums_of(sums_of(weights.type(), modules.type()), d_mixed.type());
    if (!d_modules.absent()) sums = sums_of(sums, d_modules.type());
    if (!d_weights.absent()) sums = sums_of(sums, d_weights.type());
    if (modules.stride(2) == 1 && modules.stride(3) != 1) {
        modules = modules.transpose(2, 3);
        d_mixed = d_mixed.transpose(2, 3);
        if (!d_modules.absent()) d_modules = d_modules.transpose(2, 3);
    }
    // Each gradient has one owner, which adds in the order of entries.
    const index_t cost_of_module = 2 * weights.extent(0) * modules.extent(2) * modules.extent(3);
    const index_t group = modules_per_part(modules.extent(0), modules.extent(1),
                                           modules.extent(0) * modules.extent(1) * cost_of_module);
    const index_t groups = (modules.extent(1) + group - 1) / group;
    executor.run(modules.extent(0) * groups, group * cost_of_module, [&](index_t part) noexcept {
        const index_t h = part / groups;
        const index_t first = part % groups * group;
        const index_t count = (std::min)(group, modules.extent(1) - first);
        kernels::mix_backward(
            weights.slice(1, h).block(1, first, count), modules.slice(0, h).block(0, first, count),
            d_mixed.slice(1, h),
            d_modules.absent() ? tensor_ref<3>{} : d_modules.slice(0, h).block(0, first, count),
            d_weights.absent() ? tensor_ref<2>{} : d_weights.slice(1, h).block(1, first, count),
            sums);
    });
}

/// The weight 1 / modules for all, rounded in the type of sums.
class uniform_weights {
  public:
    uniform_weights(element_type sums, index_t modules) noexcept : sums_(sums) {
        if (modules == 0) return;
        f64_ = 1.0 / static_cast<double>(modules);
        f32_ = 1.0F / static_cast<float>(modules);
    }

    /// Returns a tensor [1, heads, modules] of one number, which strides of 0 repeat.
    [[nodiscard]] const_tensor_ref<3> of(index_t heads, index_t modules) const noexcept {
        const void* const number =
            sums_ == element_type::f64 ? static_cast<const void*>(&f64_) : &f32_;
        return {number, sums_, {1, heads, modules}, {0, 0, 0}};
    }

  private:
    element_type sums_;
    double f64_ = 0;
    float f32_ = 0;
};

} // namespace mixing_details

inline void mix_forward(executor_ref executor, const const_tensor_ref<3>& weights,
                        const const_tensor_ref<4>& modules, const tensor_ref<4>& mixed) {
    argument_checks checks("mix_forward");
    checks.input("weights", weights);
    checks.input("modules", modules,
                 {weights.extent(1), weights.extent(2), any_extent, any_extent});
    checks.output("mixed", mixed,
                  {weights.extent(0), weights.extent(1), modules.extent(2), modules.extent(3)});
    checks.raise();
    mixing_details::mix(executor, weights, modules, mixed);
}

inline void mix_backward(executor_ref executor, const const_tensor_ref<3>& weights,
                         const const_tensor_ref<4>& modules, const const_tensor_ref<4>& d_mixed,
                         const mix_gradients& gradients) {
    argument_checks checks("mix_backward");
    checks.input("weights", weights);
    checks.input("modules", modules,
                 {weights.extent(1), weights.extent(2), any_extent, any_extent});
    checks.input("d_mixed", d_mixed,
                 {weights.extent(0), weights.extent(1), modules.extent(2), modules.extent(3)});
    checks.optional_output("gradients.modules", gradients.modules, modules.extents());
    checks.optional_output("gradients.weights", gradients.weights, weights.extents());
    checks.raise();
    mixing_details::mix_back(executor, weights, modules, d_mixed, gradients);
}

inline void average_forward(executor_ref executor, const const_tensor_ref<4>& modules,
                            const tensor_ref<3>& average) {
    argument_checks checks("average_forward");
    checks.input("modules", modules);
    checks.output("average", average, {modules.extent(0), modules.extent(2), modules.extent(3)});
    checks.raise();
    const mixing_details::uniform_weights weight(sums_of(modules.type(), average.type()),
                                                 modules.extent(1));
    mixing_details::mix(executor, weight.of(modules.extent(0), modules.extent(1)), modules,
                        average.prepend_axis());
}

inline void average_backward(executor_ref executor, const const_tensor_ref<3>& d_average,
                             const tensor_ref<4>& d_modules) {
    argument_checks checks("average_backward");
    checks.output("d_modules", d_modules, argument_checks::any_extents<4>());
    checks.input("d_average", d_average,
                 {d_modules.extent(0), d_modules.extent(2), d_modules.extent(3)});
    checks.raise();
    const mixing_details::uniform_weights weight(sums_of(d_average.type(), d_modules.type()),
                                                 d_modules.extent(1));
    mixing_details::mix_back(executor, weight.of(d_modules.extent(0), d_modules.extent(1)),
                             d_modules, d_average.prepend_axis(), {d_modules, {}});
}

} // namespace MHR_ISA
} // namespace mhr
