#include "summary.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <optional>

namespace mhr_bench {

namespace {

/// A number that one measured pass contributes.
struct cell {
    const measured_pass* of;
    double value;
    std::string against;
    /// What the number would be if ours took the roofline's time.
    std::optional<double> at_roofline{};
};

std::string describe(const cell& c) {
    const measured_pass& p = *c.of;
    char text[320];
    std::snprintf(text, sizeof text,
                  "%s, %s, %s, %d thread%s: %.2f%s%s; %.4f ms, of the roofline %.2f, bound by %s "
                  "(arithmetic %.4f ms, memory %.4f ms)",
                  p.sizes.name.c_str(), name_of(p.which), p.type.c_str(), p.threads,
                  p.threads == 1 ? "" : "s", c.value, c.against.empty() ? "" : " against ",
                  c.against.c_str(), 1e3 * p.ours.seconds, p.roofline_fraction(),
                  p.arithmetic_seconds > p.memory_seconds ? "arithmetic" : "memory",
                  1e3 * p.arithmetic_seconds, 1e3 * p.memory_seconds);
    return text;
}

enum class combination { geometric_mean, least, greatest };

double combine(const std::vector<double>& values, combination how) {
    double logarithms = 0, least = values.front(), greatest = least;
    for (const double value : values) {
        logarithms += std::log(value);
        least = std::min(least, value);
        greatest = std::max(greatest, value);
    }
    switch (how) {
    case combination::least:
        return least;
    case combination::greatest:
        return greatest;
    case combination::geometric_mean:
        break;
    }
    return std::exp(logarithms / static_cast<double>(values.size()));
}

double combine(const std::vector<cell>& cells, combination how) {
    std::vector<double> values;
    for (const cell& c : cells)
        values.push_back(c.value);
    return combine(values, how);
}

/// Nothing, unless each cell has such a number.
std::optional<double> combine_at_roofline(const std::vector<cell>& cells, combination how) {
    std::vector<double> values;
    for (const cell& c : cells)
        if (c.at_roofline) values.push_back(*c.at_roofline);
    if (values.size() != cells.size()) return {};
    return combine(values, how);
}

using value_of = std::function<std::optional<cell>(const measured_pass&)>;

/// The fastest of the peers that play one of the roles, over ours.
std::optional<cell> against(const measured_pass& p, std::initializer_list<library::role> roles) {
    const measured_peer* best = nullptr;
    for (const measured_peer& peer : p.peers)
        if (std::find(roles.begin(), roles.end(), peer.plays) != roles.end())
            if (!best || peer.seconds < best->seconds) best = &peer;
    if (!best) return {};
    return cell{&p, best->seconds / p.ours.seconds, best->name,
                best->seconds / p.roofline_seconds()};
}

value_of of_pass(pass which, std::function<std::optional<cell>(const measured_pass&)> value) {
    return [which, value = std::move(value)](const measured_pass& p) {
        return p.which == which ? value(p) : std::nullopt;
    };
}

std::optional<cell> roofline(const measured_pass& p) {
    const bool counts = p.threads == 1 && (p.which == pass::forward || p.which == pass::train);
    if (!counts) return {};
    return cell{&p, p.roofline_fraction(), ""};
}

/// Layers that fit L1 are bound by what a call costs, and cold ones by memory alone: they are
/// reported apart, lest they hide what becomes of the others.
/// @{
bool is_small(const measured_pass& p) {
    return p.sizes.name == "small";
}
bool is_ordinary(const measured_pass& p) {
    return !is_small(p) && !p.sizes.is_cold();
}
value_of where(bool (*counts)(const measured_pass&), value_of value) {
    return [counts, value = std::move(value)](const measured_pass& p) {
        return counts(p) ? value(p) : std::nullopt;
    };
}
/// @}

value_of of_type(const char* type, value_of value) {
    return [type, value = std::move(value)](const measured_pass& p) {
        return p.type == type ? value(p) : std::nullopt;
    };
}

/// The same pass of the same case with another number of threads, or another pass.
const measured_pass* find(const std::vector<measured_pass>& passes, const measured_pass& like,
                          pass which, int threads) {
    for (const measured_pass& p : passes)
        if (p.which == which && p.threads == threads && p.sizes.name == like.sizes.name &&
            p.type == like.type)
            return &p;
    return nullptr;
}

value_of two_threads(const std::vector<measured_pass>& passes) {
    return [&passes](const measured_pass& p) -> std::optional<cell> {
        const bool counts = p.threads == 2 && p.type == "f32" && p.sizes.rows() >= 512 &&
                            (p.which == pass::forward || p.which == pass::train);
        if (!counts) return {};
        cell result{&p, p.seconds_of_one_thread / p.ours.seconds, "one thread"};
        if (const measured_pass* alone = find(passes, p, p.which, 1))
            result.at_roofline = alone->roofline_seconds() / p.roofline_seconds();
        return result;
    };
}

value_of of_small(library::role role) {
    return [role](const measured_pass& p) -> std::optional<cell> {
        const bool counts =
            is_small(p) && p.which == pass::forward && p.threads == 1 && p.type == "f32";
        return counts ? against(p, {role}) : std::nullopt;
    };
}

class summary {
  public:
    explicit summary(const std::vector<measured_pass>& passes) : passes_(passes) {}

