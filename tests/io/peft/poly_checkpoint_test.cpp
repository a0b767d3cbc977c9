#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <mhr/io/peft/poly_checkpoint.hpp>

#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/guarded_tensor.hpp"
#include "support/poly_files.hpp"
#include "support/temporary_folder.hpp"

using namespace mhr;
using namespace mhr::test;

TEST_CASE("poly_checkpoint: what is written is read, each tensor of the type of its own") {
    for (const element_type of_a : all_element_types)
        for (const element_type of_b : all_element_types)
            for (const element_type of_logits : all_element_types) {
                const poly_files files(of_a, of_b, of_logits);
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
                    CHECK(layer.a_type == of_a);
                    CHECK(layer.b_type == of_b);
                    CHECK(layer.logits_type == of_logits);
                    CHECK(read.is_aligned(layer));
                    const lora_inventory inventory = read.inventory(layer);
                    CHECK(compare_bitwise(inventory.a, files.a.const_ref()));
                    CHECK(compare_bitwise(inventory.b, files.b.const_ref()));
                    CHECK(compare_bitwise(read.logits(layer), files.logits.const_ref()));
                }
            }
}

TEST_CASE("poly_checkpoint: copies have any type and layout, rounded once") {
    for (const element_type stored : all_element_types) {
        const poly_files files(stored);
        const std::string bytes = files.tensor_bytes();
        const poly_checkpoint read = open_poly(files.config_text(), bytes);
        const auto& layer = read.layers().front();
        const auto rounded_as = [](const auto& values, auto& copy) {
            for_each_position(values.extents(), [&](const auto& at) {
                set_element(copy.ref(), at, element(values.const_ref(), at));
            });
        };
        for (const element_type type : all_element_types) {
            CAPTURE(name_of(stored));
            CAPTURE(name_of(type));
            guarded_tensor<4> a(type, files.a.extents(), layout::column_major);
            guarded_tensor<4> b(type, files.b.extents(), layout::padded);
            guarded_tensor<3> logits(type, files.logits.extents(), layout::reversed);
            read.read_inventory(layer, {a.ref(), b.ref()});
            read.read_logits(layer, logits.ref());
            guarded_tensor<4> want_a(type, files.a.extents()), want_b(type, files.b.extents());
            guarded_tensor<3> want_logits(type, files.logits.extents());
            rounded_as(files.a, want_a);
            rounded_as(files.b, want_b);
            rounded_as(files.logits, want_logits);
            CHECK(compare_bitwise(a.ref(), want_a.ref()));
            CHECK(compare_bitwise(b.ref(), want_b.ref()));
            CHECK(compare_bitwise(logits.ref(), want_logits.ref()));
            CHECK(a.intact());
            CHECK(b.intact());
            CHECK(logits.intact());
        }
    }
}

TEST_CASE("poly_checkpoint: data that are not aligned can be copied, but not shown") {
    const poly_files files(element_type::bf16);
    const std::string bytes = files.tensor_bytes();
    const std::string memory = " " + bytes;
    const poly_checkpoint read(poly_config(peft_config("some.file", files.config_text())),
                               safetensors_file("some.file", memory.data() + 1, bytes.size()));
    const auto& layer = read.layers().front();
    CHECK_FALSE(read.is_aligned(layer));
    CHECK(refuses("safetensors: some.file", "'base_model.model.encoder.q.poly_lora_A'",
                  [&] { (void)read.inventory(layer); }));
    CHECK(refuses("safetensors: some.file",
                  "'base_model.model.encoder.q.poly_router.module_logits'",
                  [&] { (void)read.logits(layer); }));
    guarded_tensor<4> a(element_type::bf16, files.a.extents());
    guarded_tensor<4> b(element_type::bf16, files.b.extents());
    read.read_inventory(layer, {a.ref(), b.ref()});
    CHECK(compare_bitwise(a.const_ref(), files.a.const_ref()));
    CHECK(compare_bitwise(b.const_ref(), files.b.const_ref()));
}

TEST_CASE("poly_checkpoint: tensors of every layout are written, and what was read may be moved") {
    const poly_files files;
    for (const layout order : all_layouts)
        CHECK(poly_files(element_type::f32, order).tensor_bytes() == files.tensor_bytes());
    const std::string bytes = files.tensor_bytes();
    poly_checkpoint read = open_poly(files.config_text(), bytes);
    std::vector<poly_checkpoint> many;
    many.push_back(std::move(read));
    many.push_back(open_poly(files.config_text(), bytes));
    many.reserve(100);
    CHECK(many[0].layers()[1].name == "encoder.v");
    CHECK(compare_bitwise(many[0].logits(many[0].layers()[1]), files.logits.const_ref()));
}

TEST_CASE("poly_checkpoint: a copy into bad tensors is refused, all of them untouched") {
    const poly_files files;
    const std::string bytes = files.tensor_bytes();
    const poly_checkpoint read = open_poly(files.config_text(), bytes);
    const auto& layer = read.layers().front();
    guarded_tensor<4> a(element_type::f64, files.a.extents());
    guarded_tensor<4> b(element_type::f64, files.b.extents());
    guarded_tensor<3> logits(element_type::f16, files.logits.extents());
    const auto refused = [&](const char* argument, const lora_inventory_matrices& to) {
        return refuses(
            "poly_checkpoint::read_inventory", argument, [&] { read.read_inventory(layer, to); }, a,
            b);
    };
    for (const auto& bad : bad_as_output(a.ref()))
        CHECK(refused("to.a", {bad.ref, b.ref()}));
    for (const auto& bad : bad_as_output(b.ref()))
        CHECK(refused("to.b", {a.ref(), bad.ref}));
    for (const auto& bad : bad_as_output(logits.ref()))
        CHECK(refuses(
            "poly_checkpoint::read_logits", "to", [&] { read.read_logits(layer, bad.ref); },
            logits));
}

