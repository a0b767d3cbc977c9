#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <mhr/io/peft_poly.hpp>

#include "support/bad_arguments.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/guarded_buffer.hpp"
#include "support/poly_files.hpp"
#include "support/scalar_types.hpp"
#include "support/temporary_folder.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

TEST_CASE_TEMPLATE("peft_poly: what is written is read, as views and as copies", T, double, float,
                   Eigen::bfloat16, Eigen::half) {
    const poly_files<T> files;
    const temporary_folder folder;
    files.writer().write(folder.path() / "new" / "folder");
    const poly_checkpoint read(folder.path() / "new" / "folder");
    CHECK(read.config().tasks() == 3);
    CHECK(read.config().heads() == 2);
    CHECK(read.config().modules() == 3);
    CHECK(read.config().rank() == 2);
    CHECK(read.config().scale() == 0.5);
    CHECK(read.saved().empty());
    REQUIRE(read.layers().size() == 2);
    CHECK(read.layers()[0].name == "encoder.q");
    CHECK(read.layers()[1].name == "encoder.v");
    for (const auto& layer : read.layers()) {
        CHECK(layer.shape.in_features == 4);
        CHECK(layer.shape.out_features == 6);
        CHECK(layer.modules_type == dtype_of<T>());
        CHECK(layer.logits_type == dtype_of<T>());
        const auto inventory = read.inventory<T>(layer);
        CHECK(compare_bitwise(inventory.a, files.a.view()));
        CHECK(compare_bitwise(inventory.b, files.b.view()));
        CHECK(compare_bitwise(read.logits<T>(layer), files.logits.view()));

        guarded_buffer<double, 4> a(files.a.extents(), layout::column_major);
        guarded_buffer<double, 4> b(files.b.extents(), layout::padded);
        guarded_buffer<double, 3> logits(files.logits.extents(), layout::reversed);
        read.read_inventory(layer, lora_inventory<double>{a.view(), b.view()});
        read.read_logits(layer, logits.view());
        CHECK(compare_bitwise(a.view(), copy_as<double>(files.a.view()).view()));
        CHECK(compare_bitwise(b.view(), copy_as<double>(files.b.view()).view()));
        CHECK(compare_bitwise(logits.view(), copy_as<double>(files.logits.view()).view()));
    }
}

TEST_CASE("peft_poly: views of every layout, and moving what was read") {
    const poly_files<float> files;
    for (const layout order : all_layouts) {
        guarded_buffer<float, 4> a(files.a.extents(), order), b(files.b.extents(), order);
        guarded_buffer<float, 3> logits(files.logits.extents(), order);
        const auto same = [](float value) { return value; };
        transform(files.a.view(), a.view(), same);
        transform(files.b.view(), b.view(), same);
        transform(files.logits.view(), logits.view(), same);
        poly_checkpoint_writer writer(files.config());
        for (const auto& layer : files.layers)
            writer.add_layer(layer, lora_inventory<float>{a.view(), b.view()}, logits.view());
        CHECK(writer.tensor_bytes() == files.tensor_bytes());
    }
    const std::string bytes = files.tensor_bytes();
    poly_checkpoint read = open_poly(files.config_text(), bytes);
    std::vector<poly_checkpoint> many;
    many.push_back(std::move(read));
    many.push_back(open_poly(files.config_text(), bytes));
    many.reserve(100);
    CHECK(many[0].layers()[1].name == "encoder.v");
    CHECK(compare_bitwise(many[0].logits<float>(many[0].layers()[1]), files.logits.view()));
}

TEST_CASE("peft_poly: a copy into a bad inventory is refused, both matrices untouched") {
    const poly_files<float> files;
    const std::string bytes = files.tensor_bytes();
    const poly_checkpoint read = open_poly(files.config_text(), bytes);
    guarded_buffer<double, 4> a(files.a.extents(), layout::row_major);
    guarded_buffer<double, 4> b(files.b.extents(), layout::row_major);
    const auto refused = [&](const char* argument, const lora_inventory<double>& to) {
        return refuses(
            "poly_checkpoint::read_inventory", argument,
            [&] { read.read_inventory(read.layers().front(), to); }, a, b);
    };
    for (const auto& bad : bad_as_output(a.view()))
        CHECK(refused("to.a", {bad.view, b.view()}));
    for (const auto& bad : bad_as_output(b.view()))
        CHECK(refused("to.b", {a.view(), bad.view}));
}

