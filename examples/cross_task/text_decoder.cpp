#include "text_decoder.hpp"

#include <iconv.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace cross_task {

namespace {

char upper(char c) {
    return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
}

// iconv's name of an encoding: hunspell writes "microsoft-cp1250" for CP1250.
std::string iconv_name(std::string name) {
    std::transform(name.begin(), name.end(), name.begin(), upper);
    const std::string prefix = "MICROSOFT-";
    return name.compare(0, prefix.size(), prefix) == 0 ? name.substr(prefix.size()) : name;
}

bool decode_utf8(std::string_view bytes, std::u32string& to) {
    to.resize(bytes.size()); // no more characters than bytes
    std::size_t length = 0;
    for (std::size_t i = 0; i < bytes.size();) {
        const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(bytes[at]); };
        const unsigned first = byte(i++);
        if (first < 0x80) {
            to[length++] = first;
            continue;
        }
        const std::size_t more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
        if (first < 0xC2 || first > 0xF4 || bytes.size() - i < more) return false;
        char32_t code = first & (0x3FU >> more);
        for (std::size_t end = i + more; i < end; ++i) {
            if ((byte(i) & 0xC0U) != 0x80U) return false;
            code = (code << 6) | (byte(i) & 0x3FU);
        }
        const bool overlong = (more == 2 && code < 0x800) || (more == 3 && code < 0x10000);
        const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
        if (overlong || surrogate || code > 0x10FFFF) return false;
        to[length++] = code;
    }
    to.resize(length);
    return true;
}

void decode_latin1(std::string_view bytes, std::u32string& to) {
    to.clear();
    for (const char c : bytes)
        to.push_back(static_cast<unsigned char>(c));
}

} // namespace

text_decoder::text_decoder(const std::string& encoding) : guess_(encoding.empty()) {
    const std::string name = iconv_name(encoding);
    if (guess_ || name == "UTF-8" || name == "UTF8") return;
    iconv_t converter = iconv_open("UTF-8", name.c_str());
    if (reinterpret_cast<std::intptr_t>(converter) == -1) // as POSIX says
        throw std::runtime_error("unknown encoding: " + encoding);
    converter_ = converter;
}

text_decoder::~text_decoder() {
    if (converter_ != nullptr) iconv_close(converter_);
}

bool text_decoder::decode(std::string_view bytes, std::u32string& to) {
    if (converter_ != nullptr) return convert(bytes) && decode_utf8(utf8_, to);
    if (decode_utf8(bytes, to)) return true;
    if (guess_) decode_latin1(bytes, to);
    return guess_;
}

bool text_decoder::convert(std::string_view bytes) {
    iconv(converter_, nullptr, nullptr, nullptr, nullptr); // back to the initial shift state
    utf8_.resize(4 * bytes.size());                        // no character needs more
    char* from = const_cast<char*>(bytes.data());          // iconv reads only
    char* into = utf8_.data();
    std::size_t from_left = bytes.size();
    std::size_t into_left = utf8_.size();
    if (iconv(converter_, &from, &from_left, &into, &into_left) != 0) return false;
    utf8_.resize(utf8_.size() - into_left);
    return from_left == 0;
}

} // namespace cross_task