TEST_CASE("poly_checkpoint: layers come in the order of their names") {
    poly_files files;
    files.layers = {"a.q", "a-b.q", "q", "a", "a-b", "B.v"};
    poly_config config = files.config();
    config.set("target_modules", nullptr);
    poly_checkpoint_writer writer(config);
    for (const auto& layer : files.layers)
        writer.add_layer(layer, files.inventory(), files.logits.const_ref());
    const std::string bytes = writer.tensor_bytes();
    std::vector<std::string> names;
    const poly_checkpoint read = open_poly(config.json().text(), bytes);
    for (const auto& layer : read.layers())
        names.emplace_back(layer.name);
    CHECK(names == std::vector<std::string>{"B.v", "a", "a-b", "a-b.q", "a.q", "q"});
}

TEST_CASE("poly_checkpoint: the tensors of a real checkpoint survive the way there and back") {
    // Whole files, to the byte, in tests/golden_test.cpp; here through a folder.
    const std::filesystem::path golden(MHR_GOLDEN_DEFAULT_DIR);
    const poly_checkpoint read(golden / "peft_checkpoint" / "f32");
    const temporary_folder folder;
    poly_checkpoint_writer writer(read.config());
    for (const auto& layer : read.layers())
        writer.add_layer(layer.name, read.inventory(layer), read.logits(layer));
    writer.write(folder.path());
    for (const char* file : {peft_config_file, peft_tensors_file})
        CHECK(read_file(folder.path() / file) ==
              read_file(golden / "peft_checkpoint" / "f32" / file));
}

TEST_CASE("poly_checkpoint: modules_to_save are kept") {
    const poly_files files;
    poly_config config = files.config();
    config.set("modules_to_save", {"classifier", "lm.head"});
    CHECK(config.json().fields()["modules_to_save"].size() == 2);

    const std::vector<float> values{1, 2};
    safetensors_writer others;
    for (const char* name :
         {"base_model.model.classifier.weight", "base_model.model.x.lm.head.bias"})
        others.add(name, const_tensor_ref<1>(values.data(), {2}));
    const std::string other_bytes = others.bytes();
    const safetensors_file other("other", other_bytes.data(), other_bytes.size());
    poly_checkpoint_writer writer(config);
    writer.add_layer("encoder.q", files.inventory(), files.logits.const_ref());
    for (const auto& [name, stored] : other.tensors())
        writer.add_saved(other, name);
    const std::string bytes = writer.tensor_bytes();

    const poly_checkpoint read = open_poly(config.json().text(), bytes);
    CHECK(read.layers().size() == 1);
    CHECK(read.saved() == std::vector<std::string_view>{"base_model.model.classifier.weight",
                                                        "base_model.model.x.lm.head.bias"});
    CHECK(element(read.tensors().view<1>(std::string(read.saved()[0])), {1}) == 2);
    // Without the key, or with another name, they are unknown.
    CHECK(refuses("safetensors: some.file", "'base_model.model.classifier.weight'",
                  [&] { (void)open_poly(files.config_text(), bytes); }));
    CHECK(refuses("safetensors: some.file", "'base_model.model.x.lm.head.bias'", [&] {
        (void)open_poly(exchanged(config.json().text(), "lm.head", "l.head"), bytes);
    }));
}

TEST_CASE(
    "poly_checkpoint: a configuration that is unknown or contradictory is refused by its key") {
    const poly_files files;
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

TEST_CASE("poly_checkpoint: tensors that do not belong, or are missing, are named") {
    const poly_files files;
    const std::string bytes = files.tensor_bytes();
    const std::string good = files.config_text();
    struct row {
        std::string old, by, tensor;
    };
    const std::string q = "base_model.model.encoder.q.";
    const row rows[] = {
        {q + "poly_lora_A", q + "poly_lora_X", q + "poly_lora_X"},
        {q + "poly_router", q + "poly_rooter", q + "poly_rooter.module_logits"},
        // In another layer, the first part that is there names what is missing.
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
}

TEST_CASE("poly_checkpoint: truncated and flipped files are refused, or harmless") {
    poly_files files;
    files.layers = {"encoder.q"};
    const std::string tensors = files.tensor_bytes();
    const std::string config = files.config_text();
    const auto reads_or_refuses = [](const std::string& text, const std::string& bytes) {
        try {
            const poly_checkpoint read = open_poly(text, bytes);
            for (const auto& layer : read.layers()) {
                std::vector<double> numbers(100000);
                read.read_logits(layer, {numbers.data(),
                                         {read.config().tasks(), read.config().heads(),
                                          read.config().modules()}});
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

TEST_CASE("poly_checkpoint: the writer's arguments") {
    const poly_files files;
    constexpr const char* function = "poly_checkpoint_writer::add_layer";
    poly_checkpoint_writer writer(files.config());
    const lora_inventory inventory = files.inventory();
    const auto add = [&](const char* layer, const lora_inventory& modules,
                         const const_tensor_ref<3>& table) {
        return [&writer, layer, modules, table] { writer.add_layer(layer, modules, table); };
    };
    const auto logits = files.logits.const_ref();
    add("encoder.q", inventory, logits)();
    const std::string before = writer.tensor_bytes();
    CHECK(refuses(function, "inventory.a", add("x.q", {files.b.const_ref(), inventory.b}, logits)));
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
