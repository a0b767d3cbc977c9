#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/peft/tensor_names.hpp>

using namespace mhr;

namespace {

constexpr std::array<peft_details::peft_part, 2> parts{{{".up", ".weight", 0}, {".scale", "", 1}}};

} // namespace

TEST_CASE("tensor_names: names of tensors") {
    CHECK(peft_details::peft_key("a.q", ".lora_A") == "base_model.model.a.q.lora_A");
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
        const auto split = peft_details::split_name(one.name, parts);
        CHECK(split.layer == one.layer);
        CHECK(split.part == one.part);
        CHECK(split.adapter == one.adapter);
    }
    CHECK(peft_details::is_last_part("b.c", "a.b.c"));
    CHECK(peft_details::is_last_part("a.b.c", "a.b.c"));
    CHECK_FALSE(peft_details::is_last_part("b.c", "a.bb.c"));
    CHECK_FALSE(peft_details::is_last_part(".c", "a.b.c"));
    CHECK_FALSE(peft_details::is_last_part("x.a.b.c", "a.b.c"));
}

TEST_CASE("tensor_names: beginnings of names, and what wrappers leave in them") {
    using peft_details::name_oddity;
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
    peft_details::peft_names names;
    for (const row& one : rows)
        names.expect(one.key);
    std::vector<std::string_view> found;
    for (const row& one : rows) {
        CAPTURE(one.key);
        found.push_back(names.plain(one.key));
        CHECK(found.back() == one.plain);
        CHECK(names.last_oddity() == one.oddity);
        CHECK(peft_details::as_peft_writes(one.key) ==
              std::string("base_model.model.") + one.plain);
    }
    const peft_details::peft_names moved = std::move(names);
    for (std::size_t i = 0; i < found.size(); ++i)
        CHECK(found[i] == rows[i].plain);
}
