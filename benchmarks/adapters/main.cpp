// How many tokens per second one adapted layer gives, against the number of distinct adapters in a
// batch: with one call of mhr for all of them, and with what engines do without it. All ways are
// checked against each other, and timed in turn.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <mhr/mhr.hpp>

namespace {

using mhr::index_t;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr index_t requests = 64; ///< of one token each: what a server decodes at a time
constexpr index_t in = 4096, out = 4096, rank = 16;
constexpr double scale = 0.5;

struct adapter {
    matrix a; ///< [rank, in], as LoRA files have it
    matrix b; ///< [rank, out]
};

/// The layer, its adapters and a batch of requests.
struct layer {
    matrix weight{out, in}, x{requests, in};
    std::vector<adapter> adapters;

    layer() {
        std::mt19937 random(1);
        std::uniform_real_distribution<float> uniform(-1, 1);
        const auto fill = [&](matrix& m) {
            for (float& value : m.reshaped())
                value = uniform(random) / 64;
        };
        fill(weight);
        fill(x);
        for (index_t n = 0; n < requests; ++n) {
            adapters.push_back({matrix(rank, in), matrix(rank, out)});
            fill(adapters.back().a);
            fill(adapters.back().b);
        }
    }
};

/// y of all requests, of which request r asks for adapter r modulo `distinct`.
using way = std::function<void(const layer& of, index_t distinct, matrix& y)>;

void base_alone(const layer& of, index_t /*distinct*/, matrix& y) {
    y.noalias() = of.x * of.weight.transpose();
}

/// One call for all adapters.
void by_mhr(const layer& of, index_t distinct, matrix& y) {
    base_alone(of, distinct, y);
    std::vector<index_t> adapter_of_row;
    for (index_t row = 0; row < requests; ++row)
        adapter_of_row.push_back(row % distinct);
    mhr::batch_plan plan;
    plan.assign_rows(mhr::tensor_view<const index_t, 1>(adapter_of_row.data(), {requests}));
    std::vector<mhr::lora> loaded;
    for (index_t n = 0; n < distinct; ++n) {
        const adapter& one = of.adapters[static_cast<std::size_t>(n)];
        const mhr::const_tensor_ref<2> a(one.a.data(), {rank, in});
        loaded.push_back({a.transpose(0, 1), {one.b.data(), {rank, out}}, scale});
    }
    std::vector<float> hidden(requests * rank);
    mhr::lora_forward({plan}, {loaded.data(), distinct}, {of.x.data(), {requests, in}},
                      {y.data(), {requests, out}}, {{hidden.data(), {requests, rank}}});
}

/// Each adapter by itself, on rows that are gathered for it and scattered back.
void one_by_one(const layer& of, index_t distinct, matrix& y) {
    base_alone(of, distinct, y);
    for (index_t n = 0; n < distinct; ++n) {
        const adapter& one = of.adapters[static_cast<std::size_t>(n)];
        const index_t rows = (requests - n + distinct - 1) / distinct;
        matrix gathered(rows, in);
        for (index_t r = 0; r < rows; ++r)
            gathered.row(r) = of.x.row(n + r * distinct);
        const matrix hidden = static_cast<float>(scale) * (gathered * one.a.transpose());
        const matrix added = hidden * one.b;
        for (index_t r = 0; r < rows; ++r)
            y.row(n + r * distinct) += added.row(r);
    }
}

/// Each adapter as a batch of its own, as engines do whose batches have one adapter.
void batch_of_each(const layer& of, index_t distinct, matrix& y) {
    for (index_t n = 0; n < distinct; ++n) {
        const adapter& one = of.adapters[static_cast<std::size_t>(n)];
        const index_t rows = (requests - n + distinct - 1) / distinct;
        matrix gathered(rows, in);
        for (index_t r = 0; r < rows; ++r)
            gathered.row(r) = of.x.row(n + r * distinct);
        matrix result(rows, out);
        if (rows > 4)
            result.noalias() = gathered * of.weight.transpose();
        else // for few rows, Eigen's products with vectors are faster
            for (index_t r = 0; r < rows; ++r)
                result.row(r).transpose().noalias() = of.weight * gathered.row(r).transpose();
        const matrix hidden = static_cast<float>(scale) * (gathered * one.a.transpose());
        result.noalias() += hidden * one.b;
        for (index_t r = 0; r < rows; ++r)
            y.row(n + r * distinct) = result.row(r);
    }
}

double seconds_of(const way& compute, const layer& of, index_t distinct, matrix& y) {
    const auto start = std::chrono::steady_clock::now();
    compute(of, distinct, y);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

} // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 15;
    const std::vector<std::pair<std::string, way>> ways{
        {"no adapter", base_alone},
        {"mhr, one call", by_mhr},
        {"one adapter after the other", one_by_one},
        {"a batch for each adapter", batch_of_each}};
    const layer of;
    std::printf("distinct adapters");
    for (const auto& [name, compute] : ways)
        std::printf("\t%s", name.c_str());
    std::printf("\n");
    for (index_t distinct : {1, 2, 4, 8, 16, 32, 64}) {
        std::vector<matrix> results(ways.size(), matrix(requests, out));
        std::vector<std::vector<double>> seconds(ways.size());
        for (int round = 0; round < rounds; ++round)
            for (std::size_t w = 0; w < ways.size(); ++w)
                seconds[w].push_back(seconds_of(ways[w].second, of, distinct, results[w]));
        for (std::size_t w = 2; w < ways.size(); ++w)
            if (!results[w].isApprox(results[1], 1e-4F)) {
                std::fprintf(stderr, "%s: another result\n", ways[w].first.c_str());
                return 1;
            }
        std::printf("%d", static_cast<int>(distinct));
        for (std::vector<double>& times : seconds) {
            std::nth_element(times.begin(), times.begin() + rounds / 2, times.end());
            std::printf("\t%.0f", static_cast<double>(requests) /
                                      times[static_cast<std::size_t>(rounds / 2)]);
        }
        std::printf("\n");
        std::fflush(stdout);
    }
}
