// Run by several processes at once (1, 2 and 3): each makes the same checks of its own share.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/adapters/parameter_span.hpp>
#include <mhr/interop/mpi.hpp>

#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_checks.hpp"
#include "support/routed_problem.hpp"
#include "support/sharded_layer.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const MPI_Comm world = MPI_COMM_WORLD;
constexpr routed_sizes usual{21, 3, 5, 4, 5, 7, 3};

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

/// Makes the elements of a view those of the rank `owner`.
template <class T, std::size_t Rank>
void broadcast(MPI_Comm comm, index_t owner, const tensor_view<T, Rank>& view) {
    std::vector<T> elements;
    for_each_position(view.extents(),
                      [&](const position<Rank>& at) { elements.push_back(element(view, at)); });
    MPI_Bcast(elements.data(), static_cast<int>(elements.size() * sizeof(T)), MPI_BYTE,
              static_cast<int>(owner), comm);
    std::size_t next = 0;
    for_each_position(view.extents(),
                      [&](const position<Rank>& at) { element(view, at) = elements[next++]; });
}

/// A rank's share of a problem that every rank has the whole of, for comparison.
template <class T>
class rank_of_layer {
  public:
    rank_of_layer(MPI_Comm comm, routed_problem<T>& problem)
        : comm_(comm), p_(problem), shard_(mpi::shard_of_heads(comm, problem.shape())),
          state_memory_(routed_lora_state_size<typename T::A>(p_.plan, shard_.shape),
                        std::byte{0xff}),
          scratch_(
              mpi::sharded_lora_backward_workspace_size<typename T::Sum>(p_.plan, shard_.shape),
              std::byte{0xff}) {
        workspace memory(state_memory_.data(), state_memory_.size());
        state_ = take_routed_lora_state<typename T::A>(memory, p_.plan, shard_.shape);
    }

    /// Adds to this rank's features of y.
    void forward(tensor_view<typename T::Y, 2> y) {
        mpi::sharded_lora_forward(comm_, serial_executor{}, p_.plan, shard_.of_inputs(p_.x.view()),
                                  shard_.of_inventory(p_.inventory()),
                                  shard_.of_weights(p_.weights.view()), p_.scale, y, state_);
    }
    void forward() { forward(shard_.of_outputs(p_.y.view())); }

    void backward(workspace scratch) {
        backward(shard_.of_inputs(p_.d_x.view()), shard_.of_inventory(p_.d_inventory()),
                 shard_.of_weights(p_.d_weights.view()), scratch);
    }
    void backward() { backward({scratch_.data(), scratch_.size()}); }
    void backward(tensor_view<typename T::DX, 2> d_x, lora_inventory<typename T::DM> d_inventory,
                  tensor_view<typename T::DW, 3> d_weights, workspace scratch) {
        mpi::sharded_lora_backward(
            comm_, serial_executor{}, p_.plan, shard_.of_inputs(p_.x.view()),
            shard_.of_inventory(p_.inventory()), shard_.of_weights(p_.weights.view()), p_.scale,
            state_, shard_.of_outputs(p_.y.view()), d_x, d_inventory, d_weights, scratch);
    }
    /// The others written {}.
    void backward_of_routing() {
        mpi::sharded_lora_backward(
            comm_, serial_executor{}, p_.plan, shard_.of_inputs(p_.x.view()),
            shard_.of_inventory(p_.inventory()), shard_.of_weights(p_.weights.view()), p_.scale,
            state_, shard_.of_outputs(p_.y.view()), {}, {}, shard_.of_weights(p_.d_weights.view()),
            {scratch_.data(), scratch_.size()});
    }
    void backward_of_adapters() {
        mpi::sharded_lora_backward(
            comm_, serial_executor{}, p_.plan, shard_.of_inputs(p_.x.view()),
            shard_.of_inventory(p_.inventory()), shard_.of_weights(p_.weights.view()), p_.scale,
            state_, shard_.of_outputs(p_.y.view()), shard_.of_inputs(p_.d_x.view()),
            shard_.of_inventory(p_.d_inventory()), {}, {scratch_.data(), scratch_.size()});
    }

