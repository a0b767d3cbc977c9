// A function as a Python extension or an engine's plug-in exports it: it takes tensors of whoever
// calls, of any of mhr's element types and of any strides, by DLPack, and copies none. A main()
// that calls it stands below.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include <mhr/hosts/dlpack.hpp>
#include <mhr/mhr.hpp>

namespace {

using mhr::dlpack::const_ref_of;

void add_routed_lora(const DLTensor& x, const DLTensor& task_of_row, const DLTensor& a,
                     const DLTensor& b, const DLTensor& logits, double scale, const DLTensor& y) {
    const auto rows = const_ref_of<2>(x, "x"); // [sequences, rows, in] would do, too
    const auto table = const_ref_of<3>(logits, "logits");
    mhr::batch_plan plan; // an engine keeps plan, weights and state from call to call
    plan.assign_rows(mhr::dlpack::view_of<const std::int64_t, 1>(task_of_row, "task_of_row"));
    mhr::routed_lora layer{const_ref_of<4>(a, "a"), const_ref_of<4>(b, "b"), {}, scale};
    const auto outputs = mhr::dlpack::ref_of<2>(y, "y");

    // Sums are f64 where one of the caller's tensors is.
    mhr::element_type sums = mhr::element_type::f32;
    for (const mhr::element_type type :
         {rows.type(), layer.a.type(), layer.b.type(), table.type(), outputs.type()})
        sums = mhr::sums_of(sums, type);

    const auto take_weights = [&](mhr::workspace& memory) {
        return memory.take<3>(sums, {plan.entries(), table.extent(1), table.extent(2)});
    };
    const mhr::batch batch{plan};
    mhr::workspace meter; // it has no memory, and counts
    (void)take_weights(meter);
    (void)mhr::take_routed_lora_state(meter, batch, layer, sums);
    mhr::owned_workspace memory(meter.used());
    mhr::workspace workspace = memory;
    const auto weights = take_weights(workspace);
    mhr::router_forward({}, table, plan.tasks(), mhr::routing_rule{mhr::sigmoid_gate{}}, weights);
    layer.weights = weights;
    mhr::routed_lora_forward(batch, layer, rows, outputs,
                             mhr::take_routed_lora_state(workspace, batch, layer, sums));
}

thread_local std::string last_error;

} // namespace

/// y [rows, out] += scale * (x A) B of each row's task: x [rows, in], task_of_row [rows] (int64, -1
/// for none), a [heads, modules, in / heads, rank], b [heads, modules, rank, out / heads], logits
/// [tasks, heads, modules]. Returns null, or what is wrong; then y is as it was.
extern "C" const char* routed_lora(const DLTensor* x, const DLTensor* task_of_row,
                                   const DLTensor* a, const DLTensor* b, const DLTensor* logits,
                                   double scale, const DLTensor* y) {
    try {
        add_routed_lora(*x, *task_of_row, *a, *b, *logits, scale, *y);
        return nullptr;
    } catch (const std::exception& error) {
        last_error = error.what();
        return last_error.c_str();
    }
}

/// A caller's tensor, all of one value.
template <class T, std::size_t Rank>
mhr::dlpack::owned<> tensor(const std::array<mhr::index_t, Rank>& extents, T value) {
    const mhr::tensor_view<T, Rank> sizes(nullptr, extents);
    std::vector<T> memory(static_cast<std::size_t>(sizes.size()), value);
    const mhr::tensor_view<T, Rank> view(memory.data(), extents);
    return mhr::dlpack::managed_of(view, std::move(memory));
}

int main() {
    const auto x = tensor<float, 2>({3, 8}, 0.5F), y = tensor<float, 2>({3, 12}, 1.0F);
    const auto a = tensor<float, 4>({4, 3, 2, 2}, 0.1F);
    const auto b = tensor<mhr::bf16, 4>({4, 3, 2, 3}, mhr::bf16(0.2F)); // of another type
    const auto logits = tensor<float, 3>({5, 4, 3}, 0.0F);
    const auto task_of_row = tensor<std::int64_t, 1>({3}, 4);
    mhr::dlpack::view_of<std::int64_t, 1> (*task_of_row)(2) = -1;

    const auto call = [&] {
        return routed_lora(&x->dl_tensor, &task_of_row->dl_tensor, &a->dl_tensor, &b->dl_tensor,
                           &logits->dl_tensor, 0.5, &y->dl_tensor);
    };
    if (const char* const message = call()) {
        std::puts(message);
        return 1;
    }
    const auto result = const_ref_of<2>(*y).as<float>();
    std::printf("y: with task 4 %.2f, base only %.2f\n", result(0, 0), result(2, 0));

    x->dl_tensor.device.device_type = kDLCUDA;
    const char* const message = call();
    std::printf("of a GPU's tensor: %s\n", message ? message : "no error");
    return message && result(0, 0) > 1.07F && result(0, 0) < 1.09F ? 0 : 1;
}
