#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace cross_task {

/// The content of one place of a table.
struct cell {
    std::string text;
    std::optional<double> value; ///< what `mark_lowest` compares
    bool is_best = false;
};

/// A table for a terminal or a Markdown document. The first column is text, the others are numbers.
struct table {
    /// Cells, one for each column; or one alone, which is a heading for the rows below.
    using row = std::vector<cell>;

    std::string title;
    std::string note; ///< sentences under the title
    std::vector<std::string> columns;
    std::vector<row> rows;

    void add_heading(std::string text) { rows.push_back({cell{std::move(text), {}, false}}); }

    /// Marks the lowest value of a column as the best (all of them, if several are equal).
    void mark_lowest(std::size_t column);
};

/// Aligned by spaces; the best are marked by a star.
void print_text(std::ostream& to, const table& what);

/// As GitHub's tables, below a heading of the second level; the best are bold.
void print_markdown(std::ostream& to, const table& what);

/// `text` as Markdown that shows it literally.
std::string escape_markdown(const std::string& text);

/// `value` with so many decimals, whatever the locale; with a plus if it is wanted.
std::string fixed(double value, int decimals, bool show_plus = false);

/// As "159,744".
std::string grouped(std::int64_t number);

} // namespace cross_task
