#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "support/allocation_counter.hpp"
#include "support/every_kernel.hpp"
#include "support/thread_executor.hpp"
#include "support/thread_pool.hpp"

// These tests show what holds of every forward and backward of the library, whatever it computes.

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr std::array stored_types{element_type::f32 MHR_TEST_ALSO(element_type::bf16)};

/// Calls `f(every_kernel)` for layouts in which kernels copy nothing, all, and some.
template <class Function>
void for_layouts(Function&& f) {
    const auto with = [&](layout of_rows, layout of_modules, layout of_gradients) {
        for (const element_type stored : stored_types) {
            CAPTURE(name_of(of_modules));
            CAPTURE(std::string(name_of(stored)));
            every_kernel all(stored, of_rows, of_modules, of_gradients);
            f(all);
        }
    };
    with(layout::padded, layout::reversed, layout::misaligned);
#if !MHR_TEST_FEW_COMBINATIONS
    with(layout::row_major, layout::row_major, layout::row_major);
    with(layout::column_major, layout::column_major, layout::column_major);
#endif
}

/// All take a step, then the next: a difference is seen where it comes up.
struct run {
    std::string name;
    std::function<void(const kernel&)> call;
    std::unique_ptr<every_kernel> all;
};

} // namespace

TEST_CASE("no kernel allocates, on any executor") {
    thread_pool pool(2);
    const auto host = [&](index_t parts, parallel_body body) { pool.for_each(parts, body); };
    // OpenMP makes a team for the first loop, and keeps it; but LLVM's run-time library allocates
    // for every loop under AddressSanitizer.
    const openmp_executor openmp{2};
    const auto empty_loop = [&] { executor_ref(openmp).run(2, [](index_t) {}); };
    empty_loop();
    const bool openmp_allocates = allocations_of(empty_loop) != 0;
    for_layouts([&](every_kernel& all) {
        for (const kernel& k : all.kernels()) {
            CAPTURE(k.name);
            CHECK(allocations_of([&] { k.call(serial_executor{}); }) == 0);
            CHECK(allocations_of([&] { k.call(host); }) == 0);
            if (!openmp_allocates) CHECK(allocations_of([&] { k.call(openmp); }) == 0);
            if (!k.one_phase) continue;
            CHECK(allocations_of([&] { for_each_share(3, k.call); }) == 0);
        }
    });
}

TEST_CASE("every kernel gives the same bits on 1 to 8 threads of every executor") {
    for (const element_type stored : stored_types) {
        CAPTURE(std::string(name_of(stored)));
        std::vector<run> runs;
        const auto add = [&](const std::string& name, int threads, auto call) {
            runs.push_back({name + " of " + std::to_string(threads), call,
                            std::make_unique<every_kernel>(stored)});
        };
#if MHR_TEST_FEW_COMBINATIONS
        for (int threads : {3}) { // sanitizers see in these what they see in all
#else
        for (int threads : {1, 2, 3, 4, 5, 6, 7, 8}) {
#endif
            add("OpenMP", threads, [=](const kernel& k) { k.call(openmp_executor{threads}); });
            add("threads", threads, [=](const kernel& k) {
                k.call(thread_executor{threads, static_cast<std::uint64_t>(threads)});
            });
            add("shares", threads, [=](const kernel& k) {
                if (k.one_phase)
                    for_each_share(threads, k.call);
                else
                    k.call(serial_executor{});
            });
        }
        every_kernel want(stored);
        std::vector<std::vector<std::byte>> bits;
        for (std::size_t tensor = 0; tensor < want.tensors(); ++tensor)
            bits.push_back(want.bits(tensor));
        for (std::size_t i = 0; i < want.kernels().size(); ++i) {
            CAPTURE(want.kernels()[i].name);
            want.kernels()[i].call(serial_executor{});
            for (run& r : runs)
                r.call(r.all->kernels()[i]);
            bool changed = false;
            for (std::size_t tensor = 0; tensor < want.tensors(); ++tensor) {
                const std::vector<std::byte> now = want.bits(tensor);
                if (now == bits[tensor]) continue;
                changed = true;
                bits[tensor] = now;
                for (const run& r : runs) {
                    CAPTURE(r.name);
                    CHECK((r.all->bits(tensor) == now));
                }
            }
            CHECK(changed);
        }
        // A parallel kernel changes nothing that the serial one leaves alone.
        for (const run& r : runs)
            for (std::size_t tensor = 0; tensor < want.tensors(); ++tensor)
                CHECK((r.all->bits(tensor) == bits[tensor]));
    }
}

TEST_CASE("the work of all kernels but the cheapest comes in parts for several threads") {
    // Or the tests above would prove little.
    every_kernel all(element_type::f32);
    for (const kernel& k : all.kernels()) {
        CAPTURE(k.name);
        index_t most = 0;
        k.call([&](index_t parts, parallel_body body) {
            most = std::max(most, parts);
            serial_executor{}(parts, body);
        });
        const bool cheap = k.name.rfind("average_", 0) == 0 || k.name.rfind("mix_ia3_", 0) == 0;
        if (!cheap) CHECK(most != 1);
    }
}