    void add(const char* key, combination how, std::optional<double> target, bool at_least,
             const char* meaning, const value_of& value) {
        std::vector<cell> cells;
        for (const measured_pass& p : passes_)
            if (const auto found = value(p)) cells.push_back(*found);
        if (cells.empty()) return;
        summary_entry entry{key,
                            combine(cells, how),
                            combine_at_roofline(cells, how),
                            target,
                            at_least,
                            meaning,
                            {},
                            {}};
        std::map<std::string, std::vector<cell>> parts;
        for (const cell& c : cells)
            parts[c.of->type + ", " + std::to_string(c.of->threads)].push_back(c);
        if (parts.size() > 1)
            for (const auto& [name, of_part] : parts)
                entry.parts.emplace_back(name, combine(of_part, how));
        if (!entry.met()) {
            std::sort(cells.begin(), cells.end(), [&](const cell& a, const cell& b) {
                return at_least ? a.value < b.value : a.value > b.value;
            });
            for (std::size_t i = 0; i < std::min<std::size_t>(cells.size(), 3); ++i)
                entry.shortfalls.push_back(describe(cells[i]));
        }
        entries.push_back(std::move(entry));
    }

    void add(const std::vector<measured_cost>& costs, const char* key, double target, bool at_least,
             const char* meaning) {
        for (const measured_cost& cost : costs)
            if (cost.key == key) {
                entries.push_back({key, cost.ratio, {}, target, at_least, meaning, {}, {}});
                if (!entries.back().met()) entries.back().shortfalls.push_back(cost.text);
            }
    }

    std::vector<summary_entry> entries;

