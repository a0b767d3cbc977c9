// Tells what an adapter of PEFT holds: its layers, their shapes and types, how its tasks route; and
// exports what a routed adapter amounts to as a plain LoRA.
//     mhr_inspect DIR [--json]
//     mhr_inspect DIR --export OUT            the average of the modules
//     mhr_inspect DIR --export OUT --task 3   what task 3 mixes
// Ends with 0, or with 1 and one line on standard error.

#include "export.hpp"
#include "listing.hpp"

#include <mhr/io/files/file_path.hpp>
#include <mhr/io/files/printable.hpp>

#include <CLI/CLI.hpp>

#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#if defined(_WIN32)
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

#include <shellapi.h>
#endif

namespace {

/// The arguments in UTF-8, the last one first, as CLI11 takes them. What Windows hands to `main`
/// has lost every character that is not in one code page.
std::vector<std::string> arguments(int argc, char** argv) {
#if defined(_WIN32)
    (void)argv;
    SetConsoleOutputCP(CP_UTF8);
    wchar_t** const wide = CommandLineToArgvW(GetCommandLineW(), &argc);
    const auto text = [&](int i) { return mhr::file_details::utf8_of(std::wstring_view(wide[i])); };
#else
    const auto text = [&](int i) { return std::string(argv[i]); };
#endif
    std::vector<std::string> result;
    for (int i = argc; i-- > 1;)
        result.push_back(text(i));
    return result;
}

std::filesystem::path path_of(const std::string& utf8) {
#if defined(__cpp_char8_t)
    return std::u8string(utf8.begin(), utf8.end());
#else
    return std::filesystem::u8path(utf8);
#endif
}

void run(const std::string& folder, bool as_json, const std::string& to,
         std::optional<std::int64_t> task) {
    if (to.empty())
        list_adapter(path_of(folder), as_json, std::cout);
    else
        export_lora(path_of(folder), task, path_of(to));
}

int fail(const std::exception& problem) {
    std::cerr << "mhr_inspect: " << mhr::printable(problem.what(), 2000) << '\n';
    return EXIT_FAILURE;
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"Lists an adapter of PEFT (POLY, LORA or IA3), or exports a routed one as a LoRA.",
                 "mhr_inspect"};
    std::string folder;
    bool as_json = false;
    std::string to;
    std::optional<std::int64_t> task;
    app.add_option("DIR", folder, "Folder of adapter_config.json and adapter_model.safetensors")
        ->required();
    auto* json_flag = app.add_flag("--json", as_json, "List as JSON");
    auto* export_option =
        app.add_option(
               "--export", to,
               "New folder for a plain LoRA: the average of the modules, or with --task the "
               "mixture of one task")
            ->excludes(json_flag);
    app.add_option("--task", task, "Number of the task, from 0")->needs(export_option);
    try {
        app.parse(arguments(argc, argv));
        run(folder, as_json, to, task);
        return EXIT_SUCCESS;
    } catch (const CLI::Success& help) {
        return app.exit(help);
    } catch (const std::exception& problem) {
        return fail(problem);
    }
}
