// The input is an adapter of PEFT: see adapter_input.hpp.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <mhr/core/executor.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/io/peft/layer_pattern.hpp>
#include <mhr/io/peft/peft.hpp>

#include "fuzz/adapter_input.hpp"
#include "fuzz/adapter_seeds.hpp"
#include "fuzz/file_checks.hpp"
#include "fuzz/fuzz_target.hpp"
#include "mhr_inspect/export.hpp"
#include "mhr_inspect/listing.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// The file at the begin of memory of its own, as a mapped one has it.
struct opened_tensors {
    std::vector<char> memory;
    explicit opened_tensors(const std::string& bytes) : memory(bytes.begin(), bytes.end()) {}
    [[nodiscard]] safetensors_file file() const {
        return {"some.file", memory.data(), memory.size()};
    }
};

/// Every element of a view lies in the file's memory.
template <std::size_t Rank>
void touch_view(const const_tensor_ref<Rank>& view, const safetensors_file& file) {
    index_t low = 0;
    index_t high = 0;
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        if (view.extent(axis) == 0) return;
        const index_t reach = (view.extent(axis) - 1) * view.stride(axis);
        (reach < 0 ? low : high) += reach;
    }
    must(low == 0 && high + 1 == view.size(), "an adapter's view is dense");
    bool inside = false;
    for (const auto& [name, tensor] : file.tensors())
        inside = inside ||
                 (view.data() == file.data(tensor) &&
                  static_cast<std::size_t>(view.size()) * size_of(view.type()) == tensor.bytes());
    must(inside, "an adapter's view shows one whole tensor of the file");
    touch(view.data(), static_cast<std::size_t>(view.size()) * size_of(view.type()));
}

/// The tensors beside the layers are the same, under the names that PEFT gives to them.
template <class Written, class Checkpoint>
void check_same_saved(const Written& written, const Checkpoint& adapter) {
    must(written.saved().size() == adapter.saved().size(), "the other tensors are there again");
    for (std::size_t i = 0; i < adapter.saved().size(); ++i)
        must(written.saved()[i] == peft_details::as_peft_writes(adapter.saved()[i]),
             "the other tensors have PEFT's names");
}

/// A writer's files, read again by the same class.
template <class Checkpoint, class Writer, class Config>
void check_written(const Checkpoint& adapter, const Writer& writer, const Config& config) {
    const opened_tensors again(writer.tensor_bytes());
    const std::string text = config.json().text();
    const Checkpoint second(Config(peft_config("written", text)), again.file());
    must(second.config().json().fields() == config.json().fields(),
         "a configuration is read as it was written");
    must(second.config().json().text() == text, "a configuration is written the same again");
    must(second.notes().size() <= 1, "what was written has no unusual names");
    must(second.layers().size() == adapter.layers().size(), "all layers are there again");
    const auto check_same_tensor = [&](std::string_view its, std::string_view written_as) {
        const safetensors_tensor& tensor = adapter.tensors().tensor(std::string(its));
        const safetensors_tensor& written = second.tensors().tensor(std::string(written_as));
        must(peft_details::as_peft_writes(written_as) == written_as,
             "a tensor is called as PEFT does");
        must(written.type == tensor.type && written.extents == tensor.extents &&
                 std::equal(adapter.tensors().data(tensor),
                            adapter.tensors().data(tensor) + tensor.bytes(),
                            second.tensors().data(written)),
             "an adapter's tensor is read as it was written");
    };
    for (std::size_t i = 0; i < second.layers().size(); ++i) {
        must(second.layers()[i].name == adapter.layers()[i].name, "a layer keeps its name");
        const auto its = adapter.tensor_names(adapter.layers()[i]);
        const auto written_as = second.tensor_names(second.layers()[i]);
        for (std::size_t part = 0; part < its.size(); ++part)
            if (!its[part].empty()) check_same_tensor(its[part], written_as[part]);
    }
    check_same_saved(second, adapter);
    for (const auto name : adapter.saved())
        check_same_tensor(name, peft_details::as_peft_writes(name));
}

/// The listing, which says all or nothing.
void check_listing(const peft_config& config, const opened_tensors& tensors) {
    for (const bool as_json : {false, true}) {
        std::ostringstream out;
        if (!accepted([&] { list_adapter(config, tensors.file(), as_json, out); })) {
            must(out.str().empty(), "what cannot be listed is not listed by half");
            continue;
        }
        const std::string text = out.str();
        if (as_json)
            must(nlohmann::json::accept(text), "a listing as JSON is JSON");
        else
            must(is_readable(text, true), "a listing is printable");
    }
}

