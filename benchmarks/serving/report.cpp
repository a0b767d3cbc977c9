#include "report.hpp"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <stdexcept>

#include <nlohmann/json.hpp>

namespace mhr_bench {

namespace {

using nlohmann::json;

std::string number(const char* format, double value) {
    char text[64];
    std::snprintf(text, sizeof text, format, value);
    return text;
}

std::string milliseconds(double seconds) {
    return number("%.2f ms", 1e3 * seconds);
}

double tokens_per_second(const measured_serving& of, const timing& time) {
    return static_cast<double>(of.rows) / time.seconds;
}

std::string describe(const measured_serving& of) {
    const measured_way& ours = *of.find("mhr");
    std::string text =
        of.kind + ", " + std::to_string(of.rows) + " requests, " + std::to_string(of.distinct) +
        " adapters: base " + milliseconds(of.base.seconds) + ", with mhr " +
        milliseconds(ours.whole.seconds) + "; the adapters' part of " +
        milliseconds(ours.adapters_part) + " is bound by " +
        (of.arithmetic_seconds > of.memory_seconds ? "arithmetic" : "memory") + " (arithmetic " +
        milliseconds(of.arithmetic_seconds) + ", memory " + milliseconds(of.memory_seconds) + ")";
    for (const measured_way& other : of.ways)
        if (other.name != "mhr")
            text += "; " + other.name + " " + milliseconds(other.whole.seconds);
    return text;
}

std::string line(const std::vector<std::string>& cells) {
    std::string text = "|";
    for (const std::string& cell : cells)
        text += " " + cell + " |";
    return text + "\n";
}

std::string table_of_kind(const serving_report& of, const kind_of_adapters& kind) {
    std::vector<std::string> columns{"distinct adapters", "base only"};
    std::string text;
    std::size_t names = 0;
    for (const measured_serving& row : of.rows) {
        if (row.kind != kind.name) continue;
        if (text.empty()) {
            for (const measured_way& of_row : row.ways)
                columns.push_back(of_row.name);
            names = row.ways.size();
            columns.insert(columns.end(), {"overhead of mhr", "adapters' part", "its bound"});
        }
        std::vector<std::string> cells{std::to_string(row.distinct),
                                       number("%.1f", tokens_per_second(row, row.base))};
        for (std::size_t i = 0; i < names; ++i)
            cells.push_back(number("%.1f", tokens_per_second(row, row.ways[i].whole)) + " ± " +
                            number("%.0f %%", 50 * row.ways[i].whole.spread));
        const measured_way& ours = *row.find("mhr");
        cells.push_back(number("%.1f %%", 100 * ours.overhead));
        cells.push_back(milliseconds(ours.adapters_part));
        cells.push_back(milliseconds(row.bound()) +
                        (row.arithmetic_seconds > row.memory_seconds ? " arithmetic" : " memory"));
        text += line(cells);
    }
    if (text.empty()) return text;
    return "\n## Adapters: " + kind.what + "\n\nTokens per second:\n\n" + line(columns) +
           line(std::vector<std::string>(columns.size(), "---:")) + text;
}

std::string as_markdown(const serving_report& of, const std::vector<summary_entry>& summary) {
    const decoder_sizes& s = of.sizes;
    std::string text =
        "# Serving\n\nA step of decoding through the linear layers of " + std::to_string(s.blocks) +
        " blocks of width " + std::to_string(s.width) + " (keys " + std::to_string(s.key_width) +
        ", inner width " + std::to_string(s.inner_width) +
        "): " + number("%.2f GB", 1e-9 * of.base_bytes) + " of f32 base weights, " +
        std::to_string(of.threads) + " thread" + (of.threads == 1 ? "" : "s") + ", products by";
    for (std::size_t i = 0; i < of.base_libraries.size(); ++i)
        text += (i == 0 ? " " : ", ") + of.base_libraries[i];
    text += ". Each request has one row, and adapters are on every layer. *switching* serves the "
            "adapters one after the other, each with the rows of its requests alone. The adapters' "
            "part of a step is measured inside of it, and an overhead is that part over the rest; "
            "its bound is the larger of its multiply-adds at the peak rate and of a stream over "
            "its distinct bytes, both measured right behind.\n\n";
    for (const auto& [name, value] : of.machine)
        text += "- " + name + ": " + value + "\n";
    for (const std::string& reason : of.invalid_because)
        text += "\n**This report is not valid**: " + reason + ".\n";
    text +=
        "\n" + line({"key", "value", "target", "met", "what it is"}) + "|---|---:|---|---|---|\n";
    for (const summary_entry& e : summary)
        text += line({"`" + e.key + "`", number("%.4g", e.value),
                      e.target ? (e.at_least ? ">= " : "<= ") + number("%g", *e.target) : "",
                      !e.target ? ""
                      : e.met() ? "yes"
                                : "**no**",
                      e.meaning});
    for (const summary_entry& e : summary)
        for (const std::string& reason : e.shortfalls)
            text += "\n`" + e.key + "` falls short: " + reason + "\n";
    for (const kind_of_adapters& kind : kinds_of_adapters())
        text += table_of_kind(of, kind);
    return text;
}

json as_json(const serving_report& of) {
    json rows = json::array();
    for (const measured_serving& row : of.rows) {
        json seconds = json::object(), parts = json::object(), tokens = json::object();
        json spreads = json::object(), overheads = json::object();
        tokens["base only"] = tokens_per_second(row, row.base);
        for (const measured_way& of_row : row.ways) {
            seconds[of_row.name] = of_row.whole.seconds;
            parts[of_row.name] = of_row.adapters_part;
            spreads[of_row.name] = of_row.whole.spread;
            overheads[of_row.name] = of_row.overhead;
            tokens[of_row.name] = tokens_per_second(row, of_row.whole);
        }
        rows.push_back({{"kind", row.kind},
                        {"rows", row.rows},
                        {"distinct", row.distinct},
                        {"base_seconds", row.base.seconds},
                        {"seconds", seconds},
                        {"adapters_part_seconds", parts},
                        {"spread", spreads},
                        {"overhead", overheads},
                        {"tokens_per_second", tokens},
                        {"arithmetic_seconds", row.arithmetic_seconds},
                        {"memory_seconds", row.memory_seconds},
                        {"bound_seconds", row.bound()}});
    }
    json kinds = json::object();
    for (const kind_of_adapters& kind : kinds_of_adapters())
        kinds[kind.name] = kind.what;
    const decoder_sizes& s = of.sizes;
    return {{"model",
             {{"width", s.width},
              {"key_width", s.key_width},
              {"inner_width", s.inner_width},
              {"blocks", s.blocks},
              {"bytes", of.base_bytes},
              {"threads", of.threads},
              {"products_by", of.base_libraries}}},
            {"kinds", kinds},
            {"rows", rows}};
}

std::string text_of(const std::filesystem::path& path) {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

void write(const std::filesystem::path& path, const std::string& text) {
    std::ofstream file(path);
    file << text;
    if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
}

} // namespace

std::vector<summary_entry> summarise_serving(const serving_report& of) {
    std::vector<summary_entry> result;
    using value = std::optional<double>;
    using value_of = std::function<value(const measured_serving&, const measured_way& ours)>;
    const auto add = [&](const char* key, const char* kind, double target, bool at_least,
                         const char* meaning, const value_of& find) {
        for (const measured_serving& row : of.rows) {
            if (row.kind != kind || row.distinct != row.rows) continue;
            const value found = find(row, *row.find("mhr"));
            if (!found) continue;
            result.push_back({key, *found, {}, target, at_least, meaning, {}, {}});
            if (!result.back().met()) result.back().shortfalls.push_back(describe(row));
        }
    };
    const value_of overhead = [](const measured_serving&, const measured_way& ours) {
        return ours.overhead;
    };
    const auto part_of = [](const char* way) {
        return [way](const measured_serving& row, const measured_way& ours) -> value {
            const measured_way* other = row.find(way);
            if (other == nullptr) return {};
            return other->adapters_part / ours.adapters_part;
        };
    };
    add("serving_overhead_plain", "plain-16-bf16", 0.06, false,
        "adapters of rank 16 in bf16, one for each request", overhead);
    add("serving_plain_vs_bound", "plain-mixed", 1.3, false,
        "adapters of ranks 8, 16 and 64 in f32: their part over its bound",
        [](const measured_serving& row, const measured_way& ours) {
            return ours.adapters_part / row.bound();
        });
    add("serving_overhead_routed", "routed", 0.18, false,
        "MHR with 8 modules and 8 heads, a task for each request", overhead);
    add("serving_vs_switching", "plain-mixed", 4, true,
        "whole time of one adapter after the other over that of one batch",
        [](const measured_serving& row, const measured_way& ours) {
            return row.find("switching")->whole.seconds / ours.whole.seconds;
        });
    add("serving_vs_peft_mixed", "plain-mixed", 2, true,
        "adapters' part of PEFT's mixed batch over ours", part_of("PEFT mixed batch"));
    add("serving_vs_vllm_formula", "plain-mixed", 2, true,
        "adapters' part of vLLM's formula for CPUs over ours", part_of("vLLM's formula"));
    add("serving_vs_peft_routed", "routed", 2, true,
        "adapters' part of PEFT's Poly over ours, a task for each request",
        part_of("PEFT's formula"));
    return result;
}

std::string markdown_of_serving(const serving_report& of) {
    return as_markdown(of, summarise_serving(of));
}

void keep_from(const std::filesystem::path& folder, serving_report& of) {
    if (!std::filesystem::exists(folder / "report.json")) return;
    const json earlier = json::parse(text_of(folder / "report.json"));
    if (!earlier.contains("serving")) return;
    const std::vector<measured_serving> measured = of.rows;
    for (const json& row : earlier["serving"].at("rows")) {
        const bool anew =
            std::any_of(measured.begin(), measured.end(), [&](const measured_serving& other) {
                return other.kind == row.at("kind");
            });
        if (anew) continue;
        measured_serving kept{row.at("kind"),
                              row.at("rows"),
                              row.at("distinct"),
                              {row.at("base_seconds"), 0},
                              {},
                              row.at("arithmetic_seconds"),
                              row.at("memory_seconds")};
        const auto add = [&](const std::string& name) {
            kept.ways.push_back({name,
                                 {row.at("seconds").at(name), row.at("spread").at(name)},
                                 row.at("adapters_part_seconds").at(name),
                                 row.at("overhead").at(name)});
        };
        add("mhr");
        for (const auto& [name, seconds] : row.at("seconds").items())
            if (name != "mhr") add(name);
        of.rows.push_back(std::move(kept));
    }
    const auto place_of = [kinds = kinds_of_adapters()](const measured_serving& row) {
        return std::find_if(kinds.begin(), kinds.end(),
                            [&](const kind_of_adapters& kind) { return kind.name == row.kind; }) -
               kinds.begin();
    };
    std::stable_sort(of.rows.begin(), of.rows.end(),
                     [&](const measured_serving& a, const measured_serving& b) {
                         return place_of(a) < place_of(b);
                     });
}

void write_serving_report(const serving_report& of, const std::filesystem::path& folder) {
    std::filesystem::create_directories(folder);
    const auto summary = summarise_serving(of);
    json all = json::object();
    if (std::filesystem::exists(folder / "report.json"))
        all = json::parse(text_of(folder / "report.json"));
    else
        for (const auto& [name, value] : of.machine)
            all["machine"][name] = value;
    all["valid"] = all.value("valid", true) && of.invalid_because.empty();
    all["serving"] = as_json(of);
    for (const summary_entry& e : summary) {
        all["summary"][e.key] = e.value;
        all["targets"][e.key] = {{e.at_least ? "at_least" : "at_most", *e.target},
                                 {"met", e.met()}};
    }
    write(folder / "report.json", all.dump(2) + "\n");
    // In the place of an older one.
    std::string markdown = text_of(folder / "report.md");
    markdown.erase(std::min(markdown.find("# Serving\n"), markdown.size()));
    if (!markdown.empty() && markdown.back() == '\n') markdown += "\n";
    write(folder / "report.md", markdown + as_markdown(of, summary));
}

} // namespace mhr_bench
