// Compares the library with the values that the reference implementations computed
// (golden/README.md and golden2/README.md: what the cases are, and how they are compared). The
// tables below say how each kind is run, and which cases are not; the code of a kind is in
// support/golden_*_checks.hpp.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/golden_arrow_checks.hpp"
#include "support/golden_case.hpp"
#include "support/golden_checkpoint_checks.hpp"
#include "support/golden_dora_checks.hpp"
#include "support/golden_ia3_checks.hpp"
#include "support/golden_lora_checks.hpp"
#include "support/golden_lora_list_checks.hpp"
#include "support/golden_merge_checks.hpp"
#include "support/golden_routing_checks.hpp"
#include "support/golden_row_routing_checks.hpp"
#include "support/golden_rules.hpp"
#include "support/golden_statistics_checks.hpp"

namespace {

using namespace mhr::test;
using nlohmann::json;

using check_function = void (*)(const golden_case&, outcome&);

struct kind_row {
    std::string name;
    check_function check;
    check_function check_f32; // for dtype float32
};
/// The kinds of routers of tasks, in golden/.
const std::vector<kind_row> first_kinds{
    {"routing", check_routing<double>, check_routing<float>},
    {"peft_linear", check_routed_lora<double>, check_routed_lora<float>},
    {"mttl_lora", check_routed_lora<double>, check_routed_lora<float>},
    {"average_lora", check_average_lora<double>, check_average_lora<float>},
    {"merge_after_op", check_output_mixed_lora<double>, check_output_mixed_lora<float>},
    {"mttl_ia3", check_routed_ia3<double>, check_routed_ia3<float>},
    {"mttl_ia3_average", check_average_ia3<double>, check_average_ia3<float>},
    {"peft_checkpoint", check_checkpoint, nullptr},
    {"anneal_schedule", check_anneal_schedule, nullptr},
    {"stats", check_statistics<double>, check_statistics<float>},
};
/// golden2/ has the kinds of routers of rows, of combined adapters, of DoRA and of lists of
/// adapters.
const std::vector<kind_row> second_kinds{
    {"arrow", check_arrow<double>, check_arrow<float>},
    {"row_routing", check_row_routing<double>, check_row_routing<float>},
    {"merge", check_merge<double>, check_merge<float>},
    {"dora", check_dora<double>, check_dora<float>},
    {"lora_bias", check_lora_bias<double>, check_lora_bias<float>},
    {"mixed_batch", check_mixed_batch<double>, check_mixed_batch<float>},
};

// Flags of the router. A case has those of its variant, and no others.
constexpr const char* relaxed = "module_logits_relaxed_bernoulli";
constexpr const char* rounded = "module_logits_straight_through";
constexpr const char* l2 = "module_logits_l2_norm";
constexpr const char* dropout = "module_logits_dropout";
constexpr const char* shared = "poly_use_shared_skill";
constexpr const char* corrected = "poly_average_correction";
constexpr const char* annealed = "alpha";
const std::set<std::string> flags{relaxed, rounded, l2, dropout, shared, corrected, annealed};

/// The variants of the router; empty for kinds without.
const std::map<std::string, std::set<std::string>> variants{
    {"", {}},
    {"sigmoid", {}},
    {"sigmoid_anneal", {annealed}},
    {"relaxed", {relaxed}},
    {"relaxed_anneal", {relaxed, annealed}},
    {"relaxed_avgcorr", {relaxed, corrected}},
    {"relaxed_dropout", {relaxed, dropout}},
    {"relaxed_shared", {relaxed, shared}},
    {"straight_through", {rounded}},
    {"st_shared", {rounded, shared}},
    {"l2", {l2}},
    {"l2_anneal", {l2, annealed}},
    {"avgcorr", {corrected}},
    {"shared", {shared}},
    {"shared_avgcorr", {shared, corrected}},
    {"dropout", {dropout}},
    {"dropout_shared_avgcorr", {dropout, shared, corrected}},
    {"private", {}},
    {"average", {}},
    {"moe", {}},
};

std::set<std::string> words_of(const std::string& text) {
    std::istringstream stream(text);
    return {std::istream_iterator<std::string>(stream), {}};
}

/// The variants of the second kinds.
const std::set<std::string> second_variants{"",
                                            "peft",
                                            "init",
                                            "mttl_svd",
                                            "gate_mixlora",
                                            "gate_mttl_rkhs",
                                            "mttl_arrow",
                                            "mttl_phatgoose",
                                            "mttl_phatgoose_gate",
                                            "xlora_classifier",
                                            "xlora_dense",
                                            "xlora_dense_bias",
                                            "xlora_softmax",
                                            "xlora_topk",
                                            "xlora_topk_softmax",
                                            "xlora_original_dense",
                                            "xlora_original_topk",
                                            "xlora_original_topk_softmax"};

/// The other metadata that are known: what is computed from, which a check must have asked for, and
/// what is only told (some of it serves a check where there is need of it).
const std::set<std::string> computed_from =
    words_of("dtype stored_dtype n_splits n_skills batch seq d_in d_out rank bias repeat "
             "temperature scaling scaling_rule lora_alpha warmup_factor training_steps_used "
             "total_steps uniform_interp_steps n_encoder n_decoder modules eps tol tol_y64 "
             "probs_clamp_active");
const std::set<std::string> only_told =
    words_of("case kind variant mode n_tasks source logit_style topk temperature_patched "
             "ill_conditioned uniform_clamp_active");

const std::set<std::string> second_computed_from = words_of(
    "dtype n_adapters n_general top_k temperature batch seq d_in d_out rank use_gks "
    "power_iterations power_eps tol tol_prototypes tol_weights float32_softmax softmax_topk "
    "global_scaling_weight layer_number n_layers ranks lora_bias hidden_size depth "
    "layerwise_scalings enable_softmax input_norm proto_norm scaling layer_norm_eps "
    "combination_type majority_sign_method density use_rslora merged_rank merged_alpha "
    "merged_scaling lora_alpha bias");
const std::set<std::string> second_only_told =
    words_of("case kind variant source rng_seed worst_cosine tiny_B scalings_style style alphas");

/// A folder of cases.
struct golden_set {
    const std::vector<kind_row>& kinds;
    const std::set<std::string>& computed_from;
    const std::set<std::string>& only_told;
    bool has_flags; ///< of the router
};
const golden_set first_set{first_kinds, computed_from, only_told, true};
const golden_set second_set{second_kinds, second_computed_from, second_only_told, false};

/// Why a case is never run, or nothing.
std::string reason_to_skip(const golden_case& test) {
    if (test.text("variant") == "xlora_original_topk_softmax")
        return "xlora_original_topk_softmax (never: one softmax over all rows of the batch, which "
               "makes a row's weights depend on the rows beside it)";
    if (test.text("variant") == "moe")
        return "moe (never: the peer normalises over the heads, and keeps three of them)";
    if (test.flag("probs_clamp_active"))
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

/// A case has the flags of its variant.
void check_flags(const golden_case& test, outcome& result) {
    const auto& metadata = test.file.metadata(); // directly: this is no use of them
    const std::string variant = test.text("variant");
    const auto found = variants.find(variant);
    if (found == variants.end()) throw std::runtime_error("unknown variant '" + variant + "'");
    for (const auto& [key, value] : metadata) {
        if (flags.count(key) != 0)
            result.require(found->second.count(key) == 1, key + ": not a flag of the variant");
        else
            result.require(computed_from.count(key) + only_told.count(key) == 1,
                           "unknown metadata " + key);
    }
    for (const auto& key : found->second)
        result.require(metadata.count(key) == 1, "not " + key + ", as the variant says");
    result.require(test.flag("probs_clamp_active") == has_clamped_logits(test),
                   "probs_clamp_active: the logits tell otherwise");
    result.require(
        mhr::is_exactly(test.number_or("eps", mhr::normaliser_epsilon), mhr::normaliser_epsilon),
        "another eps");
}

/// The index and the file tell the same of a case, and nothing that is not known.
void check_header(const golden_set& set, const golden_case& test, outcome& result) {
    const auto& metadata = test.file.metadata(); // directly: this is no use of them
    const std::set<std::string> paths{"file", "inputs", "config", "adapter"};
    for (const auto& [key, value] : test.entry.items()) {
        if (paths.count(key) != 0) continue;
        if (key == "tensors") {
            std::vector<std::string> names;
            for (const auto& [name, entry] : test.file.tensors())
                names.push_back(name);
            result.require(value == names, "other tensors than in the index");
        } else {
            const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
            result.require(metadata.count(key) == 1 && metadata.at(key) == text,
                           key + ": not as in the index");
        }
    }

    const std::string name = test.text("case");
    result.require(!name.empty() && test.entry.at("file").get<std::string>().find(name) == 0,
                   "case: not the name of the file");
    if (set.has_flags) return check_flags(test, result);
    result.require(second_variants.count(test.text("variant")) == 1, "unknown variant");
    for (const auto& [key, value] : metadata)
        result.require(set.computed_from.count(key) + set.only_told.count(key) == 1,
                       "unknown metadata " + key);
}

/// Every number of a case that was run had a part in it.
void check_use(const golden_set& set, const golden_case& test, outcome& result) {
    result.require(result.compared > 0, "nothing was compared");
    result.require_all_read(test.file);
    for (const auto& [key, value] : test.file.metadata())
        result.require(set.only_told.count(key) == 1 || test.was_used(key), key + ": not used");
}

/// The check of a case by its dtype; kinds without have a single one.
check_function check_of(const kind_row& kind, const golden_case& test) {
    const std::string dtype = test.text("dtype");
    const bool has_dtype = kind.check_f32 != nullptr;
    if (dtype == (has_dtype ? "float64" : "")) return kind.check;
    if (dtype == "float32" && has_dtype) return kind.check_f32;
    throw std::runtime_error("unknown dtype '" + dtype + "'");
}

void run_case(const std::filesystem::path& root, const golden_set& set, const kind_row& kind,
              const json& entry, summary& sum) {
    outcome result;
    std::string reason;
    try {
        const golden_case test(root, entry);
        check_header(set, test, result);
        reason = reason_to_skip(test);
        if (reason.empty()) {
            check_of(kind, test)(test, result);
            check_use(set, test, result);
        }
    } catch (const std::exception& error) {
        result.failures.emplace_back(error.what());
    }

    if (!result.failures.empty()) {
        ++sum.failed;
    } else if (reason.empty()) {
        ++sum.passed;
    } else {
        ++sum.skipped;
        ++sum.reasons[reason];
    }
    for (const auto& failure : result.failures)
        sum.total.failures.push_back(entry.value("file", "?") + ": " + failure);
    sum.total.compared += result.compared;
    sum.total.worst = larger(sum.total.worst, result.worst);
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
    const json& all_cases = index.at("cases");
    const std::string first_kind = all_cases.empty() ? "" : all_cases[0].value("kind", "");
    const bool is_second = std::any_of(second_kinds.begin(), second_kinds.end(),
                                       [&](const kind_row& row) { return row.name == first_kind; });
    const golden_set& set = is_second ? second_set : first_set;
    outcome whole;
    whole.require(index.at("format") == 1, "unknown format of the index");
    check_files(root, index, whole);

    std::map<std::string, summary> sums;
    for (const json& entry : all_cases) {
        const auto name = entry.at("kind").get<std::string>();
        const auto kind = std::find_if(set.kinds.begin(), set.kinds.end(),
                                       [&](const kind_row& row) { return row.name == name; });
        if (kind == set.kinds.end())
            whole.failures.push_back("unknown kind " + name);
        else
            run_case(root, set, *kind, entry, sums[name]);
    }

    int passed = 0;
    int failed = 0;
    int skipped = 0;
    for (const kind_row& kind : set.kinds) {
        const summary& sum = sums[kind.name];
        print(kind.name, sum);
        const int cases = sum.passed + sum.failed + sum.skipped;
        whole.require(cases > 0, "no case of the kind " + kind.name);
        whole.require(index.at("counts").value(kind.name, 0) == cases,
                      "not as many as the index counts: " + kind.name);
        whole.require(sum.passed + sum.failed > 0, "no case was run of the kind " + kind.name);
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
        bool agree = true;
        for (const std::string root :
             {chosen != nullptr ? chosen : MHR_GOLDEN_DEFAULT_DIR, MHR_GOLDEN_DEFAULT_DIR "2"}) {
            agree = run_directory(root) && agree;
            if (chosen != nullptr) break;
        }
        return agree ? EXIT_SUCCESS : EXIT_FAILURE;
    } catch (const std::exception& error) {
        std::printf("FAILED: %s\n", error.what());
        return EXIT_FAILURE;
    }
}
