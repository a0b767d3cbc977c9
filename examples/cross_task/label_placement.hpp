#pragma once

#include <vector>

namespace cross_task {

/// In pixels; y grows upwards.
struct rectangle {
    double left = 0;
    double bottom = 0;
    double right = 0;
    double top = 0;
};

/// A point of a plot, with the size of the text that names it.
struct labelled_point {
    double x = 0;
    double y = 0;
    rectangle marker; ///< what the point covers, its error bar included
    double width = 0;
    double height = 0;
};

/// Where the texts go: near their points, within `frame` and, if there is room, without covering
/// each other, a marker or the line from a text to its point.
std::vector<rectangle> place_labels(const std::vector<labelled_point>& points,
                                    const rectangle& frame);

} // namespace cross_task
