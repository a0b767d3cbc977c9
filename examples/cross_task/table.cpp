#include "table.hpp"

#include <algorithm>
#include <iomanip>
#include <limits>
#include <locale>
#include <numeric>
#include <ostream>
#include <sstream>

namespace cross_task {

namespace {

const std::string column_gap = "  ";

/// Columns on a terminal: the bytes of UTF-8 that begin a character.
std::size_t width_of(const std::string& text) {
    return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
        return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;
    }));
}

std::string padded(const std::string& text, std::size_t width, bool is_first_column) {
    const std::size_t used = width_of(text);
    const std::string space(width > used ? width - used : 0, ' ');
    return is_first_column ? text + space : space + text;
}

/// In lines of at most 100 columns.
void print_wrapped(std::ostream& to, const std::string& text) {
    std::istringstream words(text);
    std::string line;
    for (std::string word; words >> word;) {
        if (!line.empty() && width_of(line) + 1 + width_of(word) > 100) {
            to << line << '\n';
            line.clear();
        }
        line += (line.empty() ? "" : " ") + word;
    }
    if (!line.empty()) to << line << '\n';
}

bool is_heading(const table& of, const table::row& row) {
    return row.size() == 1 && of.columns.size() > 1;
}

} // namespace

void table::mark_lowest(std::size_t column) {
    double lowest = std::numeric_limits<double>::infinity();
    for (const row& of : rows)
        if (column < of.size() && of[column].value) lowest = std::min(lowest, *of[column].value);
    for (row& of : rows)
        if (column < of.size()) of[column].is_best = of[column].value == lowest;
}

void print_text(std::ostream& to, const table& what) {
    const std::size_t columns = what.columns.size();
    // Every cell gets the room of a star if any has one, or the numbers would not be aligned.
    std::vector<bool> has_star(columns, false);
    for (const table::row& row : what.rows)
        for (std::size_t c = 0; c < row.size(); ++c)
            if (row[c].is_best) has_star[c] = true;
    const auto with_star = [&](const std::string& text, bool is_best, std::size_t column) {
        return text + (is_best ? "*" : has_star[column] ? " " : "");
    };

    // The titles and the rows as texts; headings stay single.
    std::vector<std::vector<std::string>> lines(1);
    for (std::size_t c = 0; c < columns; ++c)
        lines[0].push_back(with_star(what.columns[c], false, c));
    for (const table::row& row : what.rows) {
        lines.emplace_back();
        for (std::size_t c = 0; c < row.size(); ++c)
            lines.back().push_back(
                is_heading(what, row) ? row[c].text : with_star(row[c].text, row[c].is_best, c));
    }
    std::vector<std::size_t> widths(columns, 0);
    for (const std::vector<std::string>& line : lines)
        for (std::size_t c = 0; line.size() == columns && c < columns; ++c)
            widths[c] = std::max(widths[c], width_of(line[c]));
    const std::size_t total =
        std::accumulate(widths.begin(), widths.end(), column_gap.size() * (columns - 1));

    to << what.title << '\n' << std::string(width_of(what.title), '=') << '\n';
    print_wrapped(to, what.note);
    to << '\n';
    for (std::size_t l = 0; l < lines.size(); ++l) {
        if (lines[l].size() < columns) { // a heading
            to << (l > 1 ? "\n" : "") << lines[l][0] << '\n';
            continue;
        }
        std::string line;
        for (std::size_t c = 0; c < columns; ++c)
            line += (c == 0 ? "" : column_gap) + padded(lines[l][c], widths[c], c == 0);
        to << line.substr(0, line.find_last_not_of(' ') + 1) << '\n';
        if (l == 0) to << std::string(total, '-') << '\n';
    }
    to << '\n';
}

void print_markdown(std::ostream& to, const table& what) {
    to << "## " << escape_markdown(what.title) << "\n\n";
    if (!what.note.empty()) to << escape_markdown(what.note) << "\n\n";
    for (const std::string& column : what.columns)
        to << "| " << escape_markdown(column) << ' ';
    to << "|\n|:---|";
    for (std::size_t c = 1; c < what.columns.size(); ++c)
        to << "---:|";
    to << '\n';
    for (const table::row& row : what.rows) {
        for (std::size_t c = 0; c < what.columns.size(); ++c) {
            const std::string text = c < row.size() ? escape_markdown(row[c].text) : "";
            if (text.empty())
                to << "| ";
            else if (row[c].is_best)
                to << "| **" << text << "** ";
            else if (is_heading(what, row))
                to << "| *" << text << "* ";
            else
                to << "| " << text << ' ';
        }
        to << "|\n";
    }
    to << '\n';
}

std::string escape_markdown(const std::string& text) {
    std::string escaped;
    for (const char c : text) {
        if (std::string("\\`*_[]<>|#&").find(c) != std::string::npos) escaped += '\\';
        escaped += c == '\n' ? ' ' : c; // a line break would end the row of a table
    }
    return escaped;
}

std::string fixed(double value, int decimals, bool show_plus) {
    std::ostringstream text;
    text.imbue(std::locale::classic());
    text << std::fixed << std::setprecision(decimals);
    if (show_plus) text << std::showpos;
    text << value;
    return text.str();
}

std::string grouped(std::int64_t number) {
    std::string text = std::to_string(number);
    const std::size_t first = number < 0 ? 1 : 0;
    for (std::size_t end = text.size(); end > first + 3; end -= 3)
        text.insert(end - 3, ",");
    return text;
}

} // namespace cross_task
