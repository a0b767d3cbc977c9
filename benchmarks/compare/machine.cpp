#include "machine.hpp"

#include <fstream>
#include <thread>

#include <xsimd/xsimd.hpp>

#ifdef __linux__
#include <cstdlib>
#include <malloc.h>
#include <unistd.h>
#endif

namespace mhr_bench {

namespace {

std::string processor() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
    return "unknown";
}

std::string compiler() {
#if defined(__clang__)
    return std::string("Clang ") + __clang_version__;
#elif defined(__GNUC__)
    return std::string("GCC ") + __VERSION__;
#else
    return "unknown";
#endif
}

#ifdef __linux__
/// Variables by which a user may have told a library to use less of the processor.
std::vector<std::string> limiting_variables() {
    std::vector<std::string> result;
    for (char** entry = environ; *entry != nullptr; ++entry) {
        const std::string text = *entry;
        for (const char* prefix : {"OPENBLAS_", "GOTO_", "DNNL_", "ONEDNN_", "ATEN_"})
            if (text.rfind(prefix, 0) == 0) result.push_back(text.substr(0, text.find('=')));
    }
    return result;
}
#endif

} // namespace

machine_description describe_machine(const std::vector<library>& libraries) {
    machine_description result{{"processor", processor()},
                               {"cores", std::to_string(std::thread::hardware_concurrency())},
                               {"compiler", compiler()},
                               {"vector registers", xsimd::default_arch::name()}};
    for (const library& of : libraries)
        if (!of.version.empty())
            result.emplace_back(of.name, of.version + (of.core.name.empty() ? "" : "; runs on ") +
                                             of.core.name);
    return result;
}

vector_level level_of_processor() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return vector_level::avx512;
    if (__builtin_cpu_supports("avx2")) return vector_level::avx2;
    if (__builtin_cpu_supports("avx")) return vector_level::avx;
#endif
    return vector_level::none;
}

std::vector<std::string> held_back(const std::vector<library>& libraries) {
    std::vector<std::string> result;
    for (const library& of : libraries)
        if (of.core.held_back)
            result.push_back(of.name + " runs on " + of.core.name +
                             ", which is less than the processor has");
    return result;
}

void prepare_environment(char** arguments) {
#ifdef __linux__
    // Memory once had is kept: libraries that allocate in every call would be timed at getting it
    // from the system and clearing it.
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, -1);
    constexpr const char* stage = "MHR_BENCHMARK_ENVIRONMENT";
    const std::string reached = std::getenv(stage) ? std::getenv(stage) : "";
    if (reached == "ready") return;
    if (reached.empty()) {
        for (const std::string& name : limiting_variables())
            unsetenv(name.c_str());
        setenv(stage, "unlimited", 1);
    } else {
        // What libraries recognise by themselves is known now.
        for (const auto& [name, value] : environment_of_libraries())
            setenv(name.c_str(), value.c_str(), 1);
        setenv("OMP_WAIT_POLICY", "passive", 0);
        // Within one competitor's pass, threads may wait for each other for some microseconds.
        setenv("GOMP_SPINCOUNT", "10000", 0);
        setenv(stage, "ready", 1);
    }
    execv("/proc/self/exe", arguments);
#else
    (void)arguments;
#endif
}

} // namespace mhr_bench
