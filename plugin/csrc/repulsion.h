// The short-range repulsion of Ziegler, Biersack and Littmark between nuclei, as in repulsion.py.
#pragma once

#include <cstdint>
#include <vector>

namespace mlff_student {

struct Repulsion {
  struct Pair {
    double energy;     // eV
    double derivative; // by the distance, eV/angstrom
  };

  // Whether a pair of species has any repulsion at a distance in angstrom.
  bool reaches(double distance, int32_t first, int32_t second) const {
    return !(distance >= ranges[first * species + second]);
  }
  Pair operator()(double distance, int32_t first, int32_t second) const;

  int64_t species;
  std::vector<double> charges;        // (S, S), eV angstrom
  std::vector<double> lengths;        // (S, S), angstrom
  std::vector<double> ranges;         // (S, S), angstrom; the repulsion is zero from there on
  std::vector<double> weights, rates; // (4,), the universal screening function
};

} // namespace mlff_student
