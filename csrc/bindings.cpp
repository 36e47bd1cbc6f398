// NumPy arrays in and out, the GIL released while the kernels work. Subdomains: bindings_domains.cpp.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "example_op/scale_boxes.h"
#include "verifier/box_pass.h"
#include "verifier/kernels.h"
#include "verifier/network.h"
#include "verifier/thread_pool.h"

namespace py = pybind11;

void bind_domains(py::module_& module);
void bind_planes(py::module_& module);

namespace {

using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;

std::vector<double> as_vector(const Doubles& array) { return {array.data(), array.data() + array.size()}; }

void expect(const char* name, const py::array& array, int64_t rows, int64_t columns) {
    if (array.ndim() == 2 && (rows < 0 || array.shape(0) == rows) && array.shape(1) == columns) return;
    std::string got = "(";
    for (py::ssize_t i = 0; i < array.ndim(); ++i) got += (i ? ", " : "") + std::to_string(array.shape(i));
    throw py::value_error(std::string(name) + ": expected [" + (rows < 0 ? "*" : std::to_string(rows)) + ", " +
                          std::to_string(columns) + "], got " + got + ")");
}

verifier::Activation activation_named(const std::string& name) {
    if (name == "identity") return verifier::Activation::kIdentity;
    if (name == "relu") return verifier::Activation::kRelu;
    if (name == "leaky_relu") return verifier::Activation::kLeakyRelu;
    if (name == "sigmoid") return verifier::Activation::kSigmoid;
    if (name == "tanh") return verifier::Activation::kTanh;
    throw py::value_error("activation: expected identity, relu, leaky_relu, sigmoid or tanh, got " + name);
}

// A map from Python: {"kind", "source", "rows", "cols", "values"} and, when sparse, "row_start", "columns".
verifier::MapSpec map_from(const py::dict& given) {
    verifier::MapSpec map{};
    const auto kind = given["kind"].cast<std::string>();
    if (kind != "dense" && kind != "diagonal" && kind != "sparse")
        throw py::value_error("map: expected kind dense, diagonal or sparse, got " + kind);
    map.kind = kind == "dense"      ? verifier::MapKind::kDense
               : kind == "diagonal" ? verifier::MapKind::kDiagonal
                                    : verifier::MapKind::kSparse;
    map.source = given["source"].cast<int>();
    map.rows = given["rows"].cast<int64_t>();
    map.cols = given["cols"].cast<int64_t>();
    map.values = as_vector(given["values"].cast<Doubles>());
    if (map.kind == verifier::MapKind::kSparse) {
        const auto starts = given["row_start"].cast<py::array_t<int64_t, py::array::c_style | py::array::forcecast>>();
        const auto columns = given["columns"].cast<py::array_t<int32_t, py::array::c_style | py::array::forcecast>>();
        map.row_start.assign(starts.data(), starts.data() + starts.size());
        map.columns.assign(columns.data(), columns.data() + columns.size());
    }
    return map;
}

verifier::StageSpec stage_from(const py::dict& given) {
    verifier::StageSpec spec;
    spec.size = given["size"].cast<int64_t>();
    spec.activation = activation_named(given["activation"].cast<std::string>());
    spec.alpha = given["alpha"].cast<double>();
    spec.activation_error = given["activation_error"].cast<double>();
    spec.bias = as_vector(given["bias"].cast<Doubles>());
    spec.bias_magnitude = as_vector(given["bias_magnitude"].cast<Doubles>());
    spec.deployed_unit = given["deployed_unit"].cast<double>();
    spec.products = given["products"].cast<double>();
    spec.fused_roundings = given["fused_roundings"].cast<double>();
    spec.deployed_tiny = given["deployed_tiny"].cast<double>();
    spec.flush = given["flush"].cast<double>();
    for (const auto& map : given["maps"].cast<py::list>()) spec.maps.push_back(map_from(map.cast<py::dict>()));
    return spec;
}

template <typename T>
py::tuple bound_boxes(verifier::Network<T>& network, const Doubles& lower, const Doubles& upper, const Doubles& rows,
                      bool forms, bool refine, int threads) {
    const int64_t n = network.inputs();
    expect("lower", lower, -1, n);
    const int64_t boxes = lower.shape(0);
    expect("upper", upper, boxes, n);
    expect("rows", rows, -1, network.outputs());
    const int64_t count = rows.shape(0);
    py::array_t<double> best({boxes, count});
    py::array_t<double> coeffs({forms ? boxes : 0, count, n}), offset({forms ? boxes : 0, count});
    py::array_t<double> sensitivity({boxes, n});
    const verifier::BoxResult result{best.mutable_data(), forms ? coeffs.mutable_data() : nullptr,
                                     forms ? offset.mutable_data() : nullptr, sensitivity.mutable_data()};
    {
        py::gil_scoped_release free;
        network.bound_boxes(lower.data(), upper.data(), boxes, rows.data(), count, refine, threads, result);
    }
    return py::make_tuple(best, coeffs, offset, sensitivity);
}

// Numbers in the network's own precision.
template <typename T>
using Numbers = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
py::array_t<T> evaluate(verifier::Network<T>& network, const Numbers<T>& points, int threads) {
    expect("points", points, -1, network.inputs());
    py::array_t<T> out({static_cast<int64_t>(points.shape(0)), network.outputs()});
    T* data = out.mutable_data();
    py::gil_scoped_release free;
    network.evaluate(points.data(), points.shape(0), threads, data);
    return out;
}

// Classes [count], each below `classes`.
using Classes = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

void expect_classes(const char* name, const Classes& array, int64_t count, int64_t classes) {
    bool fits = array.ndim() == 1 && array.shape(0) == count;
    for (int64_t i = 0; fits && i < count; ++i) fits = array.data()[i] >= 0 && array.data()[i] < classes;
    if (!fits)
        throw py::value_error(std::string(name) + ": expected " + std::to_string(count) + " classes below " +
                              std::to_string(classes));
}

const int64_t* data_of(const std::optional<Classes>& classes) { return classes ? classes->data() : nullptr; }

verifier::Loss loss_named(const std::string& name, int64_t outputs) {
    if (outputs < 2) throw py::value_error("loss: expected a network of two outputs or more");
    if (name == "cross_entropy") return verifier::Loss::kCrossEntropy;
    if (name == "margin") return verifier::Loss::kMargin;
    throw py::value_error("loss: expected cross_entropy or margin, got " + name);
}

template <typename T>
py::tuple climb(verifier::Network<T>& network, const Numbers<T>& points, const std::string& loss, const Classes& label,
                const std::optional<Classes>& target, int threads) {
    const verifier::Loss known = loss_named(loss, network.outputs());
    expect("points", points, -1, network.inputs());
    const int64_t count = points.shape(0);
    expect_classes("label", label, count, network.outputs());
    if (target) expect_classes("target", *target, count, network.outputs());
    py::array_t<T> outputs({count, network.outputs()}), value(count), gradient({count, network.inputs()});
    const verifier::Climb<T> job{count, known, points.data(), label.data(), data_of(target), outputs.mutable_data(),
                                 value.mutable_data(), gradient.mutable_data()};
    {
        py::gil_scoped_release free;
        network.climb(job, threads);
    }
    return py::make_tuple(outputs, value, gradient);
}

template <typename T>
py::tuple ascend(verifier::Network<T>& network, const Numbers<T>& points, const std::string& loss, const Classes& label,
                 const std::optional<Classes>& target, const std::optional<Classes>& aim, const Numbers<T>& lower,
                 const Numbers<T>& upper, const Numbers<T>& length, const Numbers<T>& share, int threads) {
    const verifier::Loss known = loss_named(loss, network.outputs());
    const int64_t count = points.ndim() > 0 ? points.shape(0) : 0;
    for (const auto& [name, array] : {std::pair{"points", &points}, {"lower", &lower}, {"upper", &upper}})
        expect(name, *array, count, network.inputs());
    if (length.ndim() != 1 || length.shape(0) != count) throw py::value_error("length: expected one for every point");
    if (share.ndim() != 1) throw py::value_error("share: expected one for every step");
    expect_classes("label", label, count, network.outputs());
    for (const auto& [name, classes] : {std::pair{"target", &target}, {"aim", &aim}})
        if (*classes) expect_classes(name, **classes, count, network.outputs());
    py::array_t<T> reached({count, network.inputs()});
    py::array_t<int64_t> taken(count);
    std::copy(points.data(), points.data() + points.size(), reached.mutable_data());
    const verifier::Ascent<T> job{count, share.shape(0), known, label.data(), data_of(target), data_of(aim),
                                  lower.data(), upper.data(), length.data(), share.data(), reached.mutable_data(),
                                  taken.mutable_data()};
    {
        py::gil_scoped_release free;
        network.ascend(job, threads);
    }
    return py::make_tuple(reached, taken);
}

template <typename T>
py::tuple record(verifier::Network<T>& network, const Numbers<T>& points, int threads) {
    expect("points", points, -1, network.inputs());
    py::array_t<T> out({static_cast<int64_t>(points.shape(0)), network.outputs()});
    T* data = out.mutable_data();
    verifier::Trace<T> trace;
    {
        py::gil_scoped_release free;
        trace = network.record(points.data(), points.shape(0), threads, data);
    }
    return py::make_tuple(out, std::move(trace));
}

template <typename T>
py::array_t<T> pull_back(verifier::Network<T>& network, const verifier::Trace<T>& trace, const Numbers<T>& weights,
                         int threads) {
    if (!network.fits(trace)) throw py::value_error("trace: its sizes are not those of this network");
    expect("weights", weights, -1, network.outputs());
    const int64_t each = trace.count > 0 ? weights.shape(0) / trace.count : 0;
    if (weights.shape(0) != each * trace.count) throw py::value_error("weights: expected as many rows for every point");
    py::array_t<T> out({each * trace.count, network.inputs()});
    T* data = out.mutable_data();
    py::gil_scoped_release free;
    network.pull_back(trace, weights.data(), each, threads, data);
    return out;
}

template <typename T>
void bind_network(py::module_& module, const char* name) {
    using Network = verifier::Network<T>;
    py::class_<verifier::Trace<T>>(module, (std::string(name) + "Trace").c_str(), "What Network.record keeps.");
    py::class_<Network>(module, name, "A network in stages z = sum W h + b, h = f(z); see native_engine.py.")
        .def(py::init<int64_t>(), py::arg("inputs"))
        .def("add_stage", [](Network& self, const py::dict& stage) { return self.add_stage(stage_from(stage)); })
        .def("finish", &Network::finish, py::arg("forms") = -1)
        .def_property_readonly("inputs", &Network::inputs)
        .def_property_readonly("outputs", &Network::outputs)
        .def_property_readonly("uses_forms", &Network::uses_forms)
        .def_property_readonly("sparse", &Network::sparse)
        .def_property_readonly("weights", &Network::weights)
        .def("bound_boxes", &bound_boxes<T>, py::arg("lower"), py::arg("upper"), py::arg("rows"), py::kw_only(),
             py::arg("forms"), py::arg("refine"), py::arg("threads"))
        .def("evaluate", &evaluate<T>, py::arg("points"), py::kw_only(), py::arg("threads"))
        .def("climb", &climb<T>, py::arg("points"), py::arg("loss"), py::arg("label"), py::arg("target"), py::kw_only(),
             py::arg("threads"))
        .def("ascend", &ascend<T>, py::arg("points"), py::arg("loss"), py::arg("label"), py::arg("target"), py::arg("aim"),
             py::arg("lower"), py::arg("upper"), py::arg("length"), py::arg("share"), py::kw_only(), py::arg("threads"))
        .def("record", &record<T>, py::arg("points"), py::kw_only(), py::arg("threads"))
        .def("pull_back", &pull_back<T>, py::arg("trace"), py::arg("weights"), py::kw_only(), py::arg("threads"));
}

// Kernels on raw pointers: `job` names pointers (integers, 0 for null), sizes and settings.
class Job {
  public:
    explicit Job(const py::dict& given) : given_(given) {}
    template <typename T>
    T* pointer(const char* name) const {
        return reinterpret_cast<T*>(given_[name].cast<uintptr_t>());
    }
    int64_t size(const char* name) const { return given_[name].cast<int64_t>(); }
    double number(const char* name) const { return given_[name].cast<double>(); }

