#pragma once

#include "label_placement.hpp"
#include "plots.hpp"

#include <filesystem>
#include <sstream>
#include <string>

namespace cross_task {

/// The size of the texts in pictures, at 96 pixels an inch.
constexpr double font_points = 10;
constexpr double font_pixels = font_points * 96 / 72;

/// Room in pixels that a text takes: generous, as the font of the machine is unknown.
double text_width(const std::string& text);

/// A picture as gnuplot's script and data. All pixels are those of the picture as it is shown,
/// which has two of its own for each; y grows upwards.
class plot {
  public:
    /// `name` is that of the files, without their extensions.
    plot(std::string name, double width, double height);

    std::ostringstream script;
    std::ostringstream data;

    /// The file of the data, as a string of gnuplot.
    std::string data_file() const;

    /// Begins a block of the data; they are counted from 0.
    void begin_data(const std::string& comment);
    int last_block() const { return blocks_ - 1; }

    /// Has the axes of the next plot at the borders of `frame`.
    void set_frame(const rectangle& frame);

    /// A place as gnuplot has it.
    std::string at(double x, double y) const;

    /// A text at a place, with gnuplot's options for its alignment and font.
    void add_text(const std::string& text, double x, double y, const std::string& options);

    /// Writes the files into `folder`/plots and has `gnuplot` make the picture.
    picture draw(const std::filesystem::path& gnuplot, const std::filesystem::path& folder,
                 std::string title, std::string caption) const;

  private:
    std::string name_;
    double width_;
    double height_;
    int blocks_ = 0;
};

} // namespace cross_task
