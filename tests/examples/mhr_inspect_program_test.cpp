// The program itself on files that nobody should have to read: it ends with 1 and one line on
// standard error, in time, and within the memory of the files and 64 MiB.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>

#include <doctest/doctest.h>

#include <mhr/config.hpp>
#include <mhr/io/peft/peft_checkpoint.hpp>

#include "support/file_bytes.hpp"
#include "support/poly_files.hpp"
#include "support/temporary_folder.hpp"

#if MHR_MAP_FILES // that is, POSIX

#include <sys/stat.h>
#include <sys/wait.h>

using namespace mhr;
using namespace mhr::test;

namespace {

struct outcome_of_run {
    int code = -1; ///< 128 and more: ended by a signal
    std::string out, err;
};

std::string in_shell_quotes(const std::string& text) {
    std::string result = "'";
    for (const char c : text)
        if (c == '\'')
            result += R"('\'')";
        else
            result += c;
    return result + "'";
}

/// An adapter's folder, and the program on it.
class case_folder {
  public:
    case_folder(const std::string& config, const std::string& tensors) {
        std::filesystem::create_directory(adapter());
        write_file(adapter() / peft_config_file, config);
        write_file(adapter() / peft_tensors_file, tensors);
    }
    std::filesystem::path adapter() const { return folder_.path() / "adapter"; }

    /// The address space, program and libraries included, is that of both files and 64 MiB more.
    outcome_of_run run(const std::string& arguments = "") const {
        std::uintmax_t bytes = std::uintmax_t(64) << 20;
        for (const char* file : {peft_config_file, peft_tensors_file})
            if (std::filesystem::is_regular_file(adapter() / file))
                bytes += std::filesystem::file_size(adapter() / file);
        const auto path = [&](const char* name) {
            return in_shell_quotes((folder_.path() / name).string());
        };
        std::string command = "ulimit -c 0; ";
        if (MHR_INSPECT_LIMITED != 0)
            command += "ulimit -t 20; ulimit -v " + std::to_string(bytes / 1024) + "; ";
        command += in_shell_quotes(MHR_INSPECT_PROGRAM) + " " +
                   in_shell_quotes(adapter().string()) + " " + arguments + " >" + path("out") +
                   " 2>" + path("err") + " </dev/null";
        const int status = std::system(command.c_str());
        outcome_of_run result;
        result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        result.out = read_file(folder_.path() / "out");
        result.err = read_file(folder_.path() / "err");
        return result;
    }

  private:
    temporary_folder folder_;
};

void check_refused(const outcome_of_run& run) {
    CAPTURE(run.err);
    CHECK(run.code == 1);
    CHECK(run.out.empty());
    CHECK(run.err.find("mhr_inspect: ") == 0);
    CHECK(std::count(run.err.begin(), run.err.end(), '\n') == 1);
    CHECK(run.err.back() == '\n');
    CHECK(run.err.size() < 1000);
    // An error of ours, not the end of the memory.
    CHECK(run.err.find("expected ") != std::string::npos);
}

const poly_files files;

} // namespace

TEST_CASE("mhr_inspect, the program: good adapters and bad calls") {
    const case_folder good(files.config_text(), files.tensor_bytes());
    const auto text = good.run();
    CHECK(text.code == 0);
    CHECK(text.err.empty());
    CHECK(text.out.find("adapter: POLY\n") == 0);
    CHECK(good.run("--json").out.front() == '{');
    const auto to = in_shell_quotes((good.adapter() / "plain").string());
    CHECK(good.run("--export " + to + " --task 2").code == 0);
    CHECK(std::filesystem::exists(good.adapter() / "plain" / peft_config_file));
    check_refused(good.run("--export " + to)); // there is one
    for (const char* bad : {"--task 1", "--unknown", "--json --export x", "two",
                            "--task x --export y", "--task 99 --export y"}) {
        CAPTURE(bad);
        const auto run = good.run(bad);
        CHECK(run.code == 1);
        CHECK(std::count(run.err.begin(), run.err.end(), '\n') == 1);
    }
    CHECK(good.run("--help").code == 0);
}

