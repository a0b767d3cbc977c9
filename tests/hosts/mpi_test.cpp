// Run by several processes at once (1, 2 and 3): each makes the same checks of its own share.

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/hosts/mpi.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/training/parameter_layout.hpp>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/layer_checks.hpp"
#include "support/layer_problem.hpp"
#include "support/random_tensor.hpp"
#include "support/sharded_ranks.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const MPI_Comm world = MPI_COMM_WORLD;
constexpr layer_sizes usual{21, 3, 5, 4, 5, 7, 3};

/// Every size once 1, more tasks than rows, ranks beyond the tiles; of one head for one process.
constexpr layer_sizes shapes[] = {
    {1, 1, 1, 1, 1, 1, 1},  {9, 2, 3, 4, 3, 5, 2},   {40, 1, 2, 3, 8, 11, 16},
    {5, 9, 3, 4, 17, 6, 3}, {70, 3, 5, 3, 1, 7, 17}, {6, 2, 3, 2, 65, 70, 33},
};

index_t rank_of(MPI_Comm comm) {
    int rank = 0;
    MPI_Comm_rank(comm, &rank);
    return rank;
}
index_t size_of(MPI_Comm comm) {
    int size = 0;
    MPI_Comm_size(comm, &size);
    return size;
}

/// Makes the elements of a tensor those of the rank `owner`.
template <std::size_t Rank>
void broadcast(MPI_Comm comm, index_t owner, const tensor_ref<Rank>& ref) {
    std::vector<double> elements;
    for_each_position(ref.extents(),
                      [&](const position<Rank>& at) { elements.push_back(element(ref, at)); });
    MPI_Bcast(elements.data(), static_cast<int>(elements.size()), MPI_DOUBLE,
              static_cast<int>(owner), comm);
    std::size_t next = 0;
    for_each_position(ref.extents(),
                      [&](const position<Rank>& at) { set_element(ref, at, elements[next++]); });
}

/// A rank's share of a problem that every rank has the whole of, for comparison.
class rank_of_layer {
  public:
    rank_of_layer(MPI_Comm comm, layer_problem& problem)
        : comm_(comm), p_(problem), shard_(mpi::shard_of_heads(comm, problem.s.shape())),
          sum_(comm), rows_{p_.plan, {}, sum_}, layer_(shard_.of_layer(p_.layer())),
          state_memory_(routed_lora_state_size(rows_, layer_, p_.types.sums)),
          scratch_(routed_lora_backward_workspace_size(rows_, layer_, p_.types.sums)) {
        workspace memory = state_memory_;
        state = take_routed_lora_state(memory, rows_, layer_, p_.types.sums);
    }
    rank_of_layer(const rank_of_layer&) = delete;
    rank_of_layer& operator=(const rank_of_layer&) = delete;

    /// Adds to this rank's features of y.
    void forward(const tensor_ref<2>& y) {
        routed_lora_forward(rows_, layer_, shard_.of_x(p_.x.const_ref()), y, state);
    }
    void forward() { forward(shard_.of_y(p_.y.ref())); }

    /// Takes gradients of the whole layer.
    void backward(const routed_lora_gradients& gradients, workspace scratch) {
        routed_lora_backward(rows_, layer_, shard_.of_x(p_.x.const_ref()),
                             shard_.of_d_y(p_.d_y.const_ref()), state,
                             shard_.of_gradients(gradients), scratch);
    }
    void backward(const routed_lora_gradients& gradients) { backward(gradients, scratch_); }
    void backward() { backward(p_.gradients()); }

    void run() {
        forward();
        backward();
    }

    /// Fetches what the other ranks computed.
    void gather() {
        for (index_t owner = 0; owner < size_of(comm_); ++owner) {
            const lora_shard shard = shard_of_heads(p_.s.shape(), owner, size_of(comm_));
            const routed_lora_gradients gradients = shard.of_gradients(p_.gradients());
            broadcast(comm_, owner, shard.of_y(p_.y.ref()));
            broadcast(comm_, owner, gradients.x);
            broadcast(comm_, owner, gradients.a);
            broadcast(comm_, owner, gradients.b);
            broadcast(comm_, owner, gradients.weights);
        }
    }

