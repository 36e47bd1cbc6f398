// Subdomains given by splits of neurons, for verifier/bounds/native_domains.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "verifier/domains.h"
#include "verifier/network.h"

namespace py = pybind11;

namespace {

template <typename V>
using Array = py::array_t<V, py::array::c_style | py::array::forcecast>;

// An array of the wanted shape; -1 leaves an axis open.
template <typename V>
Array<V> wanted(const py::dict& job, const char* name, int64_t rows, int64_t columns) {
    const auto array = job[name].cast<Array<V>>();
    const bool flat = columns == 0;
    if (array.ndim() != (flat ? 1 : 2) || (rows >= 0 && array.shape(0) != rows) ||
        (!flat && array.shape(1) != columns))
        throw py::value_error(std::string(name) + ": expected " + std::to_string(rows) + " rows of " +
                              std::to_string(columns) + " values, got an array of another shape");
    return array;
}

template <typename V>
void check_range(const char* name, const Array<V>& array, int64_t low, int64_t high) {
    for (py::ssize_t i = 0; i < array.size(); ++i)
        if (array.data()[i] < low || array.data()[i] >= high)
            throw py::value_error(std::string(name) + ": expected indices in [" + std::to_string(low) + ", " +
                                  std::to_string(high) + "), got " + std::to_string(array.data()[i]));
}

template <typename T>
py::dict bound(verifier::Domains<T>& self, const py::dict& given) {
    const int stage = given["stage"].cast<int>();  // of neurons; 0 for rows of the output
    if (stage < 0 || stage >= self.stage_count()) throw py::value_error("stage: out of range");
    Array<double> rows;
    if (stage == 0) rows = wanted<double>(given, "rows", -1, self.outputs());
    const auto spec = wanted<int32_t>(given, "spec", -1, 0);
    const int64_t count = spec.shape(0), open = self.open_count();
    const auto limit = wanted<double>(given, "limit", count, 0);
    const auto slope_row = wanted<int32_t>(given, "slope_row", count, 0), domain = wanted<int32_t>(given, "domain", count, 0);
    const auto split = given["split"].cast<Array<int32_t>>();
    if (split.ndim() != 2) throw py::value_error("split: expected [B, D]");
    const int64_t depth = split.shape(1);
    const auto sign = wanted<int8_t>(given, "sign", split.shape(0), std::max<int64_t>(depth, 1));
    const auto multiplier = wanted<float>(given, "multiplier", -1, std::max<int64_t>(depth, 1));
    const bool kept = !given["slopes"].is_none(), more = !given["extra"].is_none();
    Array<uint8_t> slopes;
    if (kept) {
        slopes = given["slopes"].cast<Array<uint8_t>>();
        if (slopes.ndim() != 2 || slopes.shape(1) != open) throw py::value_error("slopes: expected [*, K], K open neurons");
    }
    check_range("spec", spec, 0, stage == 0 ? rows.shape(0) : 2 * self.stage_size(stage));
    check_range("domain", domain, 0, split.shape(0));
    check_range("slope_row", slope_row, 0, kept ? std::min(slopes.shape(0), multiplier.shape(0)) : multiplier.shape(0));
    check_range("split", split, -1, open);
    Array<int32_t> extra;
    Array<int8_t> extra_sign;
    if (more) {
        extra = wanted<int32_t>(given, "extra", count, 0);
        extra_sign = wanted<int8_t>(given, "extra_sign", count, 0);
        check_range("extra", extra, -1, open);
    }
    const double seconds = given["seconds"].cast<double>();
    const bool full = given["outputs"].cast<bool>();
    py::array_t<double> value(count), minimiser({full ? count : 0, self.inputs()});
    py::array_t<uint8_t> slopes_out({full ? count : 0, open});
    py::array_t<float> multiplier_out({full ? count : 0, depth});
    py::array_t<int32_t> candidates({full ? count : 0, static_cast<int64_t>(verifier::kCandidates)});
    const verifier::RowJob job{
        count, given["iterations"].cast<int64_t>(), given["pace"].cast<double>(), given["rigorous"].cast<bool>(), stage == 0 ? rows.data() : nullptr, stage, spec.data(), limit.data(),
        slope_row.data(), domain.data(), kept ? slopes.data() : nullptr, depth, split.data(), sign.data(),
        multiplier.data(), more ? extra.data() : nullptr, more ? extra_sign.data() : nullptr, value.mutable_data(),
        full ? slopes_out.mutable_data() : nullptr, full ? multiplier_out.mutable_data() : nullptr,
        full ? minimiser.mutable_data() : nullptr, full ? candidates.mutable_data() : nullptr};
    {
        py::gil_scoped_release free;
        self.bound(job, seconds);
    }
    py::dict found;
    found["value"] = value;
    found["slopes"] = slopes_out;
    found["multiplier"] = multiplier_out;
    found["minimiser"] = minimiser;
    found["candidates"] = candidates;
    return found;
}

// Copies of a stage's bounds, lower and upper.
template <typename T>
py::tuple both_ends(const T* low, const T* high, int64_t size) {
    py::array_t<double> lower(size), upper(size);
    std::copy(low, low + size, lower.mutable_data());
    std::copy(high, high + size, upper.mutable_data());
    return py::make_tuple(lower, upper);
}

template <typename T>
void bind(py::module_& module, const char* name) {
    using Domains = verifier::Domains<T>;
    using Network = verifier::Network<T>;
    py::class_<Domains>(module, name, "Subdomains of one box; see native_domains.py.")
        .def(py::init([](Network& network, const Array<double>& lower, const Array<double>& upper, int threads, double seconds,
                         const std::optional<Array<double>>& center, double radius) {
                 if (lower.size() != network.inputs() || upper.size() != network.inputs() ||
                     (center && center->size() != network.inputs()))
                     throw py::value_error("lower, upper, center: expected one number per input");
                 const double* middle = center ? center->data() : nullptr;
                 py::gil_scoped_release free;
                 return std::make_unique<Domains>(network, lower.data(), upper.data(), threads, seconds, middle, radius);
             }),
             py::arg("network"), py::arg("lower"), py::arg("upper"), py::arg("threads"), py::arg("seconds"),
             py::arg("center") = py::none(), py::arg("radius") = 0.0, py::keep_alive<1, 2>())
        .def("optimise_root", &Domains::optimise_root, py::call_guard<py::gil_scoped_release>(), py::arg("seconds"),
             py::arg("most_iterations"), py::arg("first"))
        .def("enter",
             [](Domains& self, const Array<double>& lower, const Array<double>& upper, double seconds) {
                 if (lower.size() != self.inputs() || upper.size() != self.inputs())
                     throw py::value_error("lower, upper: expected one number per input");
                 py::gil_scoped_release free;
                 self.enter(lower.data(), upper.data(), seconds);
             },
             py::arg("lower"), py::arg("upper"), py::arg("seconds"))
        .def("forms",
             [](Domains& self, const Array<double>& rows) {
                 if (rows.ndim() != 2 || rows.shape(1) != self.outputs())
                     throw py::value_error("rows: expected one number per output in each");
                 const int64_t count = rows.shape(0), n = self.inputs();
                 py::array_t<double> lower(count), coeffs({count, n}), offset(count), sensitivity(n);
                 const verifier::BoxResult result{lower.mutable_data(), coeffs.mutable_data(), offset.mutable_data(), sensitivity.mutable_data()};
                 {
                     py::gil_scoped_release free;
                     self.forms(rows.data(), count, result);
                 }
                 return py::make_tuple(lower, coeffs, offset, sensitivity);
             },
             py::arg("rows"))
        .def("use_threads", &Domains::use_threads, py::arg("threads"))
        .def("adopt", &Domains::adopt, py::call_guard<py::gil_scoped_release>(), py::arg("other"))
        .def("cut_off",
             [](Domains& self, const Array<double>& row, double limit, std::vector<uint8_t> slopes, std::vector<int32_t> split,
                std::vector<int8_t> sign, int64_t iterations, double share, double seconds) {
                 if (row.size() != self.outputs()) throw py::value_error("row: expected one number per output");
                 if (!slopes.empty() && static_cast<int64_t>(slopes.size()) != self.open_count())
                     throw py::value_error("slopes: expected one for each open neuron");
                 if (split.size() != sign.size()) throw py::value_error("split, sign: expected as many of both");
                 for (int32_t k : split)
                     if (k < 0 || k >= self.open_count()) throw py::value_error("split: out of range");
                 py::gil_scoped_release free;
                 return self.cut_off({row.data(), limit, std::move(slopes), std::move(split), std::move(sign)}, iterations, share, seconds);
             },
             py::arg("row"), py::arg("limit"), py::arg("slopes"), py::arg("split"), py::arg("sign"), py::arg("iterations"),
             py::arg("share"), py::arg("seconds"))
        .def("tighten",
             [](Domains& self, int stage, const Array<int32_t>& neurons, const Array<double>& lower, const Array<double>& upper) {
                 if (stage < 1 || stage >= self.stage_count()) throw py::value_error("stage: out of range");
                 if (lower.size() != neurons.size() || upper.size() != neurons.size())
                     throw py::value_error("lower, upper: expected one number per neuron");
                 check_range("neurons", neurons, 0, self.stage_size(stage));
                 for (py::ssize_t k = 0; k < neurons.size(); ++k)
                     self.tighten(stage, neurons.data()[k], lower.data()[k], upper.data()[k]);
             },
             py::arg("stage"), py::arg("neurons"), py::arg("lower"), py::arg("upper"))
        .def("limit_sums",
             [](Domains& self, int stage, const Array<double>& most) {
                 if (stage < 1 || stage >= self.stage_count()) throw py::value_error("stage: out of range");
                 if (most.size() != self.stage_size(stage)) throw py::value_error("most: expected one number per neuron");
                 self.limit_sums(stage, most.data());
             },
             py::arg("stage"), py::arg("most"))
        .def_property_readonly("failed", &Domains::failed)
        .def_property_readonly("open_stage", [](const Domains& self) { return self.open_stage(); })
        .def_property_readonly("open_index", [](const Domains& self) { return self.open_index(); })
        .def("stage_bounds",
             [](const Domains& self, int stage) {
                 if (stage < 1 || stage >= self.stage_count()) throw py::value_error("stage: out of range");
                 return both_ends(self.state(stage).lower, self.state(stage).upper, self.stage_size(stage));
             })
        .def("post_bounds",
             [](const Domains& self, int stage) {
                 if (stage < 0 || stage >= self.stage_count()) throw py::value_error("stage: out of range");
                 return both_ends(self.state(stage).post_lower, self.state(stage).post_upper, self.stage_size(stage));
             })
        .def("bound", &bound<T>, py::arg("job"));
}

}  // namespace

void bind_domains(py::module_& module) {
    bind<float>(module, "DomainsFloat");
    bind<double>(module, "DomainsDouble");
    module.attr("split_candidates") = verifier::kCandidates;
}
