#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/batch/batch.hpp>
#include <mhr/ia3/routed_ia3.hpp>
#include <mhr/lora/output_mixed_lora.hpp>
#include <mhr/lora/routed_lora.hpp>

#include "support/combinations.hpp"
#include "support/comparison.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

// These tests show which results of a batch depend on what else is in it, and in which order;
// batch/batch_plan.hpp says so. (That nothing depends on threads and executors is shown for all
// kernels in every_kernel_test.cpp.)

using namespace mhr;
using namespace mhr::test;

namespace {

using numbers = std::vector<index_t>;

struct sizes {
    index_t rows, tasks, heads, modules, in_block, out_block, rank;
    [[nodiscard]] index_t in() const { return heads * in_block; }
    [[nodiscard]] index_t out() const { return heads * out_block; }
};

/// The rows, tasks and modules of which batches are made.
template <class T>
struct world {
    sizes s;
    tensor<T, 2> x, y, d_y, d_x;
    tensor<float, 3> weights, d_weights; // of tasks
    tensor<T, 4> a, b, d_a, d_b;
    numbers task_of_row;

    world(const sizes& sizes_, std::uint64_t seed)
        : s(sizes_), x({s.rows, s.in()}), y({s.rows, s.out()}), d_y({s.rows, s.out()}),
          d_x({s.rows, s.in()}), weights({s.tasks, s.heads, s.modules}),
          d_weights({s.tasks, s.heads, s.modules}), a({s.heads, s.modules, s.in_block, s.rank}),
          b({s.heads, s.modules, s.rank, s.out_block}),
          d_a({s.heads, s.modules, s.in_block, s.rank}),
          d_b({s.heads, s.modules, s.rank, s.out_block}) {
        random_source random(seed);
        for (auto* rows : {&x, &y, &d_y, &d_x})
            random.fill(rows->view());
        for (auto* matrices : {&a, &b, &d_a, &d_b})
            random.fill(matrices->view());
        random.fill(d_weights.view());
        random.fill(weights.view(), 0, 1);
        for (float& weight : weights.values())
            if (random.integer(5) == 0) weight = 0;
        for (index_t row = 0; row < s.rows; ++row)
            task_of_row.push_back(random.integer(4) == 0 ? no_task : random.integer(s.tasks));
        task_of_row[0] = 0; // some row has a task
    }
};

/// A step of training on some rows of a world. Tasks may be called by other numbers there.
template <class T>
struct some_rows {
    const world<T>& of;
    numbers rows;
    numbers task_of_entry; // in the world
    batch_plan plan;
    tensor<T, 2> x, y, d_y, d_x;
    tensor<float, 3> weights, d_weights;
    tensor<T, 4> d_a, d_b;

    some_rows(const world<T>& w, numbers rows_, const numbers& label_of_task = {})
        : of(w), rows(std::move(rows_)) {
        const auto label = [&](index_t task) {
            return task < 0 || label_of_task.empty()
                       ? task
                       : label_of_task[static_cast<std::size_t>(task)];
        };
        numbers labels;
        for (index_t row : rows)
            labels.push_back(label(task_of(row)));
        const auto count = static_cast<index_t>(rows.size());
        plan.assign_rows(tensor_view<const index_t, 1>(labels.data(), {count}));
        for (index_t entry = 0; entry < plan.entries(); ++entry)
            for (index_t task = 0; task < w.s.tasks; ++task)
                if (label(task) == plan.tasks()(entry)) task_of_entry.push_back(task);
        x = gathered(w.x, rows);
        y = gathered(w.y, rows);
        d_y = gathered(w.d_y, rows);
        d_x = gathered(w.d_x, rows);
        weights = gathered(w.weights, task_of_entry);
        d_weights = gathered(w.d_weights, task_of_entry);
        d_a = w.d_a;
        d_b = w.d_b;
    }

