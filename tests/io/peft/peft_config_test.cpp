#include <string>

#include <doctest/doctest.h>

#include <mhr/io/peft/peft_config.hpp>

#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/temporary_folder.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using peft_details::key_kind;
constexpr peft_details::key_rule rules[] = {
    {"any", key_kind::any},      {"flag", key_kind::flag},     {"text", key_kind::text},
    {"count", key_kind::count},  {"number", key_kind::number}, {"names", key_kind::names},
    {"map", key_kind::patterns}, {"off", key_kind::off}};

peft_config with(const std::string& key, const std::string& value) {
    return {"some.file", "{\"peft_type\":\"T\",\"" + key + "\":" + value + "}"};
}

} // namespace

TEST_CASE("peft_config: the text comes back as Python wrote it") {
    const std::string text = "{\n"
                             "  \"peft_type\": \"POLY\",\n"
                             "  \"a\": 0.1,\n"
                             "  \"b\": 1e-05,\n"
                             "  \"c\": 16.0,\n"
                             "  \"d\": {},\n"
                             "  \"e\": [],\n"
                             "  \"f\": [\n    \"\\u00e9\",\n    null\n  ],\n"
                             "  \"Z\": -3\n"
                             "}";
    const peft_config config("some.file", text);
    CHECK(config.text() == text);
    CHECK(config.type() == "POLY");
    CHECK(config.name() == "some.file");

    const temporary_folder folder;
    config.write(folder.path());
    CHECK(read_file(folder.path() / "adapter_config.json") == text);
    CHECK(peft_config::read(folder.path()).text() == text);
}

TEST_CASE("peft_config: a bad text is refused") {
    const auto refuses_text = [](const std::string& argument, const std::string& text) {
        return refuses("peft: some.file", argument, [&] { peft_config("some.file", text); });
    };
    CHECK(refuses_text("JSON", ""));
    CHECK(refuses_text("JSON", "[]"));
    CHECK(refuses_text("JSON", "{\"peft_type\":" + std::string(100000, '[')));
    CHECK(refuses_text("JSON", std::string(peft_config::max_bytes + 1, ' ')));
    CHECK(refuses_text("key 'peft_type'", "{}"));
    CHECK(refuses_text("key 'peft_type'", R"({"peft_type":7})"));
    CHECK(refuses_text("key 'a'", R"({"peft_type":"POLY","a":1,"a":1})"));
    CHECK(refuses_text("key 'a\\x0a'", R"({"peft_type":"POLY","a\n":1,"a\n":1})"));

    const temporary_folder folder;
    const auto path = path_text(folder.path() / "adapter_config.json");
    CHECK(refuses("mapped_file", path, [&] { (void)peft_config::read(folder.path()); }));
    write_file(folder.path() / "adapter_config.json", "");
    CHECK(refuses("peft: " + path, "JSON", [&] { (void)peft_config::read(folder.path()); }));
}

TEST_CASE("peft_config: each key holds what its kind permits") {
    struct row {
        const char* key;
        const char* value;
        bool good;
    };
    const row rows[] = {
        {"any", "null", true},
        {"any", R"({"a":[1,{}]})", true},
        {"flag", "true", true},
        {"flag", "null", true},
        {"flag", "1", false},
        {"text", "\"a\"", true},
        {"text", "null", true},
        {"text", "1", false},
        {"count", "1", true},
        {"count", "2147483648", true},
        {"count", "0", false},
        {"count", "-1", false},
        {"count", "1.0", false},
        {"count", "2147483649", false},
        {"count", "null", true},
        {"count", "true", false},
        {"number", "0.5", true},
        {"number", "-7", true},
        {"number", "\"7\"", false},
        {"number", "null", true},
        {"names", "null", true},
        {"names", "\"q|v\"", true},
        {"names", "[]", true},
        {"names", R"(["q","v"])", true},
        {"names", R"(["q",7])", false},
        {"names", "{}", false},
        {"map", "{}", true},
        {"map", R"({"q":1,"v":0.5})", true},
        {"map", "null", true},
        {"map", R"({"q":"1"})", false},
        {"map", "[1]", false},
        {"off", "null", true},
        {"off", "false", true},
        {"off", "{}", true},
        {"off", "[]", true},
        {"off", "true", false},
        {"off", "0", false},
        {"off", R"({"a":1})", false},
        {"off", "\"\"", false},
        {"unknown", "null", true},
        {"unknown", "[]", true},
        {"unknown", "true", false},
        {"unknown", "0", false},
        {"task_type", "\"X\"", true},
        {"inference_mode", "7", false}, // the common ones
        {"modules_to_save", "{}", false},
    };
    for (const row& one : rows) {
        CAPTURE(one.key);
        CAPTURE(one.value);
        const peft_config config = with(one.key, one.value);
        if (one.good)
            config.require_keys("T", rules);
        else
            CHECK(refuses("peft: some.file", std::string("key '") + one.key + "'",
                          [&] { config.require_keys("T", rules); }));
    }
    CHECK(refuses("peft: some.file", "key 'peft_type'",
                  [&] { with("any", "1").require_keys("U", rules); }));
}

TEST_CASE("peft_config: values, and what stands for missing ones") {
    const peft_config config("some.file", R"({"peft_type":"T","count":3,"number":2,"flag":true,)"
                                          R"("none":null,"names":["a","b"],"text":"a"})");
    CHECK(config.has("count"));
    CHECK_FALSE(config.has("none"));
    CHECK_FALSE(config.has("missing"));
    CHECK(config.count("count", 7) == 3);
    CHECK(config.count("missing", 7) == 7);
    CHECK(config.number("number", 7) == 2);
    CHECK(config.number("none", 0.5) == 0.5);
    CHECK(config.flag("flag", false));
    CHECK(config.flag("missing", true));
    auto budget = config.matching_of("names");
    const auto is_b = [](std::string_view name) { return name == "b"; };
    CHECK(config.lists("names", budget, is_b));
    CHECK_FALSE(config.lists("text", budget, is_b));
    CHECK_FALSE(config.lists("missing", budget, is_b));
    budget.steps = 1;
    CHECK_THROWS_AS((void)config.lists("names", budget, is_b), error);
}
