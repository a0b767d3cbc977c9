#include "export.hpp"

#include <cstddef>
#include <string>
#include <system_error>

#include <mhr/adapters/lora.hpp>
#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/error.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/io/peft.hpp>
#include <mhr/io/printable.hpp>
#include <mhr/routing/router.hpp>

namespace {

template <class T>
std::vector<T> numbers(mhr::index_t count) {
    return std::vector<T>(static_cast<std::size_t>(count));
}

template <class T>
void mix(const mhr::poly_checkpoint& routed, const mhr::poly_checkpoint::layer& layer,
         const mhr::lora_inventory<T>& inventory, std::int64_t task, const mhr::lora<T>& plain) {
    const mhr::index_t heads = layer.shape.heads;
    const mhr::index_t modules = layer.shape.modules;
    const mhr::index_t tasks = routed.config().tasks();
    auto table = numbers<T>(tasks * heads * modules);
    const mhr::tensor_view<T, 3> logits(table.data(), {tasks, heads, modules});
    routed.read_logits(layer, logits);
    auto of_task = numbers<T>(heads * modules);
    const mhr::tensor_view<T, 3> weights(of_task.data(), {1, heads, modules});
    mhr::router_forward(mhr::serial_executor{}, logits,
                        mhr::tensor_view<const std::int64_t, 1>(&task, {1}),
                        mhr::routing_rule{mhr::sigmoid_gate{}}, weights);
    mhr::mix_lora_forward(mhr::serial_executor{}, weights, inventory, mhr::as_batch(plain));
}

mhr::lora_config plain_config(const mhr::poly_config& routed) {
    const auto& fields = routed.json().fields();
    mhr::lora_config plain(routed.rank(), 1,
                           fields.value("target_modules", nlohmann::ordered_json()));
    for (const char* key : {"auto_mapping", "base_model_name_or_path", "exclude_modules",
                            "modules_to_save", "revision", "task_type"})
        if (fields.contains(key)) plain.set(key, fields[key]);
    return plain;
}

void require_no_adapter(const std::filesystem::path& folder) {
    for (const char* file : {mhr::peft_config_file, mhr::peft_tensors_file}) {
        std::error_code ignored;
        if (std::filesystem::exists(folder / file, ignored))
            mhr::raise("export: " + mhr::path_text(folder) +
                       ": expected a folder without an adapter, got one with " + file);
    }
}

} // namespace

template <class T>
mhr::lora<T> plain_adapter::plain_layer(const mhr::poly_checkpoint& routed,
                                        const mhr::poly_checkpoint::layer& layer,
                                        std::optional<std::int64_t> task,
                                        std::deque<std::vector<T>>& memory) {
    const auto& [heads, modules, in, out, rank] = layer.shape;
    auto a = numbers<T>(modules * in * rank);
    auto b = numbers<T>(modules * rank * out);
    const mhr::lora_inventory<T> inventory{{a.data(), {heads, modules, in / heads, rank}},
                                           {b.data(), {heads, modules, rank, out / heads}}};
    routed.read_inventory(layer, inventory);

    // Their memory is laid out as in the file, so that writing copies nothing.
    std::vector<T>& plain_a = memory.emplace_back(numbers<T>(rank * in));
    std::vector<T>& plain_b = memory.emplace_back(numbers<T>(out * rank));
    const mhr::lora<T> plain{mhr::tensor_view<T, 2>(plain_a.data(), {rank, in}).transpose(0, 1),
                             mhr::tensor_view<T, 2>(plain_b.data(), {out, rank}).transpose(0, 1)};
    if (task)
        mix(routed, layer, inventory, *task, plain);
    else
        mhr::average_lora_forward(mhr::serial_executor{}, inventory, plain);
    return plain;
}

plain_adapter::plain_adapter(const mhr::poly_checkpoint& routed, std::optional<std::int64_t> task)
    : config_(plain_config(routed.config())), writer_(config_) {
    const mhr::index_t tasks = routed.config().tasks();
    if (task && (*task < 0 || *task >= tasks))
        mhr::raise("export: task: expected a number from 0 to " + std::to_string(tasks - 1) +
                   ", got " + std::to_string(*task));
    for (const auto& layer : routed.layers())
        if (layer.modules_type == mhr::dtype::f64)
            writer_.add_layer(layer.name, plain_layer(routed, layer, task, doubles_));
        else
            writer_.add_layer(layer.name, plain_layer(routed, layer, task, singles_));
    for (const auto name : routed.saved())
        writer_.add_saved(routed.tensors(), name);
}

void export_lora(const std::filesystem::path& folder, std::optional<std::int64_t> task,
                 const std::filesystem::path& to) {
    const mhr::poly_checkpoint routed(folder);
    require_no_adapter(to);
    plain_adapter(routed, task).writer().write(to);
}