TEST_CASE("mhr_inspect, the program: truncated and bit-flipped files") {
    const std::string config = files.config_text();
    const std::string tensors = files.tensor_bytes();
    for (std::size_t part = 0; part < 8; ++part) {
        check_refused(case_folder(config.substr(0, config.size() * part / 8), tensors).run());
        check_refused(case_folder(config, tensors.substr(0, tensors.size() * part / 8)).run());
    }
    check_refused(case_folder(config, tensors + '\0').run());
    for (const int number : {0, 3, 7, 8, 20, 40, 60, 80, 100}) {
        const auto byte = static_cast<std::size_t>(number);
        std::string flipped = tensors;
        flipped[byte] = static_cast<char>(flipped[byte] ^ 0x10);
        check_refused(case_folder(config, flipped).run());
    }
    // In the numbers, a flipped bit is another number.
    std::string other = tensors;
    other.back() = static_cast<char>(other.back() ^ 0x10);
    CHECK(case_folder(config, other).run().code == 0);
}

TEST_CASE("mhr_inspect, the program: what is no file") {
    const std::string config = files.config_text();
    for (const char* name : {peft_config_file, peft_tensors_file}) {
        const case_folder none(config, files.tensor_bytes());
        const auto path = none.adapter() / name;
        std::filesystem::remove(path);
        check_refused(none.run());
        REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
        check_refused(none.run());
        std::filesystem::remove(path);
        std::filesystem::create_symlink("/dev/zero", path);
        check_refused(none.run());
        std::filesystem::remove(path);
        std::filesystem::create_directory(path);
        check_refused(none.run());
    }
}

TEST_CASE("mhr_inspect, the program: oversized and hostile headers") {
    const auto repeated = [](const std::string& part, std::size_t bytes) {
        std::string text;
        text.reserve(bytes);
        while (text.size() + part.size() <= bytes)
            text += part;
        return text;
    };
    constexpr std::size_t limit = std::size_t(16) << 20; // the longest header
    const auto check_header = [](const std::string& header) {
        check_refused(case_folder(files.config_text(), safetensors_bytes(header)).run());
    };
    check_refused(
        case_folder(files.config_text(), safetensors_bytes(std::uint64_t(1) << 62, "{}", ""))
            .run());
    // The longest header is filled with brackets, values, members, metadata, one long string or
    // number; good tensors, of which none belongs to an adapter.
    const std::string begin = "{\"a\":";
    check_header(begin + repeated("[", limit - 100));
    check_header(begin + repeated("{\"a\":", limit - 100));
    check_header(begin + "[" + repeated("0,", limit - 100) + "0]}");
    check_header(begin + "[" + repeated("[],", limit - 100) + "0]}");
    check_header(begin + "\"" + repeated("x", limit - 100) + "\"}");
    check_header("{\"" + repeated("x", limit - 100) + "\":0}");
    check_header(begin + repeated("1", limit - 100) + "}");
    const auto members = [&](const std::string& before, const std::string& after) {
        std::string header = before;
        for (std::size_t i = 0; header.size() < limit - 300; ++i)
            header += (i == 0 ? "\"" : ",\"") + std::to_string(i) + after;
        return header;
    };
    check_header(members("{", "\":{}") + "}");
    check_header(members("{\"__metadata__\":{", "\":\"\"") + "}}");
    check_header(members("{\"__metadata__\":{", "\":\"" + std::string(4000, 'x') + "\"") + "}}");
    const std::string empty = R"({"dtype":"U8","shape":[0,0,0,0,0,0,0,0],"data_offsets":[0,0]})";
    check_header(members("{", "\":" + empty) + "}");
    // The most tensors, with the longest names, first unknown ones, then of modules_to_save,
    // then of an adapter.
    const auto most = [&](const std::string& prefix, const std::string& suffix) {
        const std::string name_end(50 - prefix.size() - suffix.size(), 'x');
        std::string header = "{";
        for (std::size_t i = 100000; i < 100000 + (std::size_t(1) << 17); ++i)
            header += (header.size() == 1 ? "\"" : ",\"") + prefix + std::to_string(i) + name_end +
                      suffix + R"(":{"dtype":"F32","shape":[1,0],"data_offsets":[0,0]})";
        REQUIRE(header.size() < limit);
        return header + "}";
    };
    check_header(most("", ""));
    const std::string saved = safetensors_bytes(most("base_model.model.", ".head"));
    check_refused(case_folder(R"({"peft_type":"POLY","modules_to_save":["head"]})", saved).run());
    const std::string adapters = safetensors_bytes(most("base_model.model.", ".ia3_l"));
    check_refused(case_folder(R"({"peft_type":"IA3"})", adapters).run()); // no features
}

