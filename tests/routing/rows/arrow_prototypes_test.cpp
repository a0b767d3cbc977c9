#include <cmath>
#include <string>

#include <Eigen/SVD>
#include <doctest/doctest.h>

#include <mhr/routing/rows/arrow_prototypes.hpp>

#include "support/allocation_counter.hpp"
#include "support/row_checks.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using eigen_matrix = Eigen::Matrix<long double, Eigen::Dynamic, Eigen::Dynamic>;

template <class Void>
eigen_matrix to_eigen(const basic_tensor_ref<Void, 2>& of) {
    eigen_matrix result(of.extent(0), of.extent(1));
    for (index_t i = 0; i < of.extent(0); ++i)
        for (index_t k = 0; k < of.extent(1); ++k)
            result(i, k) = static_cast<long double>(element(of, {i, k}));
    return result;
}

void run(const const_tensor_ref<2>& a, const const_tensor_ref<2>& b, const tensor_ref<1>& to) {
    owned_workspace scratch(arrow_prototype_workspace_size(a.extent(0), a.extent(1)));
    CHECK(allocations_of([&] { arrow_prototype(a, b, to, scratch); }) == 0);
}

} // namespace

TEST_CASE("a prototype is the first left singular vector, by another way") {
    struct sizes {
        index_t in, rank, out;
    };
    for (const sizes& s : {sizes{1, 1, 1},
                           {40, 1, 30},
                           {37, 5, 29},
                           {20, 16, 18},
                           {3, 8, 50},
                           {64, 33, 64},
                           {50, 8, 3}})
        for (element_type type : all_element_types)
            for (layout order : all_layouts) {
                CAPTURE(s.in);
                CAPTURE(s.rank);
                CAPTURE(std::string(name_of(type)));
                CAPTURE(name_of(order));
                random_guarded<2> a(type, {s.in, s.rank}, 1, order),
                    b(type, {s.rank, s.out}, 2, order, -1e-3, 1e-3);
                guarded_tensor<1> prototype(element_type::f64, {s.in});
                run(a, b, prototype);
                const eigen_matrix product = to_eigen(a.ref()) * to_eigen(b.ref());
                const Eigen::JacobiSVD<eigen_matrix> svd(product, Eigen::ComputeThinU);
                const auto& values = svd.singularValues();
                // A direction is known the less, the closer the next singular value is.
                const long double gap =
                    values.size() > 1 ? 1 - values(1) / values(0) : static_cast<long double>(1);
                REQUIRE(gap > 1e-3L);
                long double along = 0, length = 0, largest = 0;
                for (index_t i = 0; i < s.in; ++i) {
                    const auto p = static_cast<long double>(element(prototype.ref(), {i}));
                    along += p * svd.matrixU()(i, 0);
                    length += p * p;
                    if (std::abs(p) > std::abs(largest)) largest = p;
                }
                CHECK(std::abs(length - 1) < 1e-14L);
                CHECK(largest > 0);
                for (index_t i = 0; i < s.in; ++i) {
                    const auto p = static_cast<long double>(element(prototype.ref(), {i}));
                    CHECK(std::abs(p - (along > 0 ? 1 : -1) * svd.matrixU()(i, 0)) < 1e-14L / gap);
                }
                CHECK(prototype.intact());
            }
}

TEST_CASE("an adapter of zeros, or of rank 0, has a prototype of zeros") {
    random_guarded<2> a(element_type::f32, {7, 3}, 1), b(element_type::f32, {3, 5}, 2);
    b.fill(0);
    guarded_tensor<1> prototype(element_type::f32, {7});
    prototype.fill(9);
    run(a, b, prototype);
    for (index_t i = 0; i < 7; ++i)
        CHECK(element(prototype.ref(), {i}) == 0);
    prototype.fill(9);
    run(a.ref().block(1, 0, 0), b.ref().block(0, 0, 0), prototype);
    CHECK(element(prototype.ref(), {3}) == 0);
}

