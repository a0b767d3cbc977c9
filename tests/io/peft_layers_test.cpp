#include <array>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/peft_layers.hpp>

#include "support/error_check.hpp"
#include "support/long_cases.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr std::array<std::string_view, 2> parts{".up.weight", ".weight"};

peft_config config_of(const std::string& fields) {
    return {"some.file", R"({"peft_type":"T")" + fields + "}"};
}

} // namespace

TEST_CASE("peft_layers: names of tensors") {
    CHECK(detail::peft_key("a.q", ".lora_A") == "base_model.model.a.q.lora_A");
    const auto split = [](std::string_view key) { return detail::split_key(key, parts); };
    CHECK(split("base_model.model.a.q.up.weight") ==
          std::pair<std::string_view, std::size_t>("a.q", 0));
    CHECK(split("base_model.model.a.q.weight") ==
          std::pair<std::string_view, std::size_t>("a.q", 1));
    CHECK(split("base_model.model.up.weight").first == "up");
    CHECK(split("base_model.model.weight").first.empty());
    CHECK(split("base_model.model..weight").first.empty());
    CHECK(split("a.q.weight").first.empty());
    CHECK(split("base_model.model.a.q.bias").first.empty());
    CHECK(detail::is_last_part("b.c", "a.b.c"));
    CHECK(detail::is_last_part("a.b.c", "a.b.c"));
    CHECK_FALSE(detail::is_last_part("b.c", "a.bb.c"));
    CHECK_FALSE(detail::is_last_part(".c", "a.b.c"));
    CHECK_FALSE(detail::is_last_part("x.a.b.c", "a.b.c"));
}

TEST_CASE("peft_layers: lists of layers are followed, regular expressions are not") {
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
    CHECK(rules.is_saved("base_model.model.head.weight"));
    CHECK(rules.is_saved("base_model.model.a.head.b.weight"));
    CHECK(rules.is_saved("base_model.model.head"));
    CHECK_FALSE(rules.is_saved("base_model.model.ahead.weight"));
    CHECK_FALSE(rules.is_saved("head.weight"));

    for (const char* open : {"", R"(,"target_modules":null)", R"(,"target_modules":"^q")",
                             R"(,"target_modules":"all-linear","exclude_modules":".*q")"}) {
        const peft_config free = config_of(open);
        detail::layer_rules(free).require_adapted("a.q");
    }
    const peft_config none = config_of(R"(,"target_modules":[])");
    CHECK_THROWS_AS(detail::layer_rules(none).require_adapted("a.q"), error);
}

TEST_CASE("peft_layers: an endless comparison of names ends" * long_if_checked()) {
    std::string names;
    for (int i = 0; i < 60000; ++i)
        names += (i == 0 ? "\"" : ",\"") + std::to_string(i) + '"';
    const peft_config config = config_of(",\"target_modules\":[" + names + "]");
    const std::vector<float> number{1};
    safetensors_writer writer;
    for (int i = 0; i < 30000; ++i)
        writer.add("base_model.model.layer" + std::to_string(i) + ".59999.weight",
                   tensor_view<const float, 1>(number.data(), {1}));
    const std::string bytes = writer.bytes();
    const safetensors_file file("some.file", bytes.data(), bytes.size());
    CHECK(refuses("peft: some.file", "key 'target_modules'", [&] {
              detail::for_each_adapted_layer(config, file,
                                             std::array<std::string_view, 1>{".weight"},
                                             [](std::string_view, const auto&) {});
          }).message.find("too many") != std::string::npos);
}
