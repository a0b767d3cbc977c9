// An engine with one program for all processors: its own kernels, compiled for several levels.

#include <cstdio>
#include <vector>

#include <engine_kernels_levels.hpp>

int main() {
    const std::vector<int> tasks{0, -1, 0};
    mhr::batch_plan plan;
    plan.assign_rows(mhr::tensor_view<const int, 1>(tasks.data(), {3}));
    const std::vector<float> a(4 * 2, 0.5F), b(2 * 5, 0.25F), x(3 * 4, 1);
    for (const char* level : engine_kernels_levels) {
        const auto kernels = engine_kernels_for(level);
        if (kernels == nullptr) continue; // does not run here
        std::vector<float> y(3 * 5);
        kernels().apply({plan}, {{a.data(), {4, 2}}, {b.data(), {2, 5}}, 2}, {x.data(), {3, 4}},
                        {y.data(), {3, 5}});
        for (std::size_t i = 0; i < y.size(); ++i) // 2 (4 0.5) 0.25, twice
            if (!(y[i] == (i / 5 == 1 ? 0.0F : 2.0F))) {
                std::printf("%s: element %zu is wrong\n", level, i);
                return 1;
            }
        std::printf("%s: %s\n", level, kernels().architecture);
    }
    return 0;
}
