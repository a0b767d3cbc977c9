#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "examples/cross_task/adapters.hpp"
#include "examples/cross_task/experiment.hpp"
#include "examples/cross_task/methods.hpp"
#include "examples/cross_task/random.hpp"
#include "examples/cross_task/training.hpp"

namespace {

using namespace cross_task;

/// Words of an artificial language: vowels and consonants in turn, of three letters each.
std::vector<std::string> words(std::uint64_t language, int count) {
    random_engine random(language);
    std::string vowels, consonants;
    for (int i = 0; i < 3; ++i) {
        vowels += "aeiouy"[random.integer(6)];
        consonants += "bcdfghjklmnpqrstvwxz"[random.integer(20)];
    }
    std::vector<std::string> result;
    for (int i = 0; i < count; ++i) {
        std::string word;
        for (std::uint64_t length = 3 + random.integer(5); word.size() < length;)
            word += (word.size() % 2 == 0 ? consonants : vowels)[random.integer(3)];
        result.push_back(word);
    }
    return result;
}

std::vector<language_data> languages(const std::string& prefix, std::uint64_t first, int count) {
    std::vector<language_data> result;
    for (int i = 0; i < count; ++i) {
        const auto language = first + static_cast<std::uint64_t>(i);
        result.push_back({prefix + std::to_string(i), "made up", words(language, 8),
                          words(language + 1000, 6), words(language + 2000, 60)});
    }
    return result;
}

corpus made_up_corpus() {
    return {languages("host", 0, 2), languages("train", 10, 4), languages("dev", 20, 2),
            languages("test", 30, 2)};
}

experiment_options tiny(unsigned threads) {
    experiment_options options = quick_options(7);
    options.seeds = {7, 8};
    options.threads = threads;
    options.word_counts = {3, 6};
    options.pretraining.steps = 8;
    options.pretraining.rows = 32;
    options.multi_task_steps = 4;
    options.rows_of_task = 4;
    options.few_shot_rows = 8;
    options.multi_task_rates = {1e-2, 3e-3};
    options.alignment_measures = 2;
    options.alignment_rows = 6;
    options.further_steps = 3;
    options.further_rates = {1e-2, 3e-3};
    options.few_shot_steps = {3};
    return options;
}

results run(unsigned threads) {
    return run_experiment(made_up_corpus(), tiny(threads),
                          [](const std::string&, int) { return [] {}; });
}

} // namespace

TEST_CASE("an experiment has every number, and the same for every number of threads") {
    const results one = run(1);
    const results three = run(3);

    // 13 methods, 2 numbers of words; zero-shot 6 methods, and 6 that are trained further; 2 seeds,
    // 2 test languages.
    REQUIRE(one.methods.size() == 13);
    REQUIRE(one.zero_shot_methods.size() == 6 + 6);
    REQUIRE(one.adaptation.size() == (13 * 2 + 12) * 2 * 2);
    REQUIRE(three.adaptation.size() == one.adaptation.size());
    for (std::size_t i = 0; i < one.adaptation.size(); ++i) {
        const auto& a = one.adaptation[i];
        const auto& b = three.adaptation[i];
        CHECK(a.method == b.method);
        CHECK(a.language == b.language);
        CHECK(a.bits_per_character > 0);
        CHECK(a.bits_per_character == b.bits_per_character);
    }
    REQUIRE(one.fit.size() == 7 * 2 * 4);
    for (std::size_t i = 0; i < one.fit.size(); ++i)
        CHECK(one.fit[i].bits_per_character == three.fit[i].bits_per_character);
    // Rates of 6 methods of multi-task and 6 of further training, few-shot settings of 13 for each
    // number of words.
    CHECK(one.settings.size() == 6 + 6 + 13 * 2);
    CHECK(one.curves.size() == 6 * 2);
    REQUIRE(one.alignment.size() == 6 * 2);
    for (std::size_t i = 0; i < one.alignment.size(); ++i) {
        const alignment_curve& curve = one.alignment[i];
        CHECK(curve.step == std::vector<int>{2, 4});
        CHECK(curve.overall == three.alignment[i].overall);
        REQUIRE(curve.overall.size() == 2);
        REQUIRE(curve.of_layers.size() == 3);
        for (const auto& of_layer : curve.of_layers)
            REQUIRE(of_layer.size() == 2);
        for (const double cosine : curve.overall)
            CHECK(std::abs(cosine) < 1);
    }
    REQUIRE(one.routing.size() == 4);
    CHECK(one.routing[0].weights == three.routing[0].weights);
}