    [[nodiscard]] index_t task_of(index_t row) const {
        return of.task_of_row[static_cast<std::size_t>(row)];
    }
    [[nodiscard]] routed_lora layer() const {
        return {of.a.view(), of.b.view(), weights.view(), -0.75};
    }

  private:
    template <class U, std::size_t Rank>
    static tensor<U, Rank> gathered(const tensor<U, Rank>& from, const numbers& which) {
        auto extents = from.extents();
        extents[0] = static_cast<index_t>(which.size());
        tensor<U, Rank> result(extents);
        for (index_t i = 0; i < extents[0]; ++i)
            transform(from.view().slice(0, which[static_cast<std::size_t>(i)]),
                      result.view().slice(0, i), [](const U& value) { return value; });
        return result;
    }
};

/// The adapters: forward and backward.
struct routed_lora_step {
    static constexpr bool one_head = false;
    template <class T>
    static void run(some_rows<T>& b) {
        const mhr::batch rows{b.plan};
        owned_workspace state_memory(routed_lora_state_size(rows, b.layer()));
        owned_workspace memory(routed_lora_backward_workspace_size(rows, b.layer()));
        workspace taken = state_memory;
        const auto state = take_routed_lora_state(taken, rows, b.layer());
        routed_lora_forward(rows, b.layer(), b.x.view(), b.y.view(), state);
        routed_lora_backward(rows, b.layer(), b.x.view(), b.d_y.view(), state,
                             {b.d_x.view(), b.d_a.view(), b.d_b.view(), b.d_weights.view()},
                             memory);
    }
};

struct output_mixed_lora_step {
    static constexpr bool one_head = true;
    template <class T>
    static void run(some_rows<T>& b) {
        const mhr::batch rows{b.plan};
        owned_workspace state_memory(output_mixed_lora_state_size(rows, b.layer()));
        owned_workspace memory(output_mixed_lora_backward_workspace_size(rows, b.layer()));
        workspace taken = state_memory;
        const auto state = take_output_mixed_lora_state(taken, rows, b.layer());
        output_mixed_lora_forward(rows, b.layer(), b.x.view(), b.y.view(), state);
        output_mixed_lora_backward(rows, b.layer(), b.x.view(), b.d_y.view(), state,
                                   {b.d_x.view(), b.d_a.view(), b.d_b.view(), b.d_weights.view()},
                                   memory);
    }
};

/// It works on the features that LoRA puts out; the scales are the first rows of the modules' b.
struct routed_ia3_step {
    static constexpr bool one_head = false;
    template <class T>
    static void run(some_rows<T>& b) {
        const mhr::batch rows{b.plan};
        const routed_ia3 layer{b.of.b.view().slice(2, 0), b.weights.view()};
        owned_workspace state_memory(routed_ia3_state_size(rows, layer));
        owned_workspace memory(routed_ia3_backward_workspace_size(rows, layer));
        workspace taken = state_memory;
        const auto state = take_routed_ia3_state(taken, rows, layer);
        const tensor<T, 2> x = b.y;
        b.d_x = b.d_y; // of x's shape
        routed_ia3_forward(rows, layer, x.view(), b.y.view(), state);
        routed_ia3_backward(rows, layer, x.view(), b.d_y.view(), state,
                            {b.d_x.view(), b.d_b.view().slice(2, 0), b.d_weights.view()}, memory);
    }
};

/// The outputs and gradients of all rows of `part` are those that `whole` gives them.
template <class T>
bool same_rows(const some_rows<T>& part, const some_rows<T>& whole) {
    bool same = true;
    for (std::size_t i = 0; i < part.rows.size(); ++i)
        for (std::size_t j = 0; j < whole.rows.size(); ++j) {
            if (part.rows[i] != whole.rows[j]) continue;
            const auto at = static_cast<index_t>(i);
            const auto of_whole = static_cast<index_t>(j);
            same =
                same &&
                compare_bitwise(part.y.view().slice(0, at), whole.y.view().slice(0, of_whole)) &&
                compare_bitwise(part.d_x.view().slice(0, at), whole.d_x.view().slice(0, of_whole));
        }
    return same;
}

/// The gradients of the weights of all tasks of `part` are those that `whole` gives them.
template <class T>
bool same_d_weights(const some_rows<T>& part, const some_rows<T>& whole) {
    bool same = true;
    for (std::size_t i = 0; i < part.task_of_entry.size(); ++i)
        for (std::size_t j = 0; j < whole.task_of_entry.size(); ++j)
            if (part.task_of_entry[i] == whole.task_of_entry[j])
                same = same &&
                       compare_bitwise(part.d_weights.view().slice(0, static_cast<index_t>(i)),
                                       whole.d_weights.view().slice(0, static_cast<index_t>(j)));
    return same;
}

template <class T>
bool same_d_inventory(const some_rows<T>& one, const some_rows<T>& other) {
    return compare_bitwise(one.d_a.view(), other.d_a.view()) &&
           compare_bitwise(one.d_b.view(), other.d_b.view());
}

/// Rows in a random order in which those of each task, and those of none, keep theirs.
numbers with_tasks_in_another_order(const numbers& rows, const numbers& task_of_row,
                                    random_source& random) {
    const auto task_of = [&](index_t row) { return task_of_row[static_cast<std::size_t>(row)]; };
    numbers tasks; // in the new order
    for (index_t i : random.permutation(static_cast<index_t>(rows.size())))
        tasks.push_back(task_of(rows[static_cast<std::size_t>(i)]));
    numbers result;
    std::vector<std::size_t> next(rows.size() + task_of_row.size() + 1, 0);
    for (index_t task : tasks) {
        std::size_t& from = next[static_cast<std::size_t>(task + 1)];
        while (task_of(rows[from]) != task)
            ++from;
        result.push_back(rows[from++]);
    }
    return result;
}

/// Calls `f(world, random)` for worlds of many shapes: a row, rows about the sizes of tiles, blocks
/// and parts; more tasks than are mixed together; ranks about those of tiles; features about those
/// of vectors, and of more than one chunk.
template <class T, class F>
void for_worlds(bool one_head, F&& f) {
    const index_t all_rows[] = {1, 26, 49 MHR_TEST_ALSO(2, 5, 13, 24, 75, 230)};
    const index_t all_ranks[] = {3, 17 MHR_TEST_ALSO(1, 16, 64)};
    std::uint64_t seed = 0;
    for (index_t rank : all_ranks)
        for (index_t rows : all_rows) {
            random_source random(++seed);
            const index_t heads = one_head ? 1 : 1 + random.integer(3);
            sizes s{rows,
                    rows == 75 ? 45 : 1 + random.integer(4),
                    heads,
                    1 + random.integer(10),
                    1 + random.integer(40),
                    1 + random.integer(40),
                    rank};
            if (rows == 13) s.in_block = 2100;
            if (rows == 26) s.out_block = 2100;
            CAPTURE(s.rows);
            CAPTURE(s.tasks);
            CAPTURE(s.heads);
            CAPTURE(s.modules);
            CAPTURE(s.in_block);
            CAPTURE(s.out_block);
            CAPTURE(s.rank);
            const world<T> w(s, seed);
            f(w, random);
        }
}

numbers all_rows_of(index_t rows) {
    numbers result;
    for (index_t row = 0; row < rows; ++row)
        result.push_back(row);
    return result;
}

template <class Step_, class T_>
struct with {
    using Step = Step_;
    using T = T_;
};
#define DETERMINISTIC_STEPS                                                                        \
    with<routed_lora_step, float>, with<routed_lora_step, bf16>,                                   \
        with<output_mixed_lora_step, float>,                                                       \
        with<routed_ia3_step, float> MHR_TEST_ALSO(with<output_mixed_lora_step, bf16>,             \
                                                   with<routed_ia3_step, bf16>)

} // namespace