void check_export(const poly_checkpoint& adapter, std::optional<std::int64_t> task) {
    const plain_adapter plain(adapter, task);
    const opened_tensors written(plain.writer().tensor_bytes());
    const lora_checkpoint read(lora_config(peft_config("exported", plain.config().json().text())),
                               written.file());
    must(read.layers().size() == adapter.layers().size(), "an export has all layers");
    check_same_saved(read, adapter);
    for (std::size_t i = 0; i < read.layers().size(); ++i) {
        const auto& layer = read.layers()[i];
        const auto& routed = adapter.layers()[i];
        must(layer.name == routed.name && layer.in_features == routed.shape.in_features &&
                 layer.out_features == routed.shape.out_features &&
                 layer.rank == routed.shape.rank &&
                 mhr::is_exactly(layer.scale, adapter.config().scale()),
             "an export's layers have the adapter's shapes and scale");
    }
}

void check_poly(const poly_checkpoint& adapter) {
    poly_checkpoint_writer writer(adapter.config());
    bool aligned = true;
    for (const auto& layer : adapter.layers()) {
        const lora_shape& shape = layer.shape;
        const bool shown = accepted([&] {
            const lora_inventory inventory = adapter.inventory(layer);
            const const_tensor_ref<3> logits = adapter.logits(layer);
            touch_view(inventory.a, adapter.tensors());
            touch_view(inventory.b, adapter.tensors());
            touch_view(logits, adapter.tensors());
            must(inventory.a.type() == layer.a_type && inventory.b.type() == layer.b_type &&
                     logits.type() == layer.logits_type,
                 "a layer's tensors have their types");
            writer.add_layer(layer.name, inventory, logits);
        });
        must(shown == adapter.is_aligned(layer), "a layer is shown where it is aligned");
        aligned = aligned && shown;

        const auto numbers = [](index_t count) {
            return std::vector<float>(static_cast<std::size_t>(count));
        };
        auto a = numbers(shape.modules * shape.in_features * shape.rank);
        auto b = numbers(shape.modules * shape.out_features * shape.rank);
        const index_t tasks = adapter.config().tasks();
        auto logits = numbers(tasks * shape.heads * shape.modules);
        adapter.read_inventory(
            layer,
            {{a.data(), {shape.heads, shape.modules, shape.in_features / shape.heads, shape.rank}},
             {b.data(),
              {shape.heads, shape.modules, shape.rank, shape.out_features / shape.heads}}});
        adapter.read_logits(layer, {logits.data(), {tasks, shape.heads, shape.modules}});
    }
    if (aligned) {
        for (const auto name : adapter.saved())
            writer.add_saved(adapter.tensors(), name);
        check_written(adapter, writer, adapter.config());
    }
    check_export(adapter, std::nullopt);
    check_export(adapter, adapter.config().tasks() - 1);
    must(!accepted([&] { plain_adapter(adapter, adapter.config().tasks()); }),
         "a task that there is not cannot be exported");
}

/// Patterns of a configuration against the names of layers: what holds of every pattern.
void check_patterns(const lora_checkpoint& adapter, const char* key) {
    const auto& fields = adapter.config().json().fields();
    if (!fields.contains(key)) return;
    peft_details::matching budget{"some.file: key"};
    const auto matches = [&](const std::string& pattern, std::string_view name) {
        const std::string where = "some.file: key";
        return peft_details::layer_pattern(pattern, where).matches(name, budget);
    };
    for (const auto& [pattern, value] : fields[key].items())
        for (const auto& layer : adapter.layers()) {
            if (pattern.size() > 200 || layer.name.size() > 200) continue;
            const bool found = peft_details::matches_layer(pattern, layer.name, budget);
            must(found == peft_details::matches_layer("(?:" + pattern + ")", layer.name, budget),
                 "a pattern finds what it finds as a group");
            must(found == matches("(.*\\.)?(" + pattern + "|" + pattern + ")$", layer.name),
                 "a pattern finds what it finds as an alternative to itself");
        }
}

