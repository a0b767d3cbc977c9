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

} // namespace

machine_description describe_machine(const std::vector<library>& libraries) {
    machine_description result{{"processor", processor()},
                               {"cores", std::to_string(std::thread::hardware_concurrency())},
                               {"compiler", compiler()},
                               {"vector registers", xsimd::default_arch::name()}};
    for (const library& of : libraries)
        if (!of.version.empty()) result.emplace_back(of.name, of.version);
    return result;
}

void prepare_environment(char** arguments, const environment& wanted) {
#ifdef __linux__
    // Memory once had is kept: libraries that allocate in every call would be timed at getting it
    // from the system and clearing it.
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, -1);
    constexpr const char* done = "MHR_BENCHMARK_ENVIRONMENT";
    if (std::getenv(done)) return;
    setenv(done, "1", 1);
    setenv("OMP_WAIT_POLICY", "passive", 0);
    // Within one competitor's pass, threads may wait for each other for some microseconds.
    setenv("GOMP_SPINCOUNT", "10000", 0);
    for (const auto& [name, value] : wanted)
        setenv(name.c_str(), value.c_str(), 0);
    execv("/proc/self/exe", arguments);
#else
    (void)arguments;
    (void)wanted;
#endif
}

} // namespace mhr_bench