TEST_CASE_TEMPLATE("a row is the same alone and in every batch, in every order", With,
                   DETERMINISTIC_STEPS) {
    using T = typename With::T;
    using Step = typename With::Step;
    for_worlds<T>(Step::one_head, [](const world<T>& w, random_source& random) {
        some_rows<T> whole(w, all_rows_of(w.s.rows));
        Step::run(whole);
        for (index_t row = 0; row < w.s.rows; row += 1 + random.integer(w.s.rows)) {
            CAPTURE(row);
            some_rows<T> alone(w, {row});
            Step::run(alone);
            CHECK(same_rows(alone, whole));
        }
        some_rows<T> shuffled(w, random.permutation(w.s.rows));
        Step::run(shuffled);
        CHECK(same_rows(shuffled, whole));
        numbers some;
        for (index_t row = 0; row < w.s.rows; ++row)
            if (random.integer(3) != 0 || row == 0) some.push_back(row);
        some_rows<T> fewer(w, some, random.permutation(w.s.tasks));
        Step::run(fewer);
        CHECK(same_rows(fewer, whole));
    });
}

TEST_CASE_TEMPLATE("in any order of tasks all gradients are the same", With, DETERMINISTIC_STEPS) {
    using T = typename With::T;
    using Step = typename With::Step;
    for_worlds<T>(Step::one_head, [](const world<T>& w, random_source& random) {
        some_rows<T> whole(w, all_rows_of(w.s.rows));
        Step::run(whole);
        some_rows<T> other(w, with_tasks_in_another_order(whole.rows, w.task_of_row, random));
        Step::run(other);
        CHECK(same_rows(other, whole));
        CHECK(same_d_weights(other, whole));
        CHECK(same_d_inventory(other, whole));

        // Called by other numbers, tasks are added up in another order; not so within a task.
        some_rows<T> renamed(w, whole.rows, random.permutation(w.s.tasks));
        Step::run(renamed);
        CHECK(same_rows(renamed, whole));
        CHECK(same_d_weights(renamed, whole));

        // Rows of no task have no part in it.
        numbers with_tasks;
        for (index_t row : whole.rows)
            if (whole.task_of(row) != no_task) with_tasks.push_back(row);
        some_rows<T> without_base_rows(w, with_tasks);
        Step::run(without_base_rows);
        CHECK(same_d_weights(without_base_rows, whole));
        CHECK(same_d_inventory(without_base_rows, whole));
    });
}