  private:
    const py::dict& given_;
};

template <typename T>
const verifier::Kernels<T>& kernels_on(bool cuda) {
    if (!cuda) return verifier::kernels_cpu<T>();
    const verifier::Kernels<T>* found = verifier::kernels_cuda<T>();
    if (found == nullptr) throw std::runtime_error("this build has no CUDA kernels");
    return *found;
}

template <typename T>
void relax_step(bool cuda, intptr_t where, const py::dict& given) {
    const Job in(given);
    const verifier::RelaxStep<T> job{in.size("boxes"), in.size("rows"), in.size("n"), static_cast<int>(in.size("per_row")),
                                     in.pointer<T>("coeffs"), in.pointer<T>("slope_lower"), in.pointer<T>("offset_lower"),
                                     in.pointer<T>("slope_upper"), in.pointer<T>("offset_upper"), in.pointer<T>("magnitude"),
                                     in.pointer<T>("bias"), in.pointer<T>("charge"), in.pointer<T>("split_sign"),
                                     in.pointer<T>("multiplier"), in.pointer<T>("out"), in.pointer<double>("offset"),
                                     in.pointer<double>("loss")};
    py::gil_scoped_release free;
    kernels_on<T>(cuda).relax_step(job, where);
}

template <typename T>
void concretise(bool cuda, intptr_t where, const py::dict& given) {
    const Job in(given);
    const verifier::Concretise<T> job{in.size("boxes"), in.size("rows"), in.size("n"),
                                      static_cast<verifier::Norm>(in.size("norm")), in.pointer<T>("coeffs"),
                                      in.pointer<T>("center"), in.pointer<T>("radius"), in.pointer<T>("budget"),
                                      in.pointer<double>("offset"), in.pointer<double>("loss"), in.pointer<double>("value"),
                                      in.pointer<T>("minimiser")};
    py::gil_scoped_release free;
    kernels_on<T>(cuda).concretise(job, where);
}

template <typename T>
void interval_dense(bool cuda, intptr_t where, const py::dict& given) {
    const Job in(given);
    const verifier::IntervalDense<T> job{in.size("boxes"), in.size("inputs"), in.size("outputs"), in.pointer<T>("lower"),
                                         in.pointer<T>("upper"), in.pointer<T>("weight"), in.pointer<T>("bias"),
                                         in.pointer<T>("bias_magnitude"), verifier::round_up<T>(in.number("deployed_gamma")),
                                         verifier::round_up<T>(in.number("tiny")), in.pointer<T>("out_lower"),
                                         in.pointer<T>("out_upper")};
    py::gil_scoped_release free;
    kernels_on<T>(cuda).interval_dense(job, where);
}

template <typename T>
void interval_conv(bool cuda, intptr_t where, const py::dict& given) {
    const Job in(given);
    const verifier::IntervalConv<T> job{
        in.size("boxes"), in.size("channels"), in.size("height"), in.size("width"), in.size("out_channels"),
        in.size("out_height"), in.size("out_width"), in.size("kernel_h"), in.size("kernel_w"), in.size("stride_h"),
        in.size("stride_w"), in.size("pad_top"), in.size("pad_left"), in.size("dilation_h"), in.size("dilation_w"),
        in.size("groups"), in.pointer<T>("lower"), in.pointer<T>("upper"), in.pointer<T>("weight"), in.pointer<T>("bias"),
        in.pointer<T>("bias_magnitude"), verifier::round_up<T>(in.number("deployed_gamma")),
        verifier::round_up<T>(in.number("tiny")), in.pointer<T>("out_lower"), in.pointer<T>("out_upper")};
    py::gil_scoped_release free;
    kernels_on<T>(cuda).interval_conv(job, where);
}

template <typename T>
void enclose(bool cuda, intptr_t where, const py::dict& given) {
    const Job in(given);
    const verifier::EncloseAll<T> job{in.size("count"), static_cast<verifier::Function>(in.size("function")),
                                      in.number("alpha"), in.number("deviation"), in.pointer<T>("lower"),
                                      in.pointer<T>("upper"), in.pointer<T>("free_lower"), in.pointer<T>("slope_lower"),
                                      in.pointer<T>("offset_lower"), in.pointer<T>("slope_upper"),
                                      in.pointer<T>("offset_upper"), in.pointer<T>("out_lower"), in.pointer<T>("out_upper")};
    py::gil_scoped_release free;
    kernels_on<T>(cuda).enclose(job, where);
}

template <typename T>
void ascend(bool cuda, intptr_t where, const py::dict& given) {
    const Job in(given);
    const auto as = [&](const char* name) { return static_cast<T>(in.number(name)); };
    const verifier::AdamStep<T> step{as("rate"), as("decay_first"), as("decay_second"), as("correct_first"),
                                     as("correct_second"), as("epsilon")};
    const verifier::Ascend<T> job{in.size("boxes"), in.size("rows"), in.size("n"), in.pointer<T>("coeffs"),
                                  in.pointer<T>("lower"), in.pointer<T>("upper"), in.pointer<T>("split_sign"),
                                  in.pointer<T>("point"), step, as("low"), as("high"), in.pointer<T>("value"),
                                  in.pointer<T>("first"), in.pointer<T>("second"), in.pointer<T>("gradient")};
    py::gil_scoped_release free;
    kernels_on<T>(cuda).ascend(job, where);
}

template <typename T>
void split_scores(bool cuda, intptr_t where, const py::dict& given) {
    const Job in(given);
    const verifier::SplitScores<T> job{in.size("boxes"), in.size("rows"), in.size("n"), in.pointer<T>("coeffs"),
                                       in.pointer<T>("lower"), in.pointer<T>("upper"), in.pointer<T>("bias"),
                                       in.pointer<T>("score")};
    py::gil_scoped_release free;
    kernels_on<T>(cuda).split_scores(job, where);
}

void clip_boxes(bool cuda, intptr_t where, const py::dict& given) {
    const Job in(given);
    const verifier::ClipBoxes job{in.size("boxes"), in.size("rows"), in.size("n"), in.pointer<double>("coeffs"),
                                  in.pointer<double>("limit"), in.pointer<double>("lower"), in.pointer<double>("upper")};
    kernels_on<double>(cuda);  // says so where CUDA was not built
    py::gil_scoped_release free;
    cuda ? verifier::clip_boxes_cuda(job, where) : verifier::clip_boxes_cpu(job, where);
}

template <typename T>
void scale_boxes(bool cuda, intptr_t where, const py::dict& given) {
    const Job in(given);
    const verifier::ScaleBoxes<T> job{in.size("boxes"), in.size("n"), in.pointer<T>("lower"), in.pointer<T>("upper"),
                                      in.pointer<T>("scale"), in.pointer<T>("shift"), in.pointer<T>("out_lower"),
                                      in.pointer<T>("out_upper")};
    py::gil_scoped_release free;
    cuda ? verifier::scale_boxes_cuda(job, where) : verifier::scale_boxes_cpu(job, where);
}

template <typename T>
verifier::DenseLayer<T> dense_layer_from(const py::dict& given) {
    const Job in(given);
    return {static_cast<int>(in.size("inputs")), static_cast<int>(in.size("outputs")),
            static_cast<verifier::Function>(in.size("function")), in.number("alpha"), in.number("deviation"), in.pointer<T>("weight"), in.pointer<T>("transposed"),
            in.pointer<T>("bias"), in.pointer<T>("bias_magnitude"), in.number("row_magnitude"),
            {in.number("deployed_unit"), in.number("products"), in.number("fused")}, in.number("tiny"), in.number("flush")};
}

template <typename T>
void box_pass(bool cuda, intptr_t where, const py::dict& given) {
    const Job in(given);
    verifier::BoxPass<T> job{};
    for (const auto& layer : given["layers"].cast<py::list>()) {
        if (job.count == verifier::kMostLayers)
            throw py::value_error("box_pass: expected at most " + std::to_string(verifier::kMostLayers) + " layers");
        job.layers[job.count++] = dense_layer_from<T>(layer.cast<py::dict>());
    }
    job.boxes = in.size("boxes"), job.rows = in.size("rows");
    job.refine = in.size("refine") != 0;
    job.lower = in.pointer<double>("lower"), job.upper = in.pointer<double>("upper");
    job.spec = in.pointer<double>("spec"), job.out_lower = in.pointer<double>("out_lower");
    job.coeffs = in.pointer<double>("coeffs"), job.offset = in.pointer<double>("offset");
    job.sensitivity = in.pointer<double>("sensitivity");
    py::gil_scoped_release free;
    cuda ? verifier::box_pass_cuda(job, where) : verifier::box_pass_cpu(job, where);
}

template <typename T>
void bind_kernels(py::module_& module, const std::string& suffix) {
    const auto bind = [&](const char* name, void (*kernel)(bool, intptr_t, const py::dict&)) {
        module.def((name + suffix).c_str(), kernel, py::arg("cuda"), py::arg("where"), py::arg("job"));
    };
    bind("relax_step", &relax_step<T>);
    bind("concretise", &concretise<T>);
    bind("interval_dense", &interval_dense<T>);
    bind("interval_conv", &interval_conv<T>);
    bind("enclose", &enclose<T>);
    bind("ascend", &ascend<T>);
    bind("split_scores", &split_scores<T>);
    bind("scale_boxes", &scale_boxes<T>);
    bind("box_pass", &box_pass<T>);
    module.def(("box_pass_bytes" + suffix).c_str(), &verifier::box_pass_bytes<T>, py::arg("sizes"));
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Compiled kernels of verifier; use them through verifier.kernels and verifier.bounds.";
    bind_network<float>(module, "NetworkFloat");
    bind_network<double>(module, "NetworkDouble");
    bind_domains(module);
    bind_planes(module);
    bind_kernels<float>(module, "_float32");
    bind_kernels<double>(module, "_float64");
    module.def("clip_boxes_float64", &clip_boxes, py::arg("cuda"), py::arg("where"), py::arg("job"));
    module.def("available_threads", &verifier::available_threads);
    module.def("simd_level", [] { return verifier::best_isa<float>().name; });
    module.def("compiled_simd_levels", &verifier::compiled_isas);
    module.def("cuda_device_count", &verifier::cuda_device_count);
    module.def("cuda_device_name", &verifier::cuda_device_name);
    module.attr("box_pass_layers") = verifier::kMostLayers;
    module.attr("box_pass_step") = verifier::kStep;
    module.attr("compiler") = VERIFIER_COMPILER;
    module.attr("cuda_architectures") = VERIFIER_CUDA_BUILT;  // empty: built without CUDA
}
