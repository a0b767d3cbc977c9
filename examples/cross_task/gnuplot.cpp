#include "gnuplot.hpp"

#include <cerrno>
#include <cstddef>
#include <stdexcept>
#include <system_error>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ; // NOLINT: POSIX has programs declare it

namespace cross_task {

namespace {

void check(int error, const std::string& what) {
    if (error != 0) throw std::system_error(error, std::generic_category(), what);
}

/// A pipe whose ends are closed at the latest with it.
class pipe_ends {
  public:
    pipe_ends() {
        if (pipe(ends_) != 0) check(errno, "pipe");
    }
    ~pipe_ends() {
        close_end(0);
        close_end(1);
    }
    pipe_ends(const pipe_ends&) = delete;
    pipe_ends& operator=(const pipe_ends&) = delete;

    int reader() const { return ends_[0]; }
    int writer() const { return ends_[1]; }
    void close_writer() { close_end(1); }

    /// Everything until no one writes any more.
    std::string read_all() const {
        std::string all;
        char buffer[4096];
        for (;;) {
            const ssize_t count = read(reader(), buffer, sizeof buffer);
            if (count > 0)
                all.append(buffer, static_cast<std::size_t>(count));
            else if (count == 0 || errno != EINTR)
                return all;
        }
    }

  private:
    void close_end(int end) {
        if (ends_[end] >= 0) close(ends_[end]);
        ends_[end] = -1;
    }

    int ends_[2] = {-1, -1};
};

/// The list of what the child does with its files before it becomes the program.
class file_actions {
  public:
    explicit file_actions(const pipe_ends& errors) {
        check(posix_spawn_file_actions_init(&actions_), "posix_spawn_file_actions_init");
        const int error = fill(errors);
        if (error != 0) posix_spawn_file_actions_destroy(&actions_);
        check(error, "posix_spawn_file_actions");
    }
    ~file_actions() { posix_spawn_file_actions_destroy(&actions_); }
    file_actions(const file_actions&) = delete;
    file_actions& operator=(const file_actions&) = delete;

    const posix_spawn_file_actions_t* get() const { return &actions_; }

  private:
    int fill(const pipe_ends& errors) {
        const int errors_of[] = {
            posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0),
            posix_spawn_file_actions_addopen(&actions_, STDOUT_FILENO, "/dev/null", O_WRONLY, 0),
            posix_spawn_file_actions_adddup2(&actions_, errors.writer(), STDERR_FILENO),
            posix_spawn_file_actions_addclose(&actions_, errors.reader()),
            posix_spawn_file_actions_addclose(&actions_, errors.writer()),
        };
        for (const int error : errors_of)
            if (error != 0) return error;
        return 0;
    }

    posix_spawn_file_actions_t actions_{};
};

} // namespace

void run_gnuplot(const std::filesystem::path& program, const std::filesystem::path& folder,
                 const std::string& script) {
    // No shell: the arguments reach gnuplot as they are. It enters the folder itself, so that the
    // scripts name their files without it. --default-settings ignores the user's own ~/.gnuplot.
    std::string name = program.string();
    std::string options = "--default-settings";
    std::string command_option = "-e";
    std::string command = "cd " + gnuplot_string(std::filesystem::absolute(folder).string());
    std::string file = script;
    char* arguments[] = {name.data(),    options.data(), command_option.data(),
                         command.data(), file.data(),    nullptr};

    pipe_ends errors;
    const file_actions actions(errors);
    pid_t child = 0;
    check(posix_spawnp(&child, name.c_str(), actions.get(), nullptr, arguments, environ),
          "cannot start " + name);
    errors.close_writer();
    const std::string said = errors.read_all();
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) check(errno, "waitpid");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        throw std::runtime_error(name + " failed on " + (folder / script).string() + ":\n" + said);
}

std::string gnuplot_string(const std::string& text) {
    std::string quoted = "'";
    for (const char c : text) {
        if (c == '\'') quoted += c;
        // A line break would end the command.
        quoted += static_cast<unsigned char>(c) < 0x20U ? ' ' : c;
    }
    return quoted + '\'';
}

} // namespace cross_task
