// How much of the processor's multiply-add rate the kernels reach while their data stays in L1, for
// the instruction set that this file is compiled for. Fails where one of them stays below the share
// that the argument names: a change that makes the compiler keep sums in memory shows here.
//
//     kernel_rates [least share, as in 0.6]
//
// What counts is the best of many short rounds, the peak's among the kernels', so that other
// programs do not matter unless they never pause.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
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
    double seconds = 1e9; // of the best round, for one run
};

/// Arrays that fit L1 together, with the processor's lanes to spare.
class kernels_in_l1 {
  public:
    std::vector<timed> list() {
        return {
            {"shrink", products / 2,
             [this] { mhr::kernels::shrink(few, long_x, a, 1, few_hidden); }},
            {"expand", products, [this] { mhr::kernels::expand(all, hidden, b, 1e-3, y); }},
            {"add_outer_products", products,
             [this] { mhr::kernels::add_outer_products(all, x, hidden, 1, sums, false, {}); }},
            {"mix", mixing,
             [this] { mhr::kernels::mix(weights, modules, mixed, mhr::element_type::f32); }},
            {"mix_backward", 2 * mixing,
             [this] {
                 mhr::kernels::mix_backward(weights, modules, mixed, d_modules, d_weights,
                                            mhr::element_type::f32);
             }},
        };
    }

  private:
    // The lanes of shrink's sums are added up at the end of a row: half as many rows and ranks, and
    // twice the columns.
    static constexpr index_t rows = 12, rank = 16, columns = 256;
    static constexpr index_t count = 8, entries = 6, size = 512;
    static constexpr double products = rows * rank * columns;
    static constexpr double mixing = entries * count * size;

    mhr_bench::aligned_array<float> wide_{rows * columns}, narrow_{rows * rank},
        matrix_{rank * columns}, modules_{count * size}, d_modules_{count * size},
        mixed_{entries * size}, weights_{entries * count}, d_weights_{entries * count};
    std::vector<index_t> numbers_ = [] {
        std::vector<index_t> result(rows);
        std::iota(result.begin(), result.end(), 0);
        return result;
    }();
    const bool filled_ = [this] {
        for (auto* array : {&wide_, &matrix_, &modules_, &mixed_, &weights_})
            std::fill(array->begin(), array->end(), 0.5F);
        return true;
    }();

    const mhr::row_set all{numbers_.data(), rows}, few{numbers_.data(), rows / 2};
    const mhr::tensor_ref<2> x{wide_.data(), {rows, columns}},
        y = x, hidden{narrow_.data(), {rows, rank}}, b{matrix_.data(), {rank, columns}}, sums = b;
    const mhr::tensor_ref<2> long_x{wide_.data(), {rows / 2, 2 * columns}},
        few_hidden{narrow_.data(), {rows / 2, rank / 2}},
        a = mhr::tensor_ref<2>{matrix_.data(), {rank / 2, 2 * columns}}.transpose(0, 1);
    const mhr::tensor_ref<2> weights{weights_.data(), {entries, count}},
        d_weights{d_weights_.data(), {entries, count}};
    const mhr::tensor_ref<3> modules{modules_.data(), {count, 1, size}},
        d_modules{d_modules_.data(), {count, 1, size}}, mixed{mixed_.data(), {entries, 1, size}};
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

int main(int argc, char** argv) {
    const double least = argc > 1 ? std::atof(argv[1]) : 0;
    constexpr index_t rounds = 8;
    kernels_in_l1 kernels;
    std::vector<timed> contenders = kernels.list();
    contenders.push_back({"peak", static_cast<double>(rounds * mhr_bench::multiply_adds_of_round),
                          [] { mhr_bench::multiply_add_at_peak(rounds); }});
    time_in_turn(contenders);

    const auto rate = [](const timed& of) { return of.multiply_adds / of.seconds; };
    const double peak = rate(contenders.back());
    std::printf("%s: peak %.1f GFLOP/s\n", mhr::kernels::architecture(), 2e-9 * peak);
    int slow = 0;
    for (const timed& of : contenders) {
        const double share = rate(of) / peak;
        const bool enough = share >= least;
        slow += enough ? 0 : 1;
        std::printf("%-20s %.2f%s\n", of.name.c_str(), share, enough ? "" : "  TOO SLOW");
    }
    if (slow != 0)
        std::printf("%d kernels reach less than %.2f of the peak: see their machine code "
                    "(tests/machine_code/check.py)\n",
                    slow, least);
    return slow == 0 ? 0 : 1;
}
