#include <string>

#include <doctest/doctest.h>

#include <mhr/io/printable.hpp>

using namespace mhr;

TEST_CASE("printable: nothing but printable ASCII, and not too much of it") {
    CHECK(printable("model.layers.0.q_proj ~") == "model.layers.0.q_proj ~");
    CHECK(printable("") == "");
    CHECK(printable(std::string("a\nb\0\x1b[2J\x7f\xc3\xa9", 11)) ==
          "a\\x0ab\\x00\\x1b[2J\\x7f\\xc3\\xa9");
    CHECK(printable(std::string(300, 'x')) == std::string(200, 'x') + "...");
    CHECK(printable("12345", 5) == "12345");
    CHECK(printable("123456", 5) == "12345...");
    CHECK(printable(std::string(1000, '\n')).size() <= 207);
    CHECK(detail::in_quotes("a") == "'a'");
}