    /// Fetches what the other ranks computed.
    void gather() {
        for (index_t owner = 0; owner < size_of(comm_); ++owner) {
            const lora_shard shard = shard_of_heads(p_.shape(), owner, size_of(comm_));
            broadcast(comm_, owner, shard.of_outputs(p_.y.view()));
            broadcast(comm_, owner, shard.of_inputs(p_.d_x.view()));
            broadcast(comm_, owner, shard.of_inventory(p_.d_inventory()).a);
            broadcast(comm_, owner, shard.of_inventory(p_.d_inventory()).b);
            broadcast(comm_, owner, shard.of_weights(p_.d_weights.view()));
        }
    }

    routed_lora_state<typename T::A>& state() { return state_; }
    std::vector<std::byte>& scratch() { return scratch_; }
    [[nodiscard]] const lora_shard& shard() const { return shard_; }

  private:
    MPI_Comm comm_;
    routed_problem<T>& p_;
    lora_shard shard_;
    std::vector<std::byte> state_memory_, scratch_;
    routed_lora_state<typename T::A> state_;
};

} // namespace

TEST_CASE_TEMPLATE("values are summed over the ranks, in pieces and whole", T, float, double) {
    const auto ranks = static_cast<T>(size_of(world));
    const auto here = static_cast<T>(rank_of(world) + 1);
    for (index_t count : {0, 1, 20, 100000}) {
        CAPTURE(count);
        tensor<T, 2> whole({count, 2}), pieces({count, 2}), want({count, 2});
        for (std::size_t i = 0; i < want.values().size(); ++i) {
            const T number = static_cast<T>(i % 1000);
            whole.values()[i] = pieces.values()[i] = here * number;
            want.values()[i] = ranks * (ranks + 1) / 2 * number;
        }
        mpi::all_reduce(world, whole.view());
        mpi::detail::all_reduce("test", world, pieces.values().data(), 2 * count, 7777);
        CHECK(whole.values() == want.values());
        CHECK(pieces.values() == want.values());
    }
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
            broadcast(world, owner, of_others.view());
            CHECK(compare_bitwise(of_others.view(), sums.view()));
            of_others = sums;
        }
    }
}

TEST_CASE("data-parallel gradients in one span are those of the whole batch") {
    using T = routed_of<float>;
    const routed_sizes s{24, 3, 4, 3, 5, 7, 2};
    routed_problem<T> whole(s);
    make_whole(whole); // sums are exact
    whole.forget_gradients();
    whole.prepare_backward();
    whole.backward();

    // Each rank has the whole batch and gives a task to its own rows alone.
    const auto entries = entry_of_row(whole.plan);
    std::vector<index_t> task_of_row;
    for (index_t row = 0; row < s.rows; ++row)
        task_of_row.push_back(row % size_of(world) == rank_of(world) ? entries(row) : -1);
    batch_plan mine;
    mine.assign_rows(tensor_view<const index_t, 1>(task_of_row.data(), {s.rows}));

    parameter_layout layout;
    const auto inventory = layout.place_inventory(whole.shape());
    const auto weights = layout.place<3>(whole.weights.view().extents());
    std::vector<float> memory(static_cast<std::size_t>(layout.size()));
    const tensor_view<float, 1> gradients(memory.data(), {layout.size()});

    // The entries of this rank's plan, as those of the whole.
    std::vector<float> w(static_cast<std::size_t>(mine.entries() * s.heads * s.modules)), d_w = w;
    const tensor_view<float, 3> my_weights(w.data(), {mine.entries(), s.heads, s.modules});
    const tensor_view<float, 3> d_my_weights(d_w.data(), my_weights.extents());
    const auto of_whole = [&](index_t entry, const tensor_view<float, 3>& view) {
        return view.slice(0, mine.tasks()(entry));
    };
    for (index_t entry = 0; entry < mine.entries(); ++entry)
        transform(of_whole(entry, whole.weights.view()), my_weights.slice(0, entry),
                  [](float value) { return value; });

    owned_workspace state_memory(routed_lora_state_size<float>(mine, whole.shape()));
    workspace taken = state_memory;
    const auto state = take_routed_lora_state<float>(taken, mine, whole.shape());
    owned_workspace scratch(routed_lora_backward_workspace_size<float>(mine, whole.shape()));
    tensor<float, 2> y({s.rows, s.out()});
    routed_lora_forward(serial_executor{}, mine, whole.x.view(), whole.inventory(), my_weights,
                        whole.scale, y.view(), state);
    routed_lora_backward(serial_executor{}, mine, whole.x.view(), whole.inventory(), my_weights,
                         whole.scale, state, whole.y.view(), tensor_view<float, 2>{},
                         inventory.in(gradients), d_my_weights, scratch);
    for (index_t entry = 0; entry < mine.entries(); ++entry)
        transform(d_my_weights.slice(0, entry), of_whole(entry, weights.in(gradients)),
                  [](float value) { return value; });

    mpi::all_reduce(world, gradients);
    CHECK(compare_bitwise(inventory.in(gradients).a, whole.d_a.view()));
    CHECK(compare_bitwise(inventory.in(gradients).b, whole.d_b.view()));
    CHECK(compare_bitwise(weights.in(gradients), whole.d_weights.view()));
    float beside = 0; // what lies between the tensors
    for (float value : memory)
        beside += std::abs(value);
    for (const auto& view : {inventory.in(gradients).a, inventory.in(gradients).b})
        for_each_position(view.extents(),
                          [&](const auto& at) { beside -= std::abs(element(view, at)); });
    for_each_position(weights.extents, [&](const auto& at) {
        beside -= std::abs(element(weights.in(gradients), at));
    });
    CHECK(beside == 0);
}