TEST_CASE("mhr_inspect, the program: the most layers that a header can have are listed") {
    // The last with a name of a wrapper in each, so that all names are copied.
    for (const char* beginning : {"base_model.model.", "_orig_mod.base_model.model."}) {
        std::string header = "{";
        const std::size_t count = std::size_t(1) << 17;
        for (std::size_t i = 0; i < count; ++i)
            header += std::string(i == 0 ? "\"" : ",\"") + beginning + std::to_string(i) +
                      R"(.ia3_l":{"dtype":"F32","shape":[1,1],"data_offsets":[)" +
                      std::to_string(4 * i) + "," + std::to_string(4 * i + 4) + "]}";
        header += "}";
        REQUIRE(header.size() < std::size_t(16) << 20);
        const case_folder many(R"({"peft_type":"IA3"})",
                               safetensors_bytes(header, std::string(4 * count, '\0')));
        for (const char* arguments : {"", "--json"}) {
            const auto run = many.run(arguments);
            CAPTURE(run.err);
            CHECK(run.code == 0);
            const auto lines = std::count(run.out.begin(), run.out.end(), '\n');
            CHECK(static_cast<std::size_t>(lines) > count);
        }
    }
}

TEST_CASE("mhr_inspect, the program: hostile configurations") {
    const std::string tensors = files.tensor_bytes();
    const auto check_config = [&](const std::string& config) {
        check_refused(case_folder(config, tensors).run());
    };
    const auto list = [](const std::string& value, std::size_t bytes) {
        std::string text = value;
        while (text.size() + value.size() < bytes)
            text += "," + value;
        return text;
    };
    constexpr std::size_t limit = 1000000;
    for (const char* type : {"POLY", "LORA", "IA3"}) {
        const std::string begin = std::string(R"({"peft_type":")") + type + "\",";
        check_config(begin + "\"target_modules\":[" + list("[]", limit) + "]}");
        check_config(begin + "\"target_modules\":[" + list("\"\"", limit) + "]}");
        check_config(begin + "\"target_modules\":" + std::string(limit, '['));
        check_config(begin + "\"auto_mapping\":" + list("{\"a\":0}", limit));
        check_config(begin + "\"x\":\"" + std::string(limit, '\n') + "\"}");
    }
    check_config(std::string(100000000, ' ')); // longer than a configuration may be
    std::string keys = R"({"peft_type":"POLY")";
    for (int i = 0; i < 80000; ++i)
        keys += ",\"" + std::to_string(i) + "\":0";
    check_config(keys + "}");

    // Patterns that would take for ever: a layer of LoRA, many times over.
    std::string header = "{";
    for (std::size_t i = 0; i < 20000; ++i)
        for (const char* part : {"A", "B"})
            header += (header.size() == 1 ? "\"base_model.model." : ",\"base_model.model.") +
                      std::to_string(i) + std::string(20, 'a') + ".lora_" + part +
                      R"(.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[)" +
                      std::to_string(8 * i + (part[0] == 'B' ? 4 : 0)) + "," +
                      std::to_string(8 * i + (part[0] == 'B' ? 8 : 4)) + "]}";
    const std::string layers = safetensors_bytes(header + "}", std::string(160000, '\0'));
    const auto patterns = [](const std::string& pattern, int count) {
        std::string text = R"({"peft_type":"LORA","r":1,"rank_pattern":{)";
        for (int i = 0; i < count; ++i)
            text += (i == 0 ? "\"" : ",\"") + pattern + std::to_string(i) + "\":1";
        return text + "}}";
    };
    check_refused(case_folder(patterns("(a|a)*(a|a)*(.*.*.*)*", 4000), layers).run());
    check_refused(case_folder(patterns("((((a{255}){255}){255}){255})", 1), layers).run());
    check_refused(case_folder(patterns(std::string(200, '('), 1), layers).run());
    check_refused(case_folder(patterns("x", 4000), layers).run()); // merely many
}

TEST_CASE("mhr_inspect, the program: a huge file of nothing is mapped, not read") {
    const case_folder sparse(files.config_text(), files.tensor_bytes());
    std::error_code problem;
    std::filesystem::resize_file(sparse.adapter() / peft_tensors_file, std::uintmax_t(1) << 40,
                                 problem);
    if (!problem) check_refused(sparse.run());
}

#endif // MHR_MAP_FILES
