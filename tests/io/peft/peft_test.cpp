// Adapters as people have them: what is read of each, or why it is refused. Files are in adapters/.

#include <algorithm>
#include <array>
#include <deque>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/peft/peft.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>

#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/poly_files.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

std::filesystem::path adapter_folder(const std::string& name) {
    return std::filesystem::path(MHR_GOLDEN_DEFAULT_DIR).parent_path() / "io" / "adapters" / name;
}

using names = std::vector<std::string>;

template <class Checkpoint>
names layer_names(const Checkpoint& adapter) {
    names result;
    for (const auto& layer : adapter.layers())
        result.emplace_back(layer.name);
    return result;
}
template <class Checkpoint>
names saved_names(const Checkpoint& adapter) {
    return {adapter.saved().begin(), adapter.saved().end()};
}

const names two_layers{"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"};

/// What the files hold: -0.75, -0.5, .., 0.75, and again.
double stored_value(index_t k) {
    return 0.25 * static_cast<double>(k % 7 - 3);
}

} // namespace

TEST_CASE("peft adapters: those that PEFT loads are read, with its values") {
    struct row {
        const char* folder;
        names layers;
        names saved;
        names notes; ///< a part of each
    };
    const std::string model = "base_model.model.";
    const row rows[] = {
        {"resized_vocabulary",
         two_layers,
         {model + "lm_head.weight", model + "model.embed_tokens.weight"},
         {"2 of 6 tensors, such as 'base_model.model.lm_head.weight', are whole embeddings"}},
        {"old_configuration", two_layers, {}, {}},
        {"future_key", two_layers, {}, {}},
        {"adapter_name_in_keys",
         two_layers,
         {},
         {"4 of 4 tensors, such as 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.default"
          ".weight', have the adapter's name 'default'"}},
        {"ends_of_names",
         {"distilbert.transformer.layer.0.attention.q_lin"},
         {model + "classifier.bias", model + "classifier.weight", model + "pre_classifier.bias",
          model + "pre_classifier.weight"},
         {}},
        {"null_defaults", two_layers, {}, {}},
    };
    for (const row& one : rows) {
        CAPTURE(one.folder);
        const lora_checkpoint adapter(adapter_folder(one.folder));
        CHECK(layer_names(adapter) == one.layers);
        CHECK(saved_names(adapter) == one.saved);
        REQUIRE(adapter.notes().size() == one.notes.size());
        for (std::size_t i = 0; i < one.notes.size(); ++i)
            CHECK(adapter.notes()[i].find(one.notes[i]) == 0);
        for (const auto& layer : adapter.layers()) {
            CHECK(layer.rank == 2);
            CHECK(layer.scale == 2); // alpha 4
            CHECK(layer.a_type == element_type::f32);
            CHECK(layer.b_type == element_type::f32);
            const lora matrices = adapter.adapter(layer);
            CHECK(matrices.scale == 2);
            REQUIRE(matrices.a.extents() == std::array<index_t, 2>{4, 2});
            REQUIRE(matrices.b.extents() == std::array<index_t, 2>{2, 6});
            for (index_t r = 0; r < 2; ++r) {
                for (index_t i = 0; i < 4; ++i)
                    CHECK(element(matrices.a, {i, r}) == stored_value(4 * r + i));
                for (index_t o = 0; o < 6; ++o)
                    CHECK(element(matrices.b, {r, o}) == stored_value(2 * o + r));
            }
        }
        // What was kept goes back to Python as it came.
        CHECK(adapter.config().json().fields() ==
              nlohmann::ordered_json::parse(
                  read_file(adapter_folder(one.folder) / peft_config_file)));
    }
}

TEST_CASE("peft adapters: what cannot be read says what to do") {
    struct row {
        const char* folder;
        const char* argument;
        names says;
    };
    const row rows[] = {
        {"lfs_pointer", "adapter_model.safetensors: content", {"Git LFS", "git lfs pull"}},
        {"bin_only", "folder", {"adapter_model.bin alone", "safe_serialization=True"}},
        {"extra_scalar",
         "'base_model.model.model.layers.0.self_attn.q_proj.alpha'",
         {"lora_alpha", "remove the tensor"}},
    };
    for (const row& one : rows) {
        CAPTURE(one.folder);
        const std::string message = error_of([&] { lora_checkpoint{adapter_folder(one.folder)}; });
        CAPTURE(message);
        CHECK(message.find(std::string(one.argument) + ": expected ") != std::string::npos);
        CHECK(message.find(one.folder) != std::string::npos);
        for (const std::string& text : one.says)
            CHECK(message.find(text) != std::string::npos);
        CHECK(message.find('\n') == std::string::npos);
    }
}

