#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>

// The types that all files of a program share, used in every way: compiled for several instruction
// sets, none of their functions may be left for the linker to merge (MHR_INLINE of config.hpp).
// Nothing here is called. Names end in what the build defines, so that they are not merged either.

#define NAME_OF(name, suffix) name##_##suffix
#define NAME(name, suffix) NAME_OF(name, suffix)

namespace shared_types {

void* NAME(use_plans, MHR_TEST_SUFFIX)(const mhr::batch_plan& from, void* memory,
                                       const std::int32_t* tasks, mhr::index_t rows) {
    auto* const plan = ::new (memory) mhr::batch_plan(from);
    plan->assign_rows(mhr::tensor_view<const std::int32_t, 1>(tasks, {rows}));
    plan->assign_sequences(mhr::tensor_view<const std::int32_t, 1>(tasks, {rows}),
                           mhr::tensor_view<const std::int32_t, 1>(tasks, {rows}));
    plan->assign_single_task(rows);
    mhr::batch_plan fresh;
    fresh = from;
    *plan = std::move(fresh);
    mhr::batch_plan moved(std::move(*plan));
    *plan = moved;
    plan->~batch_plan();
    return ::new (memory) mhr::batch_plan(std::move(moved));
}

mhr::index_t NAME(use_tensors, MHR_TEST_SUFFIX)(mhr::const_tensor_ref<3> x,
                                                const mhr::tensor_view<float, 2>& y) {
    const mhr::tensor_ref<2> written = y;
    x = x.transpose(0, 1).split(2, 3).slice(1, 1).block(0, 1, 2);
    return x.prepend_axis().size() + mhr::const_tensor_ref<2>(written).as<float>().extent(1) +
           static_cast<mhr::index_t>(x.is_contiguous()) +
           static_cast<mhr::index_t>(x.absent() || x.address_of(1, 0, 1) == nullptr);
}

std::size_t NAME(use_workspace, MHR_TEST_SUFFIX)(mhr::workspace scratch, mhr::index_t rows) {
    (void)scratch.take<float, 2>({rows, 3});
    (void)scratch.take<2>(mhr::element_type::bf16, {rows, 3});
    (void)scratch.take_rows<2>(mhr::element_type::f16, {rows, 3});
    (void)scratch.take_rows<double, 1>({rows});
    return scratch.used() + scratch.available();
}

void NAME(use_batch, MHR_TEST_SUFFIX)(const mhr::batch& b, const mhr::tensor_ref<2>& values,
                                      int* calls) {
    b.executor.run(b.plan.rows(), 1000, [&](mhr::index_t) { ++*calls; });
    mhr::executor_ref().run(3, [&](mhr::index_t) { ++*calls; });
    if (b.sum_over_ranks) b.sum_over_ranks(values);
    mhr::argument_checks checks("use_batch");
    checks.output("values", values, {b.plan.entries(), mhr::any_extent});
    checks.input("values", mhr::const_tensor_ref<2>(values));
    checks.raise();
}

std::uint16_t NAME(use_halves, MHR_TEST_SUFFIX)(float value, std::uint16_t bits) {
    mhr::f16 half;
    half.bits = bits;
    return static_cast<std::uint16_t>(mhr::f16(value).bits +
                                      mhr::bf16(value + static_cast<float>(half)).bits);
}

} // namespace shared_types
