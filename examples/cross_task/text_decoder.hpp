#pragma once

#include <string>
#include <string_view>

#include <iconv.h>

namespace cross_task {

/// Turns bytes into code points.
class text_decoder {
  public:
    /// `encoding` is a name that iconv knows, or hunspell's spelling of one; empty means UTF-8 or,
    /// if the bytes are not valid UTF-8, Latin-1. Throws `std::runtime_error` if it is unknown.
    explicit text_decoder(const std::string& encoding = {});
    ~text_decoder();
    text_decoder(const text_decoder&) = delete;
    text_decoder& operator=(const text_decoder&) = delete;

    /// Writes the code points of `bytes` to `to`; false if they are invalid in the encoding.
    bool decode(std::string_view bytes, std::u32string& to);

  private:
    bool convert(std::string_view bytes);

    bool guess_;
    iconv_t converter_ = nullptr; // to UTF-8; none is needed for UTF-8 itself
    std::string utf8_;
};

} // namespace cross_task
