// Makes the kernels available to Python and TorchScript, as
// torch.classes.mlff_student.NativeStudent and torch.ops.mlff_student.*.
#include "dispatch.h"
#include "evaluate.h"
#include "tensors.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <cmath>
#include <memory>
#include <mutex>
#include <tuple>

namespace {

using at::Tensor;
using namespace mlff_student;

// Working memory of one call.
struct Scratch {
  Workspace work;
  NeighbourList neighbours;
  Buffer<double> gradient;        // (E, 3)
  Buffer<int64_t> next, position; // (N,), (E,); where a caller's edges go when they are sorted
};

struct NativeStudent : torch::CustomClassHolder {
  NativeStudent(c10::Dict<std::string, Tensor> tensors, double cutoff, int64_t knots)
      : tensors(std::move(tensors)), model(arrays(), cutoff, knots) {}

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
    const ScratchLease scratch(*this);
    Workspace &work = scratch->work;
    work.threads = at::get_num_threads();
    set_species(numbers, work);

    // A counting sort by receiver; edges of the same receiver keep their order.
    Graph &graph = work.graph;
    graph.resize(nodes, nodes, edges);
    const int64_t *receiver = index.const_data_ptr<int64_t>(), *sender = receiver + edges;
    std::fill_n(graph.first.data(), nodes + 1, 0);
    for (int64_t e = 0; e < edges; e++) {
      for (const int64_t node : {receiver[e], sender[e]})
        TORCH_CHECK_VALUE(node >= 0 && node < nodes, "mlff_student: edge ", e, " names atom ", node,
                          " of ", nodes);
      graph.first[receiver[e] + 1]++;
    }
    for (int64_t i = 0; i < nodes; i++) graph.first[i + 1] += graph.first[i];
    int64_t *next = scratch->next.reserve(nodes), *position = scratch->position.reserve(edges);
    std::copy_n(graph.first.data(), nodes, next);
    const double *unsorted = vectors.const_data_ptr<double>();
    for (int64_t e = 0; e < edges; e++) {
      const int64_t at = position[e] = next[receiver[e]]++;
      graph.sender[at] = static_cast<int32_t>(sender[e]);
      for (int a = 0; a < 3; a++) graph.vectors[3 * at + a] = unsorted[3 * e + a];
    }
    graph.complete(model, work.threads);

    Tensor energies = at::empty({n_local}, at::kDouble), gradient = at::empty_like(vectors);
    double *sorted = scratch->gradient.reserve(3 * edges);
    evaluate_graph(model, work, n_local, energies.mutable_data_ptr<double>(), sorted);
    double *out = gradient.mutable_data_ptr<double>();
    for (int64_t e = 0; e < edges; e++) std::copy_n(sorted + 3 * position[e], 3, out + 3 * e);
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
    const double *coordinates = x.const_data_ptr<double>();
    for (int64_t k = 0; k < 3 * atoms; k++)
      TORCH_CHECK_VALUE(std::isfinite(coordinates[k]), "mlff_student: the position of atom ", k / 3,
                        " is NaN or infinite");
    Cell box{};
    for (int a = 0; a < 3; a++) {
      box.periodic[a] = periodic.const_data_ptr<bool>()[a];
      for (int b = 0; b < 3 && box.periodic[a]; b++) {
        box.rows[a][b] = lattice.const_data_ptr<double>()[3 * a + b];
        TORCH_CHECK_VALUE(std::isfinite(box.rows[a][b]),
                          "mlff_student: the periodic cell is NaN or infinite");
      }
    }

    Tensor energies = at::empty({atoms}, at::kDouble), forces = at::empty({atoms, 3}, at::kDouble);
    Tensor virial = at::zeros({3, 3}, at::kDouble);
    if (atoms == 0) return {energies, forces, virial};
    const ScratchLease scratch(*this);
    Workspace &work = scratch->work;
    work.threads = at::get_num_threads();
    set_species(numbers, work);
    scratch->neighbours.build_edges(coordinates, atoms, box, model.cutoff, work.graph);
    work.graph.complete(model, work.threads);
    double *gradient = scratch->gradient.reserve(3 * work.graph.edges);
    double *values = energies.mutable_data_ptr<double>();
    evaluate_graph(model, work, atoms, values, gradient);
    for (int64_t i = 0; i < atoms; i++)
      TORCH_CHECK_VALUE(std::isfinite(values[i]), "mlff_student: the energy of atom ", i,
                        " is not finite; do two atoms coincide?");
    gather_forces(work, gradient, forces.mutable_data_ptr<double>(),
                  virial.mutable_data_ptr<double>());
    return {energies, forces, virial};
  }

  // Returns the tabulated filter of a layer and its derivative, (D, parts F) each, at distances
  // (D,).
  std::tuple<Tensor, Tensor> filters(int64_t layer, const Tensor &distances) {
    const Tensor d = on_cpu(distances, at::kDouble);
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
  Model model;

private:
  // Working memory for the time of a call. Simultaneous calls have separate memory.
  class ScratchLease {
  public:
    explicit ScratchLease(NativeStudent &owner) : owner_(owner) {
      const std::lock_guard<std::mutex> lock(owner_.mutex_);
      if (owner_.free_.empty()) {
        scratch_ = std::make_unique<Scratch>();
      } else {
        scratch_ = std::move(owner_.free_.back());
        owner_.free_.pop_back();
      }
    }
    ~ScratchLease() {
      const std::lock_guard<std::mutex> lock(owner_.mutex_);
      owner_.free_.push_back(std::move(scratch_));
    }
    ScratchLease(const ScratchLease &) = delete;
    ScratchLease &operator=(const ScratchLease &) = delete;
    Scratch *operator->() const { return scratch_.get(); }

  private:
    NativeStudent &owner_;
    std::unique_ptr<Scratch> scratch_;
  };

  Arrays arrays() const {
    Arrays result;
    for (const auto &item : tensors) result[item.key()] = to_array(item.value());
    return result;
  }

  void set_species(const Tensor &numbers, Workspace &work) const {
    const int64_t *number = numbers.const_data_ptr<int64_t>();
    int32_t *species = work.species.reserve(numbers.numel());
    for (int64_t i = 0; i < numbers.numel(); i++) species[i] = model.species(number[i]);
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
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
      .def("knots", [](const Handle &self) { return self->model.knots; })
      .def_pickle(
          [](const Handle &self) {
            return std::make_tuple(self->tensors, self->model.cutoff, self->model.knots);
          },
          [](std::tuple<c10::Dict<std::string, Tensor>, double, int64_t> state) {
            return c10::make_intrusive<NativeStudent>(std::get<0>(state), std::get<1>(state),
                                                      std::get<2>(state));
          });
  library.def("instruction_set() -> str", &instruction_set);
  library.def("use_instruction_set(str name) -> ()",
              [](const std::string &name) { use_instruction_set(name); });
}
