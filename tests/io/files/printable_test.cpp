#include <string>

#include <doctest/doctest.h>

#include <mhr/io/files/printable.hpp>

using namespace mhr;

TEST_CASE("printable: what every terminal can show, and not too much of it") {
    CHECK(printable("model.layers.0.q_proj ~") == "model.layers.0.q_proj ~");
    CHECK(printable("") == "");
    CHECK(printable(std::string("a\nb\0\x1b[2J\x7f", 9)) == "a\\x0ab\\x00\\x1b[2J\\x7f");
    CHECK(printable(std::string(300, 'x')) == std::string(200, 'x') + "...");
    CHECK(printable("12345", 5) == "12345");
    CHECK(printable("123456", 5) == "12345...");
    CHECK(printable(std::string(1000, '\n')).size() <= 207);
    CHECK(in_quotes("a") == "'a'");
}

TEST_CASE("printable: UTF-8 is shown as it is, and nothing that only looks like it") {
    for (const char* good :
         {"caf\xc3\xa9", "\xe6\x97\xa5\xe6\x9c\xac", "\xf0\x9f\xa6\x99", "\xc2\xa0", "\xdf\xbf",
          "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80", "\xf4\x8f\xbf\xbf"})
        CHECK(printable(good) == good);
    for (const char* bad : {"\x80",
                            "\xbf",
                            "\xc3",
                            "\xc3(",
                            "\xe6\x97",
                            "\xe6\x97(",
                            "\xf0\x9f\xa6",
                            "\xc0\xaf",
                            "\xc1\xbf",
                            "\xe0\x9f\xbf",
                            "\xf0\x8f\xbf\xbf", // too long
                            "\xed\xa0\x80",
                            "\xed\xbf\xbf", // halves of pairs
                            "\xf4\x90\x80\x80",
                            "\xf5\x80\x80\x80",
                            "\xff", // beyond the last
                            "\xc2\x80",
                            "\xc2\x9b",
                            "\xc2\x9f", // control characters
                            "\xe2\x80\xa8",
                            "\xe2\x80\xa9", // ends of lines
                            "\xe2\x80\xae",
                            "\xe2\x81\xa6",
                            "\xe2\x80\x8f",
                            "\xd8\x9c",
                            "\xef\xbb\xbf"}) {
        CAPTURE(bad);
        const std::string shown = printable(bad);
        for (const char c : shown)
            CHECK((c >= ' ' && c <= '~'));
        CHECK(shown.substr(0, 2) == "\\x");
    }
    CHECK(printable("\xe6\x97\xa5\xe6\x97") == "\xe6\x97\xa5\\xe6\\x97");
    // Never a part of a character.
    CHECK(printable("\xe6\x97\xa5\xe6\x9c\xac", 1) == "\xe6\x97\xa5...");
}
