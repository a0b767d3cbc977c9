// How much of the processor's multiply-add rate the kernels reach while their data stays in L1, for
// the instruction set that this file is compiled for. Fails where one of them reaches too little: a
// change that makes the compiler keep sums in memory shows here.
//
// What counts is the best of many short rounds, the peak's among the kernels', so that other
// programs do not matter unless they never pause.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <mhr/kernels/kernels.hpp>

#include "../support/aligned_array.hpp"
#include "../support/multiply_add_rate.hpp"

namespace {

using mhr::index_t;

struct timed {
    std::string name;
    double multiply_adds; // of one run
    std::function<void()> run;
    double least_share;
    double seconds = 1e9; // of the best round, for one run
};

/// The sums of mixing have a term for each module: eight between a load and a store.
constexpr double products = 0.6, mixing = 0.4;

mhr_bench::aligned_array<float> numbers(index_t count) {
    mhr_bench::aligned_array<float> result(count);
    std::fill(result.begin(), result.end(), 0.5F);
    return result;
}

/// Kernels on arrays that fit an L1 of 32 KiB, each with as much work between its beginning and its
/// end as these allow.
class kernels_in_l1 {
  public:
    std::vector<timed> list() const {
        // Whole tiles, whichever way round they are.
        const timed shrinking = mhr::kernels::has_32_registers<mhr::default_arch>
                                    ? shrink(6, 4, 768)
                                    : shrink(12, 12, 320);
        return {shrinking, expand(12, 16, 256), add_outer_products(36, 16, 128), mix(6, 8, 512),
                mix_backward(6, 8, 512)};
    }

  private:
    // Each lambda keeps its arrays.
    using array = std::shared_ptr<mhr_bench::aligned_array<float>>;

    static array shared(index_t count) {
        return std::make_shared<mhr_bench::aligned_array<float>>(numbers(count));
    }
    static double count_of(index_t a, index_t b, index_t c) {
        return static_cast<double>(a * b * c);
    }
    mhr::row_set first_rows(index_t count) const { return {row_numbers_.data(), count}; }

    timed shrink(index_t rows, index_t rank, index_t columns) const {
        const array x = shared(rows * columns), a = shared(rank * columns),
                    hidden = shared(rows * rank);
        return {"shrink", count_of(rows, rank, columns),
                [=] {
                    const mhr::tensor_ref<2> by_columns(a->data(), {rank, columns});
                    mhr::kernels::shrink(first_rows(rows), {x->data(), {rows, columns}},
                                         by_columns.transpose(0, 1), 1,
                                         {hidden->data(), {rows, rank}});
                },
                products};
    }
    timed expand(index_t rows, index_t rank, index_t columns) const {
        const array hidden = shared(rows * rank), b = shared(rank * columns),
                    y = shared(rows * columns);
        return {"expand", count_of(rows, rank, columns),
                [=] {
                    mhr::kernels::expand(first_rows(rows), {hidden->data(), {rows, rank}},
                                         {b->data(), {rank, columns}}, 1e-6,
                                         {y->data(), {rows, columns}});
                },
                products};
    }
    timed add_outer_products(index_t rows, index_t rank, index_t columns) const {
        const array x = shared(rows * columns), hidden = shared(rows * rank),
                    sums = shared(rank * columns);
        return {"add_outer_products", count_of(rows, rank, columns),
                [=] {
                    mhr::kernels::add_outer_products(first_rows(rows), {x->data(), {rows, columns}},
                                                     {hidden->data(), {rows, rank}}, 1,
                                                     {sums->data(), {rank, columns}}, false, {});
                },
                products};
    }
    static timed mix(index_t entries, index_t modules, index_t size) {
        const array weights = shared(entries * modules), matrices = shared(modules * size),
                    mixed = shared(entries * size);
        return {"mix", count_of(entries, modules, size),
                [=] {
                    mhr::kernels::mix({weights->data(), {entries, modules}},
                                      {matrices->data(), {modules, 1, size}},
                                      {mixed->data(), {entries, 1, size}}, mhr::element_type::f32);
                },
                mixing};
    }
    static timed mix_backward(index_t entries, index_t modules, index_t size) {
        const array weights = shared(entries * modules), matrices = shared(modules * size),
                    d_mixed = shared(entries * size), d_matrices = shared(modules * size),
                    d_weights = shared(entries * modules);
        return {"mix_backward", 2 * count_of(entries, modules, size),
                [=] {
                    mhr::kernels::mix_backward({weights->data(), {entries, modules}},
                                               {matrices->data(), {modules, 1, size}},
                                               {d_mixed->data(), {entries, 1, size}},
                                               {d_matrices->data(), {modules, 1, size}},
                                               {d_weights->data(), {entries, modules}},
                                               mhr::element_type::f32);
                    // Lest the sums grow without end.
                    std::fill(d_weights->begin(), d_weights->end(), 0.0F);
                },
                mixing};
    }

    const std::vector<index_t> row_numbers_ = [] {
        std::vector<index_t> result(64);
        std::iota(result.begin(), result.end(), 0);
        return result;
    }();
};

/// The best of many rounds in turn, of a tenth of a millisecond each.
void time_in_turn(std::vector<timed>& contenders) {
    using clock = std::chrono::steady_clock;
    constexpr double round = 1e-4;
    const auto start = clock::now();
    const auto passed = [](clock::time_point since) {
        return std::chrono::duration<double>(clock::now() - since).count();
    };
    std::vector<int> repetitions(contenders.size(), 1);
    while (passed(start) < 1.5)
        for (std::size_t i = 0; i < contenders.size(); ++i) {
            timed& of = contenders[i];
            const auto begin = clock::now();
            for (int k = 0; k < repetitions[i]; ++k)
                of.run();
            of.seconds = std::min(of.seconds, passed(begin) / repetitions[i]);
            repetitions[i] = std::max(1, static_cast<int>(round / of.seconds));
        }
}

} // namespace

int main() {
    constexpr index_t rounds = 8;
    const kernels_in_l1 kernels;
    std::vector<timed> contenders = kernels.list();
    contenders.push_back({"peak", static_cast<double>(rounds * mhr_bench::multiply_adds_of_round),
                          [] { mhr_bench::multiply_add_at_peak(rounds); }, 1});
    time_in_turn(contenders);

    const auto rate = [](const timed& of) { return of.multiply_adds / of.seconds; };
    const double peak = rate(contenders.back());
    std::printf("%s: peak %.1f GFLOP/s\n", mhr::kernels::architecture(), 2e-9 * peak);
    int slow = 0;
    for (const timed& of : contenders) {
        const double share = rate(of) / peak;
        const bool enough = share >= of.least_share;
        slow += enough ? 0 : 1;
        std::printf("%-20s %.2f%s\n", of.name.c_str(), share, enough ? "" : "  TOO SLOW");
    }
    if (slow != 0)
        std::printf("%d kernels are too slow: see their machine code "
                    "(tests/machine_code/check.py)\n",
                    slow);
    return slow == 0 ? 0 : 1;
}
