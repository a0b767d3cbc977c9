#include "examples/mhr_inspect/export.hpp"
#include "examples/mhr_inspect/listing.hpp"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <mhr/batch/batch.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/io/peft/peft.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>
#include <mhr/lora/lora.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/routing/fixed_routers.hpp>
#include <mhr/routing/router.hpp>
#include <mhr/training/routing_statistics.hpp>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/guarded_tensor.hpp"
#include "support/poly_files.hpp"
#include "support/random_tensor.hpp"
#include "support/temporary_folder.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const serial_executor serial;

std::filesystem::path golden_adapter(const char* type) {
    return std::filesystem::path(MHR_GOLDEN_DEFAULT_DIR) / "peft_checkpoint" / type;
}

std::string listing_of(const std::filesystem::path& folder, bool as_json) {
    std::ostringstream out;
    list_adapter(folder, as_json, out);
    return out.str();
}

/// Rows of one layer through the routed adapter (without a task: with uniform weights).
tensor<double, 2> routed(const poly_checkpoint& adapter, const poly_checkpoint::layer& layer,
                         std::optional<std::int64_t> task, const const_tensor_ref<2>& x) {
    const auto& shape = layer.shape;
    batch_plan plan;
    plan.assign_single_task(x.extent(0));
    const element_type sums = x.type();
    guarded_tensor<3> weights(sums, {1, shape.heads, shape.modules});
    const std::int64_t ids[] = {task.value_or(0)};
    if (task)
        router_forward(serial, adapter.logits(layer), tensor_view<const std::int64_t, 1>(ids, {1}),
                       routing_rule{sigmoid_gate{}}, weights.ref());
    else
        average_router_forward(serial, weights.ref());
    const auto [a, b] = adapter.inventory(layer);
    const routed_lora all{a, b, weights.ref(), adapter.config().scale()};
    const batch rows{plan};
    guarded_tensor<2> y(sums, {x.extent(0), shape.out_features});
    y.fill(0);
    owned_workspace memory(routed_lora_state_size(rows, all, sums));
    workspace of_state = memory;
    routed_lora_forward(rows, all, x, y.ref(), take_routed_lora_state(of_state, rows, all, sums));
    return values_as<double>(y.ref());
}

/// Sends the same rows through a plain adapter where it lies in its file.
tensor<double, 2> plain(const lora_checkpoint& adapter, const lora_checkpoint::layer& layer,
                        const const_tensor_ref<2>& x) {
    batch_plan plan;
    plan.assign_single_task(x.extent(0));
    guarded_tensor<2> y(x.type(), {x.extent(0), layer.out_features});
    guarded_tensor<2> hidden(x.type(), {x.extent(0), layer.rank});
    y.fill(0);
    lora_forward(batch{plan}, adapter.adapter(layer), x, y.ref(), {hidden.ref()});
    return values_as<double>(y.ref());
}

/// Both are the same function, to the last bit: an exported adapter is stored in the type of sums.
void check_export(const std::filesystem::path& folder, std::optional<std::int64_t> task,
                  element_type sums) {
    const temporary_folder to;
    export_lora(folder, task, to.path() / "plain");
    const poly_checkpoint before(folder);
    const lora_checkpoint after(to.path() / "plain");
    REQUIRE(after.layers().size() == before.layers().size());
    for (std::size_t i = 0; i < after.layers().size(); ++i) {
        const auto& layer = after.layers()[i];
        CHECK(layer.name == before.layers()[i].name);
        CHECK(layer.a_type == sums);
        CHECK(layer.b_type == sums);
        CHECK(layer.scale == before.config().scale());
        guarded_tensor<2> x(sums, {9, layer.in_features});
        x.fill(random_source(i));
        CHECK(compare_bitwise(plain(after, layer, x.ref()).const_view(),
                              routed(before, before.layers()[i], task, x.ref()).const_view()));
    }
}

} // namespace

