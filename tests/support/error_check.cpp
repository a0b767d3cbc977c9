#include "support/error_check.hpp"

#if !MHR_EXCEPTIONS

#include <csignal>
#include <cstdlib>

#include <sys/wait.h>
#include <unistd.h>

namespace mhr::test {

namespace {

/// Everything goes on the way through the pipe, or the process is of no use.
void write_all(int file, const std::string& text) {
    for (std::size_t done = 0; done < text.size();) {
        const ssize_t count = write(file, text.data() + done, text.size() - done);
        if (count <= 0) _exit(125);
        done += static_cast<std::size_t>(count);
    }
}

std::string read_all(int file) {
    std::string text;
    char buffer[1024];
    for (ssize_t count; (count = read(file, buffer, sizeof buffer)) > 0;)
        text.append(buffer, static_cast<std::size_t>(count));
    return text;
}

// The handler is given nothing but the message, so it finds here what else it has to know.
const error_look* current_look = nullptr;
const std::function<void(const std::string&)>* current_tell = nullptr;

constexpr int refused = 100;
constexpr int wrong = 101;

void handler_that_looks(const char* message) {
    const error_outcome outcome = (*current_look)(message);
    (*current_tell)(outcome.message);
    _exit(outcome ? refused : wrong);
}

} // namespace

child_outcome
in_child(const std::function<void(const std::function<void(const std::string&)>&)>& f) {
    int ends[2];
    if (pipe(ends) != 0) std::abort();
    const pid_t child = fork();
    if (child < 0) std::abort();
    if (child == 0) {
        close(ends[0]);
        std::signal(SIGABRT, SIG_DFL); // doctest's would report the end as one of the tests
        f([&](const std::string& text) { write_all(ends[1], text); });
        _exit(0);
    }
    close(ends[1]);
    child_outcome outcome{read_all(ends[0]), -1, 0};
    close(ends[0]);
    int status = 0;
    if (waitpid(child, &status, 0) != child) std::abort();
    if (WIFEXITED(status)) outcome.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) outcome.signal = WTERMSIG(status);
    return outcome;
}

error_outcome at_error(const std::function<void()>& f, const error_look& look) {
    const child_outcome outcome = in_child([&](const auto& tell) {
        current_look = &look;
        current_tell = &tell;
        set_error_handler(handler_that_looks);
        f();
    });
    switch (outcome.exit_code) {
    case refused:
        return {true, outcome.text};
    case wrong:
        return {false, outcome.text};
    case 0:
        return {false, no_error};
    default:
        return {false, "the process ended with " + std::to_string(outcome.exit_code) + ", signal " +
                           std::to_string(outcome.signal)};
    }
}

} // namespace mhr::test

#endif
