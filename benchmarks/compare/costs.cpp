#include "costs.hpp"

#include <cstdio>
#include <memory>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mhr_bench {

namespace {

const mhr::serial_executor serial;

std::string milliseconds(double seconds) {
    char text[32];
    std::snprintf(text, sizeof text, "%.4f ms", 1e3 * seconds);
    return text;
}

/// The worse of forward and forward+backward of one layer over another.
measured_cost compare(const std::string& key, const layer_case& numerator,
                      const layer_case& denominator, const budget& limits) {
    layer<float> above(numerator), below(denominator);
    const auto train = [](layer<float>& of) {
        of.forward(serial);
        of.backward(serial);
    };
    const auto times = time_in_turn({{[&] { above.forward(serial); }, 0},
                                     {[&] { below.forward(serial); }, 0},
                                     {[&] { train(above); }, 1},
                                     {[&] { train(below); }, 1}},
                                    limits);
    const double forward = times[0].seconds / times[1].seconds;
    const double both = times[2].seconds / times[3].seconds;
    char ratios[96];
    std::snprintf(ratios, sizeof ratios, "forward %.3f (", forward);
    std::string text = ratios + milliseconds(times[0].seconds) + " over " +
                       milliseconds(times[1].seconds) + "), forward+backward ";
    std::snprintf(ratios, sizeof ratios, "%.3f (", both);
    text += ratios + milliseconds(times[2].seconds) + " over " + milliseconds(times[3].seconds) +
            "); the worse one counts";
    return {key, std::max(forward, both), text};
}

/// Inventories of 64 modules: 256 MiB in f32.
template <class T>
struct large_mixing {
    static constexpr index_t heads = 8, modules = 64, rows = 512, columns = 256;

    aligned_array<T> inventory{heads * modules * rows * columns};
    aligned_array<float> weights{heads * modules};
    aligned_array<float> mixed{heads * rows * columns};

    large_mixing() {
        std::fill(inventory.begin(), inventory.end(), T(0.5F));
        std::fill(weights.begin(), weights.end(), 0.25F);
    }
    void run() {
        mhr::mix_forward(serial, {weights.data(), {1, heads, modules}},
                         {inventory.data(), {heads, modules, rows, columns}},
                         {mixed.data(), {1, heads, rows, columns}});
    }
};

measured_cost bf16_mix_speedup(const budget& limits) {
    large_mixing<float> f32;
    large_mixing<bfloat16> bf16;
    const auto times = time_in_turn({{[&] { f32.run(); }, 0}, {[&] { bf16.run(); }, 0}}, limits);
    return {"bf16_mix_speedup", times[0].seconds / times[1].seconds,
            "64 modules, 8 heads, 4096 x 256 each, one task: f32 (256 MiB) " +
                milliseconds(times[0].seconds) + ", bf16 " + milliseconds(times[1].seconds)};
}

/// The adapter beside the product of its layer, by whichever peer is fastest at that.
measured_cost overhead(const std::string& key, const layer_case& sizes,
                       const plan_of_measurement& plan) {
    layer<float> adapter(sizes);
    const index_t in = sizes.in_features, out = sizes.out_features;
    aligned_array<float> w(in * out), transposed(in * out);
    for (index_t i = 0; i < in; ++i)
        for (index_t o = 0; o < out; ++o)
            w.data()[i * out + o] = transposed.data()[o * in + i] =
                static_cast<float>((i * 31 + o * 17) % 64) / 64 - 0.5F;
    aligned_array<float> y(sizes.rows() * out);
    const base_layer base{sizes.rows(),      in,      out, adapter.x().data(), w.data(),
                          transposed.data(), y.data()};
    std::vector<contender> contenders{{[&] { adapter.forward(serial); }, 0}};
    std::vector<std::string> names{"mhr"};
    for (const library& of : plan.libraries)
        if (of.base)
            for (auto& product : of.base(base, 1)) {
                contenders.push_back({product, 0});
                names.push_back(of.name);
            }
    const auto times = time_in_turn(contenders, plan.limits);
    std::size_t best = 1;
    for (std::size_t i = 1; i < times.size(); ++i)
        if (times[i].seconds < times[best].seconds) best = i;
    if (best >= times.size()) return {key, 0, "no peer has the layer's product"};
    return {key, times[0].seconds / times[best].seconds,
            sizes.name + ": " + milliseconds(times[0].seconds) + " beside " +
                milliseconds(times[best].seconds) + " by " + names[best]};
}

} // namespace

std::vector<measured_cost> measure_costs(const plan_of_measurement& plan) {
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
    const auto cases = standard_cases();
    const auto named = [&](const std::string& name) {
        for (const layer_case& c : cases)
            if (c.name == name) return c;
        throw std::logic_error("no case " + name);
    };
    const layer_case batch = named("batch");
    const auto changed = [&](auto&& change) {
        layer_case result = batch;
        change(result);
        return result;
    };
    const auto with_heads = [&](index_t heads) {
        return changed([&](layer_case& c) { c.heads = heads; });
    };
    const auto one_task = changed([](layer_case& c) { c.tasks = 1; });
    const auto half_served = changed([](layer_case& c) { c.served = service::every_other; });
    const auto half = changed([](layer_case& c) { c.sequences /= 2; });
    return {compare("heads_cost", with_heads(64), with_heads(1), plan.limits),
            compare("tasks_cost", batch, one_task, plan.limits),
            compare("base_rows_cost", half_served, half, plan.limits),
            bf16_mix_speedup(plan.limits),
            overhead("overhead_prefill", named("prefill"), plan),
            overhead("overhead_decode", named("decode-1"), plan)};
}

} // namespace mhr_bench