    std::vector<std::byte>& scratch() { return scratch_.bytes; }
    [[nodiscard]] const lora_shard& shard() const { return shard_; }

    routed_lora_state state;

  private:
    MPI_Comm comm_;
    layer_problem& p_;
    lora_shard shard_;
    mpi::rank_sum sum_;
    batch rows_;
    routed_lora layer_;
    poisoned_memory state_memory_, scratch_;
};

} // namespace

TEST_CASE("values are summed over the ranks, in pieces and whole") {
    const auto ranks = static_cast<double>(size_of(world));
    const auto here = static_cast<double>(rank_of(world) + 1);
    for (element_type type : sum_types)
        for (index_t count : {0, 1, 20, 100000}) {
            CAPTURE(count);
            const auto of_owner = [&](double owner) {
                double i = 0;
                return [=](double) mutable { return owner * std::fmod(i++, 1000); };
            };
            guarded_tensor<1> whole(type, {count}), pieces(type, {count}), want(type, {count});
            guarded_tensor<2> hooked(type, {count, 1});
            transform_elements(whole.ref(), of_owner(here));
            transform_elements(pieces.ref(), of_owner(here));
            transform_elements(hooked.ref(), of_owner(here));
            transform_elements(want.ref(), of_owner(ranks * (ranks + 1) / 2));
            mpi::all_reduce(world, whole.ref());
            argument_checks checks("test");
            mpi::mpi_details::sum_elements(checks, world, pieces.ref(), 7777);
            mpi::rank_sum{world}(hooked.ref());
            CHECK(whole.intact());
            CHECK(pieces.intact());
            if (count == 0) continue;
            CHECK(compare_bitwise(whole.ref(), want.ref()));
            CHECK(compare_bitwise(pieces.ref(), want.ref()));
            CHECK(compare_bitwise(hooked.ref().slice(1, 0), want.ref()));
        }
    // A host writes it so.
    std::vector<float> values(3, 1);
    mpi::all_reduce(world, {values.data(), {3}});
    CHECK(static_cast<double>(values[2]) == ranks);
}

TEST_CASE("every time and on every rank the sums have the same bits") {
    tensor<float, 1> start({100000}), first({100000});
    random_source(static_cast<std::uint64_t>(rank_of(world)) + 1).fill(start.view());
    for (int time = 0; time < 5; ++time) {
        tensor<float, 1> sums = start;
        mpi::all_reduce(world, sums.view());
        if (time == 0) first = sums;
        CHECK(compare_bitwise(sums.view(), first.view()));
        tensor<float, 1> of_others = sums;
        for (index_t owner = 0; owner < size_of(world); ++owner) {
            broadcast<1>(world, owner, of_others.view());
            CHECK(compare_bitwise(of_others.view(), sums.view()));
            of_others = sums;
        }
    }
}