TEST_CASE("the power iteration of PEFT, by its formula") {
    const index_t in = 45, rank = 6, out = 33;
    for (double scale : {1.0, 1e-4}) {
        random_guarded<2> a(element_type::f32, {in, rank}, 1),
            b(element_type::bf16, {rank, out}, 2);
        transform_elements(b.ref(), [&](double x) { return x * scale; });
        random_guarded<1> start(element_type::f32, {in}, 3);
        guarded_tensor<1> got(element_type::f32, {in});
        owned_workspace scratch(arrow_prototype_of_peft_workspace_size(in, rank));
        CHECK(allocations_of([&] { arrow_prototype_of_peft(a, b, start, got, scratch); }) == 0);
        const eigen_matrix ea = to_eigen(a.ref()), eb = to_eigen(b.ref());
        eigen_matrix v(in, 1);
        for (index_t i = 0; i < in; ++i)
            v(i, 0) = static_cast<long double>(element(start.ref(), {i}));
        v /= v.norm() + 1e-8L;
        for (int i = 0; i < 15; ++i) {
            v = eigen_matrix(ea * (eb * (eb.transpose() * (ea.transpose() * v))));
            v /= v.norm() + 1e-8L;
        }
        for (index_t i = 0; i < in; ++i)
            CHECK(std::abs(static_cast<long double>(element(got.ref(), {i})) - v(i, 0)) < 2e-5L);
        CHECK(got.intact());
    }
}

TEST_CASE("general knowledge is subtracted") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            random_guarded<3> general(type, {3, 5, 4}, 1, order);
            random_guarded<2> matrix(type, {5, 4}, 2, order);
            auto want = values_as<long double>(matrix.ref());
            for_each_position(general.extents(), [&](const position<3>& at) {
                want(at[1], at[2]) -= static_cast<long double>(element(general.ref(), at)) / 3;
            });
            subtract_general_knowledge(general, matrix);
            check_near(matrix, want, sums_of(type, type), 4);
        }
}

TEST_CASE("bad arguments of prototypes are refused by name") {
    random_guarded<2> a(element_type::f32, {7, 3}, 1), b(element_type::f32, {3, 5}, 2);
    random_guarded<1> start(element_type::f32, {7}, 3);
    random_guarded<3> general(element_type::f32, {2, 7, 3}, 4);
    guarded_tensor<1> to(element_type::f32, {7});
    owned_workspace memory(arrow_prototype_workspace_size(7, 3));
    owned_workspace other(arrow_prototype_of_peft_workspace_size(7, 3));
    check_bad_input("arrow_prototype", "a", a.const_ref(), {0, 1},
                    [&](const auto& bad) { arrow_prototype(bad, b, to, memory); });
    check_bad_input("arrow_prototype", "b", b.const_ref(), {1},
                    [&](const auto& bad) { arrow_prototype(a, bad, to, memory); });
    check_bad_output("arrow_prototype", "prototype", to.ref(), {},
                     [&](const auto& bad) { arrow_prototype(a, b, bad, memory); });
    CHECK(refuses(
        "arrow_prototype", "workspace", [&] { arrow_prototype(a, b, to, {}); }, to));
    check_bad_input("arrow_prototype_of_peft", "start", start.const_ref(), {},
                    [&](const auto& bad) { arrow_prototype_of_peft(a, b, bad, to, other); });
    check_bad_output("arrow_prototype_of_peft", "prototype", to.ref(), {},
                     [&](const auto& bad) { arrow_prototype_of_peft(a, b, start, bad, other); });
    CHECK(refuses(
        "arrow_prototype_of_peft", "workspace",
        [&] { arrow_prototype_of_peft(a, b, start, to, {}); }, to));
    random_guarded<2> a64(element_type::f64, {7, 3}, 1);
    CHECK(refuses(
        "arrow_prototype_of_peft", "a", [&] { arrow_prototype_of_peft(a64, b, start, to, other); },
        to));
    check_bad_input("subtract_general_knowledge", "general", general.const_ref(), {0},
                    [&](const auto& bad) { subtract_general_knowledge(bad, a); });
    check_bad_output("subtract_general_knowledge", "matrix", a.ref(), {0, 1},
                     [&](const auto& bad) { subtract_general_knowledge(general, bad); });
    CHECK(refuses("subtract_general_knowledge", "general",
                  [&] { subtract_general_knowledge(general.ref().block(0, 0, 0), a); }));
}
