// A student of three elements with random weights, made by the C API.
#pragma once

#include "mlff_student.h"

#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

struct Array {
  std::vector<int64_t> shape;
  std::vector<double> values;
};
using Arrays = std::map<std::string, Array>;

inline Arrays random_weights(int64_t f, int64_t layers, int64_t functions, std::mt19937 &random) {
  std::normal_distribution<double> normal;
  const auto array = [&](std::vector<int64_t> shape, double scale) {
    Array result{shape, {}};
    int64_t count = 1;
    for (const int64_t length : shape) count *= length;
    for (int64_t k = 0; k < count; k++) result.values.push_back(scale * normal(random));
    return result;
  };
  const double wide = 0.5 / std::sqrt(static_cast<double>(f));
  Arrays arrays;
  arrays["species_of"] = {{4}, {-1, 0, 1, 2}};
  arrays["limits"] = {{2}, {0.88, -3.0}};
  arrays["references"] = array({3}, 1.0);
  arrays["embedding.weight"] = array({3, f}, 1.0);
  for (int64_t layer = 0; layer < layers; layer++) {
    const std::string prefix = "blocks." + std::to_string(layer) + ".";
    arrays[prefix + "filter.weight"] = array({3 * f, functions}, 0.2);
    arrays[prefix + "filter.bias"] = array({3 * f}, 0.2);
    arrays[prefix + "message.weight"] = array({3 * f, f}, wide);
    arrays[prefix + "message.bias"] = array({3 * f}, 0.1);
    arrays[prefix + "mix.weight"] = array({f, f}, wide);
    arrays[prefix + "update_in.weight"] = array({f, 2 * f}, wide);
    arrays[prefix + "update_in.bias"] = array({f}, 0.1);
    arrays[prefix + "update_out.weight"] = array({2 * f, f}, wide);
    arrays[prefix + "update_out.bias"] = array({2 * f}, 0.1);
  }
  arrays["readout_in.weight"] = array({64, f}, wide);
  arrays["readout_in.bias"] = array({64}, 0.1);
  arrays["readout_out.weight"] = array({1, 64}, 0.3);
  arrays["readout_out.bias"] = array({1}, 0.1);
  arrays["repulsion.charges"] = {{3, 3}, std::vector<double>(9, 14.4)};
  arrays["repulsion.lengths"] = {{3, 3}, std::vector<double>(9, 0.2)};
  arrays["repulsion.ranges"] = {{3, 3}, std::vector<double>(9, 1.5)};
  arrays["repulsion.weights"] = {{4}, {0.1818, 0.5099, 0.2802, 0.02817}};
  arrays["repulsion.rates"] = {{4}, {3.2, 0.9423, 0.4029, 0.2016}};
  return arrays;
}

// Returns null if the library refuses the weights.
inline mlff_student_model *model_of(const Arrays &weights, double cutoff, int64_t knots = 0) {
  std::vector<mlff_student_array> arrays;
  for (const auto &[name, array] : weights)
    arrays.push_back({name.c_str(), array.values.data(), array.shape.data(), array.shape.size()});
  return mlff_student_from_arrays(arrays.data(), arrays.size(), cutoff, knots);
}
