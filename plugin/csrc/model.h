// Weights of a student as the kernels want them, from the named tensors of its archive.
#pragma once

#include "buffer.h"
#include "radial_table.h"
#include "repulsion.h"

#include <map>
#include <string>
#include <vector>

namespace mlff_student {

// 0 if that is no element's symbol.
int64_t atomic_number(const std::string &symbol);

struct Array {
  std::vector<int64_t> shape;
  std::vector<double> values; // row by row
};
using Arrays = std::map<std::string, Array>;

// y = x W^T + b
struct Linear {
  Linear(const Arrays &arrays, const std::string &name, int64_t outputs, int64_t inputs,
         bool has_bias = true);

  int64_t outputs, inputs;
  Buffer<float> weight; // (outputs, inputs)
  Buffer<float> bias;   // (outputs,)
};

struct Layer {
  RadialTable filter;
  Linear message, mix, update_in, update_out;
};

struct Model {
  // Names as in Student.state_dict(), and its buffers species_of, limits and repulsion.*.
  Model(const Arrays &arrays, double cutoff, int64_t knots = 0);

  // Index into the elements; throws for an element the student does not know.
  int32_t species(int64_t atomic_number) const;

  double cutoff;   // angstrom
  double shortest; // angstrom; the filters squeeze shorter distances towards it
  double lowest;   // eV; network energies below are squeezed towards it
  int64_t knots;
  int channels, readout_channels;
  std::vector<int64_t> species_of; // by atomic number, -1 where unknown
  std::vector<double> references;  // (S,), eV
  Buffer<float> embedding;         // (S, F)
  std::vector<Layer> layers;
  std::vector<Linear> readout; // to the readout channels, to the energy
  Repulsion repulsion;
};

} // namespace mlff_student
