// The functions of mlff_student.h that search for neighbours. A program that links the static core
// and calls none of them needs no vesin.
#include "checks.h"
#include "neighbours.h"

#include <algorithm>

using namespace mlff_student;

namespace {

// Returns the lattice vectors of the periodic directions; the others are zero.
Cell read_cell(const mlff_student_system &system) {
  Cell cell{};
  for (int a = 0; a < 3; a++) {
    cell.periodic[a] = system.periodic ? system.periodic[a] != 0 : system.cell != nullptr;
    if (!cell.periodic[a]) continue;
    if (!system.cell) refuse("the system is periodic, but its cell is NULL");
    const double *row = system.cell + 3 * a;
    if (!is_finite(row))
      refuse("vector " + std::to_string(a) +
             " of the periodic cell is NaN or infinite: " + text_of(row));
    std::copy_n(row, 3, cell.rows[a].begin());
  }
  return cell;
}

void check_system(const mlff_student_system &system) {
  check_count(system.atoms, "atoms");
  if (system.atoms == 0) return;
  check_pointer(system.positions, "positions");
  for (int64_t i = 0; i < system.atoms; i++)
    if (!is_finite(system.positions + 3 * i))
      refuse("the position of atom " + std::to_string(i) +
             " is NaN or infinite: " + text_of(system.positions + 3 * i));
}

void evaluate_model(const Model &model, mlff_student_workspace &memory, int64_t atoms,
                    const mlff_student_results &results) {
  Workspace &work = memory.work;
  double *energies = results.energies ? results.energies : memory.energies.reserve(atoms);
  const bool derivatives = results.forces || results.virial || results.virials;
  double *gradient = derivatives ? memory.gradient.reserve(3 * work.graph.edges) : nullptr;
  evaluate_graph(model, work, atoms, energies, gradient);
  check_energies(energies, atoms);
  if (derivatives) gather_forces(work, gradient, results.forces, results.virial, results.virials);
  for (int64_t i = 0; results.forces && i < atoms; i++)
    if (!is_finite(results.forces + 3 * i))
      refuse("the force on atom " + std::to_string(i) + " is not finite; do two atoms coincide?");
}

} // namespace

int mlff_student_evaluate(const mlff_student_model *model, mlff_student_workspace *work,
                          int threads, const mlff_student_system *system,
                          const mlff_student_results *results) {
  return mlff_student_evaluate_committee(&model, 1, work, threads, system, results);
}

int mlff_student_evaluate_committee(const mlff_student_model *const *models, size_t count,
                                    mlff_student_workspace *work, int threads,
                                    const mlff_student_system *system,
                                    const mlff_student_results *results) {
  return guarded([&] {
    check_pointer(models, "models");
    check_pointer(work, "work");
    check_pointer(system, "system");
    check_pointer(results, "results");
    check_threads(threads);
    if (count == 0) refuse("count is 0, expected a model");
    check_system(*system);
    const Cell cell = read_cell(*system);
    const int64_t atoms = system->atoms;
    work->steps = -1;
    for (size_t k = 0; k < count; k++) {
      check_pointer(models[k], "model");
      const double cutoff = models[k]->model.cutoff, expected = models[0]->model.cutoff;
      if (cutoff != expected)
        refuse("model " + std::to_string(k) + " of the committee has the cutoff " + brief(cutoff) +
               " angstrom, model 0 has " + brief(expected));
      set_species(models[k]->model, system->atomic_numbers, atoms, work->work);
    }
    if (atoms == 0) {
      for (size_t k = 0; k < count; k++)
        if (results[k].virial) std::fill_n(results[k].virial, 9, 0.0);
      return;
    }
    work->work.threads = threads;
    Graph &graph = work->work.graph;
    if (!work->neighbours) work->neighbours = std::make_shared<NeighbourList>();
    work->neighbours->build_edges(system->positions, atoms, cell, models[0]->model.cutoff, graph);
    for (size_t k = 0; k < count; k++) {
      const Model &model = models[k]->model;
      if (k == 0 || model.knots != models[k - 1]->model.knots) graph.complete(model, threads);
      set_species(model, system->atomic_numbers, atoms, work->work);
      evaluate_model(model, *work, atoms, results[k]);
    }
  });
}

int mlff_student_search(mlff_student_workspace *work, double cutoff, double skin,
                        const mlff_student_system *system, mlff_student_edges *edges) {
  return guarded([&] {
    check_pointer(work, "work");
    check_pointer(system, "system");
    check_pointer(edges, "edges");
    if (!(cutoff > 0.0 && std::isfinite(cutoff))) refuse("the cutoff is " + brief(cutoff));
    if (!(skin >= 0.0 && std::isfinite(skin))) refuse("the skin is " + brief(skin));
    check_system(*system);
    const Cell cell = read_cell(*system);
    work->steps = -1;
    Graph &graph = work->work.graph;
    graph.resize(system->atoms, system->atoms, 0);
    graph.first[0] = 0;
    if (!work->neighbours) work->neighbours = std::make_shared<NeighbourList>();
    if (system->atoms > 0)
      work->neighbours->build_edges(system->positions, system->atoms, cell, cutoff, graph, skin);
    *edges = {graph.edges, graph.first.data(), graph.sender.data(), graph.vectors.data()};
  });
}