TEST_CASE("mhr_inspect: an adapter whose tensors are not aligned is listed alike") {
    const poly_files files;
    std::string tensors = files.tensor_bytes();
    const std::string config = files.config_text();
    const auto listing = [&] {
        std::ostringstream out;
        list_adapter(peft_config("some.file", config),
                     safetensors_file("some.file", tensors.data(), tensors.size()), false, out);
        return out.str();
    };
    const std::string aligned = listing();
    tensors[0] = static_cast<char>(tensors[0] + 1); // the header's length
    tensors.insert(tensors.find("}}") + 2, " ");
    CHECK(listing() == aligned);
}

TEST_CASE("mhr_inspect: the listing of a Poly adapter, as JSON") {
    for (const char* type : {"f32", "f16", "bf16"}) {
        const auto listing = nlohmann::json::parse(listing_of(golden_adapter(type), true));
        const poly_checkpoint adapter(golden_adapter(type));
        CHECK(listing["adapter"] == "POLY");
        CHECK(listing["base_model"] == "toy-t5");
        CHECK(listing["tasks"] == 5);
        CHECK(listing["heads"] == 4);
        CHECK(listing["modules"] == 3);
        CHECK(listing["rank"] == 2);
        CHECK(listing["scale"] == 0.5);
        REQUIRE(listing["layers"].size() == adapter.layers().size());
        double sum = 0;
        for (std::size_t i = 0; i < adapter.layers().size(); ++i) {
            const auto& row = listing["layers"][i];
            const auto& layer = adapter.layers()[i];
            CHECK(row["name"] == std::string(layer.name));
            CHECK(row["in_features"] == layer.shape.in_features);
            CHECK(row["out_features"] == layer.shape.out_features);
            CHECK(row["type"] == dtype_name(to_dtype(layer.a_type)));
            CHECK(row["logits_type"] == dtype_name(to_dtype(layer.logits_type)));
            tensor<double, 3> logits({5, 4, 3});
            adapter.read_logits(layer, logits.view());
            const auto statistics = routing_statistics_of(logits.view());
            CHECK(row["active_share"] == statistics.active_share);
            CHECK(row["discreteness"] == statistics.discreteness);
            CHECK(row["efficiency"] == statistics.efficiency);
            double mixed = 0;
            for (index_t t = 0; t < 5; ++t)
                for (index_t h = 0; h < 4; ++h) {
                    double total = 0, entropy = 0;
                    for (index_t m = 0; m < 3; ++m)
                        total += 1 / (1 + std::exp(-logits(t, h, m)));
                    for (index_t m = 0; m < 3; ++m) {
                        const double share = 1 / (1 + std::exp(-logits(t, h, m))) / total;
                        entropy -= share * std::log2(share);
                    }
                    mixed += std::exp2(entropy) / 20;
                }
            CHECK(row["mixed_modules"].get<double>() == doctest::Approx(mixed).epsilon(1e-5));
            sum += row["mixed_modules"].get<double>();
        }
        CHECK(listing["mean"]["mixed_modules"].get<double>() ==
              doctest::Approx(sum / static_cast<double>(adapter.layers().size())));
        CHECK(listing["mean"].size() == 4);
    }
}

TEST_CASE("mhr_inspect: the listing as text has a line for each layer, and no other lines") {
    const std::string text = listing_of(golden_adapter("bf16"), false);
    const poly_checkpoint adapter(golden_adapter("bf16"));
    for (const auto& layer : adapter.layers())
        CHECK(text.find("\n" + std::string(layer.name) + " ") != std::string::npos);
    CHECK(text.find("adapter: POLY\n") == 0);
    CHECK(text.find("discreteness") != std::string::npos);
    CHECK(text.find(" \n") == std::string::npos);

    // Names that would break lines, or move the cursor.
    poly_files files;
    files.layers = {"evil\nname\x1b[2J.q"};
    const temporary_folder folder;
    files.writer().write(folder.path());
    const std::string evil = listing_of(folder.path(), false);
    CHECK(evil.find("\nevil\\x0aname\\x1b[2J.q ") != std::string::npos);
    CHECK(nlohmann::json::parse(listing_of(folder.path(), true))["layers"][0]["name"] ==
          files.layers[0]);
}

