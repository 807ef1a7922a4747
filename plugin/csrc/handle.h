// What is behind the opaque types of mlff_student.h.
#pragma once

#include "evaluate.h"
#include "mlff_student.h"
#include "neighbours.h"

#include <memory>
#include <string>
#include <vector>

struct mlff_student_model {
  mlff_student_model(const mlff_student::Arrays &arrays, double cutoff, int64_t knots);

  const mlff_student::Model model;
  std::string name, teacher, metadata;
  int64_t parameters = 0;
  std::vector<int64_t> atomic_numbers;
};

struct mlff_student_workspace {
  mlff_student::Workspace work;
  // Made in structures.cpp, which alone knows how to free it.
  std::shared_ptr<mlff_student::NeighbourList> neighbours;
  mlff_student::EdgeMemory edges;
  mlff_student::Buffer<double> energies, gradient; // (N,), (E, 3)

  // The layer-wise evaluation that was begun: its model, and how many of its steps have run, which
  // are forward for each layer, readout, adjoint for each layer, and finish. -1: none was begun.
  const mlff_student_model *model = nullptr;
  int64_t steps = -1;
};