TEST_CASE("peft_poly: layers come in the order of their names") {
    poly_files<float> files;
    files.layers = {"a.q", "a-b.q", "q", "a", "a-b", "B.v"};
    poly_config config = files.config();
    config.set("target_modules", nullptr);
    poly_checkpoint_writer writer(config);
    for (const auto& layer : files.layers)
        writer.add_layer(layer, lora_inventory<const float>{files.a.view(), files.b.view()},
                         files.logits.view());
    const std::string bytes = writer.tensor_bytes();
    std::vector<std::string> names;
    const poly_checkpoint read = open_poly(config.json().text(), bytes);
    for (const auto& layer : read.layers())
        names.emplace_back(layer.name);
    CHECK(names == std::vector<std::string>{"B.v", "a", "a-b", "a-b.q", "a.q", "q"});
}

TEST_CASE("peft_poly: the tensors of a real checkpoint survive the way there and back") {
    // Whole files, to the byte, in tests/golden_test.cpp; here through a folder.
    const std::filesystem::path golden(MHR_GOLDEN_DEFAULT_DIR);
    const poly_checkpoint read(golden / "peft_checkpoint" / "f32");
    const temporary_folder folder;
    poly_checkpoint_writer writer(read.config());
    for (const auto& layer : read.layers())
        writer.add_layer(layer.name, read.inventory<float>(layer), read.logits<float>(layer));
    writer.write(folder.path());
    for (const char* file : {peft_config_file, peft_tensors_file})
        CHECK(read_file(folder.path() / file) ==
              read_file(golden / "peft_checkpoint" / "f32" / file));
}

TEST_CASE("peft_poly: modules_to_save are kept") {
    const poly_files<float> files;
    poly_config config = files.config();
    config.set("modules_to_save", {"classifier", "lm.head"});
    CHECK(config.json().fields()["modules_to_save"].size() == 2);

    const std::vector<float> values{1, 2};
    safetensors_writer others;
    for (const char* name :
         {"base_model.model.classifier.weight", "base_model.model.x.lm.head.bias"})
        others.add(name, tensor_view<const float, 1>(values.data(), {2}));
    const std::string other_bytes = others.bytes();
    const safetensors_file other("other", other_bytes.data(), other_bytes.size());
    poly_checkpoint_writer writer(config);
    writer.add_layer("encoder.q", lora_inventory<const float>{files.a.view(), files.b.view()},
                     files.logits.view());
    for (const auto& [name, stored] : other.tensors())
        writer.add_saved(other, name);
    const std::string bytes = writer.tensor_bytes();

    const poly_checkpoint read = open_poly(config.json().text(), bytes);
    CHECK(read.layers().size() == 1);
    CHECK(read.saved() == std::vector<std::string_view>{"base_model.model.classifier.weight",
                                                        "base_model.model.x.lm.head.bias"});
    CHECK(read.tensors().view<float, 1>(std::string(read.saved()[0]))(1) == 2);
    // Without the key, or with another name, they are unknown.
    CHECK(refuses("safetensors: some.file", "'base_model.model.classifier.weight'",
                  [&] { (void)open_poly(files.config_text(), bytes); }));
    CHECK(refuses("safetensors: some.file", "'base_model.model.x.lm.head.bias'", [&] {
        (void)open_poly(exchanged(config.json().text(), "lm.head", "l.head"), bytes);
    }));
}

