// Ascent over planes above neurons, for verifier/tighten/plane_ascent.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "verifier/plane_program.h"

namespace py = pybind11;

namespace {

// Array `name` of exactly this type and size; no copy is made, so results can be written to it.
template <typename V>
V* array_of(const py::dict& given, const char* name, int64_t size) {
    const py::object object = given[name];
    if (!py::isinstance<py::array_t<V, py::array::c_style>>(object))
        throw py::value_error(std::string(name) + ": expected a contiguous array of another type");
    auto array = object.cast<py::array_t<V, py::array::c_style>>();
    if (array.size() != size)
        throw py::value_error(std::string(name) + ": expected " + std::to_string(size) + " values, got " +
                              std::to_string(array.size()));
    return const_cast<V*>(array.data());
}

void check_columns(const char* name, const int32_t* columns, int64_t count, int64_t limit) {
    for (int64_t i = 0; i < count; ++i)
        if (columns[i] < 0 || columns[i] >= limit)
            throw py::value_error(std::string(name) + ": expected columns below " + std::to_string(limit) + ", got " +
                                  std::to_string(columns[i]));
}

verifier::PlaneLayer layer_from(const py::dict& given, int64_t columns) {
    verifier::PlaneLayer layer{};
    layer.count = given["count"].cast<int64_t>(), layer.width = given["width"].cast<int64_t>();
    if (layer.count < 1 || layer.width < 1 || layer.width % verifier::kPlaneStep != 0)
        throw py::value_error("layer: expected neurons, and a width that is a multiple of " + std::to_string(verifier::kPlaneStep));
    const int64_t terms = layer.count * layer.width;
    layer.source = array_of<int32_t>(given, "source", terms), layer.weight = array_of<float>(given, "weight", terms);
    layer.used = array_of<int32_t>(given, "used", layer.count);
    layer.pre = array_of<int32_t>(given, "pre", layer.count), layer.post = array_of<int32_t>(given, "post", layer.count);
    layer.low = array_of<float>(given, "low", layer.count), layer.high = array_of<float>(given, "high", layer.count);
    layer.flat = array_of<float>(given, "flat", layer.count), layer.steep = array_of<float>(given, "steep", layer.count);
    check_columns("source", layer.source, terms, columns);
    check_columns("pre", layer.pre, layer.count, columns), check_columns("post", layer.post, layer.count, columns);
    for (int64_t k = 0; k < layer.count; ++k)
        if (layer.used[k] < 0 || layer.used[k] > layer.width || layer.used[k] % verifier::kPlaneStep != 0)
            throw py::value_error("used: expected multiples of the step, at most the width");
    return layer;
}

std::unique_ptr<verifier::PlaneProgram> program(const py::dict& given) {
    verifier::PlaneNet net{};
    net.columns = given["columns"].cast<int64_t>();
    std::vector<verifier::PlaneLayer> layers;
    for (const auto& layer : given["layers"].cast<py::list>()) {
        layers.push_back(layer_from(layer.cast<py::dict>(), net.columns));
        net.neurons += layers.back().count, net.terms += layers.back().count * layers.back().width;
    }
    net.layers = layers.data(), net.layer_count = static_cast<int64_t>(layers.size());
    net.row_count = given["row_count"].cast<int64_t>();
    net.costs = array_of<double>(given, "costs", net.row_count * net.columns);
    net.limits = array_of<double>(given, "limits", net.row_count);
    verifier::PlaneOutputs& out = net.outputs;
    out.count = given["output_count"].cast<int64_t>();
    out.start = array_of<int64_t>(given, "output_start", out.count + 1);
    for (int64_t m = 0; m < out.count; ++m)
        if (out.start[m] > out.start[m + 1]) throw py::value_error("output_start: expected rising numbers");
    const int64_t terms = out.start[out.count];
    out.own = array_of<int32_t>(given, "output_own", out.count);
    out.source = array_of<int32_t>(given, "output_source", terms), out.weight = array_of<double>(given, "output_weight", terms);
    out.low = array_of<double>(given, "output_low", out.count), out.high = array_of<double>(given, "output_high", out.count);
    check_columns("output_own", out.own, out.count, net.columns), check_columns("output_source", out.source, terms, net.columns);
    return std::make_unique<verifier::PlaneProgram>(net);
}

// Jobs from Python; their parameters, points and pulls are overwritten. Returns the bounds.
std::vector<double> climb(verifier::PlaneProgram& self, const py::dict& given, const py::list& subdomains, int threads) {
    const auto number = [&](const char* name) { return given[name].cast<double>(); };
    const verifier::PlaneRule rule{given["steps"].cast<int64_t>(), given["window"].cast<int64_t>(), number("rate"), number("decay"),
                                   number("old_first"), number("old_second"), number("soft"), number("newest"), number("least_gain")};
    if (rule.steps < 1 || rule.window < 1) throw py::value_error("steps, window: expected at least 1");
    const verifier::PlaneNet& net = self.net();
    std::vector<verifier::PlaneJob> jobs;
    for (const auto& each : subdomains) {
        const auto one = each.cast<py::dict>();
        verifier::PlaneJob job{};
        job.low = array_of<double>(one, "low", net.columns), job.high = array_of<double>(one, "high", net.columns);
        job.side = array_of<int8_t>(one, "side", net.neurons);
        job.slope = array_of<float>(one, "slope", net.neurons), job.chord = array_of<float>(one, "chord", net.neurons);
        job.split = array_of<float>(one, "split", net.neurons), job.plane = array_of<float>(one, "plane", net.terms);
        job.rows = array_of<double>(one, "rows", net.row_count), job.point = array_of<double>(one, "point", net.columns);
        job.pull = array_of<float>(one, "pull", net.neurons);
        jobs.push_back(job);
    }
    {
        py::gil_scoped_release free;
        self.climb(rule, jobs, threads);
    }
    std::vector<double> bounds;
    for (const auto& job : jobs) bounds.push_back(job.bound);
    return bounds;
}

}  // namespace

void bind_planes(py::module_& module) {
    py::class_<verifier::PlaneProgram>(module, "PlaneProgram", "Neurons over what they read, for ascents over planes.")
        .def(py::init(&program), py::arg("net"))
        .def("climb", &climb, py::arg("rule"), py::arg("subdomains"), py::arg("threads"));
    module.attr("plane_step") = verifier::kPlaneStep;
}
