#include "model.h"

#include "elements.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace mlff_student {

namespace {

// Knots of a filter table. The relative root mean square error of a filter's slope (20 radial
// functions, 5 angstrom) is 2.0e-6 with 101 knots, 7.6e-7 with 126 and 5.2e-7 with 151; with more
// knots rounding dominates. Forces in float32 arithmetic have 1e-6. With 126 knots, two of them lie
// at 0.48 and 0.88 angstrom, where the third derivative of squeezed distances is discontinuous.
constexpr int64_t KNOTS = 126, MAX_KNOTS = 100000;
// Together with the smallest number of channels it bounds the memory of a model by its weights.
constexpr std::size_t MAX_LAYERS = 64;

// Returns text such as "79 (Au)".
std::string with_symbol(int64_t atomic_number) {
  const std::string number = std::to_string(atomic_number);
  const char *symbol = symbol_of(atomic_number);
  return number + " (" + (symbol ? symbol : "no element") + ")";
}

std::string text(const std::vector<int64_t> &shape) {
  std::string result = "(";
  for (std::size_t k = 0; k < shape.size(); k++)
    result += (k ? ", " : "") + std::to_string(shape[k]);
  return result + ")";
}

const Array &find(const Arrays &arrays, const std::string &name) {
  const auto entry = arrays.find(name);
  if (entry == arrays.end())
    throw std::invalid_argument("mlff_student: the model has no tensor '" + name + "'");
  return entry->second;
}

// Returns the length of an array of two dimensions along an axis.
int64_t length(const Arrays &arrays, const std::string &name, int axis) {
  const Array &array = find(arrays, name);
  if (array.shape.size() != 2)
    throw std::invalid_argument("mlff_student: tensor '" + name + "' has the shape " +
                                text(array.shape) + ", expected two dimensions");
  return array.shape[axis];
}

const std::vector<double> &values(const Arrays &arrays, const std::string &name,
                                  const std::vector<int64_t> &shape) {
  const Array &array = find(arrays, name);
  if (array.shape != shape)
    throw std::invalid_argument("mlff_student: tensor '" + name + "' has the shape " +
                                text(array.shape) + ", expected " + text(shape));
  return array.values;
}

void check_multiple(const std::string &what, int64_t channels) {
  if (channels <= 0 || channels % CHANNEL_MULTIPLE)
    throw std::invalid_argument("mlff_student: " + what + " must be a multiple of " +
                                std::to_string(CHANNEL_MULTIPLE) + ", got " +
                                std::to_string(channels));
}

void copy(const std::vector<double> &from, Buffer<float> &to) {
  to.reserve(from.size());
  for (std::size_t k = 0; k < from.size(); k++) to[k] = static_cast<float>(from[k]);
}

} // namespace

Linear::Linear(const Arrays &arrays, const std::string &name, int64_t outputs, int64_t inputs,
               bool has_bias)
    : outputs(outputs), inputs(inputs), stored_outputs(outputs) {
  const std::vector<double> &weight = values(arrays, name + ".weight", {outputs, inputs});
  panels.reserve(weight.size());
  adjoint_panels.reserve(weight.size());
  for (int64_t o = 0; o < outputs; o++)
    for (int64_t i = 0; i < inputs; i++) {
      const auto value = static_cast<float>(weight[o * inputs + i]);
      panels[(o / PANEL * inputs + i) * PANEL + o % PANEL] = value;
      adjoint_panels[(i / PANEL * outputs + o) * PANEL + i % PANEL] = value;
    }
  if (has_bias) copy(values(arrays, name + ".bias", {outputs}), bias);
}