TEST_CASE("mhr_inspect: logits that are no numbers have no statistics, and end nothing") {
    poly_files files;
    set_element(files.logits.ref(), {1, 1, 1}, std::nan(""));
    const temporary_folder folder;
    files.writer().write(folder.path() / "nan");
    const auto listing = nlohmann::json::parse(listing_of(folder.path() / "nan", true));
    CHECK(listing["layers"][0]["discreteness"].is_null());
    CHECK(listing["layers"][0]["mixed_modules"].is_null());
    set_element(files.logits.ref(), {1, 1, 1}, static_cast<double>(INFINITY));
    files.writer().write(folder.path() / "infinite");
    const auto infinite = nlohmann::json::parse(listing_of(folder.path() / "infinite", true));
    CHECK(infinite["layers"][0]["mixed_modules"].is_number());
}

TEST_CASE("mhr_inspect: plain LoRA and (IA)3 are listed, other types are not") {
    const temporary_folder folder;
    export_lora(golden_adapter("f32"), std::nullopt, folder.path() / "lora");
    const auto lora_listing = nlohmann::json::parse(listing_of(folder.path() / "lora", true));
    CHECK(lora_listing["adapter"] == "LORA");
    CHECK(lora_listing["layers"].size() == 20);
    CHECK(lora_listing["layers"][0]["rank"] == 2);
    CHECK(lora_listing["layers"][0]["scale"] == 0.5);
    CHECK_FALSE(lora_listing.contains("mean"));
    CHECK(listing_of(folder.path() / "lora", false).find("adapter: LORA\n") == 0);

    const std::vector<float> scales{1, 2, 3};
    safetensors_writer tensors;
    tensors.add("base_model.model.k.ia3_l", const_tensor_ref<2>(scales.data(), {3, 1}));
    std::filesystem::create_directory(folder.path() / "ia3");
    tensors.write(folder.path() / "ia3" / peft_tensors_file);
    write_file(folder.path() / "ia3" / peft_config_file, R"({"peft_type":"IA3"})");
    const auto ia3_listing = nlohmann::json::parse(listing_of(folder.path() / "ia3", true));
    CHECK(ia3_listing["layers"][0]["features"] == 3);
    CHECK(ia3_listing["layers"][0]["scales"] == "outputs");
    CHECK(ia3_listing["base_model"].is_null());

    const auto path = folder.path() / "ia3" / peft_config_file;
    write_file(path, R"({"peft_type":"LOHA"})");
    CHECK(refuses("peft: " + path_text(path), "key 'peft_type'",
                  [&] { (void)listing_of(folder.path() / "ia3", false); }));
}

TEST_CASE("mhr_inspect: unusual names are told of, and exported as PEFT writes them") {
    const poly_files files;
    const std::string good = files.tensor_bytes();
    const safetensors_file file("good", good.data(), good.size());
    safetensors_writer writer;
    for (const auto& [name, stored] : file.tensors())
        writer.add(file, name, "_orig_mod." + name);
    const std::vector<float> head(4, 1);
    writer.add("_orig_mod.lm_head.weight", const_tensor_ref<2>(head.data(), {2, 2}));
    const std::string bytes = writer.bytes();
    const auto open = [&] { return safetensors_file("some.file", bytes.data(), bytes.size()); };
    std::ostringstream text, as_json;
    list_adapter(peft_config("some.file", files.config_text()), open(), false, text);
    list_adapter(peft_config("some.file", files.config_text()), open(), true, as_json);
    CHECK(text.str().find("\nnote: 7 of 7 tensors, such as '_orig_mod.base_model") !=
          std::string::npos);
    CHECK(text.str().find("\nencoder.q ") != std::string::npos);
    const auto listing = nlohmann::json::parse(as_json.str());
    CHECK(listing["notes"].size() == 2); // of the head, too
    CHECK(listing["layers"][0]["name"] == "encoder.q");

    const poly_checkpoint routed(poly_config(peft_config("some.file", files.config_text())),
                                 open());
    const plain_adapter plain(routed, 1);
    const std::string exported = plain.writer().tensor_bytes();
    const safetensors_file read("exported", exported.data(), exported.size());
    CHECK(read.contains("base_model.model.encoder.q.lora_A.weight"));
    CHECK(read.contains("base_model.model.lm_head.weight"));
    CHECK(read.tensors().size() == 5);
}

