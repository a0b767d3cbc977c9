#include <array>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/peft_tensors.hpp>
#include <mhr/io/safetensors_writer.hpp>

#include "support/error_check.hpp"
#include "support/long_cases.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr std::array<detail::peft_part, 2> parts{{{".up", ".weight"}, {".scale", ""}}};

peft_config config_of(const std::string& fields) {
    return {"some.file", R"({"peft_type":"T")" + fields + "}"};
}

} // namespace

TEST_CASE("peft_tensors: names of tensors") {
    CHECK(detail::peft_key("a.q", ".lora_A") == "base_model.model.a.q.lora_A");
    struct row {
        const char* name;
        const char* layer; ///< empty: no part of a layer
        std::size_t part;
        const char* adapter;
    };
    for (const row& one : {row{"a.q.up.weight", "a.q", 0, ""},
                           {"a.q.scale", "a.q", 1, ""},
                           {"a.q.up.default.weight", "a.q", 0, "default"},
                           {"a.q.scale.x y", "a.q", 1, "x y"},
                           {"up.up.weight", "up", 0, ""},
                           {"q.up.up.weight", "q.up", 0, ""},
                           {"up.weight", "", 0, ""},
                           {".up.weight", "", 0, ""},
                           {".scale.default", "", 0, ""},
                           {"a.q.up..weight", "", 0, ""},
                           {"a.q.up.a.b.weight", "", 0, ""},
                           {"a.q.scale.weight", "", 0, ""},
                           {"a.q.scale.", "", 0, ""},
                           {"a.q.bias", "", 0, ""},
                           {"", "", 0, ""},
                           {".", "", 0, ""},
                           {"weight", "", 0, ""},
                           {".weight", "", 0, ""}}) {
        CAPTURE(one.name);
        const auto split = detail::split_name(one.name, parts);
        CHECK(split.layer == one.layer);
        CHECK(split.part == one.part);
        CHECK(split.adapter == one.adapter);
    }
    CHECK(detail::is_last_part("b.c", "a.b.c"));
    CHECK(detail::is_last_part("a.b.c", "a.b.c"));
    CHECK_FALSE(detail::is_last_part("b.c", "a.bb.c"));
    CHECK_FALSE(detail::is_last_part(".c", "a.b.c"));
    CHECK_FALSE(detail::is_last_part("x.a.b.c", "a.b.c"));
}

TEST_CASE("peft_tensors: beginnings of names, and what wrappers leave in them") {
    using detail::name_oddity;
    struct row {
        const char* key;
        const char* plain;
        name_oddity oddity;
    };
    const row rows[] = {
        {"base_model.model.a.q", "a.q", name_oddity::none},
        {"base_model.model.base_model.model.a.q", "a.q", name_oddity::doubled_prefix},
        {"a.q", "a.q", name_oddity::no_prefix},
        {"", "", name_oddity::no_prefix},
        {"base_model.a.q", "base_model.a.q", name_oddity::no_prefix},
        {"xbase_model.model.a", "xbase_model.model.a", name_oddity::no_prefix},
        {"_orig_mod.base_model.model.a.q", "a.q", name_oddity::wrapper},
        {"base_model.model.a._orig_mod.q", "a.q", name_oddity::wrapper},
        {"_orig_mod.a._orig_mod._fsdp_wrapped_module.q._checkpoint_wrapped_module.w", "a.q.w",
         name_oddity::wrapper},
        {"base_model.model.a.q._orig_mod", "a.q._orig_mod", name_oddity::none}, // no wrapper of it
        {"base_model.model.a.my_orig_mod.q", "a.my_orig_mod.q", name_oddity::none},
        {"module.base_model.model.a.q", "a.q", name_oddity::wrapper},
        {"module.a.q", "module.a.q", name_oddity::no_prefix},
        {"_orig_mod.", "", name_oddity::wrapper},
    };
    detail::peft_names names;
    for (const row& one : rows)
        names.expect(one.key);
    std::vector<std::string_view> found;
    for (const row& one : rows) {
        CAPTURE(one.key);
        found.push_back(names.plain(one.key));
        CHECK(found.back() == one.plain);
        CHECK(names.last_oddity() == one.oddity);
        CHECK(detail::as_peft_writes(one.key) == std::string("base_model.model.") + one.plain);
    }
    const detail::peft_names moved = std::move(names);
    for (std::size_t i = 0; i < found.size(); ++i)
        CHECK(found[i] == rows[i].plain);
}

TEST_CASE("peft_tensors: lists of layers are followed, regular expressions are not") {
    const peft_config config = config_of(
        R"(,"target_modules":["q","b.v"],"exclude_modules":["x.q"],"modules_to_save":["head"])");
    detail::layer_rules rules(config);
    rules.require_adapted("a.q");
    rules.require_adapted("b.v");
    const auto refused = [&](const char* key, const char* layer) {
        return refuses("peft: some.file", std::string("key '") + key + "'",
                       [&] { rules.require_adapted(layer); });
    };
    CHECK(refused("target_modules", "a.v"));
    CHECK(refused("target_modules", "a.qq"));
    CHECK(refused("exclude_modules", "a.x.q"));
    CHECK(rules.is_saved("head.weight"));
    CHECK(rules.is_saved("a.head.b.weight"));
    CHECK(rules.is_saved("head"));
    CHECK(rules.is_saved("ahead.weight")); // PEFT asks for no '.' before it
    CHECK_FALSE(rules.is_saved("heads.weight"));
    CHECK_FALSE(rules.is_saved("hea.d.weight"));
    // Not all of the model, whatever its class is called.
    for (const char* all : {"model", "l", "", "base_model.model"}) {
        const peft_config config_of_all =
            config_of(std::string(",\"modules_to_save\":[\"") + all + "\"]");
        CHECK_FALSE(detail::layer_rules(config_of_all).is_saved("a.q.weight"));
    }
    const peft_config long_name = config_of(R"(,"modules_to_save":["base_model.model.a"])");
    CHECK(detail::layer_rules(long_name).is_saved("a.weight"));

    for (const char* open : {"", R"(,"target_modules":null)", R"(,"target_modules":"^q")",
                             R"(,"target_modules":"all-linear","exclude_modules":".*q")"}) {
        const peft_config free = config_of(open);
        detail::layer_rules(free).require_adapted("a.q");
    }
    const peft_config none = config_of(R"(,"target_modules":[])");
    CHECK_THROWS_AS(detail::layer_rules(none).require_adapted("a.q"), error);
}

TEST_CASE("peft_tensors: an endless comparison of names ends" * long_if_checked()) {
    std::string names;
    for (int i = 0; i < 60000; ++i)
        names += (i == 0 ? "\"" : ",\"") + std::to_string(i) + '"';
    const peft_config config = config_of(",\"target_modules\":[" + names + "]");
    const std::vector<float> number{1};
    safetensors_writer writer;
    for (int i = 0; i < 30000; ++i)
        writer.add("base_model.model.layer" + std::to_string(i) + ".59999.scale",
                   tensor_view<const float, 1>(number.data(), {1}));
    const std::string bytes = writer.bytes();
    const safetensors_file file("some.file", bytes.data(), bytes.size());
    CHECK(refuses("peft: some.file", "key 'target_modules'", [&] {
              detail::peft_tensors<1>(config, file,
                                      std::array<detail::peft_part, 1>{{{".scale", ""}}});
          }).message.find("too many") != std::string::npos);
}
