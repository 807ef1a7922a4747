// SPDX-License-Identifier: GPL-2.0-or-later
// LAMMPS is under the GPL, and this file is built into a plugin of it.

// Pair style mlff_student: energies and forces of a student archive, per step of LAMMPS.

#ifndef LMP_PAIR_MLFF_STUDENT_H
#define LMP_PAIR_MLFF_STUDENT_H

#include "pair.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace LAMMPS_NS {

class PairMLFFStudent : public Pair {
public:
  explicit PairMLFFStudent(LAMMPS *lmp);
  ~PairMLFFStudent() override;

  void settings(int narg, char **arg) override;
  void coeff(int narg, char **arg) override;
  void init_style() override;
  double init_one(int i, int j) override;
  void compute(int eflag, int vflag) override;

  int pack_forward_comm(int n, int *list, double *buf, int pbc_flag, int *pbc) override;
  void unpack_forward_comm(int n, int first, double *buf) override;

private:
  struct Archive; // keeps torch out of this header

  void map_types(int narg, char **arg);
  void number_nodes();
  void build_edges();
  void tally(const double *energies, const double *gradient);

  std::unique_ptr<Archive> archive;
  double ev_to_energy = 1.0;           // eV in the energy unit of the run
  std::vector<int64_t> number_of_type; // (ntypes + 1,) atomic number, 0 where NULL
  std::vector<int> node_of_row;        // (nlocal + nghost,) node of each row, ghosts as owners
  std::vector<int64_t> atomic_numbers; // (N,) of each node
  std::vector<double> edge_vectors;    // (E, 3) x_j - x_i of edge i <- j, angstrom
  std::vector<int64_t> edge_index;     // (2, E) nodes: receivers i, then senders j
  std::vector<int> sender_rows;        // (E,) row of j, which may be a ghost
};

} // namespace LAMMPS_NS

#endif
