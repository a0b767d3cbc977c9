#include "roofline.hpp"

#include <xsimd/xsimd.hpp>

#include <atomic>
#include <cstdint>

#include "peers/parallel.hpp"

namespace mhr_bench {

namespace {

// Integers, for which no contents of the arrays are slow.
using words = xsimd::batch<std::int32_t>;

constexpr std::size_t word_count = words::size;
constexpr std::size_t unroll = 8;
constexpr std::size_t line = 64;
constexpr std::size_t bytes_per_step = 256 << 10;

std::atomic<std::int32_t> zero{0};

/// The results must seem to be wanted, lest the compiler leave the work out.
void pretend_to_use(const words& value) {
    std::int32_t lanes[word_count];
    value.store_unaligned(lanes);
    std::int32_t total = 0;
    for (const std::int32_t lane : lanes)
        total += lane;
    volatile std::int32_t wanted = total;
    (void)wanted;
}

void stream_piece(std::int32_t* data, std::size_t count, access how, words constant, words* sums) {
    // The unrolled steps, then the registers that are left.
    const auto walk = [&](auto&& touch) {
        std::size_t i = 0;
        for (; i + unroll * word_count <= count; i += unroll * word_count)
            for (std::size_t u = 0; u < unroll; ++u)
                touch(data + i + u * word_count, sums[u]);
        for (; i + word_count <= count; i += word_count)
            touch(data + i, sums[0]);
    };
    switch (how) {
    case access::read:
        walk([](const std::int32_t* at, words& sum) { sum += words::load_unaligned(at); });
        break;
    case access::update:
        walk([&](std::int32_t* at, words&) {
            (words::load_unaligned(at) + constant).store_unaligned(at);
        });
        break;
    case access::write:
        walk([&](std::int32_t* at, words&) { constant.store_unaligned(at); });
        break;
    }
}

} // namespace

void stream(const std::vector<stretch_of_memory>& arrays, int threads) {
    const words constant(zero.load());
    std::size_t total = 0;
    for (const stretch_of_memory& array : arrays)
        total += array.bytes;
    // The arrays side by side, so that reads and writes overlap as they do in a kernel.
    const std::size_t steps = total / bytes_per_step / static_cast<std::size_t>(threads) + 1;
    for_each_item(threads, threads, [&](index_t share) {
        // Used once in the end, which small arrays would notice otherwise.
        words sums[unroll];
        for (words& sum : sums)
            sum = constant;
        const auto pieces = steps * static_cast<std::size_t>(threads);
        for (std::size_t step = 0; step < steps; ++step) {
            const std::size_t piece = static_cast<std::size_t>(share) * steps + step;
            for (const stretch_of_memory& array : arrays) {
                const std::size_t lines = array.bytes / line;
                const std::size_t first = lines * piece / pieces;
                const std::size_t last = lines * (piece + 1) / pieces;
                stream_piece(
                    static_cast<std::int32_t*>(array.data) + first * (line / sizeof(std::int32_t)),
                    (last - first) * (line / sizeof(std::int32_t)), array.how, constant, sums);
            }
        }
        words all = constant;
        for (const words& sum : sums)
            all += sum;
        pretend_to_use(all);
    });
}

void multiply_add(index_t rounds, int threads) {
    for_each_item(threads, threads, [&](index_t) { multiply_add_at_peak(rounds); });
}

} // namespace mhr_bench
