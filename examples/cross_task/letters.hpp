#pragma once

#include <string>
#include <string_view>

namespace cross_task {

/// Writes `word` (Unicode) in the letters a-z to `to`: marks are stripped (é is e, ż is z), other
/// Latin letters written out (ß is ss, æ is ae, þ is th, ł is l, ı is i). False if it has anything
/// but lower-case Latin letters, digits and hyphens included; with `capitalised` the first letter
/// may be upper-case and is lower-cased.
bool fold_word(std::u32string_view word, bool capitalised, std::string& to);

} // namespace cross_task
