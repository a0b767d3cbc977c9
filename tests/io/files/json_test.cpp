#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/files/json.hpp>

#include "support/error_check.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const json_limits small{1000, 4, 3, 5, 3, 20};

struct member {
    std::string name;
    std::string value;
    std::size_t offset;
};

std::vector<member> members_of(const std::string& text, const json_limits& limits = small) {
    std::vector<member> result;
    for_each_json_member(
        json_source{"source", text, 100}, limits,
        [&](const std::string& name, json_details::json&& value, std::size_t offset) {
            result.push_back({name, value.dump(), offset});
        });
    return result;
}

error_outcome refuses_text(const std::string& text, const json_limits& limits = small) {
    return refuses("source", "JSON", [&] { (void)members_of(text, limits); });
}

bool names_byte(const error_outcome& outcome, std::size_t byte) {
    return outcome.ok &&
           outcome.message.find("(byte " + std::to_string(byte) + ")") != std::string::npos;
}

} // namespace

TEST_CASE("json: members in their order, with their values and places") {
    const auto got =
        members_of(R"( {"b": [1, -2, 0.5], "a" :{"y":null,"x":[{}]},"s":"\u00e9 \""} )");
    REQUIRE(got.size() == 3);
    CHECK(got[0].name == "b");
    CHECK(got[0].value == "[1,-2,0.5]");
    CHECK(got[0].offset == 2);
    CHECK(got[1].name == "a");
    CHECK(got[1].value == R"({"y":null,"x":[{}]})"); // not sorted
    CHECK(got[1].offset == 21);
    CHECK(got[2].value == "\"\xc3\xa9 \\\"\"");
    CHECK(members_of("{}").empty());
    CHECK(members_of(R"({"a":true})").front().value == "true");
}

TEST_CASE("json: what is not well-formed is refused, with its byte") {
    for (const char* text : {"", " ", "{", "{}}", "{},", R"({"a")", R"({"a":})", R"({"a":1,})",
                             R"({"a":01})", R"({"a":NaN})", R"({"a":1e999})", R"({a:1})",
                             "{\"a\":\"\xc3\"}", "{\"\x01\":1}", R"({"a":"\ud800"})", "{\"a\":1"}) {
        CAPTURE(text);
        CHECK(refuses_text(text));
    }
    for (const char* text : {"[]", "7", "\"a\"", "null", "[{}]"}) {
        CAPTURE(text);
        const auto refused = refuses_text(text);
        CHECK(refused);
        CHECK(refused.message.find("an object") != std::string::npos);
    }
    CHECK(names_byte(refuses_text(R"({"a":!})"), 100 + 6)); // the parser has read it
}

TEST_CASE("json: each limit holds, and what just fits is read") {
    CHECK(members_of(R"({"a":[[[]]]})").size() == 1);
    CHECK(names_byte(refuses_text(R"({"a":[[[[]]]]})"), 100 + 8));
    CHECK(refuses_text("{\"a\":" + std::string(900, '[')));

    CHECK(members_of(R"({"a":1,"b":2,"c":3})").size() == 3);
    CHECK(names_byte(refuses_text(R"({"a":1,"b":2,"c":3,"d":4})"), 100 + 19));

    CHECK(members_of(R"({"a":[1,2,3,4],"b":[1,2,3,4]})").size() == 2); // five each
    CHECK(refuses_text(R"({"a":[1,2,3,4,5]})"));
    CHECK(refuses_text(R"({"a":[1,[3],4,5]})"));

    CHECK(members_of(R"({"a":{"x":1,"y":2,"z":3}})").size() == 1);
    CHECK(refuses_text(R"({"a":{"x":1,"y":2,"z":3,"u":4}})"));
    CHECK(names_byte(refuses_text(R"({"a":{"x":1,"x":2}})"), 100 + 12)); // twice

    const std::string exact(18, 'x'); // with its quotes, 20 bytes
    CHECK(members_of("{\"" + exact + "\":\"" + exact + "\"}").size() == 1);
    CHECK(names_byte(refuses_text("{\"a\":\"" + exact + "x\"}"), 100 + 5));
    CHECK(refuses_text("{\"" + exact + "x\":1}"));
    CHECK(refuses_text("{\"a\":" + std::string(21, '1') + "}"));
    CHECK(refuses_text(R"({"a":"\")" + std::string(30, 'x') + "\"}")); // a quote inside
    CHECK(members_of("{\"a\":" + std::string(500, ' ') + "1}").size() == 1);

    CHECK(members_of("{" + std::string(998, ' ') + "}").empty());
    CHECK(refuses_text("{" + std::string(999, ' ') + "}"));
}