TEST_CASE_TEMPLATE("the gradient of a task's weights depends on its own rows", With,
                   DETERMINISTIC_STEPS) {
    using T = typename With::T;
    using Step = typename With::Step;
    constexpr bool in_parts = std::is_same_v<Step, routed_lora_step>;
    for_worlds<T>(Step::one_head, [](const world<T>& w, random_source&) {
        some_rows<T> whole(w, all_rows_of(w.s.rows));
        Step::run(whole);
        // Beyond that many rows routed LoRA takes longer parts of them together.
        constexpr index_t most = batch_details::rows_per_block * batch_details::parts_of_batch;
        if (in_parts && whole.plan.row_order().extent(0) > most) return;
        numbers rows;
        for (index_t row : whole.rows)
            if (whole.task_of(row) == 0) rows.push_back(row);
        some_rows<T> alone(w, rows);
        Step::run(alone);
        CHECK(same_d_weights(alone, whole));
    });
}

TEST_CASE("what the rows of a batch depend on would be seen") {
    const world<float> w({40, 3, 2, 3, 20, 30, 5}, 1);
    some_rows<float> whole(w, all_rows_of(40));
    routed_lora_step::run(whole);
    some_rows<float> other(w, all_rows_of(40));
    routed_lora_step::run(other);
    REQUIRE(same_rows(other, whole));
    other.y(39, 59) += 1;
    CHECK_FALSE(same_rows(other, whole));
    other.d_weights(2, 1, 2) += 1;
    CHECK_FALSE(same_d_weights(other, whole));
    other.d_b(1, 2, 4, 29) += 1;
    CHECK_FALSE(same_d_inventory(other, whole));
}
