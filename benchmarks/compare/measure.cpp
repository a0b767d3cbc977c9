#include "measure.hpp"

#include <ctime>
#include <functional>
#include <memory>

#include <mhr/hosts/openmp.hpp>

#include "roofline.hpp"
#include "verify.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mhr_bench {

namespace {

template <class T>
void run_ours(layer<T>& of, pass which, mhr::executor_ref executor) {
    if (which == pass::forward || which == pass::train) of.forward(executor);
    if (which == pass::train || which == pass::backward) of.backward(executor);
    if (which == pass::backward_to_weights) of.backward_to_weights(executor);
}

template <class T>
void run_ours(layer<T>& of, pass which, int threads) {
    if (threads == 1)
        run_ours(of, which, mhr::executor_ref(mhr::serial_executor{}));
    else
        run_ours(of, which, mhr::executor_ref(mhr::openmp_executor{threads}));
}

/// Oracles are slow: they check the layers on which they take a second at most.
bool suits_oracle(const layer_case& c) {
    return c.rows() * c.in_features * c.out_features * c.rank <= 200'000'000;
}

std::string describe(const layer_case& sizes, const char* type, int threads, pass which,
                     const std::string& who) {
    return "case " + sizes.name + ", " + type + ", " + std::to_string(threads) + " threads, " +
           name_of(which) + ", " + who;
}

/// A library's ways to compute a layer, of which each pass has a fastest.
struct competitor {
    library of;
    peers ways;
    peer* fastest[std::size(all_passes)] = {};
    /// The fastest way forward on each of the further layers.
    peers on_further_layers{};
};

/// Cold memory concerns decoding alone.
bool is_measured(const layer_case& sizes, pass which) {
    return !sizes.is_cold() || which == pass::forward;
}

template <class T>
class measurement {
  public:
    measurement(const layer_case& sizes, int threads, const plan_of_measurement& plan)
        : ours_(sizes), threads_(threads), plan_(plan) {
        for (index_t i = 1; i < sizes.layers; ++i)
            further_.push_back(std::make_unique<layer<T>>(sizes));
#ifdef _OPENMP
        omp_set_num_threads(threads);
#endif
        const auto arrays = arrays_of(ours_);
        for (const library& candidate : plan.libraries)
            if (auto ways = candidate.of(arrays, threads); !ways.empty())
                competitors_.push_back({candidate, std::move(ways), {}});
    }

    void verify() {
        for (const pass which : all_passes) {
            if (which == pass::backward || !is_measured(ours_.sizes(), which))
                continue; // a part of training
            const auto run = [&](auto&& f) {
                if (which == pass::backward_to_weights) f(pass::forward); // leaves what it needs
                return outcome_of(ours_, which, [&] { f(which); });
            };
            const outcome ours = run([&](pass p) { run_ours(ours_, p, threads_); });
            const auto check = [&](const std::string& who, const outcome& expected,
                                   const outcome& found, double tolerance) {
                require_same(describe(ours_.sizes(), name_of_type<T>, threads_, which, who),
                             expected, found, tolerance);
            };
            if (which == pass::train && suits_oracle(ours_.sizes()))
                check("mhr against the oracle", oracle_of(ours_), ours, tolerance_of_ours<T>);
            for (const competitor& c : competitors_)
                for (const auto& way : c.ways)
                    if (way->can(which))
                        check(c.of.name, ours, run([&](pass p) { way->run(p); }),
                              tolerance_of_peers<T>);
        }
    }

