// Makes the kernels available to Python and TorchScript, as
// torch.classes.mlff_student.NativeStudent and torch.ops.mlff_student.*.
#include "handle.h"
#include "tensors.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <tuple>

namespace {

using at::Tensor;
using namespace mlff_student;

void check(int status) {
  TORCH_CHECK_VALUE(status != MLFF_STUDENT_BAD_INPUT, "mlff_student: ", mlff_student_error());
  TORCH_CHECK(status == MLFF_STUDENT_OK, "mlff_student: ", mlff_student_error());
}

struct NativeStudent : torch::CustomClassHolder {
  NativeStudent(c10::Dict<std::string, Tensor> tensors, double cutoff, int64_t knots)
      : tensors(std::move(tensors)), student(arrays(), cutoff, knots) {}

  // Takes and returns the same as from_edges of the archive.
  std::tuple<Tensor, Tensor> from_edges(const Tensor &edge_vectors, const Tensor &edge_index,
                                        const Tensor &atomic_numbers, int64_t n_local) {
    const Tensor vectors = on_cpu(edge_vectors, at::kDouble), index = on_cpu(edge_index, at::kLong);
    const Tensor numbers = on_cpu(atomic_numbers, at::kLong);
    const int64_t edges = index.dim() == 2 ? index.size(1) : -1, nodes = numbers.numel();
    TORCH_CHECK_VALUE(index.dim() == 2 && index.size(0) == 2,
                      "mlff_student: edge_index has the shape ", index.sizes(),
                      ", expected (2, E)");
    TORCH_CHECK_VALUE(vectors.dim() == 2 && vectors.size(0) == edges && vectors.size(1) == 3,
                      "mlff_student: edge_vectors has the shape ", vectors.sizes(), ", expected (",
                      edges, ", 3)");
    TORCH_CHECK_VALUE(n_local >= 0 && n_local <= nodes, "mlff_student: n_local is ", n_local,
                      ", expected 0 to ", nodes);
    Tensor energies = at::empty({n_local}, at::kDouble), gradient = at::empty_like(vectors);
    const WorkspaceLease work(*this);
    check(mlff_student_evaluate_edges(
        &student, work.get(), at::get_num_threads(), nodes, numbers.const_data_ptr<int64_t>(),
        edges, index.const_data_ptr<int64_t>(), vectors.const_data_ptr<double>(), n_local,
        energies.mutable_data_ptr<double>(), gradient.mutable_data_ptr<double>()));
    return {energies, gradient};
  }

