#include "export.hpp"

#include <cstddef>
#include <string>
#include <system_error>

#include <mhr/core/element_type.hpp>
#include <mhr/core/error.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/io/files/file_path.hpp>
#include <mhr/io/peft/peft.hpp>
#include <mhr/lora/inventory.hpp>
#include <mhr/routing/router.hpp>

namespace {

/// Memory of so many elements of any type.
std::vector<double> room_for(mhr::index_t count) {
    return std::vector<double>(static_cast<std::size_t>(count));
}

/// Calls `use(inventory, logits)` with the tensors of a layer where they lie in the file, or with
/// copies if they are not aligned there.
template <class Use>
void with_tensors(const mhr::poly_checkpoint& routed, const mhr::poly_checkpoint::layer& layer,
                  Use&& use) {
    if (routed.is_aligned(layer)) return use(routed.inventory(layer), routed.logits(layer));
    const auto& [heads, modules, in, out, rank] = layer.shape;
    const mhr::index_t tasks = routed.config().tasks();
    auto of_a = room_for(modules * in * rank);
    auto of_b = room_for(modules * rank * out);
    auto of_logits = room_for(tasks * heads * modules);
    const mhr::lora_inventory_matrices inventory{
        {of_a.data(), layer.a_type, {heads, modules, in / heads, rank}},
        {of_b.data(), layer.b_type, {heads, modules, rank, out / heads}}};
    const mhr::tensor_ref<3> logits(of_logits.data(), layer.logits_type, {tasks, heads, modules});
    routed.read_inventory(layer, inventory);
    routed.read_logits(layer, logits);
    use(inventory, logits);
}

/// Mixes what the routing of a task says.
void mix(const mhr::lora_inventory& inventory, const mhr::const_tensor_ref<3>& logits,
         std::int64_t task, const mhr::lora_matrices& plain) {
    const mhr::index_t heads = logits.extent(1);
    const mhr::index_t modules = logits.extent(2);
    auto of_task = room_for(heads * modules);
    const mhr::tensor_ref<3> weights(of_task.data(), mhr::sums_of(plain.a.type(), logits.type()),
                                     {1, heads, modules});
    mhr::router_forward(mhr::serial_executor{}, logits,
                        mhr::tensor_view<const std::int64_t, 1>(&task, {1}),
                        mhr::routing_rule{mhr::sigmoid_gate{}}, weights);
    mhr::mix_lora_forward(mhr::serial_executor{}, weights, inventory,
                          {plain.a.prepend_axis(), plain.b.prepend_axis()});
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

mhr::lora plain_adapter::plain_layer(const mhr::poly_checkpoint& routed,
                                     const mhr::poly_checkpoint::layer& layer,
                                     std::optional<std::int64_t> task) {
    const auto& [heads, modules, in, out, rank] = layer.shape;
    const mhr::element_type type = mhr::sums_of(layer.a_type, layer.b_type);
    // It is laid out as in the file, so that writing copies nothing.
    void* const of_a = memory_.emplace_back(room_for(rank * in)).data();
    void* const of_b = memory_.emplace_back(room_for(out * rank)).data();
    const mhr::lora_matrices plain{mhr::tensor_ref<2>(of_a, type, {rank, in}).transpose(0, 1),
                                   mhr::tensor_ref<2>(of_b, type, {out, rank}).transpose(0, 1)};
    with_tensors(routed, layer, [&](const auto& inventory, const auto& logits) {
        if (task)
            mix(inventory, logits, *task, plain);
        else
            mhr::average_lora_forward(mhr::serial_executor{}, inventory, plain);
    });
    return {plain.a, plain.b, routed.config().scale()};
}

plain_adapter::plain_adapter(const mhr::poly_checkpoint& routed, std::optional<std::int64_t> task)
    : config_(plain_config(routed.config())), writer_(config_) {
    const mhr::index_t tasks = routed.config().tasks();
    if (task && (*task < 0 || *task >= tasks))
        mhr::raise("export: task: expected a number from 0 to " + std::to_string(tasks - 1) +
                   ", got " + std::to_string(*task));
    for (const auto& layer : routed.layers())
        writer_.add_layer(layer.name, plain_layer(routed, layer, task));
    for (const auto name : routed.saved())
        writer_.add_saved(routed.tensors(), name);
}

void export_lora(const std::filesystem::path& folder, std::optional<std::int64_t> task,
                 const std::filesystem::path& to) {
    const mhr::poly_checkpoint routed(folder);
    require_no_adapter(to);
    plain_adapter(routed, task).writer().write(to);
}
