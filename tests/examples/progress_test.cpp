#include "examples/cross_task/progress.hpp"

#include <doctest/doctest.h>

#include <limits>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

using namespace cross_task;

TEST_CASE("progress: durations are rounded before they are split") {
    CHECK(format_duration(0) == "0 s");
    CHECK(format_duration(7.4) == "7 s");
    CHECK(format_duration(59.4) == "59 s");
    CHECK(format_duration(59.6) == "1 min 00 s");
    CHECK(format_duration(125) == "2 min 05 s");
    CHECK(format_duration(3599.4) == "59 min 59 s");
    CHECK(format_duration(3599.6) == "1 h 00 min");
    CHECK(format_duration(3600 + 119.9 * 60) == "3 h 00 min");
    CHECK(format_duration(100 * 3600.0) == "100 h 00 min");
    CHECK(format_duration(-1) == "?");
    CHECK(format_duration(std::numeric_limits<double>::infinity()) == "?");
    CHECK(format_duration(std::numeric_limits<double>::quiet_NaN()) == "?");
}

TEST_CASE("progress: a line has a bar, percent, time elapsed and time left") {
    CHECK(progress_line("work", 0, 4, 3) == "work [........................]   0 %  3 s");
    CHECK(progress_line("work", 1, 4, 30) ==
          "work [######..................]  25 %  30 s, 1 min 30 s left");
    CHECK(progress_line("work", 4, 4, 30) == "work [########################] 100 %  30 s");
    CHECK(progress_line("work", 5, 4, 30) == "work [########################] 100 %  30 s");
    CHECK(progress_line("work", 0, 0, 0) == "work [########################] 100 %  0 s");
}

TEST_CASE("progress: threads advance it together; few lines where there is no terminal") {
    for (const bool is_terminal : {false, true}) {
        std::ostringstream to;
        {
            progress shown(to, is_terminal, "work", 4000);
            std::vector<std::thread> threads;
            for (int t = 0; t < 4; ++t)
                threads.emplace_back([&] {
                    for (int i = 0; i < 1000; ++i)
                        shown.advance();
                });
            for (std::thread& thread : threads)
                thread.join();
        }
        const std::string text = to.str();
        CHECK(text.find("100 %") != std::string::npos);
        CHECK(text.back() == '\n');
        CHECK((text.find('\r') != std::string::npos) == is_terminal);
        CHECK(text.size() < 4000); // not a line for each step
    }
}