    std::vector<measured_pass> time() {
        for (competitor& c : competitors_) {
            choose_ways(c);
            repeat_on_further_layers(c);
        }
        std::vector<contender> contenders;
        std::vector<double*> results;
        std::vector<measured_pass> passes;
        for (const pass which : all_passes)
            if (is_measured(ours_.sizes(), which))
                passes.push_back(
                    {ours_.sizes(), which, name_of_type<T>, threads_, {}, 0, 0, 0, 0, 0, {}});
        for (measured_pass& p : passes)
            for (const competitor& c : competitors_)
                if (c.fastest[index_of(p.which)]) p.peers.push_back({c.of.name, c.of.plays, 0});

        double all_threads = 0, one_thread = 0;
        for (measured_pass& p : passes) {
            const pass which = p.which;
            const auto add = [&](double& seconds, auto&& run) {
                contenders.push_back({run, static_cast<int>(index_of(which))});
                results.push_back(&seconds);
            };
            add(p.ours.seconds, in_turn([this, which](std::size_t i) {
                    return [&of = ours(i), which, this] { run_ours(of, which, threads_); };
                }));
            if (threads_ > 1 && which != pass::backward_to_weights)
                add(p.seconds_of_one_thread, in_turn([this, which](std::size_t i) {
                        return [&of = ours(i), which] { run_ours(of, which, 1); };
                    }));
            add(p.memory_seconds, in_turn([this, which](std::size_t i) {
                    return [this, arrays = arrays_of_pass(ours(i), which)] {
                        stream(arrays, threads_);
                    };
                }));
            std::size_t number = 0;
            for (const competitor& c : competitors_)
                if (peer* const way = c.fastest[index_of(which)])
                    add(p.peers[number++].seconds, in_turn([&c, way, which](std::size_t i) {
                            peer* const on_layer = i == 0 ? way : c.on_further_layers[i - 1].get();
                            return [on_layer, which] { on_layer->run(which); };
                        }));
        }
        constexpr index_t rounds = 200; // some tenths of a millisecond
        const int group = static_cast<int>(std::size(all_passes));
        contenders.push_back({[this] { multiply_add(rounds, threads_); }, group});
        results.push_back(&all_threads);
        double time = 0, processor_time = 0;
        contenders.push_back({[&time, &processor_time] {
                                  const auto start = std::clock();
                                  time += seconds_of([] { multiply_add(rounds, 1); });
                                  processor_time += static_cast<double>(std::clock() - start) /
                                                    static_cast<double>(CLOCKS_PER_SEC);
                              },
                              group});
        results.push_back(&one_thread);

        const auto times = time_in_turn(contenders, plan_.limits);
        for (std::size_t i = 0; i < times.size(); ++i)
            *results[i] = times[i].seconds;
        for (measured_pass& p : passes) {
            for (std::size_t i = 0; i < times.size(); ++i)
                if (results[i] == &p.ours.seconds) p.ours.spread = times[i].spread;
            p.share_of_processor = std::min(1.0, processor_time / time) * one_thread / all_threads;
            p.multiply_adds_per_second =
                static_cast<double>(multiply_adds_of_round * rounds * threads_) / all_threads;
            p.arithmetic_seconds = multiply_adds(ours_.sizes(), ours_.plan().row_order().extent(0),
                                                 ours_.plan().entries(), p.which) /
                                   p.multiply_adds_per_second;
        }
        return passes;
    }

  private:
    static std::size_t index_of(pass which) {
        return static_cast<std::size_t>(which);
    }

    layer<T>& ours(std::size_t i) {
        return i == 0 ? ours_ : *further_[i - 1];
    }

    /// A run for each of the layers, by `make(number of the layer)`, of which one after the other
    /// is run.
    template <class Make>
    std::function<void()> in_turn(Make&& make) {
        std::vector<std::function<void()>> runs;
        for (std::size_t i = 0; i <= further_.size(); ++i)
            runs.emplace_back(make(i));
        if (runs.size() == 1) return runs.front();
        return [runs = std::move(runs), next = std::size_t{0}]() mutable {
            runs[next]();
            next = next + 1 == runs.size() ? 0 : next + 1;
        };
    }

    void repeat_on_further_layers(competitor& c) {
        peer* const fastest = c.fastest[index_of(pass::forward)];
        if (fastest == nullptr || !c.on_further_layers.empty()) return;
        std::size_t number = 0;
        while (c.ways[number].get() != fastest)
            ++number;
        for (const auto& further : further_) {
            peers ways = c.of.of(arrays_of(*further), threads_);
            c.on_further_layers.push_back(std::move(ways[number]));
        }
    }

    void choose_ways(competitor& c) const {
        std::vector<contender> contenders;
        std::vector<std::pair<peer*, pass>> meaning;
        for (const auto& way : c.ways)
            for (const pass which : all_passes)
                if (way->can(which) && is_measured(ours_.sizes(), which)) {
                    contenders.push_back(
                        {[&way, which] { way->run(which); }, static_cast<int>(index_of(which))});
                    meaning.emplace_back(way.get(), which);
                }
        const auto times = c.ways.size() == 1
                               ? std::vector<timing>(contenders.size())
                               : time_in_turn(contenders, {plan_.limits.seconds / 40, 2, 15});
        double least[std::size(all_passes)];
        std::fill(std::begin(least), std::end(least), 1e9);
        for (std::size_t i = 0; i < times.size(); ++i) {
            const auto which = index_of(meaning[i].second);
            if (times[i].seconds >= least[which]) continue;
            least[which] = times[i].seconds;
            c.fastest[which] = meaning[i].first;
        }
    }

    layer<T> ours_;
    std::vector<std::unique_ptr<layer<T>>> further_;
    int threads_;
    const plan_of_measurement& plan_;
    std::vector<competitor> competitors_;
};

} // namespace

template <class T>
std::vector<measured_pass> measure(const layer_case& sizes, int threads,
                                   const plan_of_measurement& plan) {
    measurement<T> of(sizes, threads, plan);
    of.verify();
    if (plan.only_verify) return {};
    auto passes = of.time();
    if (!passes.front().disturbed()) return passes;
    // Another program was at work: perhaps it is done now.
    auto again = of.time();
    const bool better = again.front().share_of_processor > passes.front().share_of_processor;
    return better ? again : passes;
}

template std::vector<measured_pass> measure<float>(const layer_case&, int,
                                                   const plan_of_measurement&);
template std::vector<measured_pass> measure<bfloat16>(const layer_case&, int,
                                                      const plan_of_measurement&);

} // namespace mhr_bench
