#pragma once

#include <complex>
#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <mhr/batch/batch.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>

#include "support/contract/arguments.hpp"
#include "support/tensor.hpp"

/// \file
/// What an adapter's page tells of it, so that the contract of all adapters can be checked. (Mixing
/// keeps it, too: an adapter without rows.)

namespace mhr::test {

/// The sizes of a call. Each adapter uses those that it has; `in` and `out` are those of one head.
struct contract_sizes {
    index_t rows = 21, tasks = 3, heads = 2, modules = 4, in = 5, out = 7, rank = 3;

    [[nodiscard]] index_t in_features() const { return heads * in; }
    [[nodiscard]] index_t out_features() const { return heads * out; }
};

/// The values of all tensors in the oracle's type.
template <class S>
struct oracle_values {
    tensor<index_t, 1> entry_of_row; ///< -1 for rows of no task
    S scale{};
    std::map<std::string_view, tensor<S, 4>> tensors{};

    /// One tensor, with the axes that it has.
    template <std::size_t Rank>
    [[nodiscard]] tensor_view<S, Rank> get(std::string_view name) {
        return without_first_axes<Rank>(tensors.at(name).view());
    }
    template <std::size_t Rank>
    [[nodiscard]] tensor_view<const S, Rank> input(std::string_view name) {
        return mhr::as_const(get<Rank>(name));
    }
    [[nodiscard]] tensor_view<const index_t, 1> entries() const { return entry_of_row.view(); }

  private:
    template <std::size_t Rank, std::size_t From>
    static tensor_view<S, Rank> without_first_axes(const tensor_view<S, From>& view) {
        if constexpr (Rank == From)
            return view;
        else
            return without_first_axes<Rank>(view.slice(0, 0));
    }
};

/// An adapter. Pages derive from `described_adapter`, which makes the three oracles of one
/// template.
class adapter {
  public:
    adapter() = default;
    adapter(const adapter&) = delete;
    adapter& operator=(const adapter&) = delete;
    virtual ~adapter() = default;

    /// Names of the functions, which begin their messages.
    [[nodiscard]] virtual std::string forward_name() const = 0;
    [[nodiscard]] virtual std::string backward_name() const = 0;

    /// All tensors of a call.
    [[nodiscard]] virtual std::vector<tensor_spec> tensors(const contract_sizes& sizes,
                                                           index_t entries) const = 0;

    virtual void forward(const batch& rows, const arguments& given) const = 0;
    virtual void backward(const batch& rows, const arguments& given, workspace scratch) const = 0;

    /// The question whether a forward can be served, of those that have one.
    [[nodiscard]] virtual bool has_question() const { return true; }
    [[nodiscard]] virtual std::string why_not(const batch& /*rows*/,
                                              const arguments& /*given*/) const {
        return {};
    }

    /// Bytes of the backward's workspace, and of a state. Adapters without them need none.
    [[nodiscard]] virtual std::size_t
    scratch_size(const batch& /*rows*/, const arguments& /*given*/, element_type /*sums*/) const {
        return 0;
    }
    [[nodiscard]] virtual std::size_t state_size(const batch& /*rows*/, const arguments& /*given*/,
                                                 element_type /*sums*/) const {
        return 0;
    }
    /// Puts a state from a workspace in the place of the one that is given.
    virtual void take_state(workspace& /*memory*/, const batch& /*rows*/, arguments& /*given*/,
                            element_type /*sums*/) const {}

    /// True if hosts may hand out shares of it.
    [[nodiscard]] virtual bool forward_is_one_phase() const { return true; }
    [[nodiscard]] virtual bool backward_is_one_phase() const { return false; }

    /// True if results are multiplied with a scale of the call.
    [[nodiscard]] virtual bool has_scale() const { return true; }

    /// True if results are divided by the number of modules, which is not exact for each number.
    [[nodiscard]] virtual bool divides_by_modules() const { return false; }

    /// True if every gradient must be given.
    [[nodiscard]] virtual bool needs_all_gradients() const { return false; }

    /// True if some tensor belongs to the entries of a batch: else a row's task changes nothing, as
    /// long as it has one.
    [[nodiscard]] virtual bool depends_on_entries() const { return true; }

    /// True if rows of no task are copied to y, rather than left alone, or if no task is needed.
    [[nodiscard]] virtual bool writes_without_tasks() const { return false; }

    /// True for results whose sums run along the memory of an input, which decides their order.
    [[nodiscard]] virtual bool sums_along_memory(std::string_view /*result*/) const {
        return false;
    }

    /// Roundings of a result, in epsilons of the type of sums and of the magnitudes of its terms: n
    /// products that are summed one after the other are within n / 2.
    [[nodiscard]] virtual double roundings(std::string_view result,
                                           const contract_sizes& sizes) const = 0;

    /// True for gradients that are added to, and rounded to their type, twice.
    [[nodiscard]] virtual bool is_added_to_twice(std::string_view /*result*/) const {
        return false;
    }

    /// The type of the sums of a result, for adapters without a state that says it.
    [[nodiscard]] virtual element_type sums_of_result(std::string_view /*result*/,
                                                      const arguments& /*given*/) const {
        return element_type::f32;
    }

    /// The oracle: what is written and added to, from the inputs.
    /// @{
    virtual void expect_forward(oracle_values<double>& values) const = 0;
    virtual void expect_forward(oracle_values<long double>& values) const = 0;
    virtual void expect_forward(oracle_values<std::complex<double>>& values) const = 0;
    virtual void expect_backward(oracle_values<double>& values) const = 0;
    virtual void expect_backward(oracle_values<long double>& values) const = 0;
    /// @}
};

/// An adapter whose page has the templates `oracle_forward(values)` and `oracle_backward(values)`.
template <class Page>
class described_adapter : public adapter {
    [[nodiscard]] const Page& page() const { return static_cast<const Page&>(*this); }

    void expect_forward(oracle_values<double>& values) const final {
        page().oracle_forward(values);
    }
    void expect_forward(oracle_values<long double>& values) const final {
        page().oracle_forward(values);
    }
    void expect_forward(oracle_values<std::complex<double>>& values) const final {
        page().oracle_forward(values);
    }
    void expect_backward(oracle_values<double>& values) const final {
        page().oracle_backward(values);
    }
    void expect_backward(oracle_values<long double>& values) const final {
        page().oracle_backward(values);
    }
};

} // namespace mhr::test