void check_lora(const lora_checkpoint& adapter) {
    lora_checkpoint_writer writer(adapter.config());
    bool aligned = true;
    for (const auto& layer : adapter.layers()) {
        must(std::isfinite(layer.scale) && layer.rank >= 1, "a layer's rank and scale are numbers");
        const bool shown = accepted([&] {
            const lora plain = adapter.adapter(layer);
            touch_view(plain.a, adapter.tensors());
            touch_view(plain.b, adapter.tensors());
            must(plain.a.type() == layer.a_type && plain.b.type() == layer.b_type &&
                     is_exactly(plain.scale, layer.scale),
                 "a layer's adapter has its types and scale");
            const lora_vectors vectors = adapter.vectors(layer);
            must((vectors.magnitude.data() != nullptr) == layer.has_magnitude &&
                     (vectors.bias.data() != nullptr) == layer.has_bias,
                 "a layer has the vectors that it tells of");
            for (const auto& vector : {vectors.magnitude, vectors.bias})
                if (vector.data() != nullptr) touch_view(vector, adapter.tensors());
            writer.add_layer(layer.name, plain, vectors, layer.form);
        });
        must(shown == adapter.is_aligned(layer), "a layer is shown where it is aligned");
        aligned = aligned && shown;
    }
    if (aligned) {
        for (const auto name : adapter.saved())
            writer.add_saved(adapter.tensors(), name);
        check_written(adapter, writer, adapter.config());
    }
    check_patterns(adapter, "rank_pattern");
    check_patterns(adapter, "alpha_pattern");
}

/// The adapter as one module of a library, beside one that is known.
void check_library(lora_checkpoint adapter) {
    static const adapter_input known = lora_seed();
    static const opened_tensors known_tensors(known.tensors);
    std::vector<lora_checkpoint> adapters;
    adapters.push_back(std::move(adapter));
    adapters.emplace_back(lora_config(peft_config("known", known.config)), known_tensors.file());
    std::optional<lora_checkpoint_library> library;
    must(!accepted([&] { library.emplace(adapters); }), "a library loses no head silently");
    if (!accepted([&] { library.emplace(adapters, saved_tensors::leave_out); })) return;
    for (const auto& layer : library->layers()) {
        must(library->modules() == 2, "a library has a module for each adapter");
        std::vector<float> a(static_cast<std::size_t>(2 * layer.in_features * layer.rank), 1.0F);
        std::vector<float> b(static_cast<std::size_t>(2 * layer.rank * layer.out_features), 1.0F);
        library->gather(serial_executor{}, layer,
                        {{a.data(), {2, layer.in_features, layer.rank}},
                         {b.data(), {2, layer.rank, layer.out_features}}});
        (void)accepted([&] {
            must(library->adapters(layer).size() == 2, "a library has a list of all adapters");
        });
    }
}

void check_ia3(const ia3_checkpoint& adapter) {
    for (const auto& layer : adapter.layers()) {
        const bool shown = accepted([&] {
            const auto scales = adapter.scales(layer);
            must(scales.extent(0) == layer.features && scales.type() == layer.type,
                 "a layer has its scales");
            touch_view(scales, adapter.tensors());
        });
        must(shown == adapter.is_aligned(layer), "a layer is shown where it is aligned");
        std::vector<float> copy(static_cast<std::size_t>(layer.features));
        adapter.read_scales(layer, {copy.data(), {layer.features}});
    }
}

} // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const adapter_input input = split_adapter_input(data, size);
    const opened_tensors tensors(input.tensors);
    std::optional<peft_config> config;
    if (!accepted([&] { config.emplace("some.file", input.config); })) return 0;

    check_listing(*config, tensors);
    if (config->type() == "POLY") {
        std::optional<poly_checkpoint> adapter;
        if (!accepted([&] { adapter.emplace(poly_config(*config), tensors.file()); })) return 0;
        check_poly(*adapter);
    } else if (config->type() == "LORA") {
        std::optional<lora_checkpoint> adapter;
        if (!accepted([&] { adapter.emplace(lora_config(*config), tensors.file()); })) return 0;
        check_lora(*adapter);
        check_library(std::move(*adapter));
    } else if (config->type() == "IA3") {
        std::optional<ia3_checkpoint> adapter;
        if (!accepted([&] { adapter.emplace(ia3_config(*config), tensors.file()); })) return 0;
        check_ia3(*adapter);
    } else {
        return 0;
    }
    ++good_inputs;
    return 0;
}

std::vector<std::string> mhr::test::fuzz_seeds() {
    std::vector<std::string> seeds;
    for (const adapter_input& adapter : adapter_seeds())
        seeds.push_back(join_adapter_input(adapter));
    return seeds;
}
