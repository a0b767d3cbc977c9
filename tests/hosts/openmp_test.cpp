#include <atomic>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/hosts/openmp.hpp>

#ifdef _OPENMP
#include <omp.h>
#endif

using namespace mhr;

TEST_CASE("OpenMP runs every part once, whatever number of threads is asked for") {
    for (int threads : {-1, 0, 1, 2, 5})
        for (index_t parts : {1, 2, 7, 100}) {
            CAPTURE(threads);
            CAPTURE(parts);
            std::vector<int> calls(static_cast<std::size_t>(parts));
            executor_ref(openmp_executor{threads}).run(parts, [&](index_t part) {
                ++calls[static_cast<std::size_t>(part)];
            });
            CHECK(calls == std::vector<int>(static_cast<std::size_t>(parts), 1));
        }
    CHECK(executor_ref(openmp_executor{}).runs_every_part());
}

#ifdef _OPENMP
TEST_CASE("OpenMP uses the number of threads that is asked for") {
    const auto team_size = [](int threads, index_t parts = 8) {
        std::atomic<int> size{0};
        executor_ref(openmp_executor{threads}).run(parts, [&](index_t) {
            size = omp_get_num_threads();
        });
        return size.load();
    };
    CHECK(team_size(-3) == 1);
    CHECK(team_size(0) == 1);
    CHECK(team_size(1) == 1);
    CHECK(team_size(3) == 3);
    CHECK(team_size(3, 2) == 2); // no more than there are parts
    CHECK(team_size(3, 1) == 1);
    CHECK(openmp_executor{}.threads == 1);
}
#endif
