// Weights of a student in the form that the kernels use, from the named tensors of its archive.
#pragma once

#include "buffer.h"
#include "radial_table.h"
#include "repulsion.h"

#include <map>
#include <string>
#include <vector>

namespace mlff_student {

struct Array {
  std::vector<int64_t> shape;
  std::vector<double> values; // row by row
};
using Arrays = std::map<std::string, Array>;

// The map y = x W^T + b. W (outputs, inputs) is stored twice, for x W^T and for the adjoint g_y W.
// All numbers of rows and columns are multiples of PANEL.
struct Linear {
  Linear(const Arrays &arrays, const std::string &name, int64_t outputs, int64_t inputs,
         bool has_bias = true);

  int64_t outputs, inputs;
  int64_t stored_outputs;       // outputs of the stored W, of which the first `outputs` are used
  Buffer<float> panels;         // (stored_outputs / PANEL, inputs, PANEL)
  Buffer<float> adjoint_panels; // (inputs / PANEL, stored_outputs, PANEL)
  Buffer<float> bias;           // (stored_outputs,)
};

// Filters in a layer: for q, for mu along the edge and, except in the first layer, where mu is
// zero, for mu of the sender.
constexpr int filter_parts(std::size_t layer) { return layer == 0 ? 2 : 3; }

struct Layer {
  RadialTable filter;
  Linear message, mix, update_in, update_out;
};

struct Model {
  // The arrays and their names are as in Student.state_dict(). Throws
  // std::invalid_argument if an array is missing or has another shape.
  Model(const Arrays &arrays, double cutoff, int64_t knots = 0);

  // Returns the index of an element; throws std::invalid_argument if the student does not know it.
  int32_t species(int64_t atomic_number) const;

  double cutoff;   // angstrom
  double shortest; // angstrom; shorter distances are squeezed towards it
  double lowest;   // eV; lower network energies are squeezed towards it
  int64_t knots;
  int channels, readout_channels;
  std::vector<int64_t> species_of; // by atomic number, -1 where unknown
  std::vector<double> references;  // (S,), eV
  Buffer<float> embedding;         // (S, F)
  std::vector<Layer> layers;
  std::vector<Linear> readout;  // one map, to the readout channels
  Buffer<float> readout_weight; // (readout channels,), from there to the energy
  float readout_bias;
  Repulsion repulsion;
};

} // namespace mlff_student
