// SPDX-License-Identifier: GPL-2.0-or-later
// LAMMPS is under the GPL, and this file is built into a plugin of it.

// Pair style mlff_student: energies and forces of one student, or of a committee of them.

#ifdef PAIR_CLASS
// clang-format off
PairStyle(mlff_student,PairMLFFStudent);
// clang-format on
#else

#ifndef LMP_PAIR_MLFF_STUDENT_H
#define LMP_PAIR_MLFF_STUDENT_H

#include "pair.h"

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mlff_student {
struct Workspace;
}

namespace LAMMPS_NS {

class PairMLFFStudent : public Pair {
public:
  explicit PairMLFFStudent(LAMMPS *lmp);
  ~PairMLFFStudent() override;

  void settings(int narg, char **arg) override;
  void coeff(int narg, char **arg) override;
  void init_style() override;
  double init_one(int i, int j) override;
  void setup() override;
  void compute(int eflag, int vflag) override;
  void *extract(const char *name, int &dim) override;
  void *extract_peratom(const char *name, int &ncol) override;
  void finish() override;
  double memory_usage() override;

  int pack_forward_comm(int n, int *list, double *buf, int pbc_flag, int *pbc) override;
  void unpack_forward_comm(int n, int first, double *buf) override;
  int pack_reverse_comm(int n, int first, double *buf) override;
  void unpack_reverse_comm(int n, int *list, double *buf) override;

private:
  struct Member; // a model of the committee
  enum class Exchange { OWNERS, FEATURES, GRADIENTS, FORCES };
  enum Stage { EDGES, MODEL, EXCHANGE, TALLY, ELSEWHERE };

  // What this rank did since the run began. Every exchange is made in swaps; one whose partner is
  // the rank itself, across a periodic boundary, is a copy, and any other a message.
  struct Usage {
    std::array<double, 5> seconds{}; // by stage
    int64_t evaluations = 0;
    int64_t swaps = 0, swapped_bytes = 0; // copies and messages
    int64_t messages = 0, sent_bytes = 0;
  };

  std::string read_file(const char *name);
  std::string choose_backend();
  void map_types(int narg, char **arg);
  void number_nodes();
  void build_edges();
  void begin(Stage next);
  void forward_exchange(int size);
  void reverse_exchange(int size);
  void count_swap(const double *buf, std::size_t doubles);
  void evaluate(const Member &member, std::vector<double> &energies, std::vector<double> &gradient);
  void evaluate_native(const Member &member, double *energies, double *gradient);
  void evaluate_portable(const Member &member, double *energies, double *gradient);
  void tally();
  void add_member(std::size_t member, double weight);
  void measure_deviation();

  // settings
  std::string backend = "auto", device = "cpu"; // asked for
  int threads = 0;                              // 0: those of LAMMPS
  bool mean = true; // of the committee; else its first member moves the atoms

  std::vector<Member> committee;
  bool native = false;                 // backend in use
  double cutoff = 0.0;                 // angstrom
  double ev_to_energy = 1.0;           // eV in the energy unit of the run
  std::vector<int64_t> number_of_type; // (ntypes + 1,) atomic number, 0 where NULL

  // Nodes: the atoms of the neighbor list, in its order, then all ghosts of their types.
  std::vector<int> node_of_row;  // (nlocal + nghost,) -1 where NULL
  std::vector<int> row_of_node;  // (nodes,)
  std::vector<int> owner_of_row; // (nlocal + nghost,) node of the atom that a ghost is an image of
  std::unique_ptr<mlff_student::Workspace> work; // has the edges; receivers are local nodes

  Exchange exchange = Exchange::OWNERS;
  std::size_t depth = 0;          // of the layer whose rows are exchanged
  std::size_t channels = 0;       // of those rows
  const double *packed = nullptr; // buffer that was packed last
  Usage usage;
  Stage stage = ELSEWHERE;
  std::chrono::steady_clock::time_point stage_began;

  std::vector<double> energies;                    // (inum,) eV
  std::vector<double> gradient;                    // (E, 3) eV/angstrom, by the edge vectors
  std::vector<int64_t> edge_index, atomic_numbers; // what the portable backend takes

  int deviation_flag = 0;                               // set by fix pair: wanted at this step
  std::vector<double> member_energies, member_gradient; // as those above
  std::vector<double> member_sums;                      // (M,) energy of this rank
  std::vector<double> member_forces;                    // (nodes, M, 3) eV/angstrom
  std::vector<double> deviation; // (nlocal + 1,) of the force, energy unit/angstrom
};

} // namespace LAMMPS_NS

#endif
#endif
