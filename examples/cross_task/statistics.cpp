#include "statistics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace cross_task {

namespace {

using table_of_bits = std::vector<std::vector<double>>; // [seed][language]

double mean_of(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::optional<double> deviation_of(const std::vector<double>& values, double mean) {
    if (values.size() < 2) return std::nullopt;
    double squares = 0;
    for (const double value : values)
        squares += (value - mean) * (value - mean);
    return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

template <class T>
std::size_t index_of(const std::vector<T>& items, const T& item, const std::string& error) {
    const auto found = std::find(items.begin(), items.end(), item);
    if (found == items.end()) throw std::runtime_error(error);
    return static_cast<std::size_t>(found - items.begin());
}

/// Puts the entries that `belongs` picks in their places; `what` names them in errors.
template <class Entry, class Predicate>
table_of_bits collect(const std::vector<Entry>& entries, const std::vector<std::uint64_t>& seeds,
                      const std::vector<std::string>& languages, const std::string& what,
                      Predicate belongs) {
    if (seeds.empty() || languages.empty())
        throw std::runtime_error("the results have no seeds or no languages");
    const auto place = [&](std::uint64_t seed, const std::string& language) {
        return what + ", seed " + std::to_string(seed) + ", language " + language;
    };

    table_of_bits bits(seeds.size(), std::vector<double>(languages.size()));
    std::vector<std::vector<bool>> is_there(seeds.size(), std::vector<bool>(languages.size()));
    for (const Entry& entry : entries) {
        if (!belongs(entry)) continue;
        const std::string where = place(entry.seed, entry.language);
        const std::size_t seed = index_of(seeds, entry.seed, "unknown seed: " + where);
        const std::size_t language =
            index_of(languages, entry.language, "unknown language: " + where);
        if (is_there[seed][language]) throw std::runtime_error("more than one result: " + where);
        // One NaN would spoil every mean in silence.
        if (!std::isfinite(entry.bits_per_character))
            throw std::runtime_error("the bits per character are no finite number: " + where);
        bits[seed][language] = entry.bits_per_character;
        is_there[seed][language] = true;
    }
    for (std::size_t s = 0; s < seeds.size(); ++s)
        for (std::size_t l = 0; l < languages.size(); ++l)
            if (!is_there[s][l])
                throw std::runtime_error("missing result: " + place(seeds[s], languages[l]));
    return bits;
}

std::string name_of(const std::string& method, int words) {
    return method + (words == 0 ? ", zero-shot" : ", " + std::to_string(words) + " words");
}

} // namespace

scores scores::of_adaptation(const results& from, const std::string& method, int words) {
    return scores(collect(from.adaptation, from.seeds, from.test_languages, name_of(method, words),
                          [&](const adaptation_result& result) {
                              return result.method == method && result.words == words;
                          }));
}

scores scores::of_fit(const results& from, const std::string& method) {
    return scores(collect(from.fit, from.seeds, from.training_languages,
                          method + ", training languages",
                          [&](const fit_result& result) { return result.method == method; }));
}

scores scores::of_alignment(const results& from, const std::string& method, int layer) {
    const std::string what = "alignment of " + method;
    if (from.seeds.empty()) throw std::runtime_error("the results have no seeds");
    std::vector<std::vector<double>> values(from.seeds.size());
    for (const alignment_curve& curve : from.alignment) {
        if (curve.method != method) continue;
        auto& of_seed = values[index_of(from.seeds, curve.seed, "unknown seed: " + what)];
        if (!of_seed.empty()) throw std::runtime_error("more than one result: " + what);
        of_seed = layer < 0 ? curve.overall : curve.of_layers.at(static_cast<std::size_t>(layer));
        for (const double cosine : of_seed)
            if (!std::isfinite(cosine))
                throw std::runtime_error("a cosine is no finite number: " + what);
    }
    for (const auto& of_seed : values)
        if (of_seed.empty() || of_seed.size() != values.front().size())
            throw std::runtime_error("missing result: " + what);
    return scores(std::move(values));
}

summary summarise(const scores& of) {
    summary result;
    for (std::size_t s = 0; s < of.seeds(); ++s) {
        double sum = 0;
        for (std::size_t l = 0; l < of.items(); ++l)
            sum += of.at(s, l);
        result.of_seeds.push_back(sum / static_cast<double>(of.items()));
    }
    result.mean = mean_of(result.of_seeds);
    result.standard_deviation = deviation_of(result.of_seeds, result.mean);
    return result;
}

difference compare(const scores& first, const scores& second) {
    if (first.seeds() != second.seeds() || first.items() != second.items())
        throw std::runtime_error("only methods with the same seeds and items can be compared");
    difference result;
    std::vector<double> of_seeds;
    for (std::size_t s = 0; s < first.seeds(); ++s) {
        double sum = 0;
        for (std::size_t l = 0; l < first.items(); ++l) {
            sum += first.at(s, l) - second.at(s, l);
            result.lower += first.at(s, l) < second.at(s, l) ? 1 : 0;
            ++result.pairs;
        }
        of_seeds.push_back(sum / static_cast<double>(first.items()));
    }
    result.mean = mean_of(of_seeds);
    if (const auto deviation = deviation_of(of_seeds, result.mean))
        result.standard_error = *deviation / std::sqrt(static_cast<double>(of_seeds.size()));
    return result;
}

cost adaptation_cost(const results& from, const std::string& method, int words) {
    cost result;
    int count = 0;
    for (const adaptation_result& entry : from.adaptation) {
        if (entry.method != method || entry.words != words) continue;
        if (count > 0 && entry.trained_parameters != result.trained_parameters)
            throw std::runtime_error("the number of trained parameters varies: " +
                                     name_of(method, words));
        result.trained_parameters = entry.trained_parameters;
        result.seconds += entry.seconds;
        ++count;
    }
    if (count == 0) throw std::runtime_error("missing result: " + name_of(method, words));
    result.seconds /= count;
    return result;
}

} // namespace cross_task
