#include "experiment.hpp"

#include "jobs.hpp"
#include "methods.hpp"
#include "prepared_language.hpp"
#include "processor_time.hpp"
#include "routing_order.hpp"
#include "training.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <sstream>
#include <tuple>
#include <utility>

namespace cross_task {

namespace {

constexpr double multi_task_logit_speed = 10;
constexpr double few_shot_logit_speed = 100;

std::vector<position_list> training_positions(const std::vector<prepared_language>& languages) {
    std::vector<position_list> result;
    for (const auto& language : languages)
        result.push_back(language.training);
    return result;
}

std::vector<std::string> codes(const std::vector<prepared_language>& languages) {
    std::vector<std::string> result;
    for (const auto& language : languages)
        result.push_back(language.code);
    return result;
}

/// The purposes that seeds are derived for.
enum purpose : std::uint64_t {
    for_host,
    for_adapters,
    for_training,
    for_new_task,
    for_few_shot,
    for_further_training
};

/// Where the smallest of [first, last) is; a training that diverged (NaN) never wins.
std::size_t smallest(const std::vector<double>& values, std::size_t first, std::size_t last) {
    const auto order = [&](std::size_t a, std::size_t b) {
        return !std::isnan(values[a]) && (std::isnan(values[b]) || values[a] < values[b]);
    };
    std::size_t best = first;
    for (std::size_t i = first + 1; i < last; ++i)
        if (order(i, best)) best = i;
    return best;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The experiment as it runs: hosts and trained adapters of every seed, and the results so far.
class experiment {
  public:
    experiment(const corpus& words, const experiment_options& options,
               const phase_callback& begin_phase)
        : options_(options), begin_phase_(begin_phase),
          host_languages_(prepare(words.host, options.word_counts, words.host.size())),
          training_(prepare(words.training, options.word_counts, words.training.size())),
          development_(
              prepare(words.development, options.word_counts, options.most_development_languages)),
          test_(prepare(words.test, options.word_counts, options.most_test_languages)),
          training_positions_(training_positions(training_)) {}

    results run() {
        const auto start = std::chrono::steady_clock::now();
        describe();
        pretrain_hosts();
        train_adapters();
        evaluate_without_adaptation();
        train_further();
        choose_few_shot_settings();
        adapt_to_test_languages();
        found_.seconds = seconds_since(start);
        return std::move(found_);
    }

  private:
    using few_shot_setting = std::pair<double, int>; ///< rate, steps

    struct few_shot_outcome {
        double bits = 0;
        double seconds = 0;
        std::int64_t parameters = 0;
    };

    std::size_t seeds() const { return options_.seeds.size(); }

    void describe() {
        for (const auto& method : few_shot_methods())
            found_.methods.push_back(method.name);
        found_.fit_methods = {"host"};
        found_.zero_shot_methods = {"host"};
        for (const auto& method : training_methods())
            found_.fit_methods.push_back(method.name);
        for (const auto& method : training_methods())
            if (!method.routed) found_.zero_shot_methods.push_back(method.name);
        for (const auto& method : few_shot_methods())
            if (method.kind == adaptation::average) found_.zero_shot_methods.push_back(method.name);
        for (const auto& method : further_methods())
            found_.zero_shot_methods.push_back(method.name);
        found_.seeds = options_.seeds;
        found_.word_counts = options_.word_counts;
        found_.training_languages = codes(training_);
        found_.development_languages = codes(development_);
        found_.test_languages = codes(test_);
        found_.size = options_.size;
        found_.threads = static_cast<int>(options_.threads);

        std::ostringstream text;
        text << "The host is pre-trained for " << options_.pretraining.steps << " steps of "
             << options_.pretraining.rows << " positions, adapters for "
             << options_.multi_task_steps << " steps of " << training_.size() << " x "
             << options_.rows_of_task << " positions (logits learn " << multi_task_logit_speed
             << " times as fast as modules), for zero-shot " << options_.further_steps
             << " more. Adaptation takes " << options_.few_shot_rows
             << " positions a step (logits learn " << few_shot_logit_speed
             << " times as fast). AdamW without decay, 6 % warm-up, then linear to zero. "
             << options_.evaluation_words << " evaluation words for each language.";
        found_.summary = text.str();
    }

    void pretrain_hosts() {
        const auto step = begin_phase_("Pre-training the host",
                                       static_cast<int>(seeds()) * options_.pretraining.steps);
        std::vector<host_model> hosts(seeds(), [] {
            random_engine any(0);
            return host_model(any);
        }());
        const auto positions = training_positions(host_languages_);
        run_jobs(seeds(), options_.threads, [&](std::size_t s) {
            random_engine random(derived_seed(options_.seeds[s], for_host, 0));
            hosts[s] = pretrain(positions, random, options_.pretraining, [&](int, int) { step(); });
        });
        hosts_ = std::move(hosts);
    }

    /// Every way of multi-task training with every seed. The first seed runs the whole grid of
    /// rates; the rate that adapts best to the development languages serves the other seeds.
    void train_adapters() {
        const std::size_t methods = training_methods().size();
        const std::size_t rates = options_.multi_task_rates.size();
        const auto step =
            begin_phase_("Multi-task training", static_cast<int>(methods * (rates + seeds() - 1)) *
                                                    options_.multi_task_steps);
        trained_.resize(methods * seeds(), any_adapters(plain_adapters(1, 0)));
        curves_.resize(methods * seeds());

        std::vector<any_adapters> candidates(methods * rates, trained_.front());
        std::vector<multi_task_curves> candidate_curves(methods * rates);
        std::vector<double> bits(methods * rates);
        run_jobs(methods * rates, options_.threads, [&](std::size_t job) {
            const std::size_t method = job / rates;
            std::tie(candidates[job], candidate_curves[job]) =
                train(method, 0, options_.multi_task_rates[job % rates], step);
            bits[job] = rates == 1 ? 0 : bits_after_middle_setting(method, candidates[job]);
        });
        std::vector<double> chosen(methods);
        for (std::size_t method = 0; method < methods; ++method) {
            const std::size_t best = smallest(bits, method * rates, (method + 1) * rates);
            chosen[method] = options_.multi_task_rates[best % rates];
            trained_[method * seeds()] = candidates[best];
            curves_[method * seeds()] = candidate_curves[best];
            if (rates > 1)
                found_.settings.push_back({training_methods()[method].name, 0, chosen[method],
                                           options_.multi_task_steps, bits[best]});
        }

        const std::size_t others = seeds() - 1;
        run_jobs(methods * others, options_.threads, [&](std::size_t job) {
            const std::size_t method = job / others;
            const std::size_t place = method * seeds() + 1 + job % others;
            std::tie(trained_[place], curves_[place]) =
                train(method, 1 + job % others, chosen[method], step);
        });
        for (const auto& [learning, alignment] : curves_) {
            found_.curves.push_back(learning);
            found_.alignment.push_back(alignment);
        }
        for (std::size_t method = 0; method < methods; ++method) {
            const auto* routed = std::get_if<routed_adapters>(&trained_[method * seeds()]);
            if (routed == nullptr) continue;
            found_.routing.push_back({training_methods()[method].name, codes(training_),
                                      layer_count, static_cast<int>(routed->options().heads),
                                      static_cast<int>(routed->options().modules),
                                      routed->weights()});
            order_by_similarity(found_.routing.back());
        }
    }

    std::pair<any_adapters, multi_task_curves> train(std::size_t method, std::size_t s, double rate,
                                                     const std::function<void()>& step) {
        const std::uint64_t seed = options_.seeds[s];
        any_adapters adapters =
            make_adapters(training_methods()[method], static_cast<mhr::index_t>(training_.size()),
                          derived_seed(seed, for_adapters, method));
        const multi_task_settings settings{
            {options_.multi_task_steps, rate, rate * multi_task_logit_speed},
            options_.rows_of_task,
            0,
            options_.alignment_measures,
            options_.alignment_rows};
        const double start = thread_seconds();
        // The batches are the same for all methods.
        multi_task_curves curves = std::visit(
            [&](auto& trained) {
                return train_multi_task(hosts_[s], trained, training_positions_, settings,
                                        derived_seed(seed, for_training, 0), step);
            },
            adapters);
        curves.learning.method = curves.alignment.method = training_methods()[method].name;
        curves.learning.seed = curves.alignment.seed = seed;
        curves.learning.seconds = thread_seconds() - start;
        return {std::move(adapters), std::move(curves)};
    }

    /// How well freshly trained adapters adapt to the development languages with the middle of the
    /// few-shot grid: what multi-task rates are compared by.
    double bits_after_middle_setting(std::size_t method, const any_adapters& trained) {
        const few_shot_setting middle{options_.few_shot_rates[options_.few_shot_rates.size() / 2],
                                      options_.few_shot_steps[options_.few_shot_steps.size() / 2]};
        const few_shot_method as_it_is{"", method, adaptation::all};
        double sum = 0;
        for (const auto& language : development_)
            sum +=
                adapt(as_it_is, trained, 0, language, options_.word_counts.size() / 2, middle).bits;
        return sum / static_cast<double>(development_.size());
    }

    /// The host alone and the multi-task adapters: fit of the training languages, zero-shot on the
    /// test languages.
    void evaluate_without_adaptation() {
        const std::size_t methods = training_methods().size();
        const std::size_t jobs = (1 + methods) * seeds();
        const auto step = begin_phase_("Evaluating", static_cast<int>(jobs));
        std::vector<std::vector<fit_result>> fits(jobs);
        std::vector<std::vector<adaptation_result>> zero_shots(jobs);
        run_jobs(jobs, options_.threads, [&](std::size_t job) {
            const std::size_t s = job % seeds();
            const std::uint64_t seed = options_.seeds[s];
            const auto fit = [&](const std::string& name, auto&& bits) {
                for (std::size_t t = 0; t < training_.size(); ++t)
                    fits[job].push_back({name, seed, training_[t].code, bits(t)});
            };
            const auto zero_shot = [&](const std::string& name, auto&& bits) {
                for (const auto& language : test_)
                    zero_shots[job].push_back({name, seed, 0, language.code, bits(language), 0, 0});
            };
            if (job < seeds()) {
                activations state;
                fit("host", [&](std::size_t t) {
                    return bits_per_character(hosts_[s], training_[t].evaluation, state);
                });
                zero_shot("host", [&](const auto& language) {
                    return bits_per_character(hosts_[s], language.evaluation, state);
                });
                step();
                return;
            }
            const std::size_t method = job / seeds() - 1;
            any_adapters trained = trained_[method * seeds() + s];
            fit(training_methods()[method].name, [&](std::size_t t) {
                return evaluate_any(hosts_[s], trained, static_cast<std::int64_t>(t),
                                    training_[t].evaluation);
            });
            for (const auto& adaptation_method : few_shot_methods()) {
                const bool served_as_is = adaptation_method.kind == adaptation::average ||
                                          (adaptation_method.kind == adaptation::all &&
                                           !training_methods()[method].routed);
                if (adaptation_method.training != method || !served_as_is) continue;
                any_adapters one = adapters_for_new_task(adaptation_method, trained, 0);
                zero_shot(adaptation_method.name, [&](const auto& language) {
                    return evaluate_any(hosts_[s], one, 0, language.evaluation);
                });
            }
            step();
        });
        for (const auto& of_job : fits)
            found_.fit.insert(found_.fit.end(), of_job.begin(), of_job.end());
        for (const auto& of_job : zero_shots)
            found_.adaptation.insert(found_.adaptation.end(), of_job.begin(), of_job.end());
    }

    /// Some adapters a few steps further, to be evaluated zero-shot. As in the multi-task training,
    /// the first seed runs the grid of rates; here it is zero-shot on the development languages
    /// that the best one is chosen by.
    void train_further() {
        const std::size_t methods = further_methods().size();
        const std::size_t rates = options_.further_rates.size();
        const std::size_t others = seeds() - 1;
        const auto step =
            begin_phase_("Further training",
                         static_cast<int>(methods * (rates + others)) * options_.further_steps);
        std::vector<any_adapters> served(methods * seeds(), any_adapters(plain_adapters(1, 0)));
        std::vector<any_adapters> candidates(methods * rates, served.front());
        std::vector<double> bits(methods * rates);
        run_jobs(methods * rates, options_.threads, [&](std::size_t job) {
            candidates[job] = trained_further(further_methods()[job / rates], 0,
                                              options_.further_rates[job % rates], step);
            for (const auto& language : development_)
                bits[job] += evaluate_any(hosts_[0], candidates[job], 0, language.evaluation) /
                             static_cast<double>(development_.size());
        });
        std::vector<double> chosen(methods);
        for (std::size_t method = 0; method < methods; ++method) {
            const std::size_t best = smallest(bits, method * rates, (method + 1) * rates);
            chosen[method] = options_.further_rates[best % rates];
            served[method * seeds()] = candidates[best];
            found_.settings.push_back({further_methods()[method].name, 0, chosen[method],
                                       options_.further_steps, bits[best]});
        }
        run_jobs(methods * others, options_.threads, [&](std::size_t job) {
            const std::size_t method = job / others;
            const std::size_t s = 1 + job % others;
            served[method * seeds() + s] =
                trained_further(further_methods()[method], s, chosen[method], step);
        });

        std::vector<std::vector<adaptation_result>> zero_shots(methods * seeds());
        run_jobs(methods * seeds(), options_.threads, [&](std::size_t job) {
            const std::size_t s = job % seeds();
            for (const auto& language : test_)
                zero_shots[job].push_back(
                    {further_methods()[job / seeds()].name, options_.seeds[s], 0, language.code,
                     evaluate_any(hosts_[s], served[job], 0, language.evaluation), 0, 0});
        });
        for (const auto& of_job : zero_shots)
            found_.adaptation.insert(found_.adaptation.end(), of_job.begin(), of_job.end());
    }

    /// Returns what a further training leaves to serve tasks that were not trained.
    any_adapters trained_further(const further_method& method, std::size_t s, double rate,
                                 const std::function<void()>& step) const {
        any_adapters adapters =
            adapters_for_further_training(method, trained_[method.training * seeds() + s]);
        const multi_task_settings settings{
            {options_.further_steps, rate, rate * multi_task_logit_speed},
            options_.rows_of_task,
            method.kind == continuation::annealed ? options_.further_steps : 0,
            0,
            0};
        // The batches are the same for all methods.
        std::visit(
            [&](auto& trained) {
                train_multi_task(hosts_[s], trained, training_positions_, settings,
                                 derived_seed(options_.seeds[s], for_further_training, 0), step);
            },
            adapters);
        return adapters_without_routing(adapters);
    }

    /// Rate and steps of each method and number of words: the best of the grid, by the mean over
    /// the development languages, with the first seed.
    void choose_few_shot_settings() {
        std::vector<few_shot_setting> grid;
        for (double rate : options_.few_shot_rates)
            for (int steps : options_.few_shot_steps)
                grid.emplace_back(rate, steps);
        const std::size_t methods = few_shot_methods().size();
        const std::size_t counts = options_.word_counts.size();
        const std::size_t jobs = methods * counts * grid.size();
        const auto step = begin_phase_("Choosing rates and steps", static_cast<int>(jobs));
        std::vector<double> bits(jobs);
        run_jobs(jobs, options_.threads, [&](std::size_t job) {
            const few_shot_method& method = few_shot_methods()[job / (counts * grid.size())];
            for (const auto& language : development_)
                bits[job] += adapt(method, trained_[method.training * seeds()], 0, language,
                                   job / grid.size() % counts, grid[job % grid.size()])
                                 .bits /
                             static_cast<double>(development_.size());
            step();
        });
        for (std::size_t cell = 0; cell < methods * counts; ++cell) {
            const std::size_t best = smallest(bits, cell * grid.size(), (cell + 1) * grid.size());
            const few_shot_setting& setting = grid[best - cell * grid.size()];
            settings_.push_back(setting);
            found_.settings.push_back({few_shot_methods()[cell / counts].name,
                                       options_.word_counts[cell % counts], setting.first,
                                       setting.second, bits[best]});
        }
    }

    void adapt_to_test_languages() {
        const std::size_t methods = few_shot_methods().size();
        const std::size_t counts = options_.word_counts.size();
        const std::size_t jobs = methods * counts * seeds() * test_.size();
        const auto step = begin_phase_("Adapting to test languages", static_cast<int>(jobs));
        std::vector<adaptation_result> outcomes(jobs);
        run_jobs(jobs, options_.threads, [&](std::size_t job) {
            const auto& language = test_[job % test_.size()];
            const std::size_t s = job / test_.size() % seeds();
            const std::size_t cell = job / (test_.size() * seeds());
            const few_shot_method& method = few_shot_methods()[cell / counts];
            const few_shot_outcome outcome = adapt(method, trained_[method.training * seeds() + s],
                                                   s, language, cell % counts, settings_[cell]);
            outcomes[job] = {method.name,    options_.seeds[s], options_.word_counts[cell % counts],
                             language.code,  outcome.bits,      outcome.parameters,
                             outcome.seconds};
            step();
        });
        found_.adaptation.insert(found_.adaptation.end(), outcomes.begin(), outcomes.end());
    }

    few_shot_outcome adapt(const few_shot_method& method, const any_adapters& trained,
                           std::size_t s, const prepared_language& language, std::size_t count,
                           const few_shot_setting& setting) const {
        const std::uint64_t seed = options_.seeds[s];
        const training_settings settings{setting.second, setting.first,
                                         setting.first * few_shot_logit_speed};
        any_adapters adapters =
            adapters_for_new_task(method, trained, derived_seed(seed, for_new_task, 0));
        few_shot_outcome outcome;
        outcome.parameters = trained_parameters(adapters);
        const double start = thread_seconds();
        std::visit(
            [&](auto& adapted) {
                train_few_shot(hosts_[s], adapted, language.few_shot[count], options_.few_shot_rows,
                               settings, derived_seed(seed, for_few_shot, 0));
            },
            adapters);
        outcome.seconds = thread_seconds() - start;
        outcome.bits = evaluate_any(hosts_[s], adapters, 0, language.evaluation);
        return outcome;
    }

    static double evaluate_any(const host_model& host, any_adapters& adapters, std::int64_t task,
                               const position_list& positions) {
        return std::visit([&](auto& known) { return evaluate(host, known, task, positions); },
                          adapters);
    }

    const experiment_options& options_;
    const phase_callback& begin_phase_;
    std::vector<prepared_language> host_languages_, training_, development_, test_;
    std::vector<position_list> training_positions_;

    std::vector<host_model> hosts_;          // [seeds]
    std::vector<any_adapters> trained_;      // [training methods, seeds]
    std::vector<multi_task_curves> curves_;  // [training methods, seeds]
    std::vector<few_shot_setting> settings_; // [few-shot methods, numbers of words]
    results found_;
};

} // namespace

results run_experiment(const corpus& words, const experiment_options& options,
                       const phase_callback& begin_phase) {
    return experiment(words, options, begin_phase).run();
}

} // namespace cross_task
