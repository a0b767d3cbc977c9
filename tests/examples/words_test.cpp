#include "examples/cross_task/letters.hpp"
#include "examples/cross_task/random.hpp"
#include "examples/cross_task/text_decoder.hpp"
#include "examples/cross_task/words.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

using namespace cross_task;
namespace fs = std::filesystem;

namespace {

// A folder of its own for a test, gone at its end.
class scratch_folder {
  public:
    scratch_folder() {
        static int count = 0;
        random_engine random(std::random_device{}());
        path_ = fs::temp_directory_path() /
                ("cross_task_words_" + std::to_string(random.bits()) + std::to_string(count++));
        fs::create_directories(path_);
    }
    ~scratch_folder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    scratch_folder(const scratch_folder&) = delete;
    scratch_folder& operator=(const scratch_folder&) = delete;

    std::string path() const { return path_.string(); }

    std::string write(const std::string& name, const std::string& content) const {
        const fs::path file = path_ / name;
        fs::create_directories(file.parent_path());
        std::ofstream(file, std::ios::binary) << content;
        return file.string();
    }

  private:
    fs::path path_;
};

using word_list = std::vector<std::string>;

word_list sorted(word_list words) {
    std::sort(words.begin(), words.end());
    return words;
}

// Returns what a UTF-8 word folds to, or "(none)" if it is refused.
std::string fold(const std::string& word, bool capitalised = false) {
    text_decoder decoder("UTF-8");
    std::u32string characters;
    std::string to;
    const bool good = decoder.decode(word, characters) && fold_word(characters, capitalised, to);
    return good ? to : "(none)";
}

std::string error_of(const corpus_options& options) {
    try {
        load_corpus(options);
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return {};
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

// `count` random words of `letters`, one a line.
std::string random_words(random_engine& random, int count, const std::string& letters) {
    std::string text;
    for (int i = 0; i < count; ++i) {
        for (int c = 0; c < 8; ++c)
            text += letters[random.integer(letters.size())];
        text += '\n';
    }
    return text;
}

// A folder with enough words of every language.
void write_all_languages(const scratch_folder& folder) {
    random_engine random(1);
    for (const language& l : all_languages())
        folder.write(l.code + ".txt", random_words(random, 100, "abcdefghijk"));
}

corpus_options small_options(const scratch_folder& folder) {
    corpus_options options;
    options.words_directory = folder.path();
    options.evaluation_words = 20;
    options.few_shot_words = 10;
    options.least_training_words = 30;
    return options;
}

} // namespace

TEST_CASE("letters: marks are stripped and special letters written out") {
    CHECK(fold("hello") == "hello");
    CHECK(fold("élève") == "eleve");
    CHECK(fold("straße") == "strasse");
    CHECK(fold("æðþøåœ") == "aedthoaoe");
    CHECK(fold("łódźżđ") == "lodzzd");
    CHECK(fold("ışıkğ") == "isikg");
    CHECK(fold("ŋħə") == "nhe");
    CHECK(fold("ștțșăâî") == "sttsaai");
    CHECK(fold("nguyễn") == "nguyen");
    CHECK(fold("tiếng") == "tieng");
    CHECK(fold("ḃṫẏ") == "bty");
    CHECK(fold("ag\u0303a") == "aga"); // a combining tilde
    CHECK(fold("\uFEFFword") == "word");
}

TEST_CASE("letters: anything but lower-case letters is refused") {
    for (const char* word : {"Paris", "NATO", "iPad", "Élan", "ÉLAN", "l'eau", "vis-à-vis", "b2b",
                             "a b", "col·legi", "слово", "λόγος", "語", "a×b", "tab\t", "\x01"})
        CHECK_MESSAGE(fold(word) == "(none)", word);
    CHECK(fold("Haus", true) == "haus");
    CHECK(fold("Öl", true) == "ol");
    CHECK(fold("GmbH", true) == "(none)");
    CHECK(fold("DDR", true) == "(none)");
}

TEST_CASE("text decoder: valid UTF-8 only") {
    text_decoder decoder("utf-8");
    std::u32string to;
    CHECK(decoder.decode("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", to));
    CHECK(to == U"aé€😀");
    CHECK(decoder.decode("", to));
    CHECK(to.empty());
    for (const char* bytes : {"\x80", "\xC3", "\xC3(", "\xC0\xAF", "\xE0\x80\xAF", "\xED\xA0\x80",
                              "\xE2\x82", "\xF0\x80\x80\x80", "\xF4\x90\x80\x80", "\xFF", "\xF8"})
        CHECK_FALSE(decoder.decode(bytes, to));
}

TEST_CASE("text decoder: other encodings, and Latin-1 where UTF-8 is not valid") {
    std::u32string to;
    text_decoder guessing;
    CHECK(guessing.decode("\xC3\xA9", to));
    CHECK(to == U"é");
    CHECK(guessing.decode("bl\xE5", to));
    CHECK(to == U"blå");

    text_decoder latin2("ISO8859-2");
    CHECK(latin2.decode("\xBEivot", to));
    CHECK(to == U"život");
    text_decoder windows("microsoft-cp1250");
    CHECK(windows.decode("\x9Eivot", to));
    CHECK(to == U"život");
    CHECK_FALSE(windows.decode("\x81", to)); // no character
    CHECK(windows.decode("abc", to));        // and none the worse for it
    CHECK(to == U"abc");
    CHECK_THROWS_AS(text_decoder("no-such-encoding"), std::runtime_error);
}

TEST_CASE("words: the hash is the same everywhere") {
    CHECK(word_hash("rd", "wo") == word_hash("word"));
    CHECK(word_hash("") == 0xEFD01F60BA992926U);
    CHECK(word_hash("word") == 0x4C785DB2FC3BB1CFU);
}

TEST_CASE("words: a plain list is cleaned, each word once, in the order of the hash") {
    const scratch_folder folder;
    const std::string file = folder.write(
        "list", "été\nete\nParis\nab\nabc\r\nabcdefghijklmnopqrst\nabcdefghijklmnopqrstu\n\n"
                "don't\nx-ray\nb2b\nword \nlast");
    const word_list words = read_words(file);
    CHECK(sorted(words) == word_list{"abc", "abcdefghijklmnopqrst", "ete", "last", "word"});
    CHECK(std::is_sorted(words.begin(), words.end(),
                         [](const auto& a, const auto& b) { return word_hash(a) < word_hash(b); }));
    CHECK_THROWS_WITH_AS(read_words(folder.path() + "/none"),
                         ("cannot open " + folder.path() + "/none").c_str(), std::runtime_error);
}

TEST_CASE("words: a cap keeps the first words by hash, wherever they stand in the file") {
    const scratch_folder folder;
    random_engine random(2);
    const std::string file =
        folder.write("list", random_words(random, 20000, "abcdefghijklmnopqrstuvwxyz"));
    word_list_options options;
    options.most_words = 20000;
    const word_list all = read_words(file, options);
    REQUIRE(all.size() > 19000);
    for (const std::size_t most : {std::size_t{0}, std::size_t{1}, std::size_t{300}}) {
        options.most_words = most;
        CHECK(read_words(file, options) ==
              word_list(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(most)));
    }
}

TEST_CASE("words: a hunspell list, flags and fields cut off") {
    const scratch_folder folder;
    const std::string file = folder.write(
        "list.dic", "7\nabaca/AB\nbadge\tpo:noun\ncider/12\tst:x\ndogma po:noun\ntwo words\n"
                    "Name/A\nend\n");
    word_list_options options;
    options.format = list_format::hunspell;
    CHECK(sorted(read_words(file, options)) ==
          word_list{"abaca", "badge", "cider", "dogma", "end"});
}

TEST_CASE("words: hostile files give few words and no harm") {
    const scratch_folder folder;
    CHECK(read_words(folder.write("empty", "")).empty());
    CHECK(read_words(folder.write("newlines", std::string(5000, '\n'))).empty());
    CHECK(read_words(folder.path()).empty()); // a folder, not a file

    const std::string huge(3000000, 'a');
    CHECK(read_words(folder.write("huge", huge)).empty());
    std::string two_words = huge;
    two_words.append("\nword\n").append(huge).append("\nlast");
    CHECK(read_words(folder.write("huge2", two_words)).size() == 2);
    // Around the size of the reader's buffer.
    for (std::size_t length = 1020; length < 1030; ++length) {
        const std::string line(length, 'a');
        std::string between = line;
        between.append("\nword\n").append(line).append("\n");
        CHECK(read_words(folder.write("long", between)) == word_list{"word"});
        CHECK(read_words(folder.write("long", line)).empty());
    }

    random_engine random(3);
    std::string junk;
    for (int i = 0; i < 300000; ++i)
        junk.push_back(static_cast<char>(random.integer(256)));
    const std::string file = folder.write("junk.dic", junk);
    word_list_options options;
    for (const char* encoding : {"", "UTF-8", "ISO8859-2", "UTF-16", "SHIFT_JIS"}) {
        for (const list_format format : {list_format::plain, list_format::hunspell}) {
            options.encoding = encoding;
            options.format = format;
            for (const std::string& word : read_words(file, options)) {
                CHECK(word.size() >= 3);
                CHECK(word.size() <= 20);
                CHECK(word.find_first_not_of("abcdefghijklmnopqrstuvwxyz") == std::string::npos);
            }
        }
    }
}

TEST_CASE("languages: codes are unique, host and training languages come first") {
    std::set<std::string> codes;
    bool new_languages = false;
    for (const language& l : all_languages()) {
        CHECK(codes.insert(l.code).second);
        const bool is_new = l.role == language_role::development || l.role == language_role::test;
        CHECK((is_new || !new_languages));
        new_languages = is_new;
    }
    CHECK(codes.size() == 5 + 22 + 6 + 10);
}

TEST_CASE("corpus: sizes are exact and no word is used twice") {
    const scratch_folder folder;
    write_all_languages(folder);
    const corpus_options options = small_options(folder);
    const corpus loaded = load_corpus(options);
    REQUIRE(loaded.host.size() == 5);
    REQUIRE(loaded.training.size() == 22);
    REQUIRE(loaded.development.size() == 6);
    REQUIRE(loaded.test.size() == 10);
    CHECK(loaded.host.front().code == "en");
    CHECK(loaded.test.front().name == "Portuguese");

    const auto check = [&](const language_data& data, std::size_t few_shot) {
        CHECK(data.evaluation.size() == 20);
        CHECK(data.few_shot.size() == few_shot);
        std::set<std::string> words(data.evaluation.begin(), data.evaluation.end());
        words.insert(data.few_shot.begin(), data.few_shot.end());
        words.insert(data.training.begin(), data.training.end());
        CHECK(words.size() == 20 + few_shot + data.training.size());
        CHECK(data.training.size() >= 30);
    };
    for (const language_data& data : loaded.host)
        check(data, 0);
    for (const language_data& data : loaded.training)
        check(data, 0);
    for (const language_data& data : loaded.development)
        check(data, 10);
    for (const language_data& data : loaded.test)
        check(data, 10);
}

TEST_CASE("corpus: new languages are not evaluated on training words of others") {
    const scratch_folder folder;
    write_all_languages(folder);

    random_engine random(4);
    const std::string shared = random_words(random, 100, "lmnopqrstu");
    folder.write("nb.txt", shared + random_words(random, 400, "lmnopqrstu"));
    folder.write("da.txt", shared + random_words(random, 100, "lmnopqrstu"));
    const corpus loaded = load_corpus(small_options(folder));
    const auto with_code = [](const std::vector<language_data>& of, const std::string& code) {
        return *std::find_if(of.begin(), of.end(), [&](const auto& l) { return l.code == code; });
    };
    const language_data danish = with_code(loaded.test, "da");
    const language_data bokmal = with_code(loaded.training, "nb");
    CHECK(danish.evaluation.size() == 20);
    for (const std::string& word : danish.evaluation)
        CHECK(std::count(bokmal.training.begin(), bokmal.training.end(), word) == 0);
    CHECK(danish.training.size() < 200 - 20 - 10); // some words were left out
}

TEST_CASE("corpus: the same with any number of threads") {
    const scratch_folder folder;
    write_all_languages(folder);
    corpus_options options = small_options(folder);
    options.threads = 1;
    const corpus one = load_corpus(options);
    options.threads = 5;
    const corpus five = load_corpus(options);
    for (std::size_t i = 0; i < one.test.size(); ++i) {
        CHECK(one.test[i].evaluation == five.test[i].evaluation);
        CHECK(one.test[i].training == five.test[i].training);
    }
}

TEST_CASE("corpus: one error names all missing languages") {
    const scratch_folder folder;
    write_all_languages(folder);
    fs::remove(folder.path() + "/gug.txt");
    fs::remove(folder.path() + "/nb.txt");
    const std::string error = error_of(small_options(folder));
    CHECK(contains(error, "gug (Guarani)"));
    CHECK(contains(error, "nb (Norwegian Bokmål)"));
    CHECK(contains(error, "<code>.txt"));
    CHECK_FALSE(contains(error, "English"));

    corpus_options system;
    system.system_directory = folder.path();
    const std::string packages = error_of(system);
    CHECK(contains(packages, "apt-get install wamerican wfrench"));
    CHECK(contains(packages, " hunspell-gug "));
    CHECK(contains(packages, " myspell-sq "));
    CHECK(packages.find("wnorwegian") == packages.rfind("wnorwegian"));
}

TEST_CASE("corpus: too few words are an error that says how many") {
    const scratch_folder folder;
    write_all_languages(folder);
    folder.write("gug.txt", "eins\nzwei\ndrei\n");
    std::string error = error_of(small_options(folder));
    CHECK(contains(error, "Guarani (gug)"));
    CHECK(contains(error, "found 3"));
    CHECK(contains(error, "needed 30"));

    write_all_languages(folder);
    folder.write("vi.txt", "");
    error = error_of(small_options(folder));
    CHECK(contains(error, "Vietnamese (vi): found 0; needed 50"));
}

TEST_CASE("corpus: Debian's layout, with the encoding from the .aff file") {
    const scratch_folder folder;
    random_engine random(5);
    for (const language& l : all_languages())
        folder.write(l.file, "100\n" + random_words(random, 100, "abcdefghijk"));
    // 100 words in Latin-2, each of which has a letter that Latin-1 lacks.
    std::string text = "100\n";
    for (int i = 0; i < 100; ++i) {
        text += "\xBE"; // ž
        text += random_words(random, 1, "lmnop");
    }
    folder.write("hunspell/bs_BA.dic", text);
    folder.write("hunspell/bs_BA.aff", "# a comment\nSET ISO8859-2\r\nTRY abc\n");
    corpus_options options = small_options(folder);
    options.words_directory.clear();
    options.system_directory = folder.path();
    const corpus loaded = load_corpus(options);
    for (const language_data& data : loaded.training) {
        if (data.code != "bs") continue;
        CHECK(data.evaluation.front().front() == 'z');
        CHECK(data.evaluation.front().size() == 9);
    }
}
