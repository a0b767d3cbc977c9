#include <csignal>
#include <functional>
#include <string>

#include <doctest/doctest.h>

#include <mhr/core/error.hpp>
#include <mhr/routing/logits.hpp>

#include "support/error_check.hpp"

// These tests check what core/error.hpp says of programs without exceptions.

using namespace mhr;
using namespace mhr::test;

namespace {

const std::function<void(const std::string&)>* tell = nullptr;

void handler_that_returns(const char* message) {
    (*tell)(message);
}

void bad_call() {
    initialise_logits(1, tensor_view<float, 3>(nullptr, {2, 3, 4}));
}

} // namespace

TEST_CASE("set_error_handler exchanges the handler") {
    CHECK((set_error_handler(handler_that_returns) == nullptr));
    CHECK((set_error_handler(nullptr) == handler_that_returns));
    CHECK((set_error_handler(nullptr) == nullptr));
}

TEST_CASE("the handler gets the message, once, and the program is aborted if it returns") {
    const child_outcome outcome = in_child([](const auto& tell_parent) {
        tell = &tell_parent;
        set_error_handler(handler_that_returns);
        bad_call();
        tell_parent("; and the program went on");
    });
    CHECK(outcome.text == "initialise_logits: logits: expected memory, got a null pointer with "
                          "extents [2, 3, 4]");
    CHECK(outcome.signal == SIGABRT);
}

TEST_CASE("without a handler the program is aborted") {
    const child_outcome outcome = in_child([](const auto& tell_parent) {
        bad_call();
        tell_parent("the program went on");
    });
    CHECK(outcome.text.empty());
    CHECK(outcome.signal == SIGABRT);
}

TEST_CASE("what fails in a process of its own is seen here") {
    int changed = 0;
    guarded_buffer<float, 1> buffer({3});
    CHECK(in_child([&](const auto&) { changed = 1; }).exit_code == 0);
    CHECK(changed == 0);
    CHECK(error_of([] {}).empty());
    CHECK(error_of([] { raise("text"); }) == "text");
    CHECK_FALSE(refuses("f", "x", [] {}));
    CHECK_FALSE(refuses("f", "x", [] { raise("f: y: expected 1, got 2"); }));
    CHECK(refuses(
        "f", "x", [] { raise("f: x: expected 1, got 2"); }, buffer));
    const auto touch_then_raise = [&] {
        buffer(1) = 1;
        raise("f: x: expected 1, got 2");
    };
    CHECK_FALSE(refuses("f", "x", touch_then_raise, buffer));
    CHECK(buffer.intact()); // the copy's was touched
}