// The same for every type of adapter, whose names other programs change in the same ways.

namespace {

using name_change = std::function<std::string(const std::string&)>;

/// The bytes of a file of the same tensors under other names.
std::string renamed(const std::string& bytes, const name_change& change) {
    const safetensors_file file("good", bytes.data(), bytes.size());
    safetensors_writer writer;
    for (const auto& [name, stored] : file.tensors())
        writer.add(file, name, change(name));
    return writer.bytes();
}

std::string with(std::string text, const std::string& more) {
    if (!more.empty()) text.insert(text.rfind('}'), "," + more);
    return text;
}

/// An adapter of one type: two layers a.q and a.v, and a head.
struct good_adapter {
    const char* type;
    std::string config;
    std::string tensors;

    /// Opens it with another configuration or other tensors, and calls `use(adapter)`.
    template <class Use>
    void open(const std::string& its_config, const std::string& its_tensors, Use&& use) const {
        const std::string name(type);
        peft_config json("some.file", its_config);
        safetensors_file file("some.file", its_tensors.data(), its_tensors.size());
        if (name == "LORA")
            use(lora_checkpoint(lora_config(std::move(json)), std::move(file)));
        else if (name == "POLY")
            use(poly_checkpoint(poly_config(std::move(json)), std::move(file)));
        else
            use(ia3_checkpoint(ia3_config(std::move(json)), std::move(file)));
    }
};

void add_numbers(safetensors_writer& writer, const std::string& name, index_t rows, index_t columns,
                 double first) {
    static std::deque<std::vector<float>> kept; // till the writer has written
    std::vector<float>& numbers = kept.emplace_back(static_cast<std::size_t>(rows * columns));
    for (std::size_t i = 0; i < numbers.size(); ++i)
        numbers[i] = static_cast<float>(first + 0.25 * static_cast<double>(i));
    writer.add<2>(name, {numbers.data(), {rows, columns}});
}

good_adapter lora_of(const std::string& head = "lm_head.weight") {
    safetensors_writer writer;
    double first = 1;
    for (const char* layer : {"a.q", "a.v"}) {
        add_numbers(writer, peft_details::peft_key(layer, ".lora_A.weight"), 2, 3, ++first);
        add_numbers(writer, peft_details::peft_key(layer, ".lora_B.weight"), 5, 2, ++first);
    }
    add_numbers(writer, peft_details::peft_key(head), 2, 2, ++first);
    return {"LORA", R"({"peft_type":"LORA","r":2,"target_modules":["q","v"]})", writer.bytes()};
}
good_adapter poly_of() {
    poly_files files;
    files.layers = {"a.q", "a.v"};
    const std::string bytes = files.tensor_bytes();
    const safetensors_file file("poly", bytes.data(), bytes.size());
    safetensors_writer writer;
    for (const auto& [name, stored] : file.tensors())
        writer.add(file, name);
    add_numbers(writer, peft_details::peft_key("lm_head.weight"), 2, 2, 1);
    return {"POLY", files.config_text(), writer.bytes()};
}
good_adapter ia3_of() {
    safetensors_writer writer;
    add_numbers(writer, peft_details::peft_key("a.q.ia3_l"), 3, 1, 1);
    add_numbers(writer, peft_details::peft_key("a.v.ia3_l"), 1, 4, 2);
    add_numbers(writer, peft_details::peft_key("lm_head.weight"), 2, 2, 3);
    return {"IA3", R"({"peft_type":"IA3","target_modules":["q","v"],"feedforward_modules":["v"]})",
            writer.bytes()};
}

std::vector<good_adapter> every_type() {
    std::vector<good_adapter> result;
    result.push_back(lora_of());
    result.push_back(poly_of());
    result.push_back(ia3_of());
    return result;
}

std::string after_prefix(const std::string& key) {
    return key.substr(std::string("base_model.model.").size());
}

/// The adapter's name where PEFT's modules have it: before ".weight", or at the end.
std::string named(const std::string& key, const std::string& name) {
    if (key.find("lm_head") != std::string::npos) return key;
    for (const char* end : {".weight", ".module_logits"}) {
        const auto at = key.rfind(end);
        if (at != std::string::npos && at + std::string(end).size() == key.size())
            return key.substr(0, at) + "." + name + end;
    }
    return key + "." + name;
}

} // namespace

