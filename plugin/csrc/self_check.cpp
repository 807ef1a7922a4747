#include "self_check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <vector>

namespace mlff_student {

namespace {

// Ten times the rounding of float32 between machines, as in archive.py.
constexpr double ENERGY_TOLERANCE = 1e-4; // eV
constexpr double FORCE_TOLERANCE = 1e-3;  // eV/angstrom
// Rounding grows with forces that are larger, eV/angstrom.
constexpr double LARGEST_ORDINARY_FORCE = 100;

// Finds the directed edges of a molecule without a cell, by comparing all pairs.
void build_edges(const std::vector<double> &positions, double cutoff, Graph &graph) {
  const int64_t atoms = positions.size() / 3;
  graph.resize(atoms, atoms, atoms * atoms);
  int64_t edge = 0;
  for (int64_t i = 0; i < atoms; i++) {
    graph.first[i] = edge;
    for (int64_t j = 0; j < atoms; j++) {
      double *r = &graph.vectors[3 * edge];
      for (int a = 0; a < 3; a++) r[a] = positions[3 * j + a] - positions[3 * i + a];
      if (i != j && r[0] * r[0] + r[1] * r[1] + r[2] * r[2] < cutoff * cutoff)
        graph.sender[edge++] = static_cast<int32_t>(j);
    }
  }
  graph.first[atoms] = graph.edges = edge;
}

} // namespace

void check_reference_numbers(const Archive &archive, const Model *model, Workspace &work) {
  const ReferenceNumbers &expected = archive.reference;
  const int64_t atoms = expected.atomic_numbers.size();
  Graph &graph = work.graph;
  build_edges(expected.positions, archive.cutoff, graph);
  std::vector<int64_t> index(2 * graph.edges); // receivers, then senders
  for (int64_t i = 0; i < atoms; i++)
    for (int64_t edge = graph.first[i]; edge < graph.first[i + 1]; edge++) {
      index[edge] = i;
      index[graph.edges + edge] = graph.sender[edge];
    }

  std::vector<double> energies(atoms), gradient(3 * graph.edges), forces(3 * atoms);
  if (model) {
    int32_t *species = work.species.reserve(atoms);
    for (int64_t i = 0; i < atoms; i++) species[i] = model->species(expected.atomic_numbers[i]);
    graph.complete(*model, work.threads);
    evaluate_graph(*model, work, atoms, energies.data(), gradient.data());
  } else {
    archive.from_edges(graph.vectors.data(), index.data(), graph.edges,
                       expected.atomic_numbers.data(), atoms, energies.data(), gradient.data());
  }
  // gather_forces does not work here: it needs the edges by sender, which only a native model
  // sorts.
  for (int64_t edge = 0; edge < graph.edges; edge++)
    for (int a = 0; a < 3; a++) {
      forces[3 * index[edge] + a] += gradient[3 * edge + a];
      forces[3 * index[graph.edges + edge] + a] -= gradient[3 * edge + a];
    }

  double energy = 0.0, largest = 0.0, force_error = 0.0;
  for (const double value : energies) energy += value;
  for (int64_t k = 0; k < 3 * atoms; k++) {
    largest = std::max(largest, std::abs(expected.forces[k]));
    const double error = std::abs(forces[k] - expected.forces[k]);
    force_error = std::isfinite(error) ? std::max(force_error, error) : INFINITY;
  }
  const double energy_error = std::abs(energy - expected.energy);
  const double scale = std::max(1.0, largest / LARGEST_ORDINARY_FORCE);
  if (energy_error < scale * ENERGY_TOLERANCE && force_error < scale * FORCE_TOLERANCE) return;
  char numbers[200];
  std::snprintf(numbers, sizeof(numbers),
                "energy off by %.1e eV (allowed %.0e), forces by %.1e eV/angstrom (allowed %.0e)",
                energy_error, scale * ENERGY_TOLERANCE, force_error, scale * FORCE_TOLERANCE);
  throw std::runtime_error(
      std::string("its self-check fails: ") + numbers +
      "; this torch computes other numbers than the torch that wrote the archive, or the file was "
      "altered: run 'mlff-student doctor', or export the model again");
}

} // namespace mlff_student