  private:
    const std::vector<measured_pass>& passes_;
};

/// Time of the backward to the weights alone over that of the backward to everything.
value_of weights_alone(const std::vector<measured_pass>& passes) {
    return [&passes](const measured_pass& p) -> std::optional<cell> {
        if (p.which != pass::backward_to_weights || p.threads != 1 || p.type != "f32") return {};
        const measured_pass* full = find(passes, p, pass::backward, p.threads);
        if (full == nullptr) return {};
        return cell{&p, p.ours.seconds / full->ours.seconds, "the full backward",
                    p.roofline_seconds() / full->roofline_seconds()};
    };
}

} // namespace

std::vector<summary_entry> summarise(const std::vector<measured_pass>& passes,
                                     const std::vector<measured_cost>& costs) {
    using role = library::role;
    constexpr auto mean = combination::geometric_mean;
    constexpr auto least = combination::least;
    const auto best = [](const measured_pass& p) {
        return against(p, {role::grouped, role::framework});
    };
    const auto best_by_hand = [](const measured_pass& p) { return against(p, {role::grouped}); };
    const auto peft = [](const measured_pass& p) { return against(p, {role::peft_formula}); };
    const auto alone = weights_alone(passes);

    const auto ordinary = [](value_of value) { return where(is_ordinary, std::move(value)); };
    const auto is_cold = [](const measured_pass& p) { return p.sizes.is_cold(); };

    summary s(passes);
    s.add("roofline_geomean", mean, 0.62, true,
          "fraction of the roofline, f32, 1 thread, forward and forward+backward, without small",
          of_type("f32", ordinary(roofline)));
    s.add("roofline_min", least, 0.40, true, "the least of these",
          of_type("f32", ordinary(roofline)));
    s.add("roofline_bf16_geomean", mean, 0.62, true, "the same of bf16",
          of_type("bf16", ordinary(roofline)));
    s.add("roofline_bf16_min", least, 0.40, true, "the least of these",
          of_type("bf16", ordinary(roofline)));
    s.add("forward_vs_best_peer_geomean", mean, 1.6, true,
          "forward, time of the best peer that mixes once for each task over ours, all types and "
          "threads, without small",
          ordinary(of_pass(pass::forward, best)));
    s.add("forward_vs_best_peer_min", least, 1.0, true, "the least of all cells",
          of_pass(pass::forward, best));
    s.add("forward_vs_peft_geomean", mean, 5, true,
          "forward, PEFT's formula in LibTorch over ours, without small",
          ordinary(of_pass(pass::forward, peft)));
    s.add("train_vs_peft_geomean", mean, 5, true,
          "forward+backward, PEFT's formula differentiated by LibTorch over ours, without small",
          ordinary(of_pass(pass::train, peft)));
    s.add("train_vs_best_peer_geomean", mean, 1.7, true,
          "forward+backward, the best backward written by hand on Eigen, OpenBLAS or oneDNN over "
          "ours, without small",
          ordinary(of_pass(pass::train, best_by_hand)));
    s.add("train_vs_best_peer_min", least, 1.0, true, "the least of all cells",
          of_pass(pass::train, best_by_hand));
    s.add("cold_decode_roofline", least, {}, true,
          "decoding with adapters from memory: the least fraction of the roofline",
          where(is_cold, roofline));
    s.add("cold_decode_vs_best_peer", least, 1.0, true,
          "the same against the best peer, 1 thread "
          "and 2",
          where(is_cold, of_pass(pass::forward, best)));
    s.add("small_roofline", least, {}, true,
          "small, whose arrays fit L1: the least fraction of the roofline",
          where(is_small, roofline));
    s.add("small_vs_best_peer", least, 1.0, true, "small, forward, the best peer over ours",
          where(is_small, of_pass(pass::forward, best)));
    s.add("threads2_geomean", mean, 1.8, true,
          "one thread over two, f32, 512 rows or more, forward and forward+backward",
          two_threads(passes));
    s.add(costs, "heads_cost", 1.03, false, "batch with 64 heads over 1 head");
    s.add(costs, "tasks_cost", 1.15, false, "batch with 8 tasks over 1 task");
    s.add(costs, "base_rows_cost", 1.05, false,
          "batch, half of its sequences of no task, over a batch of the other half alone");
    s.add("small_vs_loops", mean, 1.0, true, "small, forward, plain loops over ours",
          of_small(role::plain));
    s.add("small_vs_peft", mean, 40, true, "small, forward, PEFT's formula in LibTorch over ours",
          of_small(role::peft_formula));
    s.add("z_backward_cost", mean, 0.6, false,
          "backward to the weights alone over the full backward, f32, 1 thread", alone);
    s.add("z_backward_cost_worst", combination::greatest, {}, false, "the greatest of these",
          alone);
    s.add(costs, "bf16_mix_speedup", 1.8, true, "mixing from memory, f32 over bf16 storage");
    s.add(costs, "overhead_prefill", 0.013, false,
          "prefill, the adapter over the layer's own product");
    s.add(costs, "overhead_decode", 0.015, false,
          "decode-1, the adapter over the layer's own product");
    return std::move(s.entries);
}

} // namespace mhr_bench