TEST_CASE("peft adapters: other names of the same tensors are read as the same layers") {
    struct row {
        name_change change;
        std::string note; ///< empty: the head's alone
    };
    const std::string prefix = "base_model.model.";
    const row rows[] = {
        {[](const std::string& key) { return key; }, ""},
        {[](const std::string& key) { return after_prefix(key); }, "lack the 'base_model.model.'"},
        {[&](const std::string& key) { return prefix + key; }, "more than once"},
        {[&](const std::string& key) { return prefix + prefix + key; }, "more than once"},
        {[](const std::string& key) { return "_orig_mod." + key; }, "a wrapper's name"},
        {[&](const std::string& key) { return prefix + "_orig_mod." + after_prefix(key); },
         "a wrapper's name"},
        {[](const std::string& key) {
             const auto dot = key.find('.', std::string("base_model.model.").size());
             return key.substr(0, dot) + "._orig_mod" + key.substr(dot);
         },
         "a wrapper's name"},
        {[](const std::string& key) {
             return "_fsdp_wrapped_module." + key.substr(0, 11) +
                    "_checkpoint_wrapped_module._fsdp_wrapped_module." + key.substr(11);
         },
         "a wrapper's name"},
        {[](const std::string& key) { return "module." + key; }, "a wrapper's name"},
        {[](const std::string& key) { return named(key, "default"); },
         "the adapter's name 'default'"},
        {[](const std::string& key) { return after_prefix(named(key, "my adapter")); },
         "the adapter's name 'my adapter'"},
        // Some of them alone.
        {[](const std::string& key) {
             return key.find(".q.") == std::string::npos ? key : after_prefix(key);
         },
         "lack the 'base_model.model.'"},
    };
    for (const good_adapter& good : every_type()) {
        CAPTURE(good.type);
        for (const row& one : rows) {
            CAPTURE(one.change("base_model.model.a.q.part.weight"));
            const std::string bytes = renamed(good.tensors, one.change);
            good.open(good.config, bytes, [&](const auto& read) {
                using Checkpoint = std::decay_t<decltype(read)>;
                CHECK(layer_names(read) == names{"a.q", "a.v"});
                CHECK(saved_names(read) == names{one.change("base_model.model.lm_head.weight")});
                const auto& notes = read.notes();
                CHECK(std::any_of(notes.begin(), notes.end(), [&](const std::string& note) {
                    return note.find(one.note) != std::string::npos;
                }));
                CHECK((!one.note.empty() || notes.size() == 1));
                // The bytes that a layer's names stand for are those of the good file.
                good.open(good.config, good.tensors, [&](const auto& same) {
                    if constexpr (std::is_same_v<std::decay_t<decltype(same)>, Checkpoint>)
                        for (std::size_t i = 0; i < 2; ++i) {
                            const auto its = read.tensor_names(read.layers()[i]);
                            const auto want = same.tensor_names(same.layers()[i]);
                            for (std::size_t part = 0; part < its.size(); ++part) {
                                if (want[part].empty()) { // an optional part
                                    CHECK(its[part].empty());
                                    continue;
                                }
                                CHECK(its[part] == one.change(std::string(want[part])));
                                const auto& a = read.tensors().tensor(std::string(its[part]));
                                const auto& b = same.tensors().tensor(std::string(want[part]));
                                REQUIRE(a.bytes() == b.bytes());
                                CHECK(std::equal(read.tensors().data(a),
                                                 read.tensors().data(a) + a.bytes(),
                                                 same.tensors().data(b)));
                            }
                        }
                });
                // Names outlive moves.
                auto moved = Checkpoint(read.config(),
                                        safetensors_file("some.file", bytes.data(), bytes.size()));
                std::vector<Checkpoint> many;
                many.push_back(std::move(moved));
                many.reserve(10);
                CHECK(layer_names(many.front()) == names{"a.q", "a.v"});
            });
        }
    }
}