TEST_CASE_TEMPLATE("ranks that own heads agree with the oracle", T, MHR_TEST_ROUTED_STORAGES) {
    for (const routed_sizes& s : routed_shapes) {
        if (s.heads < size_of(world)) continue;
        CAPTURE(s.rows);
        CAPTURE(s.heads);
        CAPTURE(s.rank);
        routed_problem<T> p(s);
        rank_of_layer<T> here(world, p);
        check_against_oracle(
            p,
            [&] {
                here.forward();
                here.gather();
            },
            [&] {
                here.backward();
                here.gather();
            });
    }
}

TEST_CASE_TEMPLATE("sharded LoRA is exact where sums are", T, float, double) {
    routed_problem<routed_of<T>> p(usual), want(usual);
    make_whole(p);
    make_whole(want);
    rank_of_layer<routed_of<T>> here(world, p);
    const auto d_y = copy_as<T>(p.y.view());
    here.forward();
    want.forward();
    here.gather();
    CHECK(compare_bitwise(p.y.view(), want.y.view()));
    for (auto* q : {&p, &want})
        transform(d_y.view(), q->y.view(), [](T value) { return value; });
    here.backward();
    want.backward();
    here.gather();
    check_same_gradients(p, want);
}

TEST_CASE("sharded LoRA has the same bits every time, and on two ranks those of one process") {
    using T = routed_of<float>;
    routed_problem<T> want(usual), simulated(usual);
    rank_of_layer<T> first(world, want);
    first.forward();
    first.backward();
    first.gather();
    for (int time = 0; time < 3; ++time) {
        routed_problem<T> p(usual);
        rank_of_layer<T> here(world, p);
        here.forward();
        here.backward();
        here.gather();
        CHECK(compare_bitwise(p.y.view(), want.y.view()));
        check_same_gradients(p, want);
    }
    if (size_of(world) != 2) return; // one sum of two has but one order
    sharded_layer<T> layer(simulated, 2);
    layer.forward();
    layer.backward();
    CHECK(compare_bitwise(simulated.y.view(), want.y.view()));
    check_same_gradients(simulated, want);
}

TEST_CASE("a rank alone is the whole layer") {
    using T = routed_of<float>;
    routed_problem<T> p(usual), want(usual);
    rank_of_layer<T> here(MPI_COMM_SELF, p);
    here.forward();
    here.backward();
    want.forward();
    want.backward();
    CHECK(compare_bitwise(p.y.view(), want.y.view()));
    CHECK(compare_bitwise(p.d_a.view(), want.d_a.view()));
    CHECK(compare_bitwise(p.d_b.view(), want.d_b.view()));
    CHECK(compare_bitwise(p.d_x.view(), want.d_x.view()));
}

