#include "plot.hpp"

#include "gnuplot.hpp"

#include <fstream>
#include <limits>
#include <locale>
#include <stdexcept>
#include <utility>

namespace cross_task {

namespace {

void write(const std::filesystem::path& file, const std::string& text) {
    std::ofstream to(file, std::ios::binary);
    to << text;
    to.close();
    if (!to) throw std::runtime_error("cannot write " + file.string());
}

} // namespace

double text_width(const std::string& text) {
    return 0.64 * font_pixels * static_cast<double>(text.size());
}

plot::plot(std::string name, double width, double height)
    : name_(std::move(name)), width_(width), height_(height) {
    script.imbue(std::locale::classic());
    data.imbue(std::locale::classic());
    data.precision(std::numeric_limits<double>::max_digits10);
    // The scales are 2 as the picture has twice the pixels that it is shown with.
    script << "set encoding utf8\n"
           << "set terminal pngcairo noenhanced background 'white' size " << 2 * width << ','
           << 2 * height << " font 'Sans," << font_points
           << "' fontscale 2 linewidth 2 pointscale 2\n"
           << "set output " << gnuplot_string(name_ + ".png") << '\n'
           << "set border 3 linecolor rgb '#666666'\n"
           << "set tics nomirror textcolor rgb '#222222'\n"
           << "set grid linetype 1 linewidth 0.5 linecolor rgb '#DDDDDD'\n";
}

std::string plot::data_file() const {
    return gnuplot_string(name_ + ".dat");
}

void plot::begin_data(const std::string& comment) {
    data << (blocks_ == 0 ? "" : "\n\n") << "# " << gnuplot_string(comment) << '\n';
    ++blocks_;
}

void plot::set_frame(const rectangle& frame) {
    script << "set lmargin at screen " << frame.left / width_ << '\n'
           << "set rmargin at screen " << frame.right / width_ << '\n'
           << "set bmargin at screen " << frame.bottom / height_ << '\n'
           << "set tmargin at screen " << frame.top / height_ << '\n';
}

std::string plot::at(double x, double y) const {
    std::ostringstream text;
    text.imbue(std::locale::classic());
    text << "screen " << x / width_ << ", screen " << y / height_;
    return text.str();
}

void plot::add_text(const std::string& text, double x, double y, const std::string& options) {
    script << "set label " << gnuplot_string(text) << " at " << at(x, y) << ' ' << options
           << " textcolor rgb '#222222'\n";
}

picture plot::draw(const std::filesystem::path& gnuplot, const std::filesystem::path& folder,
                   std::string title, std::string caption) const {
    const std::filesystem::path plots = folder / "plots";
    const std::filesystem::path image = plots / (name_ + ".png");
    std::filesystem::create_directories(plots);
    write(plots / (name_ + ".dat"), data.str());
    write(plots / (name_ + ".gp"), script.str());
    // One of an earlier run would hide that nothing was drawn.
    std::filesystem::remove(image);
    run_gnuplot(gnuplot, plots, name_ + ".gp");
    if (!std::filesystem::exists(image))
        throw std::runtime_error(gnuplot.string() + " did not draw " + image.string());
    return {"plots/" + name_ + ".png", std::move(title), std::move(caption),
            static_cast<int>(width_)};
}

} // namespace cross_task
