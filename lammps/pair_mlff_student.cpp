// SPDX-License-Identifier: GPL-2.0-or-later

#include "pair_mlff_student.h"

// LAMMPS comes before torch: both carry a copy of fmt behind the same include guards, and only the
// copy of LAMMPS has the symbols that its library exports.
#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

#include <torch/script.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

using namespace LAMMPS_NS;

namespace {

constexpr int64_t FORMAT_VERSION = 2;
constexpr double CLOSEST = 0.3; // angstrom, no two atoms may come closer

// In order of atomic number, from 1.
constexpr std::array<std::string_view, 118> SYMBOLS = {
    "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si", "P",
    "S",  "Cl", "Ar", "K",  "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn",
    "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",  "Zr", "Nb", "Mo", "Tc", "Ru", "Rh",
    "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd",
    "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W",  "Re",
    "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th",
    "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf", "Db",
    "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};

int64_t atomic_number(std::string_view symbol) {
  return std::find(SYMBOLS.begin(), SYMBOLS.end(), symbol) - SYMBOLS.begin() + 1;
}

std::string join(const std::vector<std::string> &words) {
  std::string text;
  for (const auto &word : words) text += text.empty() ? word : " " + word;
  return text;
}

// The line of a torch message that names the cause, without the traceback around it.
std::string cause(const std::exception &failure) {
  const std::string text = failure.what();
  const std::string_view mark = "Error: ";
  auto begin = text.rfind(mark);
  begin = begin == std::string::npos ? text.find_first_not_of("\n ") : begin + mark.size();
  if (begin == std::string::npos) return "no reason given";
  return text.substr(begin, text.find('\n', begin) - begin);
}

} // namespace

struct PairMLFFStudent::Archive {
  explicit Archive(const std::string &file);

  // Energies (N,) in eV and their gradient (E, 3) by the edge vectors in eV/angstrom, both float64.
  std::pair<torch::Tensor, torch::Tensor> evaluate(std::vector<double> &edge_vectors,
                                                   std::vector<int64_t> &edge_index,
                                                   std::vector<int64_t> &atomic_numbers);