TEST_CASE("mhr_inspect: an exported LoRA computes what the routed adapter does, to the last bit") {
    for (const char* type : {"f32", "f16", "bf16"}) {
        check_export(golden_adapter(type), std::nullopt, element_type::f32);
        for (const std::int64_t task : {0, 4})
            check_export(golden_adapter(type), task, element_type::f32);
    }
    const temporary_folder folder;
    const poly_files doubles(element_type::f64);
    doubles.writer().write(folder.path() / "f64");
    // Types that differ within a layer.
    const poly_files mixed(element_type::bf16, element_type::f16, element_type::f32);
    mixed.writer().write(folder.path() / "mixed");
    for (const std::optional<std::int64_t>& task : {std::optional<std::int64_t>(), {2}}) {
        check_export(folder.path() / "f64", task, element_type::f64);
        check_export(folder.path() / "mixed", task, element_type::f32);
    }
    CHECK(listing_of(folder.path() / "mixed", false).find(" BF16/F16 ") != std::string::npos);
}

TEST_CASE("mhr_inspect: an export keeps what concerns the base model") {
    poly_files files;
    poly_config config = files.config();
    config.set("base_model_name_or_path", "some/model");
    config.set("task_type", "CAUSAL_LM");
    config.set("modules_to_save", {"head"});
    const std::vector<float> values{1, 2};
    safetensors_writer head;
    head.add("base_model.model.head.weight", const_tensor_ref<1>(values.data(), {2}));
    const std::string head_bytes = head.bytes();
    const safetensors_file head_file("head", head_bytes.data(), head_bytes.size());
    poly_checkpoint_writer writer(config);
    writer.add_layer("q", files.inventory(), files.logits.const_ref());
    writer.add_saved(head_file, "base_model.model.head.weight");
    const temporary_folder folder;
    writer.write(folder.path() / "poly");

    export_lora(folder.path() / "poly", 1, folder.path() / "lora");
    const lora_checkpoint plain(folder.path() / "lora");
    const auto& fields = plain.config().json().fields();
    CHECK(fields["base_model_name_or_path"] == "some/model");
    CHECK(fields["task_type"] == "CAUSAL_LM");
    CHECK(fields["target_modules"] == config.json().fields()["target_modules"]);
    CHECK(fields["r"] == 2);
    CHECK(fields["lora_alpha"] == 1);
    CHECK(plain.saved() == std::vector<std::string_view>{"base_model.model.head.weight"});

    const auto refused = [&](const char* argument, std::int64_t task,
                             const std::filesystem::path& from, const std::filesystem::path& to) {
        return refuses("export", argument, [&] { export_lora(from, task, to); });
    };
    const auto poly = folder.path() / "poly";
    CHECK(refused("task", -1, poly, folder.path() / "new"));
    CHECK(refused("task", 3, poly, folder.path() / "new"));
    CHECK_FALSE(std::filesystem::exists(folder.path() / "new"));
    const std::string before = read_file(poly / peft_tensors_file);
    CHECK(refused(path_text(poly).c_str(), 1, poly, poly)); // not over itself
    CHECK(read_file(poly / peft_tensors_file) == before);
    CHECK_THROWS_AS(export_lora(folder.path() / "lora", 1, folder.path() / "new"), error);
}