TEST_CASE(
    "peft adapters: names that mean the same tensor twice, or several adapters, are refused") {
    for (const good_adapter& good : every_type()) {
        CAPTURE(good.type);
        const safetensors_file file("good", good.tensors.data(), good.tensors.size());
        const auto refused = [&](const name_change& second, const char* says) {
            safetensors_writer writer;
            for (const auto& [name, stored] : file.tensors()) {
                writer.add(file, name);
                if (second(name) != name) writer.add(file, name, second(name));
            }
            const std::string bytes = writer.bytes();
            const std::string message =
                error_of([&] { good.open(good.config, bytes, [](const auto&) {}); });
            CAPTURE(message);
            CHECK(message.find("safetensors: some.file: '") == 0);
            CHECK(message.find(says) != std::string::npos);
        };
        refused([](const std::string& key) { return after_prefix(key); }, "comes once");
        refused([](const std::string& key) { return "_orig_mod." + key; }, "comes once");
        refused([](const std::string& key) { return named(key, "default"); }, "comes once");
        // The head alone.
        refused(
            [](const std::string& key) {
                return key.find("lm_head") == std::string::npos ? key : after_prefix(key);
            },
            "comes once");
        const std::string two = renamed(good.tensors, [](const std::string& key) {
            return named(key, key.find(".q.") == std::string::npos ? "one" : "other");
        });
        const std::string message =
            error_of([&] { good.open(good.config, two, [](const auto&) {}); });
        CHECK(message.find("tensors of one adapter") != std::string::npos);
    }
}

TEST_CASE("peft adapters: null is every key's default, and unknown keys may switch nothing on") {
    for (const good_adapter& good : every_type()) {
        CAPTURE(good.type);
        for (const char* harmless : {"null", "false", "{}", "[]"}) {
            const std::string config = with(good.config, std::string("\"new_key\":") + harmless);
            good.open(config, good.tensors, [&](const auto& read) {
                CHECK(read.config().json().fields()["new_key"] ==
                      nlohmann::ordered_json::parse(harmless));
                CHECK(read.notes().size() == 1); // of the head
            });
        }
        for (const char* value : {"true", "0", "\"\"", "\"x\"", "[null]", R"({"a":null})", "16"}) {
            const std::string config = with(good.config, std::string("\"new_key\":") + value);
            const auto outcome = refuses("peft: some.file", "key 'new_key'", [&] {
                good.open(config, good.tensors, [](const auto&) {});
            });
            CHECK(outcome);
            CHECK(outcome.message.find(std::string("of value ") + value) != std::string::npos);
        }
    }
    // Each key at null is what it is when it is left out.
    struct row {
        good_adapter good;
        names keys;
    };
    const row rows[] = {
        {lora_of(),
         {"alpha_pattern",
          "auto_mapping",
          "base_model_name_or_path",
          "bias",
          "corda_config",
          "ensure_weight_tying",
          "exclude_modules",
          "fan_in_fan_out",
          "inference_mode",
          "init_lora_weights",
          "layers_pattern",
          "layers_to_transform",
          "loftq_config",
          "lora_alpha",
          "lora_bias",
          "lora_dropout",
          "modules_to_save",
          "peft_version",
          "rank_pattern",
          "revision",
          "target_parameters",
          "task_type",
          "use_dora",
          "use_rslora"}},
        {ia3_of(), {"fan_in_fan_out", "init_ia3_weights", "exclude_modules", "modules_to_save"}},
    };
    for (const auto& [good, keys] : rows) {
        std::string config = good.config;
        for (const std::string& key : keys)
            config = with(config, "\"" + key + "\":null");
        good.open(config, good.tensors, [&](const auto& read) {
            CHECK(layer_names(read) == names{"a.q", "a.v"});
            if constexpr (std::is_same_v<std::decay_t<decltype(read)>, lora_checkpoint>)
                CHECK(read.layers()[0].scale == 4); // alpha 8
        });
    }
    // r is 8 and n_skills 4, if they are null; the file has others.
    CHECK(refuses("safetensors: some.file", "'base_model.model.a.q.lora_A.weight'", [] {
              const good_adapter good = lora_of();
              good.open(exchanged(good.config, "\"r\":2", "\"r\":null"), good.tensors,
                        [](const auto&) {});
          }).message.find("[8, any]") != std::string::npos);
    const good_adapter poly = poly_of();
    for (const auto& [key, value] : {std::pair{"poly_type", "\"poly\""}, {"init_weights", "true"}})
        poly.open(exchanged(poly.config, std::string("\"") + key + "\": " + value,
                            std::string("\"") + key + "\": null"),
                  poly.tensors, [](const auto&) {});
    CHECK(refuses("safetensors: some.file", "'base_model.model.a.q.poly_lora_A'", [&] {
              poly.open(exchanged(poly.config, "\"n_skills\": 3", "\"n_skills\": null"),
                        poly.tensors, [](const auto&) {});
          }).message.find("[2, 4, any, 2]") != std::string::npos);
}

