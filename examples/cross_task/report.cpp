#include "report.hpp"

#include "claims.hpp"
#include "host_model.hpp"
#include "progress.hpp"
#include "statistics.hpp"
#include "table.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <locale>
#include <ostream>
#include <set>
#include <sstream>
#include <stdexcept>

namespace cross_task {

namespace {

constexpr auto plus_minus = " \u00b1 ";
constexpr auto not_available = "n/a";

template <class Items, class Text>
std::string joined(const Items& items, const char* separator, Text text_of) {
    std::string text;
    for (const auto& item : items)
        text += (text.empty() ? "" : separator) + text_of(item);
    return text;
}

std::string joined(const std::vector<std::string>& items) {
    return joined(items, ", ", [](const std::string& item) { return item; });
}

std::string words_title(int words) {
    return std::to_string(words) + " words";
}

cell mean_cell(const scores& of) {
    const summary found = summarise(of);
    std::string text = fixed(found.mean, 3);
    if (found.standard_deviation) text += plus_minus + fixed(*found.standard_deviation, 3);
    return {text, found.mean};
}

table few_shot_table(const results& of) {
    table result;
    result.title = "Few-shot adaptation to the test languages";
    result.note =
        "Bits per character of unseen words (fewer are better): mean over the languages, "
        "then mean and standard deviation over the seeds. Processor seconds of training for one "
        "language, by number of words.";
    result.columns = {"method", "trained parameters"};
    for (const int words : of.word_counts)
        result.columns.push_back(words_title(words));
    result.columns.emplace_back("seconds");

    for (const std::string& method : of.methods) {
        std::vector<cell> bits;
        std::vector<std::string> parameters;
        std::vector<std::string> seconds;
        for (const int words : of.word_counts) {
            bits.push_back(mean_cell(scores::of_adaptation(of, method, words)));
            const cost found = adaptation_cost(of, method, words);
            parameters.push_back(grouped(found.trained_parameters));
            seconds.push_back(fixed(found.seconds, found.seconds < 10 ? 2 : 1));
        }
        // Named once where they are the same for all numbers of words.
        parameters.erase(std::unique(parameters.begin(), parameters.end()), parameters.end());
        const auto slashed = [](const std::vector<std::string>& items) {
            return cell{joined(items, " / ", [](const std::string& item) { return item; }), {}};
        };
        table::row row{{method, {}}, slashed(parameters)};
        row.insert(row.end(), bits.begin(), bits.end());
        row.push_back(slashed(seconds));
        result.rows.push_back(row);
    }
    for (std::size_t w = 0; w < of.word_counts.size(); ++w)
        result.mark_lowest(2 + w);
    return result;
}

/// One row for each method, with what `scores_of` finds for it.
template <class ScoresOf>
table bits_table(std::string title, std::string note, const std::vector<std::string>& methods,
                 ScoresOf scores_of) {
    table result;
    result.title = std::move(title);
    result.note = std::move(note);
    result.columns = {"method", "bits per character"};
    for (const std::string& method : methods)
        result.rows.push_back({{method, {}}, mean_cell(scores_of(method))});
    result.mark_lowest(1);
    return result;
}

table zero_shot_table(const results& of) {
    return bits_table(
        "Zero-shot on the test languages",
        "Without any word of the language: mean and standard deviation over the seeds. "
        "\"Further\" and \"annealed\" are trained some more steps on the training languages, all "
        "for as many: as they are, or with routing that becomes uniform, then averaged.",
        of.zero_shot_methods,
        [&](const std::string& method) { return scores::of_adaptation(of, method, 0); });
}

table fit_table(const results& of) {
    table result = bits_table(
        "Fit of the training languages",
        "Unseen words of the languages of the multi-task training: mean and standard "
        "deviation over the seeds. Processor seconds of this training: mean over the seeds.",
        of.fit_methods, [&](const std::string& method) { return scores::of_fit(of, method); });
    result.columns.emplace_back("seconds");
    for (table::row& row : result.rows) {
        double seconds = 0;
        int seeds = 0;
        for (const learning_curve& curve : of.curves) {
            if (curve.method != row[0].text) continue;
            seconds += curve.seconds;
            ++seeds;
        }
        row.push_back({seeds > 0 ? fixed(seconds / seeds, 1) : "", {}}); // the host is not trained
    }
    return result;
}

table alignment_table(const results& of) {
    table result;
    result.title = "Gradient alignment";
    result.note = "Mean cosine between the gradients of each pair of training languages to the "
                  "parameters that they share, without noise in the routing: mean over the "
                  "multi-task training, then mean and standard deviation over the seeds.";
    result.columns = {"method", "all layers"};
    for (int layer = 0; layer < layer_count; ++layer)
        result.columns.push_back("layer " + std::to_string(layer + 1));
    for (const std::string& method : of.fit_methods) {
        const auto is_of_method = [&](const alignment_curve& curve) {
            return curve.method == method;
        };
        if (std::none_of(of.alignment.begin(), of.alignment.end(), is_of_method)) continue;
        table::row row{{method, {}}};
        for (int layer = -1; layer < layer_count; ++layer)
            row.push_back(mean_cell(scores::of_alignment(of, method, layer)));
        result.rows.push_back(row);
    }
    return result;
}

std::string verdict(const difference& found, bool lower_is_better) {
    if (!found.standard_error) return not_available;
    if (std::abs(found.mean) <= 2 * *found.standard_error) return "within 2 standard errors";
    return (found.mean < 0) == lower_is_better ? "first better" : "second better";
}

table::row claim_row(const claim& about, const std::string& condition, const difference& found) {
    const bool lower_is_better = about.in != section::alignment;
    const int wins = lower_is_better ? found.lower : found.pairs - found.lower;
    const std::string error =
        found.standard_error ? fixed(*found.standard_error, 4) : std::string(not_available);
    return {{about.first + " vs " + about.second, {}},
            {condition, {}},
            {fixed(found.mean, 4, true), {}},
            {error, {}},
            {std::to_string(wins) + " of " + std::to_string(found.pairs), {}},
            {verdict(found, lower_is_better), {}}};
}

table claims_table(const results& of) {
    table result;
    result.title = "Claims of the paper";
    result.note = "Bits per character of the first method minus those of the second, paired by "
                  "seed and language: below zero the first is better. Wins are the pairs of seed "
                  "and language with fewer bits for the first. Of gradient alignment, the "
                  "differences are of cosines, paired by seed and step: above zero the first's "
                  "gradients agree more.";
    result.columns = {"first vs second", "condition", "difference",
                      "standard error",  "wins",      "verdict"};

    const auto has = [](const std::vector<std::string>& methods, const claim& about) {
        const auto contains = [&](const std::string& method) {
            return std::find(methods.begin(), methods.end(), method) != methods.end();
        };
        return contains(about.first) && contains(about.second);
    };
    std::string heading;
    // A run may leave methods out: claims about them have no rows.
    const auto add = [&](const claim& about, const std::string& condition, const scores& first,
                         const scores& second) {
        if (about.text != heading) result.add_heading(heading = about.text);
        result.rows.push_back(claim_row(about, condition, compare(first, second)));
    };
    const auto add_adaptation = [&](const claim& about, const std::string& condition, int words) {
        add(about, condition, scores::of_adaptation(of, about.first, words),
            scores::of_adaptation(of, about.second, words));
    };
    for (const claim& about : paper_claims()) {
        switch (about.in) {
        case section::few_shot:
            if (has(of.methods, about))
                for (const int words : of.word_counts)
                    add_adaptation(about, words_title(words), words);
            break;
        case section::zero_shot:
            if (has(of.zero_shot_methods, about)) add_adaptation(about, "zero-shot", 0);
            break;
        case section::fit:
            if (has(of.fit_methods, about))
                add(about, "training languages", scores::of_fit(of, about.first),
                    scores::of_fit(of, about.second));
            break;
        case section::alignment:
            if (has(of.fit_methods, about) && !of.alignment.empty())
                add(about, "gradient alignment", scores::of_alignment(of, about.first),
                    scores::of_alignment(of, about.second));
            break;
        }
    }
    return result;
}

std::vector<table> result_tables(const results& of) {
    std::vector<table> tables{few_shot_table(of), zero_shot_table(of), fit_table(of),
                              alignment_table(of), claims_table(of)};
    const auto is_empty = [](const table& one) { return one.rows.empty(); };
    tables.erase(std::remove_if(tables.begin(), tables.end(), is_empty), tables.end());
    return tables;
}

table settings_table(const results& of) {
    table result;
    result.title = "Settings";
    result.note = "Learning rate and steps, chosen on the development languages.";
    std::set<int> conditions;
    std::vector<std::string> methods;
    for (const chosen_setting& setting : of.settings) {
        conditions.insert(setting.words);
        if (std::find(methods.begin(), methods.end(), setting.method) == methods.end())
            methods.push_back(setting.method);
    }

    result.columns = {"method"};
    for (const int words : conditions)
        result.columns.push_back(words == 0 ? "multi-task or further training"
                                            : words_title(words));
    for (const std::string& method : methods) {
        table::row row{{method, {}}};
        for (const int words : conditions) {
            const auto found = std::find_if(
                of.settings.begin(), of.settings.end(), [&](const chosen_setting& setting) {
                    return setting.method == method && setting.words == words;
                });
            std::ostringstream text;
            text.imbue(std::locale::classic());
            if (found != of.settings.end()) text << found->rate << ", " << found->steps << " steps";
            row.push_back({text.str(), {}});
        }
        result.rows.push_back(row);
    }
    return result;
}

void write_markdown(std::ostream& to, const results& of, const std::vector<picture>& pictures) {
    const std::string seeds =
        joined(of.seeds, ", ", [](std::uint64_t seed) { return std::to_string(seed); });
    to << "# Adaptation of a character language model to languages\n\n"
       << "- size of the run: " << escape_markdown(of.size) << "\n"
       << "- seeds: " << seeds << "\n"
       << "- training languages (" << of.training_languages.size()
       << "): " << escape_markdown(joined(of.training_languages)) << "\n"
       << "- development languages (" << of.development_languages.size()
       << "): " << escape_markdown(joined(of.development_languages)) << "\n"
       << "- test languages (" << of.test_languages.size()
       << "): " << escape_markdown(joined(of.test_languages)) << "\n"
       << "- time: " << format_duration(of.seconds) << " with " << of.threads
       << (of.threads == 1 ? " thread" : " threads") << "\n\n";
    if (!of.summary.empty()) to << of.summary << "\n\n";

    for (const table& one : result_tables(of))
        print_markdown(to, one);
    if (!of.settings.empty()) print_markdown(to, settings_table(of));

    to << "## Pictures\n\n";
    if (pictures.empty()) to << "There are none: drawing them needs gnuplot.\n\n";
    for (const picture& one : pictures)
        // Markdown's own images cannot be told their size.
        to << "### " << escape_markdown(one.title) << "\n\n"
           << "<img src=\"" << one.file << "\" width=\"" << one.width << "\" alt=\"\">\n\n"
           << escape_markdown(one.caption) << "\n\n";
    to << "All numbers are in [results.csv](results.csv) and [alignment.csv](alignment.csv), the "
          "settings in [settings.csv](settings.csv).\n";
}

std::string csv_field(const std::string& text) {
    if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
    std::string quoted = "\"";
    for (const char c : text)
        quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
    return quoted + '"';
}

void write_results_csv(std::ostream& to, const results& of) {
    to << "kind,method,seed,words,language,bits_per_character,trained_parameters,seconds\n";
    for (const adaptation_result& result : of.adaptation)
        to << (result.words == 0 ? "zero-shot" : "few-shot") << ',' << csv_field(result.method)
           << ',' << result.seed << ',' << result.words << ',' << csv_field(result.language) << ','
           << result.bits_per_character << ',' << result.trained_parameters << ',' << result.seconds
           << '\n';
    for (const fit_result& result : of.fit)
        to << "fit," << csv_field(result.method) << ',' << result.seed << ",,"
           << csv_field(result.language) << ',' << result.bits_per_character << ",,\n";
}

void write_alignment_csv(std::ostream& to, const results& of) {
    to << "method,seed,step,all_layers";
    for (int layer = 0; layer < layer_count; ++layer)
        to << ",layer_" << layer + 1;
    to << '\n';
    for (const alignment_curve& curve : of.alignment)
        for (std::size_t i = 0; i < curve.step.size(); ++i) {
            to << csv_field(curve.method) << ',' << curve.seed << ',' << curve.step[i] << ','
               << curve.overall[i];
            for (const auto& of_layer : curve.of_layers)
                to << ',' << of_layer[i];
            to << '\n';
        }
}

void write_settings_csv(std::ostream& to, const results& of) {
    to << "method,words,rate,steps,development_bits\n";
    for (const chosen_setting& setting : of.settings)
        to << csv_field(setting.method) << ',' << setting.words << ',' << setting.rate << ','
           << setting.steps << ',' << setting.development_bits << '\n';
}

template <class Write>
void write_file(const std::filesystem::path& file, Write write) {
    std::ofstream to(file, std::ios::binary);
    to.imbue(std::locale::classic());
    to.precision(std::numeric_limits<double>::max_digits10);
    write(to);
    to.close();
    if (!to) throw std::runtime_error("cannot write " + file.string());
}

} // namespace

void print_tables(std::ostream& to, const results& of) {
    for (const table& one : result_tables(of))
        print_text(to, one);
}

void write_report(const std::filesystem::path& folder, const results& of,
                  const std::vector<picture>& pictures) {
    std::filesystem::create_directories(folder);
    // The raw numbers first: they are worth having if the tables find that some are missing.
    write_file(folder / "results.csv", [&](std::ostream& to) { write_results_csv(to, of); });
    write_file(folder / "alignment.csv", [&](std::ostream& to) { write_alignment_csv(to, of); });
    write_file(folder / "settings.csv", [&](std::ostream& to) { write_settings_csv(to, of); });
    write_file(folder / "report.md", [&](std::ostream& to) { write_markdown(to, of, pictures); });
}

} // namespace cross_task
