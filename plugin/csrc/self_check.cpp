#include "self_check.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace mlff_student {

namespace {

// Ten times the rounding of float32 between machines, as in archive.py.
constexpr double ENERGY_TOLERANCE = 1e-4; // eV
constexpr double FORCE_TOLERANCE = 1e-3;  // eV/angstrom
// Rounding grows with forces that are larger, eV/angstrom.
constexpr double LARGEST_ORDINARY_FORCE = 100;

} // namespace

void check_reference_numbers(const ReferenceNumbers &expected, double cutoff,
                             const FromEdges &from_edges) {
  const int64_t atoms = expected.atomic_numbers.size();
  std::vector<int64_t> index, senders;
  std::vector<double> vectors;
  for (int64_t i = 0; i < atoms; i++)
    for (int64_t j = 0; j < atoms; j++) {
      std::array<double, 3> r;
      for (int a = 0; a < 3; a++)
        r[a] = expected.positions[3 * j + a] - expected.positions[3 * i + a];
      if (i == j || !(r[0] * r[0] + r[1] * r[1] + r[2] * r[2] < cutoff * cutoff)) continue;
      index.push_back(i);
      senders.push_back(j);
      vectors.insert(vectors.end(), r.begin(), r.end());
    }
  const int64_t edges = senders.size();
  index.insert(index.end(), senders.begin(), senders.end());

  std::vector<double> energies(atoms), gradient(3 * edges), forces(3 * atoms);
  from_edges(vectors.data(), index.data(), edges, expected.atomic_numbers.data(), atoms,
             energies.data(), gradient.data());
  for (int64_t edge = 0; edge < edges; edge++)
    for (int a = 0; a < 3; a++) {
      forces[3 * index[edge] + a] += gradient[3 * edge + a];
      forces[3 * senders[edge] + a] -= gradient[3 * edge + a];
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
      "; this machine computes other numbers than the archive has, or the file was altered: run "
      "'mlff-student doctor', or export the model again");
}

} // namespace mlff_student