TEST_CASE("peft_poly: a configuration that is unknown or contradictory is refused by its key") {
    const poly_files<float> files;
    const std::string bytes = files.tensor_bytes();
    const std::string good = files.config_text();
    (void)open_poly(good, bytes);
    struct row {
        std::string old, by, key;
    };
    const row rows[] = {
        {"\"POLY\"", "\"LORA\"", "peft_type"},
        {"\"poly\"", "\"other\"", "poly_type"},
        {"\"revision\": null", "\"revision\": null, \"n_moons\": 1", "n_moons"},
        {"\"r\": 2", "\"r\": 0", "r"},
        {"\"r\": 2", "\"r\": \"2\"", "r"},
        {"\"n_tasks\": 3", "\"n_tasks\": -3", "n_tasks"},
        {"\"n_splits\": 2", "\"n_splits\": []", "n_splits"},
        {"\"n_skills\": 3", "\"n_skills\": 3.5", "n_skills"},
        {"\"init_weights\": true", "\"init_weights\": \"yes\"", "init_weights"},
        {"\"q\"", "\"k\"", "target_modules"},
        {"\"q\"", "\"ncoder.q\"", "target_modules"},
        {"\"exclude_modules\": null", "\"exclude_modules\": [\"v\"]", "exclude_modules"},
    };
    for (const row& one : rows) {
        CAPTURE(one.by);
        CHECK(refuses("peft: some.file", "key '" + one.key + "'",
                      [&] { (void)open_poly(exchanged(good, one.old, one.by), bytes); }));
    }
    // Sizes are compared with the tensors', which are named with their place.
    for (const auto& [old, by] : {std::pair{"\"r\": 2", "\"r\": 3"},
                                  {"\"n_splits\": 2", "\"n_splits\": 1"},
                                  {"\"n_skills\": 3", "\"n_skills\": 4"}})
        CHECK(
            refuses("safetensors: some.file", "'base_model.model.encoder.q.poly_lora_A'",
                    [&, old = old, by = by] { (void)open_poly(exchanged(good, old, by), bytes); }));
    const auto refused = refuses(
        "safetensors: some.file", "'base_model.model.encoder.q.poly_router.module_logits'",
        [&] { (void)open_poly(exchanged(good, "\"n_tasks\": 3", "\"n_tasks\": 4"), bytes); });
    CHECK(refused);
    CHECK(refused.message.find("n_tasks") != std::string::npos);
    CHECK(refused.message.find("[4, 6]") != std::string::npos);
    // A regular expression is not evaluated; whole names and defaults are fine.
    (void)open_poly(exchanged(good, R"([
    "q",
    "v"
  ])",
                              "\"(?!x).*\""),
                    bytes);
    (void)open_poly(exchanged(good, "\"q\"", "\"encoder.q\""), bytes);
    (void)open_poly(
        exchanged(exchanged(good, "\"poly_type\": \"poly\",", ""), "\"init_weights\": true,", ""),
        bytes);
}

TEST_CASE("peft_poly: tensors that do not belong, or are missing, are named") {
    const poly_files<float> files;
    const std::string bytes = files.tensor_bytes();
    const std::string good = files.config_text();
    struct row {
        std::string old, by, tensor;
    };
    const std::string q = "base_model.model.encoder.q.";
    const row rows[] = {
        {q + "poly_lora_A", q + "poly_lora_X", q + "poly_lora_X"},
        {q + "poly_router", q + "poly_rooter", q + "poly_rooter.module_logits"},
        // Of another layer, the first part that is there names what is missing.
        {q + "poly_lora_A", "base_model.model.encodes.q.poly_lora_A", q + "poly_lora_B"},
        {q + "poly_lora_B", "base_model.model.encodes.q.poly_lora_B", q + "poly_lora_A"},
        {q + "poly_router", "base_model.model.encodes.q.poly_router", q + "poly_lora_A"},
        {"base_model.model.encoder.v.poly_router", "base_model.model.encoder.z.poly_router",
         "base_model.model.encoder.v.poly_lora_A"},
        {"base_model.model.encoder.v.poly_lora_B", "base_model.model.encoder.v_poly_lora_B",
         "base_model.model.encoder.v_poly_lora_B"},
        {"\"F32\",\"shape\":[2,3,2,2]", "\"I32\",\"shape\":[2,3,2,2]", q + "poly_lora_A"},
        {"[2,3,2,3],\"data", "[2,3,3,2],\"data", q + "poly_lora_B"},
        {"[3,6],\"data", "[6,3],\"data", q + "poly_router.module_logits"},
    };
    for (const row& one : rows) {
        CAPTURE(one.old);
        CHECK(refuses("safetensors: some.file", "'" + one.tensor + "'",
                      [&] { (void)open_poly(good, exchanged(bytes, one.old, one.by)); }));
    }
    safetensors_writer nothing;
    CHECK(refuses("peft: some.file", "tensors", [&] { (void)open_poly(good, nothing.bytes()); }));
    // Types may differ; then there are no views of the modules.
    safetensors_writer mixed;
    const poly_files<double> doubles;
    mixed.add(q + "poly_lora_A", files.a.view());
    mixed.add(q + "poly_lora_B", doubles.b.view());
    mixed.add(q + "poly_router.module_logits", doubles.logits.view(), std::array<index_t, 2>{3, 6});
    const std::string mixed_bytes = mixed.bytes();
    const poly_checkpoint of_two = open_poly(good, mixed_bytes);
    const auto& layer = of_two.layers().front();
    CHECK(layer.modules_type == dtype::f64);
    CHECK_FALSE(layer.one_type);
    CHECK(refuses("safetensors: some.file", "'" + q + "poly_lora_A'",
                  [&] { (void)of_two.inventory<double>(layer); }));
    guarded_buffer<double, 4> a(files.a.extents(), layout::row_major);
    guarded_buffer<double, 4> b(files.b.extents(), layout::row_major);
    of_two.read_inventory(layer, lora_inventory<double>{a.view(), b.view()});
    CHECK(compare_bitwise(a.view(), copy_as<double>(files.a.view()).view()));
    CHECK(compare_bitwise(b.view(), doubles.b.view()));
}