TEST_CASE("peft adapters: MiCA's start leaves the base weights alone") {
    const good_adapter good = lora_of();
    good.open(with(good.config, R"("init_lora_weights":"mica")"), good.tensors,
              [](const auto& read) { CHECK(read.layers().size() == 2); });
}

TEST_CASE("peft adapters: embeddings and heads are saved without a word in the configuration") {
    for (const char* saved :
         {"lm_head.weight", "lm_head.bias", "lm_head.base_layer.weight", "embed_tokens.weight",
          "model.embed_tokens.weight", "model.embed_tokens.base_layer.weight",
          "transformer.wte."
          "weight",
          "shared.weight", "encoder.embed_tokens.weight", "gpt_neox.embed_in.weight",
          "embed_out.weight", "bert.embeddings.word_embeddings.weight",
          "cls.predictions.decoder.bias"}) {
        CAPTURE(saved);
        const good_adapter good = lora_of(saved);
        good.open(good.config, good.tensors, [&](const auto& read) {
            CHECK(saved_names(read) == names{peft_details::peft_key(saved)});
            CHECK(read.notes().size() == 1);
        });
        // Named in the configuration, it is nothing to speak of.
        const std::string module(peft_details::module_of(saved));
        good.open(with(good.config, "\"modules_to_save\":[\"" + module + "\"]"), good.tensors,
                  [&](const auto& read) {
                      CHECK(read.saved().size() == 1);
                      CHECK(read.notes().empty());
                  });
    }
}

TEST_CASE("peft adapters: a tensor that does not belong is called what it is") {
    struct row {
        const char* name;
        const char* says;
    };
    const row rows[] = {
        {"embed_tokens.lora_embedding_A", "'....lora_embedding_B' beside it"},
        {"embed_tokens.lora_embedding_B.default", "'....lora_embedding_A' beside it"},
        {"a.q.lora_magnitude_vector", "'use_dora'"},
        {"a.q.lora_magnitude_vector.default", "'use_dora'"},
        {"a.q.lora_magnitude_vector.weight", "'use_dora'"},
        {"a.q.alpha", "'lora_alpha'"},
        {"a.q.lora_B.bias", "'lora_bias'"},
        {"a.q.lora_B.default.bias", "'lora_bias'"},
        {"a.q.lora_down.weight", "another format"},
        {"a.q.lora_up.weight", "another format"},
        {"a.q.lora_a", "MLX"},
        {"a.q.poly_lora_A", "of type POLY: correct 'peft_type'"},
        {"a.q.ia3_l", "of type IA3: correct 'peft_type'"},
        {"a.q.base_layer.weight", "a part of the base model"},
        {"score.weight", "'modules_to_save'"},
        {"lm_head_extra.weight", "'modules_to_save'"},
        {"a.q.bias", "'modules_to_save'"},
        {"a.q.something", "an unknown one"},
    };
    for (const row& one : rows) {
        CAPTURE(one.name);
        const good_adapter good = lora_of(one.name);
        const auto outcome =
            refuses("safetensors: some.file", "'" + peft_details::peft_key(one.name) + "'",
                    [&] { good.open(good.config, good.tensors, [](const auto&) {}); });
        CHECK(outcome);
        CHECK(outcome.message.find(one.says) != std::string::npos);
    }
    const good_adapter lora = lora_of();
    for (const char* type : {"POLY", "IA3"})
        CHECK(error_of([&] {
                  const good_adapter other{type, std::string(R"({"peft_type":")") + type + "\"}",
                                           lora.tensors};
                  other.open(other.config, other.tensors, [](const auto&) {});
              }).find("got one of type LORA: correct 'peft_type'") != std::string::npos);
}
