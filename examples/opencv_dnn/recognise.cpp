// A text recogniser in OpenCV with an adapter for each task: images of different tasks, and of
// none, in one batch. add_adapters.py has put a routed LoRA beside each of its linear layers. The
// results are compared with those of the network itself, and of networks that have a task's adapter
// merged into their weights.
//
//     opencv_dnn_example FOLDER_OF_MODELS CHARACTERS.txt

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include <opencv2/core.hpp>
#include <opencv2/core/utils/logger.hpp>
#include <opencv2/dnn.hpp>
#include <opencv2/imgproc.hpp>

#include <mhr/hosts/opencv_dnn.hpp>

namespace {

/// The lines of a text, each an image as the recogniser wants it: black on white, 48 x 320.
cv::Mat draw(const std::vector<std::string>& lines) {
    std::vector<cv::Mat> images;
    for (const std::string& line : lines) {
        cv::Mat& image = images.emplace_back(48, 320, CV_8UC3, cv::Scalar::all(255));
        cv::putText(image, line, {8, 36}, cv::FONT_HERSHEY_DUPLEX, 1.1, cv::Scalar::all(0), 2,
                    cv::LINE_AA);
    }
    return cv::dnn::blobFromImages(images, 1 / 127.5, {}, cv::Scalar::all(127.5));
}

cv::dnn::Net read(const std::string& path) {
    cv::dnn::Net net = cv::dnn::readNetFromONNX(path);
    net.setPreferableBackend(cv::dnn::DNN_BACKEND_OPENCV);
    return net;
}

cv::Mat run(cv::dnn::Net& net, const cv::Mat& images) {
    net.setInput(images);
    return net.forward().clone();
}

double milliseconds_of(cv::dnn::Net& net) {
    double least = HUGE_VAL;
    for (int i = 0; i < 5; ++i) {
        cv::TickMeter clock;
        clock.start();
        net.forward();
        clock.stop();
        least = std::min(least, clock.getTimeMilli());
    }
    return least;
}

/// Returns the text that an image's probabilities [columns, classes] spell: class 0 is none, and
/// neighbouring columns of one class are one character.
std::string spell(mhr::tensor_view<const float, 2> probabilities,
                  const std::vector<std::string>& characters) {
    std::string text;
    std::size_t last = 0;
    for (mhr::index_t column = 0; column < probabilities.extent(0); ++column) {
        const float* const first = &probabilities(column, 0);
        const auto best = static_cast<std::size_t>(
            std::max_element(first, first + probabilities.extent(1)) - first);
        if (best != 0 && best != last) text += characters[best - 1];
        last = best;
    }
    return text;
}

double largest_difference(mhr::tensor_view<const float, 2> a, mhr::tensor_view<const float, 2> b) {
    double largest = 0;
    for (mhr::index_t i = 0; i < a.extent(0); ++i)
        for (mhr::index_t j = 0; j < a.extent(1); ++j)
            largest = std::max(largest, std::abs(double(a(i, j)) - double(b(i, j))));
    return largest;
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: %s FOLDER_OF_MODELS CHARACTERS.txt\n", argv[0]);
        return 2;
    }
    const std::string folder = argv[1];
    std::vector<std::string> characters;
    std::ifstream file(argv[2]);
    for (std::string line; std::getline(file, line);)
        characters.push_back(line);
    characters.emplace_back(" ");

    const std::vector<std::string> lines{"multi-head", "adapter", "ROUTING",
                                         "LoRA 16",    "OpenCV",  "2211.03831"};
    const std::vector<int> task_of_image{0, 1, -1, 2, 1, 0};
    const cv::Mat images = draw(lines);

    // OpenCV warns of every node of a domain that it does not know, and then finds the layer.
    cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_ERROR);
    cv::dnn::Net plain = read(folder + "/plain.onnx");
    mhr::opencv::register_routed_lora();
    cv::dnn::Net adapted = read(folder + "/adapted.onnx");
    const auto batch = mhr::opencv::share_batch(adapted);
    // The probabilities [images, columns, classes].
    const auto all = [](const cv::Mat& output) {
        return mhr::opencv::view_of<const float, 2>(output);
    };
    const auto of_image = [](const cv::Mat& output, std::size_t image) {
        return mhr::opencv::view_of<const float, 3>(output).slice(0,
                                                                  static_cast<mhr::index_t>(image));
    };

    // Without an effect: no tasks, and adapters as they are before training, with b = 0.
    const cv::Mat base = run(plain, images);
    const double without_tasks = largest_difference(all(run(adapted, images)), all(base));
    cv::dnn::Net fresh = read(folder + "/adapted.onnx");
    for (const std::string& name : fresh.getLayerNames()) {
        const cv::Ptr<cv::dnn::Layer> layer = fresh.getLayer(fresh.getLayerId(name));
        if (layer->type == "mhr.RoutedLora") layer->blobs[1].setTo(0);
    }
    mhr::opencv::share_batch(fresh)->assign_tasks(task_of_image);
    const double zero_adapters = largest_difference(all(run(fresh, images)), all(base));

    // All tasks in one batch, against one network for each task.
    batch->assign_tasks(task_of_image);
    const cv::Mat routed = run(adapted, images);
    double merged = 0, effect = 0;
    std::printf("%-12s %-14s %4s  %s\n", "image", "plain network", "task", "adapted network");
    for (std::size_t i = 0; i < lines.size(); ++i) {
        const int task = task_of_image[i];
        cv::Mat want = base;
        if (task >= 0) {
            cv::dnn::Net of_task = read(folder + "/task_" + std::to_string(task) + ".onnx");
            want = run(of_task, images);
            effect = std::max(effect, largest_difference(of_image(want, i), of_image(base, i)));
        }
        merged = std::max(merged, largest_difference(of_image(routed, i), of_image(want, i)));
        std::printf("%-12s %-14s %4s  %s\n", lines[i].c_str(),
                    spell(of_image(base, i), characters).c_str(),
                    task < 0 ? "" : std::to_string(task).c_str(),
                    spell(of_image(routed, i), characters).c_str());
    }
    std::printf(
        "largest differences of probabilities: without tasks %g, with b = 0 %g, from merged "
        "weights %.1e (adapters change them by up to %.2f)\n",
        without_tasks, zero_adapters, merged, effect);
    const double plain_time = milliseconds_of(plain);
    std::printf("a batch of %zu images: plain %.1f ms, adapted %.1f ms\n", lines.size(), plain_time,
                milliseconds_of(adapted));
    // Differences, which are not negative: none at all.
    return !(without_tasks > 0) && !(zero_adapters > 0) && merged <= 1e-4 && effect > 0.1 ? 0 : 1;
}
