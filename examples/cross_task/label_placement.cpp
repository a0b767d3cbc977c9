#include "label_placement.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace cross_task {

namespace {

/// Area that two rectangles share.
double overlap(const rectangle& a, const rectangle& b) {
    const double width = std::min(a.right, b.right) - std::max(a.left, b.left);
    const double height = std::min(a.top, b.top) - std::max(a.bottom, b.bottom);
    return width > 0 && height > 0 ? width * height : 0;
}

struct segment {
    double x0, y0, x1, y1;
};

/// The line from a point to the nearer end of its text.
segment line_to(const rectangle& text, const labelled_point& point) {
    return {point.x, point.y, std::clamp(point.x, text.left, text.right),
            (text.bottom + text.top) / 2};
}

double side_of(const segment& line, double x, double y) {
    return (line.x1 - line.x0) * (y - line.y0) - (line.y1 - line.y0) * (x - line.x0);
}

bool cross(const segment& a, const segment& b) {
    return side_of(a, b.x0, b.y0) * side_of(a, b.x1, b.y1) < 0 &&
           side_of(b, a.x0, a.y0) * side_of(b, a.x1, a.y1) < 0;
}

bool cross(const segment& line, const rectangle& box) {
    // A line that enters a box crosses one of its diagonals.
    return cross(line, segment{box.left, box.bottom, box.right, box.top}) ||
           cross(line, segment{box.left, box.top, box.right, box.bottom});
}

/// All places considered for the text of a point.
std::vector<rectangle> places_of(const labelled_point& point, const rectangle& frame) {
    std::vector<rectangle> places;
    const auto add = [&](double left, double middle) {
        const rectangle place{left, middle - point.height / 2, left + point.width,
                              middle + point.height / 2};
        if (place.left >= frame.left && place.right <= frame.right &&
            place.bottom >= frame.bottom && place.top <= frame.top)
            places.push_back(place);
    };
    constexpr int steps = 12; // of half a line, up and down
    for (int step = -steps; step <= steps; ++step) {
        const double middle = point.y + step * point.height / 2;
        for (const double gap : {4.0, 14.0, 28.0, 56.0}) {
            add(point.marker.right + gap, middle);
            add(point.marker.left - gap - point.width, middle);
        }
    }
    // Better cut than at a place that has nothing to do with the point.
    if (places.empty())
        places.push_back({point.marker.right, point.y - point.height / 2,
                          point.marker.right + point.width, point.y + point.height / 2});
    return places;
}

double cost_of(std::size_t which, const rectangle& place, const std::vector<labelled_point>& points,
               const std::vector<rectangle>& placed) {
    const labelled_point& point = points[which];
    const segment line = line_to(place, point);
    double cost = std::hypot(line.x1 - line.x0, line.y1 - line.y0);
    constexpr double clash = 1000;
    for (std::size_t other = 0; other < points.size(); ++other) {
        if (overlap(place, points[other].marker) > 0) cost += clash;
        if (other == which) continue;
        const segment other_line = line_to(placed[other], points[other]);
        if (overlap(place, placed[other]) > 0) cost += 2 * clash;
        if (cross(line, points[other].marker)) cost += clash / 2;
        if (cross(line, placed[other]) || cross(other_line, place)) cost += clash;
        if (cross(line, other_line)) cost += clash / 2;
    }
    return cost;
}

/// Lets each text in turn, from `first` on, take the place that is best among the others, until
/// none moves. Gives the cost of it all.
double improve(std::vector<rectangle>& placed, std::size_t first,
               const std::vector<labelled_point>& points,
               const std::vector<std::vector<rectangle>>& places) {
    // The number of sweeps is a guard: texts may chase each other.
    for (int sweep = 0; sweep < 20; ++sweep) {
        bool has_moved = false;
        for (std::size_t n = 0; n < points.size(); ++n) {
            const std::size_t i = (first + n) % points.size();
            double lowest = cost_of(i, placed[i], points, placed);
            for (const rectangle& place : places[i]) {
                const double cost = cost_of(i, place, points, placed);
                if (cost < lowest) {
                    lowest = cost;
                    placed[i] = place;
                    has_moved = true;
                }
            }
        }
        if (!has_moved) break;
    }
    double total = 0;
    for (std::size_t i = 0; i < points.size(); ++i)
        total += cost_of(i, placed[i], points, placed);
    return total;
}

} // namespace

std::vector<rectangle> place_labels(const std::vector<labelled_point>& points,
                                    const rectangle& frame) {
    std::vector<std::vector<rectangle>> places;
    std::vector<rectangle> start;
    for (const labelled_point& point : points) {
        places.push_back(places_of(point, frame));
        start.push_back(places.back().front());
    }
    // The result depends on which text chooses first.
    std::vector<rectangle> best = start;
    double lowest = std::numeric_limits<double>::infinity();
    for (std::size_t first = 0; first < points.size(); ++first) {
        std::vector<rectangle> placed = start;
        const double total = improve(placed, first, points, places);
        if (total < lowest) {
            lowest = total;
            best = placed;
        }
    }
    return best;
}

} // namespace cross_task
