// Tries a fuzz target without a fuzzer, with every compiler: on its seeds, and on the inputs that a
// fuzzer found something with.
//     fuzz_<name>_replay REGRESSIONS [SEEDS]     (a folder to write the seeds to, for the fuzzer)

#include "fuzz/fuzz_target.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "support/file_bytes.hpp"

using namespace mhr::test;

namespace {

/// From memory of exactly its size, as libFuzzer does.
void try_input(const std::string& input) {
    const std::vector<std::uint8_t> bytes(input.begin(), input.end());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

void run(const std::filesystem::path& regressions, const std::filesystem::path& seeds_to) {
    const std::vector<std::string> seeds = fuzz_seeds();
    must(!seeds.empty(), "there are seeds");
    if (!seeds_to.empty()) std::filesystem::create_directories(seeds_to);
    std::size_t good = 0;
    for (std::size_t i = 0; i < seeds.size(); ++i) {
        if (!seeds_to.empty()) write_file(seeds_to / ("seed_" + std::to_string(i)), seeds[i]);
        try_input(seeds[i]);
        must(good_inputs == ++good, "every seed is a good input");
    }
    for (const std::string& seed : seeds) { // cut off: of short ones, at every byte
        const std::size_t step = std::max<std::size_t>(1, seed.size() / 256);
        for (std::size_t size = 0; size < seed.size(); size += step)
            try_input(seed.substr(0, size));
    }
    std::size_t files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(regressions)) {
        std::printf("%s\n", entry.path().filename().string().c_str());
        std::fflush(stdout);
        try_input(read_file(entry.path()));
        ++files;
    }
    must(files != 0, "there are regressions");
    std::printf("%zu seeds, %zu regressions: nothing found\n", seeds.size(), files);
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 2 && argc != 3) {
        std::fprintf(stderr, "usage: %s REGRESSIONS [SEEDS]\n", argv[0]);
        return EXIT_FAILURE;
    }
    run(argv[1], argc == 3 ? argv[2] : "");
    return EXIT_SUCCESS;
}
