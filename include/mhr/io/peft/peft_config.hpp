#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

#include <mhr/core/error.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/files/file_path.hpp>
#include <mhr/io/files/foreign_content.hpp>
#include <mhr/io/files/json.hpp>
#include <mhr/io/files/mapped_file.hpp>
#include <mhr/io/files/printable.hpp>
#include <mhr/io/files/replace_file.hpp>
#include <mhr/io/peft/layer_pattern.hpp>

/// \file
/// The configuration of an adapter of PEFT (https://github.com/huggingface/peft),
/// adapter_config.json. Every key is kept as it came, for the way back to Python. null stands for
/// PEFT's default, whatever the key. An unknown key is kept, too, if it switches nothing on: PEFT
/// writes every field that it has. One that has a value is an error that names it, and so is a
/// value of another kind than PEFT's, or one that changes what the adapter computes in a way that
/// is not known here: "peft: FILE: key 'r': expected ..., got ...".

namespace mhr {
inline namespace MHR_ISA {

/// The name of the file in an adapter's folder.
inline constexpr const char* peft_config_file = "adapter_config.json";

namespace peft_details {

using json_details::json;

/// What a key may hold, null aside, which every key may.
enum class key_kind {
    any,      ///< what does not matter for what the adapter computes
    flag,     ///< true or false
    text,     ///< a string
    count,    ///< an integer from 1
    number,   ///< a finite number
    names,    ///< a string (a regular expression) or a list of strings (last parts of names)
    patterns, ///< an object of numbers, its names being patterns of layers
    off       ///< false or nothing: a feature that is not known here
};
struct key_rule {
    const char* key;
    key_kind kind;
};

inline constexpr key_rule common_keys[] = {
    {"auto_mapping", key_kind::any},      {"base_model_name_or_path", key_kind::text},
    {"exclude_modules", key_kind::names}, {"inference_mode", key_kind::flag},
    {"modules_to_save", key_kind::names}, {"peft_type", key_kind::text},
    {"peft_version", key_kind::text},     {"revision", key_kind::text},
    {"target_modules", key_kind::names},  {"task_type", key_kind::text}};

inline const char* describe(key_kind kind) {
    switch (kind) {
    case key_kind::flag:
        return "true, false or null";
    case key_kind::text:
        return "a string or null";
    case key_kind::count:
        return "an integer from 1, or null";
    case key_kind::number:
        return "a finite number or null";
    case key_kind::names:
        return "null, a string or a list of strings";
    case key_kind::patterns:
        return "null or an object of numbers";
    case key_kind::off:
        return "null, false or nothing (what it switches on is not known here: train without it)";
    case key_kind::any:
        break;
    }
    return "anything";
}

inline bool is_number(const json& value) {
    return value.is_number() && std::isfinite(value.get<double>());
}

inline bool fits(const json& value, key_kind kind) {
    if (value.is_null()) return true;
    const auto all = [&](auto&& holds) { return std::all_of(value.begin(), value.end(), holds); };
    switch (kind) {
    case key_kind::flag:
        return value.is_boolean();
    case key_kind::text:
        return value.is_string();
    case key_kind::count:
        return value.is_number_integer() && value.get<std::int64_t>() >= 1 &&
               value.get<std::int64_t>() <= std::int64_t(1) << 31;
    case key_kind::number:
        return is_number(value);
    case key_kind::names:
        return value.is_string() ||
               (value.is_array() && all([](const json& name) { return name.is_string(); }));
    case key_kind::patterns:
        return value.is_object() && all(is_number);
    case key_kind::off:
        return value == false || (value.is_structured() && value.empty());
    case key_kind::any:
        break;
    }
    return true;
}

/// Refused: a folder that is not there, or is a file.
inline void require_folder(const std::filesystem::path& folder) {
    std::error_code ignored;
    if (!std::filesystem::is_directory(folder, ignored))
        raise("peft: " + path_text(folder) + ": folder: expected the folder of " +
              peft_config_file + " and the tensors, got " +
              (std::filesystem::exists(folder, ignored) ? "a file" : "none"));
}

/// A value as messages show it, cut off.
inline std::string value_text(const json& value) {
    return printable(value.dump(-1, ' ', false, json::error_handler_t::replace), 60);
}

} // namespace peft_details

/// The configuration of an adapter of any sort: JSON, and what all sorts have in common.
class peft_config {
  public:
    /// The longest text that is read.
    static constexpr std::size_t max_bytes = std::size_t(1) << 20;

    /// Parses the text of a configuration; `name` is for messages. These are refused: no JSON
    /// object, a name that comes twice, no peft_type.
    peft_config(std::string name, std::string_view text) : name_(std::move(name)) {
        file_details::require_no_foreign_content("peft: " + name_, "a JSON object", text);
        const json_source source{"peft: " + name_, text};
        for_each_json_member(
            source, {max_bytes, 8, 1024},
            [&](const std::string& key, json_details::json&& value, std::size_t offset) {
                if (fields_.contains(key))
                    source.fail(where(key), "a key that comes once", "another", offset);
                fields_[key] = std::move(value);
            });
        if (!has("peft_type") || !fields_["peft_type"].is_string())
            fail("peft_type", "a string", "none");
    }

    /// A new one, of fields that are known to be good.
    explicit peft_config(nlohmann::ordered_json fields)
        : name_("new configuration"), fields_(std::move(fields)) {}

    /// Reads the configuration in an adapter's folder. These are refused: no folder, the file, and
    /// as above.
    static peft_config read(const std::filesystem::path& folder) {
        peft_details::require_folder(folder);
        const std::filesystem::path path = folder / peft_config_file;
        const mapped_file file(path);
        return {path_text(path),
                std::string_view(reinterpret_cast<const char*>(file.data()), file.size())};
    }

    /// What messages call it.
    [[nodiscard]] const std::string& name() const noexcept { return name_; }

    /// Every key.
    [[nodiscard]] const nlohmann::ordered_json& fields() const noexcept { return fields_; }

    /// Sets a key, whatever the value.
    void set(const std::string& key, nlohmann::ordered_json value) {
        fields_[key] = std::move(value);
    }

    /// "POLY", "LORA", "IA3", ...
    [[nodiscard]] const std::string& type() const {
        return fields_["peft_type"].get_ref<const std::string&>();
    }

    /// The text, as Python writes it.
    [[nodiscard]] std::string text() const { return fields_.dump(2, ' ', true); }

    /// Writes it into an adapter's folder, in place of one that is there.
    void write(const std::filesystem::path& folder) const {
        const std::string written = text();
        file_details::replace_file("peft_config", folder / peft_config_file, [&](std::FILE* file) {
            return file_details::write_bytes(file, written.data(), written.size());
        });
    }

    /// These are refused: another type; a key with a value that is not among the rules or the
    /// common ones; another kind of value.
    template <std::size_t Rules>
    void require_keys(const char* expected_type,
                      const peft_details::key_rule (&rules)[Rules]) const {
        if (type() != expected_type) fail("peft_type", in_quotes(expected_type), in_quotes(type()));
        for (const auto& [key, value] : fields_.items()) {
            const peft_details::key_rule* rule = find_rule(rules, key);
            if (rule == nullptr) rule = find_rule(peft_details::common_keys, key);
            if (rule == nullptr && !peft_details::fits(value, peft_details::key_kind::off))
                fail(key,
                     std::string("a key of PEFT's ") + expected_type +
                         ", or one that switches nothing on (null, false, {} or [])",
                     "an unknown one of value " + peft_details::value_text(value));
            if (rule != nullptr && !peft_details::fits(value, rule->kind))
                fail(key, peft_details::describe(rule->kind), peft_details::value_text(value));
        }
    }

    /// The values of keys that require_keys has seen; `missing` where there is none, or null.
    /// @{
    [[nodiscard]] bool has(const std::string& key) const {
        return fields_.contains(key) && !fields_[key].is_null();
    }
    [[nodiscard]] index_t count(const std::string& key, index_t missing) const {
        return has(key) ? fields_[key].get<index_t>() : missing;
    }
    [[nodiscard]] double number(const std::string& key, double missing) const {
        return has(key) ? fields_[key].get<double>() : missing;
    }
    [[nodiscard]] bool flag(const std::string& key, bool missing) const {
        return has(key) ? fields_[key].get<bool>() : missing;
    }
    /// @}

    /// True if a key holds a list with a name that `holds(name)`.
    template <class Holds>
    [[nodiscard]] bool lists(const std::string& key, peft_details::matching& budget,
                             Holds&& holds) const {
        if (!has(key) || !fields_[key].is_array()) return false;
        for (const auto& name : fields_[key]) {
            const auto& text = name.get_ref<const std::string&>();
            budget.spend(1 + text.size() / 8);
            if (holds(std::string_view(text))) return true;
        }
        return false;
    }

    /// What may be spent on matching names for a key.
    [[nodiscard]] peft_details::matching matching_of(const std::string& key) const {
        return {"peft: " + name_ + ": " + where(key)};
    }

    /// Raises an error about a key.
    [[noreturn]] void fail(const std::string& key, const std::string& expected,
                           const std::string& got) const {
        raise("peft: " + name_ + ": " + where(key) + ": expected " + expected + ", got " + got);
    }

  private:
    static std::string where(const std::string& key) { return "key " + in_quotes(key); }

    template <std::size_t Rules>
    static const peft_details::key_rule* find_rule(const peft_details::key_rule (&rules)[Rules],
                                                   std::string_view key) {
        const auto found = std::find_if(std::begin(rules), std::end(rules),
                                        [&](const auto& rule) { return key == rule.key; });
        return found == std::end(rules) ? nullptr : found;
    }

    std::string name_;
    nlohmann::ordered_json fields_{};
};

} // namespace MHR_ISA
} // namespace mhr
