#include "listing.hpp"

#include "routing_summary.hpp"

#include <algorithm>
#include <cstddef>
#include <ostream>
#include <sstream>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include <mhr/core/element_type.hpp>
#include <mhr/io/files/printable.hpp>
#include <mhr/io/peft/peft.hpp>
#include <mhr/io/safetensors/dtype.hpp>

namespace {

// An adapter is described by one flat object, and so is each of its layers: these are the lines and
// the columns of the text, too. Layers are described as they are written: there may be many.

using json = nlohmann::ordered_json;

/// Returns the name by which the file calls an element type.
std::string type_name(mhr::element_type type) {
    return mhr::dtype_name(mhr::to_dtype(type));
}
/// The types of a layer's matrices a and b.
std::string type_name(mhr::element_type a, mhr::element_type b) {
    return a == b ? type_name(a) : type_name(a) + "/" + type_name(b);
}

json describe(const mhr::poly_checkpoint& adapter) {
    const auto& config = adapter.config();
    return {{"tasks", config.tasks()},
            {"heads", config.heads()},
            {"modules", config.modules()},
            {"rank", config.rank()},
            {"scale", config.scale()}};
}
json describe(const mhr::poly_checkpoint& adapter, const mhr::poly_checkpoint::layer& layer) {
    const auto routing = summarise_routing(adapter, layer);
    return {{"name", layer.name},
            {"in_features", layer.shape.in_features},
            {"out_features", layer.shape.out_features},
            {"type", type_name(layer.a_type, layer.b_type)},
            {"logits_type", type_name(layer.logits_type)},
            {"active_share", routing.active_share},
            {"discreteness", routing.discreteness},
            {"efficiency", routing.efficiency},
            {"mixed_modules", routing.mixed_modules}};
}

json describe(const mhr::lora_checkpoint&) {
    return json::object();
}
json describe(const mhr::lora_checkpoint&, const mhr::lora_checkpoint::layer& layer) {
    return {{"name", layer.name},
            {"in_features", layer.in_features},
            {"out_features", layer.out_features},
            {"type", type_name(layer.a_type, layer.b_type)},
            {"rank", layer.rank},
            {"scale", layer.scale},
            {"embedding", layer.form == mhr::lora_form::embedding},
            {"magnitude", layer.has_magnitude},
            {"bias", layer.has_bias}};
}

json describe(const mhr::ia3_checkpoint&) {
    return json::object();
}
json describe(const mhr::ia3_checkpoint&, const mhr::ia3_checkpoint::layer& layer) {
    return {{"name", layer.name},
            {"features", layer.features},
            {"type", type_name(layer.type)},
            {"scales", layer.scales_inputs ? "inputs" : "outputs"}};
}

/// The means over the layers of what is a mean in each: the statistics of routing.
class means {
  public:
    void add(const json& layer) {
        ++layers_;
        for (const char* key : {"active_share", "discreteness", "efficiency", "mixed_modules"})
            if (layer.contains(key)) sums_[key] = sums_.value(key, 0.0) + layer[key].get<double>();
    }
    [[nodiscard]] json take() const {
        json result = sums_;
        for (auto& sum : result)
            sum = sum.get<double>() / layers_;
        return result;
    }

  private:
    double layers_ = 0;
    json sums_ = json::object();
};

template <class Adapter>
json describe_all(const Adapter& adapter) {
    const auto& config = adapter.config().json();
    json result{{"adapter", config.type()},
                {"base_model", config.fields().value("base_model_name_or_path", json())},
                {"layers", adapter.layers().size()}};
    result.update(describe(adapter));
    if (!adapter.saved().empty()) result["tensors_beside_the_layers"] = adapter.saved().size();
    return result;
}

template <class Adapter>
void write_json(const Adapter& adapter, std::ostream& out) {
    json all = describe_all(adapter);
    all.erase("layers");
    if (!adapter.notes().empty()) all["notes"] = adapter.notes();
    std::string head = all.dump(2);
    head.resize(head.size() - 2); // without the end of the object
    out << head << ",\n  \"layers\": [";
    means mean;
    const char* separator = "\n    ";
    for (const auto& layer : adapter.layers()) {
        const json row = describe(adapter, layer);
        mean.add(row);
        out << separator << row.dump();
        separator = ",\n    ";
    }
    out << "\n  ]";
    const json routing = mean.take();
    if (!routing.empty()) out << ",\n  \"mean\": " << routing.dump();
    out << "\n}\n";
}

std::string text_of(const json& value) {
    if (value.is_string()) return mhr::printable(value.get<std::string>());
    if (!value.is_number_float()) return value.dump();
    std::ostringstream text;
    text.precision(4);
    text << value.get<double>();
    return text.str();
}

/// `widest` is the longest name.
void write_row(const json& row, std::size_t widest, bool heading, std::ostream& out) {
    std::string line;
    std::size_t column = 0;
    for (const auto& [key, value] : row.items()) {
        line.resize(std::max(line.size(), column), ' ');
        line += heading ? key : text_of(value);
        column += (key == "name" ? widest : std::max(key.size(), std::size_t(6))) + 2;
        line += ' ';
    }
    line.pop_back();
    out << line << '\n';
}

template <class Adapter>
void write_text(const Adapter& adapter, std::ostream& out) {
    const json all = describe_all(adapter);
    for (const auto& [key, value] : all.items())
        out << key << ": " << text_of(value) << '\n';
    for (const auto& note : adapter.notes())
        out << "note: " << note << '\n';
    out << '\n';
    std::size_t widest = 4;
    for (const auto& layer : adapter.layers())
        widest = std::max(widest, mhr::printable(layer.name).size());
    means mean;
    bool first = true;
    for (const auto& layer : adapter.layers()) {
        const json row = describe(adapter, layer);
        mean.add(row);
        if (first) write_row(row, widest, true, out);
        first = false;
        write_row(row, widest, false, out);
    }
    const json routing = mean.take();
    if (routing.empty()) return;
    out << "\nmean over the layers:\n";
    for (const auto& [key, value] : routing.items())
        out << key << ": " << text_of(value) << '\n';
}

template <class Adapter>
void write(const Adapter& adapter, bool as_json, std::ostream& out) {
    if (as_json)
        write_json(adapter, out);
    else
        write_text(adapter, out);
}

} // namespace

void list_adapter(mhr::peft_config config, mhr::safetensors_file tensors, bool as_json,
                  std::ostream& out) {
    if (config.type() == "POLY")
        write(mhr::poly_checkpoint(mhr::poly_config(std::move(config)), std::move(tensors)),
              as_json, out);
    else if (config.type() == "LORA")
        write(mhr::lora_checkpoint(mhr::lora_config(std::move(config)), std::move(tensors)),
              as_json, out);
    else if (config.type() == "IA3")
        write(mhr::ia3_checkpoint(mhr::ia3_config(std::move(config)), std::move(tensors)), as_json,
              out);
    else
        config.fail("peft_type", "'POLY', 'LORA' or 'IA3'",
                    "'" + mhr::printable(config.type()) + "'");
}

void list_adapter(const std::filesystem::path& folder, bool as_json, std::ostream& out) {
    list_adapter(mhr::peft_config::read(folder), mhr::open_peft_tensors(folder), as_json, out);
}