  torch::jit::Module module;
  std::string name, teacher, dtype;
  int64_t parameters = 0;
  double cutoff = 0.0; // angstrom
  std::vector<std::string> elements;
};

PairMLFFStudent::Archive::Archive(const std::string &file) {
  try {
    module = torch::jit::load(file, torch::kCPU);
  } catch (const std::exception &failure) {
    throw std::runtime_error(
        "'" + file + "' is not a TorchScript archive, or it is damaged (" + cause(failure) +
        "). Write it anew with 'python export.py --model NAME' or copy it again");
  }
  const std::string foreign =
      "'" + file +
      "' is a TorchScript file, but not an mlff-student archive. Write one with 'python export.py "
      "--model NAME'";
  if (!module.hasattr("format_version") || !module.attr("format_version").isInt() ||
      !module.find_method("from_edges"))
    throw std::runtime_error(foreign);
  const int64_t found = module.attr("format_version").toInt();
  if (found != FORMAT_VERSION)
    throw std::runtime_error("'" + file + "' has archive format " + std::to_string(found) +
                             ", this pair style reads format " + std::to_string(FORMAT_VERSION) +
                             ". Export the model again with the installed mlff-student, or "
                             "install the version that wrote it");
  try {
    name = module.attr("name").toStringRef();
    teacher = module.attr("teacher").toStringRef();
    dtype = module.attr("dtype_name").toStringRef();
    parameters = module.attr("parameter_count").toInt();
    cutoff = module.attr("cutoff").toDouble();
    for (const auto &element : module.attr("elements").toListRef())
      elements.push_back(element.toStringRef());
  } catch (const std::exception &) {
    throw std::runtime_error(foreign + " (one of the attributes of format 1 is missing)");
  }
  // Weights are constants here: without this, torch would record a graph at every step.
  for (auto weight : module.parameters()) weight.set_requires_grad(false);
  module.eval();
}

// No inference or no-grad guard around the call: an archive may use autograd inside, and
// TorchScript has no way to switch it on again.
std::pair<torch::Tensor, torch::Tensor>
PairMLFFStudent::Archive::evaluate(std::vector<double> &edge_vectors,
                                   std::vector<int64_t> &edge_index,
                                   std::vector<int64_t> &atomic_numbers) {
  const int64_t edges = edge_index.size() / 2, atoms = atomic_numbers.size();
  const auto result =
      module
          .get_method("from_edges")(
              {torch::from_blob(edge_vectors.data(), {edges, 3}, torch::kDouble),
               torch::from_blob(edge_index.data(), {2, edges}, torch::kLong),
               torch::from_blob(atomic_numbers.data(), {atoms}, torch::kLong), atoms})
          .toTuple();
  const auto as_double = [&result](size_t k, at::IntArrayRef shape) {
    const auto tensor = result->elements().at(k).toTensor();
    TORCH_CHECK(tensor.sizes() == shape, "from_edges returned a tensor of shape ", tensor.sizes(),
                ", expected ", shape);
    return tensor.detach().to(torch::kCPU, torch::kDouble).contiguous();
  };
  return {as_double(0, {atoms}), as_double(1, {edges, 3})};
}

PairMLFFStudent::PairMLFFStudent(LAMMPS *lmp) : Pair(lmp) {
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  unit_convert_flag = utils::get_supported_conversions(utils::ENERGY);
  centroidstressflag = CENTROID_AVAIL;
  comm_forward = 1; // the node number of each ghost
}

PairMLFFStudent::~PairMLFFStudent() {
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

void PairMLFFStudent::settings(int narg, char **arg) {
  if (narg > 0)
    error->all(FLERR,
               "pair_style mlff_student takes no options, found '{}'; the archive and the elements "
               "go into: pair_coeff * * FILE.pt ELEMENT ...",
               arg[0]);
  if (comm->nprocs > 1)
    error->all(FLERR,
               "pair_style mlff_student runs on one MPI rank in this version, found {}; start lmp "
               "without mpiexec or with -n 1",
               comm->nprocs);
}

void PairMLFFStudent::coeff(int narg, char **arg) {
  const std::string units = update->unit_style;
  if (units != "metal" && units != "real")
    error->all(FLERR, "pair_style mlff_student needs 'units metal' or 'units real', found '{}'",
               units);
  ev_to_energy =
      units == "real" ? utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL) : 1.0;

  if (narg < 3)
    error->all(FLERR, "pair_style mlff_student needs: pair_coeff * * FILE.pt ELEMENT ...");
  const std::string file = utils::get_potential_file_path(arg[2]);
  if (file.empty())
    error->all(
        FLERR,
        "pair_style mlff_student cannot read archive '{}', neither as given nor in "
        "LAMMPS_POTENTIALS; write it with 'python export.py --model NAME' or correct the path",
        arg[2]);
  try {
    archive = std::make_unique<Archive>(file);
  } catch (const std::exception &refusal) {
    error->all(FLERR, "pair_style mlff_student: {}", refusal.what());
  }
  map_types(narg - 3, arg + 3);

  if (comm->me == 0)
    utils::logmesg(lmp,
                   "mlff_student: model {}, {} parameters, {}, cutoff {} angstrom, teacher {}, {} "
                   "MPI rank(s)\n",
                   archive->name, archive->parameters, archive->dtype, archive->cutoff,
                   archive->teacher, comm->nprocs);
}

void PairMLFFStudent::map_types(int narg, char **arg) {
  const int ntypes = atom->ntypes;
  if (narg != ntypes)
    error->all(
        FLERR,
        "pair_coeff of mlff_student names {} elements, but there are {} atom types; name one "
        "element for each type, in order",
        narg, ntypes);
  if (!allocated) {
    memory->create(setflag, ntypes + 1, ntypes + 1, "pair:setflag");
    memory->create(cutsq, ntypes + 1, ntypes + 1, "pair:cutsq");
    allocated = 1;
  }

  number_of_type.assign(ntypes + 1, 0);
  const auto &known = archive->elements;
  for (int type = 1; type <= ntypes; type++) {
    const std::string element = arg[type - 1];
    if (element == "NULL") {
      if (!utils::strmatch(force->pair_style, "^hybrid"))
        error->all(FLERR,
                   "pair_coeff of mlff_student maps atom type {} to NULL; name its element, or use "
                   "pair_style hybrid to give the type another potential",
                   type);
    } else if (std::find(known.begin(), known.end(), element) == known.end()) {
      error->all(
          FLERR,
          "element '{}' of atom type {} is unknown to model {}, which knows {}; take a model "
          "trained on it, or correct the order of elements",
          element, type, archive->name, join(known));
    } else {
      number_of_type[type] = atomic_number(element);
    }
  }
  for (int i = 1; i <= ntypes; i++)
    for (int j = 1; j <= ntypes; j++)
      setflag[i][j] = i <= j && number_of_type[i] && number_of_type[j];
}

void PairMLFFStudent::init_style() {
  if (!force->newton_pair)
    error->all(FLERR, "pair_style mlff_student needs newton_pair on, found off; use: newton on");
  for (int k = 1; k <= 3; k++)
    if (atom->nbonds > 0 && force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0)
      error->all(FLERR,
                 "special_bonds removes 1-{} neighbors, which pair_style mlff_student needs; use: "
                 "special_bonds lj/coul 1 1 1 (or a data file without bonds)",
                 k + 1);
  if (neighbor->nex_type || neighbor->nex_group || neighbor->nex_mol)
    error->all(FLERR,
               "neigh_modify exclude removes neighbors, which pair_style mlff_student needs; use: "
               "neigh_modify exclude none");
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

double PairMLFFStudent::init_one(int i, int j) {
  if (!setflag[std::min(i, j)][std::max(i, j)]) error->all(FLERR, "All pair coeffs are not set");
  return archive->cutoff;
}

void PairMLFFStudent::compute(int eflag, int vflag) {
  ev_init(eflag, vflag);
  number_nodes();
  build_edges();
  if (!atomic_numbers.empty()) {
    torch::Tensor energies, gradient;
    try {
      std::tie(energies, gradient) = archive->evaluate(edge_vectors, edge_index, atomic_numbers);
    } catch (const std::exception &failure) {
      error->one(FLERR, "pair_style mlff_student: model {} failed at step {} ({})", archive->name,
                 update->ntimestep, cause(failure));
    }
    tally(energies.const_data_ptr<double>(), gradient.const_data_ptr<double>());
  }
  if (vflag_fdotr) virial_fdotr_compute();
}

// Nodes are the atoms of the neighbor list, in its order. A ghost gets the number of the atom it is
// an image of through LAMMPS's own exchange, so neither tags nor an atom map are needed.
void PairMLFFStudent::number_nodes() {
  node_of_row.assign(atom->nlocal + atom->nghost, -1);
  atomic_numbers.resize(list->inum);
  for (int node = 0; node < list->inum; node++) {
    const int i = list->ilist[node];
    node_of_row[i] = node;
    atomic_numbers[node] = number_of_type[atom->type[i]];
  }
  comm->forward_comm(this);
}

int PairMLFFStudent::pack_forward_comm(int n, int *rows, double *buf, int, int *) {
  for (int k = 0; k < n; k++) buf[k] = node_of_row[rows[k]];
  return n;
}

void PairMLFFStudent::unpack_forward_comm(int n, int first, double *buf) {
  for (int k = 0; k < n; k++) node_of_row[first + k] = static_cast<int>(buf[k]);
}

void PairMLFFStudent::build_edges() {
  const double *const *x = atom->x;
  const double cutoff_squared = archive->cutoff * archive->cutoff;
  edge_vectors.clear();
  edge_index.clear();
  sender_rows.clear();
  for (int node = 0; node < list->inum; node++) {
    const int i = list->ilist[node];
    for (int k = 0; k < list->numneigh[i]; k++) {
      const int j = list->firstneigh[i][k] & NEIGHMASK;
      const double r[3] = {x[j][0] - x[i][0], x[j][1] - x[i][1], x[j][2] - x[i][2]};
      const double distance_squared = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
      if (distance_squared >= cutoff_squared) continue;
      if (distance_squared < CLOSEST * CLOSEST)
        error->one(FLERR,
                   "pair_style mlff_student: atoms {} and {} are {:.3} angstrom apart at step {}, "
                   "expected at least {}; correct the structure or shorten the timestep",
                   atom->tag[i], atom->tag[j], std::sqrt(distance_squared), update->ntimestep,
                   CLOSEST);
      edge_vectors.insert(edge_vectors.end(), r, r + 3);
      edge_index.push_back(node);
      sender_rows.push_back(j);
    }
  }
  for (const int j : sender_rows) edge_index.push_back(node_of_row[j]);
}

// Forces go to both ends of an edge, ghosts included; LAMMPS's reverse communication brings those
// home. The virial of an edge is shared by its ends, half to each.
void PairMLFFStudent::tally(const double *energies, const double *gradient) {
  double **f = atom->f;
  double checksum = 0.0; // not finite as soon as one energy or force is not

  for (int node = 0; node < list->inum; node++) {
    const double energy = ev_to_energy * energies[node];
    checksum += energy;
    if (eflag_global) eng_vdwl += energy;
    if (eflag_atom) eatom[list->ilist[node]] += energy;
  }

  for (size_t edge = 0; edge < sender_rows.size(); edge++) {
    const int i = list->ilist[edge_index[edge]], j = sender_rows[edge];
    const double *r = &edge_vectors[3 * edge];
    double g[3];
    for (int a = 0; a < 3; a++) {
      g[a] = ev_to_energy * gradient[3 * edge + a];
      f[i][a] += g[a];
      f[j][a] -= g[a];
      checksum += g[a];
    }
    if (!vflag_either) continue;

    // xx yy zz xy xz yz yx zx zy, row r by column force
    const double w[9] = {-r[0] * g[0], -r[1] * g[1], -r[2] * g[2], -r[0] * g[1], -r[0] * g[2],
                         -r[1] * g[2], -r[1] * g[0], -r[2] * g[0], -r[2] * g[1]};
    for (int c = 0; c < 6; c++) {
      // An edge of a many-body energy has an asymmetric tensor; only the sum is symmetric.
      const double symmetric = c < 3 ? w[c] : 0.5 * (w[c] + w[c + 3]);
      if (vflag_global) virial[c] += symmetric;
      if (vflag_atom) {
        vatom[i][c] += 0.5 * symmetric;
        vatom[j][c] += 0.5 * symmetric;
      }
    }
    if (cvflag_atom)
      for (int c = 0; c < 9; c++) {
        cvatom[i][c] += 0.5 * w[c];
        cvatom[j][c] += 0.5 * w[c];
      }
  }

  if (!std::isfinite(checksum))
    error->one(FLERR,
               "pair_style mlff_student: energy or forces are not finite at step {}; check for "
               "a too long timestep or a structure outside the model's domain",
               update->ntimestep);
}
