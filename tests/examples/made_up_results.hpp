#pragma once

#include "examples/cross_task/random.hpp"
#include "examples/cross_task/results.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>

/// Results as a run of the experiment might have found them: plausible, not measured.
inline cross_task::results made_up_results(std::size_t seeds = 3) {
    using namespace cross_task;
    struct guess {
        const char* method;
        std::int64_t parameters;
        double bits[3]; // after 32, 128 and 512 words
    };
    const guess guesses[] = {
        {"LoRA from scratch", 19968, {3.720, 3.474, 3.269}},
        {"shared LoRA r16", 19968, {3.459, 3.307, 3.144}},
        {"shared LoRA r128", 159744, {3.452, 3.295, 3.130}},
        {"random routing", 159744, {3.455, 3.303, 3.197}},
        {"Poly", 159768, {3.410, 3.283, 3.134}},
        {"MHR h8", 159936, {3.418, 3.299, 3.141}},
        {"MHR h32", 160512, {3.412, 3.290, 3.138}},
        {"Poly-z", 24, {3.471, 3.449, 3.439}},
        {"MHR-z h8", 192, {3.441, 3.387, 3.352}},
        {"MHR-z h32", 768, {3.445, 3.353, 3.297}},
        {"Poly-mu", 19968, {3.454, 3.301, 3.151}},
        {"MHR-mu h8", 19968, {3.456, 3.302, 3.150}},
        {"MHR-mu h32", 19968, {3.450, 3.300, 3.148}},
    };
    const std::map<std::string, double> zero_shot = {{"host", 4.184},
                                                     {"shared LoRA r16", 3.742},
                                                     {"shared LoRA r128", 3.734},
                                                     {"Poly-mu", 3.785},
                                                     {"MHR-mu h8", 3.789},
                                                     {"MHR-mu h32", 3.802},
                                                     {"shared LoRA r16, further", 3.735},
                                                     {"shared LoRA r128, further", 3.730},
                                                     {"Poly-mu, annealed", 3.770},
                                                     {"MHR-mu h8, annealed", 3.765},
                                                     {"MHR-mu h32, annealed", 3.760},
                                                     {"MHR-mu h8, further", 3.740}};
    const std::map<std::string, double> fit = {{"host", 4.155},
                                               {"shared LoRA r16", 3.625},
                                               {"shared LoRA r128", 3.612},
                                               {"random routing", 3.230},
                                               {"Poly", 3.191},
                                               {"MHR h8", 3.175},
                                               {"MHR h32", 3.170}};

    results made;
    made.size = "default";
    made.summary = "The numbers are made up.";
    made.seconds = 1234.5;
    made.threads = 2;
    made.word_counts = {32, 128, 512};
    for (std::size_t seed = 0; seed < seeds; ++seed)
        made.seeds.push_back(seed);
    made.training_languages = {"it",
                               "es",
                               "nl",
                               "sv",
                               "nb",
                               "ca",
                               "gv",
                               "eo",
                               "bs",
                               "sl",
                               "vi",
                               "gl",
                               "af",
                               "nn",
                               "sk",
                               "hr",
                               "is",
                               "gd",
                               "oc",
                               "tl",
                               "et",
                               "lv",
                               "Norwegian Bokmål"};
    made.development_languages = {"an", "fo", "sq", "br", "gug", "kmr"};
    made.test_languages = {"pt", "da", "ga", "cs", "lt", "eu", "hu", "id", "sw", "ro"};
    for (const guess& one : guesses)
        made.methods.emplace_back(one.method);
    made.zero_shot_methods = {"host",
                              "shared LoRA r16",
                              "shared LoRA r128",
                              "Poly-mu",
                              "MHR-mu h8",
                              "MHR-mu h32",
                              "shared LoRA r16, further",
                              "shared LoRA r128, further",
                              "Poly-mu, annealed",
                              "MHR-mu h8, annealed",
                              "MHR-mu h32, annealed",
                              "MHR-mu h8, further"};
    made.fit_methods = {"host", "shared LoRA r16", "shared LoRA r128", "random routing",
                        "Poly", "MHR h8",          "MHR h32"};

    random_engine random(7);
    for (const std::uint64_t seed : made.seeds) {
        for (const guess& one : guesses) {
            for (std::size_t w = 0; w < made.word_counts.size(); ++w) {
                const int words = made.word_counts[w];
                const double luck = 0.006 * random.normal();
                for (std::size_t l = 0; l < made.test_languages.size(); ++l) {
                    const double of_language = 0.05 * (static_cast<double>(l) - 4.5);
                    const double bits = one.bits[w] + luck + of_language + 0.01 * random.normal();
                    made.adaptation.push_back({one.method, seed, words, made.test_languages[l],
                                               bits, one.parameters,
                                               0.01 * words * random.uniform(0.9, 1.1)});
                }
            }
        }
        for (const std::string& method : made.zero_shot_methods)
            for (const std::string& language : made.test_languages)
                made.adaptation.push_back({method, seed, 0, language,
                                           zero_shot.at(method) + 0.02 * random.normal(), 0, 0.0});
        for (const std::string& method : made.fit_methods)
            for (const std::string& language : made.training_languages)
                made.fit.push_back(
                    {method, seed, language, fit.at(method) + 0.02 * random.normal()});
        for (const std::string& method : made.fit_methods) {
            if (method == "host") continue;
            learning_curve curve{method, seed, 12.0, {}, {}};
            for (int step = 25; step <= 1000; step += 25) {
                curve.step.push_back(step);
                curve.bits_per_character.push_back(fit.at(method) + std::exp(-step / 150.0) +
                                                   0.01 * random.normal());
            }
            made.curves.push_back(curve);
            alignment_curve alignment{method, seed, curve.step, {}, {{}, {}, {}}};
            const double level = 0.1 * (3.7 - fit.at(method));
            for (std::size_t i = 0; i < curve.step.size(); ++i) {
                alignment.overall.push_back(level + 0.01 * random.normal());
                for (auto& of_layer : alignment.of_layers)
                    of_layer.push_back(level + 0.02 * random.normal());
            }
            made.alignment.push_back(alignment);
        }
    }

    for (const std::string& method : made.methods)
        for (const int words : made.word_counts)
            made.settings.push_back({method, words, 1e-3, 100 + words, 3.5});
    for (const char* method : {"shared LoRA r16", "Poly", "MHR h8"})
        made.settings.push_back({method, 0, 1e-2, 1000, 3.2});

    for (const int heads : {1, 8, 32}) {
        const std::string method = heads == 1 ? "Poly" : "MHR h" + std::to_string(heads);
        routing_map map{method, made.training_languages, 3, heads, 8, {}};
        for (std::size_t group = 0;
             group < made.training_languages.size() * 3 * static_cast<std::size_t>(heads);
             ++group) {
            float gates[8];
            float sum = 0.0F;
            for (float& gate : gates) {
                gate = static_cast<float>(1 / (1 + std::exp(-4 * random.normal())));
                sum += gate;
            }
            for (const float gate : gates)
                map.weights.push_back(gate / sum);
        }
        made.routing.push_back(map);
    }
    return made;
}
