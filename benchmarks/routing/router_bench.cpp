#include "../support/catch.hpp"

#include <random>
#include <vector>

#include <mhr/mhr.hpp>

#include "../support/aligned_array.hpp"

TEST_CASE("router, 32 tasks of a table of 128, 8 modules", "[router]") {
    using mhr::index_t;
    const auto heads = GENERATE(index_t{1}, index_t{64});
    constexpr index_t table = 128, count = 32, modules = 8;
    mhr_bench::aligned_array<float> logits(table * heads * modules), d_logits(logits.size());
    mhr_bench::aligned_array<float> weights(count * heads * modules), d_weights(weights.size());
    mhr_bench::aligned_array<float> uniforms(weights.size());
    std::mt19937_64 engine(1);
    const auto shaped = [&](auto& of, index_t rows) {
        return mhr::tensor_view<float, 3>(of.data(), {rows, heads, modules});
    };
    mhr::draw_uniforms<3>(engine, shaped(uniforms, count));
    mhr::draw_uniforms<3>(engine, shaped(logits, table));
    mhr::draw_uniforms<3>(engine, shaped(d_weights, count));
    std::vector<std::int64_t> ids;
    for (index_t i = 0; i < count; ++i)
        ids.push_back(4 * i);
    const mhr::tensor_view<const std::int64_t, 1> tasks(ids.data(), {count});
    const mhr::serial_executor executor;

    const auto measure = [&](const std::string& name, const auto& rule) {
        BENCHMARK_ADVANCED("forward, " + name + ", " + std::to_string(heads) + " heads")
        (Catch::Benchmark::Chronometer meter) {
            meter.measure([&] {
                mhr::router_forward(executor, shaped(logits, table), tasks, rule,
                                    shaped(weights, count));
            });
        };
        BENCHMARK_ADVANCED("backward, " + name + ", " + std::to_string(heads) + " heads")
        (Catch::Benchmark::Chronometer meter) {
            meter.measure([&] {
                mhr::router_backward(executor, shaped(logits, table), tasks, rule,
                                     shaped(d_weights, count), shaped(d_logits, table));
            });
        };
    };
    measure("sigmoid", mhr::routing_rule{mhr::sigmoid_gate{}});
    measure("Gumbel-sigmoid",
            mhr::routing_rule{mhr::gumbel_sigmoid_gate{mhr::as_const(shaped(uniforms, count))}});
    measure("softmax over two",
            mhr::routing_rule{mhr::identity_gate{}, mhr::softmax_normaliser{2}});
}