Model::Model(const Arrays &arrays, double cutoff, int64_t knots)
    : cutoff(cutoff), knots(knots > 0 ? knots : KNOTS), repulsion([&arrays] {
        const int64_t species = find(arrays, "references").values.size();
        const std::string prefix = "repulsion.";
        return Repulsion{species,
                         values(arrays, prefix + "charges", {species, species}),
                         values(arrays, prefix + "lengths", {species, species}),
                         values(arrays, prefix + "ranges", {species, species}),
                         values(arrays, prefix + "weights", {4}),
                         values(arrays, prefix + "rates", {4})};
      }()) {
  references = find(arrays, "references").values;
  for (const double index : find(arrays, "species_of").values) {
    if (!(index >= -1.0 && index < static_cast<double>(references.size())))
      throw std::invalid_argument("mlff_student: tensor 'species_of' has the index " +
                                  std::to_string(index) + " of " +
                                  std::to_string(references.size()));
    species_of.push_back(static_cast<int64_t>(index));
  }
  const int64_t f = length(arrays, "embedding.weight", 1);
  check_multiple("channels", f);
  if (!(cutoff > 0.0 && std::isfinite(cutoff)))
    throw std::invalid_argument("mlff_student: the cutoff must be positive, got " +
                                std::to_string(cutoff));
  if (this->knots < 2 || this->knots > MAX_KNOTS)
    throw std::invalid_argument("mlff_student: a table has 2 to " + std::to_string(MAX_KNOTS) +
                                " knots, got " + std::to_string(this->knots));
  channels = static_cast<int>(f);
  shortest = values(arrays, "limits", {2})[0];
  lowest = values(arrays, "limits", {2})[1];
  if (!(shortest > 0.0))
    throw std::invalid_argument("mlff_student: the shortest distance must be positive, got " +
                                std::to_string(shortest));
  copy(values(arrays, "embedding.weight", {static_cast<int64_t>(references.size()), f}), embedding);

  for (int index = 0;; index++) {
    const std::string prefix = "blocks." + std::to_string(index) + ".";
    if (!arrays.count(prefix + "mix.weight")) break;
    if (layers.size() == MAX_LAYERS)
      throw std::invalid_argument("mlff_student: the model has more than " +
                                  std::to_string(MAX_LAYERS) + " layers");
    const int64_t functions = length(arrays, prefix + "filter.weight", 1);
    auto weight = values(arrays, prefix + "filter.weight", {3 * f, functions});
    auto bias = values(arrays, prefix + "filter.bias", {3 * f});
    const int parts = filter_parts(index);
    weight.resize(parts * f * functions);
    bias.resize(parts * f);
    layers.push_back({RadialTable(weight, bias, channels, parts, cutoff, shortest, this->knots),
                      Linear(arrays, prefix + "message", 3 * f, f),
                      Linear(arrays, prefix + "mix", f, f, false),
                      Linear(arrays, prefix + "update_in", f, 2 * f),
                      Linear(arrays, prefix + "update_out", 2 * f, f)});
    layers.back().message.outputs = parts * f;
  }
  if (layers.empty()) throw std::invalid_argument("mlff_student: the model has no layers");
  const int64_t hidden = length(arrays, "readout_in.weight", 0);
  check_multiple("readout channels", hidden);
  readout_channels = static_cast<int>(hidden);
  readout.push_back(Linear(arrays, "readout_in", hidden, f));
  copy(values(arrays, "readout_out.weight", {1, hidden}), readout_weight);
  readout_bias = static_cast<float>(values(arrays, "readout_out.bias", {1})[0]);
}

int32_t Model::species(int64_t atomic_number) const {
  const bool listed = atomic_number >= 0 && atomic_number < static_cast<int64_t>(species_of.size());
  const int64_t index = listed ? species_of[atomic_number] : -1;
  if (index < 0) {
    std::string known;
    for (std::size_t z = 0; z < species_of.size(); z++)
      if (species_of[z] >= 0) known += (known.empty() ? "" : ", ") + with_symbol(z);
    throw std::invalid_argument("mlff_student: atomic number " + with_symbol(atomic_number) +
                                " is unknown to this student; it knows " + known);
  }
  return static_cast<int32_t>(index);
}

} // namespace mlff_student
