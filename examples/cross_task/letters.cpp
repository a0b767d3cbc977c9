#include "letters.hpp"

#include <cstddef>
#include <sstream>
#include <vector>

namespace cross_task {

namespace {

// The letters that each character becomes once marks are stripped and ligatures and special letters
// written out, in the case of the character; '-' is no letter. Sixteen characters a row.

// U+00C0 to U+025F: Latin-1 Supplement, Latin Extended-A and -B, the schwa.
constexpr char32_t first_extended = 0xC0;
const char* const extended = "A A A A A A AE C E E E E I I I I "
                             "D N O O O O O - O U U U U Y TH ss "
                             "a a a a a a ae c e e e e i i i i "
                             "d n o o o o o - o u u u u y th y "
                             "A a A a A a C c C c C c C c D d "
                             "D d E e E e E e E e E e G g G g "
                             "G g G g H h H h I i I i I i I i "
                             "I i IJ ij J j K k q L l L l L l L "
                             "l L l N n N n N n n N n O o O o "
                             "O o OE oe R r R r R r S s S s S s "
                             "S s T t T t T t U u U u U u U u "
                             "U u U u W w Y y Y Z z Z z Z z s "
                             "b B B b - - O C c D D D d - E E "
                             "E F f G - - I I K k l - - N n O "
                             "O o - - P p - - - - - t T t T U "
                             "u - V Y y Z z Z - - - - - - - - "
                             "- - - - DZ DZ dz LJ LJ lj NJ NJ nj A a I "
                             "i O o U u U u U u U u U u e A a "
                             "A a AE ae G g G g K k O o O o Z z "
                             "j DZ DZ dz G g - - N n A a AE ae O o "
                             "A a A a E e E e I i I i O o O o "
                             "R r R r U u U u S s T t - - H h "
                             "N d OU ou Z z A a E e O o O o O o "
                             "O o Y y l n t j - - A C c L T s "
                             "z - - B - - E e J j - q R r Y y "
                             "- - - b o c d d - e - e - - - -";

// U+1E00 to U+1EFF: Latin Extended Additional.
constexpr char32_t first_additional = 0x1E00;
const char* const additional = "A a B b B b B b C c D d D d D d "
                               "D d D d E e E e E e E e E e F f "
                               "G g H h H h H h H h H h I i I i "
                               "K k K k K k L l L l L l L l M m "
                               "M m M m N n N n N n N n O o O o "
                               "O o O o P p P p R r R r R r R r "
                               "S s S s S s S s S s T t T t T t "
                               "T t U u U u U u U u U u V v V v "
                               "W w W w W w W w W w X x X x Y y "
                               "Z z Z z Z z h t w y a s - - SS - "
                               "A a A a A a A a A a A a A a A a "
                               "A a A a A a A a E e E e E e E e "
                               "E e E e E e E e I i I i O o O o "
                               "O o O o O o O o O o O o O o O o "
                               "O o O o U u U u U u U u U u U u "
                               "U u Y y Y y Y y Y y - - - - Y y";

class fold_table {
  public:
    fold_table(char32_t first, const char* rows) : first_(first) {
        std::istringstream words(rows);
        for (std::string word; words >> word;)
            folded_.push_back(word == "-" ? "" : word);
    }

    /// The letters of a character of this table; empty if it is no letter, or of another table.
    std::string_view find(char32_t character) const {
        if (character < first_ || character - first_ >= folded_.size()) return {};
        return folded_[static_cast<std::size_t>(character - first_)];
    }

  private:
    char32_t first_;
    std::vector<std::string> folded_;
};

bool is_upper(char c) {
    return c >= 'A' && c <= 'Z';
}
bool is_lower(char c) {
    return c >= 'a' && c <= 'z';
}

// Marks that stand after their letter, and the byte order mark.
bool is_ignored(char32_t c) {
    return (c >= 0x300 && c <= 0x36F) || c == 0xFEFF;
}

} // namespace

bool fold_word(std::u32string_view word, bool capitalised, std::string& to) {
    static const fold_table extended_table(first_extended, extended);
    static const fold_table additional_table(first_additional, additional);

    to.clear();
    for (const char32_t character : word) {
        if (character >= U'a' && character <= U'z') { // nearly all
            to.push_back(static_cast<char>(character));
            continue;
        }
        if (is_ignored(character)) continue;
        const char ascii = static_cast<char>(character);
        std::string_view letters(&ascii, 1);
        if (character >= 0x80) {
            letters = extended_table.find(character);
            if (letters.empty()) letters = additional_table.find(character);
            if (letters.empty()) return false;
        }
        const bool may_be_upper = capitalised && to.empty();
        for (const char letter : letters) {
            if (is_lower(letter)) {
                to.push_back(letter);
            } else if (is_upper(letter) && may_be_upper) {
                to.push_back(static_cast<char>(letter - 'A' + 'a'));
            } else {
                return false;
            }
        }
    }
    return true;
}

} // namespace cross_task