TEST_CASE("data-parallel gradients in one buffer are those of the whole batch") {
    const layer_sizes s{24, 3, 4, 3, 5, 7, 2};
    layer_problem whole(s);
    whole.make_whole(); // sums are exact
    whole.d_a.fill(0);
    whole.d_b.fill(0);
    whole.d_weights.fill(0);
    whole.run();

    // Each rank has the whole batch and gives a task to its own rows alone: the entry of the whole.
    std::vector<std::int64_t> task_of_row(static_cast<std::size_t>(s.rows), -1);
    for (index_t entry = 0; entry < whole.plan.entries(); ++entry) {
        const auto rows = whole.plan.rows_of(entry);
        for (index_t i = 0; i < rows.extent(0); ++i)
            if (rows(i) % size_of(world) == rank_of(world))
                task_of_row[static_cast<std::size_t>(rows(i))] = entry;
    }
    layer_problem mine(s, plan_of(task_of_row));
    mine.make_whole();
    REQUIRE(mine.plan.entries() > 0);

    parameter_layout layout;
    const auto inventory = layout.place_inventory(s.shape());
    const auto weights = layout.place<3>(whole.weights.extents());
    std::vector<float> memory(static_cast<std::size_t>(layout.size()));
    const tensor_ref<1> gradients(memory.data(), {layout.size()});

    // The weights of this rank's entries are those of the whole.
    const auto entry_of_whole = [&](index_t entry) {
        return static_cast<index_t>(mine.plan.tasks()(entry));
    };
    const auto copy = [](const tensor_ref<2>& from, const tensor_ref<2>& to) {
        for_each_position(from.extents(),
                          [&](const position<2>& at) { set_element(to, at, element(from, at)); });
    };
    for (index_t entry = 0; entry < mine.plan.entries(); ++entry)
        copy(whole.weights.ref().slice(0, entry_of_whole(entry)),
             mine.weights.ref().slice(0, entry));

    mine.d_weights.fill(0);
    const batch rows{mine.plan};
    poisoned_memory of_state(routed_lora_state_size(rows, mine.layer()));
    poisoned_memory scratch(routed_lora_backward_workspace_size(rows, mine.layer()));
    workspace taken = of_state;
    const auto state = take_routed_lora_state(taken, rows, mine.layer());
    const lora_inventory_matrices d_inventory = inventory.in(gradients);
    routed_lora_forward(rows, mine.layer(), mine.x.const_ref(), mine.y.ref(), state);
    routed_lora_backward(rows, mine.layer(), mine.x.const_ref(), mine.d_y.const_ref(), state,
                         {{}, d_inventory.a, d_inventory.b, mine.d_weights.ref()}, scratch);
    for (index_t entry = 0; entry < mine.plan.entries(); ++entry)
        copy(mine.d_weights.ref().slice(0, entry),
             weights.in(gradients).slice(0, entry_of_whole(entry)));

    mpi::all_reduce(world, gradients);
    CHECK(compare_bitwise(d_inventory.a, whole.d_a.ref()));
    CHECK(compare_bitwise(d_inventory.b, whole.d_b.ref()));
    CHECK(compare_bitwise(weights.in(gradients), whole.d_weights.ref()));
    double beside = 0; // what lies between the tensors
    for (float value : memory)
        beside += std::abs(static_cast<double>(value));
    const auto without = [&](const auto& ref) {
        for_each_position(ref.extents(),
                          [&](const auto& at) { beside -= std::abs(element(ref, at)); });
    };
    without(d_inventory.a);
    without(d_inventory.b);
    without(weights.in(gradients));
    CHECK(beside == 0);
}

TEST_CASE("ranks that own heads agree with the whole layer") {
    for (const layer_types& types : types_of_layers())
        for (const layer_sizes& s : shapes) {
            if (s.heads < size_of(world)) continue;
            CAPTURE(std::string(name_of(types.rows)));
            CAPTURE(s.rows);
            CAPTURE(s.heads);
            CAPTURE(s.rank);
            layer_problem p(s, types), before(s, types);
            rank_of_layer here(world, p);
            here.run();
            here.gather();
            check_near(p, before);
            CHECK(p.intact());
        }
}

TEST_CASE("any number of ranks is the same where sums are exact") {
    for (element_type type : sum_types) {
        layer_problem p(usual, all_of(type)), want(usual, all_of(type));
        p.make_whole();
        want.make_whole();
        rank_of_layer here(world, p);
        here.run();
        here.gather();
        want.run();
        check_same(p, want);
    }
}

TEST_CASE("sharded LoRA has the same bits every time, and on two ranks those of one process") {
    layer_problem want(usual), threads(usual);
    rank_of_layer first(world, want);
    first.run();
    first.gather();
    for (int time = 0; time < 3; ++time) {
        layer_problem p(usual);
        rank_of_layer here(world, p);
        here.run();
        here.gather();
        check_same(p, want);
    }
    if (size_of(world) != 2) return; // one sum of two has but one order
    run_sharded(threads, 2);
    check_same(threads, want);
}

TEST_CASE("a rank alone is the whole layer") {
    layer_problem p(usual), want(usual);
    rank_of_layer here(MPI_COMM_SELF, p);
    here.run();
    want.run();
    check_same(p, want);
}