TEST_CASE("another seed gives other numbers") {
    const corpus languages = made_up_corpus();
    experiment_options options = tiny(2);
    const auto silent = [](const std::string&, int) { return [] {}; };
    options.seeds = {7};
    const double first = run_experiment(languages, options, silent).fit[0].bits_per_character;
    options.seeds = {9};
    CHECK(run_experiment(languages, options, silent).fit[0].bits_per_character != first);
}

TEST_CASE("fresh adapters change nothing, trained ones predict their task better") {
    random_engine random(3);
    const host_model host(random);
    const position_list positions(words(5, 40));
    activations state;
    const double before = bits_per_character(host, positions, state);

    const auto check = [&](auto adapters) {
        CHECK(evaluate(host, adapters, 0, positions) == before);
        train_few_shot(host, adapters, positions, 24, {50, 1e-2, 0.1}, 1);
        CHECK(evaluate(host, adapters, 0, positions) < before - 0.5);
    };
    check(plain_adapters(4, 1));
    check(routed_adapters({1, 1, 3, 4, routing::learned}, 1));
    check(routed_adapters({1, 8, 3, 4, routing::learned}, 1));
    check(routed_adapters({1, 8, 3, 4, routing::random}, 4));
}

TEST_CASE("the adapters' gradients are those of the loss") {
    random_engine random(4);
    const host_model host(random);
    const position_list positions(words(6, 50));
    batch input(24);
    positions.sample(random, input);
    const std::vector<std::int64_t> tasks{1, 0, 1};
    const task_rows rows{{tasks.data(), {3}}, 8};

    routed_adapters adapters({2, 4, 3, 2, routing::learned}, 5);
    for (float& value : adapters.modules().values)
        value = static_cast<float>(random.uniform(-0.3, 0.3)); // B, too, is not zero
    activations state;
    const auto loss = [&] {
        random_engine noise(9);              // the same noise for every evaluation
        adapters.begin(rows, {&noise, 0.7}); // half annealed
        return host.forward(input, state, [&](int l, const auto& x, auto& y) {
            adapters.forward(l, x, y);
        }) / 24;
    };
    loss();
    host.backward(input, state, [&](int l, const auto& x, const auto& d_y, auto& d_x) {
        adapters.backward(l, x, d_y, d_x);
    });
    adapters.end();

    // Along random directions: f32 sums leave too few digits for single parameters.
    const auto check_group = [&](parameter_group group) {
        const Eigen::ArrayXf start = group.values;
        Eigen::ArrayXf direction(start.size());
        for (float& value : direction)
            value = static_cast<float>(random.uniform(-1, 1));
        const double predicted =
            direction.cast<double>().matrix().dot(group.gradients.cast<double>().matrix());
        const auto at = [&](float distance) {
            group.values = start + distance * direction;
            return loss();
        };
        constexpr float step = 0x1p-9F;
        const double measured = (at(step) - at(-step)) / (2 * static_cast<double>(step));
        group.values = start;
        CHECK(std::abs(predicted) > 1e-3); // or the comparison would say nothing
        CHECK(std::abs(measured - predicted) <= 0.02 * std::abs(predicted));
    };
    check_group(adapters.modules());
    check_group(adapters.logits());
}
