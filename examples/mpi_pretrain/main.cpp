// Data-parallel multi-task training by MPI, on the data and with the host model of ../cross_task:
//
//     mpirun -np 2 mpi_pretrain
//
// Every rank holds the whole model and takes its share of the positions of each task. The gradients
// of all inventories and routers lie in one buffer, so that a step takes one all-reduce. The
// program trains with 1, 2, 4, .. and all ranks on the same batches, shows that all of them learn
// the same, and how long they take. It fails if they do not.

#include "../cross_task/adapters.hpp"
#include "../cross_task/host_model.hpp"
#include "../cross_task/prepared_language.hpp"
#include "../cross_task/random.hpp"
#include "../cross_task/training.hpp"
#include "../cross_task/words.hpp"

#include <CLI/CLI.hpp>
#include <Eigen/Core>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <mhr/hosts/mpi.hpp>

namespace {

using namespace cross_task;
using Eigen::Index;

struct options {
    int steps = 25;
    Index rows = 16; ///< positions of each task in a step, for each of the ranks of a whole run
    mhr::index_t heads = 8;
    mhr::index_t modules = 8;
    mhr::index_t rank = 16;
    std::string words;
};

int rank_of(MPI_Comm comm) {
    int rank = 0;
    MPI_Comm_rank(comm, &rank);
    return rank;
}
int size_of(MPI_Comm comm) {
    int size = 0;
    MPI_Comm_size(comm, &size);
    return size;
}

/// A batch has as many blocks as the world has ranks, and every block of every step its own seed:
/// whoever computes a block draws the same positions, and nobody draws another's.
task_rows draw_blocks(const std::vector<position_list>& tasks, const std::vector<std::int64_t>& ids,
                      int step, int first, int count, Index rows, batch& to) {
    to.resize(static_cast<Index>(tasks.size()) * count * rows);
    for (int block = first; block < first + count; ++block) {
        random_engine random(
            derived_seed(1, static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(block)));
        for (std::size_t t = 0; t < tasks.size(); ++t)
            tasks[t].sample(random, to, (static_cast<Index>(t) * count + block - first) * rows,
                            rows);
    }
    return {{ids.data(), {static_cast<mhr::index_t>(ids.size())}}, count * rows};
}

/// Trainings are compared after so many steps. Another number of ranks sums the rows of a batch in
/// other groups: gradients differ by rounding. So does what is learnt, at first; later it drifts
/// apart, as after any small change (by a thousandth or more after a hundred steps).
constexpr int compared_steps = 20;

/// The outcome of a training, on every rank of it.
struct outcome {
    std::vector<double> loss;           ///< nats a position, of each step
    std::vector<float> first_gradients; ///< of the first step
    std::vector<float> early_values;    ///< parameters after the compared steps
    std::vector<float> values;          ///< and after all
    double step_seconds = 0;            ///< median
    double all_reduce_seconds = 0;      ///< median
};

double median(std::vector<double> numbers) {
    std::sort(numbers.begin(), numbers.end());
    return numbers[numbers.size() / 2];
}

/// Trains on the ranks of `comm`, which share the `blocks` blocks of each batch.
outcome train(MPI_Comm comm, int blocks, const host_model& host,
              const std::vector<position_list>& tasks, const options& how) {
    const int first = blocks * rank_of(comm) / size_of(comm);
    const int count = blocks * (rank_of(comm) + 1) / size_of(comm) - first;
    std::vector<std::int64_t> ids(tasks.size());
    for (std::size_t t = 0; t < ids.size(); ++t)
        ids[t] = static_cast<std::int64_t>(t);

    // Every rank has the same seed, and so the same parameters.
    routed_adapters adapters(
        {static_cast<mhr::index_t>(tasks.size()), how.heads, how.modules, how.rank}, 2);
    optimiser<routed_adapters> optimise(adapters, {how.steps, 1e-2, 1e-1});
    batch input;
    activations state;
    const auto copy = [](const mhr::tensor_ref<1>& buffer) {
        const auto numbers = buffer.as<float>();
        return std::vector<float>(numbers.data(), numbers.data() + numbers.size());
    };
    outcome result;
    std::vector<double> step_seconds, all_reduce_seconds;
    for (int step = 0; step < how.steps; ++step) {
        const double start = MPI_Wtime();
        const task_rows rows = draw_blocks(tasks, ids, step, first, count, how.rows, input);
        // Noise of the routing belongs to a task, not to its positions: the same on every rank.
        random_engine noise(derived_seed(3, static_cast<std::uint64_t>(step), 0));
        // Each rank weighs its mean by its share of the batch: the sum is the mean of the whole.
        double loss = optimise.differentiate(host, input, rows, state, {&noise},
                                             static_cast<double>(count) / blocks);
        const double before = MPI_Wtime();
        mhr::mpi::all_reduce(comm, adapters.gradients());
        all_reduce_seconds.push_back(MPI_Wtime() - before);
        optimise.update();
        step_seconds.push_back(MPI_Wtime() - start);

        mhr::mpi::all_reduce(comm, {&loss, {1}}); // to be printed
        result.loss.push_back(loss / static_cast<double>(input.rows() / count * blocks));
        if (step == 0) result.first_gradients = copy(adapters.gradients());
        if (step < compared_steps) result.early_values = copy(adapters.values());
    }
    result.values = copy(adapters.values());
    result.step_seconds = median(step_seconds);
    result.all_reduce_seconds = median(all_reduce_seconds);
    return result;
}

/// Waits for all ranks without keeping a processor busy, as MPI's own barrier does.
void wait_for_all(MPI_Comm comm) {
    MPI_Request request{};
    MPI_Ibarrier(comm, &request);
    for (int done = 0; done == 0;) {
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (done == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

/// Trains on the first `ranks` of all ranks, while the others sleep; the result is of use on those
/// alone.
outcome train_on(int ranks, const host_model& host, const std::vector<position_list>& tasks,
                 const options& how) {
    const bool takes_part = rank_of(MPI_COMM_WORLD) < ranks;
    MPI_Comm comm = MPI_COMM_NULL;
    MPI_Comm_split(MPI_COMM_WORLD, takes_part ? 0 : MPI_UNDEFINED, 0, &comm);
    outcome result;
    if (takes_part) {
        result = train(comm, size_of(MPI_COMM_WORLD), host, tasks, how);
        MPI_Comm_free(&comm);
    }
    wait_for_all(MPI_COMM_WORLD);
    return result;
}

/// The largest difference of two lists, as a fraction of the largest of the second.
template <class T>
double largest_difference(const std::vector<T>& a, const std::vector<T>& b) {
    double difference = 0;
    double size = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        difference = std::max(difference, std::abs(static_cast<double>(a[i] - b[i])));
        size = std::max(size, std::abs(static_cast<double>(b[i])));
    }
    return difference / size;
}

/// Whether every rank of the world has the bits of rank 0.
bool same_on_all_ranks(const std::vector<float>& values) {
    std::vector<float> of_first = values;
    MPI_Bcast(of_first.data(), static_cast<int>(of_first.size()), MPI_FLOAT, 0, MPI_COMM_WORLD);
    const int here = of_first == values ? 1 : 0;
    int everywhere = 0;
    MPI_Allreduce(&here, &everywhere, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    return everywhere == 1;
}

/// Rank 0 prints, and says whether all is well.
bool report(const std::vector<std::pair<int, outcome>>& runs, const outcome& again, bool same) {
    constexpr double gradient_tolerance = 1e-5;
    constexpr double loss_tolerance = 1e-6;
    constexpr double value_tolerance = 1e-4;
    const outcome& one = runs.front().second;
    const outcome& all = runs.back().second;
    const int ranks = runs.back().first;
    std::printf("step   loss with 1 rank   with %d ranks [nats a position]\n", ranks);
    const std::size_t interval = std::max(one.loss.size() / 10, std::size_t{1});
    for (std::size_t step = 0; step + 1 < one.loss.size(); step += interval)
        std::printf("%4zu   %16.6f   %12.6f\n", step + 1, one.loss[step], all.loss[step]);
    std::printf("%4zu   %16.6f   %12.6f\n\n", one.loss.size(), one.loss.back(), all.loss.back());

    const std::size_t compared = std::min<std::size_t>(compared_steps, one.loss.size());
    const auto early = [&](const outcome& run) {
        return std::vector<double>(run.loss.begin(),
                                   run.loss.begin() + static_cast<std::ptrdiff_t>(compared));
    };
    const double of_gradients = largest_difference(all.first_gradients, one.first_gradients);
    const double of_loss = largest_difference(early(all), early(one));
    const double of_values = largest_difference(all.early_values, one.early_values);
    const bool deterministic = all.values == again.values && all.loss == again.loss;
    std::printf("largest difference from 1 rank, as a fraction of the largest:\n"
                "  gradients of the first step   %.1e (allowed: %.0e)\n"
                "  loss, the first %zu steps      %.1e (allowed: %.0e)\n"
                "  parameters after these        %.1e (allowed: %.0e)\n",
                of_gradients, gradient_tolerance, compared, of_loss, loss_tolerance, of_values,
                value_tolerance);
    std::printf("the same bits in a second run: %s; on every rank: %s\n\n",
                deterministic ? "yes" : "NO", same ? "yes" : "NO");

    std::printf("ranks   ms a step   speed-up   ms of it waiting for and summing %.2f MB\n",
                static_cast<double>(one.values.size() * sizeof(float)) * 1e-6);
    for (const auto& [count, run] : runs)
        std::printf("%5d   %9.2f   %8.2f   %.2f\n", count, 1e3 * run.step_seconds,
                    one.step_seconds / run.step_seconds, 1e3 * run.all_reduce_seconds);
    // Written so that no NaN passes.
    return of_gradients <= gradient_tolerance && of_loss <= loss_tolerance &&
           of_values <= value_tolerance && deterministic && same;
}

bool run(const options& how) {
    const int rank = rank_of(MPI_COMM_WORLD);
    const int ranks = size_of(MPI_COMM_WORLD);
    corpus_options reading;
    reading.words_directory = how.words;
    reading.threads = 1;
    const corpus words = load_corpus(reading);
    std::vector<position_list> host_positions, tasks;
    for (const auto& language : prepare(words.host, {}, words.host.size()))
        host_positions.push_back(language.training);
    for (const auto& language : prepare(words.training, {}, words.training.size()))
        tasks.push_back(language.training);

    // The frozen host: trained by rank 0, sent to all.
    random_engine random(0);
    host_model host(random);
    pretraining_options pretraining;
    pretraining.steps = 60;
    pretraining.rows = 512;
    if (rank == 0) host = pretrain(host_positions, random, pretraining);
    wait_for_all(MPI_COMM_WORLD);
    MPI_Bcast(host.parameters().data(), static_cast<int>(host.parameters().size()), MPI_FLOAT, 0,
              MPI_COMM_WORLD);

    if (rank == 0)
        std::printf("%zu tasks, %td positions of each in a step; MHR of %td heads, %td modules of "
                    "rank %td\n\n",
                    tasks.size(), how.rows * ranks, how.heads, how.modules, how.rank);
    std::vector<std::pair<int, outcome>> runs;
    for (int count = 1; count < ranks; count *= 2)
        runs.emplace_back(count, train_on(count, host, tasks, how));
    runs.emplace_back(ranks, train_on(ranks, host, tasks, how));
    const outcome again = train_on(ranks, host, tasks, how);

    const bool same = same_on_all_ranks(again.values);
    int good = 1;
    if (rank == 0) good = report(runs, again, same) ? 1 : 0;
    MPI_Bcast(&good, 1, MPI_INT, 0, MPI_COMM_WORLD);
    return good == 1;
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"Trains MHR on the words of many languages with several processes.",
                 "mpi_pretrain"};
    options how;
    app.add_option("--steps", how.steps, "Steps of each training")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--rows", how.rows, "Positions of each task in a step, for each rank")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--heads", how.heads, "Heads (a divisor of 32)")->capture_default_str();
    app.add_option("--words", how.words, "Folder of word lists, as of cross_task")
        ->check(CLI::ExistingDirectory);
    CLI11_PARSE(app, argc, argv);

    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    int status = 1;
    try {
        status = run(how) ? 0 : 1;
    } catch (const std::exception& failure) {
        std::fprintf(stderr, "mpi_pretrain: %s\n", failure.what());
        MPI_Abort(MPI_COMM_WORLD, 1); // the others may be waiting for this rank
    }
    MPI_Finalize();
    return status;
}