TEST_CASE("gradients that are absent on all ranks are not computed") {
    using T = routed_of<float>;
    routed_problem<T> all(usual), p(usual), none(usual);
    rank_of_layer<T> of_all(world, all), here(world, p);
    for (auto* rank : {&of_all, &here})
        rank->forward();
    of_all.backward();
    // The gradient of b alone: nothing is summed over the ranks.
    here.backward({}, {{}, here.shard().of_inventory(p.d_inventory()).b}, {},
                  {here.scratch().data(), here.scratch().size()});
    CHECK(compare_bitwise(here.shard().of_inventory(p.d_inventory()).b,
                          of_all.shard().of_inventory(all.d_inventory()).b));
    CHECK(compare_bitwise(p.d_a.view(), none.d_a.view()));
    CHECK(compare_bitwise(p.d_x.view(), none.d_x.view()));
    CHECK(compare_bitwise(p.d_weights.view(), none.d_weights.view()));
    // The routing alone.
    here.backward_of_routing();
    CHECK(compare_bitwise(here.shard().of_weights(p.d_weights.view()),
                          of_all.shard().of_weights(all.d_weights.view())));
    CHECK(compare_bitwise(p.d_a.view(), none.d_a.view()));
    // All but the routing; b has its gradient twice now.
    here.backward_of_adapters();
    CHECK(compare_bitwise(here.shard().of_inventory(p.d_inventory()).a,
                          of_all.shard().of_inventory(all.d_inventory()).a));
    CHECK(compare_bitwise(here.shard().of_inputs(p.d_x.view()),
                          of_all.shard().of_inputs(all.d_x.view())));
    CHECK(compare_bitwise(here.shard().of_weights(p.d_weights.view()),
                          of_all.shard().of_weights(all.d_weights.view())));
}

TEST_CASE("bad input is refused on every rank before anything is sent") {
    using T = routed_of<float>;
    std::vector<float> values(10);
    const auto refuses_all_reduce = [&](const char* argument, MPI_Comm comm,
                                        const tensor_view<float, 1>& view) {
        return refuses("mpi::all_reduce", argument, [&] { mpi::all_reduce(comm, view); });
    };
    CHECK(refuses_all_reduce("comm", MPI_COMM_NULL, {values.data(), {10}}));
    CHECK(refuses_all_reduce("values", world, {values.data(), {5}, {2}}));
    CHECK(refuses_all_reduce("values", world, {values.data(), {10}, {0}}));
    CHECK(refuses_all_reduce("values", world, {nullptr, {10}}));
    CHECK(refuses("mpi::shard_of_heads", "comm", [&] {
        (void)mpi::shard_of_heads(MPI_COMM_NULL, {2, 2, 8, 8, 2});
    }));
    if (size_of(world) > 1)
        CHECK(refuses("shard_of_heads", "nth", [&] {
            (void)mpi::shard_of_heads(world, {size_of(world) - 1, 2, 0, 0, 2});
        }));
    const auto outcome = refuses(
        "f", "comm", [] { mpi::detail::require_success("f", "MPI_Allreduce", MPI_ERR_COUNT); });
    CHECK(outcome);
    CHECK(outcome.message.find("success of MPI_Allreduce, got MPI_ERR_COUNT") != std::string::npos);

    routed_problem<T> p(usual);
    rank_of_layer<T> here(world, p);
    // The state is NaN until it is written.
    const auto hidden = here.state().hidden;
    const auto y = here.shard().of_outputs(p.y.view());
    CHECK(refuses(
        "mpi::sharded_lora_forward", "y", [&] { here.forward(y.block(1, 1, y.extent(1) - 1)); },
        p.y));
    here.state().hidden = {hidden.data(), hidden.extents(), {1, hidden.extent(0)}};
    CHECK(refuses(
        "mpi::sharded_lora_forward", "state.hidden", [&] { here.forward(); }, p.y));
    here.state().hidden = hidden;
    CHECK(std::isnan(hidden(0, 0)));
    here.forward();
    CHECK(refuses(
        "mpi::sharded_lora_backward", "workspace",
        [&] {
            here.backward({here.scratch().data(), here.scratch().size() - 1});
        },
        p.d_x, p.d_a, p.d_b, p.d_weights));
    CHECK(refuses(
        "mpi::sharded_lora_backward", "d_x",
        [&] {
            here.backward(p.d_x.view().block(1, 0, here.shard().shape.in_features - 1),
                          here.shard().of_inventory(p.d_inventory()), {},
                          {here.scratch().data(), here.scratch().size()});
        },
        p.d_x, p.d_a, p.d_b, p.d_weights));
    here.backward();
}