TEST_CASE("gradients that are absent on all ranks are not computed") {
    layer_problem all(usual), none(usual);
    rank_of_layer of_all(world, all);
    of_all.run();
    of_all.gather();
    for (int wanted = 0; wanted < 16; ++wanted) {
        CAPTURE(wanted);
        const bool x = (wanted & 1) != 0, a = (wanted & 2) != 0, b = (wanted & 4) != 0,
                   w = (wanted & 8) != 0;
        layer_problem p(usual);
        rank_of_layer here(world, p);
        here.forward();
        here.backward({x ? p.d_x.ref() : tensor_ref<2>{}, a ? p.d_a.ref() : tensor_ref<4>{},
                       b ? p.d_b.ref() : tensor_ref<4>{}, w ? p.d_weights.ref() : tensor_ref<3>{}});
        here.gather();
        CHECK(compare_bitwise(p.d_x.ref(), (x ? all : none).d_x.ref()));
        CHECK(compare_bitwise(p.d_a.ref(), (a ? all : none).d_a.ref()));
        CHECK(compare_bitwise(p.d_b.ref(), (b ? all : none).d_b.ref()));
        CHECK(compare_bitwise(p.d_weights.ref(), (w ? all : none).d_weights.ref()));
    }
}

TEST_CASE("bad input is refused on every rank before anything is sent") {
    std::vector<float> values(10);
    const auto refuses_all_reduce = [&](const char* argument, MPI_Comm comm,
                                        const tensor_ref<1>& ref) {
        return refuses("mpi::all_reduce", argument, [&] { mpi::all_reduce(comm, ref); });
    };
    const tensor_ref<1> good(values.data(), {10});
    CHECK_FALSE(refuses_all_reduce("values", world, good));
    CHECK(refuses_all_reduce("comm", MPI_COMM_NULL, good));
    CHECK(refuses_all_reduce("values", world, {values.data(), {5}, {2}}));
    CHECK(refuses_all_reduce("values", world, {values.data(), {10}, {0}}));
    CHECK(refuses_all_reduce("values", world, {nullptr, element_type::f32, {10}}));
    for (element_type type : {element_type::bf16, element_type::f16})
        CHECK(refuses_all_reduce("values", world, {values.data(), type, {10}}));

    CHECK(refuses("mpi::rank_sum", "comm", [] { (void)mpi::rank_sum(MPI_COMM_NULL); }));
    const mpi::rank_sum sum(world);
    CHECK(refuses("mpi::rank_sum", "values", [&] { sum({values.data(), {2, 3}, {5, 1}}); }));
    CHECK(refuses("mpi::rank_sum", "values", [&] {
        sum({values.data(), element_type::bf16, {2, 3}});
    }));

    CHECK(refuses("mpi::shard_of_heads", "comm", [&] {
        (void)mpi::shard_of_heads(MPI_COMM_NULL, {2, 2, 8, 8, 2});
    }));
    if (size_of(world) > 1)
        CHECK(refuses("shard_of_heads", "nth", [&] {
            (void)mpi::shard_of_heads(world, {size_of(world) - 1, 2, 0, 0, 2});
        }));
    argument_checks checks("f");
    mpi::mpi_details::check_success(checks, "MPI_Allreduce", MPI_ERR_COUNT);
    const auto outcome = refuses("f", "comm", [&] { checks.raise(); });
    CHECK(outcome);
    CHECK(outcome.message.find("success of MPI_Allreduce, got MPI_ERR_COUNT") != std::string::npos);

    layer_problem p(usual);
    rank_of_layer here(world, p);
    // The state is NaN until it is written.
    const tensor_ref<2> hidden = here.state.hidden;
    const tensor_ref<2> y = here.shard().of_y(p.y.ref());
    CHECK(refuses(
        "routed_lora_forward", "y", [&] { here.forward(y.block(1, 1, y.extent(1) - 1)); }, p.y));
    here.state.hidden = {hidden.data(), hidden.type(), hidden.extents(), {1, hidden.extent(0)}};
    CHECK(refuses(
        "routed_lora_forward", "state.hidden", [&] { here.forward(); }, p.y));
    here.state.hidden = hidden;
    CHECK(std::isnan(element(hidden, {0, 0})));
    here.forward();
    CHECK(refuses(
        "routed_lora_backward", "workspace",
        [&] {
            here.backward(p.gradients(), {here.scratch().data(), here.scratch().size() - 1});
        },
        p.d_x, p.d_a, p.d_b, p.d_weights));
    here.backward();
}
