// A function as a Python extension or an engine's plug-in exports it: it takes tensors of whoever
// calls, f32 or f64, of any strides, by DLPack, and copies none. A main() that calls it stands
// below.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include <mhr/interop/dlpack.hpp>
#include <mhr/mhr.hpp>

namespace {

template <class T>
void add_routed_lora(const DLTensor& x, const DLTensor& task_of_row, const DLTensor& a,
                     const DLTensor& b, const DLTensor& logits, double scale, const DLTensor& y) {
    const mhr::lora_inventory<const T> inventory{mhr::view_of<const T, 4>(a, "a"),
                                                 mhr::view_of<const T, 4>(b, "b")};
    mhr::batch_plan plan; // an engine keeps plan, weights and state from call to call
    plan.assign_rows(mhr::view_of<const std::int64_t, 1>(task_of_row, "task_of_row"));
    const auto shape = mhr::shape_of(inventory);
    std::vector<T> w(static_cast<std::size_t>(plan.entries() * shape.heads * shape.modules));
    const mhr::tensor_view<T, 3> weights(w.data(), {plan.entries(), shape.heads, shape.modules});
    const mhr::serial_executor executor;
    mhr::router_forward(executor, mhr::view_of<const T, 3>(logits, "logits"), plan.tasks(),
                        mhr::routing_rule{mhr::sigmoid_gate{}}, weights);
    mhr::owned_workspace memory(mhr::routed_lora_state_size<T>(plan, shape));
    mhr::workspace workspace = memory;
    mhr::routed_lora_forward(executor, plan, mhr::view_of<const T, 2>(x, "x"), inventory, weights,
                             scale, mhr::view_of<T, 2>(y, "y"),
                             mhr::take_routed_lora_state<T>(workspace, plan, shape));
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
        if (mhr::holds<double>(*x))
            add_routed_lora<double>(*x, *task_of_row, *a, *b, *logits, scale, *y);
        else
            add_routed_lora<float>(*x, *task_of_row, *a, *b, *logits, scale, *y);
        return nullptr;
    } catch (const std::exception& error) {
        last_error = error.what();
        return last_error.c_str();
    }
}

/// A caller's tensor, all of one value.
template <class T, std::size_t Rank>
mhr::owned_dlpack<> tensor(const std::array<mhr::index_t, Rank>& extents, T value) {
    const mhr::tensor_view<T, Rank> sizes(nullptr, extents);
    std::vector<T> memory(static_cast<std::size_t>(sizes.size()), value);
    const mhr::tensor_view<T, Rank> view(memory.data(), extents);
    return mhr::to_dlpack(view, std::move(memory));
}

int main() {
    const auto x = tensor<float, 2>({3, 8}, 0.5F), y = tensor<float, 2>({3, 12}, 1.0F);
    const auto a = tensor<float, 4>({4, 3, 2, 2}, 0.1F), b = tensor<float, 4>({4, 3, 2, 3}, 0.2F);
    const auto logits = tensor<float, 3>({5, 4, 3}, 0.0F);
    const auto task_of_row = tensor<std::int64_t, 1>({3}, 4);
    mhr::view_of<std::int64_t, 1> (*task_of_row)(2) = -1;

    const auto call = [&] {
        return routed_lora(&x->dl_tensor, &task_of_row->dl_tensor, &a->dl_tensor, &b->dl_tensor,
                           &logits->dl_tensor, 0.5, &y->dl_tensor);
    };
    if (const char* const message = call()) {
        std::puts(message);
        return 1;
    }
    const auto result = mhr::view_of<const float, 2>(*y);
    std::printf("y: with task 4 %.2f, base only %.2f\n", result(0, 0), result(2, 0));

    x->dl_tensor.device.device_type = kDLCUDA;
    const char* const message = call();
    std::printf("of a GPU's tensor: %s\n", message ? message : "no error");
    return message && result(0, 0) > 1.07F && result(0, 0) < 1.09F ? 0 : 1;
}
