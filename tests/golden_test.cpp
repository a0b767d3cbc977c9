// Compares the library with the values that the reference implementations computed
// (golden/README.md: what the cases are, and how they are compared). The tables below say which
// cases are run; a new gate is one line there, and its code in support/golden_checks.hpp.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/golden_case.hpp"
#include "support/golden_checks.hpp"

namespace {

using mhr::test::golden_case;
using mhr::test::outcome;
using nlohmann::json;

// What is run: the cases whose kind and variant both are.

using check_function = void (*)(const golden_case&, outcome&);

constexpr const char* runs = "";
constexpr const char* not_yet = "not yet";

struct kind_row {
    std::string name;
    check_function check;     // nullptr: not yet
    check_function check_f32; // for dtype float32
};
const std::vector<kind_row> kinds{
    {"routing", mhr::test::check_routing<double>, mhr::test::check_routing<float>},
    {"peft_linear", mhr::test::check_routed_lora<double>, mhr::test::check_routed_lora<float>},
    {"mttl_lora", mhr::test::check_routed_lora<double>, mhr::test::check_routed_lora<float>},
    {"average_lora", mhr::test::check_average_lora<double>, mhr::test::check_average_lora<float>},
    {"peft_checkpoint", mhr::test::check_checkpoint, mhr::test::check_checkpoint},
    {"mttl_ia3", nullptr, nullptr},
    {"mttl_ia3_average", nullptr, nullptr},
    {"merge_after_op", nullptr, nullptr},
    {"stats", nullptr, nullptr},
    {"anneal_schedule", nullptr, nullptr},
};

/// The gate, or the storage type of a checkpoint; empty for kinds without.
const std::map<std::string, const char*> variants{
    {"", runs},
    {"sigmoid", runs},
    {"relaxed", runs},
    {"straight_through", not_yet},
    {"l2", not_yet},
    {"avgcorr", not_yet},
    {"shared", not_yet},
    {"dropout", not_yet},
    {"private", not_yet},
    {"average", not_yet},
    {"sigmoid_anneal", not_yet},
    {"relaxed_anneal", not_yet},
    {"l2_anneal", not_yet},
    {"relaxed_avgcorr", not_yet},
    {"relaxed_dropout", not_yet},
    {"relaxed_shared", not_yet},
    {"shared_avgcorr", not_yet},
    {"st_shared", not_yet},
    {"dropout_shared_avgcorr", not_yet},
    {"moe", "never: the peer normalises over the heads, and keeps three of them"},
    {"f32", runs},
    {"f16", not_yet},
    {"bf16", not_yet},
};

/// Why a case is not run, or nothing.
std::string reason_to_skip(const kind_row& kind, const golden_case& test) {
    const std::string variant = test.text("variant") + test.text("stored_dtype");
    const auto found = variants.find(variant);
    if (found == variants.end()) throw std::runtime_error("unknown variant '" + variant + "'");
    const std::string state = found->second;
    if (kind.check == nullptr) return not_yet;
    if (state != runs) return variant + " (" + state + ")";
    if (test.text("probs_clamp_active") == "true")
        return "probs_clamp_active (never: PyTorch clamps sigmoid(l), here l itself enters)";
    return {};
}

struct summary {
    int passed = 0;
    int failed = 0;
    int skipped = 0;
    outcome total;
    std::map<std::string, int> reasons;
};

/// The index and the file tell the same of a case.
void check_header(const golden_case& test, outcome& result) {
    std::vector<std::string> names;
    for (const auto& [name, entry] : test.file.tensors())
        names.push_back(name);
    if (test.entry.contains("tensors"))
        result.require(test.entry["tensors"] == names, "other tensors than in the index");
    for (const char* key : {"kind", "variant", "dtype", "stored_dtype"})
        result.require(test.entry.value(key, "") == test.text(key),
                       std::string(key) + ": not as in the index");
}

void run_case(const std::filesystem::path& root, const kind_row& kind, const json& entry,
              summary& sum) {
    outcome result;
    std::string reason;
    try {
        const golden_case test(root, entry);
        check_header(test, result);
        reason = reason_to_skip(kind, test);
        if (reason.empty()) {
            (test.text("dtype") == "float32" ? kind.check_f32 : kind.check)(test, result);
            result.require(result.compared > 0, "nothing was compared");
        }
    } catch (const std::exception& error) {
        result.failures.emplace_back(error.what());
    }

    if (!result.failures.empty())
        ++sum.failed;
    else if (reason.empty())
        ++sum.passed;
    else
        ++sum.skipped, ++sum.reasons[reason];
    for (const auto& failure : result.failures)
        sum.total.failures.push_back(entry.value("file", "?") + ": " + failure);
    sum.total.compared += result.compared;
    sum.total.worst = mhr::test::larger(sum.total.worst, result.worst);
}

/// Every file is in the index; that every case of the index has its files, running it shows.
void check_files(const std::filesystem::path& root, const json& index, outcome& result) {
    std::set<std::string> named;
    for (const json& entry : index.at("cases"))
        for (const char* key : {"file", "inputs", "adapter"})
            if (entry.contains(key)) named.insert(entry[key].get<std::string>());
    for (const auto& file : std::filesystem::recursive_directory_iterator(root)) {
        if (file.path().extension() != ".safetensors") continue;
        const std::string name = file.path().lexically_relative(root).generic_string();
        result.require(named.erase(name) == 1, name + ": not in the index");
    }
    for (const auto& name : named)
        result.failures.push_back(name + ": in the index, but missing");
}

/// One line for a kind, and one for each reason why cases of it are not run.
void print(const std::string& kind, const summary& sum) {
    const int run = sum.passed + sum.failed;
    std::printf("%-18s %3d run", kind.c_str(), run);
    if (run > 0)
        std::printf(", %zu values, worst error %.3f of its tolerance", sum.total.compared,
                    sum.total.worst);
    std::printf("\n");
    for (const auto& [reason, count] : sum.reasons)
        std::printf("    %3d skipped: %s\n", count, reason.c_str());
}

/// Returns if all cases that are run agree.
bool run_directory(const std::filesystem::path& root) {
    const std::string index_path = (root / "index.json").string();
    std::ifstream index_file(index_path);
    if (!index_file) throw std::runtime_error(index_path + ": missing");
    const json index = json::parse(index_file);
    outcome whole;
    whole.require(index.at("format") == 1, "unknown format of the index");
    check_files(root, index, whole);

    std::map<std::string, summary> sums;
    for (const json& entry : index.at("cases")) {
        const auto name = entry.at("kind").get<std::string>();
        const auto kind = std::find_if(kinds.begin(), kinds.end(),
                                       [&](const kind_row& row) { return row.name == name; });
        if (kind == kinds.end())
            whole.failures.push_back("unknown kind " + name);
        else
            run_case(root, *kind, entry, sums[name]);
    }

    int passed = 0;
    int failed = 0;
    int skipped = 0;
    for (const kind_row& kind : kinds) {
        const summary& sum = sums[kind.name];
        print(kind.name, sum);
        const int cases = sum.passed + sum.failed + sum.skipped;
        whole.require(cases > 0, "no case of the kind " + kind.name);
        whole.require(index.at("counts").value(kind.name, 0) == cases,
                      "not as many as the index counts: " + kind.name);
        whole.require(kind.check == nullptr || sum.passed + sum.failed > 0,
                      "no case was run of the kind " + kind.name);
        for (const auto& failure : sum.total.failures)
            whole.failures.push_back(failure);
        passed += sum.passed;
        failed += sum.failed;
        skipped += sum.skipped;
    }
    for (const auto& failure : whole.failures)
        std::printf("FAILED: %s\n", failure.c_str());
    std::printf("golden: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return whole.failures.empty();
}

} // namespace

int main() {
    const char* chosen = std::getenv("MHR_GOLDEN_DIR");
    try {
        return run_directory(chosen != nullptr ? chosen : MHR_GOLDEN_DEFAULT_DIR) ? EXIT_SUCCESS
                                                                                  : EXIT_FAILURE;
    } catch (const std::exception& error) {
        std::printf("FAILED: %s\n", error.what());
        return EXIT_FAILURE;
    }
}
