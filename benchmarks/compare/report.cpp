#include "report.hpp"

#include <algorithm>
#include <cstdio>
#include <set>

#include <nlohmann/json.hpp>

namespace mhr_bench {

namespace {

std::string number(const char* format, double value) {
    char text[64];
    std::snprintf(text, sizeof text, format, value);
    return text;
}

std::string in_cells(const std::vector<std::string>& cells) {
    std::string line = "|";
    for (const std::string& cell : cells)
        line += " " + cell + " |";
    return line + "\n";
}

std::string heading(const std::vector<std::string>& cells) {
    std::string line = in_cells(cells) + "|";
    for (std::size_t i = 0; i < cells.size(); ++i)
        line += "---|";
    return line + "\n";
}

std::string table_of_pass(const report& of, pass which, const std::set<std::string>& names) {
    std::vector<std::string> columns{"case", "type", "threads", "ms", "± %", "roofline", "bound"};
    columns.insert(columns.end(), names.begin(), names.end());
    std::string text;
    for (const measured_pass& p : of.passes) {
        if (p.which != which) continue;
        std::vector<std::string> cells{p.sizes.name,
                                       p.type,
                                       std::to_string(p.threads) + (p.disturbed() ? "*" : ""),
                                       number("%.4f", 1e3 * p.ours.seconds),
                                       number("%.0f", 50 * p.ours.spread),
                                       number("%.2f", p.roofline_fraction()),
                                       p.arithmetic_seconds > p.memory_seconds ? "arithmetic"
                                                                               : "memory"};
        for (const std::string& name : names) {
            std::string ratio;
            for (const measured_peer& peer : p.peers)
                if (peer.name == name) ratio = number("%.2f", peer.seconds / p.ours.seconds);
            cells.push_back(ratio);
        }
        text += in_cells(cells);
    }
    if (text.empty()) return text;
    return std::string("\n## ") + name_of(which) + "\n\n" + heading(columns) + text;
}

std::string table_of_summary(const report& of) {
    std::string text = heading({"key", "value", "target", "met", "at the roofline", "what it is"});
    for (const summary_entry& e : of.summary)
        text += in_cells({"`" + e.key + "`", number("%.4g", e.value),
                          e.target ? (e.at_least ? ">= " : "<= ") + number("%g", *e.target) : "",
                          !e.target ? ""
                          : e.met() ? "yes"
                                    : "**no**",
                          e.at_roofline ? number("%.3g", *e.at_roofline) : "", e.meaning});
    std::set<std::string> names;
    for (const summary_entry& e : of.summary)
        for (const auto& [name, value] : e.parts)
            names.insert(name);
    if (!names.empty()) {
        std::vector<std::string> columns{"by type and threads"};
        columns.insert(columns.end(), names.begin(), names.end());
        text += "\n" + heading(columns);
    }
    for (const summary_entry& e : of.summary) {
        if (e.parts.empty()) continue;
        std::vector<std::string> cells{"`" + e.key + "`"};
        for (const std::string& name : names) {
            std::string part;
            for (const auto& [other, value] : e.parts)
                if (other == name) part = number("%.3g", value);
            cells.push_back(part);
        }
        text += in_cells(cells);
    }
    for (const summary_entry& e : of.summary) {
        if (e.shortfalls.empty()) continue;
        text += "\n`" + e.key + "` falls short";
        if (e.at_roofline && e.target &&
            (e.at_least ? *e.at_roofline < *e.target : *e.at_roofline > *e.target))
            text +=
                number(", and has to: at this machine's roofline it would be %.3g", *e.at_roofline);
        text += "; the worst:\n\n";
        for (const std::string& line : e.shortfalls)
            text += "- " + line + "\n";
    }
    return text;
}

std::string table_of_machine(const report& of) {
    double rate = 0;
    for (const measured_pass& p : of.passes)
        if (p.threads == 1) rate = std::max(rate, p.multiply_adds_per_second);
    std::string text = heading({"", ""});
    for (const auto& [name, value] : of.machine)
        text += in_cells({name, value});
    if (rate > 0)
        text += in_cells({"f32 peak of one thread, measured", number("%.0f GFLOP/s", 2e-9 * rate)});
    for (const std::string& reason : of.invalid_because)
        text += "\n**This report is not valid**: " + reason + ".\n";
    for (const measured_pass& p : of.passes)
        if (p.disturbed()) {
            text += "\n**Other programs were at work**: in some rounds they left less than 0.85 of "
                    "the processor.\n";
            break;
        }
    return text;
}

} // namespace

void keep_from(const std::string& text, const std::vector<library>& libraries, report& of) {
    const nlohmann::json earlier = nlohmann::json::parse(text);
    // A report of serving alone has none of these.
    if (!earlier.contains("rows")) return;
    const auto cases = standard_cases();
    const auto place_of = [&](const std::string& name) {
        std::size_t place = 0;
        while (place < cases.size() && cases[place].name != name)
            ++place;
        return place;
    };
    const std::vector<measured_pass> measured = of.passes;
    for (const auto& row : earlier.at("rows")) {
        const std::size_t place = place_of(row.at("case"));
        const bool anew =
            std::any_of(measured.begin(), measured.end(), [&](const measured_pass& p) {
                return p.sizes.name == row.at("case") && p.type == row.at("type") &&
                       p.threads == row.at("threads");
            });
        if (anew || place == cases.size()) continue;
        measured_pass p{cases[place],
                        pass::forward,
                        row.at("type"),
                        row.at("threads"),
                        {row.at("seconds"), row.at("spread")},
                        row.value("seconds_of_one_thread", 0.0),
                        row.at("arithmetic_seconds"),
                        row.at("memory_seconds"),
                        row.at("multiply_adds_per_second"),
                        row.at("share_of_processor"),
                        {}};
        for (const pass which : all_passes)
            if (row.at("pass") == name_of(which)) p.which = which;
        for (const auto& [name, ratio] : row.at("peers").items())
            for (const library& peer : libraries)
                if (peer.name == name)
                    p.peers.push_back({name, peer.plays, ratio.get<double>() * p.ours.seconds});
        of.passes.push_back(std::move(p));
    }
    std::stable_sort(of.passes.begin(), of.passes.end(),
                     [&](const measured_pass& a, const measured_pass& b) {
                         return place_of(a.sizes.name) < place_of(b.sizes.name);
                     });
    for (const auto& cost : earlier.at("costs"))
        if (std::none_of(of.costs.begin(), of.costs.end(),
                         [&](const measured_cost& c) { return c.key == cost.at("key"); }))
            of.costs.push_back({cost.at("key"), cost.at("ratio"), cost.at("text")});
    for (const auto& reason : earlier.at("invalid_because"))
        if (std::find(of.invalid_because.begin(), of.invalid_because.end(), reason) ==
            of.invalid_because.end())
            of.invalid_because.push_back(reason);
}

std::string as_json(const report& of) {
    using nlohmann::json;
    json result{{"machine", json::object()},
                {"valid", of.invalid_because.empty()},
                {"invalid_because", of.invalid_because},
                {"rows", json::array()},
                {"costs", json::array()},
                {"summary", json::object()},
                {"targets", json::object()}};
    for (const auto& [name, value] : of.machine)
        result["machine"][name] = value;
    for (const measured_pass& p : of.passes) {
        json row{{"case", p.sizes.name},
                 {"pass", name_of(p.which)},
                 {"type", p.type},
                 {"threads", p.threads},
                 {"seconds", p.ours.seconds},
                 {"spread", p.ours.spread},
                 {"roofline_fraction", p.roofline_fraction()},
                 {"arithmetic_seconds", p.arithmetic_seconds},
                 {"memory_seconds", p.memory_seconds},
                 {"multiply_adds_per_second", p.multiply_adds_per_second},
                 {"share_of_processor", p.share_of_processor},
                 {"peers", json::object()}};
        if (p.seconds_of_one_thread > 0) row["seconds_of_one_thread"] = p.seconds_of_one_thread;
        for (const measured_peer& peer : p.peers)
            row["peers"][peer.name] = peer.seconds / p.ours.seconds;
        result["rows"].push_back(row);
    }
    for (const measured_cost& cost : of.costs)
        result["costs"].push_back({{"key", cost.key}, {"ratio", cost.ratio}, {"text", cost.text}});
    for (const summary_entry& e : of.summary) {
        result["summary"][e.key] = e.value;
        if (e.at_roofline) result["at_roofline"][e.key] = *e.at_roofline;
        if (!e.target) continue;
        result["targets"][e.key] = {{e.at_least ? "at_least" : "at_most", *e.target},
                                    {"met", e.met()}};
    }
    return result.dump(2) + "\n";
}

std::string as_markdown(const report& of) {
    std::set<std::string> names;
    for (const measured_pass& p : of.passes)
        for (const measured_peer& peer : p.peers)
            names.insert(peer.name);
    std::string text = "# Benchmark\n\n" + table_of_machine(of);
    text += "\nTimes are medians of rounds in which all competitors took turns, on the same "
            "arrays; ± is half the distance of\ntheir quartiles. Under a peer's name: its time "
            "over ours, so above 1 it is slower. *roofline* is the share of the\nroofline's time "
            "in ours; the roofline is the larger of the pass's multiply-adds at the measured peak "
            "rate and the\ntime of a streaming loop over the arrays that the pass has to touch "
            "(*bound* tells which is larger), both measured in\nthe same rounds. *At the "
            "roofline*: the "
            "number of the summary if all of ours took the roofline's time, as no\nkernel can do "
            "better on this machine.\n";
    if (!of.summary.empty()) text += "\n## Summary\n\n" + table_of_summary(of);
    for (const pass which : all_passes)
        text += table_of_pass(of, which, names);
    if (!of.costs.empty()) {
        text += "\n## Costs\n\n" + heading({"key", "ratio", "of"});
        for (const measured_cost& cost : of.costs)
            text += in_cells({"`" + cost.key + "`", number("%.4g", cost.ratio), cost.text});
    }
    return text;
}

std::string as_short_markdown(const report& of) {
    return "# Benchmark\n\n" + table_of_machine(of) + "\n" + table_of_summary(of);
}

} // namespace mhr_bench