TEST_CASE("peft_poly: truncated and flipped files are refused, or harmless") {
    poly_files<float> files;
    files.layers = {"encoder.q"};
    const std::string tensors = files.tensor_bytes();
    const std::string config = files.config_text();
    const auto reads_or_refuses = [](const std::string& text, const std::string& bytes) {
        try {
            const poly_checkpoint read = open_poly(text, bytes);
            for (const auto& layer : read.layers()) {
                std::vector<double> numbers(100000);
                read.read_logits(layer,
                                 tensor_view<double, 3>(numbers.data(), {read.config().tasks(),
                                                                         read.config().heads(),
                                                                         read.config().modules()}));
            }
        } catch (const error&) {
        }
    };
    for (std::size_t size = 0; size < config.size(); ++size)
        CHECK_THROWS_AS((void)open_poly(config.substr(0, size), tensors), error);
    for (std::size_t size = 0; size < tensors.size(); ++size)
        CHECK_THROWS_AS((void)open_poly(config, tensors.substr(0, size)), error);
    for (std::size_t bit = 0; bit < 8 * config.size(); ++bit) {
        std::string flipped = config;
        flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
        reads_or_refuses(flipped, tensors);
    }
    for (std::size_t bit = 0; bit < 8 * tensors.size(); ++bit) {
        std::string flipped = tensors;
        flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
        reads_or_refuses(config, flipped);
    }
}

TEST_CASE("peft_poly: the writer's arguments") {
    const poly_files<float> files;
    constexpr const char* function = "poly_checkpoint_writer::add_layer";
    poly_checkpoint_writer writer(files.config());
    const lora_inventory<const float> inventory{files.a.view(), files.b.view()};
    const auto add = [&](const char* layer, const lora_inventory<const float>& modules,
                         const tensor_view<const float, 3>& logits) {
        return [&writer, layer, modules, logits] { writer.add_layer(layer, modules, logits); };
    };
    const auto logits = files.logits.const_view();
    add("encoder.q", inventory, logits)();
    const std::string before = writer.tensor_bytes();
    CHECK(refuses(function, "inventory.a", add("x.q", {files.b.view(), inventory.b}, logits)));
    CHECK(refuses(function, "inventory.b",
                  add("x.q", {inventory.a, inventory.b.block(1, 0, 2)}, logits)));
    CHECK(refuses(function, "logits", add("x.q", inventory, logits.block(0, 0, 2))));
    CHECK(refuses("peft: new configuration", "key 'target_modules'",
                  add("encoder.k", inventory, logits)));
    CHECK(refuses("safetensors_writer", "base_model.model.encoder.q.poly_lora_A",
                  add("encoder.q", inventory, logits)));
    CHECK(writer.tensor_bytes() == before);

    CHECK(refuses("peft: new configuration", "key 'r'", [] { poly_config(1, 1, 1, 0, {"q"}); }));
    CHECK(refuses("peft: new configuration", "key 'n_tasks'",
                  [] { poly_config(-1, 1, 1, 1, {"q"}); }));
    poly_config config = files.config();
    CHECK(refuses("peft: new configuration", "key 'n_moons'", [&] { config.set("n_moons", 1); }));
    CHECK(refuses("peft: new configuration", "key 'r'", [&] { config.set("r", 0); }));
    CHECK(config.json().text() == files.config_text());
}
