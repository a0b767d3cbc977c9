#include <array>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/peft/layer_tensors.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>

#include "support/error_check.hpp"
#include "support/long_cases.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

peft_config config_of(const std::string& fields) {
    return {"some.file", R"({"peft_type":"T")" + fields + "}"};
}

} // namespace

TEST_CASE("layer_tensors: lists of layers are followed, regular expressions are not") {
    const peft_config config = config_of(
        R"(,"target_modules":["q","b.v"],"exclude_modules":["x.q"],"modules_to_save":["head"])");
    peft_details::layer_rules rules(config);
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
        CHECK_FALSE(peft_details::layer_rules(config_of_all).is_saved("a.q.weight"));
    }
    const peft_config long_name = config_of(R"(,"modules_to_save":["base_model.model.a"])");
    CHECK(peft_details::layer_rules(long_name).is_saved("a.weight"));

    for (const char* open : {"", R"(,"target_modules":null)", R"(,"target_modules":"^q")",
                             R"(,"target_modules":"all-linear","exclude_modules":".*q")"}) {
        const peft_config free = config_of(open);
        peft_details::layer_rules(free).require_adapted("a.q");
    }
    const peft_config none = config_of(R"(,"target_modules":[])");
    CHECK_THROWS_AS(peft_details::layer_rules(none).require_adapted("a.q"), error);
}

TEST_CASE("layer_tensors: an endless comparison of names ends" * long_if_checked()) {
    std::string names;
    for (int i = 0; i < 60000; ++i)
        names += (i == 0 ? "\"" : ",\"") + std::to_string(i) + '"';
    const peft_config config = config_of(",\"target_modules\":[" + names + "]");
    const std::vector<float> number{1};
    safetensors_writer writer;
    for (int i = 0; i < 30000; ++i)
        writer.add("base_model.model.layer" + std::to_string(i) + ".59999.scale",
                   const_tensor_ref<1>(number.data(), {1}));
    const std::string bytes = writer.bytes();
    const safetensors_file file("some.file", bytes.data(), bytes.size());
    CHECK(refuses("peft: some.file", "key 'target_modules'", [&] {
              peft_details::peft_tensors<1>(
                  config, file, std::array<peft_details::peft_part, 1>{{{".scale", "", 0}}});
          }).message.find("too many") != std::string::npos);
}
