#include "languages.hpp"

namespace cross_task {

namespace {

language dict(const char* code, const char* name, language_role role, const char* package,
              const char* file, bool capitalised = false) {
    return {code,       name, role, list_format::plain, package, std::string("dict/") + file,
            capitalised};
}

language hunspell(const char* code, const char* name, language_role role, const char* file,
                  const char* family = "hunspell") {
    return {code,
            name,
            role,
            list_format::hunspell,
            std::string(family) + "-" + code,
            std::string("hunspell/") + file + ".dic"};
}

std::vector<language> make_languages() {
    constexpr language_role host = language_role::host;
    constexpr language_role training = language_role::training;
    constexpr language_role development = language_role::development;
    constexpr language_role test = language_role::test;
    return {
        dict("en", "English", host, "wamerican", "american-english"),
        dict("fr", "French", host, "wfrench", "french"),
        dict("de", "German", host, "wngerman", "ngerman", true),
        dict("pl", "Polish", host, "wpolish", "polish"),
        hunspell("tr", "Turkish", host, "tr_TR"),

        dict("it", "Italian", training, "witalian", "italian"),
        dict("es", "Spanish", training, "wspanish", "spanish"),
        dict("nl", "Dutch", training, "wdutch", "dutch"),
        dict("sv", "Swedish", training, "wswedish", "swedish"),
        dict("nb", "Norwegian Bokmål", training, "wnorwegian", "bokmaal"),
        dict("ca", "Catalan", training, "wcatalan", "catalan"),
        dict("gv", "Manx", training, "wmanx", "manx"),
        dict("eo", "Esperanto", training, "wesperanto", "esperanto"),
        hunspell("bs", "Bosnian", training, "bs_BA"),
        hunspell("sl", "Slovene", training, "sl_SI"),
        hunspell("vi", "Vietnamese", training, "vi_VN"),
        dict("gl", "Galician", training, "wgalician-minimos", "galician-minimos"),
        hunspell("af", "Afrikaans", training, "af_ZA"),
        dict("nn", "Norwegian Nynorsk", training, "wnorwegian", "nynorsk"),
        hunspell("sk", "Slovak", training, "sk_SK"),
        hunspell("hr", "Croatian", training, "hr_HR"),
        hunspell("is", "Icelandic", training, "is_IS"),
        hunspell("gd", "Scottish Gaelic", training, "gd_GB"),
        hunspell("oc", "Occitan", training, "oc_FR"),
        hunspell("tl", "Tagalog", training, "tl", "myspell"),
        hunspell("et", "Estonian", training, "et_EE", "myspell"),
        hunspell("lv", "Latvian", training, "lv_LV"),

        hunspell("an", "Aragonese", development, "an_ES"),
        dict("fo", "Faroese", development, "wfaroese", "faroese"),
        hunspell("sq", "Albanian", development, "sq_AL", "myspell"),
        hunspell("br", "Breton", development, "br_FR"),
        hunspell("gug", "Guarani", development, "gug_PY"),
        hunspell("kmr", "Kurmanji", development, "kmr_Latn"),

        dict("pt", "Portuguese", test, "wportuguese", "portuguese"),
        dict("da", "Danish", test, "wdanish", "danish"),
        dict("ga", "Irish", test, "wirish", "irish"),
        hunspell("cs", "Czech", test, "cs_CZ"),
        hunspell("lt", "Lithuanian", test, "lt_LT"),
        hunspell("eu", "Basque", test, "eu"),
        hunspell("hu", "Hungarian", test, "hu_HU"),
        hunspell("id", "Indonesian", test, "id_ID"),
        hunspell("sw", "Swahili", test, "sw_TZ"),
        hunspell("ro", "Romanian", test, "ro_RO"),
    };
}

} // namespace

const std::vector<language>& all_languages() {
    static const std::vector<language> languages = make_languages();
    return languages;
}

} // namespace cross_task
