// Short-range repulsion between nuclei (Ziegler-Biersack-Littmark), as in repulsion.py.
#pragma once

#include <cstdint>
#include <vector>

namespace mlff_student {

struct Repulsion {
  struct Pair {
    double energy;     // eV
    double derivative; // eV/angstrom, by the distance
  };

  bool reaches(double distance, int32_t first, int32_t second) const {
    return !(distance >= ranges[first * species + second]);
  }
  Pair operator()(double distance, int32_t first, int32_t second) const;

  int64_t species;
  std::vector<double> charges;        // (S, S), eV angstrom
  std::vector<double> lengths;        // (S, S), angstrom
  std::vector<double> ranges;         // (S, S), angstrom: zero from there on
  std::vector<double> weights, rates; // (4,), the universal screening function
};

} // namespace mlff_student
