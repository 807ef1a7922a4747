// SPDX-License-Identifier: GPL-2.0-or-later
// This file has the licence of LAMMPS, because it is built into a plugin of LAMMPS.

// The pair style mlff_student: energies and forces of one student, or of a committee of students.

#ifdef PAIR_CLASS
// clang-format off
PairStyle(mlff_student,PairMLFFStudent);
// clang-format on
#else

#ifndef LMP_PAIR_MLFF_STUDENT_H
#define LMP_PAIR_MLFF_STUDENT_H

#include "atom.h"
#include "pair.h"

#include "mlff_student.h"

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
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
  struct FreeWorkspace {
    void operator()(mlff_student_workspace *work) const { mlff_student_free_workspace(work); }
  };
  struct Member;                                               // a model of the committee
  enum class Exchange { OWNERS, FEATURES, GRADIENTS, FORCES }; // what ranks send to each other
  enum Stage { EDGES, MODEL, EXCHANGE, TALLY, OUTSIDE };       // what the time is spent on

  // Counts of this rank since the run began. An exchange consists of swaps. A swap of the rank with
  // itself, across a periodic boundary, is a copy; a swap with another rank is a message.
  struct Usage {
    std::array<double, 5> seconds{}; // by stage
    int64_t evaluations = 0;
    int64_t swaps = 0, swapped_bytes = 0; // of copies and messages together
    int64_t messages = 0, sent_bytes = 0;
  };

  // Two atoms of the student whose pair a rule removes from the neighbor list.
  struct Removal {
    int rule = 0; // 0: no such atoms
    tagint first = 0, second = 0;
  };

  void require_all_neighbors();
  Removal removed_by_special_bonds() const;
  Removal outside_group(int which, int rule) const;
  Removal removed_by_exclude() const;
  std::string name_of_rule(int rule) const;
  std::string remedy(int rule) const;
  bool is_deleted(int row) const { return (atom->mask[row] & deleted_bits) != 0; }
  bool is_present(int row) const { return number_of_type[atom->type[row]] && !is_deleted(row); }
  std::string read_file(const char *name);
  std::string open_archives(const std::vector<std::string> &files);
  void open_scripts(const std::vector<std::string> &files, const std::vector<std::string> &archives,
                    const std::string &why);
  void map_types(int narg, char **arg);
  void number_nodes();
  void build_edges();
  void start_stage(Stage next);
  void forward_exchange(int size);
  void reverse_exchange(int size);
  void count_swap(const double *buf, std::size_t doubles);
  void evaluate(const Member &member, std::vector<double> &energies, std::vector<double> &gradient);
  void evaluate_native(const Member &member, double *energies, double *gradient);
  void evaluate_portable(const Member &member, double *energies, double *gradient);
  void tally();
  void add_member(std::size_t member, double weight);
  void measure_deviation();

  // Settings of the input script.
  std::string backend = "auto", device = "cpu";
  int threads = 0;  // 0: as many as LAMMPS has
  bool mean = true; // the committee's mean moves the atoms; if false, its first member does

  std::vector<Member> committee;
  bool native = false;                 // whether the backend in use is native
  double cutoff = 0.0;                 // angstrom
  double ev_to_energy = 1.0;           // 1 eV in the energy unit of the run
  std::vector<int64_t> number_of_type; // (ntypes + 1,) atomic number; 0 where the element is NULL
  // Groups of atoms that a Monte Carlo fix has deleted on trial: they have no energy and no forces.
  int deleted_bits = 0;

  // The nodes of the graph are the atoms of the neighbor list, in its order, and then all ghosts
  // whose type has an element. A row is an index into the arrays of class Atom.
  std::vector<int> node_of_row;  // (nlocal + nghost,); -1 where the element is NULL
  std::vector<int> row_of_node;  // (nodes,)
  std::vector<int> owner_of_row; // (nlocal + nghost,); the node of the atom whose image a ghost is
  std::vector<int64_t> atomic_numbers; // (nodes,)
  std::unique_ptr<mlff_student_workspace, FreeWorkspace> work;

  // Directed edges i <- j, sorted by receiver; those of receiver i begin at
  // first_edge[i]. The atoms of the neighbor list receive. The vectors have room for more edges.
  int64_t edges = 0;
  std::vector<int64_t> first_edge; // (inum + 1,)
  std::vector<int32_t> senders;    // (edges,)
  std::vector<double> vectors;     // (edges, 3) x_j - x_i, angstrom

  Exchange exchange = Exchange::OWNERS;
  int64_t depth = 0;              // the layer whose features are exchanged
  std::size_t channels = 0;       // the number of channels of these features
  const double *packed = nullptr; // the buffer that was packed last
  Usage usage;
  Stage stage = OUTSIDE;
  std::chrono::steady_clock::time_point stage_began;

  std::vector<double> energies;    // (inum,) eV
  std::vector<double> gradient;    // (edges, 3) by the edge vectors, eV/angstrom
  std::vector<int64_t> edge_index; // (2, edges) input of the portable backend

  int deviation_flag = 0; // fix pair sets it at the steps at which it reads the deviation
  std::vector<double> member_energies, member_gradient; // of one member
  std::vector<double> member_sums;                      // (M,) energies of this rank's atoms, eV
  std::vector<double> member_forces;                    // (nodes, M, 3) eV/angstrom
  std::vector<double> deviation; // (nlocal + 1,) of the forces, energy unit/angstrom
};

} // namespace LAMMPS_NS

#endif
#endif