  // Takes and returns the same as evaluate of the archive.
  std::tuple<Tensor, Tensor, Tensor> evaluate(const Tensor &positions, const Tensor &atomic_numbers,
                                              const Tensor &cell, const Tensor &pbc) {
    const Tensor x = on_cpu(positions, at::kDouble), numbers = on_cpu(atomic_numbers, at::kLong);
    const Tensor lattice = on_cpu(cell, at::kDouble), periodic = on_cpu(pbc, at::kBool);
    const int64_t atoms = numbers.numel();
    TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) == 3, "mlff_student: positions has the shape ",
                      x.sizes(), ", expected (N, 3)");
    TORCH_CHECK_VALUE(x.size(0) == atoms, "mlff_student: ", x.size(0), " positions, but ", atoms,
                      " atomic numbers");
    TORCH_CHECK_VALUE(lattice.sizes() == at::IntArrayRef({3, 3}) && periodic.numel() == 3,
                      "mlff_student: cell and pbc have the shapes ", lattice.sizes(), " and ",
                      periodic.sizes(), ", expected (3, 3) and (3)");
    std::array<int, 3> directions;
    std::copy_n(periodic.const_data_ptr<bool>(), 3, directions.begin());
    const mlff_student_system system{atoms, x.const_data_ptr<double>(),
                                     numbers.const_data_ptr<int64_t>(),
                                     lattice.const_data_ptr<double>(), directions.data()};
    Tensor energies = at::empty({atoms}, at::kDouble), forces = at::empty({atoms, 3}, at::kDouble);
    Tensor virial = at::empty({3, 3}, at::kDouble);
    const mlff_student_results results{energies.mutable_data_ptr<double>(),
                                       forces.mutable_data_ptr<double>(),
                                       virial.mutable_data_ptr<double>(), nullptr};
    const WorkspaceLease work(*this);
    check(mlff_student_evaluate(&student, work.get(), at::get_num_threads(), &system, &results));
    return {energies, forces, virial};
  }

  // Returns the tabulated filter of a layer and its derivative, (D, parts F) each, at distances
  // (D,).
  std::tuple<Tensor, Tensor> filters(int64_t layer, const Tensor &distances) {
    const Tensor d = on_cpu(distances, at::kDouble);
    const Model &model = student.model;
    const auto &table = model.layers.at(layer).filter;
    const int64_t outputs = int64_t{filter_parts(layer)} * model.channels;
    Tensor value = at::empty({d.numel(), outputs}, at::kFloat), slope = at::empty_like(value);
    for (int64_t k = 0; k < d.numel(); k++) {
      const double vector[3] = {d.const_data_ptr<double>()[k], 0.0, 0.0};
      EdgeGeometry edge{};
      TORCH_CHECK_VALUE(locate(vector, model.cutoff, model.knots, edge),
                        "mlff_student: a distance is NaN or infinite");
      table.evaluate(edge, value.mutable_data_ptr<float>() + k * outputs,
                     slope.mutable_data_ptr<float>() + k * outputs);
    }
    return {value, slope};
  }

  c10::Dict<std::string, Tensor> tensors;
  mlff_student_model student;

private:
  // A workspace for the time of a call. Simultaneous calls have separate workspaces.
  class WorkspaceLease {
  public:
    explicit WorkspaceLease(NativeStudent &owner) : owner_(owner) {
      const std::lock_guard<std::mutex> lock(owner_.mutex_);
      if (owner_.free_.empty()) {
        work_ = std::make_unique<mlff_student_workspace>();
      } else {
        work_ = std::move(owner_.free_.back());
        owner_.free_.pop_back();
      }
    }
    ~WorkspaceLease() {
      const std::lock_guard<std::mutex> lock(owner_.mutex_);
      owner_.free_.push_back(std::move(work_));
    }
    WorkspaceLease(const WorkspaceLease &) = delete;
    WorkspaceLease &operator=(const WorkspaceLease &) = delete;
    mlff_student_workspace *get() const { return work_.get(); }

  private:
    NativeStudent &owner_;
    std::unique_ptr<mlff_student_workspace> work_;
  };

  Arrays arrays() const {
    Arrays result;
    for (const auto &item : tensors) result[item.key()] = to_array(item.value());
    return result;
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<mlff_student_workspace>> free_;
};

using Handle = c10::intrusive_ptr<NativeStudent>;

} // namespace

TORCH_LIBRARY(mlff_student, library) {
  library.class_<NativeStudent>("NativeStudent")
      .def(torch::init<c10::Dict<std::string, Tensor>, double, int64_t>(), "",
           {torch::arg("tensors"), torch::arg("cutoff"), torch::arg("knots") = 0})
      .def("from_edges", &NativeStudent::from_edges)
      .def("evaluate", &NativeStudent::evaluate)
      .def("filters", &NativeStudent::filters)
      .def("knots", [](const Handle &self) { return self->student.model.knots; })
      .def_pickle(
          [](const Handle &self) {
            return std::make_tuple(self->tensors, self->student.model.cutoff,
                                   self->student.model.knots);
          },
          [](std::tuple<c10::Dict<std::string, Tensor>, double, int64_t> state) {
            return c10::make_intrusive<NativeStudent>(std::get<0>(state), std::get<1>(state),
                                                      std::get<2>(state));
          });
  library.def("instruction_set() -> str",
              []() { return std::string(mlff_student_instruction_set()); });
  library.def("use_instruction_set(str name) -> ()", [](const std::string &name) {
    check(mlff_student_use_instruction_set(name.c_str()));
  });
}
